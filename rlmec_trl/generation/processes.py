"""The processes that share a run."""

import gc
from collections import Counter
from datetime import timedelta

from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env


def process_state() -> PartialState:
    """
    This process among those of the run.

    Unlike `PartialState()` alone, it heeds the variable by which `accelerate launch` says that a run is on CPUs.
    Without that, each of several CPU processes would believe that it is alone, and overwrite the others' work. And it
    lets processes wait for each other for a week rather than for minutes: a batch of questions may take a day, and be
    handed in again. A trainer's arguments, where they come first, set their own `ddp_timeout`.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=timedelta(days=7))


def end_processes() -> None:
    """
    Part from the other processes of the run: the last thing that a script without a trainer does. One with a trainer
    ends by `train_and_save`.

    Otherwise the threads of the process group may still hold tensors, and one that frees a tensor while Python shuts
    down aborts the process, with all its work done (https://github.com/pytorch/pytorch/issues/190489).
    """
    gc.collect()  # what is no longer in use may hold the group, too
    process_state().destroy_process_group()


def gather_counts(counts: Counter[str]) -> Counter[str]:
    """The sum over all processes, on each of them."""
    return sum(map(Counter, gather_object([dict(counts)])), Counter())
