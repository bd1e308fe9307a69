"""Raw problems as rows of the first stage."""

import re

import pytest
from datasets import ClassLabel, Dataset, Features, Json, List, Value

from rlmec_trl.data.errors import ConfigError, UserError
from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.schema import DatasetError, check_dataset
from rlmec_trl.tasks.answers import check_math, clean_solution
from rlmec_trl.tasks.arithmetic import TASK as ARITHMETIC
from rlmec_trl.tasks.math import TASK
from rlmec_trl.tasks.problems import read_columns, to_task_rows
from rlmec_trl.tasks.task import BUILT_IN, Task, load_task
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
    with pytest.raises(DatasetError, match="Row 1, column 'solution': found a solution that states no final answer"):
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


def test_only_rows_without_an_answer_have_it_extracted(tokenizer):
    # JSON lines give a row without the key a null
    dataset = Dataset.from_dict({"problem": ["a", "b"], "solution": ["The answer is 1"] * 2, "answer": ["2", None]})
    assert to_task_rows(dataset, TASK, tokenizer)["answer"][:] == ["2", "1"]


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


@pytest.mark.parametrize("column", ["prompt", "problem"])
def test_an_index_is_of_the_names_of_its_column_whatever_their_order(column, tokenizer):
    def rows(names, *answers):
        columns = {column: ["a"] * len(answers), "answer": list(answers)}
        dataset = Dataset.from_dict(columns).cast_column("answer", ClassLabel(names=names))
        return to_task_rows(dataset, SENTIMENT, tokenizer)["answer"][:]

    assert rows(["Positive", "negative"], 0, 1) == ["positive", "negative"]
    assert rows(["positive"], 0) == ["positive"]
    assert rows(["neg", "pos"], 0, 1) == ["negative", "positive"]
    assert rows(["neg", "positive"], 0, 1) == ["negative", "positive"]
    assert rows(["positive", "neg"], 0) == ["positive"]
    with pytest.raises(DatasetError, match="^Row 0, column 'answer': found 'neg', which is none of the labels"):
        rows(["positive", "neg"], 1)


def test_a_label_is_written_as_the_task_writes_it(tokenizer):
    rows = to_task_rows(labeled(["Positive", "negative"]), SENTIMENT, tokenizer)
    assert rows["answer"][:] == ["positive", "negative"]
    assert SENTIMENT.check_answer("The answer is positive", rows[0]["answer"], "")


@pytest.mark.parametrize(("answers", "found"), [(["positive", "so-so"], "'so-so'"), ([1, -1], "-1"), ([0, 2], "2")])
def test_an_answer_that_is_none_of_the_labels_is_reported(answers, found, tokenizer):
    message = rf"^Row 1, column 'answer': found {found}, which is none of the labels of task 'sentiment' \(negative, "
    with pytest.raises(DatasetError, match=message):
        to_task_rows(labeled(answers), SENTIMENT, tokenizer)


def test_labeled_rows_that_are_ready_need_no_reference_and_get_their_labels(tokenizer):
    plain = Dataset.from_dict({"prompt": ["a", "b"], "answer": ["positive", "negative"]})
    assert to_task_rows(plain, SENTIMENT, tokenizer) is plain
    features = Features({"prompt": Value("string"), "answer": ClassLabel(names=["0", "1"])})
    for ready in (
        Dataset.from_dict({"prompt": ["a", "b"], "answer": ["POSITIVE", "Negative"]}),
        Dataset.from_dict({"prompt": ["a", "b"], "answer": [1, 0]}),
        Dataset.from_dict({"prompt": ["a", "b"], "answer": [1, 0]}, features=features),
    ):
        rows = to_task_rows(ready, SENTIMENT, tokenizer)
        assert rows["answer"][:] == ["positive", "negative"]
        assert rows.features["answer"] == Value("string")
        check_dataset(rows, "grpo")
    for answer in (2, "so-so", ["positive"], 0.5):
        features = Features({"prompt": Value("string"), "answer": Json()})
        ready = Dataset.from_dict({"prompt": ["a", "b"], "answer": ["positive", answer]}, features=features)
        with pytest.raises(DatasetError, match=r"^Row 1, column 'answer': found "):
            to_task_rows(ready, SENTIMENT, tokenizer)


def test_no_rows_are_no_problems_of_a_task_with_labels(tokenizer):
    assert len(to_task_rows(Dataset.from_dict({"problem": []}), SENTIMENT, tokenizer)) == 0
    assert len(to_task_rows(Dataset.from_dict({}), SENTIMENT, tokenizer)) == 0


def test_labels_that_are_numbers_are_taken_literally_unless_a_class_stores_them(tokenizer):
    stars = Task("stars", labels=("1", "2", "3"))
    names = ClassLabel(names=["1", "2", "3"])
    for columns in ({"prompt": ["a"], "answer": [1]}, {"problem": ["a"], "answer": [1]}):
        assert to_task_rows(Dataset.from_dict(columns), stars, tokenizer)["answer"][:] == ["1"]
        classes = Dataset.from_dict(columns).cast_column("answer", names)
        assert to_task_rows(classes, stars, tokenizer)["answer"][:] == ["2"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["positive", "negative"], ["positive", "negative"]),
        (["Positive", "NEGATIVE"], ["positive", "negative"]),
        (["neg", "pos"], ["negative", "positive"]),
        (["0", "1"], ["negative", "positive"]),
    ],
)
def test_a_class_is_the_label_of_its_name_and_not_of_its_index(names, expected, tokenizer):
    """Taken by their index, the labels of the first two would be exchanged, without any error."""
    sst2 = load_task("sst2")
    classes = ClassLabel(names=names)
    for task, column, columns in (
        (SENTIMENT, "answer", {"problem": ["a", "b"]}),
        (SENTIMENT, "answer", {"prompt": ["a", "b"]}),
        (sst2, "answer", {"problem": ["a", "b"]}),
        (sst2, "label", {"sentence": ["a", "b"]}),
    ):
        rows = Dataset.from_dict({**columns, column: [0, 1]}).cast_column(column, classes)
        read = to_task_rows(rows, task, tokenizer)
        assert read["answer"][:] == expected
        assert column == "answer" or read.features["label"] == classes, "other columns keep their types"


@pytest.mark.parametrize("labels", [("not_equivalent", "equivalent"), ("not equivalent", "equivalent")])
def test_names_of_classes_and_labels_may_have_underscores(labels, tokenizer):
    classes = ClassLabel(names=["equivalent", "not_equivalent"])
    rows = to_task_rows(labeled([0, 1]).cast_column("answer", classes), Task("mine", labels=labels), tokenizer)
    assert rows["answer"][:] == ["equivalent", labels[0]]


def test_a_class_whose_name_is_no_label_beside_labels_in_another_order_is_reported(tokenizer):
    rows = labeled([0, 2]).cast_column("answer", ClassLabel(names=["positive", "negative", "neutral"]))
    with pytest.raises(DatasetError, match="^Row 1, column 'answer': found 'neutral', which is none of the labels"):
        to_task_rows(rows, SENTIMENT, tokenizer)


def test_references_in_some_rows_of_a_labeled_task_are_reported_where_they_lack(tokenizer):
    columns = {"problem": ["a", "b"], "solution": ["So.", None], "answer": ["positive", "negative"]}
    rows = to_task_rows(Dataset.from_dict(columns), SENTIMENT, tokenizer)
    assert rows["reference"][:] == ["So.", None]
    with pytest.raises(DatasetError, match="^Row 1, column 'reference': found None"):
        check_dataset(rows, "task")


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


# --- Rows that cannot be read ----------------------------------------------------------------------------------------


def refusal(task, tokenizer, **columns):
    with pytest.raises(UserError) as error:
        to_task_rows(Dataset.from_list([columns]), load_task(task), tokenizer)
    return str(error.value)


OWN = {"problem": "Which?\nOptions:\nsand\nwater", "solution": "The answer is water", "answer": "water"}
LISTED = {"choices": {"text": ["sand", "water"], "label": ["A", "B"]}, "answerKey": "B"}
ECQA = {"q_text": "?", **{f"q_op{number}": str(number) for number in range(1, 6)}, "q_ans": "1", "taskA_pos": "It is."}
RAW = {
    "gsm8k": {"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"},
    "svamp": {"Body": "Tom has 1 nut.", "Question": "How many?", "Equation": "( 1.0 + 0.0 )", "Answer": "1.0"},
    "mmlu_math": {"question": "?", "choices": ["1", "2"], "answer": 0},
    "arc_easy": {"question": "Which?", **LISTED},
    "qasc": {"question": "Which?", "fact1": "a", "fact2": "b", "combinedfact": "c", **LISTED},
    "openbookqa": {"question_stem": "Which?", "fact1": "a", **LISTED},
    "ecqa": ECQA,
}


@pytest.mark.parametrize("value", [5, ["1 + 1?"], None, "", " \n", {"text": "?"}, 1.5, True], ids=repr)
@pytest.mark.parametrize(("task", "column"), [(task, column) for task, row in RAW.items() for column in row])
def test_no_value_of_another_type_passes_or_ends_in_a_traceback(task, column, value, tokenizer):
    optional = {"fact1", "fact2", "combinedfact", "taskA_pos"}
    row = RAW[task] | {column: value}
    if (column in optional and value in (None, "", " \n")) or (column == "Answer" and isinstance(value, float)):
        assert len(to_task_rows(Dataset.from_list([row]), load_task(task), tokenizer)) == 1
    elif (task, column, value) not in [
        ("mmlu_math", "answer", True),
        ("svamp", "Answer", 5),
        ("svamp", "Answer", True),
    ]:
        assert refusal(task, tokenizer, **row).startswith(("Row 0", f"Task '{task}' needs the column"))


@pytest.mark.parametrize("task", BUILT_IN)
@pytest.mark.parametrize("column", ["problem", "solution"])
@pytest.mark.parametrize("value", [5, ["text"], None, "", {"text": "?"}], ids=repr)
def test_own_rows_have_texts(task, column, value, tokenizer):
    if load_task(task).labels and column == "solution" and value is None:
        return  # which no label needs
    assert refusal(task, tokenizer, **OWN | {column: value}).startswith(
        f"Row 0, column '{column}': found {value!r}. Give"
    )


@pytest.mark.parametrize("task", BUILT_IN)
@pytest.mark.parametrize("answer", [["water"], [], {"text": "water"}, float("nan")], ids=repr)
def test_an_answer_is_one_text_or_number(task, answer, tokenizer):
    assert re.match(r"Row 0, column 'answer': found .*\. Give ", refusal(task, tokenizer, **OWN | {"answer": answer}))


@pytest.mark.parametrize("num_options", [0, 1, 27])
def test_a_choice_needs_two_to_26_options(num_options, tokenizer):
    options = [str(number) for number in range(num_options)]
    labels = [str(number) for number in range(num_options)]
    row = RAW["arc_easy"] | {"choices": {"text": options, "label": labels}, "answerKey": "0"}
    refused = refusal("arc_easy", tokenizer, **row)
    assert refused.startswith("Row 0, column ") and ("2 to 26" in refused or num_options == 0)
    if num_options == 1:
        refused = refusal("choice", tokenizer, **OWN | {"problem": "Which?\nOptions:\nwater"})
        assert refused.startswith("Row 0, column 'problem': found 'water'. List at least two options")


def test_a_label_out_of_range(tokenizer):
    task = Task("mood", labels=("good", "bad"))
    for answer in (2, -1, True, 0.0):
        dataset = Dataset.from_list([OWN | {"answer": answer}])
        with pytest.raises(
            DatasetError, match=f"^Row 0, column 'answer': found {answer}, which is none of the labels"
        ):
            to_task_rows(dataset, task, tokenizer)


def test_options_without_as_many_labels(tokenizer):
    row = RAW["arc_easy"] | {"choices": {"text": ["sand", "water"], "label": ["A"]}}
    assert re.match("Row 0, column 'choices': .* with as many labels as texts", refusal("arc_easy", tokenizer, **row))


def test_answers_of_ready_rows_may_be_numbers(tokenizer):
    for answers, texts in (([1, 2], ["1", "2"]), ([0.5, None], ["0.5", None]), ([True, False], ["True", "False"])):
        ready = Dataset.from_dict({"prompt": ["a", "b"], "reference": ["a", "b"], "answer": answers, "level": [1, 2]})
        rows = to_task_rows(ready, TASK, tokenizer)
        assert rows["answer"][:] == texts
        assert rows.column_names == ready.column_names
    mixed = Features(ready.features | {"answer": Json()})
    rows = to_task_rows(Dataset.from_dict(ready[:] | {"answer": [1, "one"]}, features=mixed), TASK, tokenizer)
    assert rows["answer"][:] == ["1", "one"]
    check_dataset(rows, "task")


def test_answers_of_ready_rows_that_are_lists_are_reported(tokenizer):
    ready = Dataset.from_dict({"prompt": ["a"], "reference": ["b"], "answer": [["c"]]})
    with pytest.raises(DatasetError, match="^Row 0, column 'answer': found .*It must be a string"):
        check_dataset(to_task_rows(ready, TASK, tokenizer), "task")


@pytest.mark.parametrize("returned", [None, 5, [], "text"], ids=repr)
def test_a_reader_that_returns_no_dict_is_reported(returned, tokenizer):
    task = Task("mine", check_math, read_row=lambda row: returned)
    with pytest.raises(ConfigError, match="`read_row` of task 'mine' returned .*, not a dict"):
        to_task_rows(raw(), task, tokenizer)


@pytest.mark.parametrize("bad", ["a\ud800", "", " "])
def test_a_reader_that_returns_no_storable_text_is_reported(bad, tokenizer):
    task = Task("mine", check_math, read_row=lambda row: {"problem": bad, "reference": "b", "answer": "c"})
    with pytest.raises(DatasetError, match="^Row 0: `read_row` of task 'mine' returned .* as `problem`"):
        to_task_rows(raw(), task, tokenizer)


def test_a_reader_that_fails_is_reported_with_row_and_line(tokenizer):
    task = Task("mine", check_math, read_row=lambda row: {}[row["problem"]] if False else row["problem"] + 1)
    with pytest.raises(ConfigError, match=r"failed on row 0: TypeError: .*\(.*test_problems.py, line \d+\)") as error:
        to_task_rows(raw(), task, tokenizer)
    assert isinstance(error.value.__cause__, TypeError)


def test_a_problem_of_another_task_is_reported_by_the_arithmetic_task():
    with pytest.raises(DatasetError, match="Not a problem of the arithmetic task: '1 \\+ 1\\?'"):
        ARITHMETIC.editor(["1 + 1?"], ["2"], ["2"])
