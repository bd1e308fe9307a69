"""Raw problems as rows of the first stage."""

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.schema import DatasetError, check_dataset
from rlmec_trl.tasks.answers import check_math, clean_solution
from rlmec_trl.tasks.arithmetic import TASK as ARITHMETIC
from rlmec_trl.tasks.math import TASK
from rlmec_trl.tasks.problems import read_columns, to_task_rows
from rlmec_trl.tasks.task import Task
from rlmec_trl.tasks.wording import WORDING


GSM8K_SOLUTION = (
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n"
    "#### 72"
)


# --- Raw problems ----------------------------------------------------------------------------------------------------


def raw(**columns):
    return Dataset.from_dict({"problem": ["What is 1 + 1?"], "solution": ["1 + 1 = 2\nThe answer is 2"]} | columns)


def test_a_dataset_with_all_three_columns_is_returned_as_it_is(tokenizer):
    ready = Dataset.from_dict({"prompt": ["a"], "reference": ["b"], "answer": ["c"], "other": [1]})
    assert to_task_rows(ready, TASK, tokenizer) is ready


def test_a_problem_becomes_a_prompt_with_reference_and_answer(tokenizer):
    rows = to_task_rows(raw(answer=["2"], level=[5]), TASK, tokenizer)
    assert rows[0]["level"] == 5, "columns that the task does not know are kept"
    assert rows[0]["prompt"] == WORDING.policy.replace("{problem}", "What is 1 + 1?")
    assert rows[0]["reference"] == "1 + 1 = 2\nThe answer is 2"
    assert rows[0]["answer"] == "2"
    check_dataset(rows, "task")
    assert to_task_rows(raw(answer=["2"]), ARITHMETIC, tokenizer)[0]["prompt"] == "What is 1 + 1?"


def test_with_a_chat_template_prompts_are_messages(chat_tokenizer):
    rows = to_task_rows(raw(answer=["2"]), ARITHMETIC, chat_tokenizer)
    assert rows[0]["prompt"] == [{"role": "user", "content": "What is 1 + 1?"}]
    check_dataset(rows, "task")


def test_numbers_become_texts(tokenizer):
    rows = to_task_rows(raw(answer=[2]), TASK, tokenizer)
    assert rows[0]["answer"] == "2"
    check_dataset(rows, "task")


def test_an_answer_that_is_missing_in_a_row_is_reported(tokenizer):
    dataset = Dataset.from_dict({"problem": ["a", "b"], "solution": ["a", "b"], "answer": ["1", None]})
    with pytest.raises(DatasetError, match="Row 1, column 'answer': found None"):
        check_dataset(to_task_rows(dataset, TASK, tokenizer), "task")


def test_columns_can_be_named(tokenizer):
    named = raw(answer=["2"]).rename_columns({"problem": "q", "solution": "s", "answer": "a"})
    rows = to_task_rows(named, TASK, tokenizer, read_columns("q", "s", "a"))
    names = ["prompt", "reference", "answer"]
    expected = to_task_rows(raw(answer=["2"]), TASK, tokenizer)
    assert rows.select_columns(names).to_list() == expected.select_columns(names).to_list()


@pytest.mark.parametrize("name", ["problem", "solution"])
def test_the_error_for_a_missing_column_lists_those_that_exist(tokenizer, name):
    dataset = raw(answer=["2"]).rename_column(name, "other")
    with pytest.raises(DatasetError, match=rf"needs the column '{name}'; the dataset has .*other") as error:
        to_task_rows(dataset, TASK, tokenizer)
    assert all(f"`--{kind}_column`" in str(error.value) for kind in ("problem", "reference", "answer"))


def test_an_answer_is_extracted_from_the_solution(tokenizer):
    dataset = Dataset.from_dict(
        {
            "problem": ["a", "b", "c"],
            "solution": ["So 2.\nThe answer is 2.", r"So $\boxed{\frac{1}{2}}$.", GSM8K_SOLUTION],
        }
    )
    rows = to_task_rows(dataset, TASK, tokenizer)
    assert rows["answer"][:] == ["2", r"\frac{1}{2}", "72"]


def test_a_solution_without_an_answer_is_reported_with_its_row(tokenizer):
    dataset = Dataset.from_dict({"problem": ["a", "b"], "solution": ["The answer is 1", "Who knows?"]})
    with pytest.raises(DatasetError, match="Row 1, column 'solution': found a solution that states no final"):
        to_task_rows(dataset, TASK, tokenizer)


def test_the_column_of_the_solutions_is_not_taken_for_the_answers(tokenizer):
    dataset = Dataset.from_dict({"question": ["a"], "answer": [GSM8K_SOLUTION]})
    rows = to_task_rows(dataset, TASK, tokenizer, read_columns("question", "answer"))
    assert rows[0]["answer"] == "72"


@pytest.mark.parametrize("name", ["problem", "solution"])
def test_a_problem_or_solution_that_is_missing_in_a_row_is_reported(name, tokenizer):
    columns = {"problem": ["a", "b"], "solution": ["The answer is 1"] * 2}
    dataset = Dataset.from_dict(columns | {name: [columns[name][0], None]})
    with pytest.raises(DatasetError, match=rf"^Row 1, column '{name}': found None. Give every problem"):
        to_task_rows(dataset, TASK, tokenizer)


@pytest.mark.parametrize("returned", [{"problem": "a", "answer": "1"}, {"problem": "a", "reference": None}])
def test_a_reader_that_returns_no_reference_is_reported(returned, tokenizer):
    task = Task("mine", check_math, read_row=lambda row: returned)
    with pytest.raises(DatasetError, match="^Row 0: `read_row` of task 'mine' returned None as `reference`"):
        to_task_rows(Dataset.from_dict({"a": ["b"]}), task, tokenizer)


def test_columns_that_no_stage_knows_keep_their_types(tokenizer):
    features = Features(
        {
            "problem": Value("string"),
            "solution": Value("large_string"),
            "answer": ClassLabel(names=["no", "yes"]),
            "kind": ClassLabel(names=["easy", "hard"]),
            "level": Value("int8"),
            "scores": List(Value("float16"), length=2),
            "source": {"name": Value("string"), "page": Value("int16")},
            "nothing": Value("null"),
        }
    )
    row = {
        "problem": "Is it?",
        "solution": "The answer is yes",
        "answer": 1,
        "kind": "hard",
        "level": 3,
        "scores": [0.5, 1.5],
        "source": {"name": "book", "page": 7},
        "nothing": None,
    }
    rows = to_task_rows(Dataset.from_list([row], features=features), TASK, tokenizer)
    for name in set(features) - {"answer"}:
        assert rows.features[name] == features[name], name
    assert rows.features["answer"] == Value("string")
    assert rows[0]["kind"] == 1
    assert rows[0]["source"] == row["source"]


# --- Labels ----------------------------------------------------------------------------------------------------------


SENTIMENT = Task("sentiment", labels=("negative", "positive"))


def labeled(answers, **kwargs):
    columns = {"problem": ["A bleak film."] * len(answers), "solution": ["Bleak."] * len(answers), "answer": answers}
    return Dataset.from_dict(columns, **kwargs)


def test_an_index_becomes_its_label(tokenizer):
    features = Features({"problem": Value("string"), "solution": Value("string"), "answer": ClassLabel(num_classes=2)})
    for dataset in (labeled([1, 0]), labeled([1, 0], features=features)):
        assert to_task_rows(dataset, SENTIMENT, tokenizer)["answer"][:] == ["positive", "negative"]


def test_a_label_is_taken_as_it_is_written(tokenizer):
    rows = to_task_rows(labeled(["Positive", "negative"]), SENTIMENT, tokenizer)
    assert rows["answer"][:] == ["Positive", "negative"]
    assert SENTIMENT.check_answer("The answer is positive", rows[0]["answer"], "")


@pytest.mark.parametrize(("answers", "found"), [(["positive", "so-so"], "'so-so'"), ([1, -1], "-1"), ([0, 2], "2")])
def test_an_answer_that_is_none_of_the_labels_is_reported(answers, found, tokenizer):
    message = rf"^Row 1, column 'answer': found {found}, which is none of the labels of task 'sentiment' \(negative, "
    with pytest.raises(DatasetError, match=message):
        to_task_rows(labeled(answers), SENTIMENT, tokenizer)


# --- Cleaning --------------------------------------------------------------------------------------------------------


def test_calculator_marks_are_removed_and_the_last_line_is_reworded():
    assert clean_solution(GSM8K_SOLUTION) == (
        "Natalia sold 48/2 = 24 clips in May.\n"
        "Natalia sold 48+24 = 72 clips altogether in April and May.\n"
        "The answer is 72"
    )


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        ("a\n#### 1,200 \n", "a\nThe answer is 1,200"),
        ("a\n####-5", "a\nThe answer is -5"),
        ("  a < b and b > c\nThe answer is 3\n", "a < b and b > c\nThe answer is 3"),
        ("#### Method\nadd them\n#### 7", "#### Method\nadd them\nThe answer is 7"),
        (r"So \boxed{3}.", r"So \boxed{3}."),
    ],
)
def test_other_solutions_are_kept(solution, expected):
    assert clean_solution(solution) == expected


def test_columns_that_are_named_count_also_where_the_rows_are_ready(tokenizer):
    ready = Dataset.from_dict({"prompt": ["a"], "reference": ["b"], "answer": ["c"], "gold": ["d"]})
    assert to_task_rows(ready, TASK, tokenizer, read_columns("prompt", "reference", "gold"))["answer"][:] == ["d"]


def test_raw_problems_in_a_read_only_folder_can_be_read(tokenizer, tmp_path, monkeypatch):
    """And nothing is written into the folder of a user's dataset."""
    raw(answer=["2"]).save_to_disk(tmp_path / "raw")
    before = sorted(path.name for path in (tmp_path / "raw").iterdir())
    assert to_task_rows(load_rows(str(tmp_path / "raw")), TASK, tokenizer)["answer"][:] == ["2"]
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == before
