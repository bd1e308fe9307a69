"""
Output folders of trainings.

[`~transformers.Trainer`] writes file by file into its output folder, under names that others use too. A training
therefore begins only in a folder that has no files with these names, or that an earlier training of this package
began. Such a folder carries a mark, `_training_run.json`, and so does each checkpoint. `Trainer` does not push files
of the folder whose names begin with `_`.

The mark has the identifier of the run. A training that is started over in the same folder, or from a checkpoint that
was named, is another run. As soon as it saves something, the folder is its own: other checkpoints that the first one
left are no longer resumed from, though they may be of later steps.
"""

import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainingArguments

from ..data.errors import ConfigError
from ..data.marks import read_object
from .checkpoints import (
    STATE,
    WRITTEN,
    check_complete,
    checkpoints,
    is_checkpoint,
    is_checkpoint_name,
    is_model_only,
    missing_from,
    missing_weights,
    read_record,
    read_state,
)
from .output import OutputError, a_few, check_path, resolve, writing


logger = logging.getLogger(__name__)

MARK = "_training_run.json"
# Files of an output folder that a training replaces: those with the names of a checkpoint's, and evaluations
_REPLACED = re.compile(r".*\.(json|safetensors|bin|model|jinja)|.*_\w+\.py|(vocab|merges)\.txt|README\.md")
_EVALUATION = ("all_results.json", "eval_results.json")


@dataclass(frozen=True)
class Start:
    """
    Where a training starts from.

    Args:
        checkpoint (`Path` or `None`):
            Checkpoint to resume from.
        num_done (`int`):
            Steps of the finished model in the output folder, 0 where there is none, or it is to be trained again.
        run (`str`):
            Identifier of the run.
        origin (`str`, *optional*):
            Path of the checkpoint that a new run begins with, where one was named.
    """

    checkpoint: Path | None
    num_done: int
    run: str
    origin: str | None = None


def check_folder(output_dir: str | os.PathLike) -> None:
    """
    Check that a training may write to a folder.

    Raises:
        [`~rlmec_trl.stages.output.OutputError`]: If it is not a folder, is the working directory or a folder around
            it, or holds files that training would replace and no training of ours began there.
    """
    target = check_path(output_dir)
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputError(f"{str(output_dir)!r} is a file, not a folder. Choose another `--output_dir`.")
    if is_checkpoint(target):
        raise OutputError(
            f"{str(output_dir)!r} is a checkpoint, not the output folder of a training. Nothing was changed. Name it "
            "as `--resume_from_checkpoint`, and choose another `--output_dir`."
        )
    with writing(output_dir):
        names = sorted(path.name for path in target.iterdir() if _is_replaced(path))
    if not names or is_ours(target) or any(is_ours(path) for _, path in checkpoints(target)):
        return
    last = max(checkpoints(target), default=None)
    hint = "" if last is None else f" To continue from {str(last[1])!r}, name it as `--resume_from_checkpoint` there."
    raise OutputError(
        f"{str(output_dir)!r} holds files that training would replace, and no training of rlmec-trl was started there "
        f"({a_few(names)}). Nothing was changed. Choose another `--output_dir`, or move these files elsewhere.{hint}"
    )


def _is_replaced(path: Path) -> bool:
    """Whether a training may write to this file or folder of its output folder, or delete it."""
    if is_checkpoint_name(path.name) or path.name in _EVALUATION:
        return True
    if path.is_dir():
        # GRPO's trainer makes the folder of its completions when it is created
        return path.name in ("additional_chat_templates", "completions") and any(path.iterdir())
    return WRITTEN.fullmatch(path.name) is not None and _REPLACED.fullmatch(path.name) is not None


def is_ours(folder: Path) -> bool:
    """Whether a training of ours has begun to write this output folder or checkpoint."""
    if (folder / MARK).is_file():
        return True
    # Earlier versions have only recorded themselves in the state
    state = read_state(folder)
    return state is not None and read_record(state) is not None


def find_start(args: TrainingArguments, report: Callable[[str], None]) -> Start:
    """
    Find out what there is of a training.

    Args:
        args ([`~transformers.TrainingArguments`]):
            Their `output_dir` is the folder. `resume_from_checkpoint` is a path, `True` (there has to be a checkpoint)
            or `False` (train from the start).
        report (`Callable[[str], None]`):
            Gets a line for each checkpoint that is passed over.

    Raises:
        [`~rlmec_trl.stages.output.OutputError`]: If the folder cannot be used.
        [`~rlmec_trl.data.errors.ConfigError`]: If `resume_from_checkpoint` does not name a complete checkpoint.
    """
    check_folder(args.output_dir)
    output_dir = Path(args.output_dir)
    # A command line gives text
    chosen = {"true": True, "false": False}.get(str(args.resume_from_checkpoint).lower(), args.resume_from_checkpoint)
    if chosen is False:
        return Start(None, 0, uuid.uuid4().hex)
    mark = _read_mark(output_dir)
    run = mark.get("run")
    named = chosen not in (None, True)
    origin = str(resolve(chosen)) if named else None
    if named and mark.get("origin") != origin:
        check_complete(Path(chosen))
        return Start(Path(chosen), 0, uuid.uuid4().hex, origin)
    checkpoint = _last_complete(output_dir, run, report)
    num_done = _num_steps_done(output_dir)
    if named:  # this run began with it
        if checkpoint is None and num_done == 0:
            check_complete(Path(chosen))
            checkpoint = Path(chosen)
        return Start(checkpoint, num_done, run, origin)
    if chosen and checkpoint is None:
        raise ConfigError(
            f"`resume_from_checkpoint`: {args.output_dir!r} has no complete checkpoint. Leave it out to train from "
            "the start."
        )
    model_only = [path for _, path in sorted(checkpoints(output_dir)) if _is_of(path, run) and is_model_only(path)]
    if checkpoint is None and model_only and num_done == 0:
        raise ConfigError(
            f"{str(model_only[-1])!r} has weights but no optimizer (`save_only_model`), so training cannot be "
            "resumed from it. Name it as `--model_name_or_path` with another `--output_dir` to train it further, "
            "or pass `--resume_from_checkpoint false` to train from the start."
        )
    if checkpoint is None and num_done == 0 and "origin" in mark:
        run = None  # it begins elsewhere than the one before
    run = run or (checkpoint and _read_mark(checkpoint).get("run")) or uuid.uuid4().hex
    return Start(checkpoint, num_done, run)


def begin(output_dir: Path, start: Start) -> None:
    """Mark a folder before anything else is written there."""
    with writing(output_dir):
        if "run" in _read_mark(output_dir):
            return
        output_dir.mkdir(parents=True, exist_ok=True)
        # Earlier versions marked neither folders nor checkpoints
        unmarked = [path for _, path in checkpoints(output_dir) if is_ours(path) and not _read_mark(path)]
        new = start if not unmarked or start.checkpoint in unmarked else Start(None, 0, uuid.uuid4().hex)
        for path in unmarked:
            _mark(path, new)
        _mark(output_dir, new)


def take_over(output_dir: Path, start: Start) -> None:
    """
    Make a folder that of a run, when it has something to save: what an earlier run trained beyond its start is given
    up only now.
    """
    with writing(output_dir):
        if start.num_done == 0:
            (output_dir / STATE).unlink(missing_ok=True)
        if _read_mark(output_dir).get("run") != start.run:
            checkpoint = start.checkpoint
            if checkpoint is not None and checkpoint.resolve().parent == output_dir.resolve() and is_ours(checkpoint):
                _mark(checkpoint, start)  # first, so that there is always one to resume from
            _mark(output_dir, start)


def make_room(output_dir: Path, step: int, start: Start, saved: Collection[int] = (), limited: bool = False) -> None:
    """
    Mark the checkpoint that is about to be saved, and remove what is in its way. Only what this run wrote, and what
    another run did not finish, is deleted; all else is renamed.

    Args:
        output_dir (`Path`):
            The output folder.
        step (`int`):
            Step of the checkpoint.
        start ([`Start`]):
            What the run started from.
        saved (`Collection[int]`, *optional*):
            Steps that this process has saved.
        limited (`bool`, *optional*, defaults to `False`):
            Whether `Trainer` will count the checkpoints, and delete some. It counts every folder whose name begins
            with `checkpoint-`, so all that are no finished checkpoints of this run are in the way.
    """
    take_over(output_dir, start)
    with writing(output_dir):
        new = output_dir / f"checkpoint-{step}"
        counted = {path for path in output_dir.glob("checkpoint-*") if path.is_dir()} if limited else set()
        for path in counted - {new}:
            if not (_is_own(path, start.run) and read_state(path) is not None):
                _remove(path, start.run)
        if os.path.lexists(new) and step not in saved:
            _remove(new, start.run)
        new.mkdir(parents=True, exist_ok=True)
        _mark(new, start)


def _remove(path: Path, run: str) -> None:
    if _is_own(path, run if read_state(path) is not None else None):
        shutil.rmtree(path)
        return
    # `Trainer` neither counts nor pushes what does not begin with "checkpoint-"
    asides = (path.with_name(f"_{path.name}.replaced-{number}") for number in range(1, 10_000))
    aside = next(aside for aside in asides if not os.path.lexists(aside))
    logger.warning(f"{str(path)!r} is not of this training and in its way. It is renamed to {aside.name!r}.")
    path.rename(aside)


def _is_own(path: Path, run: str | None) -> bool:
    """Whether a folder is a checkpoint of a run, any of ours for `None`, and holds nothing else."""
    return is_checkpoint_name(path.name) and not path.is_symlink() and _is_of(path, run) and _has_only_ours(path)


def _has_only_ours(checkpoint: Path) -> bool:
    """Whether a checkpoint holds only what is written into checkpoints."""
    files = (path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_symlink() or not path.is_dir())
    return all(path.name == MARK or WRITTEN.fullmatch(path.as_posix()) for path in files)


def _last_complete(output_dir: Path, run: str | None, report: Callable[[str], None]) -> Path | None:
    """The last complete checkpoint of a run in an output folder."""
    for _, path in sorted(checkpoints(output_dir), reverse=True):
        if not _is_of(path, run):
            report(
                f"Skipped the checkpoint {str(path)!r}: it is not of this training, or was written before it was "
                "started over."
            )
            continue
        missing = missing_from(path)
        if not missing:
            return path
        report(f"Skipped the incomplete checkpoint {str(path)!r}. Missing or cut off: {a_few(missing)}.")
    return None


def _num_steps_done(output_dir: Path) -> int:
    """Steps of the finished model in the output folder, 0 where there is none."""
    state = read_state(output_dir)
    return 0 if state is None or missing_weights(output_dir) else state["global_step"]


def _mark(folder: Path, start: Start) -> None:
    mark = {"run": start.run} | ({} if start.origin is None else {"origin": start.origin})
    (folder / MARK).write_text(json.dumps(mark) + "\n", encoding="utf-8")


def _is_of(checkpoint: Path, run: str | None) -> bool:
    """Whether a checkpoint is of a run, any of ours for `None`."""
    return is_ours(checkpoint) if run is None else _read_mark(checkpoint).get("run") == run


def _read_mark(folder: Path) -> dict[str, str]:
    """The mark of a folder, empty where it has none, or one that was cut off."""
    return read_object(folder / MARK) or {}
