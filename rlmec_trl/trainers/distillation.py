"""Divergence of the policy from a teacher's whole next-token distribution, without keeping logits in memory."""

import functools
import types
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peft.utils import ModulesToSaveWrapper
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput

from .soft_targets import TILE_TOKENS, captured_states, refuse_scaled_logits


@dataclass
class DistillationOutput(FusedCausalLMOutput):
    """
    Output of a model with a distillation head. It is a class because DDP rebuilds outputs from their declared fields.

    Args:
        divergence (`torch.Tensor` of shape `(batch, seq_len - 1)`):
            Divergence from the teacher where it has a state, zero elsewhere.
    """

    divergence: torch.Tensor | None = None


@dataclass(frozen=True)
class Head:
    """
    What makes logits of hidden states.

    Args:
        weight (`torch.Tensor` of shape `(vocabulary, hidden)`):
            Weight of the LM head.
        bias (`torch.Tensor` of shape `(vocabulary,)`, *optional*):
            Its bias.
        softcap (`float`, *optional*):
            Bound of the logits, for models that apply a hyperbolic tangent to them.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    softcap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, adapter_name: str | None = None) -> "Head":
        """
        The head of a model, whole where FSDP2 has sharded it. Adapters may have a head each (`modules_to_save`): it is
        that of `adapter_name`, or of the active one.
        """
        lm_head = model.get_output_embeddings()
        if isinstance(lm_head, ModulesToSaveWrapper) and adapter_name is not None:
            heads = lm_head.modules_to_save
            lm_head = heads[adapter_name] if adapter_name in heads else lm_head.original_module
        weight, bias = lm_head.weight, getattr(lm_head, "bias", None)
        if isinstance(weight, DTensor):
            weight, bias = weight.full_tensor(), None if bias is None else bias.full_tensor()
        return cls(weight, bias, getattr(model.config.get_text_config(), "final_logit_softcapping", None))

    def logps(self, hidden_states: torch.Tensor, vocab_size: int, temperature: float) -> torch.Tensor:
        """Log-probabilities of the first `vocab_size` ids, float32 of shape `(tokens, vocab_size)`."""
        weight = self.weight[:vocab_size].to(hidden_states.dtype)
        bias = None if self.bias is None else self.bias[:vocab_size].to(hidden_states.dtype)
        logits = F.linear(hidden_states, weight, bias).float()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return (logits / temperature).log_softmax(dim=-1)


def divergence(
    hidden_states: torch.Tensor,
    head: Head,
    teacher_states: torch.Tensor,
    teacher_head: Head,
    kind: str = "reverse_kl",
    temperature: float = 1.0,
    tile_tokens: int = TILE_TOKENS,
) -> torch.Tensor:
    """
    Divergence of the policy pi from the teacher g at each token, over the whole vocabulary.

    - `"reverse_kl"`: `sum_v pi(v) (log pi(v) - log g(v))`
    - `"cross_entropy"`: `- sum_v g(v) log pi(v)`

    If one vocabulary is padded to more ids than the other, the ids that only one of them has are left out.

    Args:
        hidden_states (`torch.Tensor` of shape `(tokens, hidden)`):
            Last hidden states of the policy, with gradient.
        head ([`Head`]):
            The policy's LM head.
        teacher_states (`torch.Tensor` of shape `(tokens, teacher_hidden)`):
            Last hidden states of the teacher.
        teacher_head ([`Head`]):
            The teacher's LM head, which gets no gradient.
        kind (`str`, *optional*, defaults to `"reverse_kl"`):
            One of the above.
        temperature (`float`, *optional*, defaults to `1.0`):
            What the logits of both are divided by.
        tile_tokens (`int`, *optional*, defaults to `1024`):
            Number of tokens whose logits are in memory at a time.

    Returns:
        `torch.Tensor` of shape `(tokens,)`, float32.

    Raises:
        `ValueError`: If `kind` is unknown.
    """
    if kind not in ("reverse_kl", "cross_entropy"):
        raise ValueError(f"`kind` must be 'reverse_kl' or 'cross_entropy', got {kind!r}.")
    vocab_size = min(head.weight.size(0), teacher_head.weight.size(0))

    def tile(states: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        logps = head.logps(states, vocab_size, temperature)
        with torch.no_grad():
            teacher_logps = teacher_head.logps(teacher, vocab_size, temperature)
        if kind == "reverse_kl":
            return (logps.exp() * (logps - teacher_logps)).sum(dim=-1)
        return -(teacher_logps.exp() * logps).sum(dim=-1)

    tiles = zip(hidden_states.split(tile_tokens), teacher_states.split(tile_tokens), strict=True)
    return torch.cat([checkpoint(tile, *tensors, use_reentrant=False) for tensors in tiles])


def add_distillation_head(
    model: PreTrainedModel,
    teacher: PreTrainedModel,
    kind: str = "reverse_kl",
    temperature: float = 1.0,
    teacher_adapter: str | None = None,
) -> None:
    """
    Make `model(..., fused_lm_head=True, teacher_states=..., teacher_mask=...)` return `divergence` in addition to the
    outputs of [`~trl.trainer.utils.add_fused_lm_head`], from the same hidden states.

    It patches the model's forward, because FSDP gathers the LM head's weight only there.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy, a causal language model with a fused LM head.
        teacher ([`~transformers.PreTrainedModel`]):
            The model whose states `teacher_states` are.
        kind (`str`, *optional*, defaults to `"reverse_kl"`):
            As in [`divergence`].
        temperature (`float`, *optional*, defaults to `1.0`):
            As in [`divergence`].
        teacher_adapter (`str`, *optional*):
            Name of the teacher's adapter, if it is one of several of a model.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If one of the models scales its logits, which is not supported.
    """
    for one in (model, teacher):
        refuse_scaled_logits(one, "`attempt_coef`", "Set `attempt_coef=0`.")
    fused_forward = model.forward

    @functools.wraps(type(model).forward)
    def forward(self, *args, teacher_states=None, teacher_mask=None, **kwargs):
        if teacher_states is None:
            return fused_forward(*args, **kwargs)
        with captured_states(self) as captured:
            outputs = fused_forward(*args, **kwargs)
        # The state at a position predicts the next token. Virtual prompt tokens, if any, come first.
        hidden_states = captured[0][:, -teacher_mask.size(1) : -1]
        mask = teacher_mask[:, 1:]
        with torch.no_grad():
            teacher_head = Head.of(teacher, teacher_adapter)
        values = divergence(
            hidden_states[mask], Head.of(self), teacher_states[:, 1:][mask], teacher_head, kind, temperature
        )
        return DistillationOutput(**outputs, divergence=values.new_zeros(mask.shape).masked_scatter(mask, values))

    model.forward = types.MethodType(forward, model)
