"""Arguments of the online trainer that do not fit together. Each check raises a `ConfigError`."""

import os
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ..data.errors import ConfigError, DatasetError
from ..data.inputs import check_input
from ..grm.generative_reward_model import GenerativeRewardModel
from .online_rlmec_config import OnlineRLMECConfig


NO_REFERENCE = (
    "`grm` reads a correct solution beside each problem, from the column `reference`, which the training dataset does "
    "not have. Add it, with None where there is none, and leave `remove_unused_columns=False`."
)


def check_token_reward_settings(args: OnlineRLMECConfig, names: list[str]) -> None:
    """Check the settings of the sources of token rewards, the functions and the reward model, by their names."""
    if names and args.token_credit not in ("outcome", "none"):
        _refuse_unfit_settings(args)
    if args.token_reward_weights is not None and len(args.token_reward_weights) != len(names):
        raise ConfigError(
            f"`token_reward_weights` has {len(args.token_reward_weights)} numbers for {len(names)} sources of token "
            f"rewards ({', '.join(names) or 'none'}). Give one for each."
        )
    if len(set(names)) < len(names):
        raise ConfigError(
            f"Two sources of token rewards have the same name ({', '.join(names)}), under which their metrics are "
            "logged. Rename one of the functions."
        )


def _refuse_unfit_settings(args: OnlineRLMECConfig) -> None:
    credit, fix = f"`token_credit={args.token_credit!r}`", "Set `token_credit='outcome'`, or change this setting."
    if args.token_credit == "place" and args.top_entropy_quantile < 1:
        raise ConfigError(
            "`top_entropy_quantile` trains only on the tokens of the highest entropy, and a confident mistake is not "
            f"among them: the one token that {credit} blames would be left out. {fix}"
        )
    if args.importance_sampling_level == "sequence":
        raise ConfigError(
            "`importance_sampling_level='sequence'` has one ratio, and one clipping decision, for a whole completion, "
            f"so {credit} would not reach its tokens. {fix}"
        )
    if args.loss_type == "luspo":
        raise ConfigError(f"`loss_type='luspo'` is a loss of whole sequences, without {credit}. {fix}")
    if args.multi_objective_aggregation == "normalize_then_sum" and args.token_credit == "add":
        raise ConfigError(
            "`multi_objective_aggregation='normalize_then_sum'` brings every reward function to the same scale, from "
            f"which the token rewards of {credit} would be left out. {fix}"
        )


def check_terms(
    args: OnlineRLMECConfig, has_outcome: bool, has_token_rewards: bool, imitates: bool, distills: bool
) -> None:
    """Check that there is something to train on, and something to learn it from."""
    adds = has_token_rewards and args.token_credit == "add"
    if not (has_outcome or adds or imitates or distills):
        raise ConfigError(
            "There is nothing to train on: without `reward_funcs`, pass `token_reward_funcs` or a `grm` with "
            f"`token_credit='add'` (got {args.token_credit!r}), or a `grm` with `imitation_coef` or `attempt_coef`."
        )
    if args.token_credit == "none" and not (imitates or distills):
        raise ConfigError(
            "`token_credit='none'` leaves the policy term out, and without a `grm` or a `replay_dataset` there is no "
            "other."
        )


def check_without_grm(args: OnlineRLMECConfig) -> None:
    """Check that nothing needs a generative reward model."""
    if args.attempt_coef > 0:
        raise ConfigError("`attempt_coef` needs a `grm` to learn from. Pass one, or set `attempt_coef=0`.")
    if args.sync_grm:
        raise ConfigError("`sync_grm` needs a `grm`. Pass one, or set `sync_grm=False`.")


def check_replay(args: OnlineRLMECConfig, dataset: Any) -> None:
    """Check that rows of the replay dataset can be drawn, and are imitated."""
    for name in ("imitation_coef", "replay_fraction"):
        if getattr(args, name) == 0:
            raise ConfigError(
                f"`{name}` is 0, so no row of the `replay_dataset` would be imitated. Set `{name}`, or leave the "
                "dataset out."
            )
    check_input(dataset, "replay")
    if not isinstance(dataset, Dataset):
        raise DatasetError(
            "The replay dataset is a stream, and rows are drawn from all of it. Pass a `datasets.Dataset`."
        )


def check_with_grm(args: OnlineRLMECConfig, arguments: dict[str, Any], grm: Any) -> None:
    """Check a generative reward model, and the settings and arguments of `GRPOTrainer`, by name, beside it."""
    if not isinstance(grm, (str, os.PathLike, GenerativeRewardModel)):
        raise ConfigError(
            "`grm` must be a path, a name on the Hub, or a `GenerativeRewardModel`, got a "
            f"`{type(grm).__name__}`. Wrap a model: `GenerativeRewardModel(model, tokenizer)`."
        )
    for name in ("tools", "environment_factory", "rollout_func"):
        if arguments.get(name):
            raise ConfigError(
                f"`grm` cannot be used with `{name}`: the reward model judges a solution that the policy wrote in one "
                "turn. Leave one of them out; `token_reward_funcs` can be used with tools."
            )
    dataset = arguments.get("train_dataset")
    if isinstance(dataset, Dataset) and "reference" not in dataset.column_names:
        raise ConfigError(NO_REFERENCE)
    if isinstance(grm, GenerativeRewardModel) and grm.model is None:
        _check_served(args)
    elif is_deepspeed_zero3_enabled():
        raise ConfigError("`grm` cannot be used under ZeRO-3, which would shard it. Use ZeRO-2 or FSDP.")


def _check_served(args: OnlineRLMECConfig) -> None:
    if args.attempt_coef > 0:
        raise ConfigError(
            "`attempt_coef` learns from the reward model's whole distribution, and a server returns only the "
            "probabilities of the sampled tokens. Set `attempt_coef=0`, or pass the path of the `grm`."
        )
    if args.sync_grm:
        raise ConfigError(
            "`sync_grm` changes the reward model's weights, and those of this `grm` are on a server. Set "
            "`sync_grm=False`, or pass the path of the `grm`."
        )


def check_own_weights(policy: PreTrainedModel, reward_model: PreTrainedModel) -> None:
    """Check that freezing the reward model does not freeze the policy."""
    if set(map(id, policy.parameters())) & set(map(id, reward_model.parameters())):
        raise ConfigError(
            "The model of `grm` is the policy's own, which is trained, and a reward model is frozen. Give `grm` a "
            "copy of the policy, or its path."
        )


def check_adapter(policy: PreTrainedModel, grm: GenerativeRewardModel) -> None:
    """Check that the adapter of a reward model is there, and is not the policy's."""
    adapters = grm.model.peft_config if is_peft_model(grm.model) else {}
    if grm.adapter_name not in adapters:
        raise ConfigError(
            f"The model of `grm` has no adapter {grm.adapter_name!r} (`adapter_name`). It has "
            f"{', '.join(map(repr, adapters)) or 'none'}."
        )
    if grm.model is policy and grm.adapter_name in policy.active_adapters:
        raise ConfigError(
            f"`grm` is the adapter {grm.adapter_name!r}, which is the policy's own. Load the reward model's into the "
            "policy's model under another name, or pass `grm` as a path."
        )


def check_sync(policy: PreTrainedModel, reward_model: PreTrainedModel, is_sharded: bool) -> None:
    """Check that the weights of the reward model can follow those of the policy, one by one."""
    if is_peft_model(policy):
        raise ConfigError("`sync_grm` cannot follow an adapter. Set `sync_grm=False`, or train all weights.")
    if is_sharded:
        raise ConfigError(
            "`sync_grm` cannot follow a policy that FSDP shards: the reward model is whole on each device. Set "
            "`sync_grm=False`, or use DDP or ZeRO-2."
        )
    shapes, followed = ([parameter.shape for parameter in model.parameters()] for model in (reward_model, policy))
    if shapes != followed or not all(parameter.is_floating_point() for parameter in reward_model.parameters()):
        raise ConfigError(
            "`sync_grm` needs a reward model of the policy's architecture that is not quantized, and their weights "
            "differ in shape or type. Set `sync_grm=False`, or use an earlier state of the policy."
        )


def check_verifier(reward_funcs: Any) -> None:
    """Check that the first of the reward functions can tell which rewrites are correct."""
    first = reward_funcs[0] if isinstance(reward_funcs, list) and reward_funcs else reward_funcs
    if not callable(first) or isinstance(first, torch.nn.Module):
        raise ConfigError(
            "Rewrites are imitated only if they are correct, which no function can tell: the first of the "
            "`reward_funcs` must be a Python function, or pass a `rewrite_verifier`, or set `imitation_coef=0`."
        )
