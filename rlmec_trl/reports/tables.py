"""Tables of results: the accuracy of policies, their comparisons, and the audit of a reward model."""

import statistics
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from .accuracy import wilson_interval
from .t_intervals import t_interval


AUDIT_LABELS = {
    "first_wrong_flagged": "first incorrect tokens that are flagged",
    "clean_kept": "clean tokens that are not flagged",
    "auc": "AUC, first incorrect against clean tokens",
    "wrong_rewritten": "incorrect samples rewritten with every step correct",
    "verified_flawed": "verified rewrites with an incorrect step",
    "flawed_flagged": "correct answers with an incorrect step that are flagged",
    "error_located": "rewrites that begin at the first incorrect step",
    "edits_made_over_needed": "edits made over edits needed",
}


# Counts of responses that evaluations of a task with rationales have beside `correct`
RATIONALE_LABELS = {"perfect": "perfect rationale", "correct_and_perfect": "both"}
PAIR_LABELS = {"label": "label pairs", "rationale": "rationale pairs"}


def summarize_accuracy(results: Sequence[dict[str, int]]) -> dict[str, Any]:
    """
    Accuracy of one method over its seeds.

    Args:
        results (`Sequence[dict]`):
            `correct` and `total` of each seed and, of a task that rates rationales, `perfect` and
            `correct_and_perfect`.

    Returns:
        `dict`: `mean` and `std` over seeds (0.0 with one), the 95% `t_interval` of the mean over seeds (`None` with
        one), `seeds`, `n` problems for each seed, `correct` and `total` over all seeds, and the 95% Wilson `interval`
        of their ratio. Where the results have them, `perfect` and `correct_and_perfect` with the same figures for
        these counts.
    """
    counts = [name for name in RATIONALE_LABELS if name in results[0]]
    return _summarize(results, "correct") | {name: _summarize(results, name) for name in counts}


def _summarize(results: Sequence[dict[str, int]], name: str) -> dict[str, Any]:
    means = [result[name] / result["total"] for result in results]
    correct, total = (sum(result[key] for result in results) for key in (name, "total"))
    over_seeds = t_interval(means, 0.0, 1.0)
    return {
        "mean": statistics.fmean(means),
        "std": statistics.stdev(means) if len(means) > 1 else 0.0,
        "t_interval": None if over_seeds is None else list(over_seeds),
        "seeds": len(means),
        "n": results[0]["total"],
        "correct": correct,
        "total": total,
        "interval": list(wilson_interval(correct, total)),
    }


def pool_audits(audits: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """
    One audit over all seeds: counts are added up, the other figures averaged.

    Args:
        audits (`Sequence[dict]`):
            Each is a [`~rlmec_trl.stages.audit.GRMAudit`] as a `dict`.

    Returns:
        `dict`: for each count `mean` (`None` if there is nothing to count), `correct` and `total`; for the others the
        mean.
    """
    pooled = {}
    for name, value in audits[0].items():
        if isinstance(value, dict):
            correct, total = (sum(audit[name][key] for audit in audits) for key in ("correct", "total"))
            pooled[name] = {"mean": correct / total if total else None, "correct": correct, "total": total}
        else:
            # `None` in an audit that could not measure it
            measured = [audit[name] for audit in audits if audit[name] is not None]
            pooled[name] = statistics.fmean(measured) if measured else None
    return pooled


def accuracy_table(accuracy: dict[str, dict[str, Any]], title: str) -> Table:
    """
    A table with a row for each method: its accuracy, counts and 95% interval, the best in bold. Of a task with
    rationales, the share of perfect ones and of responses that are correct, too, have columns of their own.

    Args:
        accuracy (`dict[str, dict]`):
            For each method, what [`summarize_accuracy`] returns.
        title (`str`):
            Title of the table.
    """
    several = any(result["seeds"] > 1 for result in accuracy.values())
    # As `Text`: names from a file may hold brackets, which are not markup
    table = Table(title=Text(title, style="table.title"), title_justify="left")
    table.add_column("method")
    table.add_column("accuracy" + (" ± std over seeds" if several else ""), justify="right")
    table.add_column("correct", justify="right")
    table.add_column("95% interval", justify="right")
    shares = {name: label for name, label in RATIONALE_LABELS.items() if name in next(iter(accuracy.values()))}
    for label in shares.values():
        table.add_column(label, justify="right")
        table.add_column("95% interval", justify="right")
    best = max(result["mean"] for result in accuracy.values())
    for name, result in accuracy.items():
        row = [Text(name), _mean(result, several), f"{result['correct']} of {result['total']}", _interval(result)]
        for share in shares:
            row += [_mean(result[share], several), _interval(result[share])]
        table.add_row(*row, style="bold" if result["mean"] == best else None)
    return table


def comparison_table(comparisons: Sequence[dict[str, Any]], title: str) -> Table:
    """
    A table with a row for each pair of policies: their difference, and how much of it may be chance. The names of a
    pair are below each other, so that the table fits into 90 columns.

    Args:
        comparisons (`Sequence[dict]`):
            Each is what [`~rlmec_trl.reports.comparisons.compare`] returns, and the names of the two as `rows`.
        title (`str`):
            Title of the table.
    """
    several = any(result["seeds"] > 1 for result in comparisons)
    table = Table(title=Text(title, style="table.title"), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("policy\n  vs", overflow="fold")
    for label in ("differ-\nence", "95% interval", *(["over seeds"] if several else []), "only one\ncorrect", "p"):
        table.add_column(label, justify="right", no_wrap=True)
    for result in comparisons:
        first, second = result["rows"]
        row = [Text(f"{first}\n  vs {second}"), f"{result['difference']:+.3f}", _signed(result["interval"])]
        if several:
            row.append("-" if result["t_interval"] is None else _signed(result["t_interval"]))
        p_value = result["p_value"]
        row += [
            f"{result['only_first']} : {result['only_second']}",
            "<0.001" if p_value < 0.001 else f"{p_value:.3f}",
        ]
        table.add_row(*row)
    return table


def _signed(interval: Sequence[float]) -> str:
    low, high = interval
    return f"{low:+.3f} to {high:+.3f}"


def reward_model_table(reward_models: dict[str, dict[str, dict[str, Any]]], title: str) -> Table:
    """
    A table with a row for each reward model: its accuracy on each kind of pair, with 95% intervals.

    Args:
        reward_models (`dict[str, dict]`):
            For each reward model and kind of pair, what [`summarize_accuracy`] returns.
        title (`str`):
            Title of the table.
    """
    table = Table(title=Text(title, style="table.title"), title_justify="left")
    table.add_column("reward model")
    kinds = [kind for kind in PAIR_LABELS if any(kind in result for result in reward_models.values())]
    for kind in kinds:
        table.add_column(PAIR_LABELS[kind], justify="right")
        table.add_column("95% interval", justify="right")
    several = any(one["seeds"] > 1 for result in reward_models.values() for one in result.values())
    for name, result in reward_models.items():
        row = [Text(name)]
        for kind in kinds:
            row += [_mean(result[kind], several), _interval(result[kind])] if kind in result else ["-", "-"]
        table.add_row(*row)
    return table


def _mean(result: dict[str, Any], several: bool) -> str:
    return f"{result['mean']:.3f}" + (f" ± {result['std']:.3f}" if several else "")


def _interval(result: dict[str, Any]) -> str:
    low, high = result["interval"]
    return f"{low:.3f} to {high:.3f}"


def audit_table(audit: dict[str, Any], title: str) -> Table:
    """A table with a row for each figure of [`pool_audits`]."""
    # As `Text`: a name from a file may hold brackets, which are not markup
    table = Table(title=Text(title, style="table.title"), title_justify="left", show_header=False)
    for name, label in AUDIT_LABELS.items():
        value = audit[name]
        if isinstance(value, dict):
            mean = "-" if value["mean"] is None else f"{value['mean']:.3f}"
            table.add_row(label, mean, f"{value['correct']} of {value['total']}")
        else:
            table.add_row(label, "-" if value is None else f"{value:.3f}", "")
    return table
