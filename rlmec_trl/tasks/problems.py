"""Raw problems as rows of the first stage."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Number
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets
from datasets.fingerprint import get_temporary_cache_files_directory

from ..data.checks import check_config
from ..data.errors import ConfigError
from ..data.loading import load_rows
from ..data.messages import is_conversational, is_storable
from ..data.schema import DatasetError, check_dataset, column_features
from ..data.tokens import as_prompt
from .answers import clean_solution, extract_answer
from .labels import find_label
from .task import Task, user_code
from .wording import policy_prompt


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class ProblemConfig:
    """
    Where problems come from.

    Args:
        dataset_name (`str`, *optional*):
            Folder, file of JSON lines or Hub name. If unset, the task's own dataset on the Hub.
        dataset_config (`str`, *optional*):
            Configuration of a dataset on the Hub.
        dataset_split (`str`, *optional*):
            Split of a dataset on the Hub, or a slice of one (`train[:1000]`). If unset, the first that there is of the
            stage's own: `train`, to evaluate `test`, and otherwise `validation`.
        max_rows (`int`, *optional*):
            Number of problems to take from the start.
        problem_column, reference_column, answer_column (`str`, *optional*):
            Columns of the problem, of its worked solution and of the final answer, where they are not those that the
            task knows. A row without an answer has it extracted from its worked solution.
    """

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Folder, file of JSON lines or Hub name. If unset, the task's own dataset on the Hub.",
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    dataset_split: str | None = field(
        default=None,
        metadata={
            "help": "Split of a dataset on the Hub, or a slice of one (`train[:1000]`). If unset, the first that "
            "there is of the stage's own: `train`, to evaluate `test`, and otherwise `validation`."
        },
    )
    max_rows: int | None = field(default=None, metadata={"help": "Number of problems to take from the start."})
    problem_column: str | None = field(
        default=None,
        metadata={"help": "Column of the problem, where it is not the one that the task knows."},
    )
    reference_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the worked solution, where it is not the one that the task knows.",
        },
    )
    answer_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the final answer, where it is not the one that the task knows. A row without an answer "
            "has it extracted from its worked solution.",
        },
    )

    # How each field enters the key of a result (see `stages/keys.py`)
    key_parts: ClassVar[dict[str, str]] = {
        "dataset_name": "content",
        "dataset_config": "content",
        "dataset_split": "content",
        "max_rows": "content",
        "problem_column": "content",
        "reference_column": "content",
        "answer_column": "content",
    }

    def __post_init__(self):
        check_config(self)


def load_problems(
    config: ProblemConfig,
    task: Task,
    processing_class: "PreTrainedTokenizerBase",
    split: str = "train",
    select_rows: Callable[[Dataset, Callable[[Dataset], Dataset]], Dataset] | None = None,
) -> Dataset:
    """
    Load problems as rows of the first stage: `prompt`, `reference` and `answer`, checked. Problems of a task with
    labels may have no `reference`.

    Args:
        config ([`ProblemConfig`]):
            Dataset of the problems, and its columns.
        task ([`~rlmec_trl.tasks.task.Task`]):
            How a raw row is read, and how a problem is worded for the policy.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer. With a chat template, prompts become messages.
        split (`str`, *optional*, defaults to `"train"`):
            Split to load if `config` names none: this one, or `validation` where the task's dataset lacks it.
        select_rows (`Callable`, *optional*):
            Called with the raw rows and the function that reads and checks such rows, returns those to read.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If a column is missing, or a row breaks the contract.
        [`~rlmec_trl.data.errors.ConfigError`]: If neither `config` nor `task` names a dataset, or the task's dataset
            has no such split.
    """

    def read(rows: Dataset) -> Dataset:
        problems = to_task_rows(rows, task, processing_class, _row_reader(config, task))
        # A label needs no worked solution; "grpo" is the check of the columns that are left
        check_dataset(problems, "grpo" if task.labels and "reference" not in problems.column_names else "task")
        return problems

    raw = _load_raw(config, task, split)
    return read(raw if select_rows is None else select_rows(raw, read))


def to_task_rows(
    dataset: Dataset,
    task: Task,
    processing_class: "PreTrainedTokenizerBase",
    read_row: Callable[[dict], dict] | None = None,
) -> Dataset:
    """
    Turn raw problems into rows with `prompt`, `reference` and `answer`. Other columns are kept, with their types. A
    dataset that has all three is returned as it is, unless `read_row` is given; answers that are numbers become texts.

    Of a task with labels, `reference` is optional: there is no such column if no row has one. Answers become labels as
    the task writes them.

    Args:
        dataset ([`~datasets.Dataset`]):
            Raw rows.
        task ([`~rlmec_trl.tasks.task.Task`]):
            How a raw row is read, and how a problem is worded for the policy.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer. With a chat template, prompts become messages.
        read_row (`Callable[[dict], dict]`, *optional*):
            Used instead of the task's own.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If a column is missing, a solution states no answer, or an answer is
            none of the options or labels.
        [`~rlmec_trl.data.errors.ConfigError`]: If `read_row` fails.
    """
    needed = {"prompt", "answer"} if task.labels else {"prompt", "reference", "answer"}
    if read_row is None and needed <= set(dataset.column_names):
        return _with_labels(dataset, task) if task.labels else _with_answers_as_texts(dataset)
    read_row = read_row or task.read_row or read_columns(needs_reference=not task.labels)
    kind = dataset.features.get("answer")

    def convert(row: dict, index: int) -> dict:
        with user_code(f"`read_row` of task '{task.name}' failed on row {index}", "Fix the function, or the row."):
            try:
                raw = read_row(row)
                if not isinstance(raw, dict):
                    raise ConfigError(f"`read_row` of task '{task.name}' returned {raw!r}, not a dict.")
                answer = raw.get("answer")
                answer = _as_label(answer, task, kind) if task.labels else answer_text(answer)
            except KeyError as error:
                raise DatasetError(
                    f"Task '{task.name}' needs the column {error}; the dataset has {', '.join(row)}. Name the columns "
                    "with `--problem_column`, `--reference_column` and `--answer_column`."
                ) from None
            except DatasetError as error:
                raise DatasetError(error.reason, index, error.column) from None
        for name in ("problem", "reference"):
            if name == "reference" and task.labels and raw.get(name) is None:
                continue
            if not is_storable(raw.get(name)) or not raw[name].strip():
                raise DatasetError(
                    f"`read_row` of task '{task.name}' returned {raw.get(name)!r} as `{name}`. It has to return texts "
                    "as `problem`, `reference` and `answer`, without lone surrogates.",
                    index,
                )
        return {
            "prompt": as_prompt(processing_class, policy_prompt(task.wording, raw["problem"])),
            "reference": raw.get("reference"),
            "answer": answer,  # `check_dataset` reports None
        }

    known = column_features(messages=is_conversational(as_prompt(processing_class, "")))
    # Given, not inferred: a raw `answer` may be a number, and `map` leaves a column that it overwrites its type
    features = Features({**dataset.features, **{name: known[name] for name in ("prompt", "reference", "answer")}})
    # In a temporary folder, as `datasets` does without caching: `map` knows a task's functions by their names, so that
    # its cache would outlive a change of what they do, and the folder of the raw problems may be read-only. So the
    # fingerprint need not be a hash of `convert` either, which takes longer than reading a few hundred problems
    unique = uuid.uuid4().hex
    rows = dataset.map(
        convert,
        with_indices=True,
        features=features,
        cache_file_name=str(Path(get_temporary_cache_files_directory(), f"problems-{unique}.arrow")),
        new_fingerprint=unique,
        desc="Reading problems",
    )
    if task.labels and len(rows) > 0 and rows.data["reference"].null_count == len(rows):
        return rows.remove_columns("reference")
    return rows


def read_columns(
    problem_column: str = "problem",
    reference_column: str = "solution",
    answer_column: str | None = None,
    needs_reference: bool = True,
) -> Callable[[dict[str, Any]], dict[str, str]]:
    """
    A `read_row` for datasets that have problem, worked solution and answer in a column each.

    Args:
        problem_column, reference_column (`str`):
            Columns of the problem and of its worked solution.
        answer_column (`str`, *optional*):
            Column of the final answer. By default `answer`; where a row has none, or the column holds the worked
            solutions, the answer is extracted from the worked solution.
        needs_reference (`bool`, *optional*, defaults to `True`):
            Whether every row needs a worked solution. A row without one needs an answer.
    """

    def read_row(row: dict[str, Any]) -> dict[str, str]:
        if not needs_reference and row.get(reference_column) is None:
            problem = read_text(row, problem_column, "Give every problem a text.")
            return {"problem": problem, "answer": row[answer_column or "answer"]}
        problem, reference = (
            read_text(row, name, "Give every problem a text and a solution.")
            for name in (problem_column, reference_column)
        )
        reference = clean_solution(reference)
        if answer_column is not None:
            answer = row[answer_column]
        elif row.get("answer") is not None and reference_column != "answer":  # JSON lines may have it in some
            answer = row["answer"]
        elif (answer := extract_answer(reference)) is None:
            raise DatasetError(
                f"found a solution that states no final answer (its end: {reference[-60:]!r}). End it with 'The "
                "answer is X', '\\boxed{X}' or '#### X', or name the answers with `--answer_column`.",
                column=reference_column,
            )
        return {"problem": problem, "reference": reference, "answer": answer}

    return read_row


def read_text(row: dict[str, Any], name: str, fix: str = "Give every row a text there.") -> str:
    """
    The text in a column of a raw row.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If it is not a text, or an empty one.
        `KeyError`: If there is no such column.
    """
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise found_in_raw(name, value, fix)
    return value


def answer_text(answer: Any) -> str | None:
    """
    A final answer as text: numbers become texts, and `None` stays.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If it is something else, such as a list of answers.
    """
    if not (answer is None or is_storable(answer) or _is_number(answer)):
        raise found_in_raw("answer", answer, "Give every problem one final answer, as a text or a number.")
    return None if answer is None else str(answer)


def found_in_raw(name: str, value: Any, fix: str) -> DatasetError:
    """What is wrong in a column of a raw row; the number of the row is added where it is known."""
    shown = repr(value)
    return DatasetError(f"found {shown if len(shown) <= 100 else shown[:100] + '...'}. {fix}", column=name)


def _is_number(value: Any) -> bool:
    # NaN, the only number that is not itself, is how tables write that there is none
    return isinstance(value, Number) and value == value


def _with_answers_as_texts(dataset: Dataset) -> Dataset:
    if dataset.features["answer"] == Value("string"):
        return dataset
    answers = dataset["answer"][:]
    if not any(map(_is_number, answers)) or not all(a is None or is_storable(a) or _is_number(a) for a in answers):
        return dataset  # `check_dataset` reports what is neither text nor number
    texts = [None if answer is None else str(answer) for answer in answers]
    named = dataset.remove_columns("answer").add_column("answer", texts, feature=Value("string"))
    return named.select_columns(dataset.column_names)


def _with_labels(dataset: Dataset, task: Task) -> Dataset:
    kind = dataset.features["answer"]
    if kind == Value("string") and set(dataset.unique("answer")) <= set(task.labels):
        return dataset

    def convert(row: dict, index: int) -> dict:
        try:
            return {"answer": _as_label(row["answer"], task, kind)}
        except DatasetError as error:
            raise DatasetError(error.reason, index, error.column) from None

    features = Features({**dataset.features, "answer": Value("string")})
    return dataset.map(convert, with_indices=True, features=features, keep_in_memory=True, desc="Reading labels")


def _as_label(answer: Any, task: Task, kind: Any) -> str | None:
    """
    The label of a task that an answer is: its text, or its index. Of labels that are numbers, such as those of stars,
    a number is the text, unless it is of a column (of type `kind`) of type `ClassLabel`, which stores indices. These
    are of the names of that type, where it has some and they are labels: they may have another order than the task's.
    """
    text = answer_text(answer)
    is_index = isinstance(kind, ClassLabel) and type(answer) is int
    is_named = is_index and kind.names != [str(index) for index in range(kind.num_classes)]
    if is_named and 0 <= answer < len(kind.names):
        named = [find_label(task.labels, name) for name in kind.names]
        if None not in named:
            return named[answer]
        if any(label not in (None, *task.labels[index : index + 1]) for index, label in enumerate(named)):
            raise DatasetError(
                f"found {answer!r}, of a type `ClassLabel` with the names {', '.join(kind.names)}. Only some of them "
                f"are labels of task '{task.name}' ({', '.join(task.labels)}), and they are in another order. Rename "
                "them to labels.",
                column="answer",
            )
    label = None if text is None or is_index else find_label(task.labels, text)
    if label is None and type(answer) is int and 0 <= answer < len(task.labels):
        return task.labels[answer]
    if label is None and text is not None:
        raise DatasetError(
            f"found {answer!r}, which is none of the labels of task '{task.name}' ({', '.join(task.labels)}). Give "
            "one of them, or its index.",
            column="answer",
        )
    return label


def _row_reader(config: ProblemConfig, task: Task) -> Callable[[dict], dict] | None:
    if config.problem_column is None and config.reference_column is None and config.answer_column is None:
        return None
    return read_columns(
        config.problem_column or "problem",
        config.reference_column or "solution",
        config.answer_column,
        needs_reference=config.reference_column is not None or not task.labels,
    )


def _load_raw(config: ProblemConfig, task: Task, split: str) -> Dataset:
    if config.dataset_name is not None:
        split = config.dataset_split or split
        return load_rows(config.dataset_name, split, config.max_rows, config.dataset_config)
    if task.hub_id is None:
        raise ConfigError(f"Task '{task.name}' has no dataset on the Hub: name the problems with `--dataset_name`.")
    if config.dataset_split is None and split not in task.splits:
        # Or one of several, such as `validation_matched`
        split = next((name for name in task.splits if name.startswith("validation")), "validation")
    split = config.dataset_split or split
    # Also a slice of a split, such as `train[:1000]`
    if split.partition("[")[0] not in task.splits:
        raise ConfigError(
            f"{task.hub_id} has no split {split!r}; its splits are {', '.join(task.splits)}. Choose one with "
            "`--dataset_split`."
        )
    names = [config.dataset_config] if config.dataset_config is not None else list(task.hub_configs) or [None]
    rows = concatenate_datasets([load_rows(task.hub_id, split, config_name=name) for name in names])
    return rows if config.max_rows is None else rows.select(range(min(config.max_rows, len(rows))))
