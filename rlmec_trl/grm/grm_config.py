"""Configuration of `GRMTrainer`."""

from dataclasses import dataclass, field

from trl import SFTConfig

from ..data.checks import check_config


@dataclass
class GRMConfig(SFTConfig):
    r"""
    Configuration class for the [`GRMTrainer`].

    This class includes only the parameters that are specific to training a generative reward model
    (https://huggingface.co/papers/2401.06081). For the others, refer to [`~trl.SFTConfig`] and
    [`~transformers.TrainingArguments`].

    Parameters:
        > Parameters that control the mixture of tasks

        locate_fraction (`float`, *optional*, defaults to `1.0`):
            Fraction of the attempts that also train the model to locate the first incorrect step. With `0.0`, it only
            learns to rewrite.
        max_correct_ratio (`float`, *optional*):
            Maximum number of correct attempts, which the model learns to copy, per incorrect one. If `None`, all are
            kept.

        > Parameters that control when training stops

        stop_on_nonfinite (`bool`, *optional*, defaults to `True`):
            Whether to stop with an error where the loss, or the gradient norm of an optimizer step, is NaN or
            infinite, before the weights change. The error names the step and the rows. An evaluation whose loss is NaN
            or infinite stops too. If `False`, training goes on as `Trainer` does, and an evaluation reports that loss.

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`]:
    > - `max_length`: Defaults to `2048` instead of `1024`, because a prompt contains problem, reference and attempt.
    """

    max_length: int | None = field(
        default=2048,
        metadata={
            "help": "Maximum length of the tokenized sequence. Sequences longer than `max_length` are truncated from "
            "the right. If `None`, no truncation is applied."
        },
    )
    locate_fraction: float = field(
        default=1.0,
        metadata={
            "help": "Fraction of the attempts that also train the model to locate the first incorrect step. With "
            "`0.0`, it only learns to rewrite."
        },
    )
    max_correct_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Maximum number of correct attempts, which the model learns to copy, per incorrect one. If "
            "`None`, all are kept."
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
