"""The score head of a reward model, through which its values are read."""

from types import MethodType

import torch
from accelerate.utils import is_peft_model
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from .errors import ModelError


def reward_head(model: PreTrainedModel | PeftModel) -> nn.Module:
    """
    The module that turns each hidden state of a sequence classification model into a score. In an adapter with a head
    of its own, it is the wrapper that calls the head of the active adapter.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model, not wrapped for distributed training.

    Returns:
        `torch.nn.Module`: From `(batch, tokens, hidden)` to `(batch, tokens, 1)`.

    Raises:
        [`~rlmec_trl.data.errors.ModelError`]: If it has no such module.
    """
    base = model.get_base_model() if is_peft_model(model) else model
    head = dict(base.named_children()).get("score")
    if head is None:
        raise ModelError(
            f"`{type(base).__name__}` has no head named `score`, which gives each token its value. Use the sequence "
            "classification class of a decoder, such as Llama or Qwen."
        )
    return head


def use_float32_scores(model: PreTrainedModel | PeftModel) -> None:
    """
    Let the score head of a reward model compute in float32, whatever the dtype of the model and under autocast too.

    A bfloat16 number has three digits at most, so the difference of two close scores would be a matter of rounding.
    The weights keep their dtype. A head that is not a plain linear layer, such as a quantized one, is left as it is.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model, not wrapped for distributed training.

    Raises:
        [`~rlmec_trl.data.errors.ModelError`]: If it has no score head.
    """
    for layer in reward_head(model).modules():
        # No subclass of it, which may keep its weights in another form
        if type(layer) is nn.Linear:
            # Bound to the layer, so that a copy of the layer has its own
            layer.forward = MethodType(_forward_in_float32, layer)


def _forward_in_float32(layer: nn.Linear, hidden_states: torch.Tensor) -> torch.Tensor:
    with torch.autocast(hidden_states.device.type, enabled=False):
        bias = None if layer.bias is None else layer.bias.float()
        return nn.functional.linear(hidden_states.float(), layer.weight.float(), bias)
