"""Training settings that cannot work: what is known before the model is loaded, and what only the libraries know."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature

import torch
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import GRPOConfig, ModelConfig, RewardConfig, SFTConfig

from ..data.errors import ConfigError, ModelError
from ..generation.loading import load_tokenizer
from .library_errors import refused_by


# What the libraries refuse a setting with, on building a trainer and on its first use of an optimizer or a scheduler:
# a value that they do not know, a package or a file that is not there, and keys of `*_kwargs` that nobody takes
_REFUSALS = (ValueError, ImportError, OSError, TypeError, KeyError, RuntimeError)
# The arguments of `gradient_checkpointing_kwargs`: those of PyTorch's function, and three that no signature names
_CHECKPOINTING = {
    *(name for name, argument in signature(checkpoint).parameters.items() if argument.kind is argument.KEYWORD_ONLY),
    *("preserve_rng_state", "every_n_layers", "offload"),
}
# Failures of the machine, which no setting is to blame for
_FAILURES = (torch.OutOfMemoryError, torch.AcceleratorError, torch.distributed.DistError)
_FAILURE_TEXTS = ("CUDA error", "cuDNN error", "NCCL error", "DataLoader worker")
_FAILURE_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


def check_training_settings(training_args: TrainingArguments, eval_dataset_name: str | None = None) -> None:
    """
    Check what TRL and Transformers would notice only after the model is loaded, or not at all.

    Args:
        training_args ([`~transformers.TrainingArguments`]):
            Configuration of a trainer.
        eval_dataset_name (`str`, *optional*):
            What the recipe evaluates on.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If a setting cannot work.
    """
    if training_args.hub_token is not None:
        raise ConfigError(
            "`hub_token` would be saved with the other settings, in `training_args.bin`. Leave it out, and set "
            "HF_TOKEN or log in with `hf auth login`."
        )
    evaluates = training_args.eval_strategy != "no" or training_args.eval_on_start
    if evaluates and eval_dataset_name is None:
        name = "eval_on_start" if training_args.eval_strategy == "no" else "eval_strategy"
        raise ConfigError(
            f"`{name}` is set, and there is no dataset to evaluate on. Name one with `--eval_dataset_name`, where the "
            f"recipe has this argument, or leave `{name}` out."
        )
    if training_args.gradient_checkpointing:
        for name in training_args.gradient_checkpointing_kwargs or ():
            if name not in _CHECKPOINTING:
                known = ", ".join(sorted(_CHECKPOINTING))
                raise ConfigError(f"`gradient_checkpointing_kwargs` has no argument {name!r}. There are {known}.")
    if not isinstance(training_args, SFTConfig | RewardConfig):
        return
    if training_args.activation_offloading and (training_args.use_cpu or not torch.accelerator.is_available()):
        raise ConfigError("`activation_offloading` needs an accelerator (such as a GPU). Leave it out on a CPU.")
    template = training_args.chat_template_path
    if template is not None and not template.endswith((".jinja", ".j2")):
        try:
            load_tokenizer(ModelConfig(template), training_args.trust_remote_code)
        except ModelError as error:
            raise ConfigError(
                f"`chat_template_path` must be a .jinja file, or a model whose tokenizer has the template. {error}"
            ) from None


def check_generation_batch(num_rows: int, training_args: GRPOConfig) -> None:
    """
    Check that there are enough problems for a batch of GRPO, whose sampler drops those that do not fill one.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If there are not, so that there would be no step at all.
    """
    needed = training_args.generation_batch_size // training_args.num_generations
    if num_rows < needed:
        raise ConfigError(
            f"A batch of `generation_batch_size` {training_args.generation_batch_size} takes {needed} problems, with "
            f"{training_args.num_generations} completions each (`num_generations`), and the dataset has {num_rows}. "
            "Lower `per_device_train_batch_size` or `gradient_accumulation_steps`, or train on more problems."
        )


@contextmanager
def refused_settings(trainer: Trainer | None = None) -> Iterator[None]:
    """
    Turn what TRL, Transformers, PEFT and Accelerate raise for a setting into one message, which quotes them and says
    where it comes from. Use it around the building of a trainer, and around its training, of which only the beginning
    counts: until the first optimizer step is done.

    An exception counts as a refusal if it was raised in one of these libraries (or below), and no code of ours runs
    between the library that was called first and the error, except constructors that hand on settings, and none of
    the user's (a reward function, a callback). Anything else keeps its traceback: failures of the machine, such as a
    full disk, and every [`~rlmec_trl.data.errors.UserError`].

    Args:
        trainer ([`~transformers.Trainer`], *optional*):
            The trainer that is about to train.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: Instead of the library's exception.
    """
    first_use = _FirstUse(trainer)
    if trainer is not None:
        trainer.add_callback(first_use)
    try:
        yield
    except first_use.refusals as error:
        where = None if _is_failure(error) else refused_by(error)
        if where is None:
            raise
        # The text of a `KeyError` is the `repr` of its message
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        text = " ".join(text.split()).rstrip(".")
        raise ConfigError(
            f"Training cannot start with these settings: {text} ({type(error).__name__} in {where})."
        ) from error
    finally:
        if trainer is not None:
            trainer.remove_callback(first_use)


def _is_failure(error: Exception) -> bool:
    """Whether an error is a failure of the machine."""
    if isinstance(error, OSError):
        return error.errno in _FAILURE_NUMBERS
    texts = _FAILURE_TEXTS if isinstance(error, RuntimeError) else ()
    return isinstance(error, _FAILURES) or any(text in str(error) for text in texts)


class _FirstUse(TrainerCallback):
    """
    Follows a training until all settings have been used, and checks the one whose values depend on what an evaluation
    gives.
    """

    def __init__(self, trainer: Trainer | None):
        self.refusals = _REFUSALS
        sets = None if trainer is None else trainer.eval_dataset
        # What the names of a set's metrics begin with
        self.prefixes = [f"eval_{name}" for name in sets] if isinstance(sets, dict) else ["eval"]
        self.metrics = {}

    def on_step_begin(self, args, state, control, **kwargs):
        # The other types may be failures of the model or the machine. GRPO reads some settings only here
        if self.refusals:
            self.refusals = (ValueError, ImportError)

    def on_step_end(self, args, state, control, **kwargs):
        self.refusals = ()

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        # Called for each set of a `dict`, and by evaluations of the user's own, with other names
        if not any(f"{prefix}_runtime" in metrics for prefix in self.prefixes):
            return
        self.metrics |= metrics
        name = args.metric_for_best_model
        if name is None or not all(f"{prefix}_runtime" in self.metrics for prefix in self.prefixes):
            return
        if f"eval_{name.removeprefix('eval_')}" not in self.metrics:
            known = ", ".join(sorted(metric.removeprefix("eval_") for metric in self.metrics if metric != "epoch"))
            raise ConfigError(f"`metric_for_best_model` is {name!r}, which the evaluation does not give: {known}.")
