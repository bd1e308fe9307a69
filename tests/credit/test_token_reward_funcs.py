"""What token reward functions return is checked by name and sample, and steps are spread over tokens."""

import asyncio
import math
import threading

import numpy as np
import pytest
import torch

from rlmec_trl.credit.token_reward_funcs import (
    TokenRewardError,
    call_token_reward_funcs,
    check_token_rewards,
    spread_step_rewards,
)


IDS = [[5, 6, 7], [8]]


def test_no_opinion_becomes_nan_and_numbers_stay():
    first, second = check_token_rewards("prm", [[0.5, None, -1], [2]], IDS)
    assert first[0] == 0.5 and math.isnan(first[1]) and first[2] == -1.0
    assert second == [2.0]


@pytest.mark.parametrize(
    "values", [torch.tensor([[1.0, 2.0]]), np.array([[1.0, 2.0]]), [torch.tensor([1.0, 2.0])], [(1, np.float32(2))]]
)
def test_tensors_and_arrays_are_lists(values):
    assert check_token_rewards("prm", values, [[3, 4]]) == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (None, "returned None (NoneType) for 2 completions"),
        (0.5, "returned 0.5 (float) for 2 completions"),
        ("ab", "returned 'ab' (str)"),
        ([[1, 2, 3]], "returned 1 lists for 2 completions"),
        ([[1, 2], [3]], "returned 2 values for sample 0, which has 3 tokens"),
        ([[1, 2, 3], None], "returned None for sample 1"),
        ([[1, 2, 3], 4.0], "returned 4.0 (float) for sample 1"),
        ([[1, math.nan, 3], [4]], "returned nan for token 1 of sample 0"),
        ([[1, 2, 3], [math.inf]], "returned inf for token 0 of sample 1"),
        ([[1, 2, 3], ["4"]], "returned '4' for token 0 of sample 1"),
        ([[1, 2, 3], [[4]]], "returned [4] for token 0 of sample 1"),
        ([torch.tensor([[1.0], [2.0], [3.0]]), [4]], "for token 0 of sample 0"),
    ],
)
def test_the_error_names_the_function_and_the_sample(values, said):
    with pytest.raises(TokenRewardError) as caught:
        check_token_rewards("my_prm", values, IDS)
    assert "'my_prm'" in str(caught.value) and said in str(caught.value)


def test_asynchronous_functions_run_at_the_same_time_and_the_order_stays():
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    meeting = []

    def rendezvous(name):
        async def func(completion_ids, **kwargs):
            meeting.append(name)
            while len(meeting) < 2:  # for ever, if they ran one after the other
                await asyncio.sleep(0.01)
            return name

        return func

    def plain(completion_ids, **kwargs):
        return "plain"

    funcs = [rendezvous("first"), plain, rendezvous("second")]
    assert call_token_reward_funcs(funcs, [True, False, True], loop, completion_ids=IDS) == [
        "first",
        "plain",
        "second",
    ]
    loop.call_soon_threadsafe(loop.stop)


def test_an_error_in_an_asynchronous_function_is_not_swallowed():
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def fails(**kwargs):
        raise RuntimeError("my own fault")

    with pytest.raises(RuntimeError, match="my own fault"):
        call_token_reward_funcs([fails], [True], loop, completion_ids=IDS)
    loop.call_soon_threadsafe(loop.stop)


def test_the_asynchronous_functions_are_cancelled_where_another_one_fails():
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    started, ended = threading.Event(), threading.Event()

    async def hangs(**kwargs):
        started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    def fails(**kwargs):
        assert started.wait(60)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_token_reward_funcs([hangs, fails], [True, False], loop, completion_ids=IDS)
    assert ended.wait(60)
    loop.call_soon_threadsafe(loop.stop)


def test_a_function_that_changes_its_ids_changes_nothing_for_the_next():
    def clears(completion_ids, **kwargs):
        for ids in completion_ids:
            ids.clear()

    def counts(completion_ids, **kwargs):
        return [len(ids) for ids in completion_ids]

    given = [[1, 2], [3]]
    results = call_token_reward_funcs([clears, counts], [False, False], None, completion_ids=given)
    assert results == [None, [2, 1]] and given == [[1, 2], [3]]


@pytest.mark.parametrize("value", [10**400, 1e39, -1e39])
def test_a_number_that_float32_cannot_hold_is_refused(value):
    with pytest.raises(TokenRewardError, match="token 0 of sample 0. It must return a finite number"):
        check_token_rewards("judge", [[value]], [[5]])


def test_rewards_of_steps_go_to_the_tokens_that_write_them(tokenizer):
    from rlmec_trl.data.tokens import encode_completion

    steps = ["59 - 16 is 43 ; ", "43 + 23 = 66 ; ", "The answer is 66"]
    text = "".join(steps)
    ids = encode_completion(tokenizer, text)
    values = spread_step_rewards(tokenizer, ids, steps, [1.0, None, -1.0])
    written = {reward: [] for reward in (1.0, None, -1.0)}
    for token, value in zip(ids, values, strict=True):
        written[value].append(token)
    assert tokenizer.decode(written[1.0]).strip() == steps[0].strip()
    assert tokenizer.decode(written[-1.0]).strip() == steps[2].strip()
    assert values[-1] is None, "EOS belongs to no step"
    last = spread_step_rewards(tokenizer, ids, steps, [1.0, 2.0, 3.0], on="last")
    assert [value for value in last if value is not None] == [1.0, 2.0, 3.0]
    assert last.index(2.0) == max(index for index, value in enumerate(values[:-1]) if value is None)


def test_what_does_not_fit_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="2 steps and 1 rewards"):
        spread_step_rewards(tokenizer, [1], ["a", "b"], [1.0])
    with pytest.raises(ValueError, match="not the beginning"):
        spread_step_rewards(tokenizer, [], ["a"], [1.0])
    with pytest.raises(ValueError, match="`on`"):
        spread_step_rewards(tokenizer, [], [], [], on="first")
