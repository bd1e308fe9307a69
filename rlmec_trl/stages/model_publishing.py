"""
Models on the Hub: the files that belong to them, and nothing that tells where they were made.

[`~transformers.Trainer`] pushes its whole output folder: also `training_args.bin`, which is a pickle with paths and
the token, `trainer_state.json` with the paths of checkpoints, and whatever else a user keeps there. Here a model is
pushed by the names of its files, its card is made for the push, and paths in its settings are cut down to names.
"""

import copy
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from ..data.marks import list_files, read_object
from ..data.public_names import without_paths
from .checkpoints import MODEL_FILES, STATE, WRITTEN
from .model_cards import ModelFacts, local_base, model_card
from .publishing import README, Repo, earlier_metadata, uploading


logger = logging.getLogger(__name__)

ARGS = "training_args.bin"
# What our cards say of a model in their metadata. Whatever else is there is its owner's
_OURS = frozenset({"base_model", "datasets", "library_name", "model_name", "tags"})
# Of a checkpoint, what only a training that resumes from it needs
_TO_RESUME = re.compile(
    r"(optimizer|scheduler|scaler|rng_state(_\d+)?)\.(pt|pth|bin)|training_args\.bin|trainer_state\.json|latest"
    r"|zero_to_fp32\.py|(global_step\d+|(pytorch_model_fsdp|optimizer)_\d+)/.*|synced_grm\.safetensors"
    r"|entropy_ctrl_state\.json"
)
# Arguments of trainings that are a secret, or may have a password in them
_PRIVATE = frozenset({"hub_token", "vllm_server_base_url"})
# Settings that name files. The texts of other JSON files are data, such as a vocabulary
_SETTINGS = re.compile(
    r"(.*/)?((adapter_|generation_|quantization_|tokenizer_|((video_)?pre)?processor_)?config|trainer_state)\.json"
)


def push_model(
    folder: Path, facts: ModelFacts, repo: Repo, revision: str | None = None, token: str | None = None
) -> CommitInfo:
    """
    Upload a finished model with its card, as one commit.

    Args:
        folder (`Path`):
            Folder of the model.
        facts ([`~rlmec_trl.stages.model_cards.ModelFacts`]):
            What the card says.
        repo ([`~rlmec_trl.stages.publishing.Repo`]):
            Where to.
        revision (`str`, *optional*):
            Branch on the Hub, which is created if needed.
        token (`str`, *optional*):
            By default, that of `HF_TOKEN` or `hf auth login`.

    Raises:
        [`~rlmec_trl.stages.publishing.PublishError`]: If the upload fails. The local model stays as it is.
    """
    with uploading(repo, folder):
        commit = _commit(folder, facts, repo, revision, token, "Upload the model")
    print(f"Published the model: {repo.url}")
    base = local_base(folder)
    if base is not None:
        print(
            f"It is an adapter of {base!r}, which is not on the Hub, so that nobody else can load it. Publish that "
            "model and train from its Hub name, or publish the whole model: `merge.py --push_to_hub true`."
        )
    return commit


@contextmanager
def pushing_checkpoints(trainer: Trainer, facts: Callable[[], ModelFacts], repo: Repo | None) -> Iterator[None]:
    """
    Have a trainer push its checkpoints as `hub_strategy` says, with the files and the card of [`push_model`].

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer.
        facts (`Callable[[], ModelFacts]`):
            What the card says.
        repo ([`~rlmec_trl.stages.publishing.Repo`], *optional*):
            Where to. `None` on all processes but the main one, and where nothing is pushed.
    """
    args = trainer.args

    def push(checkpoint: str) -> None:
        if repo is None or args.hub_strategy == HubStrategy.END:
            return
        is_busy = trainer.push_in_progress is not None and not trainer.push_in_progress.is_done()
        if is_busy and not args.hub_always_push:
            return
        folder = Path(checkpoint)
        part = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: folder.name}
        message = f"Training in progress, step {trainer.state.global_step}"
        words = (folder, facts(), repo, args.hub_revision, args.hub_token, message, part.get(args.hub_strategy))
        job = HfApi().run_as_future(_commit, *words)
        job.add_done_callback(partial(_report_failure, folder))
        earlier = trainer.push_in_progress.jobs if is_busy else []
        trainer.push_in_progress = PushInProgress([*earlier, job])

    pushed_by_trainer = trainer._push_from_checkpoint
    trainer._push_from_checkpoint = push
    try:
        yield
    finally:
        trainer._push_from_checkpoint = pushed_by_trainer


def _commit(
    folder: Path,
    facts: ModelFacts,
    repo: Repo,
    revision: str | None,
    token: str | None,
    message: str,
    to_resume: str | None = None,
) -> CommitInfo:
    """Upload the files of a model, and with `to_resume` also the whole checkpoint, to the folder of this name."""
    api = HfApi(token=token)
    if revision is not None and not revision.startswith("refs/pr/"):
        api.create_branch(repo.id, branch=revision, exist_ok=True)
    metadata = earlier_metadata(api, repo, revision)
    present = api.list_repo_files(repo.id, revision=revision)
    card = ModelCard(model_card(folder, facts, repo.id.rpartition("/")[2], repo.id))
    # Of its owner: the license, and who gets access
    for name in metadata.keys() - _OURS:
        card.data[name] = metadata[name]
    operations = [CommitOperationAdd(README, str(card).encode())]
    written = [name for name in list_files(folder) if WRITTEN.fullmatch(name) and Path(name).name != README]
    for name in written:
        content = _public_content(folder, name)
        if not _TO_RESUME.fullmatch(name):
            operations.append(CommitOperationAdd(name, content))
        if to_resume is not None:
            operations.append(CommitOperationAdd(f"{to_resume}/{name}", content))
    added = {operation.path_in_repo for operation in operations}
    # An adapter, or shards, of an earlier push would be loaded in place of this model
    stale = [name for name in present if MODEL_FILES.fullmatch(name) and name not in added]
    operations += [CommitOperationDelete(name) for name in stale]
    return api.create_commit(repo.id, operations, commit_message=message, revision=revision)


def _report_failure(checkpoint: Path, job: Future) -> None:
    """A training goes on without the upload of a checkpoint, which `save_total_limit` may have deleted meanwhile."""
    error = job.exception()
    if error is not None:
        logger.warning(
            f"{str(checkpoint)!r} could not be pushed to the Hub ({type(error).__name__}: {error}). Training "
            "continues, and pushes the model again later."
        )


def _public_content(folder: Path, name: str) -> str | bytes:
    """A file to push: its path, or its content without what is of this machine alone."""
    path = folder / name
    if path.name == ARGS:
        return _public_args(path)
    if _SETTINGS.fullmatch(name):
        content = read_object(path)
        if content is not None and (public := _public_settings(content, name)) != content:
            return (json.dumps(public, indent=2) + "\n").encode()
    return str(path)


def _public_settings(content: dict, name: str) -> dict:
    if Path(name).name == STATE:
        return without_paths(content)
    # Not in all texts: a tokenizer may have a token that looks like a path
    public = {}
    for key, value in content.items():
        if isinstance(value, dict):  # a model of several parts has a configuration for each
            public[key] = _public_settings(value, name)
        else:
            is_path = re.search(r"path|file|dir", key) and isinstance(value, str)
            public[key] = without_paths(value) if is_path else value
    return public


def _public_args(path: Path) -> bytes:
    """The arguments of a training, of which a checkpoint must have some, without paths and the token."""
    args = copy.copy(torch.load(path, weights_only=False))
    vars(args).update({name: without_paths(value) for name, value in vars(args).items()})
    for name in _PRIVATE & vars(args).keys():
        setattr(args, name, None)
    buffer = io.BytesIO()
    torch.save(args, buffer)
    return buffer.getvalue()
