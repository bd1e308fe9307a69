"""The processes of a distributed run."""

import gc
from collections import Counter
from datetime import timedelta

from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env


def process_state() -> PartialState:
    """
    The state of this process in the run.

    Unlike `PartialState()` alone, it reads the variable that `accelerate launch` sets for runs on CPU. Otherwise each
    of several CPU processes would consider itself the only one and overwrite the others' files. It also sets the
    timeout of collective operations to a week instead of minutes: a batch of requests may take a day and be submitted
    again. If a trainer's arguments initialize the state first, their `ddp_timeout` applies.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=timedelta(days=7))


def end_processes() -> None:
    """
    Destroy the process group at the end of a script without a trainer. `train_and_save` does this for trainers.

    A process group that still exists when Python shuts down may abort the process, because its threads free tensors
    too late (https://github.com/pytorch/pytorch/issues/190489).
    """
    gc.collect()  # unreachable objects may still reference the group
    process_state().destroy_process_group()


def gather_counts(counts: Counter[str]) -> Counter[str]:
    """The sum over all processes, on each of them."""
    return sum(map(Counter, gather_object([dict(counts)])), Counter())
