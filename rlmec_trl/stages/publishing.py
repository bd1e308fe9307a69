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
from typing import ClassVar

from datasets import Dataset
from huggingface_hub import DatasetCard, HfApi
from huggingface_hub.errors import HTTPError

from ..data.checks import check_config
from ..data.errors import UserError
from ..generation.processes import process_state
from .dataset_cards import DatasetFacts, dataset_card, dataset_tags
from .output import resolve


# What the client raises where the Hub refuses something or cannot be reached. `HTTPError` is that of the HTTP library,
# of which each release of the client may use another one. An invalid name, or a card with invalid metadata, is a
# `ValueError`, and a failed upload of a large file a `RuntimeError`
_FAILURES = (OSError, HTTPError, ValueError, RuntimeError)
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
    kind: str, name: str | None, output_dir: str | os.PathLike, private: bool | None = None, token: str | None = None
) -> Repo:
    """
    Create a repository, or check that it is there, before any expensive work.

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

    Raises:
        [`PublishError`]: If the Hub cannot be reached, or refuses.
    """
    name = name or resolve(output_dir).name
    with _translated(
        f"Nothing can be pushed to the {kind} {name!r} on the Hub, and nothing was computed",
        "Log in with `hf auth login` or set HF_TOKEN to a token that may write there, check the name and the "
        "connection, or leave `--push_to_hub` out.",
    ):
        url = HfApi(token=token).create_repo(name, repo_type=kind, private=private, exist_ok=True)
    return Repo(url.repo_id, url.url, kind)


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
        Upload a finished dataset as Parquet, with its card. The license in a card that is there is kept.

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
            dataset.push_to_hub(repo.id, split="train", commit_message=f"Upload {facts.what}")
            # It has described the files in the card's metadata, and kept what was there
            path = api.hf_hub_download(repo.id, "README.md", repo_type="dataset")
            with open(path, encoding="utf-8") as file:
                card = DatasetCard(file.read())
            card.data["tags"] = sorted({*(card.data.get("tags") or ()), *dataset_tags(facts)})
            card.text = dataset_card(dataset, facts, repo.id)
            api.upload_file(
                path_or_fileobj=str(card).encode(),
                path_in_repo="README.md",
                repo_id=repo.id,
                repo_type="dataset",
                commit_message="Upload the card",
            )
        print(f"Published {len(dataset):,} rows: {repo.url}")


def _without_messages_of_providers(dataset: Dataset) -> Dataset:
    """The rows with the kinds of their outcomes alone: a provider's error may name an account."""
    names = dataset.column_names
    for name in _OUTCOMES:
        if name in names:
            kinds = [None if outcome is None else outcome.partition(":")[0] for outcome in dataset[name]]
            feature = dataset.features[name]
            # Not by `map`, which would write its cache next to the dataset
            dataset = dataset.remove_columns(name).add_column(name, kinds, feature=feature)
    return dataset.select_columns(names)
