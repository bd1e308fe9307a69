"""From a scored row to what the collator needs: token ids, rewards and imitation weights, truncated together."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from datasets import Features, List, Value
from transformers import PreTrainedTokenizerBase

from ..data.messages import message_text
from ..data.row_checks import row_error
from ..data.tokens import encode_prompt, encode_rewrite
from .alignment import edit_mask
from .token_rewards import keep_first_negative, rewards_from_probs


# Given to `Dataset.map`, which otherwise takes the types from its first rows: where none of them has a rewrite or
# `old_logps`, their lists would be lists of nulls, and the first row that has one would not fit.
PREPARED_FEATURES = Features(
    {
        "prompt_ids": List(Value("int64")),
        "completion_ids": List(Value("int64")),
        "token_rewards": List(Value("float32")),
        "old_logps": List(Value("float32")),
        "imitation_ids": List(Value("int64")),
        "imitation_weights": List(Value("float32")),
        "num_edited": Value("int64"),
        "imitation_topk_ids": List(List(Value("int64"))),
        "imitation_topk_logps": List(List(Value("float32"))),
        "attempt_topk_ids": List(List(Value("int64"))),
        "attempt_topk_logps": List(List(Value("float32"))),
        "length": Value("int64"),
        "completion_truncated": Value("bool"),
        "imitation_truncated": Value("bool"),
        "row": Value("int64"),
    }
)
PREPARED_COLUMNS = list(PREPARED_FEATURES)


@dataclass(frozen=True)
class RewardSettings:
    """The configuration fields that preparation depends on; its cache is keyed by them."""

    max_length: int | None
    reward_baseline: float
    positive_reward_range: tuple[float, float]
    negative_reward_range: tuple[float, float]
    negative_credit: str
    edited_weight: float
    unedited_weight: float
    correct_samples: str
    truncated_rewrites: str
    imitation_targets: str
    distill: bool = False

    @classmethod
    def from_config(cls, config: Any) -> "RewardSettings":
        """
        Read them from a configuration that has all of these fields, such as [`~rlmec_trl.RLMECConfig`]. `distill` is
        whether its `attempt_coef` is not 0: the rows are the same for all other values.
        """
        values = {field.name: getattr(config, field.name) for field in fields(cls) if field.name != "distill"}
        # Lists cannot be hashed
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**values, distill=config.attempt_coef > 0)


def token_rewards(row: dict[str, Any], correct: bool, settings: RewardSettings) -> list[float]:
    """
    Rewards of the completion tokens: the row's own `token_rewards`, or computed from its `token_probs`. Where a
    probability is `None`, the reward is 0.
    """
    if row.get("token_rewards") is None:
        rewards = rewards_from_probs(
            row["token_probs"],
            correct,
            settings.reward_baseline,
            settings.positive_reward_range,
            settings.negative_reward_range,
            settings.negative_credit,
        )
        # Not NaN: one that is in the data has to stop the training
        return [0.0 if reward is None else reward for reward in rewards]
    rewards = torch.tensor([row["token_rewards"]], dtype=torch.float32)
    if settings.negative_credit == "first_error":
        rewards = keep_first_negative(rewards)
    return rewards[0].tolist()


def is_correct(row: dict[str, Any]) -> bool:
    """Whether a sample is correct. Without an outcome, beside rewards, it is if its rewrite leaves it unchanged."""
    correct = row.get("correct")
    return is_copied(row) if correct is None else correct


def is_copied(row: dict[str, Any]) -> bool:
    """Whether the row's rewrite is its completion, unchanged."""
    if row.get("rewrite_ids") is not None:
        return row["rewrite_ids"] == row["completion_ids"]
    if row.get("rewrite") is not None:
        return message_text(row["rewrite"]) == message_text(row["completion"])
    return False


def get_rewrite_ids(row: dict[str, Any], processing_class: PreTrainedTokenizerBase) -> list[int] | None:
    """The token ids of a row's rewrite, `None` where none is verified."""
    if row.get("rewrite_ids") is not None:
        return row["rewrite_ids"]
    if row.get("rewrite") is None:
        return None
    texts = message_text(row["rewrite"]), message_text(row["completion"])
    return encode_rewrite(processing_class, *texts, row["completion_ids"], step_separator="\n")


def num_before_flag(token_probs: list[float | None], baseline: float) -> int:
    """Number of tokens before the first flagged one, or of all tokens if none is flagged."""
    flagged = (index for index, prob in enumerate(token_probs) if prob is not None and prob < baseline)
    return next(flagged, len(token_probs))


def imitation_target(
    row: dict[str, Any], correct: bool, processing_class: PreTrainedTokenizerBase, settings: RewardSettings
) -> tuple[list[int], list[float], list[bool]]:
    """The token ids to imitate, their weights, and whether the minimum edit script changes them."""
    completion_ids = row["completion_ids"]
    if correct and settings.correct_samples == "cut":
        keep = num_before_flag(row["token_probs"], settings.reward_baseline)
        weights = [settings.unedited_weight] * keep + [0.0] * (len(completion_ids) - keep)
        return completion_ids, weights, [False] * len(completion_ids)
    if correct and settings.correct_samples == "keep":
        weights = [settings.unedited_weight] * len(completion_ids)
        return completion_ids, weights, [False] * len(completion_ids)

    rewrite_ids = get_rewrite_ids(row, processing_class)
    if rewrite_ids is None:  # nothing to imitate
        return [], [], []
    edited = edit_mask(completion_ids, rewrite_ids)
    weights = [settings.edited_weight if is_edited else settings.unedited_weight for is_edited in edited]
    return rewrite_ids, weights, edited


def prepare_row(
    row: dict[str, Any],
    number: int,
    processing_class: PreTrainedTokenizerBase,
    settings: RewardSettings,
    vocab_size: int | None = None,
) -> dict[str, Any]:
    """
    Prepare one row of a scored dataset for [`~rlmec_trl.trainers.collator.DataCollatorForRLMEC`].

    Args:
        row (`dict`):
            Columns `prompt`, `completion`, `completion_ids`, `token_probs` and `correct` (or `token_rewards`), and
            `rewrite` or `rewrite_ids`; optionally `old_logps`, `rewrite_topk_ids`, `rewrite_topk_logps`,
            `attempt_topk_ids`, `attempt_topk_logps` and `chat_template_kwargs`.
        number (`int`):
            Number of the row in its dataset.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        settings (`RewardSettings`):
            Settings of the rewards and weights.
        vocab_size (`int`, *optional*):
            Number of ids that the policy knows.

    Returns:
        `dict`: The columns `PREPARED_COLUMNS`. Prompt and completion, and prompt and imitation target, are truncated
        to `max_length` tokens, and every per-token list with them. `completion_truncated` is whether the completion
        lost tokens, `imitation_truncated` whether the imitation target lost tokens with a weight. With
        `truncated_rewrites="drop"`, such a target is left out. The distributions on the attempt end with its first
        flagged token, and are empty unless the settings say `distill`. `length` is what `Trainer` can group rows
        by, and `row` the number of the row.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If the prompt has no tokens, is messages that the tokenizer has no
            chat template for, or if the tokenizer gives ids that the policy does not know.
    """
    correct = is_correct(row)
    prompt_ids = encode_prompt(processing_class, row["prompt"], row.get("chat_template_kwargs"), number)
    if not prompt_ids:  # nothing would predict the completion's first token
        found = f"{row['prompt']!r}, for which the tokenizer gives no tokens"
        fix = "Give the prompt a text, drop the row, or use a tokenizer that adds BOS."
        raise row_error(number, "prompt", found, fix, quote=False)
    imitation_ids, weights, edited = imitation_target(row, correct, processing_class, settings)
    for name, ids in (("prompt", prompt_ids), ("rewrite", imitation_ids)):
        if vocab_size is not None and max(ids, default=0) >= vocab_size:
            found = f"a text that the tokenizer gives the id {max(ids)}, and the model has {vocab_size} ids"
            raise row_error(number, name, found, "Use the tokenizer of the model.", quote=False)

    topk_ids, topk_logps = [], []
    if settings.imitation_targets == "soft" and imitation_ids == row.get("rewrite_ids"):
        topk_ids, topk_logps = row["rewrite_topk_ids"] or [], row["rewrite_topk_logps"] or []

    attempt_ids, attempt_logps = [], []
    if settings.distill:
        # With the first flagged token: its prefix is still one that the reward model has seen
        num_distilled = num_before_flag(row["token_probs"], settings.reward_baseline) + 1
        attempt_ids = (row["attempt_topk_ids"] or [])[:num_distilled]
        attempt_logps = (row["attempt_topk_logps"] or [])[:num_distilled]

    completion_ids = row["completion_ids"]
    if settings.max_length is None:
        room = max(len(completion_ids), len(imitation_ids))
    else:
        room = max(settings.max_length - len(prompt_ids), 0)
    imitation_truncated = any(weights[room:])
    # A target without its end, EOS included, would teach the policy not to stop
    kept = 0 if imitation_truncated and settings.truncated_rewrites == "drop" else room
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": completion_ids[:room],
        "token_rewards": token_rewards(row, correct, settings)[:room],
        "old_logps": (row.get("old_logps") or [])[:room],
        "imitation_ids": imitation_ids[:kept],
        "imitation_weights": weights[:kept],
        "num_edited": sum(edited[:kept]),
        "imitation_topk_ids": topk_ids[:kept],
        "imitation_topk_logps": topk_logps[:kept],
        "attempt_topk_ids": attempt_ids[:room],
        "attempt_topk_logps": attempt_logps[:room],
        "length": len(prompt_ids) + max(len(completion_ids[:room]), len(imitation_ids[:kept])),
        "completion_truncated": len(completion_ids) > room,
        "imitation_truncated": imitation_truncated,
        "row": number,
    }
