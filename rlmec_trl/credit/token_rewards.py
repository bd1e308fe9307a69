"""From the probabilities of a generative reward model to token rewards."""

import math
from collections.abc import Sequence

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


def rewards_from_probs(
    token_probs: Sequence[float | None],
    correct: bool,
    baseline: float = 0.5,
    positive: tuple[float, float] = (0.0, 0.5),
    negative: tuple[float, float] = (-0.1, 0.0),
    negative_credit: str = "all",
) -> list[float | None]:
    """
    Token rewards of one sample, by [`clip_token_rewards`].

    Args:
        token_probs (`Sequence[float | None]`):
            Probability of each completion token, `None` for no opinion.
        correct (`bool`):
            Whether the sample's final answer is correct.
        baseline, positive, negative:
            As in [`clip_token_rewards`].
        negative_credit (`str`, *optional*, defaults to `"all"`):
            Which tokens keep a negative reward: `"all"`, or `"first_error"` for only the first of them.

    Returns:
        `list[float | None]`: A reward for each token, `None` where there is no probability. A probability that is NaN
        gives NaN.
    """
    probs = torch.tensor([[math.nan if prob is None else prob for prob in token_probs]], dtype=torch.float32)
    rewards = clip_token_rewards(probs, torch.tensor([correct]), baseline, positive, negative)
    if negative_credit == "first_error":
        rewards = keep_first_negative(rewards)
    return [None if prob is None else reward for prob, reward in zip(token_probs, rewards[0].tolist(), strict=True)]
