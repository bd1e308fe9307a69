"""The rationales stage: a teacher justifies labels, and what passes verification is kept."""

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import ClassVar

from datasets import Dataset, Value
from trl import ModelConfig

from ..credit.paper import RLLR_PAPER
from ..data.checks import check_config
from ..data.errors import ConfigError
from ..data.schema import check_dataset, column_features
from ..generation.loading import load_model, load_tokenizer
from ..generation.processes import gather_counts
from ..generation.server import ServerConfig
from ..tasks.problems import ProblemConfig, load_problems
from ..tasks.task import Task, load_task, source_hash
from ..teachers.api.config import TeacherConfig
from ..teachers.api.journaled_teacher import JournaledTeacher
from ..teachers.journaled_justifier import JournaledJustifier, justify_through_journal
from ..teachers.model_justifier import ModelJustifier
from ..teachers.rationales import (
    ACCEPTED,
    Justifier,
    TaskJustifier,
    justifier_inputs,
    justify_dataset,
    load_justifier,
)
from .confusable import StatedLabels, problem_key
from .dataset_cards import DatasetFacts, card_settings, is_model, prompts_of, teacher_of
from .keys import config_key, function_key, model_key, task_key
from .output import check_not_input, check_path
from .publishing import DatasetPublisher, PublishConfig
from .runner import EmptyResultError, map_shards
from .summary import print_summary, timed
from .through_journal import check_local, describe_outcomes, work_through_journal


@dataclass
class RationalesConfig:
    r"""
    Settings of the rationales stage.

    Parameters:
        output_dir (`str`):
            Folder to save the rationales to.
        task (`str`):
            A task with labels: a built-in one, `package.module:NAME` or `path/to/file.py:NAME`.
        teacher (`str`):
            The teacher: the name of a model (of a local one, also its path), `task` for the task's own programmatic
            writer, or one of your own as `package.module:NAME` or `path/to/file.py:NAME`.
        labels (`str`, *optional*, defaults to `"gold"`):
            The labels to justify for each problem: its answer (`"gold"`), all others (`"wrong"`), both (`"all"`), or
            the wrong one that the policy's samples state most often (`"confusable"`); the rows are then samples.
        teacher_revision (`str`, *optional*, defaults to `"main"`):
            Revision of a local teacher on the Hub.
        provider (`str`, *optional*, defaults to `"local"`):
            Where the teacher runs: `"local"`, in this process; `"anthropic"`; or `"server"`, behind an
            OpenAI-compatible server.
        policy (`str`, *optional*):
            The policy, whose tokenizer decides whether the prompts of raw problems are messages. Rows that have a
            prompt need none.
        max_problems (`int`, *optional*):
            Number of problems to take from the start.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Maximum length of a local model's response.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of responses that a local model generates at a time.
        shard_size (`int`, *optional*, defaults to `500`):
            Number of rows between two saves of a local teacher.
        journal_dir (`str`, *optional*):
            Folder of the answers of an API teacher. `<output_dir>-journal` if unset.
        dry_run (`bool`, *optional*, defaults to `False`):
            Whether to print what an API teacher would cost, and request nothing.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that a model's repository ships.
    """

    output_dir: str = field(metadata={"help": "Folder to save the rationales to."})
    task: str = field(
        metadata={"help": "Task with labels: a built-in one, `package.module:NAME` or `path/to/file.py:NAME`."}
    )
    teacher: str = field(
        metadata={
            "help": "The teacher: the name of a model (of a local one, also its path), `task` for the task's own "
            "programmatic writer, or one of your own as `package.module:NAME` or `path/to/file.py:NAME`.",
        }
    )
    labels: str = field(
        default="gold",
        metadata={
            "help": "The labels to justify for each problem: its answer (`gold`), all others (`wrong`), both (`all`), "
            "or the wrong one that the policy's samples state most often (`confusable`).",
            "choices": ["gold", "wrong", "all", "confusable"],
        },
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
    policy: str | None = field(
        default=None,
        metadata={
            "help": "The policy, whose tokenizer decides whether the prompts of raw problems are messages. Rows that "
            "have a prompt need none.",
        },
    )
    max_problems: int | None = field(default=None, metadata={"help": "Number of problems to take from the start."})
    max_new_tokens: int = field(default=512, metadata={"help": "Maximum length of a local model's response."})
    batch_size: int = field(
        default=16, metadata={"help": "Number of responses that a local model generates at a time."}
    )
    shard_size: int = field(default=500, metadata={"help": "Number of rows between two saves of a local teacher."})
    journal_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of the answers of an API teacher. `<output_dir>-journal` if unset."},
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Whether to print what an API teacher would cost, and request nothing."},
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Whether to run Python code that a model's repository ships."},
    )

    # How each field enters the key of a result (see `stages/keys.py`). The labels are in the rows to justify
    key_parts: ClassVar[dict[str, str]] = {
        "output_dir": "none",
        "task": "content",
        "teacher": "content",
        "labels": "content",
        "teacher_revision": "content",
        "provider": "none",
        "policy": "content",
        "max_problems": "content",
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
    config: RationalesConfig,
    problem_config: ProblemConfig,
    teacher_config: TeacherConfig | None = None,
    server_config: ServerConfig | None = None,
    model_args: ModelConfig | None = None,
    publish_config: PublishConfig | None = None,
) -> Dataset | None:
    """
    Have a teacher justify labels, and save the rows with the responses that passed verification. Re-running resumes.

    Args:
        config ([`RationalesConfig`]):
            The labels and the teacher.
        problem_config ([`~rlmec_trl.tasks.problems.ProblemConfig`]):
            Where the problems are: raw ones, rows with `prompt` and `answer`, or the samples of a policy. Rows with
            the same prompt and answer are one problem.
        teacher_config ([`~rlmec_trl.teachers.api.config.TeacherConfig`], *optional*):
            Requests and cost limit of an API teacher.
        server_config ([`~rlmec_trl.generation.server.ServerConfig`], *optional*):
            How an API is reached.
        model_args ([`~trl.ModelConfig`], *optional*):
            How a local teacher is loaded: dtype, attention, quantization. Its name and revision are in `config`.
        publish_config ([`~rlmec_trl.stages.publishing.PublishConfig`], *optional*):
            Whether and where to publish the rows. They are not by default.

    Returns:
        [`~datasets.Dataset`]: One row for each problem and label: the columns of the problem, `label`, `completion`
        (the response, `None` where it failed), `correct` (whether there is one and the label is the answer) and
        `rationale_outcome`. `None` after a dry run.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If settings contradict each other, or the task has no labels.
        [`~rlmec_trl.stages.runner.EmptyResultError`]: If no response was accepted. An earlier result stays, and so do
            the answers of an API teacher in their journal.
        [`~rlmec_trl.stages.output.OutputError`]: If `output_dir` cannot be replaced, or another run is writing to it.
        [`~rlmec_trl.teachers.api.errors.TeacherError`]: If an API teacher cannot be used.
        [`~rlmec_trl.data.schema.DatasetError`]: If a row breaks the contract of its columns.
        [`~rlmec_trl.stages.publishing.PublishError`]: If the rows cannot be published. What was saved stays.
    """
    teacher_config, server_config = teacher_config or TeacherConfig(), server_config or ServerConfig()
    check_path(config.output_dir)
    task = load_task(config.task)
    check_labels(task)
    if config.provider == "local":
        check_local(config, server_config)
    publisher = DatasetPublisher(None if config.dry_run else publish_config, config.output_dir)
    problems = _load_problems(config, problem_config, task)
    rows, left_out = rows_to_justify(problems, task, config.labels, config.max_problems)
    if len(rows) == 0:
        if config.labels == "confusable":
            reason, fix = "the samples state no wrong label", "Sample more, or choose `--labels wrong`."
        else:
            reason, fix = f"task '{task.name}' has no label but the answer", "Choose `--labels gold`."
        raise EmptyResultError(
            f"There is no label to justify: {reason}. Nothing was saved to {config.output_dir!r}. {fix}"
        )
    if config.provider == "local":
        check_not_input(config.output_dir, problems)
        rationales, outcomes = _justify_here(rows, task, config, model_args or ModelConfig())
    else:

        def justifier_of(teacher: JournaledTeacher) -> JournaledJustifier:
            return JournaledJustifier(teacher, task.wording)

        inputs = justifier_inputs(rows, task)
        rationales, outcomes = work_through_journal(
            config,
            config.teacher,
            [problems],
            teacher_config,
            server_config,
            estimate=lambda teacher: teacher.estimate(justifier_of(teacher).questions(*inputs)),
            work=lambda teacher: justify_through_journal(rows, justifier_of(teacher), task),
            check=partial(_check_not_empty, config),
        )
        if rationales is None:
            return None
    num_accepted = rationales["rationale_outcome"][:].count(ACCEPTED)
    skipped = f" {left_out} problems without a confusable label were left out." if left_out else ""
    print_summary(
        f"{num_accepted:,} of {len(rationales):,} labels have a verified rationale (written now: "
        f"{describe_outcomes(outcomes) or 'none'}).{skipped}",
        config.output_dir,
        "pairs --dataset_names",
    )
    facts = DatasetFacts(
        "rationales",
        "Labels that a teacher has justified, correct or not. A response that failed verification is `None`.",
        {
            **teacher_of(config.teacher, config.provider),
            "task": config.task,
            "problems": problem_config.dataset_name,
        },
        card_settings(config),
        prompts_of(task.wording, "justify") if is_model(config.teacher, config.provider) else {},
        RLLR_PAPER,
    )
    publisher.publish(rationales, facts)
    return rationales


def check_labels(task: Task) -> None:
    """
    Refuse a task without labels.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If it has none.
    """
    if not task.labels:
        raise ConfigError(f"Task '{task.name}' has no labels. Name one that has, or give it `labels`.")


def rows_to_justify(
    problems: Dataset, task: Task, labels: str, max_problems: int | None = None
) -> tuple[Dataset, int]:
    """
    One row for each problem and each label to justify for it.

    Args:
        problems ([`~datasets.Dataset`]):
            Rows with `prompt` and `answer`, and for confusable labels `completion`. Of rows of the same problem, such
            as samples, the first one is used, without what is about a sample.
        task ([`~rlmec_trl.tasks.task.Task`]):
            The task.
        labels (`str`):
            Which labels, as in [`RationalesConfig`].
        max_problems (`int`, *optional*):
            Number of problems to take from the start.

    Returns:
        `tuple[Dataset, int]`: The rows, and the number of problems without a confusable label.
    """
    stated = StatedLabels([problems], task) if labels == "confusable" else None
    of_samples = column_features().keys() - {"prompt", "reference", "answer"}
    problems = problems.remove_columns([name for name in problems.column_names if name in of_samples])
    seen, indices, chosen = set(), [], []
    num_left_out = 0
    for index, row in enumerate(problems):
        key = problem_key(row)
        if key in seen:
            continue
        if len(seen) == max_problems:
            break
        seen.add(key)
        if stated is None:
            gold = [row["answer"]] if labels in ("gold", "all") else []
            wrong = [label for label in task.labels if label != row["answer"]] if labels in ("wrong", "all") else []
            wanted = gold + wrong
        else:
            confusable = stated.most_confusable(row)
            wanted = [] if confusable is None else [confusable]
            num_left_out += confusable is None
        indices += [index] * len(wanted)
        chosen += wanted
    rows = problems.select(indices).flatten_indices()
    return rows.add_column("label", chosen, feature=Value("string")), num_left_out


def _load_problems(config: RationalesConfig, problem_config: ProblemConfig, task: Task) -> Dataset:
    tokenizer = None
    if config.policy is not None:
        tokenizer = load_tokenizer(ModelConfig(config.policy), config.trust_remote_code)

    def check_prompts(raw: Dataset, read) -> Dataset:
        if tokenizer is None and not {"prompt", "answer"} <= set(raw.column_names):
            raise ConfigError(
                "The rows have no `prompt`. Name the policy with `--policy`: its tokenizer decides whether the "
                "prompts that are made of them are messages or texts."
            )
        return raw

    problems = load_problems(problem_config, task, tokenizer, select_rows=check_prompts)
    if config.labels == "confusable":
        check_dataset(problems, "responses")
    return problems


def _check_not_empty(config: RationalesConfig, rationales: Dataset, teacher_said: str = "") -> None:
    """Refuse a result without a single response."""
    outcomes = Counter(rationales["rationale_outcome"])
    if not outcomes[ACCEPTED]:
        raise EmptyResultError(
            f"The teacher {config.teacher!r} gave no verified rationale of any of {len(rationales)} labels "
            f"({describe_outcomes(outcomes)}).{teacher_said} Nothing was saved to {config.output_dir!r}."
        )


def _justify_here(
    rows: Dataset, task: Task, config: RationalesConfig, model_args: ModelConfig
) -> tuple[Dataset, Counter]:
    """With a teacher in this process, shard by shard."""
    if config.teacher == "task":
        if task.justifier is None:
            raise ConfigError(f"Task '{task.name}' has no writer of rationales: name a model with `--teacher`.")
        justifier, teacher = TaskJustifier(task), function_key(task.justifier)
    elif ":" in config.teacher:
        justifier = load_justifier(config.teacher)
        # An object is known by its content, and by the file that makes it
        teacher = [function_key(justifier), source_hash(config.teacher)]
    else:
        if model_args.model_name_or_path is not None or model_args.model_revision != "main":
            raise ConfigError(
                "`--model_name_or_path` and `--model_revision` do not name the teacher. Name it with `--teacher` and "
                "`--teacher_revision`, and the policy with `--policy`."
            )
        model_args = replace(model_args, model_name_or_path=config.teacher, model_revision=config.teacher_revision)
        tokenizer = load_tokenizer(model_args, config.trust_remote_code)
        teacher = {**model_key(model_args, tokenizer), "justify": task.wording.justify}
        justifier = None

    @cache  # loaded on first use: a finished run loads no model
    def load_teacher() -> Justifier:
        if justifier is not None:
            return justifier
        model, tokenizer = load_model(model_args, config.trust_remote_code)
        return ModelJustifier(model, tokenizer, task.wording, config.batch_size, config.max_new_tokens)

    outcomes = Counter()

    def justify(shard: Dataset, index: int) -> Dataset:
        justified, counts = justify_dataset(shard, load_teacher(), task, first_row=index * config.shard_size)
        outcomes.update(counts)
        return justified

    settings = {**config_key(config), "teacher": teacher, "task": task_key(task, config.task)}
    if justifier is not None:
        # It generates nothing
        del settings["max_new_tokens"]
    rationales = map_shards(
        rows, justify, config.output_dir, settings, config.shard_size, check=partial(_check_not_empty, config)
    )
    return rationales, gather_counts(outcomes)
