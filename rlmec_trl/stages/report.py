"""Scored samples as one HTML file, for people to look at."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

from ..data.checks import check_config, check_reward_ranges
from ..data.errors import ConfigError
from ..data.loading import load_rows
from ..generation.loading import load_tokenizer
from ..reports.chart_data import scored_charts
from ..reports.html_report import is_report, paper_settings, write_html
from ..reports.run_charts import run_charts
from ..tasks.task import load_task
from .judgements import judge_scores
from .output import claim_own_file, writing
from .run_logs import read_runs
from .summary import print_summary, timed


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
        task (`str`, *optional*):
            Built-in task, `package.module:NAME` or `path/to/file.py:NAME`. If it can check steps, the charts include
            calibration and ROC of the reward models.
        runs (`list[str]`, *optional*):
            Trainings to compare in charts, each as `name=folder`. `name=folder,folder,result.json` counts the
            completions of the datasets that the training read, and adds results of the evaluate stage.
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
    task: str | None = field(
        default=None,
        metadata={
            "help": "Built-in task, `package.module:NAME` or `path/to/file.py:NAME`. If it can check steps, the "
            "charts include calibration and ROC of the reward models."
        },
    )
    runs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Trainings to compare in charts, each as `name=folder`, or as `name=folder,folder,result.json` "
            "with the datasets that it read before it and results of `evaluate.py`."
        },
    )

    def __post_init__(self):
        check_config(self)
        check_reward_ranges(self)


@timed
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
        [`~rlmec_trl.data.errors.ConfigError`]: If a run is not written as above, or has no logs.
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
        scored = dict(zip(names, (rows,) if other is None else (rows, other), strict=True))
        charts = make_charts(config, scored, tokenizer)
        with writing(config.output_file):
            write_html(
                config.output_file, rows, tokenizer, settings, other=other, names=names, title=title, charts=charts
            )
        print_summary(f"Report of {len(rows):,} samples, to open in a browser.", config.output_file)
    return str(config.output_file)


def make_charts(
    config: ReportConfig, scored: dict[str, Dataset], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """Charts of the scored samples by their names, and of the trainings that the settings name."""
    judged = {}
    if config.task is not None:
        task = load_task(config.task)
        judged = {name: judge_scores(rows, task, tokenizer) for name, rows in scored.items()}
    judged = {name: judgements for name, judgements in judged.items() if judgements is not None}
    charts = scored_charts(scored, judged, config.reward_baseline)
    return charts if config.runs is None else charts + run_charts(read_runs(parse_runs(config.runs)))


def parse_runs(runs: Sequence[str]) -> dict[str, list[str]]:
    """
    The paths of each run by its name.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If a run has no name or no path, or two have the same name.
    """
    parsed = {}
    for run in runs:
        name, _, paths = run.partition("=")
        if not name or not all(paths.split(",")):
            raise ConfigError(f"`runs`: found {run!r}. Write a run as `name=folder` or `name=folder,result.json`.")
        if name in parsed:
            raise ConfigError(f"`runs`: two runs are named {name!r}. Give each its own name.")
        parsed[name] = paths.split(",")
    return parsed


def short_names(*paths: str | None) -> list[str]:
    """The last parts of paths or Hub names, as many as they need to differ: a page has no folders of a machine."""
    parts = [PurePath(path).parts for path in paths if path is not None]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(of_path[-length:]) for of_path in parts]
        if len(set(names)) == len(names):
            break
    return names
