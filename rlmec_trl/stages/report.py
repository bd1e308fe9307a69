"""Scored samples as one HTML file, for people to look at."""

from dataclasses import dataclass, field
from pathlib import PurePath

from trl import ModelConfig

from ..data.checks import check_config, check_reward_ranges
from ..data.loading import load_rows
from ..generation.loading import load_tokenizer
from ..reports.html_report import is_report, paper_settings, write_html
from .output import claim_own_file, writing


@dataclass
class ReportConfig:
    r"""
    Settings of the report stage.

    Parameters:
        dataset_name (`str`):
            Scored samples, as the score stage writes them.
        tokenizer (`str`):
            Path or Hub name of the policy's tokenizer.
        output_file (`str`):
            HTML file to write.
        other_dataset_name (`str`, *optional*):
            The same samples, or some of them, scored by another reward model, to be shown side by side.
        title (`str`, *optional*):
            Title of the page. By default the name of the dataset.
        max_rows (`int`, *optional*):
            Number of rows to show, from the start. All by default.
        reward_baseline (`float`, *optional*, defaults to `0.5`):
            As in [`~rlmec_trl.RLMECConfig`], like all that follow: probability at which a token's reward is zero. A
            token below it is flagged.
        positive_reward_range (`list[float]`, *optional*, defaults to `[0.0, 0.5]`):
            Lower and upper bound of the token rewards of correct samples.
        negative_reward_range (`list[float]`, *optional*, defaults to `[-0.1, 0.0]`):
            Lower and upper bound of the token rewards of incorrect samples.
        negative_credit (`str`, *optional*, defaults to `"all"`):
            Which tokens of a sample keep a negative reward: `"all"`, or `"first_error"` for only the first of them.
        edited_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the edited tokens of the rewrite.
        unedited_weight (`float`, *optional*, defaults to `0.5`):
            Weight of the other tokens of the rewrite.
    """

    dataset_name: str = field(metadata={"help": "Scored samples, as `score.py` writes them."})
    tokenizer: str = field(metadata={"help": "Path or Hub name of the policy's tokenizer."})
    output_file: str = field(metadata={"help": "HTML file to write."})
    other_dataset_name: str | None = field(
        default=None,
        metadata={"help": "The same samples, scored by another reward model, to be shown side by side."},
    )
    title: str | None = field(
        default=None, metadata={"help": "Title of the page. By default the name of the dataset."}
    )
    max_rows: int | None = field(
        default=None, metadata={"help": "Number of rows to show, from the start. All by default."}
    )
    reward_baseline: float = field(
        default=0.5,
        metadata={"help": "Probability at which a token's reward is zero. A token below it is flagged."},
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
    edited_weight: float = field(default=1.0, metadata={"help": "Weight of the edited tokens of the rewrite."})
    unedited_weight: float = field(default=0.5, metadata={"help": "Weight of the other tokens of the rewrite."})

    def __post_init__(self):
        check_config(self)
        check_reward_ranges(self)


def run(config: ReportConfig) -> str:
    """
    Write the report.

    Args:
        config ([`ReportConfig`]):
            The rows and what makes rewards of them.

    Returns:
        `str`: The path of the HTML file.

    Raises:
        [`~rlmec_trl.data.errors.DatasetError`]: If a row breaks the contract of its columns, or the two datasets have
            no sample in common.
        [`~rlmec_trl.stages.output.OutputError`]: If `output_file` is a file of something else.
    """
    with claim_own_file(config.output_file, is_report):
        tokenizer = load_tokenizer(ModelConfig(config.tokenizer))
        rows = load_rows(config.dataset_name, max_rows=config.max_rows)
        other = None if config.other_dataset_name is None else load_rows(config.other_dataset_name)
        names = short_names(config.dataset_name, config.other_dataset_name)
        settings = paper_settings(
            reward_baseline=config.reward_baseline,
            positive_reward_range=tuple(config.positive_reward_range),
            negative_reward_range=tuple(config.negative_reward_range),
            negative_credit=config.negative_credit,
            edited_weight=config.edited_weight,
            unedited_weight=config.unedited_weight,
        )
        title = " and ".join(names) if config.title is None else config.title
        with writing(config.output_file):
            write_html(config.output_file, rows, tokenizer, settings, other=other, names=names, title=title)
    return str(config.output_file)


def short_names(*paths: str | None) -> list[str]:
    """The last parts of paths or Hub names, as many as they need to differ: a page has no folders of a machine."""
    parts = [PurePath(path).parts for path in paths if path is not None]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(of_path[-length:]) for of_path in parts]
        if len(set(names)) == len(names):
            break
    return names
