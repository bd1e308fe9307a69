"""
What a model has cost, counted: the sum over all stages that it depends on.

Every figure is read from what the stages have written. A dataset has its costs in its mark, a training its numbers of
tokens in `trainer_state.json`, and the number of completions of an online training follows from its settings.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ..data.marks import read_mark, read_object
from .checkpoints import STATE, read_record
from .pipeline import Choice, Job


# The counted figures of a stage, beside its seconds
COSTS = (
    "policy_tokens",
    "completions",
    "teacher_edits",
    "grm_tokens_trained",
    "grm_tokens_scored",
    "grm_tokens_generated",
)
_OF_DATASETS = ("completions", "teacher_edits", "grm_tokens_scored", "grm_tokens_generated")
_TOO_LARGE = 1 << 63
# `None` is not known, and neither is a sum with it
Costs = dict[str, int | float | None]


@dataclass(frozen=True)
class ModelCosts:
    """
    What the models of a run have cost.

    Args:
        models (`dict[str, dict]`):
            For each model the figures of [`COSTS`] and `seconds`, summed over the stages that it depends on, without
            those in `shared`.
        search (`dict[str, dict]`):
            For each model for which a setting was chosen among candidates, the same figures of the search: the
            candidates that were not chosen, and the evaluations of all of them.
        shared (`dict`):
            The same figures of the stages that all models depend on.
        shared_stages (`list[str]`):
            Their names.
    """

    models: dict[str, Costs]
    search: dict[str, Costs]
    shared: Costs
    shared_stages: list[str]


def model_costs(
    models: Mapping[str, str],
    steps: Iterable[Job | Choice],
    chosen: Mapping[str, Any],
    cost_of: Callable[[Job], Costs],
) -> ModelCosts:
    """
    Add up the costs of the stages that each model depends on.

    Args:
        models (`Mapping[str, str]`):
            For each model of the report the name of its step, at least one.
        steps (`Iterable[Job | Choice]`):
            The steps of a run.
        chosen (`Mapping[str, Any]`):
            For each choice its chosen value.
        cost_of (`Callable[[Job], dict]`):
            The figures of a step.
    """
    by_name = {step.name: step for step in steps}
    needed = {model: _needed(name, by_name, chosen) for model, name in models.items()}
    search = {model: _needed(name, by_name, None) - needed[model] for model, name in models.items()}
    # Of a single model, nothing is shared
    shared, shared_search = (set.intersection(*sets.values()) if len(sets) > 1 else set() for sets in (needed, search))

    def jobs(names: set[str]) -> list[Job]:
        return [step for step in by_name.values() if step.name in names and isinstance(step, Job)]

    def total(names: set[str]) -> Costs:
        return add_costs([dict.fromkeys((*COSTS, "seconds"), 0), *map(cost_of, jobs(names))])

    return ModelCosts(
        {model: total(names - shared) for model, names in needed.items()},
        {model: total(names - shared_search) for model, names in search.items() if names - shared_search},
        total(shared | shared_search),
        [job.name for job in jobs(shared | shared_search)],
    )


def _needed(name: str, steps: Mapping[str, Job | Choice], chosen: Mapping[str, Any] | None) -> set[str]:
    """Names of the steps that a step depends on, and its own. Without `chosen`, all candidates of a choice count."""
    needed, waiting = set(), [name]
    while waiting:
        step = steps[waiting.pop()]
        if step.name in needed:
            continue
        needed.add(step.name)
        if isinstance(step, Job):
            waiting += step.reads
        elif chosen is None:
            waiting += chain.from_iterable(step.candidates.values())
        else:
            waiting.append(step.candidates[chosen[step.name]][0])
    return needed


def job_costs(job: Job, folder: Path) -> Costs:
    """The figures of [`COSTS`] of a finished step in a run's folder."""
    output = folder / job.name
    costs = output_costs(output)
    scored = output.with_name(f"{output.name}-scored")
    if job.recipe == "rlmec" and "grm" in job.settings and scored.is_dir():  # it scored the samples first
        costs = add_costs([costs, output_costs(scored)])
    return costs


def output_costs(output: Path) -> Costs:
    """
    What the output of a stage has cost.

    Args:
        output (`Path`):
            A dataset, a trained model, or a file.

    Returns:
        `dict`: A number for each of [`COSTS`], `None` where an earlier version did not record it.
    """
    none = dict.fromkeys(COSTS, 0)
    if output.is_file():
        result = read_object(output) or {}  # an evaluation has answered `total` problems
        return none | {"completions": _count(result.get("total", 0))}
    if (output / STATE).exists():
        return none | _training_costs(read_object(output / STATE) or {})
    costs = (read_mark(output) or {}).get("costs")
    if not isinstance(costs, dict):
        is_model = any((output / name).exists() for name in ("config.json", "adapter_config.json"))
        # Of a dataset of an earlier version, it is only known that nothing was trained for it
        return dict.fromkeys(COSTS) if is_model else none | dict.fromkeys(_OF_DATASETS)
    return {name: _count(costs.get(name, 0)) for name in COSTS}


def _count(value: Any) -> int | None:
    """A number that was read from a file, `None` for what cannot be one, which somebody else has written there."""
    return value if type(value) is int and 0 <= value < _TOO_LARGE else None


def _training_costs(state: dict[str, Any]) -> Costs:
    record = read_record(state) or {}
    settings = record.get("settings", {})
    trainer = settings.get("trainer")
    if trainer is None:
        return dict.fromkeys(COSTS)
    completions = num_generated(settings, state["global_step"])
    if trainer == "LabelRewardTrainer":  # neither a policy nor a generative reward model
        return {}
    if trainer == "GRMTrainer":
        return {"grm_tokens_trained": _num_tokens(state, record)}
    if trainer == "OnlineRLMECTrainer":
        names = {"policy_tokens": "policy", "grm_tokens_scored": "grm_scored", "grm_tokens_generated": "grm_generated"}
        counts = record.get("token_counts")
        tokens = {cost: None if counts is None else counts.get(name, 0) for cost, name in names.items()}
        return {"completions": completions, **tokens}
    if completions > 0:
        # TRL counts the tokens of a completion once, when it is generated
        num_tokens = state["num_input_tokens_seen"] * settings.get("num_iterations", 1)
        return {"completions": completions, "policy_tokens": num_tokens or None}
    return {"policy_tokens": _num_tokens(state, record)}


def _num_tokens(state: dict[str, Any], record: dict[str, Any]) -> int | None:
    """The trainer's own `num_tokens` at the end of a training. Earlier versions have only logged it."""
    if "num_tokens" in record:
        return record["num_tokens"] or None  # a trainer that does not count leaves it at 0
    last = [log for log in state["log_history"] if log["step"] == state["global_step"] and "num_tokens" in log]
    return int(last[-1]["num_tokens"]) if last else None


def num_generated(settings: Mapping[str, Any], num_steps: int) -> int:
    """
    Number of completions that an online training of TRL has generated, without those of evaluations.

    A generation batch is generated when the first of its micro-batches is due, and used for `num_iterations` times
    `steps_per_generation` of them.

    Args:
        settings (`Mapping[str, Any]`):
            What [`~rlmec_trl.stages.training_settings.training_settings`] has recorded.
        num_steps (`int`):
            Number of optimizer steps.

    Returns:
        `int`: The number, 0 for a training that generates nothing.
    """
    if "generation_batch_size" not in settings:
        return 0
    num_completions = settings["generation_batch_size"]
    num_uses = settings["steps_per_generation"] * settings.get("num_iterations", 1)
    accumulated = settings["gradient_accumulation_steps"]
    num_micro_batches = num_steps * accumulated
    if settings["number of rows"] is not None:  # that of a stream is not known
        # The last step of an epoch takes what is left of it
        in_epoch = settings["number of rows"] // (num_completions // settings["num_generations"]) * num_uses
        epochs, steps = divmod(num_steps, math.ceil(in_epoch / accumulated))
        num_micro_batches = epochs * in_epoch + steps * accumulated
    return math.ceil(num_micro_batches / num_uses) * num_completions


def add_costs(costs: Iterable[Costs]) -> Costs:
    """Sum of each figure. `None` if one of its numbers is not known."""
    total: Costs = {}
    for each in costs:
        for name, number in each.items():
            before = total.get(name, 0)
            total[name] = None if None in (before, number) else before + number
    return total


def report_costs(runs: Sequence[ModelCosts]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """
    The costs of models over all seeds, added up.

    Args:
        runs (`Sequence[ModelCosts]`):
            Those of each seed.

    Returns:
        `tuple`: For each model its figures and, where there was one, its `search` with the same figures; and the
        figures of what all models share, with the names of the `stages`.
    """
    costs = {model: add_costs(run.models[model] for run in runs) for model in runs[0].models}
    for model in runs[0].search:
        costs[model]["search"] = add_costs(run.search[model] for run in runs)
    stages = list(dict.fromkeys(name for run in runs for name in run.shared_stages))
    return costs, {"stages": stages, **add_costs(run.shared for run in runs)}
