"""From a scored row to what the collator needs: token ids, rewards and imitation weights, truncated together."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..data.messages import message_text
from ..data.schema import DatasetError
from ..data.tokens import encode_prompt, encode_rewrite
from .alignment import edit_mask
from .token_rewards import clip_token_rewards, keep_first_negative


PREPARED_COLUMNS = [
    "prompt_ids",
    "completion_ids",
    "token_rewards",
    "old_logps",
    "imitation_ids",
    "imitation_weights",
    "num_edited",
    "imitation_topk_ids",
    "imitation_topk_logps",
    "length",
]


@dataclass(frozen=True)
class RewardSettings:
    """The fields of [`RLMECConfig`] that preparation depends on, and so the ones that its cache is keyed by."""

    max_length: int | None
    reward_baseline: float
    positive_reward_range: tuple[float, float]
    negative_reward_range: tuple[float, float]
    negative_credit: str
    edited_weight: float
    unedited_weight: float
    correct_samples: str
    soft_targets: bool

    @classmethod
    def from_config(cls, config: Any) -> "RewardSettings":
        """Take them from a [`~rlmec_trl.RLMECConfig`], which this room does not know."""
        return cls(
            max_length=config.max_length,
            reward_baseline=config.reward_baseline,
            positive_reward_range=tuple(config.positive_reward_range),
            negative_reward_range=tuple(config.negative_reward_range),
            negative_credit=config.negative_credit,
            edited_weight=config.edited_weight,
            unedited_weight=config.unedited_weight,
            correct_samples=config.correct_samples,
            soft_targets=config.imitation_targets == "soft",
        )


def token_rewards(row: dict[str, Any], correct: bool, settings: RewardSettings) -> list[float]:
    """Rewards of the completion's tokens: the row's own `token_rewards`, or made from its `token_probs`."""
    if row.get("token_rewards") is not None:
        rewards = torch.tensor([row["token_rewards"]], dtype=torch.float32)
    else:
        rewards = clip_token_rewards(
            torch.tensor([row["token_probs"]], dtype=torch.float32),
            torch.tensor([correct]),
            baseline=settings.reward_baseline,
            positive=settings.positive_reward_range,
            negative=settings.negative_reward_range,
        )
    if settings.negative_credit == "first_error":
        rewards = keep_first_negative(rewards)
    return rewards[0].tolist()


def is_copied(row: dict[str, Any]) -> bool:
    """Whether the row has a rewrite that leaves its completion as it is."""
    if row.get("rewrite_ids") is not None:
        return row["rewrite_ids"] == row["completion_ids"]
    if row.get("rewrite") is not None:
        return message_text(row["rewrite"]) == message_text(row["completion"])
    return False


def imitation_target(
    row: dict[str, Any], correct: bool, processing_class: PreTrainedTokenizerBase, settings: RewardSettings
) -> tuple[list[int], list[float], list[bool]]:
    """The ids to imitate, the weight of each, and whether the minimum edit script touches it."""
    completion_ids = row["completion_ids"]
    if correct and settings.correct_samples == "cut":
        flagged = [prob < settings.reward_baseline for prob in row["token_probs"]]
        keep = flagged.index(True) if True in flagged else len(flagged)
        weights = [settings.unedited_weight] * keep + [0.0] * (len(completion_ids) - keep)
        return completion_ids, weights, [False] * len(completion_ids)
    if correct and settings.correct_samples == "keep":
        weights = [settings.unedited_weight] * len(completion_ids)
        return completion_ids, weights, [False] * len(completion_ids)

    if row.get("rewrite_ids") is not None:
        rewrite_ids = row["rewrite_ids"]
    elif row.get("rewrite") is not None:
        rewrite_ids = encode_rewrite(
            processing_class,
            message_text(row["rewrite"]),
            message_text(row["completion"]),
            completion_ids,
            step_separator="\n",
        )
    else:  # no verified rewrite: nothing to imitate
        return [], [], []
    edited = edit_mask(completion_ids, rewrite_ids)
    weights = [settings.edited_weight if is_edited else settings.unedited_weight for is_edited in edited]
    return rewrite_ids, weights, edited


def prepare_row(
    row: dict[str, Any], processing_class: PreTrainedTokenizerBase, settings: RewardSettings
) -> dict[str, Any]:
    """
    Prepare one row of a scored data set for [`~rlmec_trl.trainers.collator.DataCollatorForRLMEC`].

    Args:
        row (`dict`):
            Columns `prompt`, `completion`, `completion_ids`, `token_probs` and `correct` (or `token_rewards`), and
            `rewrite` or `rewrite_ids`; optionally `old_logps`, `rewrite_topk_ids`, `rewrite_topk_logps`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        settings (`RewardSettings`):
            What rewards and weights depend on.

    Returns:
        `dict`: The columns `PREPARED_COLUMNS`; `length` is what `Trainer` can group rows by. Prompt and completion,
        and prompt and rewrite, are cut to `max_length` tokens, and every per-token list with them.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If the prompt has no tokens.
    """
    correct = row.get("correct")
    if correct is None:  # ready rewards without an outcome: a sample is right where it was left as it is
        correct = is_copied(row)
    prompt_ids = encode_prompt(processing_class, row["prompt"])
    if not prompt_ids:  # the completion's first token would have nothing to be predicted from
        raise DatasetError(
            f"Column 'prompt': found {row['prompt']!r}, which the tokenizer turns into no token at all. Give the "
            "problem a text, drop the row, or use a tokenizer that begins a text with BOS."
        )
    imitation_ids, weights, edited = imitation_target(row, correct, processing_class, settings)

    topk_ids, topk_logps = [], []
    if settings.soft_targets and imitation_ids == row.get("rewrite_ids"):
        topk_ids, topk_logps = row["rewrite_topk_ids"] or [], row["rewrite_topk_logps"] or []

    room = slice(None) if settings.max_length is None else slice(max(settings.max_length - len(prompt_ids), 0))
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": row["completion_ids"][room],
        "token_rewards": token_rewards(row, correct, settings)[room],
        "old_logps": (row.get("old_logps") or [])[room],
        "imitation_ids": imitation_ids[room],
        "imitation_weights": weights[room],
        "num_edited": sum(edited[room]),
        "imitation_topk_ids": topk_ids[room],
        "imitation_topk_logps": topk_logps[room],
        "length": len(prompt_ids) + max(len(row["completion_ids"][room]), len(imitation_ids[room])),
    }
