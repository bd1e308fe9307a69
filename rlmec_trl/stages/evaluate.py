"""The evaluate stage: accuracy of a policy on problems, by greedy decoding, on as many processes as there are."""

import json
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import ClassVar

from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from ..data.checks import check_config
from ..data.messages import template_kwargs
from ..data.schema import DatasetError
from ..generation.loading import load_model, load_tokenizer
from ..generation.processes import process_state
from ..generation.sampling import sample_completions
from ..reports.accuracy import Accuracy
from ..tasks.problems import ProblemConfig, load_problems
from ..tasks.task import Task, load_task
from .output import claim_file, write_atomically


@dataclass
class EvaluateConfig:
    r"""
    Settings of the evaluate stage.

    Parameters:
        task (`str`):
            Built-in task, `package.module:NAME` or `path/to/file.py:NAME`.
        output_file (`str`, *optional*):
            JSON file to write the result to.
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
        "max_new_tokens": "value",
        "batch_size": "none",
        "trust_remote_code": "none",
    }

    def __post_init__(self):
        check_config(self)


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
        [`~rlmec_trl.stages.output.OutputError`]: If `output_file` is a file of something else, or
            another run is about to write it.
        [`~rlmec_trl.data.schema.DatasetError`]: If a problem breaks the contract of its columns.
    """
    state = process_state()
    names = ("correct", "total", "mean", "interval")
    with claim_file(config.output_file, names) if state.is_main_process else nullcontext():
        task = load_task(config.task)
        tokenizer = load_tokenizer(model_args, config.trust_remote_code)
        problems = load_problems(problem_config, task, tokenizer, split="test")
        if len(problems) == 0:
            raise DatasetError(f"There are no problems to evaluate on: {problem_config.dataset_name!r} is empty.")
        model, _ = load_model(model_args, config.trust_remote_code)
        accuracy = solve(model, tokenizer, problems, task, config.max_new_tokens, config.batch_size)
        low, high = accuracy.interval
        state.print(
            f"{model_args.model_name_or_path}: {accuracy.mean:.3f} ({accuracy.correct} of {accuracy.total} correct, "
            f"95% interval {low:.3f} to {high:.3f})"
        )
        if config.output_file is not None and state.is_main_process:
            values = (accuracy.correct, accuracy.total, accuracy.mean, [low, high])
            write_atomically(config.output_file, json.dumps(dict(zip(names, values, strict=True)), indent=2) + "\n")
    return accuracy


def solve(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    dataset: Dataset,
    task: Task,
    max_new_tokens: int = 512,
    batch_size: int = 16,
) -> Accuracy:
    """
    Accuracy of greedy decoding. A completion that is truncated at `max_new_tokens` is judged by the text up to there.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        dataset ([`~datasets.Dataset`]):
            Problems: `prompt` and `answer`.
        task ([`~rlmec_trl.tasks.task.Task`]):
            How answers are checked.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Maximum length of a completion, in tokens.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of completions generated at a time, on each process.
    """
    state = process_state()
    own = dataset.select(range(state.process_index, len(dataset), state.num_processes))
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
    problems = map(task.raw_problem, own["prompt"])
    correct = sum(map(task.is_correct, texts, own["answer"], problems))
    return Accuracy(sum(gather_object([correct])), len(dataset))
