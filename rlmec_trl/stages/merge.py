"""The merge stage: an adapter and its base model become a whole model, which the next stage starts from."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from transformers.utils import cached_file
from trl import ModelConfig

from ..data.checks import check_config
from ..generation.loading import check_model, load_tokenizer
from ..generation.merging import merge_adapter
from ..generation.processes import process_state
from ..grm.prompts import WORDING_FILE
from .keys import model_key
from .output import claim, is_finished, publish


@dataclass
class MergeConfig:
    r"""
    Settings of the merge stage.

    Parameters:
        output_dir (`str`):
            Folder to save the merged model and its tokenizer to.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that the model's repository ships.
    """

    output_dir: str = field(metadata={"help": "Folder to save the merged model and its tokenizer to."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Whether to run Python code that the model's repository ships."}
    )

    # How each field enters the key of a result (see `stages/keys.py`)
    key_parts: ClassVar[dict[str, str]] = {"output_dir": "none", "trust_remote_code": "none"}

    def __post_init__(self):
        check_config(self)


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
    """
    name_or_path, revision = model_args.model_name_or_path, model_args.model_revision
    check_model(name_or_path, revision, trust_remote_code=config.trust_remote_code)
    tokenizer = load_tokenizer(model_args, config.trust_remote_code)

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
    with claim(config.output_dir, key) as work_dir:
        if is_finished(config.output_dir, key):
            process_state().print(f"{config.output_dir} already holds this merged model.")
        else:
            publish(save, config.output_dir, key, work_dir)
            process_state().print(f"Merged {name_or_path}. Saved to {config.output_dir}")
