"""The table of what each model has cost."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text


# In two lines each, so that the table fits into 90 columns
COST_LABELS = {
    "policy_tokens": "policy\ntokens",
    "completions": "comple-\ntions",
    "teacher_edits": "teacher\nedits",
    "grm_tokens_trained": "GRM\ntrained",
    "grm_tokens_scored": "GRM\nscored",
    "grm_tokens_generated": "GRM\nwritten",
}
_UNITS = ((1e3, "k"), (1e6, "M"), (1e9, "B"))


def costs_table(costs: dict[str, dict[str, Any]], shared_stages: list[str], seeds: int) -> Table:
    """
    A table with a row for each method, and one for the search of its settings, where there was one. Figures that are 0
    in all rows are left out, and those that are not known are `-`.

    Args:
        costs (`dict[str, dict]`):
            For each method, what [`~rlmec_trl.stages.costs.report_costs`] returns.
        shared_stages (`list[str]`):
            Names of the stages that all methods share, whose costs are not in the table.
        seeds (`int`):
            Number of seeds that are added up.
    """
    title = "Costs" + (f", {seeds} seeds added up" if seeds > 1 else "")
    if shared_stages:
        title += f", without what all methods share ({', '.join(shared_stages)})"
    rows = []
    for name, figures in costs.items():
        rows.append((Text(name), figures, None))
        if "search" in figures:
            rows.append((Text("  search"), figures["search"], "dim"))
    shown = {name: label for name, label in COST_LABELS.items() if any(figures[name] != 0 for _, figures, _ in rows)}
    table = Table(title=Text(title, style="table.title"), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method", overflow="fold")
    for label in (*shown.values(), "min"):
        table.add_column(label, justify="right", no_wrap=True)
    for name, figures, style in rows:
        table.add_row(name, *(compact(figures[cost]) for cost in shown), f"{figures['seconds'] / 60:.1f}", style=style)
    return table


def compact(number: int | None) -> str:
    """A count in at most six characters, such as 950, 1.9k, 20.5M; `-` for one that is not known."""
    if number is None:
        return "-"
    if number < 1000:
        return str(number)
    # What rounds to 1000 has the next unit
    scale, unit = next((each for each in _UNITS if number < 999.95 * each[0]), _UNITS[-1])
    return f"{number / scale:.1f}{unit}"
