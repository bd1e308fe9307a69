"""Models for inference, by path or name."""

import hashlib
import json
from pathlib import Path

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash
from trl import ModelConfig, get_quantization_config

from .inference import eos_token_ids
from .processes import process_state


# What decides, beside the weights, what a model answers
_SETTINGS = ("config.json", "generation_config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json")
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")


def model_fingerprint(name_or_path: str, revision: str = "main") -> str:
    """
    Fingerprint that changes with a model: of a folder, wherever it is, the sizes and times of its weight files and the
    content of its settings (with the fingerprint of its base model, if it is an adapter); of a name on the Hub, the
    commit.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        config = cached_file(
            name_or_path,
            "config.json",
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        return f"{name_or_path}@{extract_commit_hash(config, None) or revision}"
    weights = sorted(file for file in folder.iterdir() if file.suffix in _WEIGHTS)
    parts = [f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in weights]
    settings = [folder / name for name in _SETTINGS if (folder / name).exists()]
    parts += [f"{file.name}:{hashlib.sha256(file.read_bytes()).hexdigest()}" for file in settings]
    adapter = folder / "adapter_config.json"
    if adapter.exists():
        base = json.loads(adapter.read_text(encoding="utf-8"))
        parts.append(model_fingerprint(base["base_model_name_or_path"], base.get("revision") or "main"))
    return " ".join(parts)


def load_model(
    model_args: ModelConfig, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Load a causal language model and its tokenizer on this process's device, in evaluation mode.

    Args:
        model_args ([`~trl.ModelConfig`]):
            What to load and how: name, revision, `dtype`, `attn_implementation`, quantization.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that the model's repository ships.
    """
    quantization_config = get_quantization_config(model_args)
    model = AutoModelForCausalLM.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        trust_remote_code=trust_remote_code,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=quantization_config,
        device_map={"": process_state().device} if quantization_config is not None else None,
    )
    if quantization_config is None:
        model = model.to(process_state().device)
    return model.eval(), load_tokenizer(model_args, trust_remote_code)


def load_tokenizer(model_args: ModelConfig, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model."""
    return AutoTokenizer.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, trust_remote_code=trust_remote_code
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
    """
    name_or_path, revision = model_args.model_name_or_path, model_args.model_revision
    try:
        generation_config = GenerationConfig.from_pretrained(name_or_path, revision=revision)
    except OSError:
        # There is none: the model would make it of its own configuration
        config = AutoConfig.from_pretrained(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
        generation_config = GenerationConfig.from_model_config(config)
    return eos_token_ids(generation_config, processing_class)


def load_vocab_size(model_args: ModelConfig, trust_remote_code: bool = False) -> int:
    """The number of ids that a model knows, from its configuration alone."""
    config = AutoConfig.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, trust_remote_code=trust_remote_code
    )
    return config.get_text_config().vocab_size
