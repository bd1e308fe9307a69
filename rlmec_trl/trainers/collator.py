"""Batches for RLMEC: each sequence that the loss needs, once."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.data.data_collator import DataCollatorMixin
from trl.trainer.utils import pad


# Sums over the tokens of a row, float32 of shape `(B,)`
ROW_COUNTS = (
    "num_active",
    "num_completion_tokens",
    "num_weighted",
    "num_edited",
    "num_imitated",
    "num_distilled",
    "reward_sum",
)


def _num_nonzero(values: list[float]) -> int:
    return sum(value != 0 for value in values)


@dataclass
class DataCollatorForRLMEC(DataCollatorMixin):
    """
    Collate the attempts and imitation targets of a batch of rows into one batch of sequences, so that all terms of
    the loss share one forward pass. A row contributes

    - its attempt, if the policy term is on and a token has a reward, or if it is distilled and has distributions;
    - its imitation target, if the imitation term is on and a token has a weight;
    - only one sequence, with all that both have, if the two have the same tokens.

    Args:
        pad_token_id (`int`):
            Token id to pad with.
        policy (`bool`, *optional*, defaults to `True`):
            Whether the policy term is on.
        imitation (`bool`, *optional*, defaults to `True`):
            Whether the imitation term is on.
        soft_targets (`bool`, *optional*, defaults to `False`):
            Whether to return `target_ids` and `target_logps`.
        distill (`bool`, *optional*, defaults to `False`):
            Whether the attempt is distilled, and `attempt_mask`, `attempt_target_ids` and `attempt_target_logps` are
            returned.
        pad_to_multiple_of (`int`, *optional*):
            If set, sequences are padded to a multiple of this value.
        return_tensors (`str`, *optional*, defaults to `"pt"`):
            Only `"pt"` is supported.

    A call returns, for `B` rows, `S` sequences and `T` tokens (right-padded):
        - `num_active`, `num_completion_tokens`, `num_weighted`, `num_edited`, `num_imitated`, `num_distilled`,
          `reward_sum`: float32 of shape `(B,)`, over the row's completion and its imitation target. They come first
          because `Trainer` takes the batch size from the first tensor.
        - `input_ids`, `attention_mask`, `labels` of shape `(S, T)`; labels are -100 on prompt and padding.
        - `sequence_rows`: int64 of shape `(S,)`, the row that each sequence belongs to.
        - `token_rewards`, `imitation_weights`: float32 of shape `(S, T)`, zero where they do not apply.
        - `policy_mask`: bool of shape `(S, T)`, true on the tokens of an attempt with a reward.
        - `old_logps`: float32 of shape `(S, T)`, if the rows have them.
        - `target_ids`, `target_logps` of shape `(S, T, k)`, with `soft_targets`: the target distribution of each
          imitated token, `-inf` where unused.
        - `attempt_mask`: bool of shape `(S, T)`, with `distill`: true on the distilled tokens.
        - `attempt_target_ids`, `attempt_target_logps` of shape `(S, T, k)`, with `distill`: their distributions.
        - `row`: int64 of shape `(B,)`, the numbers of the rows in their dataset, if they have one. The loss does not
          read it; errors do.
    """

    pad_token_id: int
    policy: bool = True
    imitation: bool = True
    soft_targets: bool = False
    distill: bool = False
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        numbered = [(row, sequence) for row, example in enumerate(examples) for sequence in self._sequences(example)]
        sequences = [sequence for _, sequence in numbered]
        if not sequences:
            # Every process must take part in each forward pass, so a batch without a trained token has one sequence
            # without labels.
            sequences = [{"input_ids": examples[0]["prompt_ids"][:1] * 2, "prompt_length": 2}]
        batch = self._row_counts(examples)
        batch["sequence_rows"] = torch.tensor([row for row, _ in numbered] or [0])
        batch["input_ids"] = self._pad([sequence["input_ids"] for sequence in sequences], self.pad_token_id)
        batch["attention_mask"] = self._pad([[1] * len(sequence["input_ids"]) for sequence in sequences], 0)
        batch["labels"] = self._pad(
            [[-100] * seq["prompt_length"] + seq["input_ids"][seq["prompt_length"] :] for seq in sequences], -100
        )
        for name in ("token_rewards", "imitation_weights"):
            batch[name] = self._pad([self._per_token(sequence, name) for sequence in sequences], 0.0)
        is_policy = torch.tensor(["token_rewards" in sequence for sequence in sequences])
        batch["policy_mask"] = (batch["labels"] != -100) & is_policy[:, None]
        if examples[0].get("old_logps"):
            batch["old_logps"] = self._pad([self._per_token(sequence, "old_logps") for sequence in sequences], 0.0)
        if self.soft_targets:
            batch["target_ids"], batch["target_logps"] = self._targets(sequences, batch["labels"], "imitation")
        if self.distill:
            batch["attempt_mask"] = self._pad([self._per_token(seq, "is_distilled") for seq in sequences], 0.0) != 0
            batch["attempt_target_ids"], batch["attempt_target_logps"] = self._targets(
                sequences, batch["labels"], "attempt"
            )
        if "row" in examples[0]:
            batch["row"] = torch.tensor([example["row"] for example in examples])
        return batch

    def _sequences(self, example: dict[str, Any]) -> list[dict[str, Any]]:
        prompt_ids = example["prompt_ids"]
        attempt, target = None, None
        is_rewarded = self.policy and any(example["token_rewards"])
        num_distilled = self._num_distilled(example)
        if is_rewarded or num_distilled > 0:
            completion_ids = example["completion_ids"]
            attempt = {"input_ids": prompt_ids + completion_ids, "prompt_length": len(prompt_ids)}
            if is_rewarded:
                attempt |= {"token_rewards": example["token_rewards"], "old_logps": example.get("old_logps")}
            if num_distilled > 0:
                attempt |= {
                    "is_distilled": [1.0] * num_distilled + [0.0] * (len(completion_ids) - num_distilled),
                    "attempt_topk_ids": example["attempt_topk_ids"],
                    "attempt_topk_logps": example["attempt_topk_logps"],
                }
        if self.imitation and any(example["imitation_weights"]):
            target = {
                "input_ids": prompt_ids + example["imitation_ids"],
                "prompt_length": len(prompt_ids),
                "imitation_weights": example["imitation_weights"],
                "imitation_topk_ids": example.get("imitation_topk_ids"),
                "imitation_topk_logps": example.get("imitation_topk_logps"),
            }
        if attempt and target and attempt["input_ids"] == target["input_ids"]:
            return [attempt | target]
        return [sequence for sequence in (attempt, target) if sequence]

    def _num_distilled(self, example: dict[str, Any]) -> int:
        return len(example["attempt_topk_ids"]) if self.distill else 0

    def _row_counts(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        counts = {
            "num_active": [_num_nonzero(ex["token_rewards"]) if self.policy else 0 for ex in examples],
            "num_completion_tokens": [len(ex["completion_ids"]) for ex in examples],
            "num_weighted": [_num_nonzero(ex["imitation_weights"]) if self.imitation else 0 for ex in examples],
            "num_edited": [ex["num_edited"] for ex in examples],
            "num_imitated": [len(ex["imitation_ids"]) for ex in examples],
            "num_distilled": [self._num_distilled(ex) for ex in examples],
            "reward_sum": [sum(ex["token_rewards"]) for ex in examples],
        }
        return {name: torch.tensor(values, dtype=torch.float32) for name, values in counts.items()}

    def _per_token(self, sequence: dict[str, Any], name: str) -> list[float]:
        length = len(sequence["input_ids"])
        if not sequence.get(name):
            return [0.0] * length
        return [0.0] * sequence["prompt_length"] + sequence[name]

    def _targets(
        self, sequences: list[dict[str, Any]], labels: torch.Tensor, of: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        stored = {
            index: (sequence[f"{of}_topk_ids"], sequence[f"{of}_topk_logps"])
            for index, sequence in enumerate(sequences)
            if sequence.get(f"{of}_topk_ids")
        }
        width = max([len(ids[0]) for ids, _ in stored.values()], default=1)
        # Without a stored distribution (the sample itself is imitated), the target is the sequence's own token.
        target_ids = labels.clamp(min=0).unsqueeze(-1).repeat(1, 1, width)
        target_logps = torch.full(target_ids.shape, float("-inf"))
        target_logps[..., 0] = 0.0
        for index, (ids, logps) in stored.items():
            start = sequences[index]["prompt_length"]
            span, candidates = slice(start, start + len(ids)), slice(len(ids[0]))
            # Rows scored with another k may have fewer
            target_ids[index, span, candidates] = torch.tensor(ids)
            target_logps[index, span, candidates] = torch.tensor(logps, dtype=torch.float32)
        return target_ids, target_logps

    def _pad(self, rows: list[list], value: float) -> torch.Tensor:
        dtype = torch.float32 if isinstance(value, float) else torch.long
        tensors = [torch.tensor(row, dtype=dtype) for row in rows]
        return pad(tensors, padding_value=value, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of)
