"""The code in docs/teachers.md runs."""

import ast
import importlib
import re
from pathlib import Path

import pytest
from datasets import Dataset

from rlmec_trl.tasks.task import load_task
from rlmec_trl.tasks.wording import policy_prompt
from rlmec_trl.teachers.editors import edit_dataset, load_editor
from rlmec_trl.teachers.rationales import justify_dataset, load_justifier


PAGE = (Path(__file__).parents[2] / "docs" / "teachers.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_what_the_page_imports_exists(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_teacher_of_the_page_edits_a_dataset(tmp_path):
    (code,) = [code for code in BLOCKS if "my_teacher.py" in code]
    (tmp_path / "my_teacher.py").write_text(code)
    reference = "2 + 3 = 5\n5 * 4 = 20\nThe answer is 20"
    completions = [reference, reference.replace("20", "21"), "The answer is 21"]
    rows = {"prompt": "(2 + 3) * 4", "reference": reference, "answer": "20"}
    dataset = Dataset.from_list(
        [rows | {"completion": completion, "correct": completion == reference} for completion in completions]
    )
    edited, outcomes = edit_dataset(dataset, load_editor(f"{tmp_path}/my_teacher.py:edit"), load_task("math"))
    assert outcomes == {"unchanged": 1, "rewritten": 1, "another number of steps": 1}
    assert edited["rewrite"][:] == [reference, reference, None]
    assert edited["error_step"][:] == [-1, 1, -1]


def test_the_writer_of_rationales_of_the_page_justifies_labels(tmp_path):
    (code,) = [code for code in BLOCKS if "my_rationales.py" in code]
    (tmp_path / "my_rationales.py").write_text(code)
    task = load_task("sst2")
    prompts = [policy_prompt(task.wording, f"Sentence: {text}") for text in ("a great film", "a film")]
    dataset = Dataset.from_dict({"prompt": prompts, "answer": ["positive"] * 2, "label": ["negative"] * 2})
    found, outcomes = justify_dataset(dataset, load_justifier(f"{tmp_path}/my_rationales.py:justify"), task)
    assert outcomes == {"accepted": 1, "no clue": 1}
    assert found["completion"][:] == ["It calls the film great.\nThe answer is negative", None]
