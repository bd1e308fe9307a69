"""Online RLMEC: GRPO with credit for each token, and imitation of what a generative reward model rewrites."""

import atexit
import math
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, Signature, signature
from itertools import chain
from typing import Any

import torch
from accelerate.utils import gather_object, is_peft_model, send_to_device
from datasets import Dataset
from safetensors.torch import load_model, save_model
from trl import GRPOTrainer
from trl.trainer.callbacks import SyncRefModelCallback
from trl.trainer.utils import (
    get_callable_name,
    get_config_model_id,
    is_async_callable,
    shutdown_event_loop_in_daemon,
    start_event_loop_in_daemon,
)

from ..credit.alignment import edit_distance, edit_mask
from ..credit.paper import PAPER
from ..credit.token_credit import first_flagged, token_advantages
from ..credit.token_reward_funcs import TokenRewardFunc, call_token_reward_funcs, check_token_rewards
from ..credit.token_rewards import rewards_from_probs
from ..credit.trainer_checks import TrainerChecks
from ..data.adapters import note_base_revision, refuse_adapter
from ..data.errors import ConfigError, DatasetError
from ..data.messages import is_conversational, problem_text
from ..data.tokens import decode_completion, given_template_kwargs, same_vocabulary
from ..grm.generative_reward_model import GenerativeRewardModel
from ..grm.in_the_loop import judge, load_beside, rewrite_flagged
from ..reports.token_credit import CompletionReporter, CreditedCompletion, print_completions, shades_of
from ..reports.token_pieces import TokenPieces, token_texts
from .collator import DataCollatorForRLMEC
from .distillation import add_distillation_head
from .losses import imitation_loss
from .online_checks import (
    NO_REFERENCE,
    check_adapter,
    check_own_weights,
    check_replay,
    check_sync,
    check_terms,
    check_token_reward_settings,
    check_verifier,
    check_with_grm,
    check_without_grm,
)
from .online_rlmec_config import OnlineRLMECConfig
from .replay import Replay
from .token_counts import TokenCounts


# Whether rewrites are correct, in the shape of TRL's reward functions
RewriteVerifier = Callable[..., list[bool]]

GRM_NAME = "grm"
# In a checkpoint, a reward model that follows the policy
SYNCED_GRM = "synced_grm.safetensors"
# Columns of the logged completions that have a value for each token, beside that of each source
_OF_TOKENS = ("token_probs", "token_reward", "token_advantages")


@dataclass
class _Credit:
    """What the token rewards and the reward model give for the samples of a generation batch."""

    # Combined value of each token, NaN for no opinion, and whether the reward model, or the values, flag it
    values: list[list[float]] | None = None
    flags: list[list[float]] | None = None
    completion_ids: list[list[int]] | None = None
    rewrite_ids: list[list[int] | None] | None = None
    states: list[torch.Tensor | None] | None = None


def no_outcome(completions: list[Any], **kwargs) -> list[float]:
    """The reward function that stands in where there is none: every completion gets 0, and so does its advantage."""
    return [0.0] * len(completions)


class OnlineRLMECTrainer(TokenCounts, TrainerChecks, GRPOTrainer):
    """
    Trainer for online RLMEC (https://huggingface.co/papers/2401.06081): [`~trl.GRPOTrainer`] with credit for each
    token.

    It adds to GRPO what its arguments ask for: token rewards of functions or of a generative reward model, combined
    with the outcome's advantage (`token_credit`); imitation of the reward model's verified rewrites, weighted by
    minimum edits; distillation from the reward model's distribution on the completions; imitation of scored rows. All
    else is inherited: generation, the loss types, PEFT, quantization, distributed training, checkpoints, tools and the
    Hub. Without any of these, it is GRPO.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy, as in [`~trl.GRPOTrainer`].
        reward_funcs (`RewardFunc | list[RewardFunc]`, *optional*):
            Reward functions of the outcome, as in [`~trl.GRPOTrainer`]. The first decides which completions are
            correct (`correct_reward`). May be omitted where token rewards, or rewrites with a `rewrite_verifier`,
            make the loss.
        args ([`OnlineRLMECConfig`], *optional*):
            Configuration. If `None`, the defaults are used, and the output directory is the model's name with
            `-OnlineRLMEC`.
        other arguments:
            As in [`~trl.GRPOTrainer`], in the same order.
        token_reward_funcs (`Callable | list[Callable]`, *optional*):
            Functions that give one reward for each token. They get what TRL's reward functions get (`prompts`,
            `completions`, `completion_ids`, the columns of the dataset, `trainer_state`, `log_extra`, `log_metric`)
            and return a list with a list for each completion, which has a number, or `None` for no opinion, for each
            of its `completion_ids`. They may be asynchronous.
        grm (`str`, `os.PathLike` or [`GenerativeRewardModel`], *optional*):
            Generative reward model, which judges completions whose row has a `reference`. A path or a name on the Hub
            may be that of an adapter: if the policy is an adapter on the same base model, both share its weights. It
            may be wholly behind a server ([`GenerativeRewardModel.from_server`]), which has to serve the same weights
            throughout the training.
        replay_dataset ([`~datasets.Dataset`], *optional*):
            Scored rows, as [`RLMECTrainer`] takes them, whose rewrites are imitated beside those of new completions.
        rewrite_verifier (`Callable`, *optional*):
            Decides which rewrites are imitated. It gets `prompts`, `completions` (the rewrites), `completion_ids` and
            the columns of the dataset, and returns a list of `bool`. By default, a rewrite has to get `correct_reward`
            from the first of the `reward_funcs`.

    Raises:
        `TypeError`: If `args` is not an [`OnlineRLMECConfig`].
        [`~rlmec_trl.data.errors.ConfigError`]: If the arguments do not fit together.
        [`~rlmec_trl.data.schema.DatasetError`]: If a row of `replay_dataset` breaks the contract of its columns.
        [`~rlmec_trl.credit.token_reward_funcs.TokenRewardError`]: While training, if a token reward function returns
            something else than a number, or `None`, for each token.
    """

    _tag_names = ["trl", "rlmec", "grpo"]
    _name = "OnlineRLMEC"
    _paper = PAPER

    def __init__(
        self,
        model,
        reward_funcs=None,
        args=None,
        *others,
        token_reward_funcs: TokenRewardFunc | list[TokenRewardFunc] | None = None,
        grm: str | os.PathLike | GenerativeRewardModel | None = None,
        replay_dataset: Dataset | None = None,
        rewrite_verifier: RewriteVerifier | None = None,
        **kwargs,
    ):
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = OnlineRLMECConfig(f"{model_name.split('/')[-1]}-OnlineRLMEC")
        if not isinstance(args, OnlineRLMECConfig):
            raise TypeError(f"`args` must be an `OnlineRLMECConfig`, got `{type(args).__name__}`.")
        arguments = signature(GRPOTrainer.__init__).bind(self, model, reward_funcs, args, *others, **kwargs).arguments
        if token_reward_funcs is None:
            token_reward_funcs = []
        elif not isinstance(token_reward_funcs, (list, tuple)):
            token_reward_funcs = [token_reward_funcs]
        for func in token_reward_funcs:
            if not callable(func):
                raise ConfigError(f"`token_reward_funcs` must be functions, got {func!r} ({type(func).__name__}).")
        self.token_reward_funcs = token_reward_funcs = list(token_reward_funcs)
        self.rewrite_verifier = rewrite_verifier
        self._rewrites = grm is not None and args.imitation_coef > 0
        self._distills = grm is not None and args.attempt_coef > 0
        self._replays = replay_dataset is not None and args.imitation_coef > 0 and args.replay_fraction > 0
        self._token_names = [get_callable_name(func) for func in token_reward_funcs] + [GRM_NAME] * (grm is not None)
        self._has_outcome = bool(reward_funcs) or arguments.get("environment_factory") is not None
        check_token_reward_settings(args, self._token_names)
        if replay_dataset is not None:
            check_replay(args, replay_dataset)
        if grm is None:
            check_without_grm(args)
        imitates = self._rewrites or self._replays
        check_terms(args, self._has_outcome, bool(self._token_names), imitates, self._distills)
        if self._rewrites and rewrite_verifier is None:
            check_verifier(reward_funcs)
        if grm is not None:
            check_with_grm(args, arguments, grm)
        if not self._has_outcome:
            reward_funcs = no_outcome
        revision = (args.model_init_kwargs or {}).get("revision") or "main"
        if isinstance(model, str):
            refuse_adapter(model, revision)

        super().__init__(model, reward_funcs, args, *others, **kwargs)
        if isinstance(model, str) and is_peft_model(self.model):
            note_base_revision(self.model, revision)
        self.token_reward_weights = args.token_reward_weights or [1.0] * len(self._token_names)
        self._is_async = [is_async_callable(func) for func in token_reward_funcs]
        self._token_loop = None
        verifier = [self.rewrite_verifier or self.reward_funcs[0]] if self._rewrites else []
        if any(map(is_async_callable, [*token_reward_funcs, *verifier])):
            thread, self._token_loop, ready = start_event_loop_in_daemon(name="OnlineRLMECTrainer-AsyncLoop")
            ready.wait()
            atexit.register(shutdown_event_loop_in_daemon, thread, self._token_loop)
        self.grm = None if grm is None else self._prepare_grm(grm)
        if args.sync_grm:
            self.add_callback(SyncRefModelCallback(ref_model=self.grm.model, accelerator=self.accelerator))
        self._replay = None
        if self._replays:
            vocab_size = self.model.config.get_text_config().vocab_size
            self._replay = Replay(
                replay_dataset, self._tokenizer, args.edited_weight, args.unedited_weight, vocab_size
            )
        self._imitation_collator = DataCollatorForRLMEC(
            self._tokenizer.pad_token_id, policy=False, pad_to_multiple_of=args.pad_to_multiple_of
        )
        self._credit: _Credit | None = None
        self._reporter = CompletionReporter(args.report_to, args.output_dir)
        self.token_counts = Counter()

    # What help() and editors show: the arguments of `GRPOTrainer`, of which `reward_funcs` may be left out, and ours
    __init__.__signature__ = Signature(
        [
            *(
                parameter.replace(default=None) if parameter.name == "reward_funcs" else parameter
                for parameter in signature(GRPOTrainer.__init__).parameters.values()
            ),
            *(
                parameter
                for parameter in signature(__init__).parameters.values()
                if parameter.kind is Parameter.KEYWORD_ONLY
            ),
        ]
    )

    def _prepare_grm(self, grm: str | os.PathLike | GenerativeRewardModel) -> GenerativeRewardModel:
        args = self.args
        if not isinstance(grm, GenerativeRewardModel):
            grm = load_beside(
                self.model,
                os.fspath(grm),
                args.grm_revision,
                args.trust_remote_code,
                args.allow_untrained_grm,
                may_share=not self.is_fsdp_enabled,
                # TRL sends vLLM all modules that adapters bring along, and none that PEFT has wrapped for them
                may_wrap=not self.use_vllm,
                model_init_kwargs=args.grm_init_kwargs,
                batch_size=args.grm_batch_size,
                max_new_tokens=args.rewrite_max_new_tokens or self.max_completion_length,
                show_progress=False,
                policy_processing_class=self._tokenizer,
            )
        if self._is_vlm:
            raise ConfigError("`grm` cannot be used with a vision-language model: the reward model reads text only.")
        if not same_vocabulary(self._tokenizer, grm.policy_processing_class):
            raise ConfigError(
                "`grm` was given another tokenizer than the policy's. Pass the policy's to `GenerativeRewardModel` as "
                "`policy_processing_class`."
            )
        if self._distills and not grm.shares_tokenizer:
            raise ConfigError(
                "`attempt_coef` compares distributions over the same tokens, and `grm` has another tokenizer than the "
                "policy. Set `attempt_coef=0`, or use a reward model of the policy's family."
            )
        if grm.adapter_name is not None:
            check_adapter(self.model, grm)
        if self._is_shared(grm):
            for name, parameter in grm.model.named_parameters():
                if f".{grm.adapter_name}." in name:
                    parameter.requires_grad_(False)
        elif grm.model is not None:
            check_own_weights(self.model, grm.model)
            grm.model.requires_grad_(False)
            # As TRL's reward models: whole on each device, under FSDP too
            grm.model = self.accelerator.prepare_model(grm.model, evaluation_mode=True, device_placement=True)
        if self._distills:
            add_distillation_head(
                self.model.get_base_model() if is_peft_model(self.model) else self.model,
                grm.model.get_base_model() if is_peft_model(grm.model) else grm.model,
                self.args.attempt_loss,
                self.temperature,
                grm.adapter_name,
            )
        if args.sync_grm:
            check_sync(self.model, grm.model, self.is_fsdp_enabled)
        return grm

    def _is_shared(self, grm: GenerativeRewardModel) -> bool:
        """Whether the reward model is an adapter of the policy's model."""
        return grm.adapter_name is not None and grm.model is self.model

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        # Reward functions may change the lists that they get
        samples = (list(prompts), list(completions), [list(ids) for ids in completion_ids_list])
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._token_names:
            start = self.accelerator.process_index * len(inputs)
            # The outcome of this process's completions
            outcome = rewards[start : start + len(inputs), 0].tolist() if self._has_outcome else None
            if self.log_completions:
                pieces_of = TokenPieces(self._tokenizer)
                texts = [token_texts(pieces_of, ids) for ids in completion_ids_list]
                self._log_completion_extra("tokens", texts)
            before = (0, 0) if self.grm is None else (self.grm.num_scored, self.grm.num_generated)
            self._credit = self._judge(inputs, *samples, outcome)
            if self.grm is not None and self.model.training:
                self._count_tokens(
                    grm_scored=self.grm.num_scored - before[0], grm_generated=self.grm.num_generated - before[1]
                )
        return rewards

    def _reward_kwargs(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        keys = [key for key in inputs[0] if key not in ("prompt", "completion", "completion_ids")]
        kwargs = {key: [row[key] for row in inputs] for key in keys} | {
            "trainer_state": self.state,
            "log_extra": self._log_completion_extra,
            "log_metric": self._log_metric,
        }
        return kwargs if self.environments is None else kwargs | {"environments": self.environments}

    def _judge(
        self, inputs, prompts, completions, completion_ids: list[list[int]], outcome: list[float] | None
    ) -> _Credit:
        """Token values of all sources, and the rewrites and states of the reward model."""
        rewards = []
        if self.token_reward_funcs:
            returned = call_token_reward_funcs(
                self.token_reward_funcs,
                self._is_async,
                self._token_loop,
                prompts=prompts,
                completions=completions,
                completion_ids=completion_ids,
                **self._reward_kwargs(inputs),
            )
            names = self._token_names[: len(returned)]
            rewards = [
                check_token_rewards(name, values, completion_ids) for name, values in zip(names, returned, strict=True)
            ]
        if self.grm is None:
            values = self._combine(rewards, completion_ids)
            return _Credit(values, flags=values)

        if self.model.training and "reference" not in inputs[0]:
            raise ConfigError(NO_REFERENCE)
        references = [
            _check_reference(row.get("reference")) if self._knows(ids) else None
            for row, ids in zip(inputs, completion_ids, strict=True)
        ]
        # Those of the policy's prompts, and those of the row, as in the offline stages
        template_kwargs = [
            self.chat_template_kwargs | given_template_kwargs(row.get("chat_template_kwargs")) for row in inputs
        ]
        # What the policy wrote. TRL may have parsed it into messages, of which the content is a part
        texts = [decode_completion(self._tokenizer, ids) for ids in completion_ids]
        samples = (prompts, references, texts, completion_ids)
        token_probs, states = judge(self.grm, *samples, template_kwargs, with_states=self._distills)
        # Without a reference, there is no opinion on any token
        opinions = [
            [None] * len(ids) if probs is None else probs
            for probs, ids in zip(token_probs, completion_ids, strict=True)
        ]
        margins = [self._margins(probs) for probs in opinions]
        if self.log_completions:
            self._log_completion_extra("token_probs", [_rounded(_nan_for_none(probs)) for probs in opinions])
        if outcome is None:
            correct = [not any(margin < 0 for margin in row) for row in margins]
        else:
            # Of a completion that the reward function gives no reward, nothing is known
            correct = [None if math.isnan(reward) else reward >= self.args.correct_reward for reward in outcome]
        if self.args.token_credit == "add":
            rewards.append([self._clipped_rewards(*row) for row in zip(opinions, correct, strict=True)])
        else:
            rewards.append(margins)
        credit = _Credit(self._combine(rewards, completion_ids), margins, completion_ids, states=states)
        if self._rewrites:
            wanted = [self.args.rewrite_samples == "all" or is_correct is False for is_correct in correct]
            rewrite_ids = rewrite_flagged(
                self.grm, wanted, token_probs, *samples, self.args.reward_baseline, template_kwargs
            )
            credit.rewrite_ids = self._verified(inputs, prompts, rewrite_ids, completion_ids)
        return credit

    def _knows(self, completion_ids: list[int]) -> bool:
        """
        Whether the reward model can read a completion: a vocabulary may be padded with ids that the tokenizer never
        gives, but that a policy may sample.
        """
        vocab_size = len(self._tokenizer)
        if self.grm.model is not None:
            vocab_size = max(vocab_size, self.grm.model.config.get_text_config().vocab_size)
        return not self.grm.shares_tokenizer or max(completion_ids, default=0) < vocab_size

    def _clipped_rewards(self, token_probs: list[float | None], correct: bool | None) -> list[float]:
        """The paper's rewards of a sample, NaN where the reward model has no opinion, or without an outcome."""
        if correct is None:
            return [math.nan] * len(token_probs)
        positive, negative = tuple(self.args.positive_reward_range), tuple(self.args.negative_reward_range)
        return _nan_for_none(
            rewards_from_probs(
                token_probs, correct, self.args.reward_baseline, positive, negative, self.args.negative_credit
            )
        )

    def _margins(self, token_probs: list[float | None]) -> list[float]:
        """How far each token's probability is over `reward_baseline`; a token under it is flagged."""
        return [prob - self.args.reward_baseline for prob in _nan_for_none(token_probs)]

    def _combine(self, rewards: list[list[list[float]]], completion_ids: list[list[int]]) -> list[list[float]]:
        """Weighted sum over the sources, NaN where none has an opinion; and their metrics."""
        mode = "train" if self.model.training else "eval"
        # All completions in one row, shape (sources, tokens): a call for each would cost more than its arithmetic
        rows = torch.tensor([list(chain.from_iterable(source)) for source in rewards], dtype=torch.float32)
        opinions = ~rows.isnan()
        weights = torch.tensor(self.token_reward_weights).unsqueeze(-1)
        total = (rows * weights).nansum(dim=0).masked_fill(~opinions.any(dim=0), torch.nan)
        combined = [row.tolist() for row in total.split([len(ids) for ids in completion_ids])]
        num_active = torch.tensor([[(total.nan_to_num() != 0).sum(), total.numel()]], dtype=torch.float32)
        sums = torch.cat([torch.stack([rows.nansum(dim=-1), opinions.sum(dim=-1)], dim=-1), num_active])
        sums = sums.to(self.accelerator.device)
        totals = self.accelerator.reduce(sums, reduction="sum").tolist()
        names = [f"{name}/mean" for name in self._token_names] + ["active_fraction"]
        for name, (total, count) in zip(names, totals, strict=True):
            self._metrics[mode][f"token_reward/{name}"].append(total / count if count else math.nan)
        if self.log_completions:
            for name, source in zip(self._token_names, rewards, strict=True):
                self._log_completion_extra(f"token_reward/{name}", [_rounded(row) for row in source])
            if len(rewards) > 1:
                self._log_completion_extra("token_reward", [_rounded(row) for row in combined])
        return combined

    def _verified(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        rewrite_ids: list[list[int] | None],
        completion_ids: list[list[int]],
    ) -> list[list[int] | None]:
        """The rewrites that are complete and correct; and their metrics."""
        mode = "train" if self.model.training else "eval"
        ends = set(self.eos_token_ids)
        vocab_size = self.model.config.get_text_config().vocab_size
        complete = [
            index for index, ids in enumerate(rewrite_ids) if ids and ids[-1] in ends and max(ids) < vocab_size
        ]
        verified: list[list[int] | None] = [None] * len(rewrite_ids)
        if complete:
            chosen_ids = [rewrite_ids[index] for index in complete]
            texts = self._tokenizer.batch_decode(chosen_ids, skip_special_tokens=True)
            chosen_prompts = [prompts[index] for index in complete]
            if is_conversational(chosen_prompts[0]):
                texts = [[{"role": "assistant", "content": text}] for text in texts]
            columns = self._reward_kwargs([inputs[index] for index in complete])
            # What is logged belongs to the completions
            columns |= {"log_extra": lambda *args: None, "log_metric": lambda *args: None}
            for index, passed in zip(
                complete, self._check_rewrites(chosen_prompts, texts, chosen_ids, columns), strict=True
            ):
                verified[index] = rewrite_ids[index] if passed else None
        distances = [
            edit_distance(ids, rewrite)
            for ids, rewrite in zip(completion_ids, verified, strict=True)
            if rewrite is not None
        ]
        counts = [len(distances), sum(ids is not None for ids in rewrite_ids), sum(distances)]
        counts = torch.tensor(counts, dtype=torch.float32, device=self.accelerator.device)
        num_verified, num_rewritten, total = self.accelerator.reduce(counts, reduction="sum").tolist()
        self._metrics[mode]["rewrite/verified"].append(num_verified / num_rewritten if num_rewritten else math.nan)
        self._metrics[mode]["rewrite/edit_distance"].append(total / num_verified if num_verified else math.nan)
        return verified

    def _check_rewrites(self, prompts, completions, completion_ids, columns) -> list[bool]:
        func = self.rewrite_verifier or self.reward_funcs[0]
        returned = call_token_reward_funcs(
            [func],
            [is_async_callable(func)],
            self._token_loop,
            prompts=prompts,
            completions=completions,
            completion_ids=completion_ids,
            **columns,
        )[0]
        # Arrays and tensors of booleans are as good as lists
        num_returned = len(returned) if hasattr(returned, "__len__") else None
        if num_returned != len(completions):
            found = f"{num_returned} values" if num_returned is not None else f"a `{type(returned).__name__}`"
            raise ConfigError(
                f"{get_callable_name(func)!r} returned {found} for {len(completions)} rewrites. It must return a list "
                "with one value for each."
            )
        if self.rewrite_verifier is not None:
            return [bool(passed) for passed in returned]
        return [reward is not None and reward >= self.args.correct_reward for reward in returned]

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        credit, self._credit = self._credit, None
        mask = output["completion_mask"].bool()
        if "tool_mask" in output:
            mask = mask & output["tool_mask"].bool()
        if credit is not None and self.args.token_credit not in ("outcome", "none"):
            values = _pad_rows(credit.values, mask, math.nan)
            output["advantages"] = token_advantages(output["advantages"], values, mask, self.args.token_credit)
            if self.log_completions:
                local = [_rounded(row[kept].tolist()) for row, kept in zip(output["advantages"], mask, strict=True)]
                self._logs["extra"]["token_advantages"].extend(gather_object(local))
        if self._rewrites or self._replays:
            output["imitation"] = self._imitation_examples(output, credit)
            weighted = sum(map(_num_weighted, output["imitation"]))
            output["num_weighted_in_batch"] = self._count(weighted)
        if self._distills:
            flagged = first_flagged(_pad_rows(credit.flags, mask, math.nan), mask)
            judged = torch.tensor([states is not None for states in credit.states], device=mask.device)
            # Up to and including the first flagged token
            reached = (flagged.cumsum(dim=-1) - flagged.int()) == 0
            output["teacher_mask"] = mask & reached & judged.unsqueeze(-1)
            output["teacher_states"] = self._padded_states(credit.states, mask)
            output["num_distilled_in_batch"] = self._count(output["teacher_mask"].sum())
        return output

    def _count(self, number: int | torch.Tensor) -> torch.Tensor:
        """Sum over all processes, float32 without dimensions."""
        number = torch.as_tensor(number, dtype=torch.float32, device=self.accelerator.device)
        return self.accelerator.reduce(number, reduction="sum")

    def _imitation_examples(self, output: dict[str, Any], credit: _Credit | None) -> list[list[dict[str, Any]]]:
        """For each completion, what is imitated beside it: its rewrite and rows of the replay dataset."""
        num_rows = len(output["completion_ids"])
        examples: list[list[dict[str, Any]]] = [[] for _ in range(num_rows)]
        if self._rewrites:
            rows = zip(
                output["prompt_ids"], output["prompt_mask"], credit.completion_ids, credit.rewrite_ids, strict=True
            )
            for index, (prompt_ids, prompt_mask, ids, rewrite) in enumerate(rows):
                if rewrite is None:
                    continue
                edited = edit_mask(ids, rewrite)
                weights = [self.args.edited_weight if is_edited else self.args.unedited_weight for is_edited in edited]
                examples[index].append(
                    {
                        "prompt_ids": prompt_ids[prompt_mask.bool()].tolist(),
                        "completion_ids": [],
                        "token_rewards": [],
                        "imitation_ids": rewrite,
                        "imitation_weights": weights,
                        "num_edited": sum(edited),
                    }
                )
        if self._replays:
            drawn = self._replay.draw(math.ceil(self.args.replay_fraction * num_rows))
            for index, row in enumerate(drawn):
                examples[index % num_rows].append(row)
        return examples

    def _padded_states(self, states: list[torch.Tensor | None], mask: torch.Tensor) -> torch.Tensor:
        known = next((row for row in states if row is not None), None)
        # A process whose samples have no reference has nothing to learn from
        width = self.grm.model.config.get_text_config().hidden_size if known is None else known.size(-1)
        dtype = torch.float32 if known is None else known.dtype
        padded = torch.zeros(*mask.shape, width, dtype=dtype, device=mask.device)
        for row, one in zip(padded, states, strict=True):
            if one is not None:
                row[: one.size(0)] = one
        return padded

    def _compute_loss(self, model, inputs):
        mode = "train" if self.model.training else "eval"
        num_accumulated = self.current_gradient_accumulation_steps if mode == "train" else 1
        losses = []
        if self.args.token_credit != "none" or self._needs_policy_forward:
            if self.args.token_credit == "none":
                inputs = inputs | {"advantages": torch.zeros_like(inputs["advantages"])}
            losses.append(super()._compute_loss(model, inputs))
            self._count_completions(inputs, mode)
            adds_to_grpo = self._token_names or self._replays
            if adds_to_grpo and not self._entropy_bonus_enabled:  # with it, TRL logs the metric
                self._log_loss(mode, "policy_loss", losses[0] * num_accumulated)
        if self._rewrites or self._replays:
            loss = self._imitation_loss(model, inputs, mode)
            self._log_loss(mode, "imitation_loss", loss * num_accumulated)
            losses.append(self.args.imitation_coef * loss)
        if self._distills:
            loss = self._attempt_loss(model, inputs, mode)
            self._log_loss(mode, "attempt_loss", loss * num_accumulated)
            losses.append(self.args.attempt_coef * loss)
        return sum(losses)

    @property
    def _needs_policy_forward(self) -> bool:
        """Whether TRL's loss has a term beside the policy's, from the completions."""
        return self.beta != 0.0 or self._entropy_bonus_enabled or self.aux_loss_enabled

    def _log_loss(self, mode: str, name: str, loss: torch.Tensor) -> None:
        self._metrics[mode][name].append(self.accelerator.gather(loss.detach()).mean().item())

    def _count_completions(self, inputs: dict[str, Any], mode: str) -> None:
        """Count the tokens of a forward pass over the completions and their prompts."""
        if mode == "train":
            self._count_tokens(policy=inputs["prompt_mask"].sum() + inputs["completion_mask"].sum())

    def _share(self, count: torch.Tensor, mode: str) -> torch.Tensor:
        """
        What a sum over a micro-batch is divided by, as in GRPO's `"dapo"` loss: the count over the generation batch,
        brought to one accumulation window, and to the mean over processes that DDP takes.
        """
        share = count.clamp(min=1.0) / self.accelerator.num_processes
        if mode == "train":
            share = share * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return share

    def _imitation_loss(self, model, inputs, mode: str) -> torch.Tensor:
        examples = [example for examples in inputs["imitation"] for example in examples]
        if not examples:  # every process takes part in each forward pass
            ids = inputs["completion_ids"][0, :1].tolist()
            examples = [
                {"prompt_ids": ids, "completion_ids": [], "token_rewards": [], "imitation_ids": [],
                 "imitation_weights": [], "num_edited": 0}
            ]  # fmt: skip
        batch = send_to_device(self._imitation_collator(examples), self.accelerator.device)
        if mode == "train":
            # Without the sequence that only lets the process take part
            is_target = (batch["labels"] != -100).any(dim=1, keepdim=True)
            self._count_tokens(policy=(batch["attention_mask"] * is_target).sum())
        model_inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        with self.accelerator.autocast():
            outputs = model(**model_inputs, use_cache=False, fused_lm_head=True)
        length = batch["input_ids"].size(1) - 1
        total, _ = imitation_loss(outputs.log_probs[:, -length:], batch["imitation_weights"][:, 1:], num_weighted=1.0)
        return total / self._share(inputs["num_weighted_in_batch"], mode)

    def _attempt_loss(self, model, inputs, mode: str) -> torch.Tensor:
        prompt_ids, teacher_mask, states = inputs["prompt_ids"], inputs["teacher_mask"], inputs["teacher_states"]
        input_ids = torch.cat([prompt_ids, inputs["completion_ids"]], dim=1)
        attention_mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        mask = torch.cat([torch.zeros_like(prompt_ids, dtype=torch.bool), teacher_mask], dim=1)
        states = torch.cat([states.new_zeros(*prompt_ids.shape, states.size(-1)), states], dim=1)
        with self.accelerator.autocast():
            outputs = model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                labels=input_ids.masked_fill(~mask, -100),
                use_cache=False,
                fused_lm_head=True,
                teacher_states=states,
                teacher_mask=mask,
            )
        self._count_completions(inputs, mode)
        return outputs.divergence.sum() / self._share(inputs["num_distilled_in_batch"], mode)

    def log(self, logs, start_time=None):
        if not (self.log_completions and self._token_names and self.accelerator.is_main_process):
            return super().log(logs, start_time)
        # TRL would print the lists of tokens and their values in a table
        num_shown, self.num_completions_to_print = self.num_completions_to_print, 0
        try:
            super().log(logs, start_time)
        finally:
            self.num_completions_to_print = num_shown
        completions = self._logged_completions(num_shown)
        if completions:
            print_completions(completions, self.state.global_step)
            self._reporter.report(completions, self.state.global_step, table=False)  # TRL logs the table

    def _logged_completions(self, num_shown: int | None) -> list[CreditedCompletion]:
        """The last completions, or some of them, with their tokens colored by their combined reward."""
        extra = self._logs["extra"]
        indices = range(len(extra.get("tokens", ())))
        if num_shown is not None and num_shown < len(indices):
            indices = sorted(random.Random(self.state.global_step).sample(indices, max(num_shown, 0)))
        own = [f"token_reward/{name}" for name in self._token_names]
        combined = extra.get("token_reward", extra.get(own[0]))
        shades = shades_of([combined[index] for index in indices])
        completions = []
        for index, shade in zip(indices, shades, strict=True):
            tokens = extra["tokens"][index]
            of_tokens = {name: extra[name][index] for name in (*_OF_TOKENS, *own) if name in extra}
            # The results of tools have no advantages
            of_tokens = {name: values for name, values in of_tokens.items() if len(values) == len(tokens)}
            rewards = {name: values[index] for name, values in self._logs["rewards"].items()}
            # Where a prompt has images, its text is a list of parts
            prompt = str(problem_text(self._logs["prompt"][index]))
            values = rewards | {"advantage": self._logs["advantages"][index]}
            completions.append(CreditedCompletion(prompt, tokens, shade, of_tokens, values))
        return completions

    def _name_rows(self, batches, train: bool) -> str:
        # Of the prompts of a generation batch, each micro-batch has some
        prompts = [row["prompt"] for rows in batches for row in rows]
        prompts = [prompt for prompts in gather_object([prompts]) for prompt in prompts]
        which = "training" if train else "evaluation"
        if not prompts:
            return f"a completion of the {which} dataset"
        return f"a completion of one of {len(prompts)} prompts of the {which} dataset, such as {prompts[0]!r}"

    def _mask_last_rows(self, batch, num_rows: int):
        return batch  # GRPO's batches are whole groups, and in an evaluation all of them count

    def _save(self, output_dir=None, state_dict=None):
        if self.grm is None or not self._is_shared(self.grm):
            return super()._save(output_dir, state_dict)
        # The reward model's adapter is not part of the policy
        own = [name for name in self.model.peft_config if name != self.grm.adapter_name]
        self.model.save_pretrained = partial(self.model.save_pretrained, selected_adapters=own)
        try:
            super()._save(output_dir, state_dict)
        finally:
            del self.model.save_pretrained

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        # A reward model that follows the policy is part of what a training resumes from
        if self.args.sync_grm and self.args.should_save:
            save_model(self.grm.model, os.path.join(output_dir, SYNCED_GRM))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.args.sync_grm and checkpoint is not None:
            path = os.path.join(checkpoint, SYNCED_GRM)
            if not os.path.isfile(path):
                raise ConfigError(
                    f"{checkpoint!r} has no {SYNCED_GRM}, the reward model as it was at that step (`sync_grm`), so it "
                    "cannot be resumed from. Train from the start, or with `sync_grm=False`."
                )
            load_model(self.grm.model, path, device=str(self.args.device))


def _check_reference(reference: Any) -> str | None:
    """A reference, `None` where it is blank."""
    if reference is not None and not isinstance(reference, str):
        raise DatasetError(
            f"The column `reference` must be a text, or None where there is none, got {reference!r} "
            f"({type(reference).__name__})."
        )
    return reference if reference is not None and reference.strip() else None


def _num_weighted(examples: list[dict[str, Any]]) -> int:
    return sum(weight != 0 for example in examples for weight in example["imitation_weights"])


def _pad_rows(rows: list[list[float]], mask: torch.Tensor, value: float) -> torch.Tensor:
    """Rows as a float32 tensor of the shape of `mask`."""
    padded = torch.full(mask.shape, value, dtype=torch.float32, device=mask.device)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = torch.tensor(row, dtype=torch.float32)
    return padded


def _nan_for_none(row: list[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in row]


def _rounded(row: list[float]) -> list[float]:
    return [round(value, 4) for value in row]
