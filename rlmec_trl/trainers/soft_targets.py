"""Expected log-probability under a target distribution, without keeping a (tokens, vocabulary) tensor in memory."""

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput

from ..data.errors import ConfigError


# Number of tokens whose logits are in memory at a time, in the forward and in the backward pass.
TILE_TOKENS = 1024


@dataclass
class SoftTargetOutput(FusedCausalLMOutput):
    """
    Output of a model with a soft-target head. It is a class because DDP rebuilds outputs from their declared fields.

    Args:
        expected_logps (`torch.Tensor` of shape `(batch, seq_len - 1)`):
            Expected log-probability under the target distribution, zero outside `target_mask`.
        attempt_expected_logps (`torch.Tensor` of shape `(batch, seq_len - 1)`):
            The same under the distribution on the attempt, zero outside `attempt_mask`.
    """

    expected_logps: torch.Tensor | None = None
    attempt_expected_logps: torch.Tensor | None = None


def expected_logps(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target_ids: torch.Tensor,
    target_probs: torch.Tensor,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    tile_tokens: int = TILE_TOKENS,
) -> torch.Tensor:
    """
    `sum_v q_t(v) log pi_t(v)` for each token t, with `q = (1 - s) g + s / V` for targets g and smoothing s.

    Args:
        hidden_states (`torch.Tensor` of shape `(tokens, hidden)`):
            Last hidden states of the policy.
        weight (`torch.Tensor` of shape `(vocabulary, hidden)`):
            Weight of the LM head.
        bias (`torch.Tensor` of shape `(vocabulary,)`, *optional*):
            Bias of the LM head.
        target_ids (`torch.Tensor` of shape `(tokens, k)`, int64):
            Token ids with a target probability.
        target_probs (`torch.Tensor` of shape `(tokens, k)`, float32):
            Their probabilities, which sum to one at each token.
        label_smoothing (`float`, *optional*, defaults to `0.0`):
            Fraction s of the target that is spread evenly over the vocabulary.
        softcap (`float`, *optional*):
            Bound of the logits, for models that apply a hyperbolic tangent to them.
        tile_tokens (`int`, *optional*, defaults to `1024`):
            Number of tokens whose logits are in memory at a time.

    Returns:
        `torch.Tensor` of shape `(tokens,)`, float32.
    """

    def tile(hidden: torch.Tensor, ids: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        logits = F.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)).float()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        log_normalizer = logits.logsumexp(dim=-1)
        expected = (probs * logits.gather(-1, ids)).sum(dim=-1)
        if label_smoothing > 0:
            expected = (1 - label_smoothing) * expected + label_smoothing * logits.mean(dim=-1)
        return expected - log_normalizer

    tiles = zip(
        hidden_states.split(tile_tokens), target_ids.split(tile_tokens), target_probs.split(tile_tokens), strict=True
    )
    return torch.cat([checkpoint(tile, *tensors, use_reentrant=False) for tensors in tiles])


def tempered_targets(target_logps: torch.Tensor, temperature: float) -> torch.Tensor:
    """
    Target probabilities `softmax(logps / temperature)`, normalized over the stored ids.

    Args:
        target_logps (`torch.Tensor` of shape `(..., k)`, float32):
            Log-probabilities at temperature 1; `-inf` where unused.
        temperature (`float`):
            Temperature of the targets.
    """
    return torch.softmax(target_logps.float() / temperature, dim=-1)


def add_soft_target_head(model: PreTrainedModel) -> None:
    """
    Make `model(..., fused_lm_head=True, target_ids=..., target_probs=..., target_mask=...)` return `expected_logps`
    in addition to the outputs of [`~trl.trainer.utils.add_fused_lm_head`], from the same hidden states. With
    `attempt_target_ids`, `attempt_target_probs` and `attempt_mask`, it returns `attempt_expected_logps`, to which
    `label_smoothing` does not apply.

    It patches the model's forward, because FSDP gathers the LM head's weight only there.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model with a fused LM head.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If the model scales its logits, which is not supported.
    """
    refuse_scaled_logits(
        model,
        "Soft imitation, `imitation_label_smoothing` and `attempt_coef`",
        "Set `imitation_targets='hard'`, `imitation_label_smoothing=0` and `attempt_coef=0`.",
    )
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    fused_forward = model.forward

    @functools.wraps(type(model).forward)
    def forward(
        self,
        *args,
        target_ids=None,
        target_probs=None,
        target_mask=None,
        label_smoothing=0.0,
        attempt_target_ids=None,
        attempt_target_probs=None,
        attempt_mask=None,
        **kwargs,
    ):
        if target_ids is None and attempt_target_ids is None:
            return fused_forward(*args, **kwargs)
        with captured_states(self) as captured:
            outputs = fused_forward(*args, **kwargs)
        lm_head = self.get_output_embeddings()
        weight, bias = lm_head.weight, lm_head.bias
        if isinstance(weight, DTensor):
            weight = weight.full_tensor()
            bias = None if bias is None else bias.full_tensor()

        def expected(ids, probs, mask, smoothing):
            # The state at a position predicts the next token. Virtual prompt tokens, if any, come first.
            hidden_states = captured[0][:, -ids.size(1) : -1]
            mask = mask[:, 1:]
            values = expected_logps(
                hidden_states[mask], weight, bias, ids[:, 1:][mask], probs[:, 1:][mask], smoothing, softcap
            )
            return values.new_zeros(mask.shape).masked_scatter(mask, values)

        added = {}
        if target_ids is not None:
            added["expected_logps"] = expected(target_ids, target_probs, target_mask, label_smoothing)
        if attempt_target_ids is not None:
            added["attempt_expected_logps"] = expected(
                attempt_target_ids, attempt_target_probs, attempt_mask, smoothing=0.0
            )
        return SoftTargetOutput(**outputs, **added)

    model.forward = types.MethodType(forward, model)


@contextmanager
def captured_states(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """Collect the last hidden states of each forward pass of a causal language model."""
    captured: list[torch.Tensor] = []
    hook = model.base_model.register_forward_hook(
        lambda module, inputs, outputs: captured.append(outputs.last_hidden_state)
    )
    try:
        yield captured
    finally:
        hook.remove()


def refuse_scaled_logits(model: PreTrainedModel, feature: str, fix: str) -> None:
    """
    Refuse a model that scales its logits, where a feature of ours multiplies hidden states by the LM head itself.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If it does.
    """
    config = model.config.get_text_config()
    for name in ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier"):
        if getattr(config, name, None) not in (None, 1.0):
            raise ConfigError(
                f"{feature} cannot be used with models that scale their logits (`{name}` in the config of "
                f"{type(model).__name__}). {fix}"
            )
