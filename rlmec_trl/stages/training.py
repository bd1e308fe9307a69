"""Loading, training and saving, as every training recipe does them around its trainer."""

import dataclasses
import gc
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainingArguments
from trl import ModelConfig

from ..data.adapters import adapter_base
from ..data.errors import ConfigError
from ..generation.loading import check_model, load_tokenizer
from ..generation.processes import process_state
from .checkpoints import (
    RECORD,
    STATE,
    check_complete,
    checkpoints,
    is_model_only,
    last_complete,
    missing_weights,
    read_record,
    read_state,
)
from .output import OutputError, hold, resolve, write_atomically
from .refusals import refused_settings
from .resuming import NothingToTrain, ResumableTraining


logger = get_logger(__name__)


def set_model_init_kwargs(training_args: TrainingArguments, model_args: ModelConfig) -> None:
    """
    Let the trainer load its model with `model_args`. `training_args.model_init_kwargs` take precedence.

    Raises:
        [`~rlmec_trl.stages.output.OutputError`]: If the trained model would replace the one that it starts from.
        [`~rlmec_trl.data.errors.ModelError`]: If the model or its tokenizer is missing, damaged or truncated.
    """
    init_kwargs = training_args.model_init_kwargs or {}
    if "gguf_file" not in init_kwargs:  # such a folder has neither a configuration nor a tokenizer of its own
        name_or_path, revision = model_args.model_name_or_path, model_args.model_revision
        if name_or_path is not None and resolve(name_or_path) == resolve(training_args.output_dir):
            raise OutputError(
                f"{training_args.output_dir!r} is the model to start from, which training would replace. Choose "
                "another `--output_dir`."
            )
        check_model(name_or_path, revision, False, training_args.trust_remote_code)
        if adapter_base(name_or_path, revision) is None:  # of an adapter, the trainer takes the base model's
            load_tokenizer(ModelConfig(name_or_path, model_revision=revision), training_args.trust_remote_code)
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **init_kwargs,
    }


@contextmanager
def training_run(training_args: TrainingArguments) -> Iterator[None]:
    """
    Keep other runs from training into the same output folder. Use it around the loading of the data and the model, so
    that the second of two runs ends before any expensive work.

    Args:
        training_args ([`~transformers.TrainingArguments`]):
            Its `output_dir` is the folder.

    Raises:
        [`~rlmec_trl.stages.output.OutputError`]: If another run is writing to the folder, or it cannot be used.
    """
    is_main = training_args.process_index == 0  # starts the process group, where there are several processes
    with ExitStack() as stack:
        refusal = None
        if is_main:
            try:
                stack.enter_context(hold(training_args.output_dir))
            except OutputError as error:
                refusal = error
        if training_args.world_size > 1:
            process_state()
            (refused,) = broadcast_object_list([refusal is not None])
            if refused and not is_main:
                sys.exit(1)  # the main process says why
        if refusal is not None:
            raise refusal
        yield


def train_and_save(trainer: Trainer, dataset_name: str | None = None) -> None:
    """
    Train and save the model. Training resumes from the last complete checkpoint in the output directory, if there is
    one; `resume_from_checkpoint` names another one, or is `True` (there has to be one) or `False` (train from the
    start). A training that was finished before is not continued; only what is missing is saved. The model is evaluated
    if an evaluation strategy is set, and pushed to the Hub if `push_to_hub` is.

    On one CPU process, a training that was interrupted at any step gives the weights of an uninterrupted one. SIGTERM
    saves a checkpoint and ends the process with status 143.

    Args:
        trainer ([`~transformers.Trainer`]):
            A TRL trainer.
        dataset_name (`str`, *optional*):
            Name of the dataset for the model card.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If `resume_from_checkpoint` does not name a complete checkpoint, there
            is no step to train, or a training with other settings was finished in the folder.
    """
    args = trainer.args
    output_dir = Path(args.output_dir)
    # The main process decides for all: another one may see what is being written
    checkpoint, num_done = broadcast_object_list(
        [_find_checkpoint(args), _num_steps_done(args)] if trainer.is_world_process_zero() else [None, 0]
    )
    resumable = ResumableTraining(trainer, checkpoint, num_done)
    trainer.add_callback(resumable)
    try:
        with resumable.handling_sigterm(), refused_settings(trainer):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        # Without checkpoints, nothing has written it into the state
        trainer.state.stateful_callbacks[RECORD] = {"attributes": {"settings": resumable.record.settings()}}
        finished_before = False
    except NothingToTrain:
        if trainer.state.max_steps == 0:
            raise ConfigError("`max_steps` or `num_train_epochs` is 0, so there is nothing to train.") from None
        trainer.is_in_train = False
        finished_before = True

    if resumable.terminated:
        resumes = "With `save_only_model` it cannot be resumed." if args.save_only_model else "Run it again to resume."
        trainer.accelerator.print(
            f"SIGTERM: training stopped after step {trainer.state.global_step} of {trainer.state.max_steps}, and a "
            f"checkpoint was saved to {output_dir}. {resumes}"
        )
        _end(trainer)
        sys.exit(128 + signal.SIGTERM)
    if finished_before:
        record = read_record(read_state(output_dir) or dataclasses.asdict(trainer.state))
        changed = [] if record is None else resumable.record.changed_settings(record)
        if changed:
            raise ConfigError(
                f"The training in {str(output_dir)!r} is already finished, with other settings: {', '.join(changed)}. "
                "Choose another `--output_dir` for these, or pass `--resume_from_checkpoint false` to train again."
            )
        trainer.accelerator.print(
            f"The training in {output_dir} is already finished: step {max(trainer.state.global_step, num_done)} of "
            f"{trainer.state.max_steps}. Nothing is trained. To train again, choose another `--output_dir`."
        )
    if not (finished_before and num_done >= trainer.state.max_steps):
        if finished_before and args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
            trainer._load_best_model()
        _save(trainer)
    elif args.push_to_hub:
        trainer._load_from_checkpoint(str(output_dir))
    if args.push_to_hub:
        trainer.push_to_hub(revision=args.hub_revision, dataset_name=dataset_name)
    _end(trainer)


def _save(trainer: Trainer) -> None:
    """Save the model and its evaluation, and at last the trainer's state, which says that both are there."""
    args = trainer.args
    state_file = Path(args.output_dir, STATE)
    if trainer.is_world_process_zero():
        state_file.unlink(missing_ok=True)
    # Not pushed yet: if this fails, the model would have to be trained again
    trainer.save_model(args.output_dir, _internal_call=True)
    if args.eval_strategy != "no":
        trainer.save_metrics("eval", trainer.evaluate())
    if trainer.is_world_process_zero():
        write_atomically(state_file, json.dumps(dataclasses.asdict(trainer.state), indent=2, sort_keys=True) + "\n")
    trainer.accelerator.print(f"Model saved to {args.output_dir}")


def _find_checkpoint(args: TrainingArguments) -> Path | None:
    """The checkpoint to resume from."""
    chosen = args.resume_from_checkpoint
    # A command line gives text
    chosen = {"true": True, "false": False}.get(str(chosen).lower(), chosen)
    if chosen is False:
        return None
    if chosen in (None, True):
        checkpoint = last_complete(Path(args.output_dir), logger.warning)
        if chosen and checkpoint is None:
            raise ConfigError(
                f"`resume_from_checkpoint`: {args.output_dir!r} has no complete checkpoint. Leave it out to train "
                "from the start."
            )
        model_only = [path for _, path in sorted(checkpoints(Path(args.output_dir))) if is_model_only(path)]
        if checkpoint is None and model_only and _num_steps_done(args) == 0:
            raise ConfigError(
                f"{str(model_only[-1])!r} has weights but no optimizer (`save_only_model`), so training cannot be "
                "resumed from it. Name it as `--model_name_or_path` with another `--output_dir` to train it further, "
                "or pass `--resume_from_checkpoint false` to train from the start."
            )
        return checkpoint
    check_complete(Path(chosen))
    return Path(chosen)


def _num_steps_done(args: TrainingArguments) -> int:
    """Steps of the finished model in the output directory, 0 where there is none, or other weights are asked for."""
    if str(args.resume_from_checkpoint).lower() not in ("none", "true"):
        return 0
    output_dir = Path(args.output_dir)
    state = read_state(output_dir)
    return 0 if state is None or missing_weights(output_dir) else state["global_step"]


def _end(trainer: Trainer) -> None:
    """
    End the trackers and the process group, once DDP no longer holds it.

    Otherwise, gloo's process group is freed together with DDP, which holds the GIL while it waits for the group's
    threads. These may need the GIL to free a tensor, which is a deadlock.
    """
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    gc.collect()
    trainer.accelerator.end_training()  # `Trainer.end()`, which Transformers has from 5.18 on
