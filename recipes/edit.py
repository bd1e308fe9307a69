"""
Stage 2: a teacher rewrites the samples with minimum edits; what fails verification is left out.

```bash
accelerate launch --config_file recipes/accelerate_configs/ddp.yaml recipes/edit.py \
    --config recipes/configs/edit.yaml --task gsm8k --dataset_name runs/gsm8k/samples --output_dir runs/gsm8k/edits
```

The teacher is the programmatic one of the built-in task (`--teacher task`), a local causal language model, or,
with `--provider`, a model behind an API. These go through a journal: nothing that was answered is asked again.

```bash
# What will it cost? Without `--dry_run`, the same command makes the edits
python recipes/edit.py --config recipes/configs/edit_anthropic.yaml --task gsm8k \
    --dataset_name runs/gsm8k/samples --output_dir runs/gsm8k/edits --dry_run true
```
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset, load_from_disk
from trl import ModelConfig, TrlParser

from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.schema import check_dataset
from rlmec_trl.generation.loading import load_model, model_fingerprint
from rlmec_trl.generation.processes import end_processes, gather_counts, process_state
from rlmec_trl.generation.server import ServerConfig
from rlmec_trl.stages.runner import map_shards, save_whole
from rlmec_trl.tasks.task import Task, load_task
from rlmec_trl.teachers.anthropic_editor import AnthropicEditor
from rlmec_trl.teachers.api.budget import describe_estimate
from rlmec_trl.teachers.api.config import TeacherConfig
from rlmec_trl.teachers.api.journal import Journal
from rlmec_trl.teachers.api.journaled_editor import edit_through_journal
from rlmec_trl.teachers.editors import edit_dataset, editor_inputs, mean_edit_distance
from rlmec_trl.teachers.model_editor import ModelEditor
from rlmec_trl.teachers.server_editor import ServerEditor


@dataclass
class EditArguments:
    """What to edit, and who does it."""

    dataset_name: str = field(metadata={"help": "Samples, as `sample.py` writes them."})
    output_dir: str = field(metadata={"help": "Folder to write the edited samples to."})
    task: str = field(metadata={"help": "Built-in task, `package.module:NAME` or `path/to/file.py:NAME`."})
    teacher: str = field(metadata={"help": "`arithmetic`, or the name of a model (of a local one, also its path)."})
    provider: str = field(
        default="local",
        metadata={
            "help": "Where the teacher runs: in this process (`local`), at Anthropic (`anthropic`), or behind an "
            "OpenAI-compatible server (`server`).",
            "choices": ["local", "anthropic", "server"],
        },
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of a data set on the Hub."})
    max_rows: int | None = field(default=None, metadata={"help": "Number of samples to take from the start."})
    max_problems: int | None = field(default=None, metadata={"help": "Number of problems whose samples to take."})
    check_correct_samples: bool = field(
        default=True, metadata={"help": "Whether right answers are edited too, since they may hide wrong steps."}
    )
    max_new_tokens: int = field(default=512, metadata={"help": "Greatest length of a local model's rewrite."})
    batch_size: int = field(default=16, metadata={"help": "Rewrites that a local model generates at a time."})
    shard_size: int = field(default=500, metadata={"help": "Samples between two saves of a local teacher."})
    journal_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of the answers of a teacher behind an API. `<output_dir>-journal` if unset."},
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Whether to say what a teacher behind an API would cost, and ask nothing."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Whether to run code that the model ships."})


def make_parser() -> TrlParser:
    return TrlParser((EditArguments, TeacherConfig, ServerConfig, ModelConfig))


def load_samples(args: EditArguments) -> Dataset:
    samples = load_rows(args.dataset_name, args.dataset_split, args.max_rows)
    check_dataset(samples, "samples")
    if args.max_problems is None:
        return samples
    prompts = [json.dumps(prompt) for prompt in samples["prompt"]]
    taken = set(list(dict.fromkeys(prompts))[: args.max_problems])
    return samples.select([index for index, prompt in enumerate(prompts) if prompt in taken])


def edit_here(samples: Dataset, task: Task, args: EditArguments, model_args: ModelConfig) -> tuple[Dataset, Counter]:
    """With a teacher in this process, shard by shard."""
    if args.teacher == "task":
        editor = task.editor
    else:
        model = load_model(model_args, args.teacher, args.trust_remote_code)
        editor = ModelEditor(*model, task.wording, args.batch_size, args.max_new_tokens)
    outcomes = Counter()

    def edit(shard: Dataset, index: int) -> Dataset:
        edited, counts = edit_dataset(shard, editor, task, args.check_correct_samples)
        outcomes.update(counts)
        return edited

    settings = {**vars(args), "teacher": model_fingerprint(args.teacher)}
    edited = map_shards(samples, edit, args.output_dir, settings, args.shard_size)
    return edited, gather_counts(outcomes)


def edit_by_api(
    samples: Dataset, task: Task, args: EditArguments, teacher_config: TeacherConfig, server_config: ServerConfig
) -> tuple[Dataset, Counter] | None:
    """With a teacher behind an API, through the journal. `None` where only the costs were asked for."""
    state = process_state()
    journal_dir = args.journal_dir or f"{args.output_dir.rstrip('/')}-journal"
    if Path(journal_dir).resolve().is_relative_to(Path(args.output_dir).resolve()):
        raise ValueError(
            f"The journal {journal_dir!r} lies in `--output_dir`, which is replaced: name another folder."
        )
    with Journal(journal_dir, state.process_index, state.num_processes) as journal:
        # Whoever finds another run's lock stops before anybody pays
        state.wait_for_everyone()
        teacher_class = AnthropicEditor if args.provider == "anthropic" else ServerEditor
        teacher = teacher_class(
            args.teacher, journal, teacher_config, server_config, task.wording, 1 / state.num_processes
        )
        wrong = [index for index, correct in enumerate(samples["correct"]) if not correct]
        asked = samples if args.check_correct_samples else samples.select(wrong)
        estimate = teacher.estimate(*editor_inputs(asked, task))
        state.print(describe_estimate(estimate, teacher_config))
        if args.dry_run:
            return None
        before = teacher.budget.spent
        edited, outcomes = edit_through_journal(samples, teacher, task, args.check_correct_samples)
        state.wait_for_everyone()
        spent = sum(journal.costs())
    if state.is_main_process:
        save_whole(edited, args.output_dir)
    state.wait_for_everyone()
    if teacher_config.max_cost is not None and outcomes["not asked"] > 0:
        state.print("`max_cost` was reached. With a higher one, the same command asks for the others.")
    if teacher_config.input_price is not None:
        state.print(f"Spent {spent - before:.2f} dollars, {spent:.2f} with earlier runs of {journal_dir}.")
    return load_from_disk(args.output_dir), outcomes


def main(
    args: EditArguments, teacher_config: TeacherConfig, server_config: ServerConfig, model_args: ModelConfig
) -> None:
    task = load_task(args.task)
    samples = load_samples(args)
    if args.provider == "local" and (server_config.base_url is not None or args.dry_run):
        raise ValueError("`--base_url` and `--dry_run` need `--provider server`, or `--provider anthropic`.")
    if args.provider == "local":
        edited, outcomes = edit_here(samples, task, args, model_args)
    else:
        result = edit_by_api(samples, task, args, teacher_config, server_config)
        if result is None:
            return
        edited, outcomes = result
    usable = len(edited) - edited["rewrite"].count(None)
    kinds = Counter()
    for outcome, count in outcomes.items():
        kinds[outcome.partition(":")[0]] += count  # without what an API has said beside it
    counts = ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common())
    distance = mean_edit_distance(edited)
    PartialState().print(
        f"{usable} of {len(edited)} samples have a verified rewrite (edited now: {counts or 'none'})."
        + (f" A rewrite changes {distance:.1f} words on average." if distance is not None else "")
        + f" Saved to {args.output_dir}"
    )


if __name__ == "__main__":
    main(*make_parser().parse_args_and_config())
    end_processes()
