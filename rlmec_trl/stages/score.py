"""The score stage: a generative reward model scores every token of the samples and rewrites them."""

import os
import random
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import pyarrow.compute as pc
from accelerate.logging import get_logger
from datasets import Dataset
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import ModelConfig

from ..data.checks import check_config
from ..data.errors import ConfigError
from ..data.messages import is_conversational, template_kwargs
from ..data.row_checks import TOPK_COLUMNS
from ..data.schema import OF_REWRITE, check_dataset, column_features
from ..data.tokens import encode_prompt, ends_with_eos
from ..generation.inference import completion_logps
from ..generation.loading import load_eos_token_ids, load_model, load_tokenizer, load_vocab_size
from ..generation.processes import gather_counts, process_state
from ..generation.server import ServerConfig, TokenServer
from ..grm.generative_reward_model import GenerativeRewardModel, check_topk_tokenizer
from ..grm.prompts import load_wording
from ..tasks.task import Task, load_task
from ..teachers.editors import verify_rewrite
from .bad_rows import check_completion_ids, check_prompts, leave_out_bad_rows
from .dataset_cards import DatasetFacts, card_settings, prompts_of
from .keys import config_key, model_key, task_key, wording_key
from .output import check_path
from .publishing import DatasetPublisher, PublishConfig
from .runner import EmptyResultError, map_shards
from .summary import print_summary, timed


logger = get_logger(__name__)


@dataclass
class ScoreConfig:
    r"""
    Settings of the score stage.

    Parameters:
        grm (`str`, *optional*):
            Path or Hub name of the generative reward model.
        grm_revision (`str`, *optional*, defaults to `"main"`):
            Revision of the generative reward model on the Hub.
        grm_dtype (`str`, *optional*):
            Dtype of the generative reward model. That of the policy (`dtype`) if unset.
        grm_load_in_8bit, grm_load_in_4bit (`bool`, *optional*, default to `False`):
            Whether to quantize the generative reward model.
        task (`str`, *optional*):
            How rewrites are checked: a built-in task, `package.module:NAME` or `path/to/file.py:NAME`.
        locate_by (`str`, *optional*, defaults to `"question"`):
            Where rewriting begins: at the step that the reward model names (`"question"`), or at the step of the first
            token with a probability under one half (`"probability"`).
        rewrite_correct (`bool`, *optional*, defaults to `True`):
            Whether samples with a correct answer are rewritten too. If `False`, they are kept as their own rewrites.
        num_rewrites (`int`, *optional*, defaults to `1`):
            Number of rewrites to try for a sample. The first is greedy; where it fails verification, others are
            sampled until one passes.
        rewrite_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of the sampled rewrites.
        rewrite_seed (`int`, *optional*, defaults to `0`):
            Seed of the sampled rewrites.
        rewrite_topk (`int`, *optional*, defaults to `0`):
            Number of ids of the reward model's distribution on each token of the rewrite to store, for soft imitation.
        attempt_topk (`int`, *optional*, defaults to `0`):
            Number of ids of the reward model's distribution on each token of the completion to store, for distillation
            (`attempt_coef` of [`~rlmec_trl.RLMECConfig`]).
        rewrite_max_new_tokens (`int`, *optional*, defaults to `512`):
            Maximum number of tokens that a rewrite may add to the steps it keeps.
        score_batch_size (`int`, *optional*, defaults to `16`):
            Number of samples scored or rewritten at a time.
        shard_size (`int`, *optional*, defaults to `1000`):
            Number of samples between two saves.
        on_bad_row (`str`, *optional*, defaults to `"error"`):
            What to do about samples that cannot be scored: stop at the first (`"error"`), or leave them out and list
            them in `bad_rows.jsonl` next to the scored samples (`"skip"`).
        allow_untrained_grm (`bool`, *optional*, defaults to `False`):
            Whether `grm` may be a model that was not trained as a generative reward model.
        grm_on_server (`bool`, *optional*, defaults to `False`):
            Whether the server that generates the rewrites also computes the token probabilities, so that the reward
            model's weights are not loaded here. The server has to return the log-probabilities of a prompt's tokens.
    """

    grm: str | None = field(
        default=None,
        metadata={"help": "Path or Hub name of the generative reward model."},
    )
    grm_revision: str = field(
        default="main",
        metadata={"help": "Revision of the generative reward model on the Hub."},
    )
    grm_dtype: str | None = field(
        default=None,
        metadata={
            "help": "Dtype of the generative reward model. That of the policy (`dtype`) if unset.",
            "choices": ["auto", "bfloat16", "float16", "float32"],
        },
    )
    grm_load_in_8bit: bool = field(
        default=False,
        metadata={"help": "Whether to load the generative reward model in 8 bits."},
    )
    grm_load_in_4bit: bool = field(
        default=False,
        metadata={"help": "Whether to load the generative reward model in 4 bits."},
    )
    task: str | None = field(
        default=None,
        metadata={
            "help": "Built-in task, `package.module:NAME` or `path/to/file.py:NAME`.",
        },
    )
    locate_by: str = field(
        default="question",
        metadata={
            "help": "Where rewriting begins: at the step that the reward model names (`question`), or at the step of "
            "the first token with a probability under one half (`probability`).",
            "choices": ["question", "probability"],
        },
    )
    rewrite_correct: bool = field(
        default=True,
        metadata={
            "help": "Whether samples with a correct answer are rewritten too. If `False`, they are kept as their own "
            "rewrites."
        },
    )
    num_rewrites: int = field(
        default=1,
        metadata={
            "help": "Number of rewrites to try for a sample. The first is greedy; where it fails verification, others "
            "are sampled until one passes."
        },
    )
    rewrite_temperature: float = field(default=1.0, metadata={"help": "Temperature of the sampled rewrites."})
    rewrite_seed: int = field(default=0, metadata={"help": "Seed of the sampled rewrites."})
    rewrite_topk: int = field(
        default=0,
        metadata={
            "help": "Number of ids of the reward model's distribution on each token of the rewrite to store, for soft "
            "imitation.",
        },
    )
    attempt_topk: int = field(
        default=0,
        metadata={
            "help": "Number of ids of the reward model's distribution on each token of the completion to store, for "
            "distillation (`attempt_coef`).",
        },
    )
    rewrite_max_new_tokens: int = field(
        default=512,
        metadata={
            "help": "Maximum number of tokens that a rewrite may add to the steps it keeps.",
        },
    )
    score_batch_size: int = field(
        default=16,
        metadata={"help": "Number of samples scored or rewritten at a time."},
    )
    shard_size: int = field(default=1000, metadata={"help": "Number of samples between two saves."})
    on_bad_row: str = field(
        default="error",
        metadata={
            "help": "What to do about samples that cannot be scored: stop at the first (`error`), or leave them out "
            "and list them in `bad_rows.jsonl` next to the scored samples (`skip`).",
            "choices": ["error", "skip"],
        },
    )
    allow_untrained_grm: bool = field(
        default=False,
        metadata={"help": "Whether `grm` may be a model that was not trained as a generative reward model."},
    )
    grm_on_server: bool = field(
        default=False,
        metadata={
            "help": "Whether the server at `base_url` also computes the token probabilities, so that the reward "
            "model's weights are not loaded here. vLLM and SGLang can."
        },
    )

    # How each field enters the key of a result (see `stages/keys.py`)
    key_parts: ClassVar[dict[str, str]] = {
        "grm": "content",
        "grm_revision": "content",
        "grm_dtype": "content",
        "grm_load_in_8bit": "content",
        "grm_load_in_4bit": "content",
        "task": "content",
        "locate_by": "value",
        "rewrite_correct": "value",
        # Without sampled rewrites, these three are not in the key
        "num_rewrites": "value",
        "rewrite_temperature": "value",
        "rewrite_seed": "value",
        "rewrite_topk": "value",
        "attempt_topk": "value",
        "rewrite_max_new_tokens": "value",
        "score_batch_size": "none",
        "shard_size": "none",
        "on_bad_row": "value",
        # Which model it is, and with which wording, is in the key
        "allow_untrained_grm": "none",
        # A server computes with other kernels, and often with another dtype
        "grm_on_server": "value",
    }

    def __post_init__(self):
        check_config(self)

    def grm_model_args(self, model_args: ModelConfig) -> ModelConfig:
        """
        How the reward model is loaded: by default with the dtype and the attention implementation of the policy, but
        never with its revision, quantization or adapter settings.
        """
        return ModelConfig(
            model_name_or_path=self.grm,
            model_revision=self.grm_revision,
            dtype=self.grm_dtype or model_args.dtype,
            attn_implementation=model_args.attn_implementation,
            load_in_8bit=self.grm_load_in_8bit,
            load_in_4bit=self.grm_load_in_4bit,
        )


@timed
def run(
    config: ScoreConfig,
    dataset: Dataset,
    output_dir: str | os.PathLike,
    model_args: ModelConfig,
    server_config: ServerConfig | None = None,
    trust_remote_code: bool = False,
    publish_config: PublishConfig | None = None,
) -> Dataset:
    """
    Score a dataset shard by shard, on as many processes as there are, and save the rows. Re-running resumes.

    Args:
        config ([`ScoreConfig`]):
            How to score.
        dataset ([`~datasets.Dataset`]):
            Sampled rows.
        output_dir (`str` or `os.PathLike`):
            Folder to save the scored rows to.
        model_args ([`~trl.ModelConfig`]):
            The policy that sampled the completions.
        server_config ([`~rlmec_trl.generation.server.ServerConfig`], *optional*):
            If `base_url` is set, the reward model on that server generates the rewrites. Probabilities are still
            computed in this process, unless `grm_on_server` is set.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that the repositories of policy and reward model ship.
        publish_config ([`~rlmec_trl.stages.publishing.PublishConfig`], *optional*):
            Whether and where to publish the rows. They are not by default.

    Returns:
        [`~datasets.Dataset`]: The rows with the columns of [`score_dataset`].

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If no reward model or no task is named, `rewrite_topk` or
            `attempt_topk` exceeds the vocabulary or needs weights that are on a server, `grm_on_server` is set without
            a server, or under ZeRO-3, whose sharded models cannot generate.
        [`~rlmec_trl.grm.prompts.WordingError`]: If `grm` was not trained as a generative reward model.
        [`~rlmec_trl.generation.loading.ModelError`]: If a model cannot be loaded.
        [`~rlmec_trl.stages.runner.EmptyResultError`]: If a server is used and gave no answer at all. An earlier result
            stays.
        [`~rlmec_trl.grm.generative_reward_model.TokenizerMismatchError`]: If `rewrite_topk` or `attempt_topk` is set,
            and policy and reward model have different tokenizers.
        [`~rlmec_trl.stages.output.OutputError`]: If `output_dir` cannot be replaced, or another run is writing to it.
        [`~rlmec_trl.data.schema.DatasetError`]: If a row breaks the contract of its columns.
        [`~rlmec_trl.stages.publishing.PublishError`]: If the rows cannot be published. What was saved stays.
    """
    check_path(output_dir)
    if config.grm is None:
        raise ConfigError("Name the generative reward model with `--grm`.")
    if config.task is None:
        raise ConfigError("Name the task whose checks rewrites must pass with `--task`.")
    if is_deepspeed_zero3_enabled():
        raise ConfigError(
            "Under ZeRO-3 the samples must be scored before training, in a separate run: launch "
            "`recipes/score.py` without DeepSpeed and name its output with `--dataset_name`."
        )
    has_server = server_config is not None and server_config.base_url is not None
    if config.grm_on_server and not has_server:
        raise ConfigError("`grm_on_server` needs a server: pass its address as `--base_url`.")
    if config.grm_on_server and (config.rewrite_topk > 0 or config.attempt_topk > 0):
        raise ConfigError(
            "`rewrite_topk` and `attempt_topk` store distributions, which are computed from the reward model's "
            "weights. Leave both at 0, or set `grm_on_server` to False."
        )
    publisher = DatasetPublisher(publish_config, output_dir)
    task = load_task(config.task)
    grm_args = config.grm_model_args(model_args)
    policy_tokenizer = load_tokenizer(model_args, trust_remote_code)
    grm_tokenizer = load_tokenizer(grm_args, trust_remote_code)
    for name in ("rewrite_topk", "attempt_topk"):
        k = getattr(config, name)
        if k > 0:
            check_topk_tokenizer(policy_tokenizer, grm_tokenizer, name)
        if k > len(grm_tokenizer):
            raise ConfigError(
                f"`{name}` is {k}, but the vocabulary has only {len(grm_tokenizer)} tokens. Lower it: a few dozen "
                "hold nearly all of the distribution."
            )
    wording = load_wording(config.grm, config.grm_revision, config.allow_untrained_grm)
    policy_ends = load_eos_token_ids(model_args, policy_tokenizer, trust_remote_code)
    vocab_size = load_vocab_size(model_args, trust_remote_code)

    def check_tokens(rows: Dataset) -> None:
        check_prompts(rows, policy_tokenizer)
        check_completion_ids(rows, policy_tokenizer)

    def check_rows(rows: Dataset) -> None:
        check_dataset(rows, "samples", policy_ends, vocab_size)
        check_tokens(rows)

    bad_rows = []
    if config.on_bad_row == "skip":
        dataset, bad_rows = leave_out_bad_rows(dataset, check_rows, output_dir)
    else:
        check_dataset(dataset, "samples", policy_ends, vocab_size)
    server = None
    if has_server:
        ends = load_eos_token_ids(grm_args, grm_tokenizer, trust_remote_code)
        server = TokenServer(server_config, grm_tokenizer, ends)

    @cache  # loaded on first use: a finished run loads no model
    def load_models() -> tuple[GenerativeRewardModel, PreTrainedModel]:
        if config.on_bad_row == "error":  # with "skip", `check_rows` has checked them
            check_tokens(dataset)
        policy, _ = load_model(model_args, trust_remote_code)
        reward_model = None if config.grm_on_server else load_model(grm_args, trust_remote_code)[0]
        grm = GenerativeRewardModel(
            reward_model,
            grm_tokenizer,
            wording=wording,
            batch_size=config.score_batch_size,
            max_new_tokens=config.rewrite_max_new_tokens,
            server=server,
            policy_processing_class=policy_tokenizer,
        )
        if not grm.shares_tokenizer:
            process_state().print(
                "Policy and reward model have different tokenizers: token probabilities are carried over by their "
                "places in the text, and some policy tokens get none."
            )
        return grm, policy

    num_scored, costs = Counter(), Counter()

    def score(shard: Dataset, index: int) -> Dataset:
        grm, policy = load_models()
        scored = score_dataset(
            shard,
            grm,
            task,
            policy,
            config.locate_by,
            config.rewrite_correct,
            config.rewrite_topk,
            config.attempt_topk,
            config.num_rewrites,
            config.rewrite_temperature,
            config.rewrite_seed + index,
        )
        if server is not None and server.left_out:
            logger.warning(f"The server gave no usable answer, so far in this run: {dict(server.left_out)}")
        num_scored["rows"] += len(shard)
        # Of all shards of this process so far, as `map_shards` expects it
        costs["grm_tokens_scored"], costs["grm_tokens_generated"] = grm.num_scored, grm.num_generated
        return scored

    def check_answered(scored: Dataset) -> None:
        if server is None:
            return
        counts = gather_counts(num_scored + Counter(answers=server.num_usable))
        left_out = gather_counts(server.left_out)
        # After a resume, it is not known what the server answered before
        if counts["rows"] == len(scored) and left_out and not counts["answers"]:
            raise EmptyResultError(
                f"The server at {server_config.base_url} answered none of {left_out.total()} requests "
                f"({', '.join(f'{reason}: {count}' for reason, count in left_out.most_common())}). "
                f"{server.last_words()} Nothing was saved to {str(output_dir)!r}."
            )

    settings = {
        **config_key(config),
        "policy": model_key(model_args, policy_tokenizer),
        "grm": model_key(grm_args, grm_tokenizer),
        "grm_wording": wording_key(wording),
        "task": task_key(task, config.task),
    }
    if server is not None:
        settings["server"] = config_key(server_config)
    # What was skipped is in the key, whatever the setting is
    del settings["on_bad_row"]
    if config.num_rewrites == 1:
        for name in ("num_rewrites", "rewrite_temperature", "rewrite_seed"):
            del settings[name]
    scored = map_shards(
        dataset, score, output_dir, settings, config.shard_size, check=check_answered, bad_rows=bad_rows, costs=costs
    )
    verified = len(scored) - scored.data["rewrite"].null_count
    if verified == 0:
        logger.warning(
            "No sample has a verified rewrite, so there is nothing to imitate. Does the reward model fit the policy "
            "and the task, and is `--rewrite_max_new_tokens` large enough?"
        )
    sampled = ""
    if config.num_rewrites > 1:
        num_sampled = pc.sum(pc.greater(scored.data["rewrite_index"], 0)).as_py() or 0
        sampled = f", {num_sampled:,} of them a sampled one"
    print_summary(
        f"{verified:,} of {len(scored):,} samples have a verified rewrite{sampled}.",
        output_dir,
        "rlmec --dataset_name",
    )
    facts = DatasetFacts(
        "scored samples",
        "Samples of a policy of which a generative reward model has scored every token, and which it has rewritten. "
        "Train on them with `RLMECTrainer`.",
        {"policy": model_args.model_name_or_path, "generative reward model": config.grm, "task": config.task},
        card_settings(config),
        prompts_of(wording, "locate", "rewrite"),
    )
    publisher.publish(scored, facts)
    return scored


def score_dataset(
    dataset: Dataset,
    grm: GenerativeRewardModel,
    task: Task,
    policy: PreTrainedModel | None = None,
    locate_by: str = "question",
    rewrite_correct: bool = True,
    rewrite_topk: int = 0,
    attempt_topk: int = 0,
    num_rewrites: int = 1,
    rewrite_temperature: float = 1.0,
    seed: int = 0,
) -> Dataset:
    """
    Add `token_probs`, `rewrite`, `rewrite_ids` and, with a policy, `old_logps`.

    Args:
        dataset ([`~datasets.Dataset`]):
            Sampled rows: `prompt`, `reference`, `answer`, `completion`, `completion_ids`, `correct`.
        grm ([`GenerativeRewardModel`]):
            The reward model.
        task ([`~rlmec_trl.tasks.task.Task`]):
            How rewrites are verified: their answers and, where the task can check them, their steps.
        policy ([`~transformers.PreTrainedModel`], *optional*):
            The model that sampled the completions.
        locate_by (`str`, *optional*, defaults to `"question"`):
            Where rewriting begins: `"question"` asks the reward model for the first incorrect step, as in the paper;
            `"probability"` uses the step of the first token with a probability below 0.5.
        rewrite_correct (`bool`, *optional*, defaults to `True`):
            Whether samples with a correct answer are rewritten too. Otherwise each is its own rewrite.
        rewrite_topk (`int`, *optional*, defaults to `0`):
            Number of ids of the reward model's distribution on each token of the rewrite to keep, for soft imitation.
        attempt_topk (`int`, *optional*, defaults to `0`):
            Number of ids of the reward model's distribution on each token of the completion to keep, for distillation.
        num_rewrites (`int`, *optional*, defaults to `1`):
            Number of rewrites to try for a sample. Where the first, which is greedy, fails verification, others are
            sampled until one passes. These are sampled from the first step on, since the step that was located may be
            why the first one failed.
        rewrite_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of the sampled rewrites.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampled rewrites.

    Returns:
        [`~datasets.Dataset`]: The rows with their new columns. `rewrite` and `rewrite_ids` are `None` where the
        rewrite was truncated, or fails the checks of the task. Where the reward model has another tokenizer than the
        policy, some values of `token_probs` are `None` (see [`GenerativeRewardModel.score`]). If `num_rewrites` is
        over 1, `rewrite_index` is the number of the rewrite that passed: 0 for the greedy one, `None` if none did.

    Raises:
        [`~rlmec_trl.grm.generative_reward_model.TokenizerMismatchError`]: If `rewrite_topk` or `attempt_topk` is set,
            and policy and reward model have different tokenizers.
    """
    for name, k in (("rewrite_topk", rewrite_topk), ("attempt_topk", attempt_topk)):
        if k > 0 and not grm.shares_tokenizer:
            check_topk_tokenizer(grm.policy_processing_class, grm.processing_class, name)
    tokenizer = grm.policy_processing_class
    columns = {name: dataset[name][:] for name in ("prompt", "reference", "completion", "completion_ids")}
    inputs = tuple(columns.values())
    kwargs = template_kwargs(dataset)
    token_probs = grm.score(*inputs, kwargs)
    if locate_by == "probability":
        located = grm.flagged_steps(columns["completion"], columns["completion_ids"], token_probs)
    elif locate_by == "question":
        located = grm.locate(*inputs[:3], kwargs)
    else:
        raise ConfigError(f"`locate_by` must be 'question' or 'probability', got {locate_by!r}.")
    may_change = [rewrite_correct or not correct for correct in dataset["correct"]]
    error_steps = [step if changes else -1 for step, changes in zip(located, may_change, strict=True)]
    rewrite_ids, texts, verified = _rewrite(dataset, grm, task, error_steps)
    rewrite_index = [0 if is_verified else None for is_verified in verified]
    for number in range(1, num_rewrites):
        failed = [index for index, is_verified in enumerate(verified) if not is_verified and may_change[index]]
        if not failed:
            break
        sampling = {"temperature": rewrite_temperature, "seed": _seed_of(seed, number)}
        again = _rewrite(dataset.select(failed), grm, task, [0] * len(failed), **sampling)
        for index, ids, text, is_verified in zip(failed, *again, strict=True):
            if is_verified:
                rewrite_ids[index], texts[index], verified[index] = ids, text, True
                rewrite_index[index] = number

    if is_conversational(columns["completion"][0]):
        texts = [[{"role": "assistant", "content": text}] for text in texts]
    types = column_features(messages=is_conversational(columns["completion"][0]))
    scored: dict[str, list[Any]] = {
        "token_probs": token_probs,
        "rewrite": _where(verified, texts),
        "rewrite_ids": _where(verified, rewrite_ids),
    }
    if num_rewrites > 1:
        scored["rewrite_index"] = rewrite_index
    if policy is not None:
        prompt_ids = [
            encode_prompt(tokenizer, *row)
            for row in zip(columns["prompt"], kwargs or [None] * len(dataset), strict=True)
        ]
        scored["old_logps"] = completion_logps(
            policy,
            tokenizer,
            prompt_ids,
            columns["completion_ids"],
            grm.batch_size,
            "Sampler's log-probabilities" if grm.show_progress else None,
        )
    if rewrite_topk > 0:
        topk_ids, topk_logps = grm.rewrite_topk(*inputs[:3], rewrite_ids, rewrite_topk, kwargs)
        scored["rewrite_topk_ids"] = _where(verified, topk_ids)
        scored["rewrite_topk_logps"] = _where(verified, topk_logps)
    if attempt_topk > 0:
        scored["attempt_topk_ids"], scored["attempt_topk_logps"] = grm.attempt_topk(*inputs, attempt_topk, kwargs)
    # Also what an earlier rewrite, or another reward model, has left
    replaced = {*scored, *OF_REWRITE, *TOPK_COLUMNS}
    kept = dataset.remove_columns([name for name in dataset.column_names if name in replaced])
    for name, values in scored.items():
        # Typed, because every rewrite of a shard may be None
        kept = kept.add_column(name, values, feature=types[name])
    return kept


def _rewrite(
    dataset: Dataset, grm: GenerativeRewardModel, task: Task, error_steps: list[int], **sampling
) -> tuple[list[list[int]], list[str], list[bool]]:
    """The rewrites of samples: their ids, their texts, and whether each is complete and passes verification."""
    inputs = (dataset[name][:] for name in ("prompt", "reference", "completion", "completion_ids"))
    rewrite_ids = grm.rewrite_ids(*inputs, error_steps, template_kwargs(dataset), **sampling)
    tokenizer = grm.policy_processing_class
    texts = tokenizer.batch_decode(rewrite_ids, skip_special_tokens=True)
    if grm.shares_tokenizer:
        ends = grm.eos_token_ids
        ended = [bool(ids) and ids[-1] in ends for ids in rewrite_ids]
    else:
        ended = [ends_with_eos(tokenizer, ids) for ids in rewrite_ids]
    verified = [
        has_end and verify_rewrite(task, task.raw_problem(prompt), answer, text) is None
        for has_end, text, answer, prompt in zip(ended, texts, dataset["answer"], dataset["prompt"], strict=True)
    ]
    return rewrite_ids, texts, verified


def _seed_of(seed: int, number: int) -> int:
    # The second rewrite of one seed must not have the random numbers of the first one of the next seed
    return random.Random(f"{seed} {number}").getrandbits(32)


def _where(keep: list[bool], values: list[Any]) -> list[Any]:
    return [value if kept else None for kept, value in zip(keep, values, strict=True)]
