"""The score stage: a generative reward model judges and rewrites every sample of a data set."""

import os
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from accelerate.logging import get_logger
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import ModelConfig
from trl.trainer.utils import add_fused_lm_head

from ..data.messages import is_conversational
from ..data.schema import check_dataset
from ..data.tokens import encode_prompt
from ..generation.inference import completion_logps, eos_token_ids
from ..generation.loading import load_model, model_fingerprint
from ..generation.server import ServerConfig, TokenServer
from ..grm.generative_reward_model import GenerativeRewardModel, TokenizerMismatchError
from ..grm.prompts import load_wording
from ..tasks.task import Task, load_task
from .runner import map_shards


logger = get_logger(__name__)


@dataclass
class ScoreConfig:
    r"""
    Settings of the score stage.

    Parameters:
        grm (`str`, *optional*):
            Path or Hub name of the generative reward model.
        task (`str`, *optional*, defaults to `"math"`):
            How the rewrites' answers are checked: `"arithmetic"`, `"math"` or `"choice"`.
        locate_by (`str`, *optional*, defaults to `"question"`):
            Where rewriting begins: at the step that the reward model names (`"question"`), or at the step of the first
            token that it gives less than one half (`"probability"`).
        rewrite_correct (`bool`, *optional*, defaults to `True`):
            Whether samples with a right answer are rewritten too. Without, they are their own rewrites.
        rewrite_topk (`int`, *optional*, defaults to `0`):
            Number of ids of the reward model's distribution on each token of the rewrite to store, for soft imitation.
        rewrite_max_new_tokens (`int`, *optional*, defaults to `512`):
            Greatest number of tokens that a rewrite may add to the steps it keeps.
        score_batch_size (`int`, *optional*, defaults to `16`):
            Number of samples scored or rewritten at a time.
        shard_size (`int`, *optional*, defaults to `1000`):
            Number of samples between two saves.
    """

    grm: str | None = field(default=None, metadata={"help": "Path or Hub name of the generative reward model."})
    task: str = field(
        default="math",
        metadata={"help": "Built-in task, `package.module:NAME` or `path/to/file.py:NAME`."},
    )
    locate_by: str = field(
        default="question",
        metadata={
            "help": "Where rewriting begins: at the step that the reward model names (`question`), or at the step of "
            "the first token that it gives less than one half (`probability`).",
            "choices": ["question", "probability"],
        },
    )
    rewrite_correct: bool = field(
        default=True,
        metadata={
            "help": "Whether samples with a right answer are rewritten too. Without, they are their own rewrites."
        },
    )
    rewrite_topk: int = field(
        default=0,
        metadata={
            "help": "Number of ids of the reward model's distribution on each token of the rewrite to store, for soft "
            "imitation."
        },
    )
    rewrite_max_new_tokens: int = field(
        default=512, metadata={"help": "Greatest number of tokens that a rewrite may add to the steps it keeps."}
    )
    score_batch_size: int = field(default=16, metadata={"help": "Number of samples scored or rewritten at a time."})
    shard_size: int = field(default=1000, metadata={"help": "Number of samples between two saves."})


def check_shared_tokenizer(
    policy_tokenizer: PreTrainedTokenizerBase, reward_tokenizer: PreTrainedTokenizerBase
) -> None:
    """
    Check that policy and reward model have the same tokens.

    Raises:
        [`TokenizerMismatchError`]: If their vocabularies differ.
    """
    policy, reward = policy_tokenizer.get_vocab(), reward_tokenizer.get_vocab()
    if policy != reward:
        token = min(set(policy.items()) ^ set(reward.items()))[0]
        raise TokenizerMismatchError(
            f"The policy's tokenizer ({len(policy)} tokens) and the reward model's ({len(reward)}) differ, first at "
            f"{token!r}. Token probabilities refer to the policy's own ids, so both models have to share a tokenizer: "
            "train the reward model from the policy, or from a model of its family."
        )


def score_dataset(
    dataset: Dataset,
    grm: GenerativeRewardModel,
    task: Task,
    policy: PreTrainedModel | None = None,
    locate_by: str = "question",
    rewrite_correct: bool = True,
    rewrite_topk: int = 0,
) -> Dataset:
    """
    Add `token_probs`, `rewrite`, `rewrite_ids` and, with a policy, `old_logps`.

    Args:
        dataset ([`~datasets.Dataset`]):
            Sampled rows: `prompt`, `reference`, `answer`, `completion`, `completion_ids`, `correct`.
        grm ([`GenerativeRewardModel`]):
            The reward model.
        task ([`~rlmec_trl.tasks.task.Task`]):
            How the rewrites' answers are checked. Steps are not checked, even where the task could: what the policy
            learns from has passed no other test than a real task allows.
        policy ([`~transformers.PreTrainedModel`], *optional*):
            The model that sampled the completions, given a fused LM head.
        locate_by (`str`, *optional*, defaults to `"question"`):
            Where rewriting begins: `"question"` asks the reward model for the first wrong step, as in the paper;
            `"probability"` takes the step of the first token that it gives less than one half.
        rewrite_correct (`bool`, *optional*, defaults to `True`):
            Whether samples with a right answer are rewritten too. Otherwise each is its own rewrite.
        rewrite_topk (`int`, *optional*, defaults to `0`):
            Number of ids of the reward model's distribution on each token of the rewrite to keep, for soft imitation.

    Returns:
        [`~datasets.Dataset`]: The rows with their new columns. `rewrite` and `rewrite_ids` are `None` where the
        rewrite does not reach the right answer or was cut off.
    """
    columns = {name: dataset[name][:] for name in ("prompt", "reference", "completion", "completion_ids")}
    inputs = tuple(columns.values())
    token_probs = grm.score(*inputs)
    if locate_by == "probability":
        located = grm.flagged_steps(columns["completion"], columns["completion_ids"], token_probs)
    elif locate_by == "question":
        located = grm.locate(*inputs[:3])
    else:
        raise ValueError(f"`locate_by` must be 'question' or 'probability', got {locate_by!r}.")
    error_steps = [
        -1 if correct and not rewrite_correct else step
        for correct, step in zip(dataset["correct"], located, strict=True)
    ]
    rewrite_ids = grm.rewrite_ids(*inputs, error_steps=error_steps)

    texts = grm.processing_class.batch_decode(rewrite_ids, skip_special_tokens=True)
    ends = eos_token_ids(grm.model.generation_config, grm.processing_class)
    verified = [
        bool(ids) and ids[-1] in ends and task.check_answer(text, answer, task.raw_problem(prompt))
        for ids, text, answer, prompt in zip(rewrite_ids, texts, dataset["answer"], columns["prompt"], strict=True)
    ]
    if is_conversational(columns["completion"][0]):
        texts = [[{"role": "assistant", "content": text}] for text in texts]
    scored: dict[str, list[Any]] = {
        "token_probs": token_probs,
        "rewrite": _where(verified, texts),
        "rewrite_ids": _where(verified, rewrite_ids),
    }
    if policy is not None:
        prompt_ids = [encode_prompt(grm.processing_class, prompt) for prompt in columns["prompt"]]
        scored["old_logps"] = completion_logps(
            policy,
            grm.processing_class,
            prompt_ids,
            columns["completion_ids"],
            grm.batch_size,
            "Sampler's log-probabilities" if grm.show_progress else None,
        )
    if rewrite_topk > 0:
        topk_ids, topk_logps = grm.rewrite_topk(*inputs[:3], rewrite_ids, rewrite_topk)
        scored["rewrite_topk_ids"] = _where(verified, topk_ids)
        scored["rewrite_topk_logps"] = _where(verified, topk_logps)
    kept = dataset.remove_columns([name for name in scored if name in dataset.column_names])
    return Dataset.from_dict({**kept.to_dict(), **scored})


def score_to_disk(
    dataset: Dataset,
    output_dir: str | os.PathLike,
    config: ScoreConfig,
    model_args: ModelConfig,
    server_config: ServerConfig | None = None,
) -> Dataset:
    """
    Score a data set shard by shard, on as many processes as there are; a run that was cut off goes on.

    Args:
        dataset ([`~datasets.Dataset`]):
            Sampled rows.
        output_dir (`str` or `os.PathLike`):
            Folder to save the scored rows to.
        config ([`ScoreConfig`]):
            How to score.
        model_args ([`~trl.ModelConfig`]):
            The policy that sampled the completions, and how models are loaded.
        server_config ([`~rlmec_trl.generation.server.ServerConfig`], *optional*):
            A server that has the reward model too, and writes its rewrites. Probabilities are computed here all the
            same.

    Raises:
        `ValueError`: If no reward model is named, or under ZeRO-3, whose sharded models cannot generate here.
        [`TokenizerMismatchError`]: If policy and reward model have different tokenizers.
        [`~rlmec_trl.data.schema.DatasetError`]: If a row breaks the contract of its columns.
    """
    if config.grm is None:
        raise ValueError("Name the generative reward model with `--grm`.")
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "Under ZeRO-3 the samples have to be scored before training, in a run of their own: launch "
            "`recipes/score.py` without DeepSpeed and name its output with `--dataset_name`."
        )
    check_dataset(dataset, "samples")

    @cache  # loaded for the first shard, so not at all where everything is scored already
    def load_models() -> tuple[GenerativeRewardModel, PreTrainedModel]:
        policy, policy_tokenizer = load_model(model_args)
        check_dataset(dataset, "samples", eos_token_ids(policy.generation_config, policy_tokenizer))
        reward_model, tokenizer = load_model(model_args, config.grm)
        check_shared_tokenizer(policy_tokenizer, tokenizer)
        add_fused_lm_head(policy, cast_lm_head_to_fp32=True)
        grm = GenerativeRewardModel(
            reward_model,
            tokenizer,
            wording=load_wording(config.grm),
            batch_size=config.score_batch_size,
            max_new_tokens=config.rewrite_max_new_tokens,
            server=None
            if server_config is None
            else TokenServer(server_config, tokenizer, eos_token_ids(reward_model.generation_config, tokenizer)),
        )
        return grm, policy

    def score(shard: Dataset, index: int) -> Dataset:
        grm, policy = load_models()
        scored = score_dataset(
            shard,
            grm,
            load_task(config.task),
            policy,
            config.locate_by,
            config.rewrite_correct,
            config.rewrite_topk,
        )
        if grm.server is not None and grm.server.left_out:
            logger.warning(f"The server gave no usable answer, so far in this run: {dict(grm.server.left_out)}")
        return scored

    models = {"policy": model_fingerprint(model_args.model_name_or_path), "grm": model_fingerprint(config.grm)}
    settings = {**vars(config), **models}
    if server_config is not None:
        settings["server"] = [server_config.served_model, server_config.extra_body]
    return map_shards(dataset, score, output_dir, settings, config.shard_size)


def _where(keep: list[bool], values: list[Any]) -> list[Any]:
    return [value if kept else None for kept, value in zip(keep, values, strict=True)]
