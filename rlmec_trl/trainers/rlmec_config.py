"""Configuration of the offline RLMEC trainer."""

from dataclasses import dataclass, field

from trl import SFTConfig

from ..data.checks import check_config, check_reward_ranges
from ..data.errors import ConfigError


@dataclass
class RLMECConfig(SFTConfig):
    r"""
    Configuration class for the [`RLMECTrainer`].

    This class includes only the parameters that are specific to RLMEC
    (https://huggingface.co/papers/2401.06081). For the others, refer to [`~trl.SFTConfig`] and
    [`~transformers.TrainingArguments`]. The defaults are the paper's.

    Parameters:
        > Parameters that control the token rewards

        reward_baseline (`float`, *optional*, defaults to `0.5`):
            Probability under the generative reward model at which a token's reward is zero. A token below it is
            flagged.
        positive_reward_range (`list[float]`, *optional*, defaults to `[0.0, 0.5]`):
            Lower and upper bound of the token rewards of correct samples.
        negative_reward_range (`list[float]`, *optional*, defaults to `[-0.1, 0.0]`):
            Lower and upper bound of the token rewards of incorrect samples.
        negative_credit (`str`, *optional*, defaults to `"all"`):
            Which tokens of a sample keep a negative reward: `"all"`, or `"first_error"` for only the first of them,
            since the reward model was not trained on prefixes that already contain an error.

        > Parameters that control the policy term

        policy_coef (`float`, *optional*, defaults to `1.0`):
            Weight of the policy term. With `0.0`, sampled completions do not go through the model unless they are
            imitated or distilled.
        loss_type (`str`, *optional*, defaults to `"rlmec"`):
            `"rlmec"` weights the gradient of the log-probability by the clipped ratio, as in the paper; `"ppo"`
            computes the gradient through the ratio, so that clipped tokens get none.
        epsilon (`float`, *optional*, defaults to `0.3`):
            Half-width of the clipping range of the importance ratio.
        normalize_by (`str`, *optional*, defaults to `"active_tokens"`):
            What the policy term is divided by, counted over the whole optimizer step: `"active_tokens"`, the tokens
            with a nonzero reward, or `"completion_tokens"`, all tokens of the sampled completions.

        > Parameters that control the imitation term

        imitation_coef (`float`, *optional*, defaults to `1.0`):
            Weight of the imitation term (lambda in the paper). With `0.0`, rewrites do not go through the model.
        edited_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the edited tokens of the rewrite, those that the minimum edit script changes.
        unedited_weight (`float`, *optional*, defaults to `0.5`):
            Weight of the other tokens of the rewrite.
        correct_samples (`str`, *optional*, defaults to `"keep"`):
            What is imitated where a sample's answer is correct: `"keep"`, the sample itself; `"cut"`, the sample up
            to its first flagged token; `"rewrite"`, the rewrite, since a correct answer may hide incorrect steps.
        truncated_rewrites (`str`, *optional*, defaults to `"drop"`):
            What to do with rewrites, and with samples imitated as they are, that `max_length` truncates: `"drop"`
            leaves them out of the imitation term, because a target without EOS teaches the policy not to stop;
            `"keep"` imitates what is left. The policy term uses the tokens within `max_length` either way.
        imitation_targets (`str`, *optional*, defaults to `"hard"`):
            `"hard"` imitates the tokens of the rewrite; `"soft"` imitates the reward model's distribution at each of
            them, from the columns `rewrite_topk_ids` and `rewrite_topk_logps`.
        imitation_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of the soft targets.
        imitation_label_smoothing (`float`, *optional*, defaults to `0.0`):
            Fraction of every imitation target that is spread evenly over the vocabulary.

        > Parameters that control the distillation on the attempt

        attempt_coef (`float`, *optional*, defaults to `0.0`):
            Weight of the cross-entropy to the reward model's distribution at each token of the sampled completion, up
            to and including the first flagged one, from the columns `attempt_topk_ids` and `attempt_topk_logps`. It
            needs no rewrite, and correct samples are distilled too. The stored probabilities are renormalized, at
            temperature 1 and without smoothing. The reverse KL divergence needs the whole distribution, which only
            [`OnlineRLMECTrainer`] has.

        > Parameters that control when training stops

        stop_on_nonfinite (`bool`, *optional*, defaults to `True`):
            Whether to stop with an error where the loss, or the gradient norm of an optimizer step, is NaN or
            infinite, before the weights change. The error names the step and the rows. An evaluation whose loss is NaN
            or infinite stops too. If `False`, training goes on as `Trainer` does, and an evaluation reports that loss.

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`]:
    > - `loss_type`: Defaults to `"rlmec"` instead of `"nll"`.
    """

    # Parameters that control the token rewards
    reward_baseline: float = field(
        default=0.5,
        metadata={
            "help": "Probability under the generative reward model at which a token's reward is zero. A token below "
            "it is flagged."
        },
    )
    positive_reward_range: list[float] = field(
        default_factory=lambda: [0.0, 0.5],
        metadata={"help": "Lower and upper bound of the token rewards of correct samples."},
    )
    negative_reward_range: list[float] = field(
        default_factory=lambda: [-0.1, 0.0],
        metadata={"help": "Lower and upper bound of the token rewards of incorrect samples."},
    )
    negative_credit: str = field(
        default="all",
        metadata={
            "help": "Which tokens of a sample keep a negative reward: `'all'`, or `'first_error'` for only the first "
            "of them.",
            "choices": ["all", "first_error"],
        },
    )

    # Parameters that control the policy term
    policy_coef: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the policy term. With `0.0`, sampled completions do not go through the model unless "
            "they are imitated or distilled."
        },
    )
    loss_type: str = field(
        default="rlmec",
        metadata={
            "help": "`'rlmec'` weights the gradient of the log-probability by the clipped ratio, as in the paper; "
            "`'ppo'` computes the gradient through the ratio, so that clipped tokens get none.",
            "choices": ["rlmec", "ppo"],
        },
    )
    epsilon: float = field(
        default=0.3,
        metadata={"help": "Half-width of the clipping range of the importance ratio."},
    )
    normalize_by: str = field(
        default="active_tokens",
        metadata={
            "help": "What the policy term is divided by, counted over the whole optimizer step: `'active_tokens'`, "
            "the tokens with a nonzero reward, or `'completion_tokens'`, all tokens of the sampled "
            "completions.",
            "choices": ["active_tokens", "completion_tokens"],
        },
    )

    # Parameters that control the imitation term
    imitation_coef: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the imitation term (lambda in the paper). With `0.0`, rewrites do not go through the "
            "model."
        },
    )
    edited_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the edited tokens of the rewrite, those that the minimum edit script changes."},
    )
    unedited_weight: float = field(
        default=0.5,
        metadata={"help": "Weight of the other tokens of the rewrite."},
    )
    correct_samples: str = field(
        default="keep",
        metadata={
            "help": "What is imitated where a sample's answer is correct: `'keep'`, the sample itself; `'cut'`, the "
            "sample up to its first flagged token; `'rewrite'`, the rewrite.",
            "choices": ["keep", "cut", "rewrite"],
        },
    )
    truncated_rewrites: str = field(
        default="drop",
        metadata={
            "help": "What to do with rewrites, and with samples imitated as they are, that `max_length` truncates: "
            "`'drop'` leaves them out of the imitation term, because a target without EOS teaches the policy not to "
            "stop; `'keep'` imitates what is left.",
            "choices": ["drop", "keep"],
        },
    )
    imitation_targets: str = field(
        default="hard",
        metadata={
            "help": "`'hard'` imitates the tokens of the rewrite; `'soft'` imitates the reward model's distribution "
            "at each of them, from the columns `rewrite_topk_ids` and `rewrite_topk_logps`.",
            "choices": ["hard", "soft"],
        },
    )
    imitation_temperature: float = field(
        default=1.0,
        metadata={"help": "Temperature of the soft targets."},
    )
    imitation_label_smoothing: float = field(
        default=0.0,
        metadata={"help": "Fraction of every imitation target that is spread evenly over the vocabulary."},
    )

    # Parameters that control the distillation on the attempt
    attempt_coef: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the cross-entropy to the reward model's distribution at each token of the sampled "
            "completion, up to and including the first flagged one, from the columns `attempt_topk_ids` and "
            "`attempt_topk_logps`."
        },
    )

    # Parameters that control when training stops
    stop_on_nonfinite: bool = field(
        default=True,
        metadata={
            "help": "Whether to stop with an error where the loss, or the gradient norm of an optimizer step, is NaN "
            "or infinite, before the weights change. The error names the step and the rows. An evaluation whose loss "
            "is NaN or infinite stops too; if false, it reports that loss."
        },
    )

    def __post_init__(self):
        check_config(self)
        super().__post_init__()
        check_reward_ranges(self)
        if self.policy_coef == 0 and self.imitation_coef == 0 and self.attempt_coef == 0:
            raise ConfigError(
                "`policy_coef`, `imitation_coef` and `attempt_coef` are all 0, so there is nothing to train on."
            )
