"""
The numbers behind the charts of a report, as plain dictionaries that `web/charts.js` draws.

A chart has an `id`, a `title`, a `note` and a `kind`:

- `"histogram"`: `edges` of the bins, a text for each bin in `labels`, and `series` with a share `y` and a `count` for
  each bin.
- `"lines"`: `series` with points `x` and `y`, optionally with an interval (`low`, `high`) and a `count` for each.
  `marks` is `"line"`, `"points"` or `"both"`; `color` numbers the color, which series may share. A `guide` is a line
  to compare with.

`x` and `y` of a chart have a `label`, and optionally limits (`min`, `max`) and a `scale` (`"log"`). All numbers are
finite, or `None`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset

from ..credit.alignment import edit_distance
from .accuracy import wilson_interval


Chart = dict[str, Any]
# Scored samples, as rows or as a dataset of them
Rows = Dataset | Sequence[Mapping[str, Any]]

_MAX_ROC_POINTS = 200
_MAX_BINS = 40


@dataclass(frozen=True)
class Judgements:
    """
    Probabilities of a generative reward model where it is known which of them should be low.

    Args:
        unit (`str`):
            What is judged, in the plural: `"tokens"` or `"steps"`.
        probs (`np.ndarray`):
            Probability of each, NaN for no opinion.
        correct (`np.ndarray` of bool):
            Whether each is correct.
    """

    unit: str
    probs: np.ndarray
    correct: np.ndarray


@dataclass(frozen=True)
class _Samples:
    """Columns of scored rows. The probabilities of all samples stand in one array, with their sample and position."""

    probs: np.ndarray
    sample: np.ndarray
    position: np.ndarray
    lengths: np.ndarray
    outcomes: dict[str, np.ndarray]
    distances: np.ndarray


def scored_charts(
    scored: Mapping[str, Rows], judged: Mapping[str, Judgements] | None = None, threshold: float = 0.5
) -> list[Chart]:
    """
    Charts of scored samples: probabilities, first flagged tokens and edit distances by outcome, and calibration and
    ROC of the reward models. What the rows have no columns for is left out.

    Args:
        scored (`Mapping[str, Dataset | Sequence[Mapping]]`):
            Scored rows by a name for them. With several, each has its own histograms.
        judged (`Mapping[str, Judgements]`, *optional*):
            By the same names, the scores of steps or tokens that a task can check
            ([`~rlmec_trl.stages.judgements.judge_scores`]).
        threshold (`float`, *optional*, defaults to `0.5`):
            Probability under which a token is flagged (`reward_baseline` of the trainer).

    Returns:
        `list[dict]`: The charts.
    """
    samples = {name: _read_samples(rows) for name, rows in scored.items()}
    charts = []
    for draw in (_probs_by_outcome, _first_flagged, _edit_distances):
        for number, (name, one) in enumerate(samples.items()):
            chart = draw(one, threshold)
            if chart is not None:
                title = chart["title"] if len(samples) == 1 else f"{chart['title']}: {name}"
                charts.append(chart | {"id": f"{chart['id']}-{number}", "title": title})
    judged = {name: one for name, one in (judged or {}).items() if np.isfinite(one.probs).any()}
    if judged:
        charts += [calibration_chart(judged), roc_chart(judged, threshold)]
    return charts


# --- Scored samples --------------------------------------------------------------------------------------------------


def _read_samples(rows: Rows) -> _Samples:
    completions, rewrites = _column(rows, "completion_ids"), _column(rows, "rewrite_ids")
    token_probs = [() if probs is None else probs for probs in _column(rows, "token_probs")]
    lengths = np.array([len(probs) for probs in token_probs], dtype=np.int64)
    probs = np.array(list(chain.from_iterable(token_probs)), dtype=np.float64)  # `None` becomes NaN
    probs[~np.isfinite(probs)] = np.nan
    sample = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.cumsum(lengths) - lengths
    distances = [
        np.nan if ids is None or rewrite is None else edit_distance(ids, rewrite)
        for ids, rewrite in zip(completions, rewrites, strict=True)
    ]
    correct = _column(rows, "correct")
    outcomes = {
        "correct samples": np.array([value is not None and bool(value) for value in correct], dtype=bool),
        "incorrect samples": np.array([value is not None and not value for value in correct], dtype=bool),
        "samples without an outcome": np.array([value is None for value in correct], dtype=bool),
    }
    position = np.arange(len(probs)) - starts[sample]
    outcomes = {name: members for name, members in outcomes.items() if members.any()}
    return _Samples(probs, sample, position, lengths, outcomes, np.array(distances, dtype=np.float64))


def _column(rows: Rows, name: str) -> list[Any]:
    if isinstance(rows, Dataset):
        return rows.with_format(None)[name][:] if name in rows.column_names else [None] * len(rows)
    return [row.get(name) for row in rows]


def _first_flags(samples: _Samples, threshold: float) -> np.ndarray:
    """Indices of the first flagged token of each sample that has one."""
    flagged = np.flatnonzero(samples.probs < threshold)  # NaN is not
    _, first = np.unique(samples.sample[flagged], return_index=True)
    return flagged[first]


def _probs_by_outcome(samples: _Samples, threshold: float) -> Chart | None:
    outcomes = samples.outcomes.items()
    groups = {f"tokens of {name}": samples.probs[members[samples.sample]] for name, members in outcomes}
    groups["first flagged tokens"] = samples.probs[_first_flags(samples, threshold)]
    return _histogram(
        {
            "id": "probabilities",
            "title": "Token probability by outcome",
            "note": f"A token is flagged if its probability is less than {threshold:g}.",
            "x": {"label": "probability under the reward model", "min": 0.0, "max": 1.0},
            # Nearly all tokens are close to 1
            "y": {"label": "share of tokens", "scale": "log"},
        },
        groups,
        np.linspace(0.0, 1.0, 21),
    )


def _first_flagged(samples: _Samples, threshold: float) -> Chart | None:
    first = _first_flags(samples, threshold)
    owner = samples.sample[first]
    where = samples.position[first] / samples.lengths[owner]
    groups = {name: where[members[owner]] for name, members in samples.outcomes.items()}
    rated = np.zeros(len(samples.lengths), dtype=bool)
    rated[samples.sample[np.isfinite(samples.probs)]] = True
    counts = [
        f"{len(groups[name]):,} of {(members & rated).sum():,} {name}"
        for name, members in samples.outcomes.items()
        if (members & rated).any()
    ]
    return _histogram(
        {
            "id": "first-flagged",
            "title": "Position of the first flagged token",
            "note": f"With a flagged token: {', '.join(counts)}.",
            "x": {"label": "position, relative to the length of the sample", "min": 0.0, "max": 1.0},
            "y": {"label": "share of flagged samples", "min": 0.0},
        },
        groups,
        np.linspace(0.0, 1.0, 21),
    )


def _edit_distances(samples: _Samples, threshold: float) -> Chart | None:
    known = np.isfinite(samples.distances)
    if not known.any():
        return None
    largest = int(samples.distances[known].max())
    factors = (factor * 10**power for power in range(20) for factor in (1, 2, 5))
    width = next(width for width in factors if largest <= width * _MAX_BINS)
    # Rewrites that change nothing have a bin of their own
    starts = np.arange(1, max(largest, 1) + 1, width)
    edges = np.concatenate([[0], starts, [starts[-1] + width]])
    labels = ["0", *(str(low) if width == 1 else f"{low} to {low + width - 1}" for low in starts)]
    groups = {name: samples.distances[members & known] for name, members in samples.outcomes.items()}
    total = len(samples.distances)
    return _histogram(
        {
            "id": "edit-distance",
            "title": "Edit distance of the rewrites",
            "note": f"{known.sum():,} of {total:,} samples have a rewrite. 0 is a rewrite that changes nothing.",
            "x": {"label": "inserted, replaced and deleted tokens"},
            "y": {"label": "share of rewrites", "min": 0.0},
        },
        groups,
        edges - 0.5,
        labels,
    )


def _histogram(
    chart: Chart, groups: Mapping[str, np.ndarray], edges: np.ndarray, labels: Sequence[str] | None = None
) -> Chart | None:
    """The chart with the share of each group's values in each bin, `None` if there are no values."""
    series = []
    for name, values in groups.items():
        values = values[np.isfinite(values)]
        counts, _ = np.histogram(values, edges)
        if counts.any():
            shares = counts / len(values)
            series.append({"name": f"{name} ({len(values):,})", "y": shares.tolist(), "count": counts.tolist()})
    if labels is None:
        labels = [f"{low:.2f} to {high:.2f}" for low, high in zip(edges, edges[1:], strict=False)]
    if not series:
        return None
    return chart | {"kind": "histogram", "edges": edges.tolist(), "labels": list(labels), "series": series}


# --- Where steps can be checked --------------------------------------------------------------------------------------


def calibration_chart(judged: Mapping[str, Judgements], num_bins: int = 10) -> Chart:
    """
    Share of correct tokens (or steps) by probability, in bins of equal width, with 95% Wilson intervals.

    Args:
        judged (`Mapping[str, Judgements]`):
            Scores by the name of their reward model.
        num_bins (`int`, *optional*, defaults to `10`):
            Number of bins.
    """
    series, notes = [], []
    for number, (name, one) in enumerate(judged.items()):
        known = np.isfinite(one.probs)
        probs, correct = one.probs[known], one.correct[known]
        bins = np.clip((probs * num_bins).astype(np.int64), 0, num_bins - 1)
        totals = np.bincount(bins, minlength=num_bins)
        used = totals > 0
        hits, sums = (np.bincount(bins, weights=values, minlength=num_bins)[used] for values in (correct, probs))
        totals = totals[used]
        shares, means = hits / totals, sums / totals
        bounds = [wilson_interval(int(hit), int(total)) for hit, total in zip(hits, totals, strict=True)]
        error = float((totals * np.abs(shares - means)).sum() / totals.sum())
        notes.append(f"{name}: {len(probs):,} {one.unit}, expected calibration error {error:.3f}.")
        series.append(
            {
                "name": name,
                "color": number,
                "marks": "both",
                "x": means.tolist(),
                "y": shares.tolist(),
                "low": [low for low, _ in bounds],
                "high": [high for _, high in bounds],
                "count": totals.tolist(),
            }
        )
    unit = _unit(judged)
    return {
        "id": "calibration",
        "kind": "lines",
        "title": "Calibration of the reward model",
        "note": f"Up to the first incorrect one of each sample. {' '.join(notes)}",
        "x": {"label": f"mean probability of the {unit} in a bin", "min": 0.0, "max": 1.0},
        "y": {"label": f"share of {unit} that are correct", "min": 0.0, "max": 1.0},
        "series": series,
        "guide": {"name": "perfectly calibrated", "x": [0.0, 1.0], "y": [0.0, 1.0]},
    }


def roc_chart(judged: Mapping[str, Judgements], threshold: float = 0.5) -> Chart:
    """
    Share of the incorrect tokens (or steps) that are flagged, against the share of the correct ones that are, for
    every threshold.

    Args:
        judged (`Mapping[str, Judgements]`):
            Scores by the name of their reward model.
        threshold (`float`, *optional*, defaults to `0.5`):
            Threshold that is marked on the curve.
    """
    series, notes = [], []
    for number, (name, one) in enumerate(judged.items()):
        known = np.isfinite(one.probs)
        probs, correct = one.probs[known], one.correct[known]
        if correct.all() or not correct.any():
            missing = "incorrect" if correct.all() else "correct"
            notes.append(f"{name}: no {missing} {one.unit}, so no curve.")
            continue
        false_flags, hits = _roc(probs, correct)
        area = float((np.diff(false_flags) * (hits[1:] + hits[:-1]) / 2).sum())
        notes.append(f"{name}: area under the curve {area:.3f}.")
        kept = _evenly_spaced(false_flags, hits)
        line = {"name": name, "color": number, "marks": "line", "x": false_flags[kept].tolist()}
        series.append(line | {"y": hits[kept].tolist()})
        flagged = probs < threshold
        marker = {"name": f"{name}, p < {threshold:g}", "color": number, "marks": "points"}
        series.append(marker | {"x": [float(flagged[correct].mean())], "y": [float(flagged[~correct].mean())]})
    unit = _unit(judged)
    return {
        "id": "roc",
        "kind": "lines",
        "title": "ROC of the reward model",
        "note": f"Up to the first incorrect one of each sample. {' '.join(notes)}",
        "x": {"label": f"correct {unit} that are flagged", "min": 0.0, "max": 1.0},
        "y": {"label": f"incorrect {unit} that are flagged", "min": 0.0, "max": 1.0},
        "series": series,
        "guide": {"name": "chance", "x": [0.0, 1.0], "y": [0.0, 1.0]},
    }


def _unit(judged: Mapping[str, Judgements]) -> str:
    return " or ".join(dict.fromkeys(one.unit for one in judged.values()))


def _roc(probs: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the correct and of the incorrect that are flagged, for all thresholds from the lowest."""
    order = np.argsort(probs, kind="stable")
    probs, correct = probs[order], correct[order]
    ends = np.append(np.flatnonzero(np.diff(probs)), len(probs) - 1)  # equal probabilities are flagged together
    curves = (np.append(0.0, np.cumsum(values)[ends] / values.sum()) for values in (correct, ~correct))
    return next(curves), next(curves)


def _evenly_spaced(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of at most `_MAX_ROC_POINTS` points of a monotonic curve, both ends included."""
    along = x + y
    wanted = np.searchsorted(along, np.linspace(along[0], along[-1], _MAX_ROC_POINTS - 1))
    return np.unique(np.append(wanted.clip(0, len(along) - 1), len(along) - 1))
