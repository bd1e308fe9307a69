"""
Train a reward model on pairs of responses that differ in their label, in their rationale, or on both kinds.

```bash
accelerate launch --config_file recipes/accelerate_configs/ddp.yaml recipes/train_label_reward.py \
    --config recipes/configs/train_label_reward.yaml --dataset_name runs/sst2/pairs --kind label \
    --output_dir runs/sst2/label_reward
```
"""

from dataclasses import dataclass, field

from datasets import Dataset
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from rlmec_trl import LabelRewardConfig, LabelRewardTrainer
from rlmec_trl.data.checks import check_config
from rlmec_trl.data.errors import DatasetError
from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.schema import check_dataset
from rlmec_trl.stages.command import run_command
from rlmec_trl.stages.refusals import check_training_settings, refused_settings
from rlmec_trl.stages.training import set_model_init_kwargs, train_and_save, training_run


@dataclass
class LabelRewardArguments:
    """What to train the reward model on."""

    dataset_name: str = field(metadata={"help": "Pairs, as `pairs.py` writes them."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a dataset on the Hub."})
    kind: str | None = field(
        default=None,
        metadata={
            "help": "Kind of the pairs to train on; all if unset. Evaluation pairs of both kinds are kept.",
            "choices": ["label", "rationale"],
        },
    )
    eval_dataset_name: str | None = field(default=None, metadata={"help": "Pairs to evaluate on."})

    def __post_init__(self):
        check_config(self)


def pairs_of(dataset: Dataset, kind: str | None) -> Dataset:
    """The pairs of one kind, or all."""
    if kind is None:
        return dataset
    check_dataset(dataset, "preference")
    if "kind" not in dataset.column_names:
        raise DatasetError(f"Column 'kind' is missing, by which `--kind {kind}` selects pairs. `pairs.py` writes it.")
    selected = [index for index, found in enumerate(dataset["kind"]) if found == kind]
    if not selected:
        raise DatasetError(f"The dataset has no pair of kind {kind!r}. Make some with `pairs.py`, or drop `--kind`.")
    return dataset.select(selected)


def make_parser() -> TrlParser:
    return TrlParser((LabelRewardArguments, LabelRewardConfig, ModelConfig))


def main(args: LabelRewardArguments, training_args: LabelRewardConfig, model_args: ModelConfig) -> None:
    check_training_settings(training_args, args.eval_dataset_name)
    with training_run(training_args):
        dataset = pairs_of(load_rows(args.dataset_name, args.dataset_split), args.kind)
        eval_dataset = load_rows(args.eval_dataset_name, args.dataset_split) if args.eval_dataset_name else None
        set_model_init_kwargs(training_args, model_args)
        with refused_settings():
            trainer = LabelRewardTrainer(
                model=model_args.model_name_or_path,
                args=training_args,
                train_dataset=dataset,
                eval_dataset=eval_dataset,
                quantization_config=get_quantization_config(model_args),
                peft_config=get_peft_config(model_args),
            )
        train_and_save(trainer, args.dataset_name)


if __name__ == "__main__":
    run_command(make_parser, main)
