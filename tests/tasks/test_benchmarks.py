"""Each benchmark reads the rows of the Hub as well as problem, solution and answer. The rows here are made up."""

import json

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from rlmec_trl.data.schema import DatasetError, check_dataset
from rlmec_trl.tasks.options import read_options
from rlmec_trl.tasks.problems import ProblemConfig, load_problems, to_task_rows
from rlmec_trl.tasks.task import BUILT_IN, load_task


LETTERS = ["A", "B", "C", "D"]
DRINKS = ["sand", "Water", "stone", "glass"]

# Of each task a row of the Hub, and the reference and answer that it has to become
HUB_ROWS = {
    "ecqa": (
        {
            "q_no": "1",
            "q_concept": "drink",
            "q_text": "What would you drink after a run?",
            **{f"q_op{number}": text for number, text in enumerate([*DRINKS, "paper"], 1)},
            "q_ans": "Water",
            "taskA_pos": "Running makes thirsty.\nWater stills thirst.",
            "taskA_neg": "Nobody drinks sand.",
            "taskB": "After a run one drinks water.",
        },
        "Running makes thirsty.\nWater stills thirst.\nThe answer is Water",
        "Water",
    ),
    "qasc": (
        {
            "id": "1",
            "question": "What stills thirst?",
            "choices": {"text": DRINKS, "label": LETTERS},
            "answerKey": "B",
            "fact1": "Drinks still thirst.",
            "fact2": "Water is a drink.",
            "combinedfact": "Water stills thirst.",
            "formatted_question": "What stills thirst? (A) sand (B) Water (C) stone (D) glass",
        },
        "Drinks still thirst.\nWater is a drink.\nWater stills thirst.\nThe answer is Water",
        "Water",
    ),
    "openbookqa": (
        {
            "id": "1",
            "question_stem": "After a run one drinks",
            "choices": {"text": DRINKS, "label": LETTERS},
            "answerKey": "B",
            "fact1": "Water stills thirst.",
            "humanScore": 1.0,
        },
        "Water stills thirst.\nThe answer is Water",
        "Water",
    ),
    "arc_easy": (
        {
            "id": "1",
            "question": "Which of these is liquid?",
            "choices": {"text": DRINKS[:3], "label": ["1", "2", "3"]},
            "answerKey": "2",
        },
        "The answer is Water",
        "Water",
    ),
    "gsm8k": (
        {
            "question": "A pen costs 3 dollars. How much do 4 pens cost?",
            "answer": "4 pens cost 4*3=$<<4*3=12>>12.\n#### 12",
        },
        "4 pens cost 4*3=$12.\nThe answer is 12",
        "12",
    ),
    "math": (
        {
            "problem": "What is $\\frac{1}{2} + 1$?",
            "level": "Level 1",
            "type": "Prealgebra",
            "solution": "It is $\\boxed{\\frac{3}{2}}$.",
        },
        "It is $\\boxed{\\frac{3}{2}}$.",
        "\\frac{3}{2}",
    ),
    "svamp": (
        {
            "ID": "1",
            "Body": "Ann had 14 figs, gave 2 away and ate 10",
            "Question": "How many are left?",
            "Equation": "( ( 14.0 - 2.0 ) - 10.0 )",
            "Answer": "2.0",
            "Type": "Subtraction",
        },
        "(14 - 2) - 10 = 2\nThe answer is 2",
        "2",
    ),
    "mmlu_math": (
        {
            "question": "What is 2 + 2?",
            "subject": "elementary_mathematics",
            "choices": ["3", "4", "5", "22"],
            "answer": 1,
        },
        "The answer is 4",
        "4",
    ),
}
SENTENCES = {"sentence1": "A dog runs.", "sentence2": "A dog is running."}
# A row of the Hub, the lines of its texts in the problem, and the label
LABELED_ROWS = {
    "movie_reviews": ({"text": "a bleak film .", "label": 0}, "Review: a bleak film .\n", "negative"),
    "app_reviews": (
        {"package_name": "org.app", "review": "It crashes.", "date": "May 1 2017", "star": 2},
        "Review: It crashes.\n",
        "2",
    ),
    "ag_news": ({"text": "A comet was seen.", "label": 3}, "Article: A comet was seen.\n", "Sci/Tech"),
    "mrpc": (
        SENTENCES | {"label": 1, "idx": 0},
        "Sentence 1: A dog runs.\nSentence 2: A dog is running.\n",
        "equivalent",
    ),
    "qqp": (
        {"question1": "Why?", "question2": "What for?", "label": 0, "idx": 0},
        "Question 1: Why?\nQuestion 2: What for?\n",
        "not duplicate",
    ),
    "mnli": (
        {"premise": "A dog runs.", "hypothesis": "It sleeps.", "label": 2, "idx": 0},
        "Premise: A dog runs.\nHypothesis: It sleeps.\n",
        "contradiction",
    ),
    "sst2": ({"sentence": "a bleak film ", "label": 1, "idx": 0}, "Sentence: a bleak film\n", "positive"),
    "stsb": (
        SENTENCES | {"label": 4.5, "idx": 0},
        "Sentence 1: A dog runs.\nSentence 2: A dog is running.\n",
        "5",
    ),
}
LISTED = "Options:\nsand\nwater\nstone\nglass"
OWN_ROWS = {
    name: {
        "problem": f"What stills thirst?\n{LISTED}",
        "solution": "It flows.\nThe answer is Water",
        "answer": "Water",
    }
    for name in ("ecqa", "qasc", "openbookqa", "arc_easy", "mmlu_math", "choice")
} | {
    name: {"problem": "What is 4 * 3?", "solution": "4 * 3 = 12\nThe answer is 12", "answer": "12"}
    for name in ("gsm8k", "math", "svamp")
}


def rows_of(name, row, tokenizer):
    return to_task_rows(Dataset.from_list([row]), load_task(name), tokenizer)


def test_every_built_in_task_is_covered_here():
    assert set(BUILT_IN) - {"arithmetic", "choice", "verdicts"} == set(HUB_ROWS) | set(LABELED_ROWS)
    assert set(BUILT_IN) - {"arithmetic", "verdicts"} == set(OWN_ROWS) | set(LABELED_ROWS)


@pytest.mark.parametrize("name", HUB_ROWS)
def test_a_row_of_the_hub_becomes_problem_reference_and_answer(name, tokenizer):
    row, reference, answer = HUB_ROWS[name]
    rows = rows_of(name, row, tokenizer)
    check_dataset(rows, "task")
    assert (rows[0]["reference"], rows[0]["answer"]) == (reference, answer)
    kept = set(row) - {"answer"}
    assert {column: rows[0][column] for column in kept} == {column: row[column] for column in kept}


@pytest.mark.parametrize("name", OWN_ROWS)
def test_a_user_defined_row_is_read_by_every_task(name, tokenizer):
    row = OWN_ROWS[name]
    rows = rows_of(name, row, tokenizer)
    check_dataset(rows, "task")
    assert (rows[0]["reference"], rows[0]["answer"]) == (row["solution"], row["answer"])
    assert load_task(name).raw_problem(rows[0]["prompt"]) == row["problem"]


@pytest.mark.parametrize("rows", [HUB_ROWS, OWN_ROWS], ids=["hub", "own"])
@pytest.mark.parametrize("name", HUB_ROWS)
def test_a_reference_passes_the_check_of_its_task_and_no_other_option_does(name, rows, tokenizer):
    task = load_task(name)
    row = rows_of(name, rows[name][0] if rows is HUB_ROWS else rows[name], tokenizer)[0]
    problem = task.raw_problem(row["prompt"])
    assert task.check_answer(row["reference"], row["answer"], problem)
    options = read_options(problem)
    assert (options is None) == (name in ("gsm8k", "math", "svamp"))
    if options is None:
        assert not task.check_answer("The answer is 1000", row["answer"], problem)
        return
    for text, letter in zip(options.texts, options.labels, strict=True):
        correct = text.casefold() == row["answer"].casefold()
        for stated in (text, letter, f"({letter})", f"{letter}) {text}"):
            assert task.check_answer(f"The answer is {stated}", row["answer"], problem) == correct


@pytest.mark.parametrize("name", ["ecqa", "qasc", "openbookqa", "arc_easy", "mmlu_math"])
def test_options_of_the_hub_are_shown_with_letters(name, tokenizer):
    row, _, _ = HUB_ROWS[name]
    problem = load_task(name).raw_problem(rows_of(name, row, tokenizer)[0]["prompt"])
    assert "\nOptions:\nA) " in problem
    assert "\nB) " in problem


@pytest.mark.parametrize("name", HUB_ROWS)
def test_json_lines_of_the_columns_of_the_hub_load(name, tokenizer, tmp_path):
    row, reference, answer = HUB_ROWS[name]
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps(row) + "\n") * 3, encoding="utf-8")
    rows = load_problems(ProblemConfig(dataset_name=str(path), max_rows=2), load_task(name), tokenizer)
    assert rows["reference"][:] == [reference] * 2
    assert rows["answer"][:] == [answer] * 2


@pytest.mark.parametrize("name", [*HUB_ROWS, *LABELED_ROWS])
def test_every_benchmark_names_its_dataset_on_the_hub(name, tokenizer, monkeypatch):
    task = load_task(name)
    asked = []

    def load_rows(dataset_name, split="train", max_rows=None, config_name=None):
        asked.append((dataset_name, split, config_name))
        return Dataset.from_list([(HUB_ROWS | LABELED_ROWS)[name][0]] * 3)

    monkeypatch.setattr("rlmec_trl.tasks.problems.load_rows", load_rows)
    split = task.splits[0]
    rows = load_problems(ProblemConfig(dataset_split=split, max_rows=2), task, tokenizer)
    assert asked == [(task.hub_id, split, config) for config in task.hub_configs or [None]]
    assert len(rows) == 2

    asked.clear()
    load_problems(ProblemConfig(dataset_split=split, dataset_config="other"), task, tokenizer)
    assert asked == [(task.hub_id, split, "other")]
    with pytest.raises(ValueError, match=rf"{task.hub_id} has no split 'dev2'; its splits are .*{split}"):
        load_problems(ProblemConfig(dataset_split="dev2"), task, tokenizer)


def test_a_task_without_a_dataset_on_the_hub_asks_for_one(tokenizer):
    with pytest.raises(ValueError, match="Task 'choice' has no dataset on the Hub: .* `--dataset_name`"):
        load_problems(ProblemConfig(), load_task("choice"), tokenizer)


@pytest.mark.parametrize(
    ("name", "column", "value", "found"),
    [
        ("ecqa", "q_ans", "juice", "found 'juice', which is none of sand, Water"),
        ("qasc", "answerKey", "", "found '', which is none of A, B, C, D. Use a split that has answers"),
        ("openbookqa", "answerKey", "E", "found 'E'"),
        ("arc_easy", "answerKey", "B", "found 'B', which is none of 1, 2, 3"),
        ("mmlu_math", "answer", -1, "found -1, which is none of 0, 1, 2, 3"),
    ],
)
def test_a_row_without_an_answer_is_reported(name, column, value, found, tokenizer):
    good = HUB_ROWS[name][0]
    dataset = Dataset.from_list([good, good | {column: value}])
    with pytest.raises(DatasetError, match=rf"^Row 1, column '{column}': {found}"):
        to_task_rows(dataset, load_task(name), tokenizer)


def test_an_answer_that_is_none_of_the_listed_options_is_reported(tokenizer):
    row = OWN_ROWS["choice"] | {"answer": "juice"}
    with pytest.raises(
        DatasetError, match="^Row 0, column 'answer': found 'juice', which is none of the options sand"
    ):
        rows_of("choice", row, tokenizer)


@pytest.mark.parametrize("name", HUB_ROWS)
def test_a_missing_column_is_reported_by_its_name_on_the_hub(name, tokenizer):
    row = HUB_ROWS[name][0]
    column = (
        "solution"
        if name == "math"
        else next(column for column in row if column.lower().endswith(("body", "question", "text", "stem")))
    )
    dataset = Dataset.from_list([row]).rename_column(column, "other")
    with pytest.raises(DatasetError, match=rf"Task '{name}' needs the column '{column}'; the dataset has .*other"):
        to_task_rows(dataset, load_task(name), tokenizer)


def test_a_class_label_is_read_as_the_index_it_is(tokenizer):
    row = HUB_ROWS["mmlu_math"][0]
    features = Features(
        {
            "question": Value("string"),
            "subject": Value("string"),
            "choices": List(Value("string")),
            "answer": ClassLabel(names=LETTERS),
        }
    )
    rows = to_task_rows(Dataset.from_list([row], features=features), load_task("mmlu_math"), tokenizer)
    assert rows[0]["answer"] == "4"


def test_openbookqa_without_facts_has_the_answer_as_its_reference(tokenizer):
    row = {column: value for column, value in HUB_ROWS["openbookqa"][0].items() if column != "fact1"}
    assert rows_of("openbookqa", row, tokenizer)[0]["reference"] == "The answer is Water"


def test_an_option_of_several_lines_is_listed_on_one(tokenizer):
    row = HUB_ROWS["mmlu_math"][0] | {"choices": ["3", "two\n  and two", "5", "6"]}
    rows = rows_of("mmlu_math", row, tokenizer)
    assert "\nB) two and two\n" in rows[0]["prompt"]
    assert rows[0]["answer"] == "two and two"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("Ann had 3 figs.", "Ann had 3 figs. How many are left?"),
        ("If Ann ate 3 figs ", "If Ann ate 3 figs, How many are left?"),
    ],
)
def test_svamp_joins_story_and_question(body, problem, tokenizer):
    row = HUB_ROWS["svamp"][0] | {"Body": body}
    task = load_task("svamp")
    assert task.raw_problem(rows_of("svamp", row, tokenizer)[0]["prompt"]) == problem


@pytest.mark.parametrize(
    ("answer", "text"), [(5.0, "5"), ("5", "5"), ("5.00", "5"), (2.5, "2.5"), ("10.05", "10.05"), (100.0, "100")]
)
def test_svamp_writes_numbers_as_people_do(answer, text, tokenizer):
    row = HUB_ROWS["svamp"][0] | {"Answer": answer}
    assert rows_of("svamp", row, tokenizer)[0]["answer"] == text


# --- Labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LABELED_ROWS)
def test_a_row_with_a_class_becomes_a_problem_and_a_label_without_a_reference(name, tokenizer, tmp_path):
    row, texts, label = LABELED_ROWS[name]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    task = load_task(name)
    (loaded,) = load_problems(ProblemConfig(str(path)), task, tokenizer)
    assert loaded["answer"] == label and "reference" not in loaded
    assert {column: loaded[column] for column in row} == row
    problem = task.raw_problem(loaded["prompt"])
    assert problem.startswith(texts)
    assert problem.endswith(f"\nLabels: {', '.join(task.labels)}")


@pytest.mark.parametrize("name", LABELED_ROWS)
def test_each_class_has_the_label_of_its_index(name, tokenizer):
    task = load_task(name)
    column = "star" if name == "app_reviews" else "label"
    first = 1 if name == "app_reviews" else 0
    rows = [LABELED_ROWS[name][0] | {column: first + index} for index in range(len(task.labels))]
    assert to_task_rows(Dataset.from_list(rows), task, tokenizer)["answer"][:] == list(task.labels)
    if name not in ("app_reviews", "stsb"):
        dataset = Dataset.from_list(rows).cast_column(column, ClassLabel(names=list(task.labels)))
        assert to_task_rows(dataset, task, tokenizer)["answer"][:] == list(task.labels)
        for write in (str.upper, lambda label: label.replace(" ", "_")):  # as GLUE names its classes
            named = [row | {column: write(label)} for row, label in zip(rows, task.labels, strict=True)]
            assert to_task_rows(Dataset.from_list(named), task, tokenizer)["answer"][:] == list(task.labels)


@pytest.mark.parametrize(
    ("score", "label"), [(0.0, "0"), (0.49, "0"), (0.5, "1"), (2.5, "3"), (3.4, "3"), (4.5, "5"), (5.0, "5"), (3, "3")]
)
def test_scores_of_stsb_are_rounded_halves_up(score, label, tokenizer):
    row = LABELED_ROWS["stsb"][0] | {"label": score}
    assert rows_of("stsb", row, tokenizer)[0]["answer"] == label


@pytest.mark.parametrize("name", LABELED_ROWS)
@pytest.mark.parametrize("value", [-1, 6, None, "so-so", ["World"], -1.0, float("nan")], ids=repr)
def test_a_row_without_a_label_is_reported(name, value, tokenizer):
    good = LABELED_ROWS[name][0]
    column = "star" if name == "app_reviews" else "label"
    with pytest.raises(DatasetError, match=f"^Row 0, column '{column}': found .* Use a split that has answers"):
        rows_of(name, good | {column: value}, tokenizer)


@pytest.mark.parametrize("name", LABELED_ROWS)
@pytest.mark.parametrize("value", [None, "", 5, ["text"]], ids=repr)
def test_a_row_without_its_text_is_reported(name, value, tokenizer):
    row = LABELED_ROWS[name][0]
    column = next(column for column in row if column not in ("package_name",))
    with pytest.raises(DatasetError, match=f"^Row 0, column '{column}': found .* Give every row a text there"):
        rows_of(name, row | {column: value}, tokenizer)


@pytest.mark.parametrize("name", LABELED_ROWS)
def test_a_user_defined_row_with_a_label_may_have_a_solution(name, tokenizer):
    label = load_task(name).labels[1]
    row = {"problem": "What is it?", "answer": label.upper()}
    (bare,) = rows_of(name, row, tokenizer)
    assert (load_task(name).raw_problem(bare["prompt"]), bare["answer"]) == ("What is it?", label)
    assert "reference" not in bare
    (worked,) = rows_of(name, row | {"solution": "So it is."}, tokenizer)
    assert (worked["reference"], worked["answer"]) == ("So it is.", label)


@pytest.mark.parametrize(
    ("name", "split", "loaded"),
    [
        ("mnli", "test", "validation_matched"),
        ("mnli", "train", "train"),
        ("sst2", "test", "validation"),
        ("mrpc", "test", "test"),
        ("ag_news", "test", "test"),
    ],
)
def test_the_split_to_evaluate_on_is_one_that_has_labels(name, split, loaded, tokenizer, monkeypatch):
    asked = []

    def load_rows(dataset_name, split="train", max_rows=None, config_name=None):
        asked.append((split, config_name))
        return Dataset.from_list([LABELED_ROWS[name][0]])

    monkeypatch.setattr("rlmec_trl.tasks.problems.load_rows", load_rows)
    task = load_task(name)
    load_problems(ProblemConfig(), task, tokenizer, split)
    assert asked == [(loaded, *(task.hub_configs or [None]))]


def test_a_dataset_with_one_split_can_be_cut_into_two(tokenizer, monkeypatch):
    asked = []

    def load_rows(dataset_name, split="train", max_rows=None, config_name=None):
        asked.append(split)
        return Dataset.from_list([LABELED_ROWS["app_reviews"][0]])

    monkeypatch.setattr("rlmec_trl.tasks.problems.load_rows", load_rows)
    task = load_task("app_reviews")
    load_problems(ProblemConfig(dataset_split="train[90%:]"), task, tokenizer, "test")
    assert asked == ["train[90%:]"]
    with pytest.raises(ValueError, match="has no split 'validation'; its splits are train"):
        load_problems(ProblemConfig(), task, tokenizer, "test")
