"""Training of reward models on label-sensitive pairs: responses that differ in their label, or in their rationale."""

import copy
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import wraps
from inspect import signature
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from trl import RewardTrainer
from trl.data_utils import get_dataset_column_names
from trl.trainer.reward_trainer import DataCollatorForPreference
from trl.trainer.utils import get_config_model_id, global_then_local_main_first

from ..credit.paper import RLLR_PAPER
from ..credit.trainer_checks import TrainerChecks, check_inputs, check_num_rows, errors_in, vocabulary_size
from ..data.adapters import note_base_revision, refuse_adapter
from ..data.errors import ConfigError, DatasetError
from ..data.inputs import check_input
from ..data.messages import message_text
from ..data.reward_heads import reward_head
from ..data.row_checks import PAIR_KINDS, row_error
from ..data.schema import StreamCheck, check_dataset
from ..data.tokens import check_chat_template, encode_completion, encode_prompt
from .label_reward_config import LabelRewardConfig
from .losses import Metrics
from .metric_sums import MetricSums
from .pair_losses import divergent_pair_loss, last_token_pair_loss, last_values
from .token_values import add_token_values


logger = get_logger(__name__)

PREPARED_COLUMNS = ["chosen_ids", "rejected_ids", "margin", "kind", "row"]
# Rows of a stream that are read, and checked, at a time
_STREAM_BATCH_SIZE = 100


def prepare_pair(
    row: dict[str, Any], index: int, processing_class: PreTrainedTokenizerBase, vocab_size: int | None = None
) -> dict[str, Any]:
    """
    Turn a pair into token ids. Prompt and response are encoded apart, as the policy that is trained with the reward
    model reads and writes them, and a response ends with EOS.

    Args:
        row (`dict`):
            `prompt`, `chosen` and `rejected`, or their ids as `chosen_ids` and `rejected_ids`.
        index (`int`):
            Number of the row in its dataset.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the reward model.
        vocab_size (`int`, *optional*):
            Number of ids that the reward model knows.

    Returns:
        `dict`: `chosen_ids`, `rejected_ids` and `row`, and `kind` and `margin` if the row has them.

    Raises:
        [`~rlmec_trl.data.errors.DatasetError`]: If the chat template refuses the prompt, or an id is not in the
            vocabulary.
    """
    pair = {name: row[name] for name in ("margin", "kind") if name in row}
    if "chosen_ids" in row:
        # A dataset that was prepared before, such as one that is evaluated again, keeps its numbers
        number = row["row"] if isinstance(row.get("row"), int) else index
        pair |= {"row": number, "chosen_ids": row["chosen_ids"], "rejected_ids": row["rejected_ids"]}
    else:
        pair["row"] = index
        prompt_ids = encode_prompt(processing_class, row["prompt"], row.get("chat_template_kwargs"), index)
        for name in ("chosen", "rejected"):
            pair[f"{name}_ids"] = [*prompt_ids, *encode_completion(processing_class, message_text(row[name]))]
    for name in ("chosen_ids", "rejected_ids"):
        if not pair[name]:
            raise row_error(index, name, pair[name], "A sequence needs at least one token. Drop the row.")
        if vocab_size is not None and max(pair[name]) >= vocab_size:
            found = f"the token id {max(pair[name])}, and the model has {vocab_size} ids"
            raise row_error(index, name, found, "Use the tokenizer of the model.", quote=False)
    return pair


@dataclass
class DataCollatorForLabelReward(DataCollatorForPreference):
    """
    [`~trl.trainer.reward_trainer.DataCollatorForPreference`] that keeps the kind and the number of each pair.

    In addition to `input_ids`, `attention_mask` and `margin`, a batch has tensors of shape `(pairs,)`: `pair_mask`
    (`bool`), True where a pair counts, `row` and, if the pairs have one, `kind`, an index of
    [`~rlmec_trl.data.row_checks.PAIR_KINDS`].
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        batch["pair_mask"] = torch.ones(len(examples), dtype=torch.bool)
        batch["row"] = torch.tensor([example["row"] for example in examples])
        if "kind" in examples[0]:
            batch["kind"] = torch.tensor([PAIR_KINDS.index(example["kind"]) for example in examples])
        return batch


def _unify_trained_dtype(model: torch.nn.Module) -> None:
    """
    Train the score head in float32 if the adapter's other weights are.

    PEFT gives these float32 on a model in bfloat16, but not the head, whose updates bfloat16 would round away.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if any(parameter.dtype == torch.float32 for parameter in trained):
        for parameter in reward_head(model).parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()


class LabelRewardTrainer(MetricSums, TrainerChecks, RewardTrainer):
    """
    Trainer for reward models on label-sensitive pairs (https://huggingface.co/papers/2405.19763).

    It compares the two responses of a pair at each token from the first one that differs, instead of at their ends
    only, and measures accuracy and margin separately on each kind of pair. It checks every row, and stops where the
    loss or the gradient norm is not finite. It overrides the data preparation, the data collator, the loss and the
    metrics of [`~trl.RewardTrainer`]. Everything else (model loading, PEFT, quantization, distributed training,
    checkpoints, the Hub) is inherited.

    The reward of a response is the value at its last real token, found by the attention mask: the padding token may be
    EOS. [`~rlmec_trl.generation.reward_models.SequenceRewardModel`] reads it in the same way.

    Example:

    ```python
    >>> from datasets import load_from_disk
    >>> from rlmec_trl import LabelRewardTrainer

    >>> trainer = LabelRewardTrainer(
    ...     model="Qwen/Qwen2.5-0.5B-Instruct",
    ...     train_dataset=load_from_disk("runs/sst2/label_pairs"),
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model, as in [`~trl.RewardTrainer`]: a decoder. An adapter has to train the score head too, which
            task type `"SEQ_CLS"` makes it do.
        args ([`LabelRewardConfig`], *optional*):
            Configuration. If `None`, the defaults are used, and the output directory is the model's name with
            `-LabelReward`.
        data_collator (`DataCollator`, *optional*):
            Defaults to [`~rlmec_trl.trainers.label_reward_trainer.DataCollatorForLabelReward`].
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows with `prompt`, `chosen` and `rejected`, standard or conversational, a response being one message.
            `kind` is `"label"` or `"rationale"`, `margin` a number, as in [`~trl.RewardTrainer`].
            `chat_template_kwargs` are passed to the chat template. A tokenized dataset (`chosen_ids` and
            `rejected_ids`) is used as is. Pairs with a sequence longer than `max_length` are dropped, which a warning
            says.
        eval_dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or a `dict` of them, *optional*):
            Same format as `train_dataset`.
        other arguments:
            As in [`~trl.RewardTrainer`], in the same order.

    Raises:
        `TypeError`: If `args` is not a [`LabelRewardConfig`].
        [`~rlmec_trl.data.errors.ConfigError`]: If a setting is not supported, or an adapter does not train the head.
        [`~rlmec_trl.data.errors.ModelError`]: If the model has no score head for each token.
        [`~rlmec_trl.data.errors.DatasetError`]: If a row of a dataset breaks the column contract. The rows of a stream
            are checked as they are read.
    """

    _tag_names = ["trl", "reward-trainer", "rllr"]
    _name = "LabelReward"
    _paper = RLLR_PAPER
    # The loss is divided by the number of pairs in the optimizer step, so gradient accumulation only adds it up.
    loss_is_scaled_for_ga = True

    @wraps(RewardTrainer.__init__)  # so that help() and editors show its arguments, which are also ours
    def __init__(self, model, args=None, data_collator=None, *others, **kwargs):
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = LabelRewardConfig(f"{model_name.split('/')[-1]}-LabelReward")
        if not isinstance(args, LabelRewardConfig):
            raise TypeError(f"`args` must be a `LabelRewardConfig`, got `{type(args).__name__}`.")
        bound = signature(RewardTrainer.__init__).bind(self, model, args, data_collator, *others, **kwargs)
        self._refuse_unsupported(args, bound.arguments.get("peft_config"))
        check_inputs(bound.arguments.get("train_dataset"), bound.arguments.get("eval_dataset"))
        revision = (args.model_init_kwargs or {}).get("revision") or "main"
        if isinstance(model, str):
            refuse_adapter(model, revision)
        self._vocab_size = vocabulary_size(model, args)

        # The caller's config is not modified. Streams would be dispatched by default
        args = copy.copy(args)
        args.accelerator_config = replace(args.accelerator_config, dispatch_batches=False)
        super().__init__(model, args, data_collator, *others, **kwargs)
        if isinstance(model, str) and is_peft_model(self.model):
            note_base_revision(self.model, revision)
        config = self.accelerator.parallelism_config
        if self._tp_size > 1 or self.get_tp_size() > 1 or (config and (config.cp_enabled or config.sp_enabled)):
            raise ConfigError(
                "`LabelRewardTrainer` does not support tensor, context or sequence parallelism: pairs would be "
                "counted several times, or be split. Set `tp_size`, `cp_size` and `sp_size` to 1, and shard the model "
                "with FSDP or ZeRO instead."
            )
        if not any(parameter.requires_grad for parameter in reward_head(self.model).parameters()):
            raise ConfigError(
                "The score head is not trained: it is not part of the adapter, nor saved with it. Use an adapter of "
                "task type 'SEQ_CLS'."
            )
        _unify_trained_dtype(self.model)
        add_token_values(self.model)
        if data_collator is None:
            self.data_collator = DataCollatorForLabelReward(
                pad_token_id=self.processing_class.pad_token_id, pad_to_multiple_of=args.pad_to_multiple_of
            )
        self._metric_sums = {"train": defaultdict(lambda: [0.0, 0.0]), "eval": defaultdict(lambda: [0.0, 0.0])}

    @staticmethod
    def _refuse_unsupported(args: LabelRewardConfig, peft_config: Any) -> None:
        if args.accelerator_config.dispatch_batches:
            raise ConfigError(
                "`LabelRewardTrainer` does not support `dispatch_batches`, which cuts a batch into rows, because a "
                "batch has two sequences for each row. Leave it unset in `accelerator_config`."
            )
        if peft_config is not None and peft_config.task_type != "SEQ_CLS":
            raise ConfigError(
                f"The adapter has the task type {peft_config.task_type!r}, with which the score head would not be "
                "trained and saved. Use 'SEQ_CLS' (`--lora_task_type SEQ_CLS`)."
            )

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        check_input(dataset, dataset_name)
        if processing_class.eos_token_id is None:
            raise ConfigError("The tokenizer has no EOS token, with which a response ends. Set `eos_token`.")
        dataset = dataset.with_format(None)  # rows of lists, not of arrays
        column_names = get_dataset_column_names(dataset)
        map_kwargs = {}
        if isinstance(dataset, Dataset):
            map_kwargs = {"num_proc": args.dataset_num_proc, "desc": f"Preparing {dataset_name} dataset"}
        with errors_in(dataset_name):
            if not {"chosen_ids", "rejected_ids"} <= set(column_names):
                dataset = self._check_rows(dataset, processing_class, column_names)
            with global_then_local_main_first():
                prepared = dataset.map(
                    prepare_pair,
                    with_indices=True,
                    fn_kwargs={"processing_class": processing_class, "vocab_size": self._vocab_size},
                    remove_columns=[name for name in column_names if name not in PREPARED_COLUMNS],
                    **map_kwargs,
                )
        # TRL drops the pairs that are too long
        kept = super()._prepare_dataset(prepared, processing_class, args, dataset_name)
        if isinstance(kept, Dataset) and len(kept) < len(prepared):
            logger.warning(
                f"Dropped {len(prepared) - len(kept)} of the {len(prepared)} pairs of the {dataset_name} dataset: one "
                f"of their sequences, prompt included, is longer than `max_length` ({args.max_length})."
            )
        check_num_rows(kept, dataset_name, args)
        return kept

    @staticmethod
    def _check_rows(dataset, processing_class, column_names):
        """Check the rows of a dataset now. Of a stream, check the first row now and the others as they are read."""
        if "prompt" not in column_names and "chosen" in column_names:
            raise DatasetError(
                "Column 'prompt' is missing: prompt and response are encoded apart, as in sampling. "
                "`dataset.map(trl.extract_prompt)` takes the prompt out of the responses."
            )
        if isinstance(dataset, Dataset):
            check_dataset(dataset, "preference")
            check_chat_template(dataset, processing_class)
            return dataset
        check = StreamCheck("preference")
        check({name: [value] for name, value in next(iter(dataset)).items()}, [0])
        return dataset.map(check, batched=True, batch_size=_STREAM_BATCH_SIZE, with_indices=True)

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            self._signature_columns = PREPARED_COLUMNS

    def _row_numbers(self, batches: list[dict[str, torch.Tensor]], train: bool) -> list[int]:
        return [row for batch in batches if "row" in batch for row in batch["row"].tolist()]

    def _mask_last_rows(self, batch: dict[str, torch.Tensor], num_rows: int) -> dict[str, torch.Tensor]:
        pair_mask = self._pair_mask(batch).clone()
        pair_mask[-num_rows:] = False
        return {**batch, "pair_mask": pair_mask}

    @staticmethod
    def _pair_mask(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Which pairs count, `bool` of shape `(pairs,)`. A collator of the user's own need not say it."""
        if "pair_mask" in batch:
            return batch["pair_mask"]
        return torch.ones(len(batch["input_ids"]) // 2, dtype=torch.bool, device=batch["input_ids"].device)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        # `Trainer` counts labels. Ours are pairs, over all micro-batches and processes of a step.
        if not batch_samples:
            return None
        num_pairs = sum(self._pair_mask(batch).sum() for batch in batch_samples).to(device)
        return self.accelerator.reduce(num_pairs.float(), reduction="sum")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mode = "train" if self.model.training else "eval"
        input_ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
        pair_mask, margin = self._pair_mask(inputs), inputs.get("margin")
        outputs = model(input_ids=input_ids, attention_mask=inputs["attention_mask"], use_cache=False)
        # Counted from the end, because prompt-learning PEFT prepends virtual tokens
        values = outputs.token_values[:, -input_ids.size(1) :]
        rewards = last_values(values, mask)
        chosen, rejected = rewards.chunk(2)
        if self.args.loss_type == "divergent_tokens":
            sides = [side for tensor in (values, input_ids, mask) for side in tensor.chunk(2)]
            losses = divergent_pair_loss(*sides, self.args.pair_temperature, margin, self.args.use_pad_values)
        else:
            losses = last_token_pair_loss(chosen, rejected, self.args.pair_temperature, margin)
        if self.args.center_rewards_coefficient is not None:
            losses = losses + self.args.center_rewards_coefficient * (chosen + rejected) ** 2

        is_global = num_items_in_batch is not None
        num_pairs = num_items_in_batch if is_global else pair_mask.sum()
        # A pair that does not count may have a loss that is not finite
        loss = losses.masked_fill(~pair_mask, 0.0).sum() / num_pairs.clamp(min=1)
        # The count is global, but DDP averages gradients over processes: multiply by their number to get the sum.
        if is_global:
            loss = loss * self.accelerator.num_processes

        with torch.no_grad():
            self._add_pair_metrics(mode, inputs, losses, chosen, rejected, pair_mask)
        if return_outputs:
            return loss, SequenceClassifierOutputWithPast(logits=rewards.unsqueeze(-1))
        return loss

    def _add_pair_metrics(
        self,
        mode: str,
        inputs: dict[str, torch.Tensor],
        losses: torch.Tensor,
        chosen: torch.Tensor,
        rejected: torch.Tensor,
        pair_mask: torch.Tensor,
    ) -> None:
        values = {"accuracy": (chosen > rejected).float(), "margin": chosen - rejected, "loss": losses}

        def mean(name: str, where: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return values[name].masked_fill(~where, 0.0).sum(), where.sum()

        metrics: Metrics = {
            # Training logs the loss itself; of an evaluation, it is that of all pairs
            **{name: mean(name, pair_mask) for name in ("accuracy", "margin", *["loss"] * (mode == "eval"))},
            "mean_reward": ((chosen + rejected).masked_fill(~pair_mask, 0.0).sum() / 2, pair_mask.sum()),
        }
        if "kind" in inputs:
            for index, kind in enumerate(PAIR_KINDS):
                where = pair_mask & (inputs["kind"] == index)
                metrics |= {f"{name}/{kind}": mean(name, where) for name in values}
        num_tokens = (inputs["attention_mask"] * pair_mask.repeat(2).unsqueeze(-1)).sum()
        metrics["num_tokens"] = (num_tokens, torch.ones_like(num_tokens))
        self._add_metrics(mode, metrics)
        # Those of all batches since the last log: a mean of theirs would depend on the size of a batch
        rewards, counts = torch.cat([chosen, rejected]), pair_mask.repeat(2)
        lowest = rewards.masked_fill(~counts, torch.inf).min()
        highest = rewards.masked_fill(~counts, -torch.inf).max()
        extremes = self.accelerator.gather(torch.stack([lowest, -highest]).unsqueeze(0)).min(0).values.tolist()
        known = self._metrics[mode]
        known["min_reward"] = [min([*known["min_reward"], extremes[0]])]
        known["max_reward"] = [max([*known["max_reward"], -extremes[1]])]

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        # What `predict` has left, or an evaluation that stopped
        self._metric_sums["eval"].clear()
        self._metrics["eval"].clear()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        # `Trainer` averages the losses of batches, of which the last may have fewer pairs
        if "loss" in self._metric_sums["eval"]:
            total, count = self._metric_sums["eval"].pop("loss")
            output.metrics[f"{metric_key_prefix}_loss"] = (total / count).item()
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # A kind of which there was no pair has no accuracy
        sums = self._metric_sums["train" if self.model.training else "eval"]
        for name in [name for name, (_, count) in sums.items() if count == 0]:
            del sums[name]
        super().log(logs, start_time)
