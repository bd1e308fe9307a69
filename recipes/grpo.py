"""
GRPO with TRL and the outcome as the only reward: the baseline that gives every token of a completion the same credit.

```bash
python recipes/grpo.py --config recipes/arithmetic/grpo.yaml
```
"""

from dataclasses import dataclass, field

from trl import GRPOConfig, GRPOTrainer, ModelConfig, TrlParser, get_peft_config, get_quantization_config

from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.messages import message_text
from rlmec_trl.tasks.task import load_task
from rlmec_trl.trainers.launch import set_model_init_kwargs, train_and_save


@dataclass
class GRPOArguments:
    """What to train on."""

    dataset_name: str = field(metadata={"help": "Rows with `prompt` and `answer`."})
    task: str = field(metadata={"help": "How answers are checked: `arithmetic`, `math` or `choice`."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a data set on the Hub."})


def make_parser() -> TrlParser:
    return TrlParser((GRPOArguments, GRPOConfig, ModelConfig))


def main(args: GRPOArguments, training_args: GRPOConfig, model_args: ModelConfig) -> None:
    set_model_init_kwargs(training_args, model_args)
    task = load_task(args.task)

    def answer_is_right(completions, answer, **kwargs):
        texts = [message_text(completion) for completion in completions]
        return [float(task.check_answer(text, right)) for text, right in zip(texts, answer, strict=True)]

    trainer = GRPOTrainer(
        model=model_args.model_name_or_path,
        reward_funcs=answer_is_right,
        args=training_args,
        train_dataset=load_rows(args.dataset_name, args.dataset_split),
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    train_and_save(trainer, args.dataset_name)


if __name__ == "__main__":
    main(*make_parser().parse_args_and_config())
