"""The report stage: a file of its own, from one or two datasets."""

import json

import pytest
from datasets import Dataset

from recipes.report import main, make_parser
from rlmec_trl.data.errors import ConfigError
from rlmec_trl.data.tokens import encode_completion
from rlmec_trl.reports.html_report import is_report
from rlmec_trl.stages.output import OutputError
from rlmec_trl.stages.report import ReportConfig, make_charts, parse_runs, run, short_names
from rlmec_trl.stages.settings import parse_settings


@pytest.fixture
def paths(tokenizer, tmp_path):
    """Scored rows in two folders, and a tokenizer."""
    ids = encode_completion(tokenizer, "59 - 16 is 43")
    row = {"prompt": "Tom has 59 nuts.", "completion_ids": ids, "correct": True, "rewrite_ids": ids}
    for name, prob in (("scored", 0.9), ("scored_2", 0.4)):
        rows = [row | {"prompt": f"Problem {number}", "token_probs": [prob] * len(ids)} for number in range(3)]
        Dataset.from_list(rows).save_to_disk(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return {"dataset_name": str(tmp_path / "scored"), "tokenizer": str(tmp_path / "tokenizer")}


def test_the_recipe_writes_a_report_and_names_it(paths, tmp_path, capsys):
    target = tmp_path / "new" / "report.html"
    settings = paths | {"output_file": target, "other_dataset_name": tmp_path / "scored_2", "max_rows": 2}
    words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    main(*parse_settings(make_parser(), [*words, "--negative_reward_range", "-1", "0"]))
    assert f"Report of 2 samples, to open in a browser. Saved to {target} in " in capsys.readouterr().out
    page = target.read_text(encoding="utf-8")
    assert is_report(target) and "<title>scored and scored_2</title>" in page
    assert str(tmp_path) not in page, "no path of a machine"
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]


def test_only_a_report_is_replaced(paths, tmp_path):
    target = tmp_path / "report.html"
    run(ReportConfig(**paths, output_file=str(target)))
    before = target.stat().st_mtime_ns
    run(ReportConfig(**paths, output_file=str(target), title="Another"))
    assert target.stat().st_mtime_ns > before and "<title>Another</title>" in target.read_text()
    target.write_text("<html>my thesis</html>")
    with pytest.raises(OutputError, match=r"report\.html' exists and is not a result of this stage"):
        run(ReportConfig(**paths, output_file=str(target)))
    assert target.read_text() == "<html>my thesis</html>"


def test_a_report_that_cannot_be_written_is_refused_by_name(paths, tmp_path):
    (tmp_path / "file").write_text("a file where a folder should be")
    with pytest.raises(OutputError, match=r"report\.html' cannot be written"):
        run(ReportConfig(**paths, output_file=str(tmp_path / "file" / "report.html")))


def test_a_link_stays_and_what_it_leads_to_is_replaced(paths, tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    target, link = tmp_path / "site" / "index.html", tmp_path / "report.html"
    link.symlink_to(target)
    monkeypatch.setenv("HOME", str(tmp_path))
    for title in ("One", "Two"):
        run(ReportConfig(**paths, output_file="~/report.html", title=title))
        assert link.is_symlink() and f"<title>{title}</title>" in target.read_text()
    target.write_text("mine")
    with pytest.raises(OutputError, match="is not a result of this stage"):
        run(ReportConfig(**paths, output_file=str(link)))


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_a_name_that_no_file_can_have_is_refused(paths, tmp_path, name):
    with pytest.raises(OutputError, match="is not a path"):
        run(ReportConfig(**paths, output_file=str(tmp_path / name)))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("positive_reward_range", [0.5, 0.0]), ("reward_baseline", 1.5), ("negative_credit", "last"), ("max_rows", 0)],
)
def test_settings_are_checked_as_those_of_the_trainer(setting, value):
    with pytest.raises(ConfigError, match=setting):
        ReportConfig("data", "tokenizer", "report.html", **{setting: value})


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("/home/me/runs/scored", None), ["scored"]),
        (("/home/me/runs/scored", "/home/me/runs/scored_2"), ["scored", "scored_2"]),
        (("/home/me/a/scored", "/home/me/b/scored"), ["a/scored", "b/scored"]),
        (("user/scored", "user/scored"), ["user/scored", "user/scored"]),
    ],
)
def test_datasets_are_called_by_as_few_parts_of_their_paths_as_needed(paths, names):
    assert short_names(*paths) == names


def test_the_charts_are_of_the_samples_their_steps_and_the_trainings(paths, tokenizer, tmp_path):
    row = {"reference": "59 - 16 = 43", "answer": "43", "correct": False, "rewrite_ids": None}
    texts = {"prompt": "Tom has 59 nuts, loses 16.", "completion": "59 - 16 is 44 ; The answer is 44"}
    ids = encode_completion(tokenizer, texts["completion"])
    rows = Dataset.from_list([row | texts | {"completion_ids": ids, "token_probs": [0.9] * len(ids)}])
    (tmp_path / "policy").mkdir()
    state = {"global_step": 2, "log_history": [{"step": step, "reward": 0.5} for step in (1, 2)]}
    (tmp_path / "policy" / "trainer_state.json").write_text(json.dumps(state))

    def titles(**settings):
        config = ReportConfig(**paths, output_file="report.html", **settings)
        return [chart["title"] for chart in make_charts(config, {"scored": rows}, tokenizer)]

    of_samples = titles()
    assert "Token probability by outcome" in of_samples
    more = titles(task="arithmetic", runs=[f"policy={tmp_path / 'policy'}"])
    assert more[: len(of_samples)] == of_samples
    assert more[len(of_samples) :][:3] == [
        "Calibration of the reward model",
        "ROC of the reward model",
        "Reward by step",
    ]


def test_runs_are_names_with_paths():
    assert parse_runs(["a=runs/a", "b=data,runs/b=2,b.json"]) == {"a": ["runs/a"], "b": ["data", "runs/b=2", "b.json"]}


@pytest.mark.parametrize("runs", [["runs/a"], ["=runs/a"], ["a="], ["a=runs/a,"], ["a=runs/a", "a=runs/b"]])
def test_runs_without_a_name_or_a_path_are_refused(runs):
    with pytest.raises(ConfigError, match="`runs`: "):
        parse_runs(runs)
