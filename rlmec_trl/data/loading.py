"""Data sets by path or name, and raw problems as rows of the first stage."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, Value, load_dataset, load_from_disk
from transformers import PreTrainedTokenizerBase

from .answers import extract_answer
from .prompts import Wording, policy_prompt
from .schema import DatasetError, check_dataset
from .tokens import as_prompt


@dataclass
class ProblemConfig:
    """
    Where problems come from.

    Args:
        dataset_name (`str`):
            Folder, file of JSON lines or Hub name.
        dataset_config (`str`, *optional*):
            Configuration of a data set on the Hub.
        dataset_split (`str`, *optional*, defaults to `"train"`):
            Split of a data set on the Hub.
        max_rows (`int`, *optional*):
            Number of problems to take from the start.
        problem_column, reference_column (`str`, *optional*, default to `"problem"` and `"solution"`):
            Columns of the problem and of its worked solution.
        answer_column (`str`, *optional*):
            Column of the final answer. If unset, it is read off the worked solution.
    """

    dataset_name: str = field(metadata={"help": "Folder, file of JSON lines or Hub name of the problems."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a data set on the Hub."})
    max_rows: int | None = field(default=None, metadata={"help": "Number of problems to take from the start."})
    problem_column: str = field(default="problem", metadata={"help": "Column of the problem."})
    reference_column: str = field(default="solution", metadata={"help": "Column of the worked solution."})
    answer_column: str | None = field(
        default=None, metadata={"help": "Column of the final answer. If unset, it is read off the worked solution."}
    )


def load_rows(
    name_or_path: str, split: str = "train", max_rows: int | None = None, config_name: str | None = None
) -> Dataset:
    """
    Load a data set.

    Args:
        name_or_path (`str`):
            A folder that `Dataset.save_to_disk` wrote, a file of JSON lines, or a name on the Hub.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a data set on the Hub.
        max_rows (`int`, *optional*):
            Number of rows to take from the start. All by default.
        config_name (`str`, *optional*):
            Configuration of a data set on the Hub that has several.
    """
    path = Path(name_or_path)
    if path.is_dir():
        dataset = load_from_disk(str(path))
    elif path.suffix in (".json", ".jsonl"):
        if not path.exists():
            raise FileNotFoundError(f"There is no file {name_or_path!r}.")
        dataset = load_dataset("json", data_files=str(path), split="train")
    else:
        dataset = load_dataset(name_or_path, name=config_name, split=split)
    if not isinstance(dataset, Dataset):
        raise DatasetError(
            f"{name_or_path!r} holds several splits ({', '.join(dataset)}). Name the folder of one of them."
        )
    return dataset if max_rows is None else dataset.select(range(min(max_rows, len(dataset))))


def to_task_rows(
    dataset: Dataset,
    wording: Wording,
    processing_class: PreTrainedTokenizerBase,
    problem_column: str = "problem",
    reference_column: str = "solution",
    answer_column: str | None = "answer",
) -> Dataset:
    """
    Turn raw problems into rows with `prompt`, `reference` and `answer`. Rows that have these are left as they are.

    Args:
        dataset ([`~datasets.Dataset`]):
            Raw rows.
        wording ([`~rlmec_trl.data.prompts.Wording`]):
            How a problem is put to the policy.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer. With a chat template, prompts become messages.
        problem_column, reference_column (`str`):
            Columns of the problem and of its worked solution.
        answer_column (`str`, *optional*, defaults to `"answer"`):
            Column of the final answer. If `None`, it is read off the worked solution.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If a column is missing, or a solution states no answer.
    """
    if {"prompt", "reference", "answer"} <= set(dataset.column_names):
        return dataset
    for column in filter(None, (problem_column, reference_column, answer_column)):
        if column not in dataset.column_names:
            raise DatasetError(
                f"There is no column `{column}`; the data set has {', '.join(dataset.column_names)}. Name the right "
                "ones with `--problem_column`, `--reference_column` and `--answer_column`."
            )

    if answer_column is not None:
        # Answers are texts, and `map` would leave a column that it overwrites its type
        dataset = dataset.cast_column(answer_column, Value("string"))

    def convert(row: dict, index: int) -> dict:
        reference = clean_solution(row[reference_column])
        answer = extract_answer(reference) if answer_column is None else row[answer_column]
        if answer is None and answer_column is None:
            raise DatasetError(
                f"Row {index}, column `{reference_column}`: the solution states no final answer. End it with "
                "'The answer is X', '\\boxed{X}' or '#### X', or name the answers with `--answer_column`."
            )
        prompt = as_prompt(processing_class, policy_prompt(wording, row[problem_column]))
        return {"prompt": prompt, "reference": reference, "answer": answer}

    return dataset.map(convert, with_indices=True, remove_columns=dataset.column_names, desc="Reading problems")


def load_problems(config: ProblemConfig, wording: Wording, processing_class: PreTrainedTokenizerBase) -> Dataset:
    """
    Load problems and bring them into the form of the first stage: `prompt`, `reference`, `answer`, checked.

    Args:
        config ([`ProblemConfig`]):
            Where they are, and what their columns are called.
        wording ([`~rlmec_trl.data.prompts.Wording`]):
            How a problem is put to the policy.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If a column is missing, or a row breaks the contract.
    """
    rows = load_rows(config.dataset_name, config.dataset_split, config.max_rows, config.dataset_config)
    problems = to_task_rows(
        rows, wording, processing_class, config.problem_column, config.reference_column, config.answer_column
    )
    check_dataset(problems, "task")
    return problems


def clean_solution(solution: str) -> str:
    """A solution without calculator marks (`<<2+3=5>>`), its last line `#### N` worded as "The answer is N"."""
    return re.sub(r"####\s*(.+)\s*$", r"The answer is \1", re.sub(r"<<[^<>]*>>", "", solution)).strip()
