"""Offline RLMEC: token rewards on the policy's own samples, and imitation of their minimally edited rewrites."""

import copy
from collections import defaultdict
from dataclasses import replace
from functools import wraps
from inspect import signature

import torch
from accelerate import ParallelismConfig
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import Dataset
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import SFTTrainer
from trl.data_utils import get_dataset_column_names
from trl.trainer.utils import get_config_model_id, global_then_local_main_first

from ..credit.paper import PAPER
from ..credit.preparation import PREPARED_COLUMNS, PREPARED_FEATURES, RewardSettings, prepare_row
from ..credit.trainer_checks import TrainerChecks, check_inputs, check_num_rows, errors_in, vocabulary_size
from ..data.adapters import note_base_revision, refuse_adapter
from ..data.errors import ConfigError, DatasetError
from ..data.inputs import check_input
from ..data.schema import StreamCheck, check_dataset
from ..data.tokens import check_chat_template
from .collator import ROW_COUNTS, DataCollatorForRLMEC
from .losses import Metrics, imitation_loss, token_policy_loss
from .metric_sums import MetricSums
from .rlmec_config import RLMECConfig
from .soft_targets import add_soft_target_head, tempered_targets


logger = get_logger(__name__)

# Rows of a stream that are read, and checked, at a time
_STREAM_BATCH_SIZE = 100


def _revision(args: RLMECConfig) -> str:
    return (args.model_init_kwargs or {}).get("revision") or "main"


class RLMECTrainer(MetricSums, TrainerChecks, SFTTrainer):
    """
    Trainer for offline RLMEC, reinforcement learning with minimum editing constraint
    (https://huggingface.co/papers/2401.06081).

    It trains on completions sampled from the policy, each with one reward per token and a minimally edited, correct
    rewrite. It checks every row, and stops where the loss or the gradient norm is not finite. It overrides the data
    preparation, the data collator, the loss and the metrics of [`~trl.SFTTrainer`]. Everything else (model loading,
    PEFT, quantization, distributed training, checkpoints, the Hub) is inherited.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy, as in [`~trl.SFTTrainer`].
        args ([`RLMECConfig`], *optional*):
            Configuration. If `None`, the defaults are used, and the output directory is the model's name with
            `-RLMEC`.
        data_collator (`DataCollator`, *optional*):
            Defaults to [`~rlmec_trl.trainers.collator.DataCollatorForRLMEC`].
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows with `prompt`, `completion`, `completion_ids`, either `token_probs` and `correct` or `token_rewards`,
            and `rewrite` (or `rewrite_ids`), standard or conversational. `old_logps` are the log-probabilities of the
            completion tokens under the policy that sampled them; without them, the importance ratio is one. Soft
            imitation needs `rewrite_topk_ids` and `rewrite_topk_logps`, and distillation on the attempt
            `attempt_topk_ids` and `attempt_topk_logps`. `chat_template_kwargs` are passed to the chat template.
        eval_dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or a `dict` of them, *optional*):
            Same format as `train_dataset`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The policy's tokenizer. If `None`, it is loaded with the model's name.
        compute_loss_func, compute_metrics, preprocess_logits_for_metrics, formatting_func:
            Not supported. The loss is the trainer's own, the fused LM head builds no logits, and token rewards belong
            to given tokens.
        other arguments:
            As in [`~trl.SFTTrainer`], in the same order.

    Raises:
        `TypeError`: If `args` is not an [`RLMECConfig`].
        `ValueError`: If an option of [`~trl.SFTTrainer`] is set that would lose the per-token columns, or context,
            sequence or tensor parallelism.
        [`~rlmec_trl.data.schema.DatasetError`]: If a row of a dataset breaks the column contract. The rows of a stream
            are checked as they are read.
    """

    _tag_names = ["trl", "rlmec"]
    _name = "RLMEC"
    _paper = PAPER
    # The terms are divided by counts over the whole optimizer step, so gradient accumulation only has to add them up.
    loss_is_scaled_for_ga = True

    @wraps(SFTTrainer.__init__)  # so that help() and editors show its arguments, which are also ours
    def __init__(self, model, args=None, data_collator=None, *others, **kwargs):
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = RLMECConfig(f"{model_name.split('/')[-1]}-RLMEC")
        if not isinstance(args, RLMECConfig):
            raise TypeError(f"`args` must be a `RLMECConfig`, got `{type(args).__name__}`.")
        arguments = signature(SFTTrainer.__init__).bind(self, model, args, data_collator, *others, **kwargs).arguments
        for name in ("compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics", "formatting_func"):
            if arguments.get(name) is not None:
                raise ConfigError(f"`RLMECTrainer` does not support `{name}`. Leave it out.")
        self.refuse_unsupported(model, args)
        check_inputs(arguments.get("train_dataset"), arguments.get("eval_dataset"))
        if isinstance(model, str):
            refuse_adapter(model, _revision(args))
        self._vocab_size = vocabulary_size(model, args)

        # `SFTTrainer` rejects losses other than its own. The caller's config is not modified.
        args = copy.copy(args)
        # Streams would be dispatched by default
        args.accelerator_config = replace(args.accelerator_config, dispatch_batches=False)
        loss_type, args.loss_type = args.loss_type, "nll"
        super().__init__(model, args, data_collator, *others, **kwargs)
        self.args.loss_type = loss_type
        if isinstance(model, str) and is_peft_model(self.model):
            note_base_revision(self.model, _revision(args))
        # `accelerate launch` and DeepSpeed configure it too, which only the accelerator knows
        self._refuse_parallelism(self.accelerator.parallelism_config, self.get_tp_size() > 1)
        if data_collator is None:
            self.data_collator = DataCollatorForRLMEC(
                pad_token_id=self._tokenizer.pad_token_id,
                policy=args.policy_coef > 0,
                imitation=args.imitation_coef > 0,
                soft_targets=self._needs_targets,
                distill=self._distills,
                pad_to_multiple_of=args.pad_to_multiple_of,
            )
        if self._needs_targets or self._distills:
            if is_deepspeed_zero3_enabled():
                raise ConfigError(
                    "Soft imitation, `imitation_label_smoothing` and `attempt_coef` do not work under ZeRO-3, which "
                    "shards the LM head outside its own forward. Use ZeRO-2 or FSDP, or hard targets without "
                    "smoothing and `attempt_coef=0`."
                )
            add_soft_target_head(self.model.get_base_model() if is_peft_model(self.model) else self.model)
        self._metric_sums = {"train": defaultdict(lambda: [0.0, 0.0]), "eval": defaultdict(lambda: [0.0, 0.0])}

    @classmethod
    def refuse_unsupported(cls, model: str | PreTrainedModel, args: RLMECConfig) -> None:
        """
        Refuse what this trainer does not support, as far as the arguments alone can tell. The trainer does so itself;
        a script calls it before work that comes first, such as scoring.

        Args:
            model (`str` or [`~transformers.PreTrainedModel`]):
                The policy.
            args ([`RLMECConfig`]):
                Configuration.

        Raises:
            [`~rlmec_trl.data.errors.ConfigError`]: If a setting is not supported.
        """
        init_kwargs = args.model_init_kwargs or {}
        tp_size = init_kwargs.get("tp_size") if isinstance(model, str) else model.tp_size
        cls._refuse_parallelism(args.parallelism_config, bool(init_kwargs.get("tp_plan")) or (tp_size or 1) > 1)
        if args.packing or args.eval_packing or args.padding_free:
            raise ConfigError(
                "`RLMECTrainer` does not support `packing`, `eval_packing` or `padding_free`: they keep only token "
                "ids and labels, so token rewards would be lost. Set them to `False`."
            )
        if args.assistant_only_loss or args.completion_only_loss is False:
            raise ConfigError(
                "`RLMECTrainer` trains on completion tokens, with the rewards from the dataset. Leave "
                "`assistant_only_loss` and `completion_only_loss` unset."
            )
        if args.label_smoothing_factor > 0:
            raise ConfigError("Use `imitation_label_smoothing` instead of `label_smoothing_factor`.")
        if args.accelerator_config.dispatch_batches:
            raise ConfigError(
                "`RLMECTrainer` does not support `dispatch_batches`, which cuts a batch into rows, because a batch "
                "has up to two sequences for each row. Leave it unset in `accelerator_config`."
            )
        if args.truncation_mode != "keep_start":
            raise ConfigError("`RLMECTrainer` supports only `truncation_mode='keep_start'`.")
        if (args.dataset_kwargs or {}).get("skip_prepare_dataset"):
            raise ConfigError("`RLMECTrainer` has to prepare its datasets. Remove `skip_prepare_dataset`.")

    @staticmethod
    def _refuse_parallelism(config: ParallelismConfig | None, tensor_parallel: bool) -> None:
        if config is not None and (config.cp_enabled or config.sp_enabled):
            raise ConfigError(
                "`RLMECTrainer` does not support context or sequence parallelism: rewards and weights would not be "
                "split along with the tokens. Set `cp_size` and `sp_size` to 1."
            )
        if tensor_parallel or (config is not None and config.tp_enabled):
            raise ConfigError(
                "`RLMECTrainer` does not support tensor parallelism: its processes share a batch, whose tokens would "
                "be counted once for each of them. Set `tp_size` to 1 and shard the model with FSDP or ZeRO instead."
            )

    @property
    def _needs_targets(self) -> bool:
        soft = self.args.imitation_targets == "soft" or self.args.imitation_label_smoothing > 0
        return soft and self.args.imitation_coef > 0

    @property
    def _distills(self) -> bool:
        return self.args.attempt_coef > 0

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        check_input(dataset, dataset_name)
        column_names = get_dataset_column_names(dataset)
        if "imitation_weights" in column_names:  # already prepared
            return dataset
        dataset = dataset.with_format(None)  # rows of lists, not of arrays
        if args.correct_samples == "cut" and "token_probs" not in column_names:
            raise ConfigError(
                f"`correct_samples='cut'` needs the column `token_probs`, which the {dataset_name} dataset does not "
                "have. Score it first, or set `correct_samples` to 'keep' or 'rewrite'."
            )
        if args.imitation_targets == "soft" and "rewrite_topk_ids" not in column_names:
            raise ConfigError(
                "`imitation_targets='soft'` needs the columns `rewrite_topk_ids` and `rewrite_topk_logps`, which the "
                f"{dataset_name} dataset does not have. Score it with `--rewrite_topk`, or set "
                "`imitation_targets='hard'`."
            )
        if args.attempt_coef > 0 and not {"attempt_topk_ids", "token_probs"} <= set(column_names):
            raise ConfigError(
                "`attempt_coef` needs the columns `attempt_topk_ids`, `attempt_topk_logps` and `token_probs`, which "
                f"the {dataset_name} dataset does not all have. Score it with `--attempt_topk`, or set "
                "`attempt_coef=0`."
            )
        map_kwargs, filter_kwargs = {}, {}
        with errors_in(dataset_name):
            dataset = self._check_rows(dataset, processing_class)
        if isinstance(dataset, Dataset):
            map_kwargs = {"num_proc": args.dataset_num_proc, "desc": f"Preparing {dataset_name} dataset"}
            filter_kwargs = {"num_proc": args.dataset_num_proc, "desc": f"Filtering {dataset_name} dataset"}
        with errors_in(dataset_name), global_then_local_main_first():
            prepared = dataset.map(
                prepare_row,
                with_indices=True,
                fn_kwargs={
                    "processing_class": processing_class,
                    "settings": RewardSettings.from_config(args),
                    "vocab_size": self._vocab_size,
                },
                remove_columns=[name for name in column_names or [] if name not in PREPARED_COLUMNS],
                features=PREPARED_FEATURES,
                **map_kwargs,
            )
            # Drop rows without a trained token: overlong prompts, or incorrect samples without reward and rewrite
            useful = prepared.filter(
                lambda row, policy, imitation, distill, every_token: (
                    (policy and (any(row["token_rewards"]) or (every_token and len(row["completion_ids"]) > 0)))
                    or (imitation and any(row["imitation_weights"]))
                    or (distill and len(row["attempt_topk_ids"]) > 0)
                ),
                fn_kwargs={
                    "policy": args.policy_coef > 0,
                    "imitation": args.imitation_coef > 0,
                    "distill": args.attempt_coef > 0,
                    "every_token": args.normalize_by == "completion_tokens",
                },
                **filter_kwargs,
            )
        if isinstance(useful, Dataset):
            self._report_truncation(prepared, args, dataset_name)
            if len(useful) == 0:
                raise DatasetError(
                    f"No row of the {dataset_name} dataset has a token to train on: all rewards and imitation weights "
                    "are zero, or everything with a weight is longer than `max_length`."
                )
            if len(useful) < len(prepared):
                logger.info(
                    f"Dropped {len(prepared) - len(useful)} rows of the {dataset_name} dataset: no trained token."
                )
            check_num_rows(useful, dataset_name, args)
        return useful.shuffle(seed=args.seed) if args.shuffle_dataset else useful

    def _check_rows(self, dataset, processing_class):
        """Check the rows of a dataset now. Of a stream, check the first row now and the others as they are read."""
        if isinstance(dataset, Dataset):
            check_dataset(dataset, "policy", vocab_size=self._vocab_size)
            check_chat_template(dataset, processing_class)
            return dataset
        check = StreamCheck("policy", vocab_size=self._vocab_size)
        check({name: [value] for name, value in next(iter(dataset)).items()}, [0])
        return dataset.map(check, batched=True, batch_size=_STREAM_BATCH_SIZE, with_indices=True)

    @staticmethod
    def _report_truncation(prepared: Dataset, args: RLMECConfig, dataset_name: str) -> None:
        # Counted from the prepared columns, so that a dataset loaded from the cache is reported too
        reads_completions = args.policy_coef > 0 or args.attempt_coef > 0
        num_completions = sum(prepared["completion_truncated"][:]) if reads_completions else 0
        num_targets = sum(prepared["imitation_truncated"][:]) if args.imitation_coef > 0 else 0
        if num_completions or num_targets:
            what = {"drop": "left out of imitation", "keep": "imitated without their end"}[args.truncated_rewrites]
            logger.warning(
                f"`max_length={args.max_length}` truncates {num_completions} completions and {num_targets} imitation "
                f"targets (rewrites, or samples imitated as they are) of the {len(prepared)} rows of the "
                f"{dataset_name} dataset, prompts included. The targets are {what} "
                f"(`truncated_rewrites='{args.truncated_rewrites}'`). Raise `max_length`, or sample with a smaller "
                "`max_new_tokens`."
            )

    def _row_numbers(self, batches: list[dict[str, torch.Tensor]], train: bool) -> list[int]:
        return [row for batch in batches if "row" in batch for row in batch["row"].tolist()]

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            self._signature_columns = PREPARED_COLUMNS

    def _denominators(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """
        Local counts that divide the policy term (N), the imitation term (M) and the distillation on the attempt (K),
        float32 of shape `(3,)`.
        """
        if self.args.normalize_by == "active_tokens":
            num_policy = batch["num_active"].sum()
        else:
            num_policy = batch["num_completion_tokens"].sum()
        return torch.stack([num_policy, batch["num_weighted"].sum(), batch["num_distilled"].sum()])

    def _mask_last_rows(self, batch: dict[str, torch.Tensor], num_rows: int) -> dict[str, torch.Tensor]:
        # Their sequences stay in the batch, because every process has to take part in each forward pass
        masked = torch.zeros_like(batch["num_active"], dtype=torch.bool)
        masked[-num_rows:] = True
        ignored = masked[batch["sequence_rows"]][:, None]
        masks = [name for name in ("policy_mask", "attempt_mask") if name in batch]
        return {
            **batch,
            **{name: batch[name].masked_fill(masked, 0.0) for name in ROW_COUNTS},
            "labels": batch["labels"].masked_fill(ignored, -100),
            "token_rewards": batch["token_rewards"].masked_fill(ignored, 0.0),
            "imitation_weights": batch["imitation_weights"].masked_fill(ignored, 0.0),
            **{name: batch[name].masked_fill(ignored, False) for name in masks},
        }

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        # `Trainer` counts labels. Each of our terms has its own count, over all micro-batches and processes of a step.
        if not batch_samples:
            return None
        counts = sum(self._denominators(batch) for batch in batch_samples).to(device)
        return self.accelerator.reduce(counts, reduction="sum")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs:
            raise ConfigError(
                "`RLMECTrainer` has no logits to return: the fused LM head does not build them. For `predict`, set "
                "`prediction_loss_only=True`."
            )
        mode = "train" if self.model.training else "eval"
        model_inputs = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
        if self.aux_loss_enabled:
            model_inputs["output_router_logits"] = True
        if self._needs_targets:
            model_inputs |= {
                "target_ids": inputs["target_ids"],
                "target_probs": tempered_targets(inputs["target_logps"], self.args.imitation_temperature),
                "target_mask": inputs["imitation_weights"] != 0,
                "label_smoothing": self.args.imitation_label_smoothing,
            }
        if self._distills:
            model_inputs |= {
                "attempt_target_ids": inputs["attempt_target_ids"],
                "attempt_target_probs": tempered_targets(inputs["attempt_target_logps"], temperature=1.0),
                "attempt_mask": inputs["attempt_mask"],
            }
        outputs = model(**model_inputs, use_cache=False, fused_lm_head=True)

        # Per-token values are shifted by one: position t predicts token t + 1. They are counted from the end, because
        # prompt-learning PEFT prepends virtual tokens.
        length = inputs["input_ids"].size(1) - 1
        logps, entropy, is_top1, label_mask = (
            outputs[name][:, -length:] for name in ("log_probs", "entropy", "is_top1", "label_mask")
        )
        rewards, weights, policy_mask = (
            inputs[name][:, 1:] for name in ("token_rewards", "imitation_weights", "policy_mask")
        )
        old_logps = inputs["old_logps"][:, 1:] if "old_logps" in inputs else logps.detach()
        target_logps = outputs.expected_logps if self._needs_targets else logps

        is_global = num_items_in_batch is not None
        num_policy, num_weighted, num_distilled = num_items_in_batch if is_global else self._denominators(inputs)
        policy_term, policy_metrics = token_policy_loss(
            logps, old_logps, rewards, policy_mask, self.args.epsilon, num_policy, self.args.loss_type
        )
        imitation_term, _ = imitation_loss(target_logps, weights, num_weighted)
        loss = self.args.policy_coef * policy_term + self.args.imitation_coef * imitation_term
        if self._distills:
            # The cross-entropy of each token up to the first flagged one, all with the same weight
            attempt_term, _ = imitation_loss(
                outputs.attempt_expected_logps, inputs["attempt_mask"][:, 1:].float(), num_distilled
            )
            loss = loss + self.args.attempt_coef * attempt_term
        # The counts are global, but DDP averages gradients over processes: multiply by their number to get the sum.
        if is_global:
            loss = loss * self.accelerator.num_processes
        if self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps if is_global else 1
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / steps

        with torch.no_grad():
            local_num_policy, local_num_weighted, local_num_distilled = self._denominators(inputs)
            num_labels = label_mask.sum().float()
            num_completion_tokens = inputs["num_completion_tokens"].sum()
            metrics: Metrics = {
                **policy_metrics,
                "policy_loss": (policy_term * num_policy.clamp(min=1), local_num_policy),
                "imitation_loss": (imitation_term * num_weighted.clamp(min=1), local_num_weighted),
                "token_reward/mean": (inputs["reward_sum"].sum(), num_completion_tokens),
                "token_reward/active_fraction": (inputs["num_active"].sum(), num_completion_tokens),
                "edited_fraction": (inputs["num_edited"].sum(), inputs["num_imitated"].sum()),
                "entropy": (entropy.sum(), num_labels),
                "mean_token_accuracy": (is_top1.sum().float(), num_labels),
                "num_tokens": (
                    # Without sequences that only let the process take part in the forward pass
                    (inputs["attention_mask"] * (inputs["labels"] != -100).any(1, keepdim=True)).sum().float(),
                    torch.ones_like(num_labels),
                ),
            }
            if self._distills:
                metrics["attempt_loss"] = (attempt_term * num_distilled.clamp(min=1), local_num_distilled)
            if self.aux_loss_enabled:
                metrics["aux_loss"] = (outputs.aux_loss.detach(), torch.ones_like(num_labels))
        self._add_metrics(mode, metrics)
        return loss

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        # What `predict` has left, or an evaluation that stopped
        self._metric_sums["eval"].clear()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        # `Trainer` averages the losses of batches, which have different numbers of tokens. As in an optimizer step,
        # each term is divided by its count over the whole dataset.
        means = {name: total / max(count, 1) for name, (total, count) in self._metric_sums["eval"].items()}
        if means:
            loss = self.args.policy_coef * means["policy_loss"] + self.args.imitation_coef * means["imitation_loss"]
            if self._distills:
                loss = loss + self.args.attempt_coef * means["attempt_loss"]
            if self.aux_loss_enabled:
                loss = loss + self.router_aux_loss_coef * means["aux_loss"]
            output.metrics[f"{metric_key_prefix}_loss"] = loss.item()
        return output
