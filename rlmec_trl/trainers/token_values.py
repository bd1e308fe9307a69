"""The values that a reward model gives to all tokens, and not only to the last one."""

from dataclasses import dataclass

import torch
from accelerate.utils import is_peft_model
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from ..data.reward_heads import reward_head, use_float32_scores


@dataclass
class TokenValuesOutput(SequenceClassifierOutputWithPast):
    """
    Output of a reward model with `token_values`, of shape `(batch, tokens)`. It is part of the output because what
    wraps a model for distributed training follows the gradients of its outputs.
    """

    token_values: torch.FloatTensor | None = None


def add_token_values(model: PreTrainedModel | PeftModel) -> None:
    """
    Let a reward model return the values of all tokens beside its reward.

    The score head computes them anyway; the model then keeps one of each sequence, chosen by the padding id. A hook
    takes them from the head, and a second one adds them to the output. They are float32.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Sequence classification model of one label, not wrapped for distributed training.

    Raises:
        [`~rlmec_trl.data.errors.ModelError`]: If it has no score head.
    """
    base = model.get_base_model() if is_peft_model(model) else model
    captured = {}

    def take(module, args, scores):
        captured["token_values"] = scores.squeeze(-1)

    def add(module, args, outputs):
        # A model that was given to two trainers has two such hooks
        return TokenValuesOutput(**{**outputs, "token_values": captured.pop("token_values")})

    use_float32_scores(model)
    reward_head(model).register_forward_hook(take)
    base.register_forward_hook(add)
