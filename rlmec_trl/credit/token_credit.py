"""Where the outcome's advantage goes among the tokens of a completion."""

import torch


def first_flagged(token_values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    Mark the first token of each completion whose value is negative.

    Args:
        token_values (`torch.Tensor` of shape `(batch, tokens)`):
            Value of each token; NaN, no opinion, is not negative.
        mask (`torch.Tensor` of shape `(batch, tokens)`, dtype `bool`):
            True on the tokens that count.

    Returns:
        `torch.Tensor` of shape `(batch, tokens)`, dtype `bool`: At most one `True` in a row.
    """
    flagged = (token_values < 0) & mask
    return flagged & (flagged.cumsum(dim=-1) == 1)


def token_advantages(
    advantages: torch.Tensor, token_values: torch.Tensor, mask: torch.Tensor, token_credit: str
) -> torch.Tensor:
    """
    One advantage per token, from the outcome's advantage of a completion and the values of its tokens.

    - `"outcome"`: every token gets the outcome's advantage A, as in GRPO.
    - `"add"`: `A + v_t`.
    - `"place"`: where A is negative, the first token with a negative value gets it, and the others get nothing; where
      it is positive, the tokens before the first one with a negative value get it. A completion without a negative
      value is treated as in GRPO.
    - `"scale"`: `A w_t` with `w_t` proportional to `exp(sign(A) v_t)` and 1 on average over the completion: praise
      goes to the tokens with the highest values, and blame to those with the lowest.

    Args:
        advantages (`torch.Tensor` of shape `(batch,)`, float32):
            The outcome's advantages.
        token_values (`torch.Tensor` of shape `(batch, tokens)`, float32):
            Value of each token, NaN where there is no opinion, which counts as 0.
        mask (`torch.Tensor` of shape `(batch, tokens)`, dtype `bool`):
            True on the tokens that the loss counts. The values of others are ignored.
        token_credit (`str`):
            One of the above.

    Returns:
        `torch.Tensor` of shape `(batch, tokens)`, float32.

    Raises:
        `ValueError`: If `token_credit` is unknown.
    """
    spread = advantages.float().unsqueeze(-1).expand(token_values.shape)
    values = token_values.float().nan_to_num(nan=0.0).masked_fill(~mask, 0.0)
    if token_credit == "outcome":
        return spread
    if token_credit == "add":
        return spread + values
    if token_credit == "place":
        first = first_flagged(values, mask)
        before_first = first.cumsum(dim=-1) == 0
        is_flagged = first.any(dim=-1, keepdim=True)
        placed = torch.where(spread < 0, first, before_first)
        return torch.where(is_flagged, spread * placed, spread)
    if token_credit == "scale":
        scores = (advantages.float().sign().unsqueeze(-1) * values).masked_fill(~mask, float("-inf"))
        # A row without a token that counts has no weights
        weights = torch.softmax(scores, dim=-1).nan_to_num(nan=0.0) * mask.sum(dim=-1, keepdim=True)
        return spread * weights
    raise ValueError(f"`token_credit` must be 'outcome', 'add', 'place' or 'scale', got {token_credit!r}.")
