"""The responses to each problem, gathered from rationales and samples, with the label that each states."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from datasets import Dataset, Features, Json, List, Value

from ..data.errors import ConfigError, errors_of_dataset
from ..data.messages import message_text
from ..data.row_checks import row_error
from ..data.schema import DatasetError, check_dataset, check_prompt_forms
from ..tasks.task import Task
from ..teachers.rationales import ACCEPTED
from .confusable import StatedLabels, problem_key


TEMPLATE_KWARGS = "chat_template_kwargs"


def gather_problems(
    datasets: dict[str, Dataset], task: Task, rejected_labels: str = "all", max_problems: int | None = None
) -> tuple[Dataset, Counter]:
    """
    Gather the responses to each problem.

    Args:
        datasets (`dict[str, Dataset]`):
            Rationales, which have `label` and `rationale_outcome`, and samples of a policy, by their names. All have
            `prompt`, `answer` and `completion`.
        task ([`~rlmec_trl.tasks.task.Task`]):
            How labels are read.
        rejected_labels (`str`, *optional*, defaults to `"all"`):
            As in [`~rlmec_trl.stages.pairs.PairsConfig`].
        max_problems (`int`, *optional*):
            Number of problems to take from the start.

    Returns:
        `tuple[Dataset, Counter]`: One row a problem: `prompt`, `answer`, `responses`, `labels` (one for each response)
        and `wrong_labels` (those that a rejected response may state), and the number of responses that were left out,
        by reason.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If a row is invalid, or some prompts are texts and others messages.
        [`~rlmec_trl.data.errors.ConfigError`]: If confusable labels are asked for, and no dataset has samples.
    """
    problems: dict[str, dict[str, Any]] = {}
    left_out: Counter[str] = Counter()
    for name, dataset in datasets.items():
        with errors_of_dataset(name):
            for row, text, label in _read_responses(dataset, task, left_out):
                _add_response(problems, row, text, label, left_out)
    check_prompt_forms((problem["prompt"] for problem in problems.values()), datasets)
    taken = list(problems.values())[:max_problems]
    stated = _stated_labels(datasets, task) if rejected_labels == "confusable" else None
    for problem in taken:
        if stated is None:
            problem["wrong_labels"] = [label for label in task.labels if label != problem["answer"]]
        else:
            confusable = stated.most_confusable(problem)
            problem["wrong_labels"] = [] if confusable is None else [confusable]
    # Inferred from all of them: messages may have other fields than role and content
    prompts = Dataset.from_dict({"prompt": [problem["prompt"] for problem in taken] or [""]})
    strings = List(Value("string"))
    features = {"prompt": prompts.features["prompt"], "answer": Value("string")}
    features |= {"responses": strings, "labels": strings, "wrong_labels": strings}
    if any(TEMPLATE_KWARGS in problem for problem in taken):
        features[TEMPLATE_KWARGS] = Json()
    columns = {name: [problem.get(name) for problem in taken] for name in features}
    return Dataset.from_dict(columns, features=Features(features)), left_out


def _read_responses(dataset: Dataset, task: Task, left_out: Counter) -> Iterator[tuple[dict, str, str]]:
    """The rows of a dataset, checked, each with its response and the label that this states."""
    is_rationale = _is_rationales(dataset)
    dataset, numbers = _with_responses(dataset, left_out) if is_rationale else (dataset, range(len(dataset)))
    check_dataset(dataset, "responses", row_numbers=numbers)
    if is_rationale and "label" not in dataset.column_names:
        raise DatasetError("Column 'label' is missing: `rationales.py` writes it beside `rationale_outcome`.")
    for number, row in zip(numbers, dataset, strict=True):
        for name in ("answer", "label") if is_rationale else ("answer",):
            if row[name] not in task.labels:
                fix = f"It must be one of the labels of task '{task.name}' ({', '.join(task.labels)})."
                raise row_error(number, name, row[name], fix)
        text = message_text(row["completion"])
        label = row["label"] if is_rationale else task.stated_label(text, task.raw_problem(row["prompt"]))
        if label is None:
            left_out["no label"] += 1
        else:
            yield row, text, label


def _add_response(problems: dict[str, dict], row: dict, text: str, label: str, left_out: Counter) -> None:
    known = {name: row[name] for name in ("prompt", "answer", TEMPLATE_KWARGS) if name in row}
    problem = problems.setdefault(problem_key(row), {**known, "responses": [], "labels": []})
    if text in problem["responses"]:
        left_out["duplicate"] += 1
        return
    problem["responses"].append(text)
    problem["labels"].append(label)


def _stated_labels(datasets: dict[str, Dataset], task: Task) -> StatedLabels:
    """The labels that the samples of the policy among the datasets state."""
    samples = [dataset for dataset in datasets.values() if not _is_rationales(dataset)]
    if not samples:
        raise ConfigError(
            "`--rejected_labels confusable` counts the labels in samples of the policy: name them in "
            "`--dataset_names` too."
        )
    return StatedLabels(samples, task)


def _is_rationales(dataset: Dataset) -> bool:
    return "rationale_outcome" in dataset.column_names


def _with_responses(rationales: Dataset, left_out: Counter) -> tuple[Dataset, list[int]]:
    """The rationales that were accepted, and their numbers. Of the others there is no response."""
    outcomes = rationales["rationale_outcome"][:]
    for number, outcome in enumerate(outcomes):
        if not isinstance(outcome, str):
            fix = "`rationales.py` writes a text in every row. Name samples of the policy as a dataset of their own."
            raise row_error(number, "rationale_outcome", outcome, fix)
    numbers = [number for number, outcome in enumerate(outcomes) if outcome == ACCEPTED]
    left_out.update(outcome for outcome in outcomes if outcome != ACCEPTED)
    return rationales.select(numbers), numbers
