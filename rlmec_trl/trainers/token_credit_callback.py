"""Scored samples with the credit of their tokens, shown and logged while the offline trainer trains."""

import os
import random
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState

from ..credit.preparation import RewardSettings, prepare_row
from ..data.errors import ConfigError, DatasetError
from ..data.messages import message_text
from ..data.schema import check_dataset
from ..reports.token_credit import (
    CompletionReporter,
    CreditedCompletion,
    completions_frame,
    print_completions,
    shades_of,
)
from ..reports.token_pieces import TokenPieces, token_texts
from .rlmec_config import RLMECConfig


class TokenCreditCallback(TrainerCallback):
    """
    A [`~transformers.TrainerCallback`] that shows what [`RLMECTrainer`] learns from: every few logs, it prints some
    scored samples with their tokens colored by probability or reward, reports them to the trackers that `report_to`
    names (Weights & Biases, Trackio, TensorBoard), and writes them to
    `<output_dir>/completions/completions_<step>.parquet`, with the probability and the reward of every token. Each
    step has its own samples, drawn at random. Only the main process does anything.

    For [`OnlineRLMECTrainer`], set `log_completions=True` instead, which shows the completions of the step.

    Args:
        dataset ([`~datasets.Dataset`]):
            Scored rows, such as the training dataset.
        num_completions (`int`, *optional*, defaults to `2`):
            Number of samples to show at a time.
        every (`int`, *optional*, defaults to `1`):
            Show samples at every such log of the training.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If a number is less than 1; when training begins, if the trainer's
            arguments are not an [`RLMECConfig`].
        [`~rlmec_trl.data.errors.DatasetError`]: If there are no rows, a column is missing, or a row breaks the
            contract of its columns.

    Example:

    ```python
    trainer.add_callback(TokenCreditCallback(scored, num_completions=2, every=5))
    ```
    """

    def __init__(self, dataset: Dataset, num_completions: int = 2, every: int = 1):
        for name, value in (("num_completions", num_completions), ("every", every)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"`{name}` must be a whole number from 1, got {value!r}.")
        if len(dataset) == 0:
            raise DatasetError("`TokenCreditCallback` has no rows to show: the dataset is empty.")
        names = set(dataset.column_names)
        missing = [name for name in ("prompt", "completion", "completion_ids") if name not in names]
        missing += [] if names & {"token_probs", "token_rewards"} else ["token_probs"]
        if missing:
            raise DatasetError(
                "It is missing, and `TokenCreditCallback` shows it. Score the samples first.", column=missing[0]
            )
        # A value that cannot be shown would end the training in the middle
        check_dataset(dataset, "policy")
        self.dataset = dataset.with_format(None)
        self.num_completions = num_completions
        self.every = every
        self._num_logs = 0
        self._reporter: CompletionReporter | None = None

    def on_train_begin(self, args: RLMECConfig, state: TrainerState, control: TrainerControl, **kwargs):
        if not isinstance(args, RLMECConfig):
            raise ConfigError(
                f"`TokenCreditCallback` computes rewards by the settings of an `RLMECConfig`, got "
                f"`{type(args).__name__}`. Use it with `RLMECTrainer`; the online trainers have `log_completions`."
            )
        self._num_logs = 0

    def on_log(
        self,
        args: RLMECConfig,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        **kwargs,
    ):
        # Not those of an evaluation, nor the summary at the end
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        self._num_logs += 1
        if self._num_logs % self.every > 0:
            return
        # The step decides, so that a training that is resumed shows the same samples
        rows = range(len(self.dataset))
        numbers = sorted(random.Random(state.global_step).sample(rows, min(self.num_completions, len(rows))))
        completions = self._completions(numbers, args, processing_class)
        print_completions(completions, state.global_step)
        folder = os.path.join(args.output_dir, "completions")
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, f"completions_{state.global_step:05d}.parquet")
        # A process may be killed while it writes, and whoever reads the folder needs whole files
        unfinished = os.path.join(folder, f".{os.path.basename(path)}.unfinished")
        completions_frame(completions, state.global_step).to_parquet(unfinished)
        os.replace(unfinished, path)
        if self._reporter is None:
            self._reporter = CompletionReporter(args.report_to, args.output_dir)
        self._reporter.report(completions, state.global_step)

    def on_train_end(self, args: RLMECConfig, state: TrainerState, control: TrainerControl, **kwargs):
        if self._reporter is not None:
            self._reporter.close()

    def _completions(
        self, numbers: list[int], args: RLMECConfig, processing_class: PreTrainedTokenizerBase
    ) -> list[CreditedCompletion]:
        settings = RewardSettings.from_config(args)
        rows = [self.dataset[number] for number in numbers]
        # As the trainer prepares them, truncated too
        prepared = [
            prepare_row(row, number, processing_class, settings) for row, number in zip(rows, numbers, strict=True)
        ]
        shades = shades_of([row["token_rewards"] for row in prepared])
        pieces_of = TokenPieces(processing_class)
        return [
            _credited(row, ready, shade, pieces_of) for row, ready, shade in zip(rows, prepared, shades, strict=True)
        ]


def _credited(
    row: dict[str, Any],
    prepared: dict[str, Any],
    shades: list[float | None],
    pieces_of: TokenPieces,
) -> CreditedCompletion:
    ids, rewards = prepared["completion_ids"], prepared["token_rewards"]
    token_values = {"token_rewards": rewards}
    if row.get("token_probs") is not None:
        shades = row["token_probs"][: len(ids)]
        token_values = {"token_probs": shades, **token_values}
    details, values = {}, {}
    if row.get("rewrite") is not None:
        details["rewrite"] = message_text(row["rewrite"])
    if row.get("correct") is not None:
        values["correct"] = row["correct"]
    values |= {
        "num_edited": prepared["num_edited"],
        "imitation_weight": float(sum(prepared["imitation_weights"])),
    }
    imitated = prepared["imitation_ids"]
    columns = {
        "completion": message_text(row["completion"]),
        "completion_ids": ids,
        "imitation_tokens": token_texts(pieces_of, imitated),
        "imitation_ids": imitated,
        "imitation_weights": prepared["imitation_weights"],
    }
    tokens = token_texts(pieces_of, ids)
    return CreditedCompletion(row["prompt"], tokens, shades, token_values, values, details, columns)
