"""Tasks are loaded by name from anywhere, with clear errors."""

import importlib
import pickle
import sys

import numpy as np
import pytest
from datasets import Dataset

from rlmec_trl.data.errors import ConfigError, DatasetError
from rlmec_trl.tasks.answers import check_choice
from rlmec_trl.tasks.problems import to_task_rows
from rlmec_trl.tasks.task import BUILT_IN, Task, load_object, load_task
from rlmec_trl.tasks.wording import Wording


FILE = """
from dataclasses import dataclass

from rlmec_trl.tasks.answers import check_math
from rlmec_trl.tasks.task import Task


@dataclass
class Sum:
    text: str


def read_row(row):
    return {"problem": Sum(row["sum"]).text, "reference": "The answer is " + row["result"], "answer": row["result"]}


TASK = Task("sums", check_math, read_row=read_row)
"""
SUMS = {"sum": ["1 + 1", "2 + 2", "3 + 3"], "result": ["2", "4", "6"]}


@pytest.fixture
def task_file(tmp_path):
    path = tmp_path / "my task.py"
    path.write_text(FILE, encoding="utf-8")
    return path


@pytest.fixture
def module_dir(tmp_path, monkeypatch):
    """A working directory whose modules can be imported, and are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_task_loads_under_its_name(name):
    assert load_task(name).name == name


def test_a_task_object_is_returned_as_it_is():
    task = Task("mine", check_choice)
    assert load_task(task) is task


# --- Files -----------------------------------------------------------------------------------------------------------


def test_a_task_in_a_file_is_loaded_by_path(task_file):
    task = load_task(f"{task_file}:TASK")
    assert task.name == "sums"
    assert task.check_answer("The answer is 2", "2", "")
    assert load_task(f"{task_file}:TASK") is task, "the file is run once"


def test_a_path_may_be_relative(task_file, monkeypatch):
    monkeypatch.chdir(task_file.parent)
    assert load_task("my task.py:TASK").name == "sums"


def test_a_file_that_was_edited_is_read_again(task_file):
    load_task(f"{task_file}:TASK")
    task_file.write_text(FILE.replace('"sums"', '"other"'), encoding="utf-8")
    assert load_task(f"{task_file}:TASK").name == "other"


def test_rows_follow_a_file_that_was_edited_whatever_is_cached(task_file, tokenizer, tmp_path):
    Dataset.from_dict(SUMS).save_to_disk(tmp_path / "rows")
    dataset = Dataset.load_from_disk(tmp_path / "rows")
    assert to_task_rows(dataset, load_task(f"{task_file}:TASK"), tokenizer)[0]["reference"] == "The answer is 2"
    task_file.write_text(FILE.replace("The answer is", "So the answer is"), encoding="utf-8")
    assert to_task_rows(dataset, load_task(f"{task_file}:TASK"), tokenizer)[0]["reference"] == "So the answer is 2"


def test_functions_of_a_file_can_be_pickled(task_file):
    task = load_task(f"{task_file}:TASK")
    assert pickle.loads(pickle.dumps(task)).read_row is task.read_row


def test_functions_of_a_file_map_rows_in_several_processes(task_file):
    task = load_task(f"{task_file}:TASK")
    rows = Dataset.from_dict(SUMS).map(task.read_row, num_proc=2)
    assert rows["problem"][:] == SUMS["sum"]
    correct = rows.map(lambda row: {"correct": task.check_answer(row["reference"], row["answer"], "")}, num_proc=2)
    assert all(correct["correct"])


def test_a_task_with_labels_can_be_pickled():
    task = pickle.loads(pickle.dumps(Task("sentiment", labels=("negative", "positive"))))
    assert task.check_answer("The answer is Positive.", "positive", "")


# --- Modules ---------------------------------------------------------------------------------------------------------


def test_a_task_in_a_module_of_the_working_directory_is_loaded(module_dir):
    (module_dir / "my_tasks").mkdir()
    (module_dir / "my_tasks" / "sums.py").write_text(FILE, encoding="utf-8")
    assert load_task("my_tasks.sums:TASK").name == "sums"


def test_any_object_can_be_loaded():
    assert load_object("rlmec_trl.tasks.answers:check_choice") is check_choice


def test_rows_follow_a_module_that_was_edited_whatever_is_cached(module_dir, tokenizer):
    Dataset.from_dict(SUMS).save_to_disk(module_dir / "rows")
    dataset = Dataset.load_from_disk(module_dir / "rows")
    for word in ("The answer is", "Hence the answer is"):
        (module_dir / "edited_task.py").write_text(FILE.replace("The answer is", word), encoding="utf-8")
        importlib.invalidate_caches()
        sys.modules.pop("edited_task", None)
        rows = to_task_rows(dataset, load_task("edited_task:TASK"), tokenizer)
        assert rows[0]["reference"] == f"{word} 2"


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("arithmatic", "Unknown task 'arithmatic'. Choose one of arithmetic, .*, or name your own as"),
        ("task.py", "Unknown task 'task.py'.* or name your own as `package.module:NAME` or `path/to/file.py:NAME`"),
        ("nowhere/task.py:TASK", "There is no file 'nowhere/task.py' to load 'TASK' from"),
        ("no_such_package.tasks:TASK", "There is no module 'no_such_package.tasks' to load 'TASK' from"),
        ("rlmec_trl.no_such_module:TASK", "There is no module 'rlmec_trl.no_such_module'"),
        ("rlmec_trl.tasks.math:TISK", "'rlmec_trl.tasks.math' defines no 'TISK'"),
        ("rlmec_trl.tasks.math:SUBJECTS", "is of type `tuple`, not a `rlmec_trl.tasks.task.Task`"),
        (":TASK", "':TASK' is neither `package.module:NAME` nor `path/to/file.py:NAME`"),
        ("rlmec_trl.tasks.math:", "is neither `package.module:NAME` nor"),
        (".math:TASK", "is neither `package.module:NAME` nor"),
    ],
)
def test_a_name_that_leads_nowhere_says_what_is_missing(name, message):
    with pytest.raises(ValueError, match=message):
        load_task(name)


def test_a_file_that_does_not_define_the_name_is_reported(task_file):
    with pytest.raises(ValueError, match="my task.py' defines no 'OTHER'"):
        load_task(f"{task_file}:OTHER")


@pytest.mark.parametrize("line", ["import no_such_dependency", "from no_such_dependency.inside import thing"])
def test_a_missing_import_inside_a_task_is_not_mistaken_for_a_missing_task(line, module_dir):
    for name in ("broken_task:TASK", "broken_task.py:TASK"):
        (module_dir / "broken_task.py").write_text(f"{line}\n{FILE}", encoding="utf-8")
        with pytest.raises(
            ConfigError, match="cannot be imported: .* No module named 'no_such_dep.*broken_task.py, l"
        ):
            load_task(name)


def test_a_file_that_failed_can_be_loaded_once_it_is_fixed(task_file):
    task_file.write_text(f"raise RuntimeError('not yet')\n{FILE}", encoding="utf-8")
    for _ in range(2):
        with pytest.raises(
            ConfigError, match="cannot be imported: RuntimeError: not yet .*my task.py, line 1"
        ) as error:
            load_task(f"{task_file}:TASK")
        assert isinstance(error.value.__cause__, RuntimeError), "with its own traceback, in Python"
    task_file.write_text(FILE, encoding="utf-8")
    assert load_task(f"{task_file}:TASK").name == "sums"


def test_a_task_without_a_check_is_refused():
    with pytest.raises(ValueError, match="Task 'mine' cannot check answers: give it `check_answer` or `labels`"):
        Task("mine")


# --- Verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", ["no", 0.2, [False], (False, "x"), None, 1], ids=str)
def test_a_check_that_returns_no_bool_is_an_error_and_not_true(verdict):
    task = Task("mine", lambda completion, answer, problem: verdict)
    with pytest.raises(ValueError, match="`check_answer` of task 'mine' returned .* It must return True or False"):
        task.is_correct("a", "b", "c")


@pytest.mark.parametrize("verdicts", [[], ["no", "no"], [True], None, True, [True, None]], ids=str)
def test_a_step_check_that_returns_no_bool_for_each_step_is_an_error_and_does_not_pass(verdicts):
    task = Task("mine", lambda *args: True, check_steps=lambda problem, completion: verdicts)
    with pytest.raises(ValueError, match="`check_steps` of task 'mine' returned .* for the 2 steps"):
        task.has_correct_steps("problem", "one\ntwo")


def test_verdicts_of_numpy_are_bools():
    task = Task("mine", lambda *args: np.bool_(True), check_steps=lambda problem, completion: [np.True_, False])
    assert task.is_correct("a", "b", "c") is True
    assert task.has_correct_steps("problem", "one\ntwo") is False
    assert Task("other", lambda *args: True).has_correct_steps("problem", "one") is True


@pytest.mark.parametrize("path", ["./mine.py:TASK", "../here/mine.py:TASK"])
def test_a_file_may_be_named_from_the_working_directory(tmp_path, monkeypatch, path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.py").write_text("TASK = 5")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match="is of type `int`, not a"):
        load_task(path)


# --- Code of the user's that fails -----------------------------------------------------------------------------------


@pytest.mark.parametrize("check", ["check_answer", "check_steps"])
def test_a_check_that_raises_is_reported_with_its_line(check):
    task = Task("mine", **({"check_answer": lambda *texts: True} | {check: lambda *texts: int("one")}))
    with pytest.raises(
        ConfigError, match=rf"`{check}` of task 'mine' failed on .*'text': ValueError.*test_task.py, line"
    ):
        task.is_correct("text", "answer", "problem") and task.has_correct_steps("problem", "text")


def test_an_error_for_the_user_inside_a_check_is_not_wrapped_in_another():
    def check(completion, answer, problem):
        raise DatasetError("found no unit. Give one.", column="answer")

    with pytest.raises(DatasetError, match="^Column 'answer': found no unit. Give one.$"):
        Task("mine", check).is_correct("text", "answer", "problem")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("TASK = Task('mine'", "SyntaxError: .*my task.py, line 1"),
        ("import sys\nsys.exit(3)", "SystemExit: 3 .*my task.py, line 2"),
        ("TASK = [][0]", "IndexError: list index out of range .*my task.py, line 1"),
        ("\0", "SyntaxError: source code string cannot contain null bytes"),
        (
            "from rlmec_trl.tasks.task import Task\nTASK = Task('mine')",
            "ConfigError: Task 'mine' cannot check answers",
        ),
    ],
)
def test_a_file_that_cannot_be_imported(task_file, source, message):
    task_file.write_text(source, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"my task.py' cannot be imported: {message}"):
        load_task(f"{task_file}:TASK")


def test_an_interrupt_while_a_task_is_imported_is_none_of_its_errors(task_file):
    task_file.write_text("raise KeyboardInterrupt", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        load_task(f"{task_file}:TASK")


@pytest.mark.parametrize(
    "name", ["a\0b.py:TASK", "~nobody/task.py:TASK", ".py:TASK", "a..b:TASK", "a b:TASK", 5, None]
)
def test_odd_names_of_tasks(name):
    with pytest.raises(ConfigError, match="There is no|is neither|must be a text"):
        load_task(name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"check_answer": "no"}, "`check_answer` of task 'mine' is 'no', not a function"),
        ({"labels": "good"}, "`labels` of task 'mine' are 'good'; they must be a tuple of texts"),
        ({"labels": (0, 1)}, "they must be a tuple of texts"),
        ({"wording": "{problem}"}, "not a `Wording`"),
        ({"wording": Wording("{attempt}", "{attempt}", "Solve it.")}, "`policy` of task 'mine' has no {problem}: "),
        ({"wording": Wording("{attempt}", "", "{problem}")}, "`rewrite` of task 'mine' has no {attempt}"),
    ],
)  # fmt: skip
def test_fields_of_another_form(fields, message):
    with pytest.raises(ConfigError, match=message):
        Task("mine", **({"check_answer": lambda *texts: True} | fields))


def test_a_wording_has_texts_and_a_separator():
    with pytest.raises(ConfigError, match="`step_separator` of a wording is empty"):
        Wording("", "", "", step_separator="")
    with pytest.raises(ConfigError, match="`policy` of a wording must be a text, got None"):
        Wording("", "", None)
