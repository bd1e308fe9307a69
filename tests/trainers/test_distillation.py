"""Divergence from a teacher's whole distribution, against log-softmax over full logits."""

import pytest
import torch

from rlmec_trl.data.errors import ConfigError
from rlmec_trl.trainers.distillation import Head, add_distillation_head, divergence


def naive(hidden, head, teacher, teacher_head, kind, temperature):
    size = min(head.weight.size(0), teacher_head.weight.size(0))

    def logps(states, one):
        logits = states @ one.weight[:size].T
        if one.bias is not None:
            logits = logits + one.bias[:size]
        if one.softcap is not None:
            logits = one.softcap * torch.tanh(logits / one.softcap)
        return torch.log_softmax(logits / temperature, dim=-1)

    policy, target = logps(hidden, head), logps(teacher, teacher_head).detach()
    rows = []
    for p, g in zip(policy, target, strict=True):
        pairs = zip(p, g, strict=True)
        rows.append(
            sum(torch.exp(a) * (a - b) for a, b in pairs)
            if kind == "reverse_kl"
            else -sum(torch.exp(b) * a for a, b in pairs)
        )
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["reverse_kl", "cross_entropy"])
@pytest.mark.parametrize(
    ("tokens", "sizes", "vocabs", "bias", "softcap", "temperature"),
    [
        (7, (5, 5), (11, 11), False, None, 1.0),
        (3, (4, 6), (13, 9), True, None, 0.7),
        (1, (3, 2), (5, 8), False, 2.0, 1.3),
        (5, (2, 2), (3, 3), True, 1.0, 1.0),
    ],
)
def test_values_and_gradients_against_full_logits(kind, tokens, sizes, vocabs, bias, softcap, temperature):
    generator = torch.Generator().manual_seed(tokens)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    hidden = random(tokens, sizes[0]).requires_grad_()
    weight = random(vocabs[0], sizes[0]).requires_grad_()
    teacher = random(tokens, sizes[1])
    own_bias, other_bias = (random(vocabs[0]), random(vocabs[1])) if bias else (None, None)
    heads = Head(weight, own_bias, softcap), Head(random(vocabs[1], sizes[1]), other_bias, None)
    upstream = random(tokens)
    results = []
    for compute in (
        lambda: divergence(hidden, heads[0], teacher, heads[1], kind, temperature, tile_tokens=2),
        lambda: naive(hidden, heads[0], teacher, heads[1], kind, temperature),
    ):
        values = compute()
        gradients = torch.autograd.grad((values * upstream).sum(), [hidden, weight])
        results.append((values, *gradients))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_reverse_kl_is_zero_where_policy_and_teacher_agree():
    states, head = torch.randn(4, 3), Head(torch.randn(7, 3))
    torch.testing.assert_close(divergence(states, head, states, head), torch.zeros(4), atol=1e-6, rtol=0)


def test_the_head_of_a_model_gives_what_its_logits_give(make_policy):
    from trl.trainer.utils import add_fused_lm_head

    model, teacher = make_policy(sharpness=4), make_policy(sharpness=2, mixing=3)
    ids = torch.randint(4, 40, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 3:6] = mask[1, 8] = True
    with torch.no_grad():
        logps = [one(ids).logits[:, :-1].log_softmax(-1) for one in (model, teacher)]
        states = torch.zeros(2, 9, 16)
        states[:, 1:] = teacher.model(ids).last_hidden_state[:, :-1]
    expected = (logps[0].exp() * (logps[0] - logps[1])).sum(-1) * mask[:, 1:]
    add_fused_lm_head(model)
    add_distillation_head(model, teacher)
    outputs = model(
        ids, labels=ids.masked_fill(~mask, -100), fused_lm_head=True, teacher_states=states, teacher_mask=mask
    )
    torch.testing.assert_close(outputs.divergence, expected, atol=1e-5, rtol=1e-4)
    outputs.divergence.sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters()), "the teacher got a gradient"
    assert model(ids, labels=ids, fused_lm_head=True).log_probs is not None


def test_a_batch_without_a_token_has_a_differentiable_zero(make_policy):
    from trl.trainer.utils import add_fused_lm_head

    model = make_policy()
    add_fused_lm_head(model)
    add_distillation_head(model, make_policy())
    ids = torch.tensor([[4, 5, 6]])
    outputs = model(
        ids,
        labels=torch.full_like(ids, -100),
        fused_lm_head=True,
        teacher_states=torch.zeros(1, 3, 16),
        teacher_mask=torch.zeros(1, 3, dtype=torch.bool),
    )
    loss = outputs.divergence.sum()
    loss.backward()
    assert loss.item() == 0.0


def test_models_that_scale_their_logits_are_refused(make_policy):
    model = make_policy()
    model.config.logit_scale = 0.5
    with pytest.raises(ConfigError, match="logit_scale"):
        add_distillation_head(make_policy(), model)
