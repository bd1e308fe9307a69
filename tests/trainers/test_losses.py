"""The losses and their gradients against loops over the tokens in double precision."""

import math

import pytest
import torch
import torch.nn.functional as F

from rlmec_trl.trainers.losses import imitation_loss, token_policy_loss


SHAPES = [(3, 47), (1, 1), (5, 31)]
LOSS_TYPES = ["rlmec", "ppo"]


def policy_batch(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logps = -3 * torch.rand(shape, generator=generator) - 0.01
    # Ratios inside the clipping range and on both sides of it
    old_logps = logps + 0.5 * torch.randn(shape, generator=generator)
    rewards = torch.empty(shape).uniform_(-0.1, 0.5, generator=generator)
    rewards *= torch.rand(shape, generator=generator) < 0.7
    mask = torch.rand(shape, generator=generator) < 0.8
    mask[0, 0] = True
    rewards[0, 0] = 0.3
    return logps, old_logps, rewards, mask


def naive_policy_loss(logps, old_logps, rewards, mask, epsilon=0.3, num_active=None, loss_type="rlmec"):
    """Loss, its gradient by hand, clipped tokens and active tokens."""
    rows, columns = logps.shape
    active = [(i, j) for i in range(rows) for j in range(columns) if mask[i, j] and rewards[i, j] != 0]
    denominator = max(num_active if num_active is not None else len(active), 1)
    loss, num_clipped, gradient = 0.0, 0, torch.zeros(rows, columns, dtype=torch.float64)
    for i, j in active:
        logp, reward = logps[i, j].item(), rewards[i, j].item()
        ratio = math.exp(logp - old_logps[i, j].item())
        free, clipped = ratio * reward, min(max(ratio, 1 - epsilon), 1 + epsilon) * reward
        is_clipped = clipped < free
        num_clipped += is_clipped
        advantage = min(free, clipped)
        if loss_type == "rlmec":
            loss -= advantage * logp / denominator
            gradient[i, j] = -advantage / denominator
        else:
            loss -= advantage / denominator
            # The ratio's derivative with respect to the log-probability is the ratio; a clipped advantage has none
            gradient[i, j] = 0.0 if is_clipped else -free / denominator
    return loss, gradient, num_clipped, len(active)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("epsilon", "num_active"), [(0.3, None), (0.1, 1234.0), (0.3, torch.tensor(17))])
def test_policy_loss_and_gradient_are_those_of_the_equation(shape, epsilon, num_active, loss_type):
    logps, old_logps, rewards, mask = policy_batch(shape)
    logps.requires_grad_()
    loss, metrics = token_policy_loss(logps, old_logps, rewards, mask, epsilon, num_active, loss_type)
    (gradient,) = torch.autograd.grad(loss, logps)

    count = None if num_active is None else float(num_active)
    expected = naive_policy_loss(logps.detach(), old_logps, rewards, mask, epsilon, count, loss_type)
    expected_loss, expected_gradient, num_clipped, num_counted = expected
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5, abs=1e-7)
    torch.testing.assert_close(gradient, expected_gradient.float(), rtol=1e-5, atol=1e-8)
    assert [value.item() for value in metrics["clip_ratio/region_mean"]] == [num_clipped, num_counted]


def kl_of_a_token(logp, old_logp):
    one = torch.ones(1, 1)
    _, metrics = token_policy_loss(logp * one, old_logp * one, 0 * one, one.bool())
    total, count = metrics["kl"]
    assert count == 1
    return total.item()


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("vocabulary", [2, 31])
def test_the_expected_kl_under_the_old_policy_is_the_divergence_from_it(vocabulary, spread):
    """Exact, by enumeration: each token's estimate is weighted by its probability under the old policy."""
    generator = torch.Generator().manual_seed(vocabulary)
    old, new = (spread * torch.randn(2, vocabulary, generator=generator)).log_softmax(dim=-1)
    assert (new - old).abs().max() < 20, "beyond it the log-ratio is bounded and the estimate is not exact"
    estimates = torch.tensor([kl_of_a_token(logp, old_logp) for logp, old_logp in zip(new, old, strict=True)])
    exact = F.kl_div(new, old, reduction="sum", log_target=True)  # KL(old || new)
    assert (estimates >= 0).all()
    assert (old.exp() * estimates).sum().item() == pytest.approx(exact.item(), rel=1e-3, abs=1e-7)


def test_the_kl_has_the_old_policy_first():
    # KL(old || new) = .9 log(.9 / .5) + .1 log(.1 / .5) = .368, the reverse is .511
    estimates = [kl_of_a_token(math.log(0.5), math.log(old)) for old in (0.9, 0.1)]
    assert 0.9 * estimates[0] + 0.1 * estimates[1] == pytest.approx(0.3681, abs=1e-4)


def test_the_kl_of_punished_tokens_grows_with_their_log_ratio_not_with_its_exponential():
    assert kl_of_a_token(-12.0, -2.0) == pytest.approx(9.0, abs=1e-3)
    # The log-ratio is bounded to 20 either way
    assert kl_of_a_token(-200.0, -1.0) == kl_of_a_token(-21.0, -1.0) == pytest.approx(19.0)
    assert kl_of_a_token(-1.0, -200.0) == kl_of_a_token(-1.0, -21.0) < float("inf")


def test_the_kl_includes_tokens_without_a_reward():
    logps, old_logps, rewards, mask = policy_batch((3, 47))
    _, metrics = token_policy_loss(logps, old_logps, rewards, mask)
    total, count = metrics["kl"]
    assert count == mask.sum()
    tokens = [kl_of_a_token(logp, old_logp) for logp, old_logp in zip(logps[mask], old_logps[mask], strict=True)]
    assert total.item() == pytest.approx(sum(tokens), rel=1e-4)


def test_the_random_batches_clip_on_both_sides():
    logps, old_logps, rewards, mask = policy_batch((5, 31))
    ratio = (logps - old_logps).exp()
    assert ((ratio > 1.3) & (rewards > 0) & mask).any()
    assert ((ratio < 0.7) & (rewards < 0) & mask).any()
    assert ((ratio > 1.3) & (rewards < 0) & mask).any()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_two_tokens_worked_out_by_hand(loss_type):
    # rho is 1 and 2: the first token is free, the second clipped to 1.3
    logps = torch.tensor([[math.log(0.5), math.log(0.2)]], requires_grad=True)
    old_logps = torch.tensor([[math.log(0.5), math.log(0.1)]])
    rewards = torch.tensor([[0.4, 0.2]])
    mask = torch.tensor([[True, True]])
    loss, metrics = token_policy_loss(logps, old_logps, rewards, mask, loss_type=loss_type)
    (gradient,) = torch.autograd.grad(loss, logps)
    if loss_type == "rlmec":
        assert loss.item() == pytest.approx(-(0.4 * math.log(0.5) + 0.26 * math.log(0.2)) / 2, rel=1e-5)
        torch.testing.assert_close(gradient, torch.tensor([[-0.2, -0.13]]))
    else:
        assert loss.item() == pytest.approx(-(0.4 + 0.26) / 2, rel=1e-5)
        torch.testing.assert_close(gradient, torch.tensor([[-0.2, 0.0]]))
    assert [value.item() for value in metrics["clip_ratio/region_mean"]] == [1, 2]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_punished_token_that_became_more_likely_keeps_its_whole_ratio(loss_type):
    # min() takes the unclipped 2 * -0.1, the smaller of the two: clipping does not protect a punished token
    logps = torch.tensor([[math.log(0.2)]], requires_grad=True)
    loss, metrics = token_policy_loss(
        logps,
        torch.tensor([[math.log(0.1)]]),
        torch.tensor([[-0.1]]),
        torch.tensor([[True]]),
        loss_type=loss_type,
    )
    (gradient,) = torch.autograd.grad(loss, logps)
    torch.testing.assert_close(gradient, torch.tensor([[0.2]]))
    assert metrics["clip_ratio/region_mean"][0] == 0


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_values_outside_the_mask_affect_neither_loss_nor_gradient(garbage, loss_type):
    logps, old_logps, rewards, mask = policy_batch((5, 31), seed=2)
    clean = logps.clone().requires_grad_()
    expected, expected_metrics = token_policy_loss(clean, old_logps, rewards, mask, loss_type=loss_type)
    (expected_gradient,) = torch.autograd.grad(expected, clean)

    dirty = logps.masked_fill(~mask, garbage).requires_grad_()
    loss, metrics = token_policy_loss(
        dirty,
        old_logps.masked_fill(~mask, garbage),
        rewards.masked_fill(~mask, garbage),
        mask,
        loss_type=loss_type,
    )
    (gradient,) = torch.autograd.grad(loss, dirty)
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, expected_gradient)
    assert (gradient[~mask] == 0).all()
    assert metrics == expected_metrics


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("num_active", [None, 0, 25.0])
def test_without_a_reward_the_loss_is_a_differentiable_zero(num_active, loss_type):
    logps, old_logps, rewards, mask = policy_batch((3, 47))
    for zero_rewards, some_mask in ((torch.zeros_like(rewards), mask), (rewards, torch.zeros_like(mask))):
        logps = logps.detach().requires_grad_()
        loss, metrics = token_policy_loss(
            logps, old_logps, zero_rewards, some_mask, num_active=num_active, loss_type=loss_type
        )
        (gradient,) = torch.autograd.grad(loss, logps)
        assert loss == 0
        assert torch.equal(gradient, torch.zeros_like(logps))
        assert metrics["clip_ratio/region_mean"][1] == 0


@pytest.mark.parametrize("old_logp", [-200.0, -float("inf")])
def test_a_rewarded_token_with_an_old_probability_near_zero_is_clipped(old_logp):
    for loss_type, expected in (("rlmec", -1.3 * 0.5), ("ppo", 0.0)):
        logps = torch.tensor([[-1.0]], requires_grad=True)
        loss, _ = token_policy_loss(
            logps, torch.tensor([[old_logp]]), torch.tensor([[0.5]]), torch.tensor([[True]]), loss_type=loss_type
        )
        (gradient,) = torch.autograd.grad(loss, logps)
        assert gradient.item() == pytest.approx(expected, rel=1e-5)
        assert loss.item() == pytest.approx(-1.3 * 0.5 * (-1.0 if loss_type == "rlmec" else 1.0), rel=1e-5)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("reward", [-0.1, 0.0, 0.5])
@pytest.mark.parametrize(("logp", "old_logp"), [(-1.0, -200.0), (-200.0, -1.0), (-0.0, -float("inf"))])
def test_extreme_ratios_stay_finite(logp, old_logp, reward, loss_type):
    logps = torch.tensor([[logp, -1.0]], requires_grad=True)
    loss, metrics = token_policy_loss(
        logps,
        torch.tensor([[old_logp, -1.0]]),
        torch.tensor([[reward, 0.1]]),
        torch.tensor([[True, True]]),
        loss_type=loss_type,
    )
    (gradient,) = torch.autograd.grad(loss, logps)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert all(value.isfinite() for pair in metrics.values() for value in pair)


def test_a_punished_token_with_a_new_probability_near_zero_has_the_clipped_weight():
    logps = torch.tensor([[-200.0]], requires_grad=True)
    loss, _ = token_policy_loss(logps, torch.tensor([[-1.0]]), torch.tensor([[-0.1]]), torch.tensor([[True]]))
    (gradient,) = torch.autograd.grad(loss, logps)
    torch.testing.assert_close(gradient, torch.tensor([[0.07]]))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_bf16_inputs_are_computed_in_float32(loss_type):
    logps, old_logps, rewards, mask = policy_batch((5, 31))
    low = [tensor.bfloat16() for tensor in (logps, old_logps, rewards)]
    loss, metrics = token_policy_loss(*low, mask, loss_type=loss_type)
    expected, expected_metrics = token_policy_loss(*[tensor.float() for tensor in low], mask, loss_type=loss_type)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert metrics == expected_metrics
    assert all(value.dtype == torch.float32 for pair in metrics.values() for value in pair)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_micro_batches_with_the_global_count_add_up(loss_type):
    logps, old_logps, rewards, mask = policy_batch((5, 31))
    whole, whole_metrics = token_policy_loss(logps, old_logps, rewards, mask, loss_type=loss_type)
    num_active = (mask & (rewards != 0)).sum()
    parts = [
        token_policy_loss(
            *[t[rows] for t in (logps, old_logps, rewards, mask)], num_active=num_active, loss_type=loss_type
        )
        for rows in (slice(0, 1), slice(1, 4), slice(4, 5))
    ]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole)
    for name, pair in whole_metrics.items():
        for index in range(2):
            torch.testing.assert_close(sum(metrics[name][index] for _, metrics in parts), pair[index])


def test_the_inputs_are_not_modified():
    batch = policy_batch((3, 47))
    before = [tensor.clone() for tensor in batch]
    token_policy_loss(*batch)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(batch, before, strict=True))


def test_neither_old_logps_nor_rewards_get_a_gradient_through_the_weight():
    logps, old_logps, rewards, mask = policy_batch((3, 47))
    for tensor in (logps, old_logps, rewards):
        tensor.requires_grad_()
    loss, metrics = token_policy_loss(logps, old_logps, rewards, mask)
    assert torch.autograd.grad(loss, [old_logps, rewards], allow_unused=True) == (None, None)
    assert not any(value.requires_grad for pair in metrics.values() for value in pair)


def test_an_unknown_loss_type_is_refused():
    with pytest.raises(ValueError, match="'rlmec' or 'ppo', got 'grpo'"):
        token_policy_loss(*policy_batch((1, 1)), loss_type="grpo")


def naive_imitation_loss(logps, weights, num_weighted=None):
    rows, columns = logps.shape
    weighted = [(i, j) for i in range(rows) for j in range(columns) if weights[i, j] != 0]
    denominator = max(num_weighted if num_weighted is not None else len(weighted), 1)
    loss = nll = 0.0
    gradient = torch.zeros(rows, columns, dtype=torch.float64)
    for i, j in weighted:
        loss -= weights[i, j].item() * logps[i, j].item() / denominator
        nll -= logps[i, j].item()
        gradient[i, j] = -weights[i, j].item() / denominator
    return loss, gradient, nll, len(weighted)


def imitation_batch(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logps = -3 * torch.rand(shape, generator=generator)
    weights = torch.tensor([0.0, 0.5, 1.0])[torch.randint(3, shape, generator=generator)]
    weights[0, 0] = 0.5
    return logps, weights


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_weighted", [None, 1234.0, torch.tensor(17)])
def test_imitation_loss_and_gradient_are_those_of_the_equation(shape, num_weighted):
    logps, weights = imitation_batch(shape)
    logps.requires_grad_()
    loss, metrics = imitation_loss(logps, weights, num_weighted)
    (gradient,) = torch.autograd.grad(loss, logps)

    count = None if num_weighted is None else float(num_weighted)
    expected_loss, expected_gradient, nll, num_counted = naive_imitation_loss(logps.detach(), weights, count)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5)
    torch.testing.assert_close(gradient, expected_gradient.float())
    assert metrics["imitation_nll"][0].item() == pytest.approx(nll, rel=1e-5)
    assert metrics["imitation_nll"][1].item() == num_counted


def test_two_imitated_tokens_worked_out_by_hand():
    # The edited token has weight 1, the other .5, and the sum is divided by the number of tokens, not by the weights
    logps = torch.tensor([[math.log(0.5), math.log(0.25)]], requires_grad=True)
    loss, metrics = imitation_loss(logps, torch.tensor([[0.5, 1.0]]))
    (gradient,) = torch.autograd.grad(loss, logps)
    assert loss.item() == pytest.approx((0.5 * math.log(2) + math.log(4)) / 2, rel=1e-5)
    torch.testing.assert_close(gradient, torch.tensor([[-0.25, -0.5]]))
    assert metrics["imitation_nll"][0].item() == pytest.approx(math.log(8), rel=1e-5)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf")])
def test_values_without_a_weight_affect_neither_loss_nor_gradient(garbage):
    logps, weights = imitation_batch((5, 31))
    clean = logps.clone().requires_grad_()
    expected, expected_metrics = imitation_loss(clean, weights)
    (expected_gradient,) = torch.autograd.grad(expected, clean)

    dirty = logps.masked_fill(weights == 0, garbage).requires_grad_()
    loss, metrics = imitation_loss(dirty, weights)
    (gradient,) = torch.autograd.grad(loss, dirty)
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, expected_gradient)
    assert metrics == expected_metrics


@pytest.mark.parametrize("num_weighted", [None, 0, 25.0])
def test_without_a_weight_the_loss_is_a_differentiable_zero(num_weighted):
    logps = torch.randn(3, 47, requires_grad=True)
    loss, metrics = imitation_loss(logps, torch.zeros(3, 47), num_weighted)
    (gradient,) = torch.autograd.grad(loss, logps)
    assert loss == 0
    assert torch.equal(gradient, torch.zeros_like(logps))
    assert metrics["imitation_nll"] == (0, 0)


def test_imitation_of_bf16_inputs_is_computed_in_float32():
    logps, weights = imitation_batch((5, 31))
    loss, metrics = imitation_loss(logps.bfloat16(), weights.bfloat16())
    expected, expected_metrics = imitation_loss(logps.bfloat16().float(), weights)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert metrics == expected_metrics


def test_imitation_of_micro_batches_with_the_global_count_adds_up():
    logps, weights = imitation_batch((5, 31))
    whole, whole_metrics = imitation_loss(logps, weights)
    nll, count = whole_metrics["imitation_nll"]
    parts = [imitation_loss(logps[row, None], weights[row, None], (weights != 0).sum()) for row in range(5)]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole)
    torch.testing.assert_close(sum(metrics["imitation_nll"][0] for _, metrics in parts), nll)
    torch.testing.assert_close(sum(metrics["imitation_nll"][1] for _, metrics in parts), count)
