"""
Stage 2: a teacher rewrites the samples with minimum edits; what fails verification is left out.

```bash
accelerate launch recipes/edit.py --config recipes/ecqa/edit.yaml --teacher Qwen/Qwen2.5-72B-Instruct
```

The teacher is the programmatic one of the built-in task (`--teacher arithmetic`) or any local causal language model.
"""

import json
from collections import Counter
from dataclasses import dataclass, field

from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from trl import ModelConfig, TrlParser

from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.schema import check_dataset
from rlmec_trl.data.shards import map_shards
from rlmec_trl.data.tasks import load_task
from rlmec_trl.editing.editors import edit_dataset, load_editor
from rlmec_trl.generation.loading import load_model, model_fingerprint


@dataclass
class EditArguments:
    """What to edit, and who does it."""

    dataset_name: str = field(metadata={"help": "Samples, as `sample.py` writes them."})
    output_dir: str = field(metadata={"help": "Folder to write the edited samples to."})
    task: str = field(metadata={"help": "How rewrites are checked: `arithmetic`, `math` or `choice`."})
    teacher: str = field(metadata={"help": "`arithmetic`, or the path or Hub name of a model."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a data set on the Hub."})
    max_rows: int | None = field(default=None, metadata={"help": "Number of samples to take from the start."})
    max_problems: int | None = field(default=None, metadata={"help": "Number of problems whose samples to take."})
    check_correct_samples: bool = field(
        default=True, metadata={"help": "Whether right answers are edited too, since they may hide wrong steps."}
    )
    max_new_tokens: int = field(default=512, metadata={"help": "Greatest length of a rewrite, in tokens."})
    batch_size: int = field(default=16, metadata={"help": "Rewrites generated at a time."})
    shard_size: int = field(default=500, metadata={"help": "Samples between two saves."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Whether to run code that the model ships."})


def make_parser() -> TrlParser:
    return TrlParser((EditArguments, ModelConfig))


def main(args: EditArguments, model_args: ModelConfig) -> None:
    task = load_task(args.task)
    samples = load_rows(args.dataset_name, args.dataset_split, args.max_rows)
    check_dataset(samples, "samples")
    if args.max_problems is not None:
        prompts = [json.dumps(prompt) for prompt in samples["prompt"]]
        taken = set(list(dict.fromkeys(prompts))[: args.max_problems])
        samples = samples.select([index for index, prompt in enumerate(prompts) if prompt in taken])
    editor = load_editor(
        args.teacher,
        lambda name: load_model(model_args, name, args.trust_remote_code),
        wording=task.wording,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
    )
    outcomes = Counter()

    def edit(shard: Dataset, index: int) -> Dataset:
        edited, counts = edit_dataset(shard, editor, task, args.check_correct_samples)
        outcomes.update(counts)
        return edited

    settings = {**vars(args), "teacher": model_fingerprint(args.teacher)}
    edited = map_shards(samples, edit, args.output_dir, settings, args.shard_size)
    outcomes = sum((Counter(counts) for counts in gather_object([dict(outcomes)])), Counter())
    usable = len(edited) - edited["rewrite"].count(None)
    counts = ", ".join(f"{name}: {count}" for name, count in outcomes.most_common())
    PartialState().print(
        f"{usable} of {len(edited)} samples have a verified rewrite (edited now: {counts or 'none'}). Saved to "
        f"{args.output_dir}"
    )


if __name__ == "__main__":
    main(*make_parser().parse_args_and_config())
