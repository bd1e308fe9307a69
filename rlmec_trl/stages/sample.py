"""The sample stage: completions of a policy, each with its answer checked."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

from datasets import Dataset, Features
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from ..data.checks import check_config
from ..data.messages import is_conversational, template_kwargs
from ..data.schema import column_features
from ..generation.loading import load_eos_token_ids, load_max_length, load_model, load_tokenizer
from ..generation.processes import gather_counts
from ..generation.sampling import sample_completions, sample_from_server
from ..generation.server import ServerConfig, TokenServer
from ..tasks.problems import ProblemConfig, load_problems
from ..tasks.task import Task, load_task
from .bad_rows import check_prompts, leave_out_bad_rows
from .dataset_cards import DatasetFacts, card_settings, prompts_of
from .keys import config_key, model_key, task_key
from .output import check_path
from .publishing import DatasetPublisher, PublishConfig
from .runner import EmptyResultError, map_shards
from .summary import print_summary, timed


@dataclass
class SampleConfig:
    r"""
    Settings of the sample stage. The defaults are those of RLMEC (https://huggingface.co/papers/2401.06081).

    Parameters:
        output_dir (`str`):
            Folder to save the samples to.
        task (`str`):
            Built-in task, `package.module:NAME` or `path/to/file.py:NAME`.
        num_samples (`int`, *optional*, defaults to `5`):
            Number of completions of each prompt.
        temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature; `0.0` decodes greedily.
        top_p (`float`, *optional*, defaults to `0.95`):
            Probability mass to sample from.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Maximum length of a completion, in tokens.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of completions generated at a time, in this process.
        shard_size (`int`, *optional*, defaults to `500`):
            Number of prompts between two saves.
        on_bad_row (`str`, *optional*, defaults to `"error"`):
            What to do about problems that cannot be used: stop at the first (`"error"`), or leave them out and list
            them in `bad_rows.jsonl` next to the samples (`"skip"`).
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that the model's repository ships.
    """

    output_dir: str = field(metadata={"help": "Folder to save the samples to."})
    task: str = field(
        metadata={
            "help": "Built-in task, `package.module:NAME` or `path/to/file.py:NAME`.",
        }
    )
    num_samples: int = field(default=5, metadata={"help": "Number of completions of each prompt."})
    temperature: float = field(default=0.7, metadata={"help": "Sampling temperature; `0.0` decodes greedily."})
    top_p: float = field(default=0.95, metadata={"help": "Probability mass to sample from."})
    max_new_tokens: int = field(default=512, metadata={"help": "Maximum length of a completion, in tokens."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})
    batch_size: int = field(
        default=16,
        metadata={
            "help": "Number of completions generated at a time, in this process.",
        },
    )
    shard_size: int = field(default=500, metadata={"help": "Number of prompts between two saves."})
    on_bad_row: str = field(
        default="error",
        metadata={
            "help": "What to do about problems that cannot be used: stop at the first (`error`), or leave them out "
            "and list them in `bad_rows.jsonl` next to the samples (`skip`).",
            "choices": ["error", "skip"],
        },
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Whether to run Python code that the model's repository ships."},
    )

    # How each field enters the key of a result (see `stages/keys.py`). Another batch size draws other random numbers
    # from the same distribution, which is no reason to sample again
    key_parts: ClassVar[dict[str, str]] = {
        "output_dir": "none",
        "task": "content",
        "num_samples": "value",
        "temperature": "value",
        "top_p": "value",
        "max_new_tokens": "value",
        "seed": "value",
        "batch_size": "none",
        "shard_size": "none",
        "on_bad_row": "value",
        "trust_remote_code": "none",
    }

    def __post_init__(self):
        check_config(self)


@timed
def run(
    config: SampleConfig,
    problem_config: ProblemConfig,
    model_args: ModelConfig,
    server_config: ServerConfig | None = None,
    publish_config: PublishConfig | None = None,
) -> Dataset:
    """
    Sample completions from a policy, check their answers, and save the rows. Re-running resumes.

    Args:
        config ([`SampleConfig`]):
            How to sample.
        problem_config ([`~rlmec_trl.tasks.problems.ProblemConfig`]):
            Where the problems are.
        model_args ([`~trl.ModelConfig`]):
            The policy.
        server_config ([`~rlmec_trl.generation.server.ServerConfig`], *optional*):
            With a `base_url`, the policy runs behind that server.
        publish_config ([`~rlmec_trl.stages.publishing.PublishConfig`], *optional*):
            Whether and where to publish the rows. They are not by default.

    Returns:
        [`~datasets.Dataset`]: One row a completion: the columns of its problem, `completion`, `completion_ids` (token
        ids with EOS) and `correct`.

    Raises:
        [`~rlmec_trl.stages.runner.EmptyResultError`]: If no completion can be used. An earlier result stays.
        [`~rlmec_trl.stages.output.OutputError`]: If `output_dir` cannot be replaced, or another run is writing to it.
        [`~rlmec_trl.data.schema.DatasetError`]: If a problem breaks the contract of its columns.
        [`~rlmec_trl.stages.publishing.PublishError`]: If the rows cannot be published. What was saved stays.
    """
    check_path(config.output_dir)
    publisher = DatasetPublisher(publish_config, config.output_dir)
    task = load_task(config.task)
    tokenizer = load_tokenizer(model_args, config.trust_remote_code)
    in_process = server_config is None or server_config.base_url is None
    max_length = load_max_length(model_args, config.trust_remote_code) if in_process else None
    bad_rows = []

    def skip_bad_rows(raw: Dataset, read: Callable[[Dataset], Dataset]) -> Dataset:
        rows, found = leave_out_bad_rows(
            raw, lambda rows: check_prompts(read(rows), tokenizer, max_length), config.output_dir
        )
        bad_rows.extend(found)
        return rows

    problems = load_problems(
        problem_config, task, tokenizer, select_rows=skip_bad_rows if config.on_bad_row == "skip" else None
    )
    ends = load_eos_token_ids(model_args, tokenizer, config.trust_remote_code)
    server = None
    if not in_process:
        server = TokenServer(server_config, tokenizer, ends)

    @cache  # loaded on first use: a finished run loads no model
    def load_policy() -> PreTrainedModel:
        return load_model(model_args, config.trust_remote_code)[0]

    @cache  # before the first shard, and not in a finished run; what was to be skipped has been checked
    def check_all_prompts() -> None:
        if config.on_bad_row == "error":
            check_prompts(problems, tokenizer, max_length)

    costs = Counter()

    def sample(shard: Dataset, index: int) -> Dataset:
        check_all_prompts()
        costs["completions"] += len(shard) * config.num_samples  # those that cannot be used, too
        settings = {
            "num_samples": config.num_samples,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_new_tokens": config.max_new_tokens,
            "seed": config.seed + index,
            "desc": f"Sampling, shard {index + 1}",
            "chat_template_kwargs": template_kwargs(shard),
        }
        if server is not None:
            completions = sample_from_server(server, shard["prompt"], **settings)
        else:
            completions = sample_completions(
                load_policy(), tokenizer, shard["prompt"], batch_size=config.batch_size, **settings
            )
        return to_sample_rows(shard, completions, ends, tokenizer, task)

    settings = {**config_key(config), **model_key(model_args, tokenizer), "task": task_key(task, config.task)}
    if server is not None:
        settings["server"] = config_key(server_config)
    # What was skipped is in the key, whatever the setting is
    del settings["on_bad_row"]

    requested = len(problems) * config.num_samples

    def count_left_out() -> Counter:
        # By reason, in this run: completions whose ids a server did not give exactly
        return gather_counts(server.left_out if server else Counter())

    def check_not_empty(samples: Dataset) -> None:
        if len(samples) > 0:
            return
        left_out = count_left_out()
        if left_out:
            counts = ", ".join(f"{reason}: {count}" for reason, count in left_out.most_common())
            raise EmptyResultError(
                f"None of {requested} completions can be used ({counts}; the others were truncated at "
                f"{config.max_new_tokens} tokens, or empty). {server.last_words()} Nothing was saved to "
                f"{config.output_dir!r}."
            )
        raise EmptyResultError(
            f"No completion reached EOS: all were truncated at {config.max_new_tokens} tokens, or empty ({requested} "
            f"completions). Nothing was saved to {config.output_dir!r}. Raise `--max_new_tokens`, and check that the "
            "policy ends its answers with EOS."
        )

    samples = map_shards(
        problems,
        sample,
        config.output_dir,
        settings,
        config.shard_size,
        check=check_not_empty,
        bad_rows=bad_rows,
        costs=costs,
    )
    reasons = "".join(f"; {reason}: {count}" for reason, count in count_left_out().most_common())
    print_summary(
        f"{len(samples):,} samples, {sum(samples['correct']):,} with a correct answer; "
        f"{requested - len(samples):,} left out (truncated at {config.max_new_tokens} tokens, or empty{reasons}).",
        config.output_dir,
        "edit --dataset_name",
    )
    facts = DatasetFacts(
        "samples",
        "Completions that a policy has sampled, with their answers checked.",
        {"policy": model_args.model_name_or_path, "task": config.task, "problems": problem_config.dataset_name},
        card_settings(config),
        prompts_of(task.wording, "policy"),
    )
    publisher.publish(samples, facts)
    return samples


def to_sample_rows(
    dataset: Dataset,
    completions: Sequence[Sequence[list[int]]],
    ends: set[int],
    processing_class: PreTrainedTokenizerBase,
    task: Task,
) -> Dataset:
    """
    One row a completion: the columns of its problem, `completion`, `completion_ids` and `correct`.

    Completions that were truncated before EOS, or are empty, are left out, because their answers are unknown.

    Args:
        dataset ([`~datasets.Dataset`]):
            The problems.
        completions (`Sequence[Sequence[list[int]]]`):
            What [`~rlmec_trl.generation.sampling.sample_completions`] or
            [`~rlmec_trl.generation.sampling.sample_from_server`] returned for them.
        ends (`set[int]`):
            Ids that end a completion.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        task ([`~rlmec_trl.tasks.task.Task`]):
            How answers are checked.
    """
    conversational = len(dataset) > 0 and is_conversational(dataset[0]["prompt"])
    types = column_features(messages=conversational)
    # Given, not inferred: the types of the problems' columns are kept, and a shard may have no row at all
    new = {name: types[name] for name in ("completion", "completion_ids", "correct")}
    features = Features({**dataset.features, **new})
    columns = {name: [] for name in features}
    for row, samples in zip(dataset, completions, strict=True):
        problem = task.raw_problem(row["prompt"])
        for ids in samples:
            text = processing_class.decode(ids, skip_special_tokens=True)
            if not ids or ids[-1] not in ends or not text.strip():
                continue
            row["completion"] = [{"role": "assistant", "content": text}] if conversational else text
            row["completion_ids"] = ids
            row["correct"] = task.is_correct(text, row["answer"], problem)
            for name, values in columns.items():
                values.append(row[name])
    return Dataset.from_dict(columns, features=features)
