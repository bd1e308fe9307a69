"""Shipped files are found from every folder, in a clone and in an installed package."""

from pathlib import Path

import pytest

from rlmec_trl.data import shipped
from rlmec_trl.data.shipped import find_file, recipes_folder
from rlmec_trl.stages.pipeline import plan_run
from rlmec_trl.stages.pipeline_file import load_pipeline
from rlmec_trl.tasks.task import load_object


ROOT = Path(__file__).parents[2]


def test_an_installed_package_has_its_own_recipes(tmp_path, monkeypatch):
    assert recipes_folder() == ROOT / "recipes"
    (tmp_path / "rlmec_trl" / "recipes").mkdir(parents=True)
    (tmp_path / "recipes").mkdir()  # of another package
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "rlmec_trl")
    assert recipes_folder() == tmp_path / "rlmec_trl" / "recipes"


@pytest.mark.parametrize(
    ("name", "folders", "found"),
    [
        ("recipes/arithmetic/pipeline.yaml", (), True),
        ("arithmetic/pipeline.yaml", (), False),
        ("arithmetic/pipeline.yaml", ("",), True),
        ("pipeline.yaml", ("configs", "arithmetic"), True),
        ("recipes/arithmetic", (), False),  # a folder
        ("recipes/../recipes/arithmetic/pipeline.yaml", (), False),
        ("recipes/ar\0ithmetic", ("",), False),
        ("", ("",), False),
    ],
)
def test_a_shipped_file_is_found_by_the_path_that_it_has_in_a_clone(tmp_path, monkeypatch, name, folders, found):
    monkeypatch.chdir(tmp_path)
    assert find_file(name, *folders) == (str(ROOT / "recipes/arithmetic/pipeline.yaml") if found else name)


def test_a_file_of_the_user_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "recipes" / "arithmetic" / "careless_teachers.py"
    mine.parent.mkdir(parents=True)
    mine.write_text("careless_10 = 'mine'\n")
    assert load_object("recipes/arithmetic/careless_teachers.py:careless_10") == "mine"


def test_a_pipeline_means_the_same_outside_of_the_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    steps = plan_run(load_pipeline("recipes/arithmetic/sweeps.yaml"), 0)
    monkeypatch.chdir(tmp_path)
    assert plan_run(load_pipeline(find_file("recipes/arithmetic/sweeps.yaml")), 0) == steps
    (teacher,) = {step.settings["teacher"] for step in steps if step.name == "edits_careless_10"}
    assert callable(load_object(teacher))
