"""The score head of a reward model, through which its values are read."""

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
