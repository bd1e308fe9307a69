"""
GRPO with TRL and the outcome as the only reward: the baseline that gives every token of a completion the same credit.

```bash
accelerate launch recipes/grpo.py --model_name_or_path runs/arithmetic/seed-0/warmup --task arithmetic \
    --dataset_name runs/arithmetic/seed-0/task/train --output_dir runs/arithmetic/grpo
```

The dataset has one row per problem. Samples are not suitable: there, a problem has as many rows as it has samples.
"""

from dataclasses import dataclass, field

from trl import GRPOConfig, GRPOTrainer, ModelConfig, TrlParser, get_peft_config, get_quantization_config

from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.schema import check_dataset
from rlmec_trl.stages.command import run_command
from rlmec_trl.stages.keys import task_key
from rlmec_trl.stages.model_cards import About
from rlmec_trl.stages.outcomes import outcome_reward
from rlmec_trl.stages.refusals import check_generation_batch, check_training_settings, refused_settings
from rlmec_trl.stages.training import set_model_init_kwargs, train_and_save, training_run
from rlmec_trl.tasks.task import load_task


@dataclass
class GRPOArguments:
    """What to train on."""

    dataset_name: str = field(metadata={"help": "Rows with `prompt` and `answer`, one per problem."})
    task: str = field(metadata={"help": "Built-in task, `package.module:NAME` or `path/to/file.py:NAME`."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a dataset on the Hub."})


def make_parser() -> TrlParser:
    return TrlParser((GRPOArguments, GRPOConfig, ModelConfig))


def main(args: GRPOArguments, training_args: GRPOConfig, model_args: ModelConfig) -> None:
    check_training_settings(training_args)
    with training_run(training_args):
        task = load_task(args.task)
        dataset = load_rows(args.dataset_name, args.dataset_split)
        check_dataset(dataset, "grpo")
        check_generation_batch(len(dataset), training_args)
        set_model_init_kwargs(training_args, model_args)
        with refused_settings():
            trainer = GRPOTrainer(
                model=model_args.model_name_or_path,
                reward_funcs=outcome_reward(task),
                args=training_args,
                train_dataset=dataset,
                quantization_config=get_quantization_config(model_args),
                peft_config=get_peft_config(model_args),
            )
        train_and_save(trainer, args.dataset_name, {"task": task_key(task, args.task)}, About(args.task))


if __name__ == "__main__":
    run_command(make_parser, main)
