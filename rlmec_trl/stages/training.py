"""Loading, training and saving, as every training recipe does them around its trainer."""

import dataclasses
import gc
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length
from trl import ModelConfig, RewardTrainer
from trl.trainer.base_trainer import _BaseTrainer

from ..data.adapters import adapter_base
from ..data.errors import ConfigError, UserError
from ..data.marks import read_object
from ..generation.loading import check_model, load_tokenizer
from ..generation.processes import process_state
from ..grm.grm_trainer import GRMTrainer
from .checkpoints import MODEL_FILES, RECORD, STATE, best_checkpoint, is_checkpoint_name, read_record, read_state
from .model_cards import About, ModelFacts, model_card, trainer_facts
from .model_publishing import push_model, pushing_checkpoints
from .output import OutputError, hold, resolve, write_atomically
from .publishing import README, Repo, open_repo
from .refusals import refused_settings
from .resuming import NothingToTrain, ResumableTraining
from .run_folder import Start, begin, find_start, take_over
from .summary import print_summary, timed
from .training_settings import (
    BATCH,
    changed_settings,
    fixed_changes,
    rows_by_name,
    same_batch,
    training_settings,
)


logger = get_logger(__name__)

T = TypeVar("T")
EVALUATION_FILE, ALL_RESULTS = "eval_results.json", "all_results.json"  # of `Trainer.save_metrics`
# Output folders that `training_run` holds for a training that has not begun
_held: set[Path] = set()


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
        if name_or_path is not None:
            model, output_dir = resolve(name_or_path), resolve(training_args.output_dir)
            if model == output_dir or (model.parent == output_dir and is_checkpoint_name(model.name)):
                raise OutputError(
                    f"{name_or_path!r} is the model to start from, which training into {training_args.output_dir!r} "
                    "would replace. Choose another `--output_dir`."
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
    Keep other runs from training into the same output folder, and check that this one may. Use it around the loading
    of the data and the model, so that a run that has to be refused ends before any expensive work.

    Args:
        training_args ([`~transformers.TrainingArguments`]):
            Its `output_dir` is the folder.

    Raises:
        [`~rlmec_trl.stages.output.OutputError`]: If another run is writing to the folder, it cannot be used, or it
            holds files that training would replace and no training of ours began there.
        [`~rlmec_trl.data.errors.ConfigError`]: If `resume_from_checkpoint` does not name a complete checkpoint.
        [`~rlmec_trl.stages.publishing.PublishError`]: If the model is to be pushed, and the Hub refuses.
    """
    with ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(hold(training_args.output_dir))
            find_start(training_args, report=logger.debug)  # reported when the training starts
            folder = resolve(training_args.output_dir)
            _held.add(folder)
            stack.callback(_held.discard, folder)
            if training_args.push_to_hub:
                _open_repo(training_args, training_args.hub_model_id)

        _on_main_process(training_args, enter)
        yield


@timed
def train_and_save(
    trainer: Trainer,
    dataset_name: str | Sequence[str] | None = None,
    depends_on: dict[str, Any] | None = None,
    about: About | None = None,
) -> None:
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
        dataset_name (`str` or `Sequence[str]`, *optional*):
            Name of the dataset, or of several, for the model card.
        depends_on (`dict`, *optional*):
            What else the result depends on, beside the trainer's model, rows and arguments: JSON values, such as the
            task of a reward function.
        about ([`~rlmec_trl.stages.model_cards.About`], *optional*):
            What the model card says that the trainer does not know.

    Raises:
        [`~rlmec_trl.stages.publishing.PublishError`]: If the model cannot be uploaded. It is saved all the same.
        [`~rlmec_trl.stages.output.OutputError`]: If another run is writing to the output directory, or it holds files
            that training would replace and no training of ours began there.
        [`~rlmec_trl.data.errors.ConfigError`]: If `resume_from_checkpoint` does not name a complete checkpoint, there
            is no step to train, the directory has a training that cannot be continued with these settings, or the
            trainer is not one of TRL.
    """
    if not isinstance(trainer, _BaseTrainer):
        raise ConfigError(f"`train_and_save` needs a trainer of TRL, not a {type(trainer).__name__}.")
    with ExitStack() as stack:

        def enter() -> None:
            folder = resolve(trainer.args.output_dir)
            if folder in _held:  # for this training, and no other
                _held.remove(folder)
                stack.callback(_held.add, folder)
            else:
                stack.enter_context(hold(trainer.args.output_dir))

        _on_main_process(trainer.args, enter)
        datasets = [dataset_name] if isinstance(dataset_name, str) else list(dataset_name or ())
        _train_and_save(trainer, depends_on, lambda: trainer_facts(trainer, datasets, about or About()))


def _train_and_save(trainer: Trainer, depends_on: dict[str, Any] | None, facts: Callable[[], ModelFacts]) -> None:
    args = trainer.args
    output_dir = Path(args.output_dir)
    repo = None
    if args.push_to_hub and trainer.is_world_process_zero():
        if trainer.hub_model_id is None:  # asked for after the trainer was made
            trainer.init_hf_repo()
        repo = _open_repo(args, trainer.hub_model_id)

    def decide() -> tuple[Start, dict[str, Any], str, Any, bool]:
        start = find_start(args, report=logger.warning)
        settings = training_settings(trainer, depends_on)
        done = _find_done(trainer, start, settings)
        begin(output_dir, start)
        if args.eval_strategy == "no":
            return start, settings, done, None, False
        rows = rows_by_name(trainer.eval_dataset)
        record = read_record(read_state(output_dir) or {}) or {}
        evaluated = (
            read_object(output_dir / EVALUATION_FILE) is not None and record.get("evaluation rows", rows) == rows
        )
        return start, settings, done, rows, not evaluated

    # The main process decides for all: another one may see what is being written
    start, settings, done, evaluation_rows, lacks_evaluation = _on_main_process(args, decide)
    if done == "saved":
        trainer.accelerator.print(
            f"The training in {output_dir} is already finished ({start.num_done} steps). Nothing is trained. To train "
            "again, choose another `--output_dir`."
        )
    if done != "saved" or lacks_evaluation:
        resumable = ResumableTraining(trainer, start, settings, finished=done != "nothing")
        trainer.add_callback(resumable)
        try:
            with (
                resumable.handling_sigterm(),
                refused_settings(trainer),
                _checking_batches(trainer),
                pushing_checkpoints(trainer, facts, repo),
            ):
                checkpoint = start.checkpoint
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except NothingToTrain:
            trainer.is_in_train = False
        if trainer.state.global_step == 0 and done == "nothing":
            _raise_no_batch(trainer)
        if resumable.terminated:
            _end_terminated(trainer)
        if done == "saved":
            _load_saved(trainer)
        else:
            if done == "trained" and args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
                trainer._load_best_model()
            # Without checkpoints, nothing has written it into the state
            trainer.state.stateful_callbacks[RECORD] = {
                "attributes": {
                    "settings": resumable.record.settings(),
                    "epochs": _num_epochs(args),
                    **resumable.record.tokens(),
                }
            }
            _save(trainer, start, facts)
        if args.eval_strategy != "no" and (done != "saved" or lacks_evaluation):
            metrics = trainer.evaluate()
            if trainer.is_world_process_zero() and read_object(output_dir / ALL_RESULTS) is None:
                (output_dir / ALL_RESULTS).unlink(missing_ok=True)  # `Trainer` adds to it, and it was cut off
            trainer.save_metrics("eval", metrics)
            record = trainer.state.stateful_callbacks.setdefault(RECORD, {}).setdefault("attributes", {})
            record["evaluation rows"] = evaluation_rows
            _save_state(trainer)  # the evaluation is in its log
    if repo is not None:
        trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
        trainer._finish_current_push()
        push_model(output_dir, facts(), repo, args.hub_revision, args.hub_token)
    _end(trainer)


def _open_repo(args: TrainingArguments, name: str | None) -> Repo:
    name = name or Path(args.output_dir).absolute().name  # as `Trainer` does: of a link, its own name
    return open_repo("model", name, args.output_dir, args.hub_private_repo, args.hub_token, args.hub_revision)


def _on_main_process(args: TrainingArguments, function: Callable[[], T]) -> T:
    """
    What a function returns on the main process, on all processes. If it raises a [`~rlmec_trl.data.errors.UserError`],
    all of them end, and the main process says why.
    """
    is_main = args.process_index == 0  # starts the process group, where there are several processes
    result, refusal = None, None
    if is_main:
        try:
            result = function()
        except UserError as error:
            refusal = error
    if args.world_size > 1:
        process_state()
        result, refused = broadcast_object_list([result, refusal is not None])
        if refused and not is_main:
            sys.exit(1)
    if refusal is not None:
        raise refusal
    return result


def _find_done(trainer: Trainer, start: Start, settings: dict[str, Any]) -> str:
    """
    What has been done of a training: `"nothing"` that ends it, all of it is `"trained"`, or it is `"saved"`, too.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If it was done with other settings and cannot be continued with these,
            or there is no step to train.
    """
    args = trainer.args
    if args.max_steps == 0 or (args.max_steps < 0 and args.num_train_epochs == 0):
        raise ConfigError("`max_steps` or `num_train_epochs` is 0, so there is nothing to train.")
    if start.checkpoint is None and start.num_done == 0:
        return "nothing"
    max_steps = args.max_steps
    if max_steps < 0:
        with _checking_batches(trainer):
            *_, max_steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    settings = settings | {"max_steps": max_steps}
    way_out = "Choose another `--output_dir` for these, or pass `--resume_from_checkpoint false` to train again."

    if start.num_done > 0:
        record = read_record(read_state(Path(args.output_dir))) or {}
        before = {"max_steps": start.num_done, **record.get("settings", {})}
        changed = changed_settings(before, settings)
        for name in ("sharding", "number of processes", *(BATCH if same_batch(before, settings) else ())):
            changed.pop(name, None)
        if _num_epochs(args) is not None and _num_epochs(args) == record.get("epochs"):
            changed.pop("max_steps", None)  # it follows from other settings
        if not changed:
            return "saved"
        if start.checkpoint is None or "max_steps" not in changed or before["max_steps"] >= max_steps:
            raise ConfigError(
                f"The training in {args.output_dir!r} is already finished, with other settings: "
                f"{', '.join(changed.values())}. {way_out}"
            )
    state = read_state(start.checkpoint)
    before = (read_record(state) or {}).get("settings", {})
    changed = changed_settings(before, settings)
    fixed = fixed_changes(before, settings)
    if fixed:
        raise ConfigError(
            f"{str(start.checkpoint)!r} cannot be continued with other settings than it was written with: "
            f"{', '.join(fixed)}. {way_out}"
        )
    best = state.get("best_model_checkpoint")
    if args.load_best_model_at_end and best is not None and best_checkpoint(state, start.checkpoint) is None:
        raise ConfigError(
            f"{best!r}, the best checkpoint of this training so far, is missing. Put it beside "
            f"{str(start.checkpoint)!r}, or pass `--load_best_model_at_end false`. {way_out}"
        )
    step = state["global_step"]
    if step > max_steps:
        raise ConfigError(
            f"{str(start.checkpoint)!r} has been trained for {step} steps, more than the {max_steps} of these "
            f"settings. Raise `max_steps` or `num_train_epochs`. {way_out}"
        )
    if step == max_steps and changed:
        raise ConfigError(
            f"{str(start.checkpoint)!r} has all {max_steps} steps, trained with other settings: "
            f"{', '.join(changed.values())}. {way_out}"
        )
    if changed:
        logger.warning(
            f"Resuming with other settings than the checkpoint was written with: {', '.join(changed.values())}. The "
            "result is not the one of an uninterrupted run."
        )
    return "trained" if step == max_steps else "nothing"


def _num_epochs(args: TrainingArguments) -> float | None:
    """The number of epochs, where it decides on the number of steps."""
    return args.num_train_epochs if args.max_steps < 0 else None


@contextmanager
def _checking_batches(trainer: Trainer) -> Iterator[None]:
    """`Trainer` refuses epochs without a batch by asking for `max_steps`, with which it then trains no step."""
    try:
        yield
    except ValueError:
        loader = trainer.get_train_dataloader()
        if has_length(loader) and len(loader) == 0:
            _raise_no_batch(trainer)
        raise


def _raise_no_batch(trainer: Trainer) -> NoReturn:
    args, rows = trainer.args, trainer.train_dataset
    found = f"its {len(rows)} rows are" if has_length(rows) else "what it yields is"
    raise ConfigError(
        f"No step was trained, and nothing is saved: the dataset does not fill one batch, {found} too few for "
        f"`per_device_train_batch_size` {args.per_device_train_batch_size} on {args.world_size} process(es). Lower "
        "it, or train on more rows."
    ) from None


def _save(trainer: Trainer, start: Start, facts: Callable[[], ModelFacts]) -> None:
    """Save the model, then the trainer's state, which says that it is there, and the card."""
    output_dir = Path(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        take_over(output_dir, start)
        # Otherwise, readers would take a full model for one with the adapter of an earlier run, or a GRM
        stale = [path for path in output_dir.iterdir() if path.is_file() and MODEL_FILES.fullmatch(path.name)]
        for path in (output_dir / STATE, output_dir / EVALUATION_FILE, *stale):
            path.unlink(missing_ok=True)
    # Not pushed yet: if this fails, the model would have to be trained again
    trainer.save_model(str(output_dir), _internal_call=True)
    _save_state(trainer)
    if trainer.is_world_process_zero():
        write_atomically(output_dir / README, model_card(output_dir, facts(), resolve(output_dir).name))
    print_summary(f"Trained {trainer.state.global_step:,} steps.", output_dir, _next_step(trainer))


def _next_step(trainer: Trainer) -> str:
    if isinstance(trainer, GRMTrainer):
        return "score --grm"
    return f"{'evaluate-pairs' if isinstance(trainer, RewardTrainer) else 'evaluate'} --model_name_or_path"


def _save_state(trainer: Trainer) -> None:
    if trainer.is_world_process_zero():
        state = json.dumps(dataclasses.asdict(trainer.state), indent=2, sort_keys=True)
        write_atomically(Path(trainer.args.output_dir, STATE), state + "\n")


def _load_saved(trainer: Trainer) -> None:
    """Load the model that was saved when the training finished, and its state."""
    trainer._load_from_checkpoint(trainer.args.output_dir)
    trainer.state = TrainerState.load_from_json(str(Path(trainer.args.output_dir, STATE)))
    trainer.state.is_world_process_zero = trainer.is_world_process_zero()
    trainer.state.is_local_process_zero = trainer.is_local_process_zero()


def _end_terminated(trainer: Trainer) -> NoReturn:
    args = trainer.args
    resumes = "With `save_only_model` it cannot be resumed." if args.save_only_model else "Run it again to resume."
    trainer.accelerator.print(
        f"SIGTERM: training stopped after step {trainer.state.global_step} of {trainer.state.max_steps}, and a "
        f"checkpoint was saved to {args.output_dir}. {resumes}"
    )
    _end(trainer)
    sys.exit(128 + signal.SIGTERM)


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
