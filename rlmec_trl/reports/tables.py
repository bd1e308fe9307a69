"""What people look at: tables of results, and samples with the reward model's verdict on every token."""

import statistics
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ..credit.alignment import edit_mask
from ..data.messages import message_text, problem_text
from .accuracy import wilson_interval


AUDIT_LABELS = {
    "first_wrong_flagged": "first wrong tokens with p < .5",
    "clean_kept": "clean tokens with p > .5",
    "auc": "AUC, first wrong against clean tokens",
    "wrong_rewritten": "wrong samples rewritten with every step right",
    "flawed_flagged": "right answers with a wrong step that are flagged",
    "error_located": "rewrites that begin at the first wrong step",
    "edits_made_over_needed": "edits made over edits needed",
}


def summarize_accuracy(results: Sequence[dict[str, int]]) -> dict[str, Any]:
    """
    Accuracy of one method over its seeds.

    Args:
        results (`Sequence[dict]`):
            `correct` and `total` of each seed.

    Returns:
        `dict`: `mean` and `std` over seeds (0.0 with one), `seeds`, `n` problems for each seed, `correct` and `total`
        over all seeds, and the 95% Wilson `interval` of their ratio.
    """
    means = [result["correct"] / result["total"] for result in results]
    correct, total = (sum(result[name] for result in results) for name in ("correct", "total"))
    return {
        "mean": statistics.fmean(means),
        "std": statistics.stdev(means) if len(means) > 1 else 0.0,
        "seeds": len(means),
        "n": results[0]["total"],
        "correct": correct,
        "total": total,
        "interval": list(wilson_interval(correct, total)),
    }


def pool_audits(audits: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One audit over all seeds: counts are added up, the other figures averaged."""
    pooled = {}
    for name, value in audits[0].items():
        if isinstance(value, dict):
            correct, total = (sum(audit[name][key] for audit in audits) for key in ("correct", "total"))
            pooled[name] = {"mean": correct / total if total else None, "correct": correct, "total": total}
        else:
            pooled[name] = statistics.fmean(audit[name] for audit in audits)
    return pooled


def accuracy_table(accuracy: dict[str, dict[str, Any]], title: str) -> Table:
    """A row for each method: its accuracy, counts and 95% interval."""
    several = any(result["seeds"] > 1 for result in accuracy.values())
    # As `Text`: names from a file may hold brackets, which are not markup
    table = Table(title=Text(title, style="table.title"), title_justify="left")
    table.add_column("method")
    table.add_column("accuracy" + (" ± std over seeds" if several else ""), justify="right")
    table.add_column("right", justify="right")
    table.add_column("95% interval", justify="right")
    best = max(result["mean"] for result in accuracy.values())
    for name, result in accuracy.items():
        mean = f"{result['mean']:.3f}" + (f" ± {result['std']:.3f}" if several else "")
        low, high = result["interval"]
        row = [Text(name), mean, f"{result['correct']} of {result['total']}", f"{low:.3f} to {high:.3f}"]
        table.add_row(*row, style="bold" if result["mean"] == best else None)
    return table


def audit_table(audit: dict[str, Any], title: str) -> Table:
    """A row for each figure of the audit of a generative reward model."""
    table = Table(title=title, title_justify="left", show_header=False)
    for name, label in AUDIT_LABELS.items():
        value = audit[name]
        if isinstance(value, dict):
            mean = "-" if value["mean"] is None else f"{value['mean']:.3f}"
            table.add_row(label, mean, f"{value['correct']} of {value['total']}")
        else:
            table.add_row(label, f"{value:.3f}", "")
    return table


def colour_tokens(
    processing_class: PreTrainedTokenizerBase, completion_ids: Sequence[int], token_probs: Sequence[float]
) -> Text:
    """The completion, each token on red where the reward model doubts it and on green where it does not."""
    text = Text()
    for token, prob in zip(completion_ids, token_probs, strict=True):
        red, green = int(200 * (1 - prob)), int(130 * prob)
        text.append(processing_class.decode([token]), style=f"bold white on rgb({red},{green},40)")
    return text


def mark_edits(
    processing_class: PreTrainedTokenizerBase, completion_ids: Sequence[int], rewrite_ids: Sequence[int]
) -> Text:
    """The rewrite, the tokens that the minimum edit script touches underlined."""
    text = Text()
    for token, edited in zip(rewrite_ids, edit_mask(completion_ids, rewrite_ids), strict=True):
        text.append(processing_class.decode([token]), style="bold underline yellow" if edited else None)
    return text


def show_sample(row: dict[str, Any], processing_class: PreTrainedTokenizerBase) -> Panel:
    """A scored sample with the probability of every token that is in doubt, and its rewrite."""
    ids, probs = row["completion_ids"], row["token_probs"]
    doubts = [
        f"{processing_class.decode([token]).strip()}: p = {prob:.2f}"
        for token, prob in zip(ids, probs, strict=True)
        if prob < 0.5
    ]
    lines = [
        Text(problem_text(row["prompt"]), style="italic"),
        Text("reference  ").append(row["reference"]),
        Text("sample     ").append_text(colour_tokens(processing_class, ids, probs)),
        Text("flagged    ").append(", ".join(doubts) or "nothing"),
    ]
    if row["rewrite_ids"] is not None:
        lines.append(Text("rewrite    ").append_text(mark_edits(processing_class, ids, row["rewrite_ids"])))
    outcome = "right answer" if row["correct"] else "wrong answer"
    return Panel(Group(*lines), title=f"sample with a {outcome}", title_align="left")


def pick_samples(dataset: Dataset, count: int = 2) -> list[dict[str, Any]]:
    """The first scored samples that teach something: a wrong answer that was mended, then right ones that were not."""
    wrong, flawed = [], []
    for row in dataset:
        if row["rewrite"] is None or message_text(row["rewrite"]) == message_text(row["completion"]):
            continue
        (flawed if row["correct"] else wrong).append(row)
        if len(wrong) >= count and flawed:
            break
    return [*wrong[:1], *flawed[:1], *wrong[1:]][:count]
