"""
Stage 3: train a generative reward model on edited samples.

```bash
accelerate launch --config_file recipes/accelerate_configs/ddp.yaml recipes/train_grm.py \
    --config recipes/configs/train_grm.yaml --task gsm8k --dataset_name runs/gsm8k/edits --output_dir runs/gsm8k/grm
```
"""

from dataclasses import dataclass, field

from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from rlmec_trl import GRMConfig, GRMTrainer
from rlmec_trl.data.loading import load_rows
from rlmec_trl.stages.command import run_command
from rlmec_trl.stages.refusals import check_training_settings, refused_settings
from rlmec_trl.stages.training import set_model_init_kwargs, train_and_save, training_run
from rlmec_trl.tasks.task import load_task


@dataclass
class GRMArguments:
    """What to train the generative reward model on."""

    dataset_name: str = field(metadata={"help": "Edited samples, as `edit.py` writes them."})
    task: str = field(metadata={"help": "Built-in task, `package.module:NAME` or `path/to/file.py:NAME`."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a dataset on the Hub."})
    eval_dataset_name: str | None = field(default=None, metadata={"help": "Edited samples to evaluate on."})


def make_parser() -> TrlParser:
    return TrlParser((GRMArguments, GRMConfig, ModelConfig))


def main(args: GRMArguments, training_args: GRMConfig, model_args: ModelConfig) -> None:
    check_training_settings(training_args, args.eval_dataset_name)
    with training_run(training_args):
        task = load_task(args.task)
        dataset = load_rows(args.dataset_name, args.dataset_split)
        eval_dataset = load_rows(args.eval_dataset_name, args.dataset_split) if args.eval_dataset_name else None
        set_model_init_kwargs(training_args, model_args)
        with refused_settings():
            trainer = GRMTrainer(
                model=model_args.model_name_or_path,
                args=training_args,
                train_dataset=dataset,
                eval_dataset=eval_dataset,
                quantization_config=get_quantization_config(model_args),
                peft_config=get_peft_config(model_args),
                wording=task.wording,
            )
        train_and_save(trainer, args.dataset_name)


if __name__ == "__main__":
    run_command(make_parser, main)
