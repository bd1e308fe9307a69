"""Loading models for inference."""

from pathlib import Path

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import ModelConfig, get_quantization_config

from .inference import eos_token_ids
from .processes import process_state


def model_fingerprint(name_or_path: str) -> str:
    """Identifies a model: by its path and the sizes and times of its weight files, or by its name on the Hub."""
    files = sorted(Path(name_or_path).glob("*.safetensors"))
    return " ".join(
        [name_or_path, *(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)]
    )


def load_model(
    model_args: ModelConfig, name_or_path: str | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Load a causal language model and its tokenizer on this process's device, in evaluation mode.

    Args:
        model_args ([`~trl.ModelConfig`]):
            How to load it: `dtype`, `attn_implementation`, revision, quantization.
        name_or_path (`str`, *optional*):
            Model to load instead of `model_args.model_name_or_path`.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code from the model's repository.
    """
    name_or_path = name_or_path or model_args.model_name_or_path
    kwargs = {"revision": model_args.model_revision, "trust_remote_code": trust_remote_code}
    quantization_config = get_quantization_config(model_args)
    model = AutoModelForCausalLM.from_pretrained(
        name_or_path,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=quantization_config,
        device_map={"": process_state().device} if quantization_config is not None else None,
        **kwargs,
    )
    if quantization_config is None:
        model = model.to(process_state().device)
    return model.eval(), AutoTokenizer.from_pretrained(name_or_path, **kwargs)


def load_tokenizer(
    model_args: ModelConfig, trust_remote_code: bool = False
) -> tuple[PreTrainedTokenizerBase, set[int]]:
    """
    The tokenizer of a model that runs behind a server, and the ids that end its completions.

    Args:
        model_args ([`~trl.ModelConfig`]):
            The model and its revision.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code from the model's repository.
    """
    name_or_path, revision = model_args.model_name_or_path, model_args.model_revision
    tokenizer = AutoTokenizer.from_pretrained(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    try:
        generation_config = GenerationConfig.from_pretrained(name_or_path, revision=revision)
    except OSError:
        # Without one, the model would derive it from its configuration
        config = AutoConfig.from_pretrained(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
        generation_config = GenerationConfig.from_model_config(config)
    return tokenizer, eos_token_ids(generation_config, tokenizer)
