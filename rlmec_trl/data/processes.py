"""The processes that share a run."""

from collections import Counter

from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env


def process_state() -> PartialState:
    """
    This process among those of the run.

    Unlike `PartialState()` alone, it heeds the variable by which `accelerate launch` says that a run is on CPUs.
    Without that, each of several CPU processes would believe that it is alone, and overwrite the others' work.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def gather_counts(counts: Counter[str]) -> Counter[str]:
    """The sum over all processes, on each of them."""
    return sum(map(Counter, gather_object([dict(counts)])), Counter())
