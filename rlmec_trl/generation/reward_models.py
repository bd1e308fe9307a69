"""Sequence-level reward models at work: one score for each completion."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import disable_fsdp_ram_efficient_loading, enable_fsdp_ram_efficient_loading
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_enabled
from transformers.utils import cached_file
from trl import ModelConfig
from trl.trainer.reward_trainer import suppress_seqcls_warning
from trl.trainer.utils import pad, use_adapter

from ..data.adapters import adapter_base
from ..data.errors import ConfigError, ModelError
from ..data.reward_heads import reward_head, use_float32_scores
from ..data.tokens import encode_prompt
from .inference import evaluation_mode, length_batches, padding_id
from .loading import check_model, is_classifier, load_adapter, load_config, load_tokenizer, translated_errors
from .processes import process_state


_ADAPTER_WEIGHTS = "adapter_model.safetensors"


class SequenceRewardModel:
    """
    A reward model that gives a completion one score: the value at its last token.

    The score is that of the token ids: those of the prompt, as the policy reads it, and those of the completion, as
    they were sampled, with EOS where it was. The last token is found by the attention mask, so padding with EOS is
    harmless. [`LabelRewardTrainer`] and [`~trl.RewardTrainer`] train such models.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Sequence classification model of one label, or an adapter on one.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, which has to be the policy's.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of completions in a forward pass. It does not change the scores.
        adapter_name (`str`, *optional*):
            The adapter that is the reward model, switched on while it scores, if `model` has several: another reward
            model may be one of them, or the policy. By default, `model` is used as it is.

    Raises:
        [`~rlmec_trl.data.errors.ModelError`]: If the model has no score head, or one with several outputs.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        processing_class: PreTrainedTokenizerBase,
        batch_size: int = 16,
        adapter_name: str | None = None,
    ):
        if model.config.num_labels != 1:
            raise ModelError(
                f"A reward model has one output, and this model has {model.config.num_labels} (`num_labels`)."
            )
        self.model = model
        self.processing_class = processing_class
        self.batch_size = batch_size
        self.adapter_name = adapter_name
        self._base: tuple[str, str] | None = None  # path or name, and revision, of an adapter's base model
        self._shown = "The reward model"  # in errors
        use_float32_scores(model)
        self._head = reward_head(model)
        text_config = model.config.get_text_config()
        self.vocab_size = text_config.vocab_size
        if text_config.pad_token_id is None:
            # Transformers takes no batch without one. What it does with it is not used
            text_config.pad_token_id = padding_id(processing_class)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        revision: str = "main",
        trust_remote_code: bool = False,
        beside: "SequenceRewardModel | None" = None,
        model_init_kwargs: dict[str, Any] | None = None,
        batch_size: int = 16,
    ) -> "SequenceRewardModel":
        """
        Load a reward model, or an adapter with its base model, frozen, on this process's device, also where the policy
        is sharded by FSDP. Weights are read from safetensors only.

        Args:
            name_or_path (`str`):
                Path, or name on the Hub.
            revision (`str`, *optional*, defaults to `"main"`):
                Revision on the Hub.
            trust_remote_code (`bool`, *optional*, defaults to `False`):
                Whether to run Python code that the model's repository ships.
            beside ([`SequenceRewardModel`], *optional*):
                Another reward model that was loaded by this method. If both are adapters of the same base model, they
                share its weights, as they were loaded.
            model_init_kwargs (`dict`, *optional*):
                Further arguments of [`~transformers.AutoModelForSequenceClassification.from_pretrained`], such as
                `dtype`.
            batch_size (`int`, *optional*, defaults to `16`):
                As in the constructor.

        Raises:
            [`~rlmec_trl.data.errors.ModelError`]: If it cannot be loaded, or was not trained as a reward model: its
                score head would be random.
            [`~rlmec_trl.data.errors.ConfigError`]: Under ZeRO-3, which would shard it.
        """
        if is_deepspeed_zero3_enabled():
            raise ConfigError(
                "A reward model is loaded whole by each process, and ZeRO-3 would shard it. Launch with "
                "`recipes/accelerate_configs/ddp.yaml` or `recipes/accelerate_configs/fsdp2.yaml` instead."
            )
        check_model(name_or_path, revision, trust_remote_code=trust_remote_code)
        processing_class = load_tokenizer(ModelConfig(name_or_path, model_revision=revision), trust_remote_code)
        base = adapter_base(name_or_path, revision)
        kwargs = {"trust_remote_code": trust_remote_code, **(model_init_kwargs or {})}
        adapter_name = None
        if base is None:
            model = _load_whole(name_or_path, revision, **kwargs)
        elif (has_head := _adapter_has_head(name_or_path, revision)) and beside is not None and beside._base == base:
            adapter_name = f"reward_{len(beside.model.peft_config)}"
            model = load_adapter(beside.model, name_or_path, revision, adapter_name)
        else:
            model = _load_whole(*base, adapter=name_or_path, needs_head=not has_head, **kwargs)
            # The adapter's head gets the dtype of this one, and is trained and saved in float32
            reward_head(model).float()
            adapter_name = "reward"
            model = load_adapter(model, name_or_path, revision, adapter_name)
        loaded = cls(model.eval().requires_grad_(False), processing_class, batch_size, adapter_name)
        loaded._base = base
        loaded._shown = f"The reward model {name_or_path!r}"
        return loaded

    def score(
        self,
        prompts: Sequence[str | list[dict]],
        completion_ids: Sequence[list[int]],
        chat_template_kwargs: Sequence[dict | None] | None = None,
    ) -> list[float]:
        """
        Score completions.

        Args:
            prompts (`Sequence[str]` or `Sequence[list[dict]]`):
                Prompts, as texts or messages.
            completion_ids (`Sequence[list[int]]`):
                Token ids of their completions, as they were sampled, with EOS. A completion that was cut off has none,
                and is scored at its last token; an empty one at the prompt's.
            chat_template_kwargs (`Sequence[dict | None]`, *optional*):
                Arguments of the chat template for each prompt.

        Returns:
            `list[float]`: One float32 value for each completion, rounded to the dtype of the model's head.

        Raises:
            [`~rlmec_trl.data.errors.ConfigError`]: If a completion has the ids of another tokenizer.
            [`~rlmec_trl.data.errors.ModelError`]: If a score is not finite. TRL would take NaN for no opinion.
        """
        if chat_template_kwargs is None:
            chat_template_kwargs = [None] * len(prompts)
        sequences = []
        for row, (prompt, ids, kwargs) in enumerate(zip(prompts, completion_ids, chat_template_kwargs, strict=True)):
            sequences.append([*encode_prompt(self.processing_class, prompt, kwargs, row), *ids])
            if max(sequences[-1], default=self.vocab_size) >= self.vocab_size:
                found = f"the id {max(sequences[-1])}" if sequences[-1] else "no token at all"
                raise ConfigError(
                    f"{self._shown} has {self.vocab_size} ids, and completion {row} and its prompt have {found}. Use "
                    "a reward model that was trained with the policy's tokenizer."
                )
        scores, captured = [0.0] * len(sequences), []
        pad_token_id = padding_id(self.processing_class)
        with self._adapter(), evaluation_mode(self.model):
            hook = self._head.register_forward_hook(lambda module, args, values: captured.append(values))
            try:
                for batch in length_batches([len(ids) for ids in sequences], self.batch_size):
                    rows = [torch.tensor(sequences[index]) for index in batch]
                    self.model(
                        input_ids=pad(rows, padding_value=pad_token_id).to(self.model.device),
                        attention_mask=pad([torch.ones_like(row) for row in rows]).to(self.model.device),
                        use_cache=False,
                    )
                    # Counted from the end, because prompt-learning PEFT prepends virtual tokens
                    values = captured.pop()[:, -max(map(len, rows)) :, 0].float().cpu()
                    for row, index in enumerate(batch):
                        scores[index] = values[row, len(rows[row]) - 1].item()
            finally:
                hook.remove()
        for row, score in enumerate(scores):
            if not math.isfinite(score):
                raise ModelError(f"{self._shown} gives completion {row} the score {score}. Check its training.")
        return scores

    @contextmanager
    def _adapter(self) -> Iterator[None]:
        if self.adapter_name is None:
            yield
            return
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        try:
            with use_adapter(self.model, self.adapter_name):
                yield
        finally:
            # An adapter that is switched to is made trainable
            self.model.requires_grad_(False)
            for parameter in trained:
                parameter.requires_grad_(True)


def _load_whole(
    name_or_path: str, revision: str, adapter: str | None = None, needs_head: bool = True, **kwargs
) -> PreTrainedModel:
    """A reward model with all its weights, or the base model of an adapter, which may lack the head."""
    config = load_config(name_or_path, revision, kwargs["trust_remote_code"])
    if is_classifier(config) and config.num_labels != 1:
        raise ModelError(
            f"{adapter or name_or_path!r} is not a reward model: the model {name_or_path!r} has {config.num_labels} "
            "outputs (`num_labels`), and a reward model has one."
        )
    # The head that an adapter brings along is no reason to warn that the base model has none
    warnings = nullcontext() if needs_head else suppress_seqcls_warning()
    with translated_errors("model", name_or_path), _whole_in_each_process(), warnings:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name_or_path, revision=revision, num_labels=1, use_safetensors=True, output_loading_info=True, **kwargs
        )
    missing = info["missing_keys"]
    if any(name.startswith("score.") for name in missing):
        raise ModelError(
            f"{adapter or name_or_path!r} is not a reward model: it has no score head, which would be random. Train "
            "one with `recipes/train_label_reward.py`, and name its output."
        )
    if missing:
        raise ModelError(
            f"The model {name_or_path!r} lacks {len(missing)} of its weights, such as {min(missing)!r}. Save it again."
        )
    return model.to(process_state().device)


@contextmanager
def _whole_in_each_process() -> Iterator[None]:
    """
    Load whole models under FSDP, too. With `fsdp_cpu_ram_efficient_loading`, Transformers would make weights that a
    checkpoint lacks, such as the head that an adapter brings along, on the first process only, for FSDP to share.
    """
    if not is_fsdp_enabled():
        yield
        return
    disable_fsdp_ram_efficient_loading()
    try:
        yield
    finally:
        enable_fsdp_ram_efficient_loading()


def _adapter_has_head(name_or_path: str, revision: str) -> bool:
    with translated_errors("adapter", name_or_path):
        file = cached_file(name_or_path, _ADAPTER_WEIGHTS, revision=revision)
        with safe_open(file, framework="pt") as weights:
            return any(".score." in name for name in weights.keys())
