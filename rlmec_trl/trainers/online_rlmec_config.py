"""Configuration of the online RLMEC trainer."""

from dataclasses import dataclass, field
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin
from trl import GRPOConfig

from ..data.checks import check_config, check_reward_ranges
from ..data.errors import ConfigError


@dataclass
class OnlineRLMECConfig(GRPOConfig):
    r"""
    Configuration class for the [`OnlineRLMECTrainer`].

    This class includes only the parameters that are specific to token credit. For the others, refer to
    [`~trl.GRPOConfig`] and [`~transformers.TrainingArguments`].

    Parameters:
        > Parameters that control the token credit

        token_credit (`str`, *optional*, defaults to `"add"`):
            What the policy term makes of the outcome's advantage A and the token rewards: `"outcome"`, A on each
            token, as in GRPO; `"add"`, their sum; `"place"`, A on the first flagged token of an incorrect completion,
            and on the tokens before the first flagged one of a correct one; `"scale"`, A with weights from the token
            rewards that are 1 on average; `"none"`, no policy term. Without token rewards, all but `"none"` are GRPO.
            See [`~rlmec_trl.credit.token_credit.token_advantages`].
        token_reward_weights (`list[float]`, *optional*):
            Weight of each of the `token_reward_funcs`, and of the generative reward model as the last, if there is
            one. All are 1 if unset.
        reward_baseline (`float`, *optional*, defaults to `0.5`):
            Probability under the generative reward model at which a token's reward is zero. A token below it is
            flagged.
        positive_reward_range (`list[float]`, *optional*, defaults to `[0.0, 0.5]`):
            Lower and upper bound of the reward model's token rewards in correct completions, with
            `token_credit="add"`.
        negative_reward_range (`list[float]`, *optional*, defaults to `[-0.1, 0.0]`):
            Lower and upper bound of the reward model's token rewards in incorrect completions, with
            `token_credit="add"`.
        negative_credit (`str`, *optional*, defaults to `"all"`):
            Which tokens of a completion keep a negative reward of the reward model, with `token_credit="add"`:
            `"all"`, or `"first_error"` for only the first of them.
        correct_reward (`float`, *optional*, defaults to `1.0`):
            A completion is correct if the first reward function gives it at least this reward.

        > Parameters that control the imitation term

        imitation_coef (`float`, *optional*, defaults to `1.0`):
            Weight of the imitation of rewrites. With `0.0`, nothing is rewritten. Without a generative reward model
            or a replay dataset, there is nothing to imitate.
        edited_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the edited tokens of a rewrite, those that the minimum edit script changes.
        unedited_weight (`float`, *optional*, defaults to `0.5`):
            Weight of the other tokens of a rewrite.
        rewrite_samples (`str`, *optional*, defaults to `"wrong"`):
            Which completions are rewritten and imitated: the incorrect ones (`"wrong"`) or `"all"`, since a correct
            answer may hide incorrect steps.
        rewrite_max_new_tokens (`int`, *optional*):
            Maximum number of tokens that a rewrite may add to the steps it keeps. `max_completion_length` if unset.
        replay_fraction (`float`, *optional*, defaults to `0.5`):
            Number of rows of the replay dataset whose rewrites are imitated, for each completion.

        > Parameters that control distillation on the completions

        attempt_coef (`float`, *optional*, defaults to `0.0`):
            Weight of the divergence from the generative reward model's next-token distribution on the completions, up
            to and including the first flagged token.
        attempt_loss (`str`, *optional*, defaults to `"reverse_kl"`):
            That divergence: `"reverse_kl"`, KL(policy || reward model), or `"cross_entropy"` of the policy under the
            reward model's distribution.

        > Parameters that control the generative reward model

        grm_revision (`str`, *optional*, defaults to `"main"`):
            Revision on the Hub, if `grm` is a name.
        grm_init_kwargs (`dict[str, Any]`, *optional*):
            Keyword arguments for [`~transformers.AutoModelForCausalLM.from_pretrained`], if `grm` is a path or name,
            such as `{"quantization_config": {"load_in_4bit": True}}`. The dtype is the policy's if unset. They have no
            effect on an adapter that shares the policy's base model.
        grm_batch_size (`int`, *optional*, defaults to `16`):
            Number of completions that the reward model scores or rewrites at a time.
        allow_untrained_grm (`bool`, *optional*, defaults to `False`):
            Whether `grm` may be a model that was not trained as a generative reward model, such as an instruct model
            that only reads the reference.
        sync_grm (`bool`, *optional*, defaults to `False`):
            Whether the reward model follows the policy: every `ref_model_sync_steps` steps it moves towards it by
            `ref_model_mixup_alpha`. It needs the policy's architecture.

        > Parameters that control when training stops

        stop_on_nonfinite (`bool`, *optional*, defaults to `True`):
            Whether to stop with an error where the loss, or the gradient norm of an optimizer step, is NaN or
            infinite, before the weights change. An evaluation whose loss is NaN or infinite stops too.
    """

    # Parameters that control the token credit
    token_credit: str = field(
        default="add",
        metadata={
            "help": "What the policy term makes of the outcome's advantage A and the token rewards: `'outcome'`, A on "
            "each token, as in GRPO; `'add'`, their sum; `'place'`, A on the first flagged token of an incorrect "
            "completion, and on the tokens before the first flagged one of a correct one; `'scale'`, A with weights "
            "from the token rewards that are 1 on average; `'none'`, no policy term.",
            "choices": ["outcome", "add", "place", "scale", "none"],
        },
    )
    token_reward_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "Weight of each of the `token_reward_funcs`, and of the generative reward model as the last, if "
            "there is one. All are 1 if unset."
        },
    )
    reward_baseline: float = field(
        default=0.5,
        metadata={
            "help": "Probability under the generative reward model at which a token's reward is zero. A token below "
            "it is flagged."
        },
    )
    positive_reward_range: list[float] = field(
        default_factory=lambda: [0.0, 0.5],
        metadata={
            "help": "Lower and upper bound of the reward model's token rewards in correct completions, with "
            "`token_credit='add'`."
        },
    )
    negative_reward_range: list[float] = field(
        default_factory=lambda: [-0.1, 0.0],
        metadata={
            "help": "Lower and upper bound of the reward model's token rewards in incorrect completions, with "
            "`token_credit='add'`."
        },
    )
    negative_credit: str = field(
        default="all",
        metadata={
            "help": "Which tokens of a completion keep a negative reward of the reward model, with "
            "`token_credit='add'`: `'all'`, or `'first_error'` for only the first of them.",
            "choices": ["all", "first_error"],
        },
    )
    correct_reward: float = field(
        default=1.0,
        metadata={"help": "A completion is correct if the first reward function gives it at least this reward."},
    )

    # Parameters that control the imitation term
    imitation_coef: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the imitation of rewrites. With `0.0`, nothing is rewritten. Without a generative "
            "reward model or a replay dataset, there is nothing to imitate."
        },
    )
    edited_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the edited tokens of a rewrite, those that the minimum edit script changes."},
    )
    unedited_weight: float = field(
        default=0.5,
        metadata={"help": "Weight of the other tokens of a rewrite."},
    )
    rewrite_samples: str = field(
        default="wrong",
        metadata={
            "help": "Which completions are rewritten and imitated: the incorrect ones (`'wrong'`) or `'all'`, since a "
            "correct answer may hide incorrect steps.",
            "choices": ["wrong", "all"],
        },
    )
    rewrite_max_new_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of tokens that a rewrite may add to the steps it keeps. `max_completion_length` "
            "if unset."
        },
    )
    replay_fraction: float = field(
        default=0.5,
        metadata={"help": "Number of rows of the replay dataset whose rewrites are imitated, for each completion."},
    )

    # Parameters that control distillation on the completions
    attempt_coef: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the divergence from the generative reward model's next-token distribution on the "
            "completions, up to and including the first flagged token."
        },
    )
    attempt_loss: str = field(
        default="reverse_kl",
        metadata={
            "help": "That divergence: `'reverse_kl'`, KL(policy || reward model), or `'cross_entropy'` of the policy "
            "under the reward model's distribution.",
            "choices": ["reverse_kl", "cross_entropy"],
        },
    )

    # Parameters that control the generative reward model
    grm_revision: str = field(
        default="main",
        metadata={"help": "Revision on the Hub, if `grm` is a name."},
    )
    grm_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Keyword arguments for `AutoModelForCausalLM.from_pretrained`, if `grm` is a path or name. The "
            "dtype is the policy's if unset."
        },
    )
    grm_batch_size: int = field(
        default=16,
        metadata={"help": "Number of completions that the reward model scores or rewrites at a time."},
    )
    allow_untrained_grm: bool = field(
        default=False,
        metadata={
            "help": "Whether `grm` may be a model that was not trained as a generative reward model, such as an "
            "instruct model that only reads the reference."
        },
    )
    sync_grm: bool = field(
        default=False,
        metadata={
            "help": "Whether the reward model follows the policy: every `ref_model_sync_steps` steps it moves towards "
            "it by `ref_model_mixup_alpha`. It needs the policy's architecture."
        },
    )

    # Parameters that control when training stops
    stop_on_nonfinite: bool = field(
        default=True,
        metadata={
            "help": "Whether to stop with an error where the loss, or the gradient norm of an optimizer step, is NaN "
            "or infinite, before the weights change."
        },
    )

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "grm_init_kwargs"]

    def __post_init__(self):
        check_config(self)
        super().__post_init__()
        check_reward_ranges(self)
        self._check_grm_init_kwargs()
        if self.imitation_coef > 0 and self.edited_weight == 0 and self.unedited_weight == 0:
            raise ConfigError(
                "`edited_weight` and `unedited_weight` are both 0, so nothing would be imitated. Set one of them, or "
                "`imitation_coef=0`."
            )
        if self.token_credit == "none" and self.imitation_coef == 0 and self.attempt_coef == 0:
            raise ConfigError(
                "`token_credit='none'` with `imitation_coef` and `attempt_coef` 0 leaves nothing to train on."
            )

    def _check_grm_init_kwargs(self) -> None:
        if self.grm_init_kwargs is None:
            return
        if not isinstance(self.grm_init_kwargs, dict):
            raise ConfigError(
                "`grm_init_kwargs` must be a dictionary, on the command line a JSON object, got "
                f"{self.grm_init_kwargs!r}."
            )
        for name, field_name in (("revision", "grm_revision"), ("trust_remote_code", "trust_remote_code")):
            if name in self.grm_init_kwargs:
                raise ConfigError(f"`grm_init_kwargs` cannot have `{name}`. Set the field `{field_name}`.")
        for name in ("load_in_4bit", "load_in_8bit"):
            if name in self.grm_init_kwargs:
                raise ConfigError(
                    f"`grm_init_kwargs` has `{name}`, which belongs to the quantization: pass "
                    f'{{"quantization_config": {{"{name}": true}}}}.'
                )

    def to_dict(self) -> dict[str, Any]:
        settings = super().to_dict()
        quantization = (settings["grm_init_kwargs"] or {}).get("quantization_config")
        if isinstance(quantization, QuantizationConfigMixin):  # as Transformers does it for `model_init_kwargs`
            settings["grm_init_kwargs"] = settings["grm_init_kwargs"] | {"quantization_config": quantization.to_dict()}
        return settings
