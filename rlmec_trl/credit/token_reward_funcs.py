"""Token reward functions: what they return is checked, and a helper for those that judge steps."""

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..data.errors import UserError


# Prompts, completions, completion ids and the columns of the dataset, to one value, or None, for each completion id
TokenRewardFunc = Callable[..., list[list[float | None]]]
# Values become float32
_LARGEST = torch.finfo(torch.float32).max


class TokenRewardError(UserError, ValueError):
    """A token reward function returned something else than one value for each token; the message names it."""


def check_token_rewards(name: str, values: Any, completion_ids: Sequence[Sequence[int]]) -> list[list[float]]:
    """
    Check what a token reward function returned.

    Args:
        name (`str`):
            Name of the function.
        values:
            What it returned.
        completion_ids (`Sequence[Sequence[int]]`):
            Token ids of the completions that it was given.

    Returns:
        `list[list[float]]`: One value for each token, NaN where the function has no opinion.

    Raises:
        [`TokenRewardError`]: If it is not a list with a list for each completion, which has a finite number, or
            `None`, for each token.
    """
    subject = f"The token reward function {name!r}"
    rows = _as_list(values)
    if rows is None or len(rows) != len(completion_ids):
        found = _describe(values) if rows is None else f"{len(rows)} lists"
        raise TokenRewardError(
            f"{subject} returned {found} for {len(completion_ids)} completions. It must return a list of lists: one "
            "list for each completion, with a value for each of its token ids."
        )
    checked = []
    for sample, (returned, ids) in enumerate(zip(rows, completion_ids, strict=True)):
        row = _as_list(returned)
        if returned is None:
            raise TokenRewardError(
                f"{subject} returned None for sample {sample}. For no opinion, return a None for each of its "
                f"{len(ids)} tokens."
            )
        if row is None:
            raise TokenRewardError(
                f"{subject} returned {_describe(returned)} for sample {sample}. It must return a list with a value "
                "for each of its tokens."
            )
        if len(row) != len(ids):
            raise TokenRewardError(
                f"{subject} returned {len(row)} values for sample {sample}, which has {len(ids)} tokens. It must "
                "return one value, or None, for each id in `completion_ids`."
            )
        checked.append([_check_value(subject, sample, token, value) for token, value in enumerate(row)])
    return checked


def call_token_reward_funcs(
    funcs: Sequence[TokenRewardFunc],
    is_async: Sequence[bool],
    loop: asyncio.AbstractEventLoop | None,
    completion_ids: Sequence[Sequence[int]],
    **kwargs,
) -> list[Any]:
    """
    Call functions with the same arguments; those that are asynchronous run at the same time.

    Args:
        funcs (`Sequence[Callable]`):
            The functions.
        is_async (`Sequence[bool]`):
            Which of them are asynchronous.
        loop (`asyncio.AbstractEventLoop`, *optional*):
            A running loop of another thread, if any is asynchronous.
        completion_ids (`Sequence[Sequence[int]]`):
            Token ids of the completions. Each function gets a copy.
        kwargs:
            What else they are called with.

    Returns:
        `list`: What they returned, in their order.
    """

    def call(func: TokenRewardFunc) -> Any:
        # Ids of its own: what one function does to them is not to change what the next one gets
        return func(**kwargs, completion_ids=[list(ids) for ids in completion_ids])

    async def gather() -> list[Any]:
        return await asyncio.gather(*(call(func) for func, waits in zip(funcs, is_async, strict=True) if waits))

    pending = asyncio.run_coroutine_threadsafe(gather(), loop) if any(is_async) else None
    try:
        results = [None if waits else call(func) for func, waits in zip(funcs, is_async, strict=True)]
        if pending is not None:
            answers = iter(pending.result())
            results = [next(answers) if waits else result for result, waits in zip(results, is_async, strict=True)]
    except BaseException:  # an interrupt too: nobody waits for the others any more
        if pending is not None:
            pending.cancel()
        raise
    return results


def spread_step_rewards(
    processing_class: PreTrainedTokenizerBase,
    completion_ids: Sequence[int],
    steps: Sequence[str],
    step_rewards: Sequence[float | None],
    on: str = "all",
) -> list[float | None]:
    """
    Give the rewards of steps to the tokens that write them, by their offsets in the text.

    A token belongs to the step of its last character, as it may begin with the space that ends the step before.
    Special tokens, such as EOS, and tokens after the last step belong to none.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the policy.
        completion_ids (`Sequence[int]`):
            Token ids of a completion, as sampled.
        steps (`Sequence[str]`):
            The steps that its text begins with, with their separators.
        step_rewards (`Sequence[float | None]`):
            A reward for each step, `None` for no opinion.
        on (`str`, *optional*, defaults to `"all"`):
            Which tokens of a step get its reward: `"all"`, or the `"last"` one.

    Returns:
        `list[float | None]`: One value for each id.

    Raises:
        `ValueError`: If there is not one reward for each step, the text of the ids does not begin with the steps, or
            `on` is unknown.
    """
    if len(steps) != len(step_rewards):
        raise ValueError(f"There are {len(steps)} steps and {len(step_rewards)} rewards. Give one for each step.")
    if on not in ("all", "last"):
        raise ValueError(f"`on` must be 'all' or 'last', got {on!r}.")
    ids = list(completion_ids)
    text = processing_class.decode(ids, skip_special_tokens=True)
    if not text.startswith("".join(steps)):
        raise ValueError("The steps are not the beginning of the text that the ids decode to. Split that text.")
    ends, position = [], 0
    for step in steps:
        position += len(step)
        ends.append(position)
    # A character that is not complete yet decodes to replacement characters, and is counted once it is
    lengths = [
        len(processing_class.decode(ids[: index + 1], skip_special_tokens=True).rstrip("\ufffd"))
        for index in range(len(ids))
    ]
    special_ids = set(processing_class.all_special_ids)
    owners, step = [], 0
    for token, length in zip(ids, lengths, strict=True):
        while step < len(ends) and length > ends[step]:
            step += 1
        owners.append(step if step < len(ends) and token not in special_ids else None)
    if on == "last":
        owners = [
            owner if owner is not None and owner not in owners[index + 1 :] else None
            for index, owner in enumerate(owners)
        ]
    return [None if owner is None else step_rewards[owner] for owner in owners]


def _check_value(subject: str, sample: int, token: int, value: Any) -> float:
    if value is None:
        return math.nan
    try:
        number = float(value) if not isinstance(value, (str, bytes)) else math.nan
    except (TypeError, ValueError, OverflowError, RuntimeError):  # PyTorch's for a tensor of several numbers
        number = math.nan
    if not abs(number) <= _LARGEST:
        raise TokenRewardError(
            f"{subject} returned {value!r} for token {token} of sample {sample}. It must return a finite number, or "
            "None for no opinion."
        )
    return number


def _as_list(values: Any) -> list[Any] | None:
    """A list, tuple, array or tensor as a list of Python values, `None` for anything else."""
    if isinstance(values, (torch.Tensor, np.ndarray)):
        return values.tolist() if values.ndim > 0 else None
    return list(values) if isinstance(values, (list, tuple)) else None


def _describe(values: Any) -> str:
    text = repr(values)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(values).__name__})"
