"""Models for inference, by path or Hub name. Errors are one sentence with the path and the cause."""

import hashlib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash
from trl import ModelConfig, get_quantization_config

from ..data.adapters import adapter_base, load_text_config, read_json_object
from ..data.errors import ModelError, UserError
from .inference import eos_token_ids
from .processes import process_state


# Files other than the weights that change the outputs of a model
_SETTINGS = ("config.json", "generation_config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json")
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")
# What Transformers and the libraries below it raise for files that are missing, broken, truncated or of another model
_LOADING_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RuntimeError,
    ImportError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
)


@contextmanager
def translated_errors(what: str, name_or_path: str) -> Iterator[None]:
    """
    Translate the errors that a library raises while loading a model into one sentence.

    Args:
        what (`str`):
            What is loaded, for the message.
        name_or_path (`str`):
            Where from.

    Raises:
        [`ModelError`]: Instead of the library's exception.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except _LOADING_ERRORS as error:
        raise _cannot_load(what, name_or_path, error) from None
    except Exception as error:
        # `tokenizers` raises nothing more specific
        if type(error) is not Exception:
            raise
        raise _cannot_load(what, name_or_path, error) from None


def _cannot_load(what: str, name_or_path: str, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:300]
    return ModelError(f"The {what} {name_or_path!r} cannot be loaded ({type(error).__name__}: {reason}).")


def check_model(
    name_or_path: str | None, revision: str = "main", needs_tokenizer: bool = True, trust_remote_code: bool = False
) -> None:
    """
    Check that a model can be loaded, without loading its weights: of a folder, that its files are there and whole (and
    those of its base model, if it is an adapter); of a name on the Hub, that its configuration can be found.

    Args:
        name_or_path (`str`):
            Path, or name on the Hub.
        revision (`str`, *optional*, defaults to `"main"`):
            Revision on the Hub.
        needs_tokenizer (`bool`, *optional*, defaults to `True`):
            Whether it must have a tokenizer too.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that the model's repository ships.

    Raises:
        [`ModelError`]: If it cannot.
    """
    if is_folder(name_or_path):
        _check_folder(Path(name_or_path), trust_remote_code)
    elif adapter_base(name_or_path, revision) is None:
        load_config(name_or_path, revision, trust_remote_code)
    if needs_tokenizer:
        load_tokenizer(ModelConfig(name_or_path, model_revision=revision), trust_remote_code)


def load_config(name_or_path: str, revision: str = "main", trust_remote_code: bool = False) -> PreTrainedConfig:
    """
    The configuration of a whole model.

    Raises:
        [`ModelError`]: If it cannot be loaded.
    """
    with translated_errors("configuration of", name_or_path):
        return AutoConfig.from_pretrained(name_or_path, revision=revision, trust_remote_code=trust_remote_code)


def is_classifier(config: PreTrainedConfig) -> bool:
    """Whether a configuration is of a model for sequence classification, such as a reward model."""
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def is_folder(name_or_path: str | None) -> bool:
    """
    Whether this is a folder rather than a name on the Hub.

    Raises:
        [`ModelError`]: If it is neither.
    """
    if not name_or_path:
        raise ModelError("No model is named: pass its path, or its name on the Hub, as `--model_name_or_path`.")
    path = Path(name_or_path)
    try:
        if path.is_dir():
            return True
        if path.exists():
            raise ModelError(f"{name_or_path!r} is a file, not a folder with a model.")
        validate_repo_id(name_or_path)
    except (HFValidationError, OSError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"There is no model {name_or_path!r}: no such folder exists, and it is not a name on the Hub."
        ) from None
    return False


def _check_folder(folder: Path, trust_remote_code: bool) -> None:
    _check_settings(folder)
    _check_weights(folder)
    base = adapter_base(str(folder))
    if base is not None:
        if Path(base[0]).resolve() == folder.resolve():
            raise ModelError(
                f"{str(folder)!r} is an adapter that names itself as its base model. Name the right one as "
                "`base_model_name_or_path` in its adapter_config.json."
            )
        try:
            check_model(*base, needs_tokenizer=False, trust_remote_code=trust_remote_code)
        except ModelError as error:
            raise ModelError(f"{str(folder)!r} is an adapter, and its base model cannot be used. {error}") from None


def _read_settings(folder: Path) -> None:
    """Check that those files with settings that a model has are JSON objects."""
    for name in _SETTINGS:
        if (folder / name).exists():
            read_json_object(folder / name)


def _check_settings(folder: Path) -> None:
    _read_settings(folder)
    if not any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        raise ModelError(f"{str(folder)!r} holds no model: it has no config.json (nor an adapter_config.json).")


def _check_weights(folder: Path) -> None:
    """Check that a folder has weights, that no file of theirs is missing, and that none is truncated."""
    files = sorted(file for file in folder.iterdir() if file.suffix in _WEIGHTS)
    if not files:
        raise ModelError(f"{str(folder)!r} holds no weights (a *.safetensors or *.bin file). Save the model again.")
    for index in folder.glob("*.index.json"):
        parts = read_json_object(index).get("weight_map")
        missing = sorted({str(part) for part in parts.values() if not (folder / str(part)).is_file()}) if parts else []
        if missing:
            raise ModelError(f"{str(folder)!r} lacks {missing[0]!r}, which {index.name} lists. Save the model again.")
    for file in files:
        if file.suffix == ".safetensors":
            try:
                # Reads the header and compares the size with it
                with safe_open(file, framework="pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise ModelError(
                    f"{str(file)!r} is damaged or truncated ({error}). Save the model again, or take an earlier "
                    "checkpoint."
                ) from None


def model_fingerprint(name_or_path: str, revision: str = "main") -> str:
    """
    Fingerprint that changes with a model: of a folder, wherever it is, the sizes and times of its weight files and the
    content of its settings; of a name on the Hub, the commit. The fingerprint of an adapter ends with that of its base
    model.
    """
    base = adapter_base(name_or_path, revision)
    folder = Path(name_or_path)
    if not is_folder(name_or_path):
        config = cached_file(
            name_or_path,
            "config.json" if base is None else "adapter_config.json",
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        own = f"{name_or_path}@{extract_commit_hash(config, None) or revision}"
        return own if base is None else f"{own} {model_fingerprint(*base)}"
    weights = sorted(file for file in folder.iterdir() if file.suffix in _WEIGHTS)
    parts = [f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in weights]
    settings = [folder / name for name in _SETTINGS if (folder / name).exists()]
    parts += [f"{file.name}:{hashlib.sha256(file.read_bytes()).hexdigest()}" for file in settings]
    if base is not None and base[0] != name_or_path:
        parts.append(model_fingerprint(*base))
    return " ".join(parts)


def load_model(
    model_args: ModelConfig, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Load a causal language model, or an adapter with its base model, and its tokenizer on this process's device, in
    evaluation mode.

    Args:
        model_args ([`~trl.ModelConfig`]):
            What to load and how: name, revision, `dtype`, `attn_implementation`, quantization.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that the model's repository ships.

    Raises:
        [`ModelError`]: If model or tokenizer cannot be loaded.
    """
    quantization_config = get_quantization_config(model_args)
    model = load_weights(
        model_args.model_name_or_path,
        model_args.model_revision,
        trust_remote_code=trust_remote_code,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=quantization_config,
        device_map={"": process_state().device} if quantization_config is not None else None,
    )
    if quantization_config is None:
        model = model.to(process_state().device)
    return model.eval(), load_tokenizer(model_args, trust_remote_code)


def load_weights(name_or_path: str, revision: str = "main", **kwargs) -> PreTrainedModel:
    """
    [`~transformers.AutoModelForCausalLM.from_pretrained`], for a model that has all its weights, or an adapter.

    Raises:
        [`ModelError`]: If the model cannot be loaded, or some of its weights are missing: these would be random.
    """
    if is_folder(name_or_path):
        _check_folder(Path(name_or_path), kwargs.get("trust_remote_code", False))
    with translated_errors("model", name_or_path):
        model, info = AutoModelForCausalLM.from_pretrained(
            name_or_path, **_revisions(name_or_path, revision), output_loading_info=True, **kwargs
        )
    if info["missing_keys"]:
        raise ModelError(
            f"The model {name_or_path!r} lacks {len(info['missing_keys'])} of its weights, such as "
            f"{min(info['missing_keys'])!r}. Save it again."
        )
    homeless = {name for name in info["unexpected_keys"] if ".lora_" in name}
    if homeless:
        raise ModelError(
            f"{len(homeless)} weights of the adapter {name_or_path!r}, such as {min(homeless)!r}, find no place in "
            "its base model. Check `base_model_name_or_path` in its adapter_config.json. Transformers cannot load "
            "DoRA: merge such an adapter with `recipes/merge.py`, and use the result."
        )
    return model


def load_adapter(
    model: PreTrainedModel | PeftModel, name_or_path: str, revision: str = "main", adapter_name: str = "default"
) -> PeftModel:
    """
    Put an adapter on its base model.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The base model, or one with other adapters, which stay.
        name_or_path (`str`):
            Path of the adapter, or its name on the Hub.
        revision (`str`, *optional*, defaults to `"main"`):
            Its revision on the Hub.
        adapter_name (`str`, *optional*, defaults to `"default"`):
            What it is called in the model.

    Raises:
        [`ModelError`]: If it cannot be loaded, or belongs to a model of other layers: PEFT would leave out what has no
            place, and not train what is not there.
    """
    device = str(model.device)
    with translated_errors("adapter", name_or_path):
        if isinstance(model, PeftModel):
            model.load_adapter(name_or_path, adapter_name, revision=revision, torch_device=device)
        else:
            model = PeftModel.from_pretrained(
                model, name_or_path, adapter_name, revision=revision, torch_device=device
            )
        saved = load_peft_weights(name_or_path, device="cpu", revision=revision).keys()
        # An adapter may be saved with the embeddings of its base model
        needed, known = (
            get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=embeddings).keys()
            for embeddings in (False, True)
        )
    other = (needed - saved) or (saved - known - model.state_dict().keys())
    if other:
        base = adapter_base(name_or_path, revision)
        raise ModelError(
            f"The adapter {name_or_path!r} was not trained on {base and base[0]!r}, which its adapter_config.json "
            f"names as its base model: {'the model' if needed - saved else 'the adapter'} alone has {min(other)!r}, "
            f"one of {len(other)} weights. Name the right one there, as `base_model_name_or_path`."
        )
    return model


def _revisions(name_or_path: str, revision: str) -> dict[str, Any]:
    """
    The revisions as [`~transformers.AutoModelForCausalLM.from_pretrained`] takes them. It would read the base model of
    an adapter at the revision of the adapter.
    """
    base = adapter_base(name_or_path, revision)
    return {"revision": revision if base is None else base[1], "adapter_kwargs": {"revision": revision}}


def load_tokenizer(model_args: ModelConfig, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """
    The tokenizer of a model.

    Raises:
        [`ModelError`]: If it cannot be loaded.
    """
    name_or_path = model_args.model_name_or_path
    if is_folder(name_or_path):
        _read_settings(Path(name_or_path))
        names = {file.name for file in Path(name_or_path).iterdir()}
        if not any(name.startswith(("tokenizer", "vocab")) or name.endswith(".model") for name in names):
            raise ModelError(
                f"{name_or_path!r} holds no tokenizer (tokenizer.json and tokenizer_config.json). Save the one that "
                "the model was trained with there."
            )
    with translated_errors("tokenizer of", name_or_path):
        return AutoTokenizer.from_pretrained(
            name_or_path, revision=model_args.model_revision, trust_remote_code=trust_remote_code
        )


def load_eos_token_ids(
    model_args: ModelConfig, processing_class: PreTrainedTokenizerBase, trust_remote_code: bool = False
) -> set[int]:
    """
    The ids that end the completions of a model that runs elsewhere.

    Args:
        model_args ([`~trl.ModelConfig`]):
            The model and its revision.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that the model's repository ships.

    Raises:
        [`ModelError`]: If its configuration cannot be loaded.
    """
    name_or_path, revision = model_args.model_name_or_path, model_args.model_revision
    # An adapter has no model configuration
    name_or_path, revision = adapter_base(name_or_path, revision) or (name_or_path, revision)
    if is_folder(name_or_path):
        _check_settings(Path(name_or_path))
    try:
        generation_config = GenerationConfig.from_pretrained(name_or_path, revision=revision)
    except OSError:
        # There is none: the model would derive it from its configuration
        config = load_config(name_or_path, revision, trust_remote_code)
        generation_config = GenerationConfig.from_model_config(config)
    return eos_token_ids(generation_config, processing_class)


def load_max_length(model_args: ModelConfig, trust_remote_code: bool = False) -> int | None:
    """
    Number of positions of a model that is not loaded yet; `None` if its configuration has no limit.

    Raises:
        [`ModelError`]: If its configuration cannot be loaded.
    """
    return getattr(_load_text_config(model_args, trust_remote_code), "max_position_embeddings", None)


def load_vocab_size(model_args: ModelConfig, trust_remote_code: bool = False) -> int:
    """
    The number of ids that a model that is not loaded yet knows.

    Raises:
        [`ModelError`]: If its configuration cannot be loaded.
    """
    return _load_text_config(model_args, trust_remote_code).vocab_size


def _load_text_config(model_args: ModelConfig, trust_remote_code: bool) -> PreTrainedConfig:
    name_or_path, revision = model_args.model_name_or_path, model_args.model_revision
    with translated_errors("configuration of", name_or_path):
        return load_text_config(name_or_path, revision, trust_remote_code=trust_remote_code)
