"""
Stage 3: train a generative reward model on edited samples.

```bash
accelerate launch --config_file recipes/accelerate_configs/ddp.yaml recipes/train_grm.py \
    --config recipes/configs/train_grm.yaml --task gsm8k --dataset_name runs/gsm8k/edits --output_dir runs/gsm8k/grm
```

A second round also learns from the first one's verified rewrites of problems that no teacher edited: after scoring,
`--dataset_name runs/gsm8k/edits runs/gsm8k/scored --output_dir runs/gsm8k/grm_2`.
"""

import os
from collections import Counter
from dataclasses import dataclass, field

from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from rlmec_trl import GRMConfig, GRMTrainer
from rlmec_trl.data.errors import ConfigError
from rlmec_trl.data.loading import load_rows
from rlmec_trl.generation.processes import process_state
from rlmec_trl.stages.command import run_command
from rlmec_trl.stages.grm_rows import gather_grm_rows
from rlmec_trl.stages.model_cards import About
from rlmec_trl.stages.refusals import check_training_settings, refused_settings
from rlmec_trl.stages.through_journal import describe_outcomes
from rlmec_trl.stages.training import set_model_init_kwargs, train_and_save, training_run
from rlmec_trl.tasks.task import load_task


@dataclass
class GRMArguments:
    """What to train the generative reward model on."""

    dataset_name: list[str] = field(
        metadata={
            "help": "Edited samples, as `edit.py` writes them, scored samples with the rewrites of an earlier reward "
            "model, as `score.py` does, or several of these."
        }
    )
    task: str = field(metadata={"help": "Built-in task, `package.module:NAME` or `path/to/file.py:NAME`."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a dataset on the Hub."})
    eval_dataset_name: str | None = field(default=None, metadata={"help": "Edited samples to evaluate on."})

    def __post_init__(self):
        if isinstance(self.dataset_name, str):  # as in a YAML file
            self.dataset_name = [self.dataset_name]
        if not self.dataset_name:
            raise ConfigError("`dataset_name` is empty: name edited samples, scored samples, or several of these.")
        for name, count in Counter(map(os.path.normpath, self.dataset_name)).items():
            if count > 1:
                raise ConfigError(f"`dataset_name` names {name!r} twice. Leave one out.")


def make_parser() -> TrlParser:
    return TrlParser((GRMArguments, GRMConfig, ModelConfig))


def main(args: GRMArguments, training_args: GRMConfig, model_args: ModelConfig) -> None:
    check_training_settings(training_args, args.eval_dataset_name)
    with training_run(training_args):
        task = load_task(args.task)
        datasets = {name: load_rows(name, args.dataset_split) for name in args.dataset_name}
        dataset, left_out = gather_grm_rows(datasets, task)
        if left_out or len(datasets) > 1:
            counts = describe_outcomes(left_out) or "none"
            process_state().print(f"Training on {len(dataset)} rows. Scored rows left out: {counts}")
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
        train_and_save(trainer, args.dataset_name, about=About(task=args.task))


if __name__ == "__main__":
    run_command(make_parser, main)
