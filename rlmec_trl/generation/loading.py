"""Models for inference, by path or name."""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, get_quantization_config

from ..data.processes import process_state


def model_fingerprint(name_or_path: str) -> str:
    """What tells a model from another under the same path: its weight files' sizes and times; on the Hub, its name."""
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
            How to load it: `dtype`, `attn_implementation`, revision, quantisation.
        name_or_path (`str`, *optional*):
            What to load instead of `model_args.model_name_or_path`.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that the model's repository ships.
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
