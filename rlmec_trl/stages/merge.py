"""The merge stage: an adapter and its base model become a whole model, which the next stage starts from."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from transformers.utils import cached_file
from trl import ModelConfig

from ..data.adapters import adapter_base
from ..data.checks import check_config
from ..data.errors import ConfigError
from ..generation.loading import check_model, is_folder, load_tokenizer
from ..generation.merging import merge_adapter
from ..generation.processes import process_state
from ..grm.prompts import WORDING_FILE
from .keys import model_key
from .model_cards import ModelFacts, read_card
from .model_publishing import push_model
from .output import OutputError, claim, is_finished, publish, resolve
from .publishing import open_repo
from .summary import print_summary, timed


@dataclass
class MergeConfig:
    r"""
    Settings of the merge stage.

    Parameters:
        output_dir (`str`):
            Folder to save the merged model and its tokenizer to.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that the model's repository ships.
        push_to_hub (`bool`, *optional*, defaults to `False`):
            Whether to push the merged model to the Hub.
        hub_model_id (`str`, *optional*):
            Its name on the Hub, `name` or `user/name`. The name of the output folder if unset.
        hub_private_repo (`bool`, *optional*):
            Whether a model that does not exist on the Hub yet is created as a private one. The default of the account
            or organization if unset.
    """

    output_dir: str = field(metadata={"help": "Folder to save the merged model and its tokenizer to."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Whether to run Python code that the model's repository ships."}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Whether to push the merged model to the Hub."})
    hub_model_id: str | None = field(
        default=None,
        metadata={"help": "Its name on the Hub, `name` or `user/name`. The name of the output folder if unset."},
    )
    hub_private_repo: bool | None = field(
        default=None,
        metadata={
            "help": "Whether a model that does not exist on the Hub yet is created as a private one. The default of "
            "the account or organization if unset."
        },
    )

    # How each field enters the key of a result (see `stages/keys.py`)
    key_parts: ClassVar[dict[str, str]] = {
        "output_dir": "none",
        "trust_remote_code": "none",
        "push_to_hub": "none",
        "hub_model_id": "none",
        "hub_private_repo": "none",
    }

    def __post_init__(self):
        check_config(self)


@timed
def run(config: MergeConfig, model_args: ModelConfig) -> None:
    """
    Merge an adapter, and save the model. A finished merge is not repeated.

    Args:
        config ([`MergeConfig`]):
            Where to.
        model_args ([`~trl.ModelConfig`]):
            The adapter, its revision, and the dtype of the merged model.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If it is no adapter, or of a type that cannot be merged.
        [`~rlmec_trl.data.errors.ModelError`]: If the adapter or its base model cannot be loaded.
        [`~rlmec_trl.stages.output.OutputError`]: If `output_dir` cannot be replaced, or another run is writing to it.
            Also if it is the adapter's or the base model's folder.
        [`~rlmec_trl.stages.publishing.PublishError`]: If it cannot be pushed. What was merged stays.
    """
    name_or_path, revision = model_args.model_name_or_path, model_args.model_revision
    if model_args.load_in_4bit or model_args.load_in_8bit:
        raise ConfigError(
            "`--load_in_4bit` and `--load_in_8bit` are not for merging, which would round the weights: leave them out."
        )
    check_model(name_or_path, revision, trust_remote_code=config.trust_remote_code)
    _check_not_replaced(config.output_dir, [name_or_path, *(adapter_base(name_or_path, revision) or ())[:1]])
    tokenizer = load_tokenizer(model_args, config.trust_remote_code)
    state = process_state()
    repo = None
    if config.push_to_hub and state.is_main_process:
        repo = open_repo("model", config.hub_model_id, config.output_dir, config.hub_private_repo)

    def save(folder: Path) -> None:
        merge_adapter(model_args, config.trust_remote_code).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        wording = cached_file(
            name_or_path, WORDING_FILE, revision=revision, _raise_exceptions_for_missing_entries=False
        )
        if wording is not None:
            # Without it, a generative reward model would be taken for a policy
            shutil.copyfile(wording, folder / WORDING_FILE)

    key = json.dumps({"merged": model_key(model_args, tokenizer)}, sort_keys=True)
    if state.is_main_process:
        with claim(config.output_dir, key) as work_dir:
            if is_finished(config.output_dir, key):
                state.print(f"{config.output_dir} already holds this merged model.")
            else:
                publish(save, config.output_dir, key, work_dir, costs={})
                print_summary(f"Merged {name_or_path}.", config.output_dir)
            if repo is not None:  # while no other run may replace it
                push_model(resolve(config.output_dir), _facts(name_or_path, revision), repo)
    state.wait_for_everyone()


def _facts(adapter: str, revision: str) -> ModelFacts:
    """What the card says: with the adapter's own card, also how that was trained."""
    base, _ = adapter_base(adapter, revision)
    path = cached_file(adapter, "README.md", revision=revision, _raise_exceptions_for_missing_entries=False)
    card = None if path is None else read_card(path)
    return ModelFacts(
        "an adapter, which was merged into its base model",
        base,
        made_by={"adapter": adapter},
        tags=() if card is None else card.data.tags,
        adapter_card=card,
    )


def _check_not_replaced(output_dir: str, models: Sequence[str]) -> None:
    """Check that the merged model would not replace what it is made of: a base model may itself be a merged one."""
    target = resolve(output_dir)
    for model in models:
        if is_folder(model) and target in (resolve(model), *resolve(model).parents):
            raise OutputError(
                f"{str(output_dir)!r} holds {model!r}, of which the merged model is made. Choose another "
                "`--output_dir`."
            )
