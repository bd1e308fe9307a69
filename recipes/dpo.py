"""
DPO with TRL on the rewrites of incorrect samples: the baseline that prefers corrections instead of imitating them.

```bash
accelerate launch --config_file recipes/accelerate_configs/ddp.yaml recipes/dpo.py \
    --config recipes/configs/dpo.yaml --dataset_name runs/gsm8k/scored --output_dir runs/gsm8k/dpo
```

An incorrect sample with a verified rewrite makes a pair, in which the rewrite is chosen and the sample rejected. With
`--loss_type sigmoid sft`, the rewrite is imitated too.
"""

from dataclasses import dataclass, field

from trl import DPOConfig, DPOTrainer, ModelConfig, TrlParser, get_peft_config, get_quantization_config

from rlmec_trl.credit.trainer_checks import check_num_rows
from rlmec_trl.data.checks import check_config
from rlmec_trl.data.errors import ConfigError
from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.preferences import move_shared_steps, preference_rows
from rlmec_trl.generation.processes import process_state
from rlmec_trl.stages.command import run_command
from rlmec_trl.stages.refusals import check_training_settings, refused_settings
from rlmec_trl.stages.through_journal import describe_outcomes
from rlmec_trl.stages.training import set_model_init_kwargs, train_and_save, training_run
from rlmec_trl.tasks.task import load_task


@dataclass
class DPOArguments:
    """What to make pairs of."""

    dataset_name: str = field(metadata={"help": "Scored rows, or edits: their rewrites are chosen over the samples."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a dataset on the Hub."})
    pair_from: str = field(
        default="start",
        metadata={
            "help": "Where a pair begins: at the `start` of the response, or at the `first_change`, with the steps "
            "that sample and rewrite share, as `task` divides them, as part of the prompt. The loss `sigmoid` is the "
            "same for both.",
            "choices": ["start", "first_change"],
        },
    )
    task: str | None = field(
        default=None,
        metadata={"help": "Built-in task, `package.module:NAME` or `path/to/file.py:NAME`."},
    )

    def __post_init__(self):
        check_config(self)
        if self.pair_from == "first_change" and self.task is None:
            raise ConfigError("`pair_from first_change` compares steps. Set `task`, which says how they are divided.")


def make_parser() -> TrlParser:
    return TrlParser((DPOArguments, DPOConfig, ModelConfig))


def main(args: DPOArguments, training_args: DPOConfig, model_args: ModelConfig) -> None:
    check_training_settings(training_args)
    from_first_change = args.pair_from == "first_change"
    if from_first_change and training_args.precompute_ref_log_probs:
        raise ConfigError(
            "`precompute_ref_log_probs` computes log-probabilities of whole responses, and `pair_from first_change` "
            "trains on parts of them. Leave one of the two out."
        )
    with training_run(training_args):
        step_separator = load_task(args.task).wording.step_separator if from_first_change else None
        rows = load_rows(args.dataset_name, args.dataset_split)
        pairs, left_out = preference_rows(rows, step_separator)
        reasons = describe_outcomes(left_out) or "none"
        process_state().print(f"{len(pairs)} pairs of {len(rows)} rows (left out: {reasons})")
        set_model_init_kwargs(training_args, model_args)
        with refused_settings():
            trainer = DPOTrainer(
                model=model_args.model_name_or_path,
                args=training_args,
                train_dataset=pairs,
                quantization_config=get_quantization_config(model_args),
                peft_config=get_peft_config(model_args),
            )
        if from_first_change:
            trainer.train_dataset = move_shared_steps(
                trainer.train_dataset, trainer.processing_class, training_args.max_length
            )
        check_num_rows(trainer.train_dataset, "train", training_args)
        train_and_save(trainer, args.dataset_name)


if __name__ == "__main__":
    run_command(make_parser, main)
