"""
Supervised fine-tuning with TRL: the warm-up of the built-in task, and the baselines that RLMEC is compared with.

```bash
# Rejection sampling: the policy's own samples with a correct answer
accelerate launch recipes/sft.py --model_name_or_path Qwen/Qwen2.5-1.5B-Instruct --dataset_name runs/gsm8k/samples \
    --only_correct true --output_dir runs/gsm8k/rft
```
"""

from dataclasses import dataclass, field

from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config, get_quantization_config

from rlmec_trl.credit.trainer_checks import check_num_rows
from rlmec_trl.data.imitation import prompt_completion_rows
from rlmec_trl.data.loading import load_rows
from rlmec_trl.stages.command import run_command
from rlmec_trl.stages.refusals import check_training_settings, refused_settings
from rlmec_trl.stages.training import set_model_init_kwargs, train_and_save, training_run


@dataclass
class SFTArguments:
    """What to imitate."""

    dataset_name: str = field(metadata={"help": "Rows with `prompt` and the column to imitate."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a dataset on the Hub."})
    completion_column: str = field(default="completion", metadata={"help": "Column to imitate."})
    only_correct: bool = field(default=False, metadata={"help": "Whether to keep only rows with a correct answer."})


def make_parser() -> TrlParser:
    return TrlParser((SFTArguments, SFTConfig, ModelConfig))


def main(args: SFTArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    check_training_settings(training_args)
    with training_run(training_args):
        set_model_init_kwargs(training_args, model_args)
        rows = load_rows(args.dataset_name, args.dataset_split)
        dataset = prompt_completion_rows(rows, args.completion_column, args.only_correct)
        with refused_settings():
            trainer = SFTTrainer(
                model=model_args.model_name_or_path,
                args=training_args,
                train_dataset=dataset,
                quantization_config=get_quantization_config(model_args),
                peft_config=get_peft_config(model_args),
            )
        check_num_rows(trainer.train_dataset, "train", training_args)
        train_and_save(trainer, args.dataset_name)


if __name__ == "__main__":
    run_command(make_parser, main)
