"""A user's own task: its file, its checks, its reader, its teacher."""

import numpy as np
from datasets import Dataset

from rlmec_trl.tasks.answers import check_by_reward
from rlmec_trl.tasks.problems import ProblemConfig, load_problems, to_task_rows
from rlmec_trl.tasks.task import Task, load_task
from rlmec_trl.tasks.wording import Wording
from rlmec_trl.teachers.editors import edit_dataset
from tests.reliability.case import Case


SECTION = "Your own task"
MINE = "from rlmec_trl.tasks.task import Task\n"


def from_file(content, name="TASK"):
    return lambda place: load_task(f"{place.file('mine.py', content)}:{name}")


def checked(check):
    def run(place):
        return f"the verdict {Task('mine', check).is_correct('4', '4', '2 + 2?')}"

    return run


def rewarded(reward):
    return checked(check_by_reward(lambda **kwargs: reward))


def with_steps(check):
    task = Task("mine", lambda *texts: True, check_steps=check)
    return lambda place: f"the verdict {task.has_correct_steps('problem', 'one' + chr(10) + 'two')}"


def reading(read_row):
    def run(place):
        task = Task("mine", lambda *texts: True, read_row=read_row)
        return to_task_rows(Dataset.from_list([{"story": "1 + 1?"}]), task, place.tokenizer)

    return run


def editing(editor):
    def run(place):
        edited, _ = edit_dataset(place.samples(2), editor, load_task("arithmetic"))
        return f"the outcomes {sorted(set(edited['edit_outcome']))}"

    return run


def without_dataset(place):
    load_problems(ProblemConfig(), load_task("choice"), place.tokenizer)


def without_split(place):
    load_problems(ProblemConfig(dataset_split="dev"), load_task("gsm8k"), place.tokenizer)


def to_float(value):
    return lambda *texts: float(value)


def fields(**given):
    return lambda place: Task("mine", **{"check_answer": lambda *texts: True} | given)


FAILED = r"`{}` of task 'mine' failed on"
PLACE = r"(?<=\()\S*tests/reliability/\w+\.py, line \d+"
CASES = [
    Case("a task that does not exist", lambda place: load_task("gsm9k"), "Unknown task 'gsm9k'"),
    Case("a number as task", lambda place: load_task(5), "`task` must be a text"),
    Case("a file that is not there", lambda place: load_task("mine.py:TASK"), "There is no file 'mine.py'"),
    Case("a module that is not there", lambda place: load_task("no_such_module:TASK"), "There is no module"),
    Case("a file without a name after it", lambda place: load_task("mine.py:"), "is neither"),
    Case("a file that lacks the name", from_file(MINE), "defines no 'TASK'"),
    Case("an object that is no `Task`", from_file("TASK = 5"), "is of type `int`, not a"),
    Case(
        "a file with a syntax error",
        from_file("TASK = ("),
        "cannot be imported: SyntaxError",
        r"(?<=SyntaxError: ).*(?= \()",
    ),
    Case("a file that raises", from_file("TASK = {}['task']"), "cannot be imported: KeyError.*line 1"),
    Case("a file that imports what is not installed", from_file("import no_such_library"), "No module named"),
    Case("a file that calls `sys.exit()`", from_file("import sys\nsys.exit(3)"), "cannot be imported: SystemExit: 3"),
    Case("a file with NUL bytes", from_file(b"\0"), "cannot be imported: SyntaxError"),
    Case("a task without a check", from_file(MINE + "TASK = Task('mine')"), "cannot check answers"),
    Case("a text as check", fields(check_answer="exact"), "`check_answer` of task 'mine' is 'exact'"),
    Case("a text as labels", fields(labels="good"), "must be a tuple of texts"),
    Case("numbers as labels", fields(labels=(0, 1)), "must be a tuple of texts"),
    Case("a text as wording", fields(wording="{problem}"), "not a `Wording`"),
    Case(
        "a wording without its slot", fields(wording=Wording("{attempt}", "{attempt}", "Solve!")), "has no {problem}"
    ),
    Case("an empty step separator", lambda place: Wording("", "", "", step_separator=""), "`step_separator`"),
    Case("a task without a dataset on the Hub, and no `--dataset_name`", without_dataset, "has no dataset on the Hub"),
    Case("a split that the task's dataset does not have", without_split, "has no split 'dev'"),
    Case("a check that raises", checked(to_float("four")), FAILED.format("check_answer"), PLACE),
    Case("a check that returns `None`", checked(lambda *texts: None), "returned None"),
    Case("a check that returns NaN", checked(to_float("nan")), "returned nan"),
    Case("a check that returns 1", checked(lambda *texts: 1), "returned 1"),
    Case("a check that returns a text", checked(lambda *texts: "yes"), "returned 'yes'"),
    Case("a check that returns NumPy's bool", checked(lambda *texts: np.bool_(True))),
    Case("a check of steps that raises", with_steps(lambda *texts: [][0]), FAILED.format("check_steps"), PLACE),
    Case("a check of steps with too few verdicts", with_steps(lambda *texts: [True]), "for the 2 steps"),
    Case("a check of steps that returns `None`", with_steps(lambda *texts: None), "for the 2 steps"),
    Case("a check of steps with NumPy's bools", with_steps(lambda *texts: [np.True_, np.False_])),
    Case("a reward function that returns two rewards", rewarded([1.0, 1.0]), "returned 2 rewards"),
    Case("a reward function that returns `None`", rewarded(None), FAILED.format("check_answer"), PLACE),
    Case("a reward function that abstains", rewarded([None])),
    Case("a reward function that returns NaN", rewarded([float("nan")])),
    Case("a reader that raises", reading(lambda row: row["story"] + 1), "failed on row 0: TypeError", PLACE),
    Case("a reader of another column", reading(lambda row: row["task"]), "needs the column 'task'"),
    Case("a reader that returns no dict", reading(lambda row: "1 + 1?"), "not a dict"),
    Case("a reader that returns no reference", reading(lambda row: {"problem": "?"}), "as `reference`"),
    Case("a reader that returns half a surrogate pair", reading(lambda row: {"problem": "\ud800"}), "as `problem`"),
    Case("a teacher that returns `None`", editing(lambda *texts: None), "returned a `NoneType`"),
    Case("a teacher that returns too few edits", editing(lambda *texts: []), "returned 0 edits for 2"),
    Case("a teacher that returns texts", editing(lambda p, r, c: list(c)), "for row 0; an edit is"),
    Case("a teacher that returns half a surrogate pair", editing(lambda p, r, c: [(0, "\ud800")] * 2), "for row 0"),
    Case("a teacher that returns a float as step", editing(lambda p, r, c: [(0.0, "a")] * 2), "for row 0"),
    Case("a teacher that raises", editing(lambda *texts: 1 / 0), "failed on 2 attempts: ZeroDivisionError", PLACE),
    Case("a teacher that returns empty texts", editing(lambda p, r, c: [(0, "")] * 2)),
    Case("a teacher that names a step that is not there", editing(lambda p, r, c: [(99, "a")] * 2)),
]
