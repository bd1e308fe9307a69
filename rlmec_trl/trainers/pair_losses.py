"""The pairwise losses of reward models as pure tensor functions, in float32 (https://huggingface.co/papers/2405.19763)."""

import torch
import torch.nn.functional as F


def last_values(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    The value at the last real token of each sequence, which is the reward of the sequence.

    Args:
        values (`torch.Tensor` of shape `(sequences, tokens)`):
            Value of each token.
        mask (`torch.Tensor` of shape `(sequences, tokens)`, dtype `bool`):
            True on real tokens, which may have padding on either side. The padding token may be EOS.

    Returns:
        `torch.Tensor` of shape `(sequences,)`, float32.
    """
    positions = torch.arange(1, mask.size(1) + 1, device=mask.device)
    last = (positions * mask).argmax(-1, keepdim=True)
    return values.float().gather(-1, last).squeeze(-1)


def last_token_pair_loss(
    chosen_rewards: torch.Tensor,
    rejected_rewards: torch.Tensor,
    temperature: float = 1.0,
    margin: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Loss of each pair on the rewards of the whole sequences, `-log sigmoid((r_c - r_r - margin) / T)`. With a
    temperature of 1, it is that of [`~trl.RewardTrainer`].

    Args:
        chosen_rewards, rejected_rewards (`torch.Tensor` of shape `(pairs,)`):
            Reward of each sequence.
        temperature (`float`, *optional*, defaults to `1.0`):
            T.
        margin (`torch.Tensor` of shape `(pairs,)`, *optional*):
            By how much the chosen sequence should be better.

    Returns:
        `torch.Tensor` of shape `(pairs,)`, float32.
    """
    difference = chosen_rewards.float() - rejected_rewards.float()
    if margin is not None:
        difference = difference - margin.float()
    return -F.logsigmoid(difference / temperature)


def divergent_pair_loss(
    chosen_values: torch.Tensor,
    rejected_values: torch.Tensor,
    chosen_ids: torch.Tensor,
    rejected_ids: torch.Tensor,
    chosen_mask: torch.Tensor,
    rejected_mask: torch.Tensor,
    temperature: float = 1.0,
    margin: torch.Tensor | None = None,
    use_pad_values: bool = False,
) -> torch.Tensor:
    """
    Loss of each pair on the tokens from where its two sequences differ.

    With d the first position at which the sequences differ and e the length of the longer one, the loss of a pair is
    the mean over t = d .. e - 1 of `-log sigmoid((v_c[t] - v_r[t] - margin) / T)`. Positions are counted from the
    first real token. Past the end of the shorter sequence, its last value, which is its reward, is repeated. Identical
    sequences are compared at their last token only.

    Args:
        chosen_values, rejected_values (`torch.Tensor` of shape `(pairs, tokens)`):
            Value of each token, computed with in float32 whatever the dtype.
        chosen_ids, rejected_ids (`torch.Tensor` of shape `(pairs, tokens)`):
            Token ids of prompt and completion.
        chosen_mask, rejected_mask (`torch.Tensor` of shape `(pairs, tokens)`, dtype `bool`):
            True on real tokens, which may have padding on either side.
        temperature (`float`, *optional*, defaults to `1.0`):
            T.
        margin (`torch.Tensor` of shape `(pairs,)`, *optional*):
            By how much the chosen sequence should be better.
        use_pad_values (`bool`, *optional*, defaults to `False`):
            Whether the values at padding tokens are used past the end of the shorter sequence, as in the code that was
            released with the paper. They are values of tokens that nobody wrote. Otherwise, values at padding tokens
            are not read.

    Returns:
        `torch.Tensor` of shape `(pairs,)`, float32.
    """
    chosen_lengths, rejected_lengths = chosen_mask.sum(-1, keepdim=True), rejected_mask.sum(-1, keepdim=True)
    lengths = torch.maximum(chosen_lengths, rejected_lengths)
    positions = torch.arange(chosen_mask.size(1), device=chosen_mask.device)

    chosen_order, rejected_order = _real_tokens_first(chosen_mask), _real_tokens_first(rejected_mask)
    same_ids = chosen_ids.gather(-1, chosen_order) == rejected_ids.gather(-1, rejected_order)
    shared = positions < torch.minimum(chosen_lengths, rejected_lengths)
    differ = (positions < lengths) & ~(shared & same_ids)
    # `argmax` gives the first of several positions
    first = torch.where(differ.any(-1, keepdim=True), differ.int().argmax(-1, keepdim=True), lengths - 1)
    compared = (positions >= first) & (positions < lengths)

    if not use_pad_values:
        chosen_order = chosen_order.gather(-1, positions.minimum((chosen_lengths - 1).clamp(min=0)))
        rejected_order = rejected_order.gather(-1, positions.minimum((rejected_lengths - 1).clamp(min=0)))
    difference = chosen_values.float().gather(-1, chosen_order) - rejected_values.float().gather(-1, rejected_order)
    if margin is not None:
        difference = difference - margin.float().unsqueeze(-1)
    # Before the logarithm, so that what is not compared has no gradient even if it is not finite
    difference = difference.masked_fill(~compared, 0.0)
    losses = -F.logsigmoid(difference / temperature) * compared
    return losses.sum(-1) / compared.sum(-1).clamp(min=1)


def _real_tokens_first(mask: torch.Tensor) -> torch.Tensor:
    """For each sequence, the indices of its real tokens in their order, and then those of its padding."""
    return (~mask).int().argsort(dim=-1, stable=True)
