"""Adapters merged into their base models."""

from peft import PeftConfig
from transformers import PreTrainedModel
from trl import ModelConfig

from ..data.adapters import adapter_base
from ..data.errors import ConfigError
from .loading import check_model, is_classifier, load_adapter, load_config, load_weights, translated_errors
from .reward_models import SequenceRewardModel


def merge_adapter(model_args: ModelConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """
    Load an adapter with its base model, and merge it: the result is a whole model without PEFT. That of a reward
    model keeps the score head that was trained with the adapter.

    Args:
        model_args ([`~trl.ModelConfig`]):
            The adapter, and the dtype in which its base model is loaded.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that the model's repository ships.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If it is no adapter, or one that has no weights to add, such as
            prompt tuning.
        [`~rlmec_trl.data.errors.ModelError`]: If it cannot be loaded.
    """
    name_or_path, revision = model_args.model_name_or_path, model_args.model_revision
    check_model(name_or_path, revision, trust_remote_code=trust_remote_code)
    base = adapter_base(name_or_path, revision)
    if base is None:
        raise ConfigError(f"{name_or_path!r} is a whole model, not an adapter. Use it as it is.")
    if adapter_base(*base) is not None:
        raise ConfigError(
            f"{name_or_path!r} is an adapter of {base[0]!r}, which is an adapter itself. Merge that one first, and "
            "name the result as `base_model_name_or_path` in adapter_config.json."
        )
    with translated_errors("adapter", name_or_path):
        peft_config = PeftConfig.from_pretrained(name_or_path, revision=revision)
    if peft_config.is_prompt_learning:
        raise ConfigError(
            f"{name_or_path!r} is an adapter of type {peft_config.peft_type.value}, which adds no weights to its base "
            "model and cannot be merged. Train a LoRA adapter."
        )
    kwargs = {"dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation}
    config = load_config(*base, trust_remote_code)
    # PEFT needs no task, and an adapter of a reward model may have none
    if peft_config.task_type == "SEQ_CLS" or is_classifier(config):
        model = SequenceRewardModel.from_pretrained(
            name_or_path, revision, trust_remote_code, model_init_kwargs=kwargs
        ).model
    else:
        model = load_weights(*base, trust_remote_code=trust_remote_code, **kwargs)
        model = load_adapter(model, name_or_path, revision)
    return model.merge_and_unload()
