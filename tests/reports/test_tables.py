"""Figures of several seeds are pooled correctly, and a table shows all of them."""

import re
import statistics
from dataclasses import asdict

import pytest
from rich.console import Console

from rlmec_trl.reports.accuracy import Accuracy, wilson_interval
from rlmec_trl.reports.tables import (
    AUDIT_LABELS,
    accuracy_table,
    audit_table,
    comparison_table,
    pool_audits,
    reward_model_table,
    summarize_accuracy,
)
from rlmec_trl.stages.audit import GRMAudit


def shown(renderable, styles=False, width=120):
    console = Console(
        record=True, width=width, force_terminal=True, color_system="truecolor", file=open("/dev/null", "w")
    )
    console.print(renderable)
    return console.export_text(styles=styles)


# --- Figures ---------------------------------------------------------------------------------------------------------


def test_accuracy_of_one_seed():
    result = summarize_accuracy([{"correct": 8, "total": 10, "mean": 0.8}])
    assert result == {
        "mean": 0.8,
        "std": 0.0,
        "t_interval": None,
        "seeds": 1,
        "n": 10,
        "correct": 8,
        "total": 10,
        "interval": list(wilson_interval(8, 10)),
    }


def test_the_t_interval_over_seeds_stays_between_0_and_1():
    result = summarize_accuracy([{"correct": correct, "total": 10} for correct in (8, 9, 10)])
    assert result["t_interval"] == pytest.approx([0.9 - 4.3027 * 0.1 / 3**0.5, 1.0], abs=1e-5)


def test_accuracy_over_seeds():
    result = summarize_accuracy([{"correct": correct, "total": 10} for correct in (8, 6, 10)])
    assert result["mean"] == pytest.approx(0.8)
    assert result["std"] == pytest.approx(0.2)  # of a sample: sqrt((0 + 0.04 + 0.04) / 2)
    assert (result["seeds"], result["n"], result["correct"], result["total"]) == (3, 10, 24, 30)
    assert result["interval"] == list(wilson_interval(24, 30))


def audit_of(correct, total, ratio):
    counts = Accuracy(correct, total)
    return asdict(GRMAudit(counts, counts, 0.9, counts, counts, counts, counts, ratio))


def test_audits_are_pooled_by_their_counts():
    pooled = pool_audits([audit_of(9, 10, 1.0), audit_of(30, 90, 2.0)])
    assert list(pooled) == list(AUDIT_LABELS), "every figure has its label, in the same order"
    assert pooled["clean_kept"] == {"mean": 0.39, "correct": 39, "total": 100}
    assert pooled["edits_made_over_needed"] == statistics.fmean([1.0, 2.0])
    assert pool_audits([audit_of(0, 0, 1.0)])["flawed_flagged"] == {"mean": None, "correct": 0, "total": 0}


# --- Tables ----------------------------------------------------------------------------------------------------------


def test_the_accuracy_table_shows_counts_and_interval_and_the_best_in_bold():
    accuracy = {
        "rft": summarize_accuracy([{"correct": 6, "total": 10}]),
        "rewrite_all": summarize_accuracy([{"correct": 8, "total": 10}]),
    }
    text = shown(accuracy_table(accuracy, "Arithmetic"))
    assert "Arithmetic" in text and "±" not in text and "correct" in text
    row = next(line for line in text.splitlines() if "rewrite_all" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "rewrite_all",
        "0.800",
        "8 of 10",
        "0.490 to 0.943",
    ]
    styled = shown(accuracy_table(accuracy, "Arithmetic"), styles=True)
    assert "\x1b[1mrewrite_all" in styled and "\x1b[1mrft" not in styled


def test_several_seeds_show_their_spread():
    accuracy = {"rewrite_all": summarize_accuracy([{"correct": 8, "total": 10}, {"correct": 6, "total": 10}])}
    text = shown(accuracy_table(accuracy, "Arithmetic"))
    assert "± std over seeds" in text and "0.700 ± 0.141" in text and "14 of 20" in text


def test_names_with_brackets_are_shown_as_they_are():
    accuracy = {"[red]sft[/red]": summarize_accuracy([{"correct": 1, "total": 2}])}
    text = shown(accuracy_table(accuracy, "[bold]Task[/bold] [1]"))
    assert "[red]sft[/red]" in text and "[bold]Task[/bold] [1]" in text


def test_rationales_have_columns_of_their_own_pooled_over_seeds():
    seeds = [{"correct": 8, "total": 10, "perfect": 4, "correct_and_perfect": 3}, {"correct": 6, "total": 10}]
    seeds[1] |= {"perfect": 2, "correct_and_perfect": 1}
    result = summarize_accuracy(seeds)
    assert (result["perfect"]["mean"], result["perfect"]["correct"], result["perfect"]["total"]) == (
        pytest.approx(0.3),
        6,
        20,
    )
    assert result["correct_and_perfect"]["interval"] == list(wilson_interval(4, 20))
    text = shown(accuracy_table({"rllr": result}, "Verdicts"))
    assert "perfect" in text and "both" in text and "0.300 ± 0.141" in text and "0.200 ± 0.141" in text


def test_the_table_of_reward_models_has_a_column_for_each_kind_that_one_was_measured_on():
    one = summarize_accuracy([{"correct": 9, "total": 10}])
    text = shown(
        reward_model_table({"rllr": {"label": one}, "rlhf": {"label": one, "rationale": one}}, "Reward models")
    )
    assert "label pairs" in text and "rationale pairs" in text and text.count("0.900") == 3
    assert "rationale pairs" not in shown(reward_model_table({"rllr": {"label": one}}, "Reward models"))


def test_the_comparison_table_shows_both_intervals_and_p_where_there_are_seeds():
    of_seeds = {
        "rows": ["rllr", "[red]sft[/red]"],
        "difference": -0.125,
        "interval": [-0.25, 0.0],
        "seeds": 3,
        "n": 24,
    }
    of_seeds |= {"t_interval": [-0.3, 0.05], "only_first": 2, "only_second": 5, "p_value": 0.4531}
    text = shown(comparison_table([of_seeds], "Paired comparisons"))
    *_, first, second = [line.rstrip() for line in text.splitlines() if line.strip()]
    assert re.split(r" {2,}", first.strip()) == [
        *("rllr", "-0.125", "-0.250 to +0.000", "-0.300 to +0.050", "2 : 5", "0.453")
    ]
    assert second == "   vs [red]sft[/red]"
    one_seed = of_seeds | {"seeds": 1, "t_interval": None, "p_value": 1e-9}
    text = shown(comparison_table([one_seed], "Paired comparisons"))
    assert "over seeds" not in text and "<0.001" in text


def test_a_comparison_of_long_names_over_seeds_fits_into_90_columns_and_paths_are_not_cut_off():
    figures = {"difference": -0.125, "interval": [-0.25, -0.1], "t_interval": [-0.3, -0.05], "p_value": 1e-9}
    figures |= {"seeds": 5, "only_first": 350, "only_second": 100}
    names = ["online_imitation_place", "rewrite_all_online"]
    text = shown(comparison_table([figures | {"rows": names}], "Paired comparisons"), width=90)
    row = next(line for line in text.splitlines() if names[0] in line)
    assert "-0.250 to -0.100  -0.300 to -0.050  350 : 100  <0.001" in row and f"vs {names[1]}" in text
    paths = [f"runs/arithmetic/seed-0/results/{name}-test.json" for name in names]
    text = shown(comparison_table([figures | {"rows": paths}], "Paired comparisons"), width=90)
    lines = text.splitlines()
    width = next(line.index("differ-") for line in lines if "differ-" in line)
    column = "".join(line[:width].strip() for line in lines)
    assert all(path in column for path in paths)


def test_the_audit_table_has_every_figure():
    text = shown(audit_table(pool_audits([audit_of(9, 10, 1.25), audit_of(0, 0, 1.25)]), "Reward model"))
    assert all(label in text for label in AUDIT_LABELS.values())
    assert text.count("9 of 10") == 6 and "1.250" in text
    empty = shown(audit_table(pool_audits([audit_of(0, 0, float("nan"))]), "Reward model"))
    assert empty.count("0 of 0") == 6 and "nan" in empty


def test_what_an_audit_could_not_measure_does_not_count_in_the_mean():
    audits = [audit_of(9, 10, 1.0) | {"auc": None}, audit_of(9, 10, 3.0), audit_of(9, 10, 2.0) | {"auc": None}]
    assert pool_audits(audits)["auc"] == audits[1]["auc"]
    nothing = pool_audits(audits[:1])
    assert nothing["auc"] is None
    assert "-" in shown(audit_table(nothing, "Reward model"))
