"""
The losses as pure tensor functions, in float32 (equations of https://huggingface.co/papers/2401.06081).

Each function returns `(loss, metrics)`. A metric is a pair `(sum, count)` of 0-d float32 tensors, so that
micro-batches and processes add up exactly; its value is `sum / count`.
"""

import torch


Metrics = dict[str, tuple[torch.Tensor, torch.Tensor]]


def _denominator(count: torch.Tensor | float | None, counted: torch.Tensor) -> torch.Tensor:
    # A batch without a counted token gives a differentiable zero rather than 0 / 0.
    count = counted.sum() if count is None else torch.as_tensor(count, device=counted.device)
    return count.float().clamp(min=1.0)


def token_policy_loss(
    logps: torch.Tensor,
    old_logps: torch.Tensor,
    token_rewards: torch.Tensor,
    mask: torch.Tensor,
    epsilon: float = 0.3,
    num_active: torch.Tensor | float | None = None,
    loss_type: str = "rlmec",
) -> tuple[torch.Tensor, Metrics]:
    """
    Clipped policy-gradient loss with one reward per token.

    With `rho_t = exp(logps_t - old_logps_t)` and `a_t = min(rho_t r_t, clip(rho_t, 1 - epsilon, 1 + epsilon) r_t)`,

    - `"rlmec"`: `- sum_t sg[a_t] logps_t / N`, where the clipped ratio only weights the log-probability's gradient;
    - `"ppo"`: `- sum_t a_t / N`, where the gradient flows through the ratio, so that clipped tokens have none.

    The log-ratio `logps_t - old_logps_t` is bounded to ±20.

    Args:
        logps (`torch.Tensor` of shape `(batch, tokens)`, float32):
            Log-probability of each completion token under the policy, with gradient.
        old_logps (`torch.Tensor` of shape `(batch, tokens)`, float32):
            Log-probability of each completion token under the policy that sampled it.
        token_rewards (`torch.Tensor` of shape `(batch, tokens)`, float32):
            Reward of each token.
        mask (`torch.Tensor` of shape `(batch, tokens)`, dtype `bool`):
            True on completion tokens. The other tensors are ignored elsewhere, NaN included.
        epsilon (`float`, *optional*, defaults to `0.3`):
            Half-width of the clipping range.
        num_active (`torch.Tensor` or `float`, *optional*):
            The denominator N: the number of tokens with a nonzero reward in the whole optimizer step. If `None`, the
            tokens of this batch are counted.
        loss_type (`str`, *optional*, defaults to `"rlmec"`):
            `"rlmec"` or `"ppo"`.

    Returns:
        `tuple[torch.Tensor, dict]`: The loss, a 0-d float32 tensor, and the metrics `clip_ratio/region_mean` (over
        tokens with a reward) and `kl` (over all completion tokens: the divergence KL(old || new) from the policy that
        sampled them, by the non-negative estimator `exp(d) - 1 - d` with `d = logps - old_logps`).

    Raises:
        `ValueError`: If `loss_type` is unknown.
    """
    rewards = token_rewards.float().masked_fill(~mask, 0.0)
    logps = logps.float().masked_fill(~mask, 0.0)
    # Bounded so that an old log-probability of -inf gives a large ratio, not an infinite one: inf * 0 is NaN.
    log_ratio = (logps - old_logps.float().masked_fill(~mask, 0.0)).clamp(-20.0, 20.0)
    ratio = log_ratio.exp()
    clipped_ratio = ratio.clamp(1 - epsilon, 1 + epsilon)
    advantage = torch.minimum(ratio * rewards, clipped_ratio * rewards)
    if loss_type == "rlmec":
        per_token_loss = -advantage.detach() * logps
    elif loss_type == "ppo":
        per_token_loss = -advantage
    else:
        raise ValueError(f"`loss_type` must be 'rlmec' or 'ppo', got {loss_type!r}.")

    active = rewards != 0  # `rewards` is zero outside the mask
    loss = per_token_loss.sum() / _denominator(num_active, active)

    with torch.no_grad():
        clipped = ((ratio < 1 - epsilon) & (rewards < 0)) | ((ratio > 1 + epsilon) & (rewards > 0))
        kl = torch.expm1(log_ratio) - log_ratio  # unbiased, because the old policy sampled the tokens
        metrics = {
            "clip_ratio/region_mean": (clipped.sum().float(), active.sum().float()),
            "kl": (kl.sum(), mask.sum().float()),
        }
    return loss, metrics


def imitation_loss(
    logps: torch.Tensor, weights: torch.Tensor, num_weighted: torch.Tensor | float | None = None
) -> tuple[torch.Tensor, Metrics]:
    """
    Weighted negative log-likelihood of the rewrite: `- sum_t w_t logps_t / M`.

    For soft imitation, pass the expected log-probability under the target distribution as `logps`.

    Args:
        logps (`torch.Tensor` of shape `(batch, tokens)`, float32):
            Log-probability of each token of the rewrite under the policy, with gradient. Ignored where the weight is
            zero, NaN included.
        weights (`torch.Tensor` of shape `(batch, tokens)`, float32):
            Weight of each token (see [`~rlmec_trl.credit.alignment.edit_weights`]); zero on prompt and padding.
        num_weighted (`torch.Tensor` or `float`, *optional*):
            The denominator M: the number of tokens with a nonzero weight in the whole optimizer step. If `None`, the
            tokens of this batch are counted.

    Returns:
        `tuple[torch.Tensor, dict]`: The loss, a 0-d float32 tensor, and the metric `imitation_nll`, the unweighted
        negative log-likelihood of the tokens with a nonzero weight.
    """
    weighted = weights != 0
    logps = logps.float().masked_fill(~weighted, 0.0)
    loss = -(weights.float() * logps).sum() / _denominator(num_weighted, weighted)
    metrics = {"imitation_nll": (-logps.detach().sum(), weighted.sum().float())}
    return loss, metrics
