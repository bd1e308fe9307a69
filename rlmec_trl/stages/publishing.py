"""
Datasets and models on the Hub: where they go, and datasets with their cards.

A result is published when it is complete on disk. If an upload fails, the local result stays as it is, and running the
same command again uploads it without computing anything. The token comes from `HF_TOKEN` or `hf auth login`; it is no
setting of a recipe, because settings end up in files.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml
from datasets import Dataset
from huggingface_hub import DatasetCard, HfApi, RepoCard
from huggingface_hub.errors import HTTPError, RevisionNotFoundError

from ..data.checks import check_config
from ..data.errors import UserError
from ..generation.processes import process_state
from .dataset_cards import DatasetFacts, dataset_card, dataset_tags
from .output import a_few, resolve


# What the client raises where the Hub refuses something or cannot be reached. `HTTPError` is that of the HTTP library,
# of which each release of the client may use another one. An invalid name, or a card with invalid metadata, is a
# `ValueError`, and a failed upload of a large file a `RuntimeError`
_FAILURES = (OSError, HTTPError, ValueError, RuntimeError)
README = "README.md"
# In the metadata of our cards: what has it was published by this package, and may be replaced
TAG = "rlmec-trl"
# What the Hub itself puts into a new repository
_OF_THE_HUB = frozenset({".gitattributes", README})
# Reasons that rows were left out for. What follows the colon quotes a provider's message
_OUTCOMES = ("edit_outcome", "rationale_outcome")
# Settings that decide where a result is published, and change nothing about it
PUBLISHING = frozenset(
    """
    push_to_hub hub_model_id hub_dataset_id hub_private_repo hub_revision hub_strategy hub_always_push
    """.split()
)


class PublishError(UserError, RuntimeError):
    """The Hub cannot be reached, or refuses what is to be published. The message says what to do."""


@dataclass
class PublishConfig:
    r"""
    Whether and where a stage publishes its dataset. The token is that of `HF_TOKEN` or `hf auth login`.

    Parameters:
        push_to_hub (`bool`, *optional*, defaults to `False`):
            Whether to push the dataset to the Hub when it is complete.
        hub_dataset_id (`str`, *optional*):
            Name of the dataset on the Hub, `name` or `user/name`. The name of the output folder if unset.
        hub_private_repo (`bool`, *optional*):
            Whether a dataset that does not exist on the Hub yet is created as a private one. The default of the
            account or organization if unset.
    """

    push_to_hub: bool = field(
        default=False, metadata={"help": "Whether to push the dataset to the Hub when it is complete."}
    )
    hub_dataset_id: str | None = field(
        default=None,
        metadata={
            "help": "Name of the dataset on the Hub, `name` or `user/name`. The name of the output folder if unset."
        },
    )
    hub_private_repo: bool | None = field(
        default=None,
        metadata={
            "help": "Whether a dataset that does not exist on the Hub yet is created as a private one. The default "
            "of the account or organization if unset."
        },
    )

    # How each field enters the key of a result (see `stages/keys.py`)
    key_parts: ClassVar[dict[str, str]] = dict.fromkeys(("push_to_hub", "hub_dataset_id", "hub_private_repo"), "none")

    def __post_init__(self):
        check_config(self)


@dataclass(frozen=True)
class Repo:
    """A repository on the Hub that can be written to: its full name, its address, and `"model"` or `"dataset"`."""

    id: str
    url: str
    kind: str


def open_repo(
    kind: str,
    name: str | None,
    output_dir: str | os.PathLike,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> Repo:
    """
    Create a repository, or check that it is there and holds nothing of others, before any expensive work.

    Args:
        kind (`str`):
            `"model"` or `"dataset"`.
        name (`str`, *optional*):
            `name` or `user/name`. The name of the output folder if unset.
        output_dir (`str` or `os.PathLike`):
            The output folder.
        private (`bool`, *optional*):
            Whether a new repository is private.
        token (`str`, *optional*):
            Token of a trainer's own arguments. By default, that of `HF_TOKEN` or `hf auth login`.
        revision (`str`, *optional*):
            Branch to push to.

    Raises:
        [`PublishError`]: If the Hub cannot be reached, or refuses, or the repository holds something else.
    """
    name = name or resolve(output_dir).name
    with _translated(
        f"Nothing can be pushed to the {kind} {name!r} on the Hub, and nothing was computed",
        "Log in with `hf auth login` or set HF_TOKEN to a token that may write there, check the name and the "
        "connection, or leave `--push_to_hub` out.",
    ):
        api = HfApi(token=token)
        url = api.create_repo(name, repo_type=kind, private=private, exist_ok=True)
        repo = Repo(url.repo_id, url.url, kind)
        earlier_metadata(api, repo, revision)
    return repo


def earlier_metadata(api: HfApi, repo: Repo, revision: str | None = None) -> dict[str, Any]:
    """
    The metadata of the card that a push will replace, such as the license.

    Args:
        api ([`~huggingface_hub.HfApi`]):
            The client.
        repo ([`Repo`]):
            The repository.
        revision (`str`, *optional*):
            Branch to push to. One that does not exist begins with the files of the main branch. A pull request may be
            pushed to whatever it is for.

    Raises:
        [`PublishError`]: If the repository holds something that this package did not publish.
    """
    try:
        present = api.list_repo_files(repo.id, repo_type=repo.kind, revision=revision)
    except RevisionNotFoundError:
        return earlier_metadata(api, repo) if revision is not None else {}
    metadata, text = {}, ""
    if README in present:
        path = Path(api.hf_hub_download(repo.id, README, repo_type=repo.kind, revision=revision))
        text = path.read_text(encoding="utf-8", errors="replace")
        try:
            card = RepoCard(text)
            metadata, text = card.data.to_dict(), card.text
        except (TypeError, ValueError, yaml.YAMLError):
            pass  # metadata that is no mapping of names: not a card of ours
    foreign = [name for name in present if name not in _OF_THE_HUB] + ([README] if text.strip() else [])
    is_proposed = revision is not None and revision.startswith("refs/pr/")
    if foreign and TAG not in (metadata.get("tags") or ()) and not is_proposed:
        raise PublishError(
            f"{repo.url} holds something that rlmec-trl did not publish ({a_few(foreign)}). Nothing was changed. "
            f"Choose another `--hub_{repo.kind}_id`. If all of it may be replaced, add `{TAG}` to the `tags` in the "
            "metadata of its README.md."
        )
    return metadata


@contextmanager
def uploading(repo: Repo, output_dir: str | os.PathLike) -> Iterator[None]:
    """
    Around an upload.

    Raises:
        [`PublishError`]: Instead of what the client raises. The message says that the local result is complete.
    """
    with _translated(
        f"{str(output_dir)!r} is complete, and could not be uploaded to {repo.url}",
        "Run the same command again to upload it. Nothing is computed again.",
    ):
        yield


@contextmanager
def _translated(what: str, advice: str) -> Iterator[None]:
    try:
        yield
    except PublishError:
        raise
    except _FAILURES as error:
        # Only the first line: what follows are request ids and links
        text = " ".join(str(error).partition("\n\n")[0].split()).rstrip(".")
        raise PublishError(f"{what}: {text} ({type(error).__name__}). {advice}") from None


class DatasetPublisher:
    """
    Publishes the dataset of one stage, on the main process, if that is wanted.

    Args:
        config ([`PublishConfig`], *optional*):
            Whether and where to. Without one, nothing is published.
        output_dir (`str` or `os.PathLike`):
            Output folder of the stage.

    Raises:
        [`PublishError`]: If the Hub cannot be reached, or refuses: known before any expensive work.
    """

    def __init__(self, config: PublishConfig | None, output_dir: str | os.PathLike):
        self.output_dir = output_dir
        self.repo = None
        if config is not None and config.push_to_hub and process_state().is_main_process:
            self.repo = open_repo("dataset", config.hub_dataset_id, output_dir, config.hub_private_repo)

    def publish(self, dataset: Dataset, facts: DatasetFacts) -> None:
        """
        Upload a finished dataset as Parquet, with its card. The metadata of a card that is there is kept.

        Args:
            dataset ([`~datasets.Dataset`]):
                The rows, as they were saved.
            facts ([`~rlmec_trl.stages.dataset_cards.DatasetFacts`]):
                What its card says.

        Raises:
            [`PublishError`]: If the upload fails. The local dataset stays as it is.
        """
        repo = self.repo
        if repo is None:
            return
        dataset = _without_messages_of_providers(dataset)
        api = HfApi()
        with uploading(repo, self.output_dir):
            metadata = earlier_metadata(api, repo)
            tags = metadata.get("tags") or ()
            metadata["tags"] = sorted({*([tags] if isinstance(tags, str) else tags), *dataset_tags(facts)})
            card = DatasetCard(f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n")
            card.text = dataset_card(dataset, facts, repo.id)
            # First the card: by its tag, the same command knows what it has begun to upload
            api.upload_file(
                path_or_fileobj=str(card).encode(),
                path_in_repo=README,
                repo_id=repo.id,
                repo_type="dataset",
                commit_message="Upload the card",
            )
            # It describes the files in the card's metadata, and keeps the rest of the card
            dataset.push_to_hub(repo.id, split="train", commit_message=f"Upload {facts.what}")
        print(f"Published {len(dataset):,} rows: {repo.url}")


def _without_messages_of_providers(dataset: Dataset) -> Dataset:
    """The rows with the kinds of their outcomes alone: a provider's error may name an account."""
    names = dataset.column_names
    for name in _OUTCOMES:
        if name in names:
            kinds = [outcome.partition(":")[0] if isinstance(outcome, str) else outcome for outcome in dataset[name]]
            feature = dataset.features[name]
            # Not by `map`, which would write its cache next to the dataset
            dataset = dataset.remove_columns(name).add_column(name, kinds, feature=feature)
    return dataset.select_columns(names)
