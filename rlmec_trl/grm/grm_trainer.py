"""Supervised training of a generative reward model: locate the first incorrect step, rewrite with minimum edits."""

import random
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from transformers import (
    BitsAndBytesConfig,
    DataCollator,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from trl import SFTTrainer
from trl.data_utils import get_dataset_column_names
from trl.trainer.utils import get_config_model_id, global_then_local_main_first

from ..credit.paper import PAPER
from ..data.messages import message_text
from ..data.schema import check_dataset
from ..data.tokens import encode_completion, encode_rewrite
from ..tasks.wording import WORDING, Wording, locate_answer
from .grm_config import GRMConfig
from .prompts import encode_locate_prompt, encode_rewrite_prompt, save_wording


def build_examples(
    rows: dict[str, list[Any]], processing_class: PreTrainedTokenizerBase, wording: Wording
) -> dict[str, list]:
    """
    Turn a batch of edited rows into training examples of the two tasks.

    Args:
        rows (`dict[str, list]`):
            Columns `prompt`, `reference`, `completion`, `rewrite`, `error_step` and `use_locate`. With
            `completion_ids`, the unchanged steps of a rewrite keep the ids that were sampled.
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
    all_completion_ids = rows["completion_ids"] if "completion_ids" in rows else [None] * len(rows["completion"])
    for prompt, reference, completion, rewrite, error_step, use_locate, completion_ids in zip(
        *(rows[name] for name in columns), all_completion_ids, strict=True
    ):
        attempt, rewrite = message_text(completion), message_text(rewrite)
        if completion_ids is None:
            completion_ids = encode_completion(processing_class, attempt)
        add(
            encode_rewrite_prompt(processing_class, wording, prompt, reference, completion),
            encode_rewrite(processing_class, rewrite, attempt, completion_ids, wording.step_separator),
        )
        if use_locate:
            add(
                encode_locate_prompt(processing_class, wording, prompt, reference, completion),
                encode_completion(processing_class, locate_answer(wording, error_step)),
            )
    return examples


class GRMTrainer(SFTTrainer):
    """
    Trainer for generative reward models (https://huggingface.co/papers/2401.06081).

    It turns edited rows into a mixture of two tasks, locating the first incorrect step of an attempt and rewriting
    the attempt with minimum edits, and computes the loss on the answers only. Correct attempts are kept as copies, so
    that the model learns to leave correct steps unchanged. Everything else is inherited from [`~trl.SFTTrainer`].

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model to train, as in [`~trl.SFTTrainer`]. Its tokenizer must be the policy's.
        args ([`GRMConfig`], *optional*):
            Configuration. If `None`, the defaults are used, and the output directory is the model name with `-GRM`.
        train_dataset ([`~datasets.Dataset`]):
            Rows with `prompt`, `reference`, `completion`, `correct`, `rewrite` and `error_step`, and `completion_ids`
            if the completions were sampled as ids. Rows whose `rewrite` is `None` are left out. A tokenized dataset
            (`input_ids`) is used as is.
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

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        args: GRMConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_loss_func: Callable | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
        formatting_func: Callable[[dict], str] | None = None,
        wording: Wording = WORDING,
    ):
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = GRMConfig(f"{model_name.split('/')[-1]}-GRM")
        if not isinstance(args, GRMConfig):
            raise TypeError(f"`args` must be a `GRMConfig`, got `{type(args).__name__}`.")
        self.wording = wording
        super().__init__(
            model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            quantization_config=quantization_config,
            peft_config=peft_config,
            formatting_func=formatting_func,
        )

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        if "input_ids" not in get_dataset_column_names(dataset):
            if isinstance(dataset, IterableDataset):
                raise TypeError(
                    "`GRMTrainer` counts the attempts, so it does not support `IterableDataset`. Pass a `Dataset`."
                )
            dataset = self._build_mixture(dataset, processing_class, args, dataset_name)
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)

    def _build_mixture(
        self, dataset: Dataset, processing_class: PreTrainedTokenizerBase, args: GRMConfig, dataset_name: str
    ) -> Dataset:
        if "rewrite" in dataset.column_names:
            rewrites = dataset["rewrite"]
            dataset = dataset.select([index for index, rewrite in enumerate(rewrites) if rewrite is not None])
        check_dataset(dataset, "edits")
        rng = random.Random(args.seed)
        kept = list(range(len(dataset)))
        right = [index for index, error_step in enumerate(dataset["error_step"]) if error_step == -1]
        if args.max_correct_ratio is not None:
            num_right = round(args.max_correct_ratio * (len(kept) - len(right)))
            dropped = set(rng.sample(right, max(len(right) - num_right, 0)))
            kept = [index for index in kept if index not in dropped]
        if not kept:
            raise ValueError(
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
        return mixture

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        save_wording(self.wording, output_dir or self.args.output_dir)
