"""Problems as they come from a dataset, before a task has read them."""

from functools import partial

from datasets import Dataset

from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.schema import check_dataset
from rlmec_trl.tasks.problems import read_columns, to_task_rows
from rlmec_trl.tasks.task import Task, load_task
from tests.reliability.case import Case


SECTION = "Raw problems"
OWN = {"problem": "Which?\nOptions:\nsand\nwater", "solution": "The answer is water", "answer": "water"}
LISTED = {"choices": {"text": ["sand", "water"], "label": ["A", "B"]}, "answerKey": "B"}
ARC = {"question": "Which?", **LISTED}
MMLU = {"question": "?", "choices": ["1", "2"], "answer": 0}
SVAMP = {"Body": "Tom has 1 nut.", "Question": "How many?", "Equation": "( 1.0 )", "Answer": "1.0"}
ECQA = {"q_text": "?", **{f"q_op{n}": str(n) for n in range(1, 6)}, "q_ans": "1", "taskA_pos": "It is."}
GSM8K = {"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"}
MOOD = Task("mood", labels=("good", "bad"))


def read(task, row, place, answer=None):
    task = load_task(task) if isinstance(task, str) else task
    rows = to_task_rows(Dataset.from_list([row]), task, place.tokenizer)
    check_dataset(rows, "task")
    assert answer is not None and rows["answer"][:] == [answer], rows["answer"][:]
    return f"the answer {answer!r}"


def refuse(name, task, row, error):
    return Case(name, partial(read, task, row), error)


def works(name, task, row, answer):
    return Case(name, partial(read, task, row, answer=answer))


def ready(answers, place):
    """Rows that already have `prompt`, `reference` and `answer`, with answers of several types."""
    path = place.file("ready.jsonl", [{"prompt": "?", "reference": "It is.", "answer": answer} for answer in answers])
    rows = to_task_rows(load_rows(path), load_task("math"), place.tokenizer)
    check_dataset(rows, "task")
    return f"the answers {rows['answer'][:]}"


def named(place):
    to_task_rows(Dataset.from_list([OWN]), load_task("math"), place.tokenizer, read_columns("q", "solution"))


TEXT = "Give every problem a text and a solution"
CASES = [
    refuse("a number as problem", "math", OWN | {"problem": 5}, f"Row 0, column 'problem': found 5. {TEXT}"),
    refuse("a list as problem", "math", OWN | {"problem": ["?"]}, f"found .* {TEXT}"),
    refuse("an object as problem", "math", OWN | {"problem": {"text": "?"}}, f"found .* {TEXT}"),
    refuse("messages as problem", "math", OWN | {"problem": [{"role": "user", "content": "?"}]}, TEXT),
    refuse("an empty problem", "math", OWN | {"problem": " "}, f"found ' '. {TEXT}"),
    refuse("a null solution", "math", OWN | {"solution": None}, f"column 'solution': found None. {TEXT}"),
    refuse("a number as solution", "math", OWN | {"solution": 2.5}, f"column 'solution': found 2.5. {TEXT}"),
    refuse(
        "a solution without an answer", "math", {"problem": "?", "solution": "Who knows?"}, "states no final answer"
    ),
    refuse("a list as answer", "math", OWN | {"answer": ["2", "3"]}, "one final answer"),
    refuse("an empty list as answer", "math", OWN | {"answer": []}, "one final answer"),
    refuse("an object as answer", "math", OWN | {"answer": {"value": 2}}, "one final answer"),
    refuse("NaN as answer", "math", OWN | {"answer": float("nan")}, "one final answer"),
    works("a null answer, and a solution that states one", "math", OWN | {"answer": None}, "water"),
    refuse(
        "a null answer, and a solution that states none",
        "math",
        {"problem": "?", "solution": "Who knows?", "answer": None},
        "Row 0, column 'solution': .* states no final answer",
    ),
    refuse("an empty answer", "math", OWN | {"answer": ""}, "Row 0, column 'answer': found an empty text"),
    refuse("no column of problems", "math", {"q": "?", "solution": "#### 1"}, "needs the column 'problem'"),
    Case("a `--problem_column` that is not there", named, "needs the column 'q'"),
    works("an integer as answer", "math", OWN | {"answer": 2}, "2"),
    works("a float as answer", "math", OWN | {"answer": 0.5}, "0.5"),
    works("True as answer", "math", OWN | {"answer": True}, "True"),
    works("right-to-left text", "math", OWN | {"problem": "\u05db\u05de\u05d4?", "answer": "\u0662"}, "\u0662"),
    works("NUL in a problem", "math", OWN | {"problem": "1\0 + 1?", "answer": "2"}, "2"),
    works("100,000 characters as problem", "math", OWN | {"problem": "1 + " * 25_000, "answer": "2"}, "2"),
    works("a key beside that no task knows", "math", OWN | {"own": {"a": [None]}}, "water"),
    Case("ready rows with integers as answers", partial(ready, [1, 2])),
    Case("ready rows with integers and texts as answers", partial(ready, [1, "2"])),
    Case("ready rows with lists as answers", partial(ready, [["1"], ["2"]]), "Row 0, column 'answer'"),
    Case("ready rows with texts and lists as answers", partial(ready, ["1", ["2"]]), "Row 1, column 'answer'"),
    refuse("an answer that is no option", "choice", OWN | {"answer": "wine"}, "none of the options sand, water"),
    refuse("a single option", "choice", OWN | {"problem": "Which?\nOptions:\nwater"}, "at least two options"),
    refuse("a label beyond the options", "choice", OWN | {"answer": "C"}, "none of the options"),
    works("the label of an option", "choice", OWN | {"answer": "B"}, "B"),
    refuse("an index beyond the labels of a task", MOOD, OWN | {"answer": 2}, "none of the labels"),
    refuse("a negative index of a label", MOOD, OWN | {"answer": -1}, "none of the labels"),
    refuse("a text that is no label", MOOD, OWN | {"answer": "so-so"}, "none of the labels"),
    refuse("a list as label", MOOD, OWN | {"answer": ["good"]}, "one final answer"),
    works("the index of a label", MOOD, OWN | {"answer": 1}, "bad"),
    refuse("arc_easy: options without labels", "arc_easy", ARC | {"choices": ["sand", "water"]}, "It must be"),
    refuse(
        "arc_easy: fewer labels than options",
        "arc_easy",
        ARC | {"choices": {"text": ["1", "2"], "label": ["A"]}},
        "as many",
    ),
    refuse("arc_easy: one option", "arc_easy", ARC | {"choices": {"text": ["1"], "label": ["B"]}}, "2 to 26"),
    refuse(
        "arc_easy: an option that is null",
        "arc_easy",
        ARC | {"choices": {"text": ["1", None], "label": ["A", "B"]}},
        "Each must be",
    ),
    refuse("arc_easy: an unknown label", "arc_easy", ARC | {"answerKey": "E"}, "none of A, B"),
    refuse(
        "arc_easy: no answer, as in a test split", "arc_easy", ARC | {"answerKey": ""}, "Use a split that has answers"
    ),
    refuse("arc_easy: a number as question", "arc_easy", ARC | {"question": 5}, "column 'question': found 5"),
    refuse("mmlu_math: an index beyond the options", "mmlu_math", MMLU | {"answer": 2}, "none of 0, 1"),
    refuse("mmlu_math: a text as options", "mmlu_math", MMLU | {"choices": "1, 2"}, "a list of options"),
    refuse("mmlu_math: 27 options", "mmlu_math", MMLU | {"choices": [str(n) for n in range(27)]}, "2 to 26"),
    refuse("ecqa: an option that is null", "ecqa", ECQA | {"q_op5": None}, "Each must be a text"),
    refuse("ecqa: a number as fact", "ecqa", ECQA | {"taskA_pos": 5}, "column 'facts': found 5"),
    works("ecqa: no fact", "ecqa", ECQA | {"taskA_pos": None}, "1"),
    refuse("svamp: a null equation", "svamp", SVAMP | {"Equation": None}, "column 'Equation': found None"),
    refuse("svamp: a list as answer", "svamp", SVAMP | {"Answer": ["1"]}, "one final answer"),
    works("svamp: a number as answer", "svamp", SVAMP | {"Answer": 1.0}, "1"),
    refuse("gsm8k: a number as worked solution", "gsm8k", GSM8K | {"answer": 2}, "column 'answer': found 2"),
    refuse("gsm8k: a worked solution without `####`", "gsm8k", GSM8K | {"answer": "Two."}, "states no final answer"),
    works("gsm8k: a row of the Hub", "gsm8k", GSM8K, "2"),
]
