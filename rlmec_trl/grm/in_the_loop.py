"""A generative reward model beside a policy in training: loading it, and judging the samples with a reference."""

from typing import Any

import torch
from accelerate.utils import is_peft_model
from peft import PeftConfig
from transformers import PreTrainedModel
from trl import ModelConfig

from ..data.adapters import adapter_base
from ..generation.loading import load_tokenizer
from .generative_reward_model import GenerativeRewardModel
from .prompts import load_wording


# Name of the reward model's adapter among those of the policy
ADAPTER = "grm"


def load_beside(
    policy: PreTrainedModel,
    name_or_path: str,
    revision: str = "main",
    trust_remote_code: bool = False,
    allow_untrained: bool = False,
    may_share: bool = True,
    may_wrap: bool = True,
    model_init_kwargs: dict[str, Any] | None = None,
    **kwargs,
) -> GenerativeRewardModel:
    """
    Load a generative reward model to be used beside a policy.

    If it is an adapter on the policy's base model, and the policy is an adapter too, it becomes another adapter of the
    policy's model, named `"grm"`: the base model's weights are in memory once. This needs adapters of the same type
    that leave the base model's own weights, biases included, as they are. With `model_init_kwargs` it is loaded with
    these, beside the policy.

    Args:
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy.
        name_or_path (`str`):
            Path or Hub name of the reward model.
        revision (`str`, *optional*, defaults to `"main"`):
            Its revision on the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that its repository ships.
        allow_untrained (`bool`, *optional*, defaults to `False`):
            Whether it may be a model that was not trained as a reward model.
        may_share (`bool`, *optional*, defaults to `True`):
            Whether it may become an adapter of the policy's model.
        may_wrap (`bool`, *optional*, defaults to `True`):
            Whether it may do so if it has modules of its own instead of some of the base model's (`modules_to_save`,
            `trainable_token_indices`), for which PEFT wraps and renames the latter.
        model_init_kwargs (`dict`, *optional*):
            Arguments of [`~transformers.AutoModelForCausalLM.from_pretrained`]. The dtype is the policy's by default.
        kwargs:
            Arguments of [`GenerativeRewardModel`].
    """
    may_share = may_share and is_peft_model(policy) and ADAPTER not in policy.peft_config and not model_init_kwargs
    if may_share and _can_share(policy, name_or_path, revision, may_wrap):
        source = ModelConfig(name_or_path, model_revision=revision)
        tokenizer = load_tokenizer(source, trust_remote_code)
        wording = load_wording(name_or_path, revision, allow_untrained)
        policy.load_adapter(name_or_path, adapter_name=ADAPTER, is_trainable=False, revision=revision)
        return GenerativeRewardModel(policy, tokenizer, wording, adapter_name=ADAPTER, **kwargs)
    return GenerativeRewardModel.from_pretrained(
        name_or_path,
        revision,
        trust_remote_code,
        allow_untrained,
        model_init_kwargs={"dtype": policy.dtype, **(model_init_kwargs or {})},
        **kwargs,
    )


def _can_share(policy: Any, name_or_path: str, revision: str, may_wrap: bool) -> bool:
    """Whether the reward model is an adapter that can stand beside the policy's own."""
    base = adapter_base(name_or_path, revision)
    own = policy.active_peft_config
    if base != (own.base_model_name_or_path, own.revision or "main"):
        return False
    config = PeftConfig.from_pretrained(name_or_path, revision=revision)
    # An adapter with biases changes those of the base model in place
    if config.peft_type != own.peft_type or any(getattr(each, "bias", "none") != "none" for each in (own, config)):
        return False
    wraps = any(getattr(config, name, None) for name in ("modules_to_save", "trainable_token_indices"))
    return may_wrap or not wraps


def judge(
    grm: GenerativeRewardModel,
    prompts: list[Any],
    references: list[str | None],
    completions: list[Any],
    completion_ids: list[list[int]],
    chat_template_kwargs: list[dict | None] | None = None,
    with_states: bool = False,
) -> tuple[list[list[float] | None], list[torch.Tensor | None] | None]:
    """
    Score the tokens of the samples that have a reference.

    Args:
        grm ([`GenerativeRewardModel`]):
            The reward model.
        prompts, completions, completion_ids (`list`):
            The samples.
        references (`list[str | None]`):
            Their references.
        chat_template_kwargs (`list[dict | None]`, *optional*):
            Arguments of the chat template.
        with_states (`bool`, *optional*, defaults to `False`):
            Whether to return the hidden states too.

    Returns:
        `tuple`: For each sample its token probabilities, `None` where it has no reference, and its hidden states of
        shape `(tokens, hidden)`, `None` where it has no reference or they were not asked for.
    """
    judged = [index for index, reference in enumerate(references) if reference is not None]
    columns = _pick(judged, prompts, references, completions, completion_ids)
    template_kwargs = None if chat_template_kwargs is None else _pick(judged, chat_template_kwargs)[0]
    if with_states:
        probs, states = grm.score_with_states(*columns, template_kwargs)
        return _spread(judged, probs, len(prompts)), _spread(judged, states, len(prompts))
    return _spread(judged, grm.score(*columns, template_kwargs), len(prompts)), None


def rewrite_flagged(
    grm: GenerativeRewardModel,
    wanted: list[bool],
    token_probs: list[list[float] | None],
    prompts: list[Any],
    references: list[str | None],
    completions: list[Any],
    completion_ids: list[list[int]],
    threshold: float,
    chat_template_kwargs: list[dict | None] | None = None,
) -> list[list[int] | None]:
    """
    Rewrite samples from the step of their first flagged token on.

    Args:
        grm ([`GenerativeRewardModel`]):
            The reward model.
        wanted (`list[bool]`):
            Which samples to rewrite. Those without a reference are left out.
        token_probs (`list[list[float] | None]`):
            What [`judge`] returned.
        prompts, references, completions, completion_ids (`list`):
            The samples.
        threshold (`float`):
            Probability under which a token is flagged.
        chat_template_kwargs (`list[dict | None]`, *optional*):
            Arguments of the chat template.

    Returns:
        `list[list[int] | None]`: Token ids of the rewrites; the sample's own where no token is flagged, and `None`
        where none was asked for.
    """
    chosen = [index for index, probs in enumerate(token_probs) if probs is not None and wanted[index]]
    columns = _pick(chosen, prompts, references, completions, completion_ids)
    (probs,) = _pick(chosen, token_probs)
    template_kwargs = None if chat_template_kwargs is None else _pick(chosen, chat_template_kwargs)[0]
    error_steps = grm.flagged_steps(columns[2], columns[3], probs, threshold)
    return _spread(chosen, grm.rewrite_ids(*columns, error_steps, template_kwargs), len(prompts))


def _pick(indices: list[int], *columns: list[Any]) -> list[list[Any]]:
    return [[column[index] for index in indices] for column in columns]


def _spread(indices: list[int], values: list[Any], length: int) -> list[Any]:
    spread = [None] * length
    for index, value in zip(indices, values, strict=True):
        spread[index] = value
    return spread
