"""The evaluate stage: accuracy of a policy on problems, by greedy decoding, on as many processes as there are."""

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from ..data.checks import check_config
from ..data.errors import ConfigError
from ..data.messages import template_kwargs
from ..data.schema import DatasetError
from ..generation.loading import load_model, load_tokenizer
from ..generation.processes import process_state
from ..generation.sampling import sample_completions
from ..reports.accuracy import Accuracy
from ..reports.correlations import pearson, spearman
from ..tasks.problems import ProblemConfig, load_problems
from ..tasks.task import Task, load_task
from ..teachers.raters import NoRating, TaskRater, rate_responses
from .output import claim_file, resolve, write_atomically
from .summary import print_summary, timed


_NAMES = ("correct", "total", "mean", "interval")


@dataclass(frozen=True)
class Prediction:
    """
    What a policy answered to a problem.

    Args:
        row (`int`):
            Number of the row.
        completion (`str`):
            Text of the completion.
        label (`str`, *optional*):
            The label that it states; `None` if it states none, and where the task has no labels.
        answer (`str`):
            The correct answer.
        correct (`bool`):
            Whether the task accepts the completion.
        rating (`float`, *optional*):
            How good its rationale is, by the task's `rate`; `None` where the task has none.
    """

    row: int
    completion: str
    label: str | None
    answer: str
    correct: bool
    rating: float | None = None


@dataclass
class EvaluateConfig:
    r"""
    Settings of the evaluate stage.

    Parameters:
        task (`str`):
            Built-in task, `package.module:NAME` or `path/to/file.py:NAME`.
        output_file (`str`, *optional*):
            JSON file to write the result to.
        predictions_file (`str`, *optional*):
            File of JSON lines to write each row's completion, label, correct answer and verdict to.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Maximum length of a completion, in tokens.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of completions generated at a time, on each process.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that the model's repository ships.
    """

    task: str = field(
        metadata={
            "help": "Built-in task, `package.module:NAME` or `path/to/file.py:NAME`.",
        }
    )
    output_file: str | None = field(default=None, metadata={"help": "JSON file to write the result to."})
    predictions_file: str | None = field(
        default=None,
        metadata={
            "help": "File of JSON lines to write each row's completion, label, correct answer and verdict to.",
        },
    )
    max_new_tokens: int = field(default=512, metadata={"help": "Maximum length of a completion, in tokens."})
    batch_size: int = field(
        default=16,
        metadata={"help": "Number of completions generated at a time, on each process."},
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Whether to run Python code that the model's repository ships."},
    )

    # How each field enters the key of a result (see `stages/keys.py`)
    key_parts: ClassVar[dict[str, str]] = {
        "task": "content",
        "output_file": "none",
        "predictions_file": "none",
        "max_new_tokens": "value",
        "batch_size": "none",
        "trust_remote_code": "none",
    }

    def __post_init__(self):
        check_config(self)
        files = [resolve(file) for file in (self.output_file, self.predictions_file) if file is not None]
        if len(files) > len(set(files)):
            raise ConfigError(
                f"`output_file` and `predictions_file` are both {str(self.output_file)!r}. Give them different names."
            )


@timed
def run(config: EvaluateConfig, problem_config: ProblemConfig, model_args: ModelConfig) -> Accuracy:
    """
    Evaluate a policy.

    Args:
        config ([`EvaluateConfig`]):
            How to evaluate.
        problem_config ([`~rlmec_trl.tasks.problems.ProblemConfig`]):
            Where the problems are.
        model_args ([`~trl.ModelConfig`]):
            The policy.

    Raises:
        [`~rlmec_trl.stages.output.OutputError`]: If `output_file` or `predictions_file` is a file of something else,
            or another run is about to write it.
        [`~rlmec_trl.data.schema.DatasetError`]: If a problem breaks the contract of its columns.
    """
    state = process_state()
    with ExitStack() as files:
        if state.is_main_process:
            files.enter_context(claim_file(config.output_file, _NAMES))
            names = Prediction.__dataclass_fields__
            files.enter_context(claim_file(config.predictions_file, names, "--predictions_file", lines=True))
        task = load_task(config.task)
        tokenizer = load_tokenizer(model_args, config.trust_remote_code)
        problems = load_problems(problem_config, task, tokenizer, split="test")
        if len(problems) == 0:
            raise DatasetError(f"There are no problems to evaluate on: {problem_config.dataset_name!r} is empty.")
        model, _ = load_model(model_args, config.trust_remote_code)
        predictions = predict(model, tokenizer, problems, task, config.max_new_tokens, config.batch_size)
        accuracy = count_correct(predictions)
        low, high = accuracy.interval
        values = (accuracy.correct, accuracy.total, accuracy.mean, [low, high])
        result = dict(zip(_NAMES, values, strict=True))
        result |= describe_labels(predictions, task) | describe_rationales(predictions, task)
        result |= outcomes_of_rows(predictions, problems, task)
        for line in (*_label_lines(result), *_rationale_lines(result)):
            state.print(line)
        if state.is_main_process:
            if config.output_file is not None:
                write_atomically(config.output_file, json.dumps(result, indent=2) + "\n")
            if config.predictions_file is not None:
                lines = (json.dumps(asdict(prediction)) + "\n" for prediction in predictions)
                write_atomically(config.predictions_file, "".join(lines))
        print_summary(
            f"{model_args.model_name_or_path}: {accuracy.mean:.3f} ({accuracy.correct:,} of {accuracy.total:,} "
            f"correct, 95% interval {low:.3f} to {high:.3f}).",
            config.output_file,
            "compare-results --results",
        )
    return accuracy


def predict(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    dataset: Dataset,
    task: Task,
    max_new_tokens: int = 512,
    batch_size: int = 16,
) -> list[Prediction]:
    """
    Answer problems by greedy decoding. A completion that is truncated at `max_new_tokens` is judged by the text up to
    there. The processes share the rows, and each returns all of them.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        dataset ([`~datasets.Dataset`]):
            Problems: `prompt` and `answer`.
        task ([`~rlmec_trl.tasks.task.Task`]):
            How answers are checked, and labels are read.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Maximum length of a completion, in tokens.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of completions generated at a time, on each process.
    """
    state = process_state()
    rows = range(state.process_index, len(dataset), state.num_processes)
    own = dataset.select(rows)
    completions = sample_completions(
        model,
        processing_class,
        own["prompt"],
        num_samples=1,
        temperature=0.0,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        desc="Evaluating",
        chat_template_kwargs=template_kwargs(own),
    )
    texts = [processing_class.decode(ids, skip_special_tokens=True) for (ids,) in completions]
    problems = list(map(task.raw_problem, own["prompt"]))
    labels = map(task.stated_label, texts, problems) if task.labels else [None] * len(texts)
    correct = map(task.is_correct, texts, own["answer"], problems)
    ratings = [None] * len(texts) if task.rate is None else rate_responses(TaskRater(task), problems, texts)
    ratings = [None if isinstance(rating, NoRating) else rating for rating in ratings]
    predictions = list(map(Prediction, rows, texts, labels, own["answer"], correct, ratings))
    return sorted(gather_object(predictions), key=lambda prediction: prediction.row)


def count_correct(predictions: Sequence[Prediction]) -> Accuracy:
    """Accuracy of predictions."""
    return Accuracy(sum(prediction.correct for prediction in predictions), len(predictions))


def describe_labels(predictions: Sequence[Prediction], task: Task) -> dict[str, Any]:
    """
    What accuracy does not say of predicted labels.

    Args:
        predictions (`Sequence[Prediction]`):
            Predictions of the task.
        task ([`~rlmec_trl.tasks.task.Task`]):
            The task.

    Returns:
        `dict[str, Any]`: Of a task with labels `without_label`, the number of completions that state none. Where the
        labels are numbers also `pearson` and `spearman`, the correlations of the stated labels with the correct ones,
        over the completions that state one; `None` where they are undefined. Of other tasks nothing.
    """
    if not task.labels:
        return {}
    stated = [prediction for prediction in predictions if prediction.label is not None]
    result: dict[str, Any] = {"without_label": len(predictions) - len(stated)}
    if all(map(_is_number, task.labels)):
        scores = ([float(one.label) for one in stated], [float(one.answer) for one in stated])
        for name, correlate in (("pearson", pearson), ("spearman", spearman)):
            value = correlate(*scores)
            result[name] = None if math.isnan(value) else value
    return result


def describe_rationales(predictions: Sequence[Prediction], task: Task) -> dict[str, Any]:
    """
    How good the rationales of predictions are.

    Args:
        predictions (`Sequence[Prediction]`):
            Predictions of the task.
        task ([`~rlmec_trl.tasks.task.Task`]):
            The task.

    Returns:
        `dict[str, Any]`: Of a task with `rate` the mean `rating`, over the responses that have one, and of one with
        `perfect_rating` also the numbers of responses that have it (`perfect`), and of those that are correct, too
        (`correct_and_perfect`). Of other tasks nothing.
    """
    if task.rate is None:
        return {}
    ratings = [prediction.rating for prediction in predictions if prediction.rating is not None]
    result: dict[str, Any] = {"rating": sum(ratings) / len(ratings) if ratings else None}
    if task.perfect_rating is not None:
        perfect = [prediction for prediction in predictions if prediction.rating == task.perfect_rating]
        result["perfect"] = len(perfect)
        result["correct_and_perfect"] = count_correct(perfect).correct
    return result


def outcomes_of_rows(predictions: Sequence[Prediction], problems: Dataset, task: Task) -> dict[str, str]:
    """
    Which rows were answered correctly, so that policies can be compared row by row (`reports/comparisons.py`).

    Args:
        predictions (`Sequence[Prediction]`):
            A prediction for each problem, in their order.
        problems ([`~datasets.Dataset`]):
            Problems: `prompt` and `answer`.
        task ([`~rlmec_trl.tasks.task.Task`]):
            How a problem is read from its prompt.

    Returns:
        `dict[str, str]`: `outcomes`, for each row `"1"` if the answer is correct and `"0"` otherwise, and `problems`,
        a hash of the problems and their correct answers. It is the same for policies with other chat templates.
    """
    rows = list(zip(map(task.raw_problem, problems["prompt"]), problems["answer"], strict=True))
    return {
        "outcomes": "".join("1" if prediction.correct else "0" for prediction in predictions),
        "problems": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
    }


def _rationale_lines(result: dict[str, Any]) -> list[str]:
    if "perfect" not in result:
        return []
    perfect, both = result["perfect"], result["correct_and_perfect"]
    return [f"{perfect} of {result['total']} completions have a perfect rationale, {both} of them are correct"]


def _label_lines(result: dict[str, Any]) -> list[str]:
    if "without_label" not in result:
        return []
    lines = [f"{result['without_label']} of {result['total']} completions state no label"]
    if "pearson" in result:
        values = (result["pearson"], result["spearman"])
        shown = ["undefined" if value is None else f"{value:.3f}" for value in values]
        lines.append(
            f"Correlation of the other {result['total'] - result['without_label']}: Pearson {shown[0]}, "
            f"Spearman {shown[1]}"
        )
    return lines


def _is_number(label: str) -> bool:
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False
