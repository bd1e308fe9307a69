"""Charts of trainings: rewards by step, and accuracy against the completions that were generated for it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .accuracy import Accuracy
from .chart_data import Chart


@dataclass(frozen=True)
class RunLog:
    """
    What a training has logged, and what it led to.

    Args:
        logs (`Sequence[dict]`):
            `log_history` of its `trainer_state.json`.
        completions (`Sequence[int | None]`):
            For each log, the number of completions that had been generated for the policy up to then, `None` if that
            is not known.
        results (`Mapping[str, Accuracy]`):
            Evaluations of the trained policy by name.
        num_completions (`int`, *optional*):
            Number of completions generated for the trained policy.
    """

    logs: Sequence[Mapping[str, Any]]
    completions: Sequence[int | None]
    results: Mapping[str, Accuracy]
    num_completions: int | None = None


def run_charts(runs: Mapping[str, RunLog]) -> list[Chart]:
    """
    Charts of several trainings, each of which has the same color everywhere. What no run has logged is left out.

    Args:
        runs (`Mapping[str, RunLog]`):
            Runs by name ([`~rlmec_trl.stages.run_logs.read_runs`]).
    """
    charts = [
        _by_step(runs, "reward-by-step", "Reward by step", "mean reward of the completions", _is_reward),
        _by_step(runs, "token-reward-by-step", "Token reward by step", "mean token reward", _is_token_reward),
        _accuracy_by_completions(runs),
    ]
    return [chart for chart in charts if chart["series"]]


def _is_reward(key: str) -> bool:
    return key == "reward"


def _is_token_reward(key: str) -> bool:
    return key.startswith("token_reward/") and key.endswith("/mean") or key == "token_reward/mean"


def _by_step(
    runs: Mapping[str, RunLog], chart_id: str, title: str, label: str, is_wanted: Callable[[str], bool]
) -> Chart:
    series = []
    for number, (name, run) in enumerate(runs.items()):
        keys = sorted(filter(is_wanted, set().union(*run.logs)))
        for key in keys:
            points = [(_number(log.get("step")), _number(log.get(key))) for log in run.logs]
            source = key.removeprefix("token_reward/").removesuffix("/mean")
            series += _line(name if len(keys) == 1 else f"{name}, {source}", number, points)
    return {
        "id": chart_id,
        "kind": "lines",
        "title": title,
        "note": "Means over the steps between two logs.",
        "x": {"label": "training step", "min": 0.0},
        "y": {"label": label},
        "series": series,
    }


def _accuracy_by_completions(runs: Mapping[str, RunLog]) -> Chart:
    series = []
    for number, (name, run) in enumerate(runs.items()):
        logged = set().union(*run.logs)
        evaluated = next((key for key in ("eval_accuracy", "eval_reward") if key in logged), None)
        key = evaluated or "reward"
        points = [
            (done, _number(log.get(key))) for log, done in zip(run.logs, run.completions, strict=True) if key in log
        ]
        # Only a reward of 0 or 1 is an accuracy
        if all(value is None or 0 <= value <= 1 for _, value in points):
            series += _line(f"{name}, {'evaluations' if evaluated else 'training reward'}", number, points)
        results = [result for result in run.results.items() if result[1].total]
        if run.num_completions is not None and results:
            for result_name, accuracy in results:
                low, high = accuracy.interval
                series.append(
                    {
                        "name": f"{name}, {result_name}",
                        "color": number,
                        "marks": "points",
                        "x": [run.num_completions],
                        "y": [accuracy.mean],
                        "low": [low],
                        "high": [high],
                        "count": [accuracy.total],
                    }
                )
    return {
        "id": "accuracy-by-completions",
        "kind": "lines",
        "title": "Accuracy against completions generated",
        "note": "Evaluations with 95% intervals. The training reward is that of sampled completions, not greedy ones.",
        "x": {"label": "completions generated", "min": 0.0},
        "y": {"label": "accuracy", "min": 0.0, "max": 1.0},
        "series": series,
    }


def _line(name: str, number: int, points: Sequence[tuple[float | None, float | None]]) -> list[dict[str, Any]]:
    """The points that are known, as a list of one series, or of none."""
    known = [(x, y) for x, y in points if x is not None and y is not None]
    if not known:
        return []
    x, y = zip(*known, strict=True)
    return [{"name": name, "color": number, "marks": "both", "x": list(x), "y": list(y)}]


def _number(value: Any) -> float | None:
    """A finite number, `None` for what a log has instead."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None
