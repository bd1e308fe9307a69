"""Supervised training of a generative reward model: locate the first incorrect step, rewrite with minimum edits."""

import random
from inspect import Signature, signature
from typing import Any

import pyarrow.compute as pc
import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from trl import SFTTrainer
from trl.data_utils import get_dataset_column_names
from trl.trainer.utils import get_config_model_id, global_then_local_main_first

from ..credit.paper import PAPER
from ..credit.trainer_checks import TrainerChecks, check_inputs, check_num_rows, errors_in, vocabulary_size
from ..data.adapters import note_base_revision, refuse_adapter
from ..data.errors import ConfigError, DatasetError
from ..data.inputs import check_input
from ..data.messages import message_text
from ..data.schema import check_dataset
from ..data.tokens import decode_completion, encode_completion, encode_rewrite
from ..tasks.wording import WORDING, Wording, locate_answer
from .grm_config import GRMConfig
from .prompts import encode_locate_prompt, encode_rewrite_prompt, save_wording


logger = get_logger(__name__)


def build_examples(
    rows: dict[str, list[Any]], processing_class: PreTrainedTokenizerBase, wording: Wording
) -> dict[str, list]:
    """
    Turn a batch of edited rows into training examples of the two tasks.

    Args:
        rows (`dict[str, list]`):
            Columns `prompt`, `reference`, `completion`, `rewrite`, `error_step` and `use_locate`. With
            `completion_ids`, the unchanged steps of a rewrite keep the ids that were sampled. `chat_template_kwargs`
            are further arguments of the chat template.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the generative reward model.
        wording ([`~rlmec_trl.tasks.wording.Wording`]):
            Wording of the prompts.

    Returns:
        `dict[str, list]`: `input_ids` and `labels` (-100 on the prompt): one rewriting example per row, and one
        locating example if `use_locate`.
    """
    examples = {"input_ids": [], "labels": []}

    def add(prompt_ids: list[int], target_ids: list[int]) -> None:
        examples["input_ids"].append(prompt_ids + target_ids)
        examples["labels"].append([-100] * len(prompt_ids) + target_ids)

    columns = ("prompt", "reference", "completion", "rewrite", "error_step", "use_locate")
    missing = [None] * len(rows["completion"])
    optional = (rows.get(name, missing) for name in ("completion_ids", "chat_template_kwargs"))
    for prompt, reference, completion, rewrite, error_step, use_locate, completion_ids, template_kwargs in zip(
        *(rows[name] for name in columns), *optional, strict=True
    ):
        attempt, rewrite = message_text(completion), message_text(rewrite)
        if completion_ids is None:
            completion_ids = encode_completion(processing_class, attempt)
        add(
            encode_rewrite_prompt(processing_class, wording, prompt, reference, completion, template_kwargs),
            encode_rewrite(processing_class, rewrite, attempt, completion_ids, wording.step_separator),
        )
        if use_locate:
            add(
                encode_locate_prompt(processing_class, wording, prompt, reference, completion, template_kwargs),
                encode_completion(processing_class, locate_answer(wording, error_step)),
            )
    return examples


def has_ids_of(processing_class: PreTrainedTokenizerBase, dataset: Dataset) -> bool:
    """Whether any `completion_ids` of a dataset are those of its `completion` under a tokenizer."""
    return any(
        decode_completion(processing_class, ids).strip() == message_text(completion).strip()
        for ids, completion in zip(dataset["completion_ids"], dataset["completion"], strict=True)
    )


class GRMTrainer(TrainerChecks, SFTTrainer):
    """
    Trainer for generative reward models (https://huggingface.co/papers/2401.06081).

    It turns edited rows into a mixture of two tasks, locating the first incorrect step of an attempt and rewriting
    the attempt with minimum edits, and computes the loss on the answers only. Correct attempts are kept as copies, so
    that the model learns to leave correct steps unchanged. It stops where the loss or the gradient norm is not finite.
    Everything else is inherited from [`~trl.SFTTrainer`].

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model to train, as in [`~trl.SFTTrainer`]. It may have another tokenizer than the policy.
        args ([`GRMConfig`], *optional*):
            Configuration. If `None`, the defaults are used, and the output directory is the model name with `-GRM`.
        train_dataset ([`~datasets.Dataset`]):
            Rows with `prompt`, `reference`, `completion`, `correct`, `rewrite` and `error_step`, and `completion_ids`
            if the completions were sampled as ids; those of another tokenizer are not used, but the texts are
            tokenized. `chat_template_kwargs` are passed to the chat template. Rows whose
            `rewrite` is `None` are left out. A tokenized dataset (`input_ids`) is used as is.
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            As `train_dataset`.
        wording ([`~rlmec_trl.tasks.wording.Wording`], *optional*):
            Wording of the prompts. It is saved with the model, from where [`GenerativeRewardModel`] loads it.
        other arguments:
            As in [`~trl.SFTTrainer`].
    """

    _tag_names = ["trl", "rlmec", "generative-reward-model"]
    _name = "GRM"
    _paper = PAPER

    def __init__(self, model, args=None, *others, wording: Wording = WORDING, **kwargs):
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = GRMConfig(f"{model_name.split('/')[-1]}-GRM")
        if not isinstance(args, GRMConfig):
            raise TypeError(f"`args` must be a `GRMConfig`, got `{type(args).__name__}`.")
        arguments = signature(SFTTrainer.__init__).bind(self, model, args, *others, **kwargs).arguments
        check_inputs(arguments.get("train_dataset"), arguments.get("eval_dataset"))
        self.wording = wording
        self._eval_sums = []  # of each batch, the loss times its tokens, and these tokens
        revision = (args.model_init_kwargs or {}).get("revision") or "main"
        if isinstance(model, str):
            refuse_adapter(model, revision)
        self._vocab_size = vocabulary_size(model, args)
        super().__init__(model, args, *others, **kwargs)
        if isinstance(model, str) and is_peft_model(self.model):
            note_base_revision(self.model, revision)

    # What help() and editors show: the arguments of `SFTTrainer`, and ours
    __init__.__signature__ = Signature(
        [
            *signature(SFTTrainer.__init__).parameters.values(),
            signature(__init__).parameters["wording"],
        ]
    )

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        check_input(dataset, dataset_name)
        dataset = dataset.with_format(None)  # rows of lists, not of arrays
        if isinstance(dataset, IterableDataset) and "input_ids" not in get_dataset_column_names(dataset):
            raise DatasetError(
                "`GRMTrainer` counts the attempts, so it does not support `IterableDataset`. Pass a `Dataset`."
            )
        with errors_in(dataset_name):
            if "input_ids" not in get_dataset_column_names(dataset):
                dataset = self._build_mixture(dataset, processing_class, args, dataset_name)
            if isinstance(dataset, Dataset):
                self._check_examples(dataset)
        dataset = super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        if isinstance(dataset, Dataset) and len(dataset) == 0:
            raise DatasetError(
                f"No example of the {dataset_name} dataset has a token of its answer within `max_length` "
                f"({args.max_length}): the prompts alone are longer. Raise `max_length`."
            )
        check_num_rows(dataset, dataset_name, args)
        return dataset

    def _check_examples(self, dataset: Dataset) -> None:
        if self._vocab_size is None:
            return
        column = dataset.with_format("arrow")[:]["input_ids"]
        if (pc.max(pc.list_flatten(column)).as_py() or 0) < self._vocab_size:
            return
        for index, ids in enumerate(dataset["input_ids"]):
            if max(ids, default=0) >= self._vocab_size:
                row = dataset["row"][index] if "row" in dataset.column_names else index
                raise DatasetError(
                    f"found the token id {max(ids)} in its texts, and the model has {self._vocab_size} ids. Use the "
                    "tokenizer of the model.",
                    row,
                )

    def _build_mixture(
        self, dataset: Dataset, processing_class: PreTrainedTokenizerBase, args: GRMConfig, dataset_name: str
    ) -> Dataset:
        # Which row of the given dataset each row is, for errors
        numbers = list(range(len(dataset)))
        if "rewrite" in dataset.column_names:
            numbers = [number for number, rewrite in enumerate(dataset["rewrite"]) if rewrite is not None]
            dataset = dataset.select(numbers)
        check_dataset(dataset, "edits", row_numbers=numbers)
        if "completion_ids" in dataset.column_names:
            if has_ids_of(processing_class, dataset):
                check_dataset(dataset, "edits", vocab_size=self._vocab_size, row_numbers=numbers)
            else:
                logger.warning(
                    f"The `completion_ids` of the {dataset_name} dataset come from another tokenizer than the reward "
                    "model's, so its texts are tokenized."
                )
                dataset = dataset.remove_columns("completion_ids")
        rng = random.Random(args.seed)
        kept = list(range(len(dataset)))
        correct = [index for index, error_step in enumerate(dataset["error_step"]) if error_step == -1]
        if args.max_correct_ratio is not None:
            num_correct = round(args.max_correct_ratio * (len(kept) - len(correct)))
            dropped = set(rng.sample(correct, max(len(correct) - num_correct, 0)))
            kept = [index for index in kept if index not in dropped]
        if not kept:
            raise ConfigError(
                f"The {dataset_name} dataset has no row to train a generative reward model on: every `rewrite` is "
                "missing, or `max_correct_ratio` leaves out the correct attempts and there are no incorrect ones."
            )
        use_locate = set(rng.sample(kept, round(args.locate_fraction * len(kept))))
        with global_then_local_main_first():
            selected = dataset.select(kept)
            selected = selected.add_column("use_locate", [index in use_locate for index in kept])
            mixture = selected.map(
                build_examples,
                batched=True,
                fn_kwargs={"processing_class": processing_class, "wording": self.wording},
                remove_columns=selected.column_names,
                num_proc=args.dataset_num_proc,
                desc=f"Building the two tasks of the {dataset_name} dataset",
            )
            # In the order of `build_examples`
            rows = [numbers[index] for index in kept for _ in range(1 + (index in use_locate))]
            mixture = mixture.add_column("row", rows)
        if args.max_length is not None:
            lengths = pc.list_value_length(mixture.with_format("arrow")[:]["input_ids"])
            num_truncated = pc.sum(pc.greater(lengths, args.max_length)).as_py()
            if num_truncated:
                logger.warning(
                    f"`max_length={args.max_length}` truncates {num_truncated} of the {len(mixture)} examples of the "
                    f"{dataset_name} dataset. They lose the end of their answer, EOS included. Raise `max_length`, "
                    "or leave long attempts out."
                )
        return mixture

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if "row" not in self._signature_columns:
            self._signature_columns.append("row")  # for `_row_numbers`; the collator does not read it

    def _row_numbers(self, batches: list[dict[str, torch.Tensor]], train: bool) -> list[int]:
        handler = self.callback_handler
        dataset = (handler.train_dataloader if train else handler.eval_dataloader).dataset
        # A batch has token ids alone, and only a failing one needs its rows: they are looked up. Packed or unpadded
        # sequences cannot be told apart
        sequences = {
            tuple(ids[mask.bool()].tolist())
            for batch in batches
            if "attention_mask" in batch
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        }
        if not sequences or "row" not in (dataset.column_names or []):
            return []
        return [row for row, ids in zip(dataset["row"], dataset["input_ids"], strict=True) if tuple(ids) in sequences]

    def _mask_last_rows(self, batch: dict[str, torch.Tensor], num_rows: int) -> dict[str, torch.Tensor]:
        if self.padding_free:  # a batch is one sequence
            return batch
        labels = batch["labels"].clone()
        labels[-num_rows:] = -100
        return {**batch, "labels": labels}

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        num_tokens = (self._without_repeats(inputs)["labels"][:, 1:] != -100).sum()
        self._eval_sums.append(torch.stack([loss.float() * num_tokens, num_tokens.float()]))
        return loss, logits, labels

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        self._eval_sums.clear()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        # `Trainer` averages the losses of batches, which have different numbers of tokens
        if self._eval_sums:
            loss, num_tokens = self.accelerator.reduce(torch.stack(self._eval_sums).sum(0), reduction="sum")
            output.metrics[f"{metric_key_prefix}_loss"] = (loss / num_tokens.clamp(min=1)).item()
        return output

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # all processes come here, before the first one has made the folder
            save_wording(self.wording, output_dir or self.args.output_dir)
