"""A pool of scored rows whose rewrites are imitated beside those of new samples."""

from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..credit.preparation import PREPARED_COLUMNS, PREPARED_FEATURES, RewardSettings, prepare_row
from ..data.errors import DatasetError
from ..data.schema import check_dataset
from ..data.tokens import check_chat_template


# What a new rewrite has too: both are collated into one batch
COLUMNS = ["prompt_ids", "completion_ids", "token_rewards", "imitation_ids", "imitation_weights", "num_edited"]


class Replay:
    """
    Scored rows to draw from.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows as [`~rlmec_trl.RLMECTrainer`] takes them.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        edited_weight, unedited_weight (`float`):
            Imitation weights of the edited tokens and of the others.
        vocab_size (`int`, *optional*):
            Number of ids that the policy knows.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If a row breaks the contract of its columns, or no row has a rewrite.
    """

    def __init__(
        self,
        dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        edited_weight: float,
        unedited_weight: float,
        vocab_size: int | None = None,
    ):
        dataset = dataset.with_format(None)
        try:
            check_dataset(dataset, "policy", vocab_size=vocab_size)
            check_chat_template(dataset, processing_class)
        except DatasetError as error:
            raise DatasetError(f"In the replay dataset: {error}") from None
        settings = RewardSettings(
            max_length=None,
            reward_baseline=0.5,
            positive_reward_range=(0.0, 0.5),
            negative_reward_range=(-0.1, 0.0),
            negative_credit="all",
            edited_weight=edited_weight,
            unedited_weight=unedited_weight,
            correct_samples="rewrite",
            truncated_rewrites="drop",
            imitation_targets="hard",
        )
        prepared = dataset.map(
            prepare_row,
            with_indices=True,
            fn_kwargs={"processing_class": processing_class, "settings": settings, "vocab_size": vocab_size},
            remove_columns=[name for name in dataset.column_names if name not in PREPARED_COLUMNS],
            features=PREPARED_FEATURES,
            desc="Preparing replay dataset",
        )
        imitated = prepared.filter(lambda row: any(row["imitation_weights"]), desc="Filtering replay dataset")
        self.rows = imitated.select_columns(COLUMNS)
        if len(self.rows) == 0:
            raise DatasetError("No row of the replay dataset has a rewrite with a weight, so none can be imitated.")

    def draw(self, num_rows: int) -> list[dict[str, Any]]:
        """Random rows, none twice if there are enough, drawn by PyTorch's random state, which checkpoints have."""
        order = []
        while len(order) < num_rows:
            order += torch.randperm(len(self.rows))[: num_rows - len(order)].tolist()
        return [self.rows[index] for index in order]
