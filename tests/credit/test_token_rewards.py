"""Rewards against their definition: a correct sample is never punished, an incorrect one never rewarded."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.credit.token_rewards import clip_token_rewards, keep_first_negative, rewards_from_probs


SHAPES = [(3, 47), (1, 1), (5, 31)]
PROBS = st.floats(0, 1, width=32)


def naive_rewards(probs, correct, baseline=0.5, positive=(0.0, 0.5), negative=(-0.1, 0.0)):
    rewards = []
    for row, is_correct in zip(probs.tolist(), correct.tolist(), strict=True):
        low, high = positive if is_correct else negative
        rewards.append([min(max(prob - baseline, low), high) for prob in row])
    return torch.tensor(rewards)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "bounds", [{}, {"baseline": 0.3, "positive": (-0.2, 0.6), "negative": (-0.4, 0.1)}], ids=["paper", "own bounds"]
)
def test_rewards_are_those_of_the_definition(shape, bounds):
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(shape, generator=generator)
    correct = torch.rand(shape[0], generator=generator) < 0.5
    for verdict in (correct, ~correct):
        rewards = clip_token_rewards(probs, verdict, **bounds)
        torch.testing.assert_close(rewards, naive_rewards(probs, verdict, **bounds))


def test_two_tokens_worked_out_by_hand():
    probs = torch.tensor([[0.9, 0.2], [0.9, 0.2], [0.45, 0.5]])
    correct = torch.tensor([True, False, False])
    expected = torch.tensor([[0.4, 0.0], [0.0, -0.1], [-0.05, 0.0]])
    torch.testing.assert_close(clip_token_rewards(probs, correct), expected)


@given(st.lists(PROBS, min_size=1, max_size=20))
def test_the_outcome_bounds_the_sign(probs):
    correct, incorrect = clip_token_rewards(torch.tensor([probs, probs]), torch.tensor([True, False]))
    assert 0 <= correct.min() and correct.max() <= 0.5
    assert torch.tensor(-0.1) <= incorrect.min() and incorrect.max() <= 0


@given(PROBS, PROBS)
def test_a_more_likely_token_never_has_a_smaller_reward(one, other):
    low, high = sorted((one, other))
    rewards = clip_token_rewards(torch.tensor([[low, high]] * 2), torch.tensor([True, False]))
    assert (rewards[:, 0] <= rewards[:, 1]).all()


def test_a_token_at_the_baseline_has_no_reward_whatever_the_outcome():
    for baseline in (0.5, 0.3, 0.1):
        probs = torch.full((2, 1), baseline)
        rewards = clip_token_rewards(probs, torch.tensor([True, False]), baseline=baseline)
        torch.testing.assert_close(rewards, torch.zeros(2, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rewards_are_float32_whatever_the_probabilities_are(dtype):
    probs = torch.tensor([[0.501, 0.77], [0.499, 0.44]]).to(dtype)
    correct = torch.tensor([True, False])
    rewards = clip_token_rewards(probs, correct)
    assert rewards.dtype == torch.float32
    # In bfloat16 the subtraction would lose most digits of such small rewards
    torch.testing.assert_close(rewards, naive_rewards(probs.double(), correct))


def naive_first_negative(rewards):
    kept = []
    for row in rewards.tolist():
        seen, kept_row = False, []
        for reward in row:
            kept_row.append(0.0 if reward < 0 and seen else reward)
            seen = seen or reward < 0
        kept.append(kept_row)
    return torch.tensor(kept)


@pytest.mark.parametrize("shape", SHAPES)
def test_only_the_first_negative_of_a_row_stays(shape):
    generator = torch.Generator().manual_seed(1)
    rewards = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.6)
    torch.testing.assert_close(keep_first_negative(rewards), naive_first_negative(rewards))


def test_first_negatives_worked_out_by_hand():
    rewards = torch.tensor([[0.2, -0.1, 0.3, -0.05], [0.0, 0.0, 0.0, -0.1], [0.1, 0.0, 0.2, 0.0]])
    expected = torch.tensor([[0.2, -0.1, 0.3, 0.0], [0.0, 0.0, 0.0, -0.1], [0.1, 0.0, 0.2, 0.0]])
    torch.testing.assert_close(keep_first_negative(rewards), expected)


def test_keeping_the_first_negative_keeps_the_dtype_and_its_argument():
    rewards = torch.tensor([[-0.1, -0.1]], dtype=torch.bfloat16)
    before = rewards.clone()
    kept = keep_first_negative(rewards)
    assert kept.dtype == torch.bfloat16
    assert torch.equal(rewards, before)


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=12))
def test_keeping_the_first_negative_is_idempotent(rewards):
    once = keep_first_negative(torch.tensor([rewards]))
    assert torch.equal(keep_first_negative(once), once)
    assert (once < 0).sum() == min(1, sum(reward < 0 for reward in rewards))
    assert math.isclose(once.clamp(min=0).sum().item(), sum(max(reward, 0) for reward in rewards), abs_tol=1e-5)


def test_of_tokens_without_a_probability_there_is_no_reward():
    probs = [0.9, None, 0.2, 0.45, math.nan]
    assert rewards_from_probs(probs[:4], True) == pytest.approx([0.4, None, 0.0, 0.0])
    assert rewards_from_probs(probs[:4], False) == pytest.approx([0.0, None, -0.1, -0.05])
    assert rewards_from_probs(probs[:4], False, negative_credit="first_error") == pytest.approx([0.0, None, -0.1, 0.0])
    assert math.isnan(rewards_from_probs(probs, True)[4]), "a probability that is NaN is not one that is missing"
