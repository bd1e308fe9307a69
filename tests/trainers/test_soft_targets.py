"""Soft targets against the full logits in double precision, and as a part of a model's forward."""

import inspect

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from rlmec_trl.trainers.soft_targets import add_soft_target_head, expected_logps, tempered_targets


def soft_batch(tokens, vocabulary=29, hidden=8, k=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden_states = torch.randn(tokens, hidden, generator=generator)
    weight = torch.randn(vocabulary, hidden, generator=generator)
    bias = torch.randn(vocabulary, generator=generator)
    target_ids = torch.stack([torch.randperm(vocabulary, generator=generator)[:k] for _ in range(tokens)])
    target_probs = torch.rand(tokens, k, generator=generator)
    return hidden_states, weight, bias, target_ids, target_probs / target_probs.sum(dim=-1, keepdim=True)


def naive_expected_logps(hidden_states, weight, bias, target_ids, target_probs, label_smoothing, softcap):
    """Token by token, over the whole vocabulary."""
    vocabulary = weight.size(0)
    values = []
    for hidden, ids, probs in zip(hidden_states, target_ids, target_probs, strict=True):
        logits = weight @ hidden
        if bias is not None:
            logits = logits + bias
        if softcap is not None:
            logits = softcap * (logits / softcap).tanh()
        target = torch.full((vocabulary,), label_smoothing / vocabulary, dtype=weight.dtype)
        for token_id, prob in zip(ids.tolist(), probs.tolist(), strict=True):
            target[token_id] += (1 - label_smoothing) * prob
        values.append((target * logits.log_softmax(dim=0)).sum())
    return torch.stack(values)


@pytest.mark.parametrize("tokens", [1, 31])
@pytest.mark.parametrize("tile_tokens", [1, 7, 1000])
@pytest.mark.parametrize(
    ("label_smoothing", "softcap", "has_bias"),
    [(0.0, None, False), (0.0, None, True), (0.1, None, False), (0.0, 2.0, False), (0.3, 2.0, True)],
)
def test_values_and_gradients_are_those_of_the_full_logits(tokens, tile_tokens, label_smoothing, softcap, has_bias):
    hidden_states, weight, bias, target_ids, target_probs = soft_batch(tokens)
    parameters = [hidden_states, weight, bias] if has_bias else [hidden_states, weight]
    for tensor in parameters:
        tensor.requires_grad_()
    # Different weights, so that a mix-up of tokens between tiles shows in the gradient
    coefficients = torch.linspace(0.5, 2, tokens)

    values = expected_logps(
        hidden_states,
        weight,
        bias if has_bias else None,
        target_ids,
        target_probs,
        label_smoothing,
        softcap,
        tile_tokens,
    )
    gradients = torch.autograd.grad((coefficients * values).sum(), parameters)

    doubles = [tensor.detach().double().requires_grad_() for tensor in parameters]
    expected = naive_expected_logps(
        doubles[0],
        doubles[1],
        doubles[2] if has_bias else None,
        target_ids,
        target_probs.double(),
        label_smoothing,
        softcap,
    )
    expected_gradients = torch.autograd.grad((coefficients.double() * expected).sum(), doubles)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, expected.float(), rtol=1e-4, atol=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient.float(), rtol=1e-4, atol=1e-4)


def test_two_candidates_worked_out_by_hand():
    # Logits 0 and log 3: the policy gives 1/4 and 3/4
    weight = torch.tensor([[1.0], [3.0]]).log()
    values = expected_logps(
        torch.ones(1, 1), weight, None, torch.tensor([[1, 0]]), torch.tensor([[0.9, 0.1]]), label_smoothing=0.5
    )
    expected = (0.5 * 0.9 + 0.25) * torch.tensor(0.75).log() + (0.5 * 0.1 + 0.25) * torch.tensor(0.25).log()
    torch.testing.assert_close(values, expected[None])


def test_bf16_states_give_float32_values():
    hidden_states, weight, _, target_ids, target_probs = soft_batch(7)
    values = expected_logps(hidden_states.bfloat16(), weight, None, target_ids, target_probs)
    exact = expected_logps(hidden_states, weight, None, target_ids, target_probs)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, exact, rtol=0.03, atol=0.1)


def test_no_token_at_all_is_still_part_of_the_graph():
    hidden_states, weight, _, target_ids, target_probs = soft_batch(3)
    hidden_states.requires_grad_()
    values = expected_logps(hidden_states[:0], weight, None, target_ids[:0], target_probs[:0])
    assert values.shape == (0,)
    (gradient,) = torch.autograd.grad(values.sum(), hidden_states)
    assert torch.equal(gradient, torch.zeros_like(hidden_states))


def test_tempered_targets_renormalize_what_was_stored():
    logps = torch.tensor([[0.5, 0.2, 0.05]]).log()
    torch.testing.assert_close(tempered_targets(logps, 1.0), torch.tensor([[0.5, 0.2, 0.05]]) / 0.75)
    squares = torch.tensor([[0.25, 0.04, 0.0025]])
    torch.testing.assert_close(tempered_targets(logps, 0.5), squares / squares.sum())
    roots = torch.tensor([[0.5, 0.2, 0.05]]).sqrt()
    torch.testing.assert_close(tempered_targets(logps, 2.0), roots / roots.sum())


def test_an_unused_candidate_gets_exactly_nothing_at_any_temperature():
    logps = torch.tensor([[0.0, -float("inf")]], dtype=torch.bfloat16)
    for temperature in (0.1, 1.0, 10.0):
        probs = tempered_targets(logps, temperature)
        assert probs.dtype == torch.float32
        assert probs.tolist() == [[1.0, 0.0]]


@pytest.fixture
def batch():
    """Two sequences of different lengths with labels on the completions, and weights on fewer tokens than that."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(3, 60, (3, 9), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    labels = input_ids.clone()
    labels[:, :3] = -100
    for row, length in enumerate((9, 6, 8)):
        attention_mask[row, length:] = 0
        labels[row, length:] = -100
    target_mask = labels != -100
    target_mask[2] = False
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}, target_mask


@pytest.fixture
def make_soft_policy(make_policy):
    def make(softcap=None):
        model = make_policy(sharpness=20.0)
        if softcap is not None:
            model.config.final_logit_softcapping = softcap
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        add_soft_target_head(model)
        return model

    return make


def one_hot_targets(input_ids, k=1):
    target_probs = torch.zeros(*input_ids.shape, k)
    target_probs[..., -1] = 1.0
    # The other candidates have probability zero
    return torch.stack([*[torch.full_like(input_ids, 5)] * (k - 1), input_ids], dim=-1), target_probs


@pytest.mark.parametrize("softcap", [None, 1.0])
@pytest.mark.parametrize("k", [1, 3])
def test_one_hot_targets_give_the_hard_log_probs_and_gradients(batch, make_soft_policy, k, softcap):
    inputs, target_mask = batch
    model = make_soft_policy(softcap)
    target_ids, target_probs = one_hot_targets(inputs["input_ids"], k)
    outputs = model(
        **inputs, fused_lm_head=True, target_ids=target_ids, target_probs=target_probs, target_mask=target_mask
    )
    hard = torch.where(target_mask[:, 1:], outputs["log_probs"], 0.0)
    torch.testing.assert_close(outputs["expected_logps"], hard, rtol=0, atol=1e-6)
    assert (outputs["expected_logps"] != 0).sum() == target_mask.sum()

    gradients = torch.autograd.grad(outputs["expected_logps"].square().sum(), model.parameters(), retain_graph=True)
    hard_gradients = torch.autograd.grad(hard.square().sum(), model.parameters())
    for gradient, hard_gradient in zip(gradients, hard_gradients, strict=True):
        torch.testing.assert_close(gradient, hard_gradient, rtol=1e-4, atol=1e-5)


def test_soft_targets_in_the_model_are_those_of_its_own_logits(batch, make_soft_policy):
    inputs, target_mask = batch
    model = make_soft_policy()
    generator = torch.Generator().manual_seed(1)
    target_ids = torch.randint(60, (*inputs["input_ids"].shape, 4), generator=generator)
    target_probs = torch.rand(target_ids.shape, generator=generator).softmax(dim=-1)
    outputs = model(
        **inputs,
        fused_lm_head=True,
        target_ids=target_ids,
        target_probs=target_probs,
        target_mask=target_mask,
        label_smoothing=0.2,
    )
    logps = model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.log_softmax(dim=-1)
    for row in range(3):
        for position in range(1, 9):
            # The token at a position is predicted by the state before it
            predicted = logps[row, position - 1]
            soft = (target_probs[row, position] * predicted[target_ids[row, position]]).sum()
            expected = 0.8 * soft + 0.2 * predicted.mean() if target_mask[row, position] else torch.tensor(0.0)
            torch.testing.assert_close(outputs["expected_logps"][row, position - 1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("both", [True, False])
def test_distributions_on_the_attempt_are_not_smoothed(both, batch, make_soft_policy):
    inputs, mask = batch
    model = make_soft_policy()
    ids = torch.randint(60, (*inputs["input_ids"].shape, 4), generator=torch.Generator().manual_seed(2))
    probs = torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)).softmax(dim=-1)
    attempt = {"attempt_target_ids": ids, "attempt_target_probs": probs, "attempt_mask": mask}
    target_ids, target_probs = one_hot_targets(inputs["input_ids"])
    targets = {"target_ids": target_ids, "target_probs": target_probs, "target_mask": mask, "label_smoothing": 0.3}
    outputs = model(**inputs, fused_lm_head=True, **attempt, **(targets if both else {}))
    alone = model(**inputs, fused_lm_head=True, target_ids=ids, target_probs=probs, target_mask=mask)
    assert torch.equal(outputs["attempt_expected_logps"], alone["expected_logps"])
    assert ("expected_logps" in outputs) == both
    if both:
        smoothed = model(**inputs, fused_lm_head=True, **targets)
        assert torch.equal(outputs["expected_logps"], smoothed["expected_logps"])


def test_a_batch_without_imitated_tokens_supports_backward(batch, make_soft_policy):
    inputs, target_mask = batch
    model = make_soft_policy()
    target_ids, target_probs = one_hot_targets(inputs["input_ids"])
    outputs = model(
        **inputs,
        fused_lm_head=True,
        target_ids=target_ids,
        target_probs=target_probs,
        target_mask=torch.zeros_like(target_mask),
    )
    assert torch.equal(outputs["expected_logps"], torch.zeros(3, 8))
    outputs["expected_logps"].sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_without_targets_the_outputs_are_unchanged(batch, make_soft_policy, make_policy):
    inputs, _ = batch
    model, plain = make_soft_policy(), make_policy(sharpness=20.0)
    add_fused_lm_head(plain)
    assert torch.equal(model(inputs["input_ids"]).logits, plain(inputs["input_ids"]).logits)
    outputs = model(**inputs, fused_lm_head=True)
    assert "expected_logps" not in outputs
    assert torch.equal(outputs["log_probs"], plain(**inputs, fused_lm_head=True)["log_probs"])
    # `generate` reads the signature to know which arguments the model takes
    assert inspect.signature(model.forward) == inspect.signature(plain.forward)


def test_hooks_are_removed_even_after_an_exception(batch, make_soft_policy):
    inputs, target_mask = batch
    model = make_soft_policy()
    target_ids, target_probs = one_hot_targets(inputs["input_ids"])
    targets = {"target_ids": target_ids, "target_probs": target_probs, "target_mask": target_mask}
    model(**inputs, fused_lm_head=True, **targets)
    assert not model.base_model._forward_hooks
    with pytest.raises(IndexError):
        model(inputs["input_ids"] + 10_000, labels=inputs["labels"], fused_lm_head=True, **targets)
    assert not model.base_model._forward_hooks


@pytest.mark.parametrize("name", ["logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier"])
def test_a_model_that_scales_its_logits_is_refused(name, make_policy):
    model = make_policy()
    setattr(model.config, name, 0.5)
    with pytest.raises(ValueError, match=f"{name}.*Set `imitation_targets='hard'`"):
        add_soft_target_head(model)
    setattr(model.config, name, 1.0)
    add_soft_target_head(model)
