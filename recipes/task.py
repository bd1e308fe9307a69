"""
Write a built-in task, arithmetic or verdicts: its splits as datasets, and an untrained policy with its tokenizer.

```bash
python recipes/task.py --output_dir runs/arithmetic/seed-0/task --seed 0
python recipes/task.py --task verdicts --output_dir runs/rllr/seed-0/task --seed 0
```
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from trl import TrlParser

from rlmec_trl.data.checks import check_config
from rlmec_trl.data.errors import ConfigError
from rlmec_trl.stages.command import run_command
from rlmec_trl.stages.output import claim, is_finished, publish
from rlmec_trl.stages.summary import print_summary, timed
from rlmec_trl.tasks import arithmetic, verdicts


@dataclass
class TaskArguments:
    """Sizes of the splits and of the policy, and where to write them."""

    output_dir: str = field(
        metadata={
            "help": "Folder for `warmup`, `train`, `validation`, `test` and `policy`; of verdicts also for "
            "`label_pairs` and `rationale_pairs`."
        }
    )
    task: str = field(
        default="arithmetic",
        metadata={"help": "The task to write.", "choices": ["arithmetic", "verdicts"]},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the problems and of the policy's weights."})
    warmup_size: int = field(default=1500, metadata={"help": "Number of mostly easy problems with solutions."})
    train_size: int = field(default=4000, metadata={"help": "Number of problems for everything after the warm-up."})
    validation_size: int = field(default=500, metadata={"help": "Number of problems to choose settings on."})
    test_size: int = field(default=1000, metadata={"help": "Number of problems to report."})
    pairs_size: int = field(
        default=1000,
        metadata={"help": "Number of pairs of each kind to measure reward models on. For verdicts only."},
    )
    hidden_size: int = field(default=128, metadata={"help": "Width of the policy, a multiple of 8."})
    num_hidden_layers: int = field(default=3, metadata={"help": "Layers of the policy."})

    def __post_init__(self):
        check_config(self)
        if self.hidden_size % 8 != 0:
            raise ConfigError(f"`hidden_size` must be a multiple of 8 (4 heads of even size), got {self.hidden_size}.")


def make_parser() -> TrlParser:
    return TrlParser((TaskArguments,))


@timed
def main(args: TaskArguments) -> None:
    def save(folder: Path) -> None:
        sizes = (args.warmup_size, args.train_size, args.validation_size, args.test_size)
        if args.task == "verdicts":
            splits = verdicts.make_verdicts(args.seed, *sizes, args.pairs_size)
            task = verdicts
        else:
            splits = arithmetic.make_arithmetic(args.seed, *sizes)
            task = arithmetic
        for name, dataset in splits.items():
            dataset.save_to_disk(str(folder / name))
        tokenizer = task.make_tokenizer()
        policy = task.make_policy(tokenizer, args.seed, args.hidden_size, args.num_hidden_layers)
        for part in (policy, tokenizer):
            part.save_pretrained(str(folder / "policy"))

    settings = {name: value for name, value in vars(args).items() if name != "output_dir"}
    key = json.dumps(settings, sort_keys=True)
    with claim(args.output_dir, key) as work_dir:
        if not is_finished(args.output_dir, key):
            publish(save, args.output_dir, key, work_dir, costs={})
    print_summary(
        f"Task {args.task}: {args.warmup_size:,} problems for the warm-up, {args.train_size:,} for training, "
        f"{args.validation_size:,} for validation, {args.test_size:,} for the test, and an untrained policy.",
        args.output_dir,
    )


if __name__ == "__main__":
    run_command(make_parser, main)
