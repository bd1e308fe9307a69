"""Adapters: the models they belong to, by path or Hub name, and their dtypes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import find_adapter_config_file

from .errors import ConfigError, ModelError


def adapter_base(name_or_path: str, revision: str = "main") -> tuple[str, str] | None:
    """
    The base model of an adapter.

    Args:
        name_or_path (`str`):
            Path or Hub name of a model or an adapter.
        revision (`str`, *optional*, defaults to `"main"`):
            Its revision on the Hub.

    Returns:
        `tuple[str, str]`, *optional*: Path or Hub name of the base model, and its revision, which is not that of the
        adapter. `None` if this is not an adapter.

    Raises:
        [`~rlmec_trl.data.errors.ModelError`]: If `adapter_config.json` cannot be read, or names no base model.
    """
    file = find_adapter_config_file(name_or_path, revision=revision)
    if file is None:
        return None
    settings = read_json_object(Path(file))
    if not isinstance(settings.get("base_model_name_or_path"), str):
        raise ModelError(f"{str(file)!r} names no base model (`base_model_name_or_path`).")
    return settings["base_model_name_or_path"], settings.get("revision") or "main"


def load_text_config(name_or_path: str, revision: str = "main", **kwargs) -> PreTrainedConfig:
    """
    The configuration of a model that is not loaded yet, of its language model where it has several parts. That of an
    adapter is its base model's.

    Args:
        name_or_path (`str`):
            Path or Hub name of a model or an adapter.
        revision (`str`, *optional*, defaults to `"main"`):
            Its revision on the Hub.
        kwargs:
            Further arguments of [`~transformers.AutoConfig.from_pretrained`].

    Raises:
        [`~rlmec_trl.data.errors.ModelError`]: If an adapter names no base model.
        `OSError` or `ValueError`: If there is no such configuration.
    """
    name_or_path, revision = adapter_base(name_or_path, revision) or (name_or_path, revision)
    return AutoConfig.from_pretrained(name_or_path, revision=revision, **kwargs).get_text_config()


def read_json_object(path: Path) -> dict[str, Any]:
    """
    Read a file with settings of a model.

    Raises:
        [`~rlmec_trl.data.errors.ModelError`]: If it is not a JSON object.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{str(path)!r} cannot be read ({error}). Save the model again.") from None
    if not isinstance(settings, dict):
        raise ModelError(f"{str(path)!r} is not a JSON object. Save the model again.")
    return settings


def refuse_adapter(name_or_path: str, revision: str = "main") -> None:
    """
    Refuse to train an adapter that is given by name: TRL cannot load one.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If it is an adapter.
    """
    base = adapter_base(name_or_path, revision)
    if base is not None:
        raise ConfigError(
            f"{name_or_path!r} is an adapter of {base[0]!r}, and training starts from a whole model. Merge it first: "
            f"`python recipes/merge.py --model_name_or_path {name_or_path} --output_dir ...`. In Python, you can pass "
            "the trainer a `PeftModel` with `is_trainable=True`."
        )


@contextmanager
def unchanged_dtypes(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """
    Keep the dtypes of a model's parameters while a checkpoint is loaded into it.

    TRL trains the adapter of a quantized model in bfloat16, but PEFT makes it float32 when it loads a checkpoint, so
    that a resumed run would differ from an uninterrupted one.
    """
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    yield
    for name, parameter in model.named_parameters():
        if parameter.dtype != dtypes[name]:
            parameter.data = parameter.data.to(dtypes[name])


def note_base_revision(model: PeftModel, revision: str) -> None:
    """Record in an adapter which revision of its base model it was trained on, as [`adapter_base`] reads it."""
    for config in model.peft_config.values():
        if config.revision is None and revision != "main":
            config.revision = revision
