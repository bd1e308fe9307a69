"""Checks of our trainers in addition to TRL's: their datasets, and that every step is finite."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from datasets import Dataset
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, TrainingArguments

from ..data.adapters import load_text_config, unchanged_dtypes
from ..data.batches import num_repeated_rows
from ..data.errors import ConfigError, DatasetError, UserError
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
    before the optimizer changes the weights, and an evaluation where the loss of a batch is. It trains and evaluates
    on batches in which rows that only fill them up count nothing, and resumes with the dtypes that it began with.
    `args` needs the field `stop_on_nonfinite`, and the subclass two methods: `_row_numbers(batches, train)`, the
    numbers of the rows in batches, and `_mask_last_rows(batch, num_rows)`, a batch whose last rows count nothing.

    The losses are read once an optimizer step, together with the gradient norm: one transfer from the device, after a
    gather of two numbers where there are several processes. An evaluation gathers one number a batch. So all
    processes stop at the same step or batch, with the same message. Under DeepSpeed, whose engine steps inside the
    backward pass, the weights in memory have changed when training stops, but they are not saved.
    """

    # The micro-batches of the current optimizer step that are through, each with its loss
    _step_losses: tuple[tuple[dict[str, Any], torch.Tensor], ...] = ()

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        self._step_losses = ()
        return super().get_batch_samples(map(self._without_repeats, epoch_iterator), num_batches, device)

    def _without_repeats(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The current batch of the dataloader, in which rows that only fill it up count nothing."""
        num_repeats = num_repeated_rows(self.accelerator.gradient_state.active_dataloader)
        return self._mask_last_rows(batch, num_repeats) if num_repeats > 0 else batch

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        with unchanged_dtypes(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_losses += ((inputs, loss),)
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
        norm = torch.as_tensor(grad_norm, dtype=torch.float32, device=self.args.device)
        largest = torch.stack([loss.to(norm) for _, loss in self._step_losses]).abs().max()  # NaN where one is
        # A loss is known to its own process alone, and under loss scaling (fp16) the norm does not tell the others
        values = self.accelerator.gather(torch.stack([largest, norm])).reshape(-1, 2).tolist()
        losses = [loss for loss, _ in values if not math.isfinite(loss)]
        # A negative norm is how DeepSpeed says that it is not finite
        norms = [math.nan if norm < 0 else norm for _, norm in values if not 0 <= norm < math.inf]
        if losses:
            batches = [inputs for inputs, loss in self._step_losses if not torch.isfinite(loss)]
            found = f"the loss is {losses[0]} on {self._name_rows(batches, train=True)}"
        elif norms and not self._scaler_skips_the_step():
            batches = [inputs for inputs, _ in self._step_losses]
            rows = self._name_rows(batches, train=True)
            found = f"the losses are finite, but the gradient norm is {norms[0]}, on {rows}"
        else:
            return
        raise NonfiniteError(
            f"Optimizer step {self.state.global_step + 1}: {found}. Training stops at this step, and nothing of it is "
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

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._without_repeats(inputs)
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if self.args.stop_on_nonfinite and loss is not None:
            self._check_evaluation(inputs, loss)
        return loss, logits, labels

    def _check_evaluation(self, inputs: dict[str, Any], loss: torch.Tensor) -> None:
        values = self.accelerator.gather(loss.float().mean().reshape(1)).tolist()
        losses = [value for value in values if not math.isfinite(value)]
        if losses:
            batches = [] if math.isfinite(values[self.accelerator.process_index]) else [inputs]
            raise NonfiniteError(
                f"Evaluation after optimizer step {self.state.global_step}: the loss is {losses[0]} on "
                f"{self._name_rows(batches, train=False)}. Check these rows, or evaluate an earlier checkpoint. With "
                "`stop_on_nonfinite=False`, the evaluation goes on, and its loss is not finite either."
            )

    def _name_rows(self, batches: list[dict[str, Any]], train: bool) -> str:
        """The rows of these batches, and of those that the other processes name, in words."""
        return list_rows(chain.from_iterable(gather_object([self._row_numbers(batches, train)])), train)


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


@contextmanager
def errors_in(dataset_name: str) -> Iterator[None]:
    """Let the errors of a dataset's rows say which evaluation set it is."""
    try:
        yield
    except DatasetError as error:
        if dataset_name == "train":
            raise
        raise DatasetError(f"In the {dataset_name} dataset: {error}") from None


def check_num_rows(dataset: Any, dataset_name: str, args: TrainingArguments) -> None:
    """
    Check that a prepared dataset has examples, and that it fills a batch where incomplete ones are dropped.

    Raises:
        [`~rlmec_trl.data.errors.DatasetError`]: If it has no examples.
        [`~rlmec_trl.data.errors.ConfigError`]: If it does not fill a batch, so that there would be none at all.
    """
    if not isinstance(dataset, Dataset):
        return
    if len(dataset) == 0:
        raise DatasetError(
            f"No example of the {dataset_name} dataset is left after its preparation: none has a token to train on "
            f"within `max_length` ({args.max_length}). Raise `max_length`, or check the rows."
        )
    if not args.dataloader_drop_last:
        return
    is_train = dataset_name == "train"
    batch_size = args.train_batch_size if is_train else args.eval_batch_size
    if not args.accelerator_config.split_batches:  # with it, a batch is that of all processes
        batch_size *= args.world_size
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
        config = load_text_config(model, **where, trust_remote_code=trust_remote_code)
    else:
        config = model.config.get_text_config()
    return config.vocab_size


def list_rows(rows: Iterable[int], train: bool) -> str:
    """Row numbers in words."""
    numbers = sorted(set(rows))
    if not numbers:  # prepared by another program, or packed
        return f"rows of the {'training' if train else 'evaluation'} dataset that have no numbers"
    shown = ", ".join(map(str, numbers[:_MAX_NAMED]))
    more = f" and {len(numbers) - _MAX_NAMED} others" if len(numbers) > _MAX_NAMED else ""
    return f"row{'s' if len(numbers) > 1 else ''} {shown}{more} of the {'training' if train else 'evaluation'} dataset"
