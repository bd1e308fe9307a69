"""The pairs stage: responses to the same problem as pairs for a reward model, in TRL's preference format."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from datasets import Dataset, Features, Json, Value

from ..credit.paper import RLLR_PAPER
from ..data.checks import check_config
from ..data.errors import ConfigError
from ..data.loading import load_rows
from ..data.messages import is_conversational
from ..data.schema import column_features
from ..generation.processes import gather_counts
from ..generation.server import ServerConfig
from ..tasks.task import Task, load_task, source_hash
from ..teachers.api.config import TeacherConfig
from ..teachers.api.journaled_teacher import JournaledTeacher
from ..teachers.raters import JournaledRater, NoRating, Rater, Rating, TaskRater, load_rater, rate_responses
from .confusable import problem_key
from .dataset_cards import DatasetFacts, card_settings, prompts_of, teacher_of
from .keys import config_key, function_key, task_key
from .output import check_not_input, check_path
from .pairing import Responses, label_pairs, rationale_pairs
from .publishing import DatasetPublisher, PublishConfig
from .rationales import check_labels
from .responses import TEMPLATE_KWARGS, gather_problems
from .runner import EmptyResultError, map_shards
from .summary import print_summary, timed
from .through_journal import check_local, describe_outcomes, work_through_journal


@dataclass
class PairsConfig:
    r"""
    Settings of the pairs stage.

    Parameters:
        dataset_names (`list[str]`):
            Where the responses are: rationales, as the rationales stage writes them, samples of the policy, as the
            sample stage does, or several of these.
        output_dir (`str`):
            Folder to save the pairs to.
        task (`str`):
            A task with labels: a built-in one, `package.module:NAME` or `path/to/file.py:NAME`.
        kind (`str`, *optional*, defaults to `"label"`):
            Label-sensitive pairs, of the correct label over a wrong one (`"label"`), rationale-sensitive pairs, of the
            better over the worse rationale for the same label (`"rationale"`), or `"both"`.
        rejected_labels (`str`, *optional*, defaults to `"all"`):
            Wrong labels of label-sensitive pairs: `"all"`, or the one that the samples state most often for the
            problem (`"confusable"`).
        rater (`str`, *optional*):
            What ranks the rationales: `task` for the task's own check, a function of your own as
            `package.module:NAME` or `path/to/file.py:NAME`, or with `provider` the name of a model.
        provider (`str`, *optional*, defaults to `"local"`):
            Where the rater runs: `"local"`, in this process; `"anthropic"`; or `"server"`, behind an
            OpenAI-compatible server.
        max_pairs (`int`, *optional*, defaults to `4`):
            Number of pairs of each kind for a problem.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the choice where there are more.
        dataset_split (`str`, *optional*, defaults to `"train"`):
            Split of datasets on the Hub.
        max_problems (`int`, *optional*):
            Number of problems to take from the start.
        shard_size (`int`, *optional*, defaults to `500`):
            Number of problems between two saves of a local rater.
        journal_dir (`str`, *optional*):
            Folder of the answers of an API teacher. `<output_dir>-journal` if unset.
        dry_run (`bool`, *optional*, defaults to `False`):
            Whether to print what an API teacher would cost, and request nothing.
    """

    dataset_names: list[str] = field(
        metadata={
            "help": "Rationales, samples of the policy, or several of these, as `rationales.py` and `sample.py` "
            "write them."
        }
    )
    output_dir: str = field(metadata={"help": "Folder to save the pairs to."})
    task: str = field(
        metadata={"help": "Task with labels: a built-in one, `package.module:NAME` or `path/to/file.py:NAME`."}
    )
    kind: str = field(
        default="label",
        metadata={
            "help": "Pairs of the correct label over a wrong one (`label`), of the better over the worse rationale "
            "for the same label (`rationale`), or `both`.",
            "choices": ["label", "rationale", "both"],
        },
    )
    rejected_labels: str = field(
        default="all",
        metadata={
            "help": "Wrong labels of label-sensitive pairs: `all`, or the one that the samples state most often for "
            "the problem (`confusable`).",
            "choices": ["all", "confusable"],
        },
    )
    rater: str | None = field(
        default=None,
        metadata={
            "help": "What ranks the rationales: `task` for the task's own check, a function of your own as "
            "`package.module:NAME` or `path/to/file.py:NAME`, or with `provider` the name of a model.",
        },
    )
    provider: str = field(
        default="local",
        metadata={
            "help": "Where the rater runs: in this process (`local`), at Anthropic (`anthropic`), or behind an "
            "OpenAI-compatible server (`server`).",
            "choices": ["local", "anthropic", "server"],
        },
    )
    max_pairs: int | None = field(default=4, metadata={"help": "Number of pairs of each kind for a problem."})
    seed: int = field(default=0, metadata={"help": "Seed of the choice where there are more."})
    dataset_split: str = field(default="train", metadata={"help": "Split of datasets on the Hub."})
    max_problems: int | None = field(default=None, metadata={"help": "Number of problems to take from the start."})
    shard_size: int = field(default=500, metadata={"help": "Number of problems between two saves of a local rater."})
    journal_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of the answers of an API teacher. `<output_dir>-journal` if unset."},
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Whether to print what an API teacher would cost, and request nothing."},
    )

    # How each field enters the key of a result (see `stages/keys.py`)
    key_parts: ClassVar[dict[str, str]] = {
        "dataset_names": "content",
        "output_dir": "none",
        "task": "content",
        "kind": "value",
        "rejected_labels": "content",
        "rater": "content",
        "provider": "none",
        "max_pairs": "value",
        "seed": "value",
        "dataset_split": "content",
        "max_problems": "content",
        "shard_size": "none",
        "journal_dir": "none",
        "dry_run": "none",
    }

    def __post_init__(self):
        check_config(self)


@timed
def run(
    config: PairsConfig,
    teacher_config: TeacherConfig | None = None,
    server_config: ServerConfig | None = None,
    publish_config: PublishConfig | None = None,
) -> Dataset | None:
    """
    Make pairs of responses, and save them. Re-running resumes.

    Args:
        config ([`PairsConfig`]):
            The responses, and which pairs to make of them.
        teacher_config ([`~rlmec_trl.teachers.api.config.TeacherConfig`], *optional*):
            Requests and cost limit of an API teacher that rates.
        server_config ([`~rlmec_trl.generation.server.ServerConfig`], *optional*):
            How an API is reached.
        publish_config ([`~rlmec_trl.stages.publishing.PublishConfig`], *optional*):
            Whether and where to publish the rows. They are not by default.

    Returns:
        [`~datasets.Dataset`]: One row a pair: `prompt`, `chosen` and `rejected` in TRL's preference format, `kind`
        (`"label"` or `"rationale"`), `chosen_label`, `rejected_label`, `answer` and, where the responses have it,
        `chat_template_kwargs`. `None` after a dry run.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If settings contradict each other, or the task has no labels.
        [`~rlmec_trl.stages.runner.EmptyResultError`]: If there is no pair. An earlier result stays.
        [`~rlmec_trl.stages.output.OutputError`]: If `output_dir` cannot be replaced, or another run is writing to it.
        [`~rlmec_trl.teachers.api.errors.TeacherError`]: If an API teacher cannot be used.
        [`~rlmec_trl.teachers.raters.RaterError`]: If a rater does not return a rating for each response.
        [`~rlmec_trl.data.schema.DatasetError`]: If a row breaks the contract of its columns.
        [`~rlmec_trl.stages.publishing.PublishError`]: If the rows cannot be published. What was saved stays.
    """
    teacher_config, server_config = teacher_config or TeacherConfig(), server_config or ServerConfig()
    check_path(config.output_dir)
    _check_rater(config)
    task = load_task(config.task)
    check_labels(task)
    if config.provider == "local":
        check_local(config, server_config)
        rater, rater_key = _load_rater(config, task)
    publisher = DatasetPublisher(None if config.dry_run else publish_config, config.output_dir)
    inputs = {name: load_rows(name, config.dataset_split) for name in config.dataset_names}
    for dataset in inputs.values():
        check_not_input(config.output_dir, dataset)
    problems, left_out = gather_problems(inputs, task, config.rejected_labels, config.max_problems)
    check = partial(_check_not_empty, config, problems, left_out)
    if len(problems) == 0:
        check(problems)
    if config.provider == "local":
        pairs, outcomes = _pair_here(problems, task, config, rater, rater_key, check)
    else:
        pairs, outcomes = _pair_by_api(
            problems, task, config, teacher_config, server_config, list(inputs.values()), check
        )
        if pairs is None:
            return None
    counts = Counter(pairs["kind"])
    made = " and ".join(f"{counts[kind]:,} {kind} pairs" for kind in _kinds(config))
    print_summary(
        f"{made} of {len(problems):,} problems ({_describe(outcomes, config)}; responses left out: "
        f"{describe_outcomes(left_out) or 'none'}).",
        config.output_dir,
        "train-label-reward --dataset_name",
    )
    facts = DatasetFacts(
        "pairs",
        "Pairs of responses to the same problem, a better one and a worse one, in TRL's preference format.",
        {
            **(teacher_of(config.rater, config.provider, "rater") if config.rater is not None else {}),
            "task": config.task,
            **{f"responses {number}": name for number, name in enumerate(config.dataset_names, 1)},
        },
        card_settings(config),
        prompts_of(task.wording, "rate") if config.provider != "local" else {},
        RLLR_PAPER,
    )
    publisher.publish(pairs, facts)
    return pairs


def _check_rater(config: PairsConfig) -> None:
    if not config.dataset_names:
        raise ConfigError("`dataset_names` is empty: name rationales, samples of the policy, or several of these.")
    if config.kind != "label" and config.rater is None:
        raise ConfigError(
            "Rationale-sensitive pairs need a rater: name one with `--rater`, or make only `--kind label`."
        )
    if config.kind == "label" and (config.rater is not None or config.provider != "local"):
        raise ConfigError(
            "`--rater` and `--provider` are for rationale-sensitive pairs: set `--kind rationale` or `both`."
        )


def _kinds(config: PairsConfig) -> list[str]:
    return ["label", "rationale"] if config.kind == "both" else [config.kind]


def _load_rater(config: PairsConfig, task: Task) -> tuple[Rater | None, Any]:
    """A rater in this process, and its part of the key."""
    if config.rater is None:
        return None, None
    if config.rater == "task":
        if task.rate is None:
            raise ConfigError(f"Task '{task.name}' does not rate rationales: name another rater with `--rater`.")
        return TaskRater(task), function_key(task.rate)
    if ":" not in config.rater:
        raise ConfigError(
            f"There is no rater {config.rater!r}. Name `task`, `package.module:NAME` or `path/to/file.py:NAME`, or "
            "set `--provider` for a model."
        )
    rater = load_rater(config.rater)
    return rater, [function_key(rater), source_hash(config.rater)]


def _responses_of(problems: Dataset) -> list[Responses]:
    return [Responses(*row) for row in zip(problems["responses"], problems["labels"], strict=True)]


def _to_rate(problems: Dataset, task: Task) -> tuple[list[str], list[str], list[tuple[int, int]]]:
    """The problem and the response of everything to rate, and the index of each."""
    texts = [task.raw_problem(prompt) for prompt in problems["prompt"]]
    responses = _responses_of(problems)
    places = [(index, number) for index, each in enumerate(responses) for number in each.to_rate()]
    return [texts[index] for index, _ in places], [responses[index].texts[number] for index, number in places], places


def _describe(outcomes: Counter[str], config: PairsConfig) -> str:
    """The number of problems by outcome for each kind of pairs, and of the responses that could not be rated."""
    parts, unrated = [], Counter(outcomes)
    for kind in _kinds(config):
        prefix = f"{kind}, "
        own = Counter({name.removeprefix(prefix): unrated.pop(name) for name in outcomes if name.startswith(prefix)})
        if own:
            parts.append(f"now for {kind} pairs: {describe_outcomes(own)}")
    if unrated:
        parts.append(f"responses without a rating: {describe_outcomes(unrated)}")
    return "; ".join(parts) or "now: none"


def make_pairs(
    problems: Dataset,
    config: PairsConfig,
    ratings: dict[tuple[int, int], Rating],
) -> tuple[Dataset, Counter]:
    """
    Make the pairs of problems.

    Args:
        problems ([`~datasets.Dataset`]):
            What [`gather_problems`] returned.
        config ([`PairsConfig`]):
            Which pairs to make.
        ratings (`dict[tuple[int, int], Rating]`):
            Ratings by the indices of the problem and of the response; needed for rationale-sensitive pairs.

    Returns:
        `tuple[Dataset, Counter]`: The pairs, and the number of problems by outcome of each kind.
    """
    names = ("prompt", "chosen", "rejected", "kind", "chosen_label", "rejected_label", "answer")
    conversational = len(problems) > 0 and is_conversational(problems[0]["prompt"])
    text = column_features(messages=conversational)["prompt"]
    features = {name: text if name in ("chosen", "rejected") else Value("string") for name in names}
    features["prompt"] = problems.features["prompt"]
    if TEMPLATE_KWARGS in problems.column_names:
        features[TEMPLATE_KWARGS] = Json()
    columns: dict[str, list] = {name: [] for name in features}
    outcomes: Counter[str] = Counter()

    def write(text: str) -> str | list[dict]:
        return [{"role": "assistant", "content": text}] if conversational else text

    for index, (row, responses) in enumerate(zip(problems, _responses_of(problems), strict=True)):
        for kind in _kinds(config):
            # Of its own for each problem, so that the choice does not depend on the other ones
            rng = random.Random(f"{config.seed} {kind} {problem_key(row)}")
            if kind == "label":
                pairs, outcome = label_pairs(responses, row["answer"], row["wrong_labels"], config.max_pairs, rng)
            else:
                own = [ratings.get((index, number)) for number in range(len(responses.texts))]
                pairs, outcome = rationale_pairs(responses, own, config.max_pairs, rng)
            outcomes[f"{kind}, {outcome}"] += 1
            for chosen, rejected in pairs:
                pair = {
                    **row,
                    "chosen": write(responses.texts[chosen]),
                    "rejected": write(responses.texts[rejected]),
                    "kind": kind,
                    "chosen_label": responses.labels[chosen],
                    "rejected_label": responses.labels[rejected],
                }
                for name, values in columns.items():
                    values.append(pair[name])
    return Dataset.from_dict(columns, features=Features(features)), outcomes


def _check_not_empty(
    config: PairsConfig, problems: Dataset, left_out: Counter, pairs: Dataset, teacher_said: str = ""
) -> None:
    """Refuse a result without a pair."""
    if len(pairs) > 0:
        return
    raise EmptyResultError(
        f"There is no {config.kind} pair in the responses to {len(problems)} problems (responses left out: "
        f"{describe_outcomes(left_out) or 'none'}).{teacher_said} Nothing was saved to {config.output_dir!r}. A pair "
        "needs two responses to one problem: with another label, one of them correct, or with the same label and "
        "another rating."
    )


def _pair_here(
    problems: Dataset, task: Task, config: PairsConfig, rater: Rater | None, rater_key: Any, check: Callable[..., None]
) -> tuple[Dataset, Counter]:
    """With a rater in this process, or none, shard by shard."""
    outcomes = Counter()

    def pair(shard: Dataset, index: int) -> Dataset:
        ratings = {}
        if rater is not None:
            texts, responses, places = _to_rate(shard, task)
            ratings = dict(zip(places, rate_responses(rater, texts, responses), strict=True))
        pairs, counts = make_pairs(shard, config, ratings)
        outcomes.update(counts)
        return pairs

    settings = {**config_key(config), "rater": rater_key, "task": task_key(task, config.task)}
    pairs = map_shards(problems, pair, config.output_dir, settings, config.shard_size, check=check)
    return pairs, gather_counts(outcomes)


def _pair_by_api(
    problems: Dataset,
    task: Task,
    config: PairsConfig,
    teacher_config: TeacherConfig,
    server_config: ServerConfig,
    inputs: Sequence[Dataset],
    check: Callable[..., None],
) -> tuple[Dataset | None, Counter]:
    """With an API teacher as the rater, through the journal. `None` after a dry run."""
    texts, responses, places = _to_rate(problems, task)

    def rater_of(teacher: JournaledTeacher) -> JournaledRater:
        return JournaledRater(teacher, task.wording)

    def work(teacher: JournaledTeacher) -> tuple[Dataset, Counter]:
        ratings = dict(zip(places, rater_of(teacher).rate(texts, responses), strict=True))
        pairs, outcomes = make_pairs(problems, config, ratings)
        outcomes.update(rating.reason for rating in ratings.values() if isinstance(rating, NoRating))
        return pairs, outcomes

    return work_through_journal(
        config,
        config.rater,
        inputs,
        teacher_config,
        server_config,
        estimate=lambda teacher: teacher.estimate(rater_of(teacher).questions(texts, responses)),
        work=work,
        check=check,
    )
