"""The sweeps of the built-in task: the pipeline, its careless teachers and its figure."""

import importlib
import json
from pathlib import Path

import pytest

from rlmec_trl.data.errors import ConfigError
from rlmec_trl.stages.audit import AuditConfig
from rlmec_trl.stages.pipeline import plan_run
from rlmec_trl.stages.pipeline_file import load_pipeline
from rlmec_trl.tasks.arithmetic import TASK, check_steps, edit, make_arithmetic, write_solution


ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "recipes" / "arithmetic"


@pytest.fixture(scope="module")
def plot():
    return importlib.import_module("recipes.arithmetic.plot_sweeps")


@pytest.fixture(scope="module")
def sweeps():
    return load_pipeline(FOLDER / "sweeps.yaml")


@pytest.fixture
def report(sweeps):
    rows = [stage.evaluate for stage in sweeps.stages if stage.evaluate is not None]
    return {"accuracy": {row: {"mean": 0.5 + 0.01 * i, "interval": [0.4, 1.0]} for i, row in enumerate(rows)}}


def test_the_sweeps_share_the_finished_stages_of_the_demo(sweeps):
    demo = load_pipeline(FOLDER / "pipeline.yaml")
    steps = plan_run(demo, 0)
    assert plan_run(sweeps, 0)[: len(steps)] == steps
    assert sweeps.output_dir == demo.output_dir and sweeps.report != demo.report


def test_every_row_of_the_sweeps_is_in_the_figure(plot, sweeps):
    drawn = {row for _, _, rows in plot.PANELS for row in rows.values()}
    demo = load_pipeline(FOLDER / "pipeline.yaml")
    rows = {stage.evaluate for stage in sweeps.stages} - {stage.evaluate for stage in demo.stages}
    assert drawn == rows | {"rlmec_paper"}


def test_the_figure_and_the_table_have_every_number(plot, report, tmp_path, monkeypatch, capsys):
    (tmp_path / "sweeps.json").write_text(json.dumps(report))
    figures = []
    for name in ("first.svg", "second.svg"):
        arguments = ["--report", str(tmp_path / "sweeps.json"), "--output_file", str(tmp_path / "new" / name)]
        monkeypatch.setattr("sys.argv", ["plot_sweeps.py", *arguments])
        plot.main()
        figures.append((tmp_path / "new" / name).read_text())
    assert figures[0] == figures[1], "the same figure each time"
    shown = capsys.readouterr().out
    for title, label, rows in plot.PANELS:
        assert title in figures[0] and label in figures[0]
        for value, row in rows.items():
            mean = report["accuracy"][row]["mean"]
            assert f"| {title}: {label} | {value} | {mean:.3f} | 0.400 to 1.000 |" in shown


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"accuracy": {"start": {}}}'])
def test_another_file_than_the_report_is_refused(content, plot, tmp_path, monkeypatch):
    (tmp_path / "sweeps.json").write_text(content)
    monkeypatch.setattr("sys.argv", ["plot_sweeps.py", "--report", str(tmp_path / "sweeps.json")])
    with pytest.raises(SystemExit, match="sweeps.yaml"):
        plot.main()


@pytest.mark.parametrize(("name", "share"), [("careless_10", 0.1), ("careless_30", 0.3)])
def test_a_careless_teacher_is_correct_but_not_minimal_in_its_share_of_corrections(name, share):
    teacher = getattr(importlib.import_module("recipes.arithmetic.careless_teachers"), name)
    problems = [TASK.raw_problem(prompt) for prompt in make_arithmetic(warmup=1, train=600)["train"]["prompt"]]
    wrong = [write_solution((11, 12, 13, 14), ["makes", "is", "="]) for _ in problems]
    minimal = edit(problems, wrong, wrong)
    found = teacher(problems, wrong, wrong)
    assert all(all(check_steps(problem, text)) for problem, (_, text) in zip(problems, found, strict=True))
    differing = sum(one != other for one, other in zip(found, minimal, strict=True))
    # Of 27 draws of connectives, one gives those of the attempt
    assert abs(differing / len(problems) - share * 26 / 27) < 0.05
    assert teacher(problems[::-1], wrong, wrong) == found[::-1], "whatever the order"
    correct = [text for _, text in minimal]
    assert teacher(problems, wrong, correct) == [(-1, text) for text in correct], "correct attempts stay as they are"


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.5, float("nan")])
def test_a_threshold_of_the_audit_is_a_probability(threshold):
    with pytest.raises(ConfigError, match="threshold"):
        AuditConfig("scored", "edits", "policy", "arithmetic", threshold=threshold)
