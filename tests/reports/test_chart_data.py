"""The numbers of every chart against a naive count, and the drawing of them in a browser."""

import json
import math
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

import rlmec_trl.reports
from rlmec_trl.reports.accuracy import Accuracy, wilson_interval
from rlmec_trl.reports.chart_data import Judgements, calibration_chart, roc_chart, scored_charts
from rlmec_trl.reports.run_charts import RunLog, run_charts


WEB = Path(rlmec_trl.reports.__file__).parent / "web"


def make_rows(num_rows=60, seed=0):
    rng = random.Random(seed)
    rows = []
    for index in range(num_rows):
        ids = [rng.randrange(9) for _ in range(rng.randint(1, 20))]
        probs = [rng.choice([None, 0.0, 0.25, 0.5, 1.0, rng.random()]) for _ in ids]
        rewrite = None if index % 4 == 0 else [rng.randrange(9) if rng.random() < 0.2 else token for token in ids]
        correct = (True, False, False)[index % 3]
        rows.append({"completion_ids": ids, "rewrite_ids": rewrite, "token_probs": probs, "correct": correct})
    return rows


def by_id(charts):
    return {chart["id"]: chart for chart in charts}


def counts(chart, name):
    return next(series["count"] for series in chart["series"] if series["name"].startswith(name))


def naive_counts(values, edges):
    """Bins hold their lower edge, the last one its upper edge too."""
    result = [0] * (len(edges) - 1)
    for value in values:
        for bin in range(len(result)):
            last = bin == len(result) - 1
            if edges[bin] <= value < edges[bin + 1] or (last and value == edges[-1]):
                result[bin] += 1
    return result


def naive_distance(source, target):
    row = list(range(len(target) + 1))
    for i, a in enumerate(source, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(target, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


# --- Scored samples --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_dataset", [False, True])
def test_probabilities_are_counted_by_outcome(as_dataset):
    rows = make_rows()
    chart = by_id(scored_charts({"grm": Dataset.from_list(rows) if as_dataset else rows}))["probabilities-0"]
    for name, correct in (("tokens of correct samples", True), ("tokens of incorrect samples", False)):
        values = [p for row in rows if row["correct"] is correct for p in row["token_probs"] if p is not None]
        expected = naive_counts(values, chart["edges"])
        series = next(series for series in chart["series"] if series["name"].startswith(name))
        assert series["count"] == expected
        assert series["y"] == pytest.approx([count / len(values) for count in expected])
        assert series["name"] == f"{name} ({len(values)})"
    first = [next((p for p in row["token_probs"] if p is not None and p < 0.5), None) for row in rows]
    expected = naive_counts([p for p in first if p is not None], chart["edges"])
    assert counts(chart, "first flagged") == expected


def test_first_flagged_position_is_relative_to_the_length():
    rows = make_rows()
    charts = by_id(scored_charts({"grm": rows}, threshold=0.3))
    chart = charts["first-flagged-0"]
    for name, correct in (("correct samples", True), ("incorrect samples", False)):
        where = []
        members = [row for row in rows if row["correct"] is correct]
        for row in members:
            flagged = [i for i, p in enumerate(row["token_probs"]) if p is not None and p < 0.3]
            where += [flagged[0] / len(row["token_probs"])] if flagged else []
        assert counts(chart, name) == naive_counts(where, chart["edges"])
        rated = sum(any(p is not None for p in row["token_probs"]) for row in members)
        assert f"{len(where)} of {rated} {name}" in chart["note"]
    assert "0.3" in charts["probabilities-0"]["note"]


def test_edit_distances_are_those_of_verified_rewrites():
    rows = make_rows()
    chart = by_id(scored_charts({"grm": rows}))["edit-distance-0"]
    for name, correct in (("correct samples", True), ("incorrect samples", False)):
        chosen = [row for row in rows if row["correct"] is correct and row["rewrite_ids"] is not None]
        expected = naive_counts(
            [naive_distance(row["completion_ids"], row["rewrite_ids"]) for row in chosen], chart["edges"]
        )
        assert counts(chart, name) == expected
    assert chart["labels"][:3] == ["0", "1", "2"]
    assert "45 of 60 samples" in chart["note"]


def test_long_edits_share_bins_and_unchanged_rewrites_keep_their_own():
    ids = list(range(500))
    rows = [
        {"completion_ids": ids, "rewrite_ids": ids[:-removed] if removed else ids, "correct": False}
        for removed in (0, 1, 20, 21, 333)
    ]
    chart = by_id(scored_charts({"grm": rows}))["edit-distance-0"]
    found = dict(zip(chart["labels"], counts(chart, "incorrect"), strict=True))
    assert {label: count for label, count in found.items() if count} == {
        "0": 1, "1 to 10": 1, "11 to 20": 1, "21 to 30": 1, "331 to 340": 1
    }  # fmt: skip
    assert len(chart["labels"]) == len(chart["edges"]) - 1


def test_several_sets_have_histograms_of_their_own():
    charts = scored_charts({"first": make_rows(), "second": make_rows(seed=1)})
    assert [chart["id"] for chart in charts][:2] == ["probabilities-0", "probabilities-1"]
    assert charts[1]["title"] == "Token probability by outcome: second"


def test_infinite_values_are_no_probabilities():
    charts = by_id(scored_charts({"grm": [{"token_probs": [-math.inf, 0.1], "correct": False}]}))
    assert charts["first-flagged-0"]["series"][0]["count"].index(1) == 10
    assert charts["probabilities-0"]["series"][0]["name"].endswith("(1)")


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"completion_ids": [1]}],
        [{"token_probs": None, "correct": None}],
        [{"token_probs": [], "correct": True}],
        [{"token_probs": [None, None], "correct": True}],
        [{"token_probs": [math.nan, math.inf], "correct": False}],
        [{"token_probs": [1.0], "correct": True}, {"token_probs": None, "correct": False}],
        [{"token_probs": [0.1], "correct": None, "completion_ids": [1], "rewrite_ids": [1]}],
    ],
)
def test_rows_with_nothing_to_show_break_no_chart(rows):
    charts = scored_charts({"grm": rows}, {"grm": Judgements("tokens", np.array([]), np.array([], dtype=bool))})
    json.dumps(charts, allow_nan=False)
    assert all(chart["series"] for chart in charts)


# --- Where steps can be checked --------------------------------------------------------------------------------------


def judgements(size=300, seed=0):
    rng = np.random.default_rng(seed)
    probs = rng.choice([np.nan, 0.0, 0.1, 0.55, 0.9, 1.0], size)  # ties, and both ends of the bins
    probs[: size // 2] = rng.random(size // 2)
    return Judgements("tokens", probs, rng.random(size) < 0.2 + 0.6 * np.nan_to_num(probs))


def test_calibration_counts_the_correct_tokens_of_each_bin():
    one = judgements()
    (series,) = calibration_chart({"grm": one}, num_bins=5)["series"]
    pairs = [(p, c) for p, c in zip(one.probs, one.correct, strict=True) if not math.isnan(p)]
    expected, error = [], 0.0
    for bin in range(5):
        inside = [(p, c) for p, c in pairs if min(int(p * 5), 4) == bin]
        if inside:
            mean, share = sum(p for p, _ in inside) / len(inside), sum(c for _, c in inside) / len(inside)
            error += len(inside) / len(pairs) * abs(mean - share)
            expected.append((mean, share, *wilson_interval(int(sum(c for _, c in inside)), len(inside)), len(inside)))
    for name, values in zip(("x", "y", "low", "high", "count"), zip(*expected, strict=True), strict=True):
        assert series[name] == pytest.approx(values)
    note = calibration_chart({"grm": one}, num_bins=5)["note"]
    assert f"calibration error {error:.3f}" in note and f"{len(pairs)} tokens" in note


def test_the_area_under_the_roc_curve_is_the_share_of_ordered_pairs():
    one = judgements()
    chart = roc_chart({"grm": one}, threshold=0.5)
    pairs = [(p, c) for p, c in zip(one.probs, one.correct, strict=True) if not math.isnan(p)]
    right, wrong = [p for p, c in pairs if c], [p for p, c in pairs if not c]
    area = sum((w < r) + (w == r) / 2 for w in wrong for r in right) / (len(wrong) * len(right))
    assert f"area under the curve {area:.3f}" in chart["note"]
    curve, marker = chart["series"]
    assert marker["x"] == [pytest.approx(sum(p < 0.5 for p in right) / len(right))]
    assert marker["y"] == [pytest.approx(sum(p < 0.5 for p in wrong) / len(wrong))]
    # Every point of the curve is that of a threshold
    thresholds = sorted(set(right + wrong))
    naive = {(0.0, 0.0)} | {
        (round(sum(p <= t for p in right) / len(right), 9), round(sum(p <= t for p in wrong) / len(wrong), 9))
        for t in thresholds
    }
    points = [(round(x, 9), round(y, 9)) for x, y in zip(curve["x"], curve["y"], strict=True)]
    assert set(points) <= naive
    assert points[0] == (0.0, 0.0) and points[-1] == (1.0, 1.0) and len(points) <= 200


def test_a_curve_of_many_points_is_thinned_and_keeps_its_area():
    rng = np.random.default_rng(0)
    correct = rng.random(20_000) < 0.9
    one = Judgements("tokens", np.where(correct, rng.random(20_000) ** 0.3, rng.random(20_000)), correct)
    chart = roc_chart({"grm": one})
    x, y = (np.array(chart["series"][0][axis]) for axis in "xy")
    area = float(chart["note"].split("curve ")[1].rstrip("."))
    assert len(x) <= 200
    assert (np.diff(x) * (y[1:] + y[:-1]) / 2).sum() == pytest.approx(area, abs=2e-3)


@pytest.mark.parametrize("correct", [True, False])
def test_a_class_without_members_has_no_curve(correct):
    one = Judgements("steps", np.array([0.5, 1.0, math.nan]), np.array([correct] * 3))
    charts = scored_charts({"grm": []}, {"grm": one})
    json.dumps(charts, allow_nan=False)
    calibration, roc = charts
    assert roc["series"] == [] and f"no {'incorrect' if correct else 'correct'} steps" in roc["note"]
    assert calibration["series"][0]["y"] == [float(correct)] * 2


# --- Trainings -------------------------------------------------------------------------------------------------------


def test_runs_are_compared_by_step_and_by_completions():
    logs = [{"step": 5, "reward": 0.25, "token_reward/grm/mean": 0.1}, {"step": 10, "reward": math.nan}]
    online = RunLog([*logs, {"step": 10, "eval_reward": 0.5}], [40, 80, 80], {}, 80)
    offline = RunLog([{"step": 3, "token_reward/mean": -0.1}], [1000], {"test": Accuracy(6, 10)}, 1000)
    charts = by_id(run_charts({"online": online, "offline": offline}))
    json.dumps(list(charts.values()), allow_nan=False)
    (reward,) = charts["reward-by-step"]["series"]
    assert (reward["name"], reward["x"], reward["y"]) == ("online", [5], [0.25])
    by_step = charts["token-reward-by-step"]["series"]
    assert [(series["name"], series["color"]) for series in by_step] == [("online", 0), ("offline", 1)]
    evaluated, tested = charts["accuracy-by-completions"]["series"]
    assert (evaluated["name"], evaluated["x"], evaluated["y"]) == ("online, evaluations", [80], [0.5])
    low, high = wilson_interval(6, 10)
    assert (tested["name"], tested["x"], tested["y"]) == ("offline, test", [1000], [0.6])
    assert (tested["low"], tested["high"], tested["color"]) == ([low], [high], 1)


def test_rewards_that_are_no_accuracy_are_not_drawn_as_one():
    run = RunLog([{"step": 1, "reward": 1.5}, {"step": 2, "reward": 0.5}], [1, 2], {"test": Accuracy(0, 0)}, 2)
    assert [chart["id"] for chart in run_charts({"run": run})] == ["reward-by-step"]
    assert run_charts({"run": RunLog([], [], {}, None)}) == []


# --- In a browser ----------------------------------------------------------------------------------------------------


def test_charts_are_drawn_and_texts_stay_texts(tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    name = "<img src=x onerror=\"document.title='hacked'\">"
    runs = {name: RunLog([{"step": 1, "reward": 0.5}], [8], {"test": Accuracy(3, 4)}, 8)}
    charts = scored_charts({name: make_rows(), "b": make_rows(seed=1)}, {name: judgements()}) + run_charts(runs)
    content = json.dumps(charts, allow_nan=False).replace("<", "\\u003c")
    script = (
        (WEB / "charts.js").read_text(encoding="utf-8")
        + f"""
    drawCharts(document.getElementById("charts"), {content});
    for (const details of document.querySelectorAll("details")) details.open = true;
    setTimeout(() => {{
      for (const svg of document.querySelectorAll("svg[role=img]")) {{
        const box = svg.getBoundingClientRect();
        const at = {{ clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 }};
        svg.dispatchEvent(new PointerEvent("pointermove", at));
      }}
      const paths = [...document.querySelectorAll("svg [d], svg [x], svg [y], svg [transform]")];
      const broken = paths.filter((path) => /NaN|Infinity|undefined/.test(path.outerHTML)).length;
      const drawn = document.querySelectorAll("svg[role=img] .line, svg[role=img] .mark").length;
      const tips = [...document.querySelectorAll(".chart-tip")].filter((tip) => !tip.hidden && tip.textContent).length;
      const tables = document.querySelectorAll("tbody").length;
      const found = {{ broken, drawn: drawn > 20, tips, tables, images: document.querySelectorAll("img").length }};
      document.getElementById("found").textContent = JSON.stringify(found);
    }}, 200);  // widths have settled
    """
    )
    page = tmp_path / "charts.html"
    style = (WEB / "charts.css").read_text(encoding="utf-8")
    page.write_text(
        f'<!doctype html><meta charset="utf-8"><title>charts</title><style>{style}</style>'
        f'<div id="charts"></div><pre id="found"></pre><script>{script}</script>',
        encoding="utf-8",
    )
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [browser, *flags, "--virtual-time-budget=2000", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    found = json.loads(shown.split('<pre id="found">')[1].split("</pre>")[0])
    assert found == {"broken": 0, "drawn": True, "tips": len(charts), "tables": len(charts), "images": 0}
    assert "<title>charts</title>" in shown
