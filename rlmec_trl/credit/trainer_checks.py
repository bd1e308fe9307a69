"""Checks of our trainers in addition to TRL's: their datasets, and that every step is finite."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, PreTrainedModel, TrainingArguments

from ..data.adapters import unchanged_dtypes
from ..data.errors import ConfigError, UserError
from ..data.inputs import check_input


# How many rows an error names
_MAX_NAMED = 20
# The `model_init_kwargs` that decide which configuration is loaded
_WHERE = ("revision", "token", "subfolder", "cache_dir", "gguf_file")


class NonfiniteError(UserError, ArithmeticError):
    """A loss or a gradient norm that is NaN or infinite. The message names the optimizer step and the rows."""


class TrainerChecks:
    """
    Mixin for a [`~transformers.Trainer`], before the trainer among the base classes.

    It stops training where the loss of a micro-batch or the gradient norm of an optimizer step is NaN or infinite,
    before the optimizer changes the weights, and an evaluation where the loss of a batch is. It trains on batches in
    which rows that only fill them up count nothing, and resumes with the dtypes that it began with. `args` needs the
    field `stop_on_nonfinite`, and the subclass two methods: `_name_rows(batches, train)`, which names the rows of
    batches in words, and `_without_repeats(batch)`.

    The losses are read once an optimizer step, together with the gradient norm, which costs one transfer from the
    device and no communication. All processes stop at the same step, because the norm is that of all processes. Under
    DeepSpeed, whose engine steps inside the backward pass, the weights in memory have changed when training stops,
    but they are not saved.
    """

    # The micro-batches of the current optimizer step, and the losses computed so far
    _step_batches: list[dict[str, Any]]
    _step_losses: list[torch.Tensor]

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches = map(self._without_repeats, epoch_iterator)
        batch_samples, num_items_in_batch = super().get_batch_samples(batches, num_batches, device)
        self._step_batches, self._step_losses = batch_samples, []
        return batch_samples, num_items_in_batch

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        with unchanged_dtypes(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self._step_losses.append(loss)
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        # `Trainer` calls this right before the optimizer's step
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.args.stop_on_nonfinite:
            self._check_step(grad_norm)
        return grad_norm

    def _check_step(self, grad_norm: torch.Tensor | float | None) -> None:
        if grad_norm is None:  # DeepSpeed may not know it
            grad_norm = 0.0
        if isinstance(grad_norm, DTensor):  # under FSDP2, each process has its part
            grad_norm = grad_norm.full_tensor()
        values = [torch.as_tensor(value, device=self.args.device) for value in (*self._step_losses, grad_norm)]
        # One transfer from the device
        *losses, norm = torch.stack([value.float() for value in values]).tolist()
        if norm < 0:  # DeepSpeed's value for a norm that is not finite
            norm = math.nan
        nonfinite = [index for index, loss in enumerate(losses) if not math.isfinite(loss)]
        if nonfinite:
            batches = [self._step_batches[index] for index in nonfinite]
            found = f"the loss is {losses[nonfinite[0]]} on {self._name_rows(batches, train=True)}"
        elif not math.isfinite(norm) and not self._scaler_skips_the_step():
            rows = self._name_rows(self._step_batches, train=True)
            found = f"the losses are finite, but the gradient norm is {norm}, on {rows}"
            if self.accelerator.num_processes > 1:
                found += ", unless another process names rows whose loss is not,"
        else:
            return
        step = self.state.global_step + 1
        raise NonfiniteError(
            f"Optimizer step {step}: {found}{self._process()}. Training stops at this step, and nothing of it is "
            "saved. Check these rows, or lower `learning_rate` or `max_grad_norm`; the last checkpoint can be "
            "resumed from. `stop_on_nonfinite=False` trains on."
        )

    def _scaler_skips_the_step(self) -> bool:
        """Whether loss scaling (fp16) handles gradients that overflow: it skips the step and lowers the scale."""
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return self.accelerator.mixed_precision == "fp16"
        scaler = self.accelerator.scaler
        # Under 1, the gradients themselves are too large, and every step would be skipped
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() >= 1

    def prediction_step(self, model, inputs, *args, **kwargs):
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if self.args.stop_on_nonfinite and loss is not None and not torch.isfinite(loss).all():
            raise NonfiniteError(
                f"Evaluation after optimizer step {self.state.global_step}: the loss is {loss.mean().item()} on "
                f"{self._name_rows([inputs], train=False)}{self._process()}. Check these rows, or evaluate an earlier "
                "checkpoint. `stop_on_nonfinite=False` leaves the batch out."
            )
        return loss, logits, labels

    def _process(self) -> str:
        number, count = self.accelerator.process_index, self.accelerator.num_processes
        return "" if count == 1 else f" (those of process {number} of {count})"


def check_inputs(train_dataset: Any, eval_dataset: Any) -> None:
    """
    Check what is given to a trainer as datasets, before its model is loaded.

    Raises:
        [`~rlmec_trl.data.errors.DatasetError`]: If one of them is no dataset, or has no rows.
    """
    check_input(train_dataset, "train")
    if isinstance(eval_dataset, dict):
        for name, dataset in eval_dataset.items():
            check_input(dataset, name)
    elif eval_dataset is not None:
        check_input(eval_dataset, "eval")


def check_num_rows(dataset: Any, dataset_name: str, args: TrainingArguments) -> None:
    """
    Check that a prepared dataset fills a batch where incomplete ones are dropped.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If it does not, so that there would be no batch at all.
    """
    if not args.dataloader_drop_last or not isinstance(dataset, Dataset):
        return
    is_train = dataset_name == "train"
    batch_size = (args.train_batch_size if is_train else args.eval_batch_size) * args.world_size
    if len(dataset) < batch_size:
        raise ConfigError(
            f"The {dataset_name} dataset has {len(dataset)} examples, fewer than the {batch_size} of one batch over "
            "all processes, and `dataloader_drop_last` drops incomplete batches: none would be left. Lower "
            f"`per_device_{'train' if is_train else 'eval'}_batch_size`, or set `dataloader_drop_last=False`."
        )


def vocabulary_size(model: str | PreTrainedModel, args: TrainingArguments) -> int | None:
    """
    The number of ids that a model knows, from its configuration: the model need not be loaded.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            The model, or its path or Hub name.
        args ([`~trl.SFTConfig`]):
            The trainer's configuration, whose `model_init_kwargs` say where the model is.

    Returns:
        `int`, *optional*: `None` if `chat_template_path` may add tokens.
    """
    if args.chat_template_path is not None:
        return None
    if isinstance(model, str):
        init_kwargs = args.model_init_kwargs or {}
        where = {name: init_kwargs[name] for name in _WHERE if init_kwargs.get(name) is not None}
        trust_remote_code = init_kwargs.get("trust_remote_code", args.trust_remote_code)
        config = AutoConfig.from_pretrained(model, **where, trust_remote_code=trust_remote_code)
    else:
        config = model.config
    return config.get_text_config().vocab_size


def list_rows(rows: Iterable[int], train: bool) -> str:
    """Row numbers in words."""
    numbers = sorted(set(rows))
    if not numbers:  # prepared by another program, or packed
        return f"rows of the {'training' if train else 'evaluation'} dataset that have no numbers"
    shown = ", ".join(map(str, numbers[:_MAX_NAMED]))
    more = f" and {len(numbers) - _MAX_NAMED} others" if len(numbers) > _MAX_NAMED else ""
    return f"row{'s' if len(numbers) > 1 else ''} {shown}{more} of the {'training' if train else 'evaluation'} dataset"
