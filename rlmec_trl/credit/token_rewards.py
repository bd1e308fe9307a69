"""From the probabilities of a generative reward model to token rewards."""

import torch


def clip_token_rewards(
    token_probs: torch.Tensor,
    correct: torch.Tensor,
    baseline: float = 0.5,
    positive: tuple[float, float] = (0.0, 0.5),
    negative: tuple[float, float] = (-0.1, 0.0),
) -> torch.Tensor:
    """
    Token rewards of RLMEC (https://huggingface.co/papers/2401.06081): `r_t = clip(p_t - baseline, low, high)`, with
    bounds that depend on the sample's outcome: a correct sample is never punished, an incorrect one never rewarded.

    Args:
        token_probs (`torch.Tensor` of shape `(batch, tokens)`):
            Probability of each completion token under the generative reward model.
        correct (`torch.Tensor` of shape `(batch,)`, dtype `bool`):
            Whether the sample's final answer is correct.
        baseline (`float`, *optional*, defaults to `0.5`):
            Probability at which the reward is zero.
        positive (`tuple[float, float]`, *optional*, defaults to `(0.0, 0.5)`):
            Bounds of the rewards of correct samples.
        negative (`tuple[float, float]`, *optional*, defaults to `(-0.1, 0.0)`):
            Bounds of the rewards of incorrect samples.

    Returns:
        `torch.Tensor` of shape `(batch, tokens)`, float32.
    """
    advantage = token_probs.float() - baseline
    return torch.where(correct.unsqueeze(-1), advantage.clamp(*positive), advantage.clamp(*negative))


def keep_first_negative(token_rewards: torch.Tensor) -> torch.Tensor:
    """
    Set every negative reward of a row to zero except the first.

    The tokens after a sample's first error were scored on a prefix of a kind that the reward model was not trained
    on, so their low probabilities carry little information.

    Args:
        token_rewards (`torch.Tensor` of shape `(batch, tokens)`):
            Token rewards.

    Returns:
        `torch.Tensor` of shape `(batch, tokens)`: Same dtype as `token_rewards`.
    """
    negative = token_rewards < 0
    later = negative & (negative.cumsum(dim=-1) > 1)
    return token_rewards.masked_fill(later, 0.0)
