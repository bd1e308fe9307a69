"""docs/tasks.md is run as it stands: its files are written out, its code is executed, its tables are compared."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from datasets import Dataset

from rlmec_trl.tasks.answers import check_by_reward, check_math
from rlmec_trl.tasks.problems import ProblemConfig, load_problems, to_task_rows
from rlmec_trl.tasks.task import BUILT_IN, Task, load_task


PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
# Language, name of the file that the block is, content
BLOCKS = re.findall(r'^```(\w+)(?: title="([^"\n]+)")?\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)


def table(section):
    """Rows of the first table under a heading, as lists of cells."""
    text = PAGE[PAGE.index(f"\n## {section}\n") :]
    lines = re.search(r"^\|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.M)[1].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def page_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _, title, code in BLOCKS:
        if title:
            Path(title).write_text(code, encoding="utf-8")
    return tmp_path


def test_the_files_and_the_code_of_the_page_run_as_shown(page_files, chat_tokenizer, monkeypatch):
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda name: chat_tokenizer)
    code = [code for language, title, code in BLOCKS if language == "python" and not title]
    assert len(code) == 4
    for block in code:
        exec(compile(block, "docs/tasks.md", "exec"), {"__name__": "docs"})


def test_the_task_of_the_page_is_as_short_as_it_says(page_files):
    assert len(Path("roman.py").read_text(encoding="utf-8").splitlines()) <= 20


def test_user_defined_rows_load_with_the_tasks_that_are_named(page_files, tokenizer):
    for name in ("math", "gsm8k", "svamp"):
        rows = load_problems(ProblemConfig(dataset_name="pens.jsonl"), load_task(name), tokenizer)
        assert rows["answer"][:] == ["12"]


def test_the_commands_of_the_page_are_accepted_by_their_recipes(page_files):
    script = "".join(code for language, _, code in BLOCKS if language == "bash").replace("\\\n", " ")
    commands = [shlex.split(line) for line in script.splitlines()]
    assert len(commands) == 3
    for python, recipe, *args in commands:
        assert python == "python"
        parser = importlib.import_module(recipe.removesuffix(".py").replace("/", ".")).make_parser()
        parser.parse_args_and_config(args)


def test_the_table_of_built_in_tasks_is_what_the_code_says():
    rows = {row[0].strip("`"): row[1:] for row in table("Built-in tasks")}
    assert list(rows) == list(BUILT_IN)
    for name, (hub_id, configs, splits, _, steps) in rows.items():
        task = load_task(name)
        assert (steps == "yes") == (task.check_steps is not None), name
        if task.hub_id is None:
            assert hub_id.startswith("(none"), name
            continue
        assert hub_id == f"`{task.hub_id}`"
        assert splits == ", ".join(task.splits), name
        number = re.search(r"\b\d+", configs)
        if number:
            assert len(task.hub_configs) == int(number[0]), name
        else:
            assert configs == ", ".join(task.hub_configs), name


# --- Errors ----------------------------------------------------------------------------------------------------------


def refused(call, *args, **kwargs):
    with pytest.raises(ValueError) as error:
        call(*args, **kwargs)
    return str(error.value)


def two_rewards(**kwargs):
    return [1.0, 1.0]


def ids_only(completion_ids, **kwargs):
    return [1.0]


def error_messages(tokenizer, broken):
    dataset = Dataset.from_dict({"other": ["x"]})
    return [
        refused(load_task, "no_such_task"),
        refused(load_task, "nowhere.py:TASK"),
        refused(load_task, "nowhere_at_all:TASK"),
        refused(load_task, "rlmec_trl.tasks.math:NOTHING"),
        refused(load_task, "rlmec_trl.tasks.math:SUBJECTS"),
        refused(load_task, ":TASK"),
        refused(load_task, str(broken)),
        refused(Task, "mine"),
        refused(load_problems, ProblemConfig(), load_task("choice"), tokenizer),
        refused(load_problems, ProblemConfig(dataset_split="nothing"), load_task("gsm8k"), tokenizer),
        refused(to_task_rows, dataset, load_task("gsm8k"), tokenizer),
        refused(to_task_rows, dataset, Task("mine", check_math, read_row=lambda row: {}), tokenizer),
        refused(to_task_rows, dataset, Task("mine", check_math, read_row=lambda row: row["other"] + 1), tokenizer),
        refused(Task("mine", lambda *texts: texts[3]).is_correct, "a", "b", "c"),
        refused(load_task("gsm8k").stated_label, "a"),
        refused(Task, "mine", labels=("a", "*")),
        refused(Task("mine", labels=("a", "b"), read_label=lambda response: "c").stated_label, "a"),
        refused(check_by_reward, ids_only),
        refused(check_by_reward(two_rewards), "a", "b"),
    ]


def test_every_message_of_the_error_table_is_one_that_the_code_gives(tokenizer, tmp_path):
    (tmp_path / "broken.py").write_text("TASK = 1 / 0", encoding="utf-8")
    messages = error_messages(tokenizer, f"{tmp_path / 'broken.py'}:TASK")
    documented = [pattern for row in table("Errors") for pattern in re.findall(r"`([^`]+)`", row[0])]
    for pattern in documented:
        expression = ".*".join(re.escape(part.strip()) for part in pattern.split("..."))
        found = [message for message in messages if re.search(expression, message)]
        assert found, pattern
        messages = [message for message in messages if message not in found[:1]]
    assert messages == [], "an error that the table does not have"
