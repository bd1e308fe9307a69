"""The edit stage: a teacher rewrites samples with minimum edits, and what passes verification is kept."""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import ClassVar

from datasets import Dataset
from trl import ModelConfig

from ..data.checks import check_config
from ..data.errors import ConfigError
from ..data.loading import load_rows
from ..data.schema import check_dataset
from ..generation.loading import load_model, load_tokenizer
from ..generation.processes import gather_counts
from ..generation.server import ServerConfig
from ..tasks.task import Task, load_task, source_hash
from ..teachers.api.config import TeacherConfig
from ..teachers.api.journaled_teacher import JournaledTeacher
from ..teachers.editors import Editor, edit_dataset, editor_inputs, load_editor, mean_edit_distance
from ..teachers.journaled_editor import JournaledEditor, edit_through_journal
from ..teachers.model_editor import ModelEditor
from ..teachers.reference_editor import ReferenceEditor
from .dataset_cards import DatasetFacts, card_settings, is_model, prompts_of, teacher_of
from .keys import config_key, function_key, model_key, task_key
from .output import check_path
from .publishing import DatasetPublisher, PublishConfig
from .runner import EmptyResultError, map_shards
from .summary import print_summary, timed
from .through_journal import check_local, describe_outcomes, work_through_journal


@dataclass
class EditConfig:
    r"""
    Settings of the edit stage.

    Parameters:
        dataset_name (`str`):
            Samples, as the sample stage writes them.
        output_dir (`str`):
            Folder to save the edited samples to.
        task (`str`):
            How rewrites are checked: a built-in task, `package.module:NAME` or `path/to/file.py:NAME`.
        teacher (`str`):
            The teacher: the name of a model (of a local one, also its path), `task` for the task's own programmatic
            editor, `reference` for the values that the references state, or an editor of your own as
            `package.module:NAME` or `path/to/file.py:NAME`.
        teacher_revision (`str`, *optional*, defaults to `"main"`):
            Revision of a local teacher on the Hub.
        provider (`str`, *optional*, defaults to `"local"`):
            Where the teacher runs: `"local"`, in this process; `"anthropic"`; or `"server"`, behind an
            OpenAI-compatible server.
        dataset_split (`str`, *optional*, defaults to `"train"`):
            Split of a dataset on the Hub.
        max_rows (`int`, *optional*):
            Number of samples to take from the start.
        max_problems (`int`, *optional*):
            Number of problems whose samples to take.
        check_correct_samples (`bool`, *optional*, defaults to `True`):
            Whether samples with a correct answer are edited too, since they may hide incorrect steps.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Maximum length of a local model's rewrite.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of rewrites that a local model generates at a time.
        shard_size (`int`, *optional*, defaults to `500`):
            Number of samples between two saves of a local teacher.
        journal_dir (`str`, *optional*):
            Folder of the answers of an API teacher. `<output_dir>-journal` if unset.
        dry_run (`bool`, *optional*, defaults to `False`):
            Whether to print what an API teacher would cost, and request nothing.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that a local teacher's repository ships.
    """

    dataset_name: str = field(metadata={"help": "Samples, as `sample.py` writes them."})
    output_dir: str = field(metadata={"help": "Folder to save the edited samples to."})
    task: str = field(
        metadata={
            "help": "Built-in task, `package.module:NAME` or `path/to/file.py:NAME`.",
        }
    )
    teacher: str = field(
        metadata={
            "help": "The teacher: the name of a model (of a local one, also its path), `task` for the task's own "
            "programmatic editor, `reference` for the values that the references state, or an editor of your own as "
            "`package.module:NAME` or `path/to/file.py:NAME`.",
        }
    )
    teacher_revision: str = field(default="main", metadata={"help": "Revision of a local teacher on the Hub."})
    provider: str = field(
        default="local",
        metadata={
            "help": "Where the teacher runs: in this process (`local`), at Anthropic (`anthropic`), or behind an "
            "OpenAI-compatible server (`server`).",
            "choices": ["local", "anthropic", "server"],
        },
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of a dataset on the Hub."})
    max_rows: int | None = field(default=None, metadata={"help": "Number of samples to take from the start."})
    max_problems: int | None = field(default=None, metadata={"help": "Number of problems whose samples to take."})
    check_correct_samples: bool = field(
        default=True,
        metadata={
            "help": "Whether samples with a correct answer are edited too, since they may hide incorrect steps.",
        },
    )
    max_new_tokens: int = field(default=512, metadata={"help": "Maximum length of a local model's rewrite."})
    batch_size: int = field(
        default=16, metadata={"help": "Number of rewrites that a local model generates at a time."}
    )
    shard_size: int = field(default=500, metadata={"help": "Number of samples between two saves of a local teacher."})
    journal_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the answers of an API teacher. `<output_dir>-journal` if unset.",
        },
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Whether to print what an API teacher would cost, and request nothing.",
        },
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Whether to run Python code that a local teacher's repository ships."},
    )

    # How each field enters the key of a result (see `stages/keys.py`)
    key_parts: ClassVar[dict[str, str]] = {
        "dataset_name": "content",
        "output_dir": "none",
        "task": "content",
        "teacher": "content",
        "teacher_revision": "content",
        "provider": "none",
        "dataset_split": "content",
        "max_rows": "content",
        "max_problems": "content",
        "check_correct_samples": "value",
        "max_new_tokens": "value",
        "batch_size": "none",
        "shard_size": "none",
        "journal_dir": "none",
        "dry_run": "none",
        "trust_remote_code": "none",
    }

    def __post_init__(self):
        check_config(self)


@timed
def run(
    config: EditConfig,
    teacher_config: TeacherConfig | None = None,
    server_config: ServerConfig | None = None,
    model_args: ModelConfig | None = None,
    publish_config: PublishConfig | None = None,
) -> Dataset | None:
    """
    Have a teacher rewrite samples, and save the rows with what passed verification. Re-running resumes.

    Args:
        config ([`EditConfig`]):
            The samples and the teacher.
        teacher_config ([`~rlmec_trl.teachers.api.config.TeacherConfig`], *optional*):
            Requests and cost limit of an API teacher.
        server_config ([`~rlmec_trl.generation.server.ServerConfig`], *optional*):
            How an API is reached.
        model_args ([`~trl.ModelConfig`], *optional*):
            How a local teacher is loaded: dtype, attention, quantization. Its name and revision are in `config`.
        publish_config ([`~rlmec_trl.stages.publishing.PublishConfig`], *optional*):
            Whether and where to publish the rows. They are not by default.

    Returns:
        [`~datasets.Dataset`]: The samples with `rewrite`, `error_step` and `edit_outcome`; `None` after a dry run.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If settings contradict each other.
        [`~rlmec_trl.stages.runner.EmptyResultError`]: If no sample that was to be edited has a verified rewrite. An
            earlier result stays, and so do the answers of an API teacher in their journal.
        [`~rlmec_trl.stages.output.OutputError`]: If `output_dir` cannot be replaced, or another run is writing to it.
        [`~rlmec_trl.teachers.api.errors.TeacherError`]: If an API teacher cannot be used.
        [`~rlmec_trl.data.schema.DatasetError`]: If a row breaks the contract of its columns.
        [`~rlmec_trl.stages.publishing.PublishError`]: If the rows cannot be published. What was saved stays.
    """
    teacher_config, server_config = teacher_config or TeacherConfig(), server_config or ServerConfig()
    check_path(config.output_dir)
    publisher = DatasetPublisher(None if config.dry_run else publish_config, config.output_dir)
    task = load_task(config.task)
    samples = _load_samples(config)
    if config.provider == "local":
        check_local(config, server_config)
        edited, outcomes = _edit_here(samples, task, config, model_args or ModelConfig())
    else:
        edited, outcomes = _edit_by_api(samples, task, config, teacher_config, server_config)
        if edited is None:
            return None
    counts = describe_outcomes(outcomes)
    usable = len(edited) - edited.data["rewrite"].null_count
    distance = mean_edit_distance(edited)
    print_summary(
        f"{usable:,} of {len(edited):,} samples have a verified rewrite (edited now: {counts or 'none'})."
        + (f" A rewrite changes {distance:.1f} words on average." if distance is not None else ""),
        config.output_dir,
        "train-grm --dataset_name",
    )
    prompt = "rewrite" if config.provider == "local" else "teacher"
    facts = DatasetFacts(
        "edits",
        "Samples of a policy that a teacher has corrected with minimum edits. Rewrites that failed verification are "
        "`None`.",
        {**teacher_of(config.teacher, config.provider), "task": config.task, "samples": config.dataset_name},
        card_settings(config),
        prompts_of(task.wording, prompt) if is_model(config.teacher, config.provider) else {},
    )
    publisher.publish(edited, facts)
    return edited


def _check_not_empty(edited: Dataset, config: EditConfig, teacher_said: str = "") -> None:
    """Refuse a result in which not one of the samples that the teacher was given has a verified rewrite."""
    corrects = edited["correct"][:]
    asked = [index for index, correct in enumerate(corrects) if config.check_correct_samples or not correct]
    if not asked or any(rewrite is not None for rewrite in edited.select(asked)["rewrite"]):
        return
    outcomes = Counter(edited.select(asked)["edit_outcome"])
    raise EmptyResultError(
        f"The teacher {config.teacher!r} gave no verified rewrite of any of {len(asked)} samples "
        f"({describe_outcomes(outcomes)}).{teacher_said} Nothing was saved to {config.output_dir!r}."
    )


def _load_samples(config: EditConfig) -> Dataset:
    samples = load_rows(config.dataset_name, config.dataset_split, config.max_rows)
    check_dataset(samples, "samples")
    if config.max_problems is None:
        return samples
    taken, indices = set(), []
    for index, row in enumerate(samples.select_columns("prompt")):
        prompt = json.dumps(row["prompt"])
        if len(taken) < config.max_problems:
            taken.add(prompt)
        if prompt in taken:
            indices.append(index)
    return samples.select(indices)


def _edit_here(samples: Dataset, task: Task, config: EditConfig, model_args: ModelConfig) -> tuple[Dataset, Counter]:
    """With a teacher in this process, shard by shard."""
    if config.teacher == "task":
        if task.editor is None:
            raise ConfigError(f"Task '{task.name}' has no editor: name a model with `--teacher`.")
        editor, teacher = task.editor, function_key(task.editor)
    elif config.teacher == "reference":
        editor = ReferenceEditor(task)
        teacher = ["reference", None if task.write_steps is None else function_key(task.write_steps)]
    elif ":" in config.teacher:
        editor = load_editor(config.teacher)
        # An object is known by its content, and by the file that makes it
        teacher = [function_key(editor), source_hash(config.teacher)]
    else:
        if model_args.model_name_or_path is not None or model_args.model_revision != "main":
            raise ConfigError(
                "`--model_name_or_path` and `--model_revision` are the policy's, which this stage does not load. Name "
                "the teacher with `--teacher` and `--teacher_revision`."
            )
        model_args = replace(model_args, model_name_or_path=config.teacher, model_revision=config.teacher_revision)
        teacher = model_key(model_args, load_tokenizer(model_args, config.trust_remote_code))
        editor = None

    @cache  # loaded on first use: a finished run loads no model
    def load_teacher() -> Editor:
        if editor is not None:
            return editor
        model, tokenizer = load_model(model_args, config.trust_remote_code)
        return ModelEditor(model, tokenizer, task.wording, config.batch_size, config.max_new_tokens)

    outcomes, costs = Counter(), Counter()

    def edit(shard: Dataset, index: int) -> Dataset:
        edited, counts = edit_dataset(
            shard, load_teacher(), task, config.check_correct_samples, first_row=index * config.shard_size
        )
        outcomes.update(counts)
        costs["teacher_edits"] += len(shard) if config.check_correct_samples else shard["correct"][:].count(False)
        return edited

    settings = {**config_key(config), "teacher": teacher, "task": task_key(task, config.task)}
    if editor is not None:
        # It generates nothing
        del settings["max_new_tokens"]
    edited = map_shards(
        samples,
        edit,
        config.output_dir,
        settings,
        config.shard_size,
        check=partial(_check_not_empty, config=config),
        costs=costs,
    )
    return edited, gather_counts(outcomes)


def _edit_by_api(
    samples: Dataset, task: Task, config: EditConfig, teacher_config: TeacherConfig, server_config: ServerConfig
) -> tuple[Dataset | None, Counter]:
    """With an API teacher, through the journal. `None` after a dry run."""
    asked = samples if config.check_correct_samples else samples.filter(lambda row: not row["correct"])

    def editor_of(teacher: JournaledTeacher) -> JournaledEditor:
        return JournaledEditor(teacher, task.wording)

    def count_answers(teacher: JournaledTeacher) -> dict[str, int]:
        keys = {question.key for question in editor_of(teacher).questions(*editor_inputs(asked, task))}
        return {"teacher_edits": sum(len(teacher.journal.answers(key)) for key in keys)}

    return work_through_journal(
        config,
        config.teacher,
        [samples],
        teacher_config,
        server_config,
        estimate=lambda teacher: editor_of(teacher).estimate(*editor_inputs(asked, task)),
        work=lambda teacher: edit_through_journal(samples, editor_of(teacher), task, config.check_correct_samples),
        check=lambda edited, teacher_said: _check_not_empty(edited, config, teacher_said),
        count_costs=count_answers,
    )
