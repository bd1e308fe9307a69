"""Configuration of `LabelRewardTrainer`."""

from dataclasses import dataclass, field

from trl import RewardConfig

from ..data.checks import check_config


@dataclass
class LabelRewardConfig(RewardConfig):
    r"""
    Configuration class for the [`LabelRewardTrainer`].

    This class includes only the parameters that are specific to training on label-sensitive pairs
    (https://huggingface.co/papers/2405.19763). For the others, refer to [`~trl.RewardConfig`] and
    [`~transformers.TrainingArguments`].

    Parameters:
        > Parameters that control the loss

        loss_type (`str`, *optional*, defaults to `"divergent_tokens"`):
            Where the two responses of a pair are compared: `"divergent_tokens"`, at each token from the first one that
            differs, with the mean over these tokens as the pair's loss; `"last_token"`, at their last tokens, as in
            [`~trl.RewardTrainer`].
        pair_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature that divides the difference of two values in the loss.
        use_pad_values (`bool`, *optional*, defaults to `False`):
            Whether `"divergent_tokens"` reads the values at padding tokens past the end of the shorter response, as in
            the code that was released with the paper. By default, the shorter response's last value is repeated.

        > Parameters that control when training stops

        stop_on_nonfinite (`bool`, *optional*, defaults to `True`):
            Whether to stop with an error where the loss, or the gradient norm of an optimizer step, is NaN or
            infinite, before the weights change. The error names the step and the rows. An evaluation whose loss is NaN
            or infinite stops too. If `False`, training goes on as `Trainer` does, and an evaluation reports that loss.
    """

    loss_type: str = field(
        default="divergent_tokens",
        metadata={
            "help": "Where the two responses of a pair are compared: `'divergent_tokens'`, at each token from the "
            "first one that differs, with the mean over these tokens as the pair's loss; `'last_token'`, at their "
            "last tokens, as in `RewardTrainer`.",
            "choices": ["divergent_tokens", "last_token"],
        },
    )
    pair_temperature: float = field(
        default=1.0,
        metadata={"help": "Temperature that divides the difference of two values in the loss."},
    )
    use_pad_values: bool = field(
        default=False,
        metadata={
            "help": "Whether `'divergent_tokens'` reads the values at padding tokens past the end of the shorter "
            "response, as in the code that was released with the paper. By default, the shorter response's last value "
            "is repeated."
        },
    )
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
