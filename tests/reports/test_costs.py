"""The table of costs: compact numbers, what is left out, what is not known."""

import pytest
from rich.console import Console

from rlmec_trl.reports.costs import COST_LABELS, compact, costs_table


def printed(*args, width=80):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(costs_table(*args))
    return capture.get()


def figures(**changes):
    return dict.fromkeys(COST_LABELS, 0) | {"seconds": 90.0} | changes


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        *((None, "-"), (0, "0"), (999, "999"), (1000, "1.0k"), (1949, "1.9k"), (999_949, "999.9k")),
        *((999_950, "1.0M"), (20_540_000, "20.5M"), (7_100_000_000, "7.1B"), (7_100_000_000_000, "7100.0B")),
    ],
)
def test_counts_are_shown_with_one_decimal(number, shown):
    assert compact(number) == shown


def test_a_row_for_each_method_and_its_search():
    costs = {
        "start": figures(seconds=0),
        "grpo": figures(policy_tokens=816_430, completions=16_000, search=figures(policy_tokens=5, seconds=60)),
        "old": figures(policy_tokens=12, completions=None),
    }
    shown = printed(costs, ["a", "b"], 1)
    assert " ".join(shown.split()).startswith("Costs, without what all methods share (a, b) policy")
    *_, start, grpo, search, old = [line for line in shown.split("\n") if line.strip()]
    assert start.split() == ["start", "0", "0", "0.0"]
    assert grpo.split() == ["grpo", "816.4k", "16.0k", "1.5"]
    assert search.split() == ["search", "5", "0", "1.0"]
    assert old.split() == ["old", "12", "-", "1.5"]


def test_figures_that_are_zero_in_all_rows_are_left_out_and_unknown_ones_are_not():
    shown = printed({"a": figures(completions=None, search=figures(teacher_edits=3))}, [], 3)
    assert "Costs, 3 seeds added up" in shown and "share" not in shown
    assert "tions" in shown and "teacher" in shown and "GRM" not in shown and "policy" not in shown


def test_all_figures_of_long_names_fit_into_80_columns():
    full = dict.fromkeys(COST_LABELS, 999_949_000) | {"seconds": 60 * 999}
    shown = printed({"rewrite_all_grpo": full}, ["task"], 1)
    (row,) = [line for line in shown.split("\n") if "rewrite_all_grpo" in line]
    assert row.split() == ["rewrite_all_grpo", *["999.9M"] * 6, "999.0"]


def test_names_with_brackets_are_shown_as_they_are():
    shown = printed({"[bold]a[/bold]": figures()}, ["[b]"], 1, width=100)
    assert "[bold]a[/bold]" in shown and "([b])" in shown
