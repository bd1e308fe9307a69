"""Inference with a generative reward model: locate the first incorrect step, rewrite an attempt, score its tokens."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig
from trl.trainer.utils import pad, use_adapter

from ..credit.across_tokenizers import carry_over, token_spans, translate_completion, translate_rewrite
from ..credit.preparation import num_before_flag
from ..data.errors import ConfigError, UserError
from ..data.messages import message_text
from ..data.steps import split_steps
from ..data.tokens import decode_completion, same_vocabulary, step_prefix_ids
from ..generation.inference import (
    completion_logps,
    completion_logps_and_states,
    eos_token_ids,
    evaluation_mode,
    generate_ids,
    length_batches,
    padding_id,
    seeded,
)
from ..generation.loading import load_eos_token_ids, load_tokenizer, load_weights
from ..generation.processes import process_state
from ..generation.server import ServerConfig, TokenServer
from ..tasks.wording import WORDING, Wording, parse_locate
from .prompts import encode_locate_prompt, encode_rewrite_prompt, load_wording


class TokenizerMismatchError(UserError, ValueError):
    """
    The completion ids do not come from the policy's tokenizer, or what is asked for needs a reward model with the same
    tokenizer.
    """


def check_topk_tokenizer(
    policy_tokenizer: PreTrainedTokenizerBase,
    reward_tokenizer: PreTrainedTokenizerBase,
    setting: str = "rewrite_topk",
) -> None:
    """
    Check that policy and reward model have the same tokens, which soft imitation and distillation need.

    Args:
        policy_tokenizer, reward_tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The two tokenizers.
        setting (`str`, *optional*, defaults to `"rewrite_topk"`):
            The setting of the score stage that asks for the distributions.

    Raises:
        [`TokenizerMismatchError`]: If their vocabularies differ.
    """
    if same_vocabulary(policy_tokenizer, reward_tokenizer):
        return
    policy, reward = policy_tokenizer.get_vocab(), reward_tokenizer.get_vocab()
    token = min(set(policy.items()) ^ set(reward.items()))[0]
    raise TokenizerMismatchError(
        f"`{setting}` stores the reward model's distribution over its own tokens, and the policy's tokenizer "
        f"({len(policy)} tokens) and the reward model's ({len(reward)}) differ, first at {token!r}. Leave it at 0, or "
        "use a reward model with the policy's tokenizer: train it from the policy, or from a model of its family."
    )


class GenerativeRewardModel:
    """
    Judge and rewrite attempts with a generative reward model (https://huggingface.co/papers/2401.06081).

    All methods take lists with one entry per attempt and return a list in the same order. They run in batches of
    similar length, in evaluation mode and without gradients. Prompts are texts or messages, as in the datasets.
    `chat_template_kwargs` are further arguments of the model's chat template, one entry per attempt. They must be the
    same as in training (see [`~rlmec_trl.data.tokens.encode_prompt`]).

    Args:
        model ([`~transformers.PreTrainedModel`] or `None`):
            Model trained by [`GRMTrainer`]. `None` if a `server` does all the work (see [`from_server`]).
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        wording ([`~rlmec_trl.tasks.wording.Wording`], *optional*):
            Wording of the prompts that the model was trained on.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of attempts in a batch.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Maximum number of tokens that a rewrite may add to the steps it keeps.
        generation_kwargs (`dict`, *optional*):
            Additional arguments of `model.generate` for rewriting. By default, decoding is greedy.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar (on the main process).
        server ([`~rlmec_trl.generation.server.TokenServer`], *optional*):
            A server that serves the same model. It locates errors and rewrites, with greedy decoding and without
            `generation_kwargs`. If it refuses a request, the attempt counts as correct, or its rewrite ends after the
            steps it keeps. Probabilities are computed by `model`, and by the server only if that is `None`.
        policy_processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The policy's tokenizer, if it is another one. All ids that the methods take and return are the policy's:
            the model reads and writes the text in its own tokens, and [`score`] carries its probabilities over by
            their places in the text. By default, the policy has the tokenizer of the model.
        adapter_name (`str`, *optional*):
            Name of the reward model's adapter, if `model` is a [`~peft.PeftModel`] that is the policy as well.

    Attributes:
        num_scored, num_generated (`int`):
            Numbers of tokens, in the model's own tokens and without prompts, of which it has computed the probability
            or the distribution, and that it has written: rewrites from the step on at which they begin, and answers to
            the question for the first incorrect step.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If there is neither a `model` nor a `server`.
    """

    def __init__(
        self,
        model: PreTrainedModel | None,
        processing_class: PreTrainedTokenizerBase,
        wording: Wording = WORDING,
        batch_size: int = 16,
        max_new_tokens: int = 512,
        generation_kwargs: dict[str, Any] | None = None,
        show_progress: bool = True,
        server: TokenServer | None = None,
        policy_processing_class: PreTrainedTokenizerBase | None = None,
        adapter_name: str | None = None,
    ):
        if model is None and server is None:
            raise ConfigError("A `GenerativeRewardModel` without a `model` needs a `server` that has it.")
        self.model = model
        self.processing_class = processing_class
        self.wording = wording
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.generation_kwargs = generation_kwargs or {}
        self.show_progress = show_progress
        self.server = server
        self.adapter_name = adapter_name
        self.num_scored = self.num_generated = 0
        # Tokenizers of one vocabulary count as one: the ids of either are ids of the other
        if policy_processing_class is not None and same_vocabulary(policy_processing_class, processing_class):
            policy_processing_class = None
        self._policy_processing_class = policy_processing_class

    @property
    def shares_tokenizer(self) -> bool:
        """Whether policy and reward model have the same tokens."""
        return self._policy_processing_class is None

    @property
    def policy_processing_class(self) -> PreTrainedTokenizerBase:
        """The policy's tokenizer, which is the model's own where the two have the same tokens."""
        return self.processing_class if self.shares_tokenizer else self._policy_processing_class

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str,
        revision: str = "main",
        trust_remote_code: bool = False,
        allow_untrained: bool = False,
        **kwargs,
    ) -> "GenerativeRewardModel":
        """
        Load a model, its tokenizer and the wording it was trained with.

        Args:
            model_name_or_path (`str`):
                Path, or name on the Hub, of a model or an adapter.
            revision (`str`, *optional*, defaults to `"main"`):
                Revision on the Hub, of the model, its tokenizer and its wording.
            trust_remote_code (`bool`, *optional*, defaults to `False`):
                Whether to run Python code that the model's repository ships.
            allow_untrained (`bool`, *optional*, defaults to `False`):
                Whether the model may be one that was not trained as a generative reward model, without a wording.
            kwargs:
                Arguments of the constructor. `model_init_kwargs` is passed to
                [`~transformers.AutoModelForCausalLM.from_pretrained`].

        Raises:
            [`~rlmec_trl.grm.prompts.WordingError`]: If the model has no wording, and none is given.
            [`~rlmec_trl.generation.loading.ModelError`]: If the model cannot be loaded.
        """
        model_init_kwargs = kwargs.pop("model_init_kwargs", {})
        source = ModelConfig(model_name_or_path, model_revision=revision)
        tokenizer = load_tokenizer(source, trust_remote_code)
        if "wording" not in kwargs:
            kwargs["wording"] = load_wording(model_name_or_path, revision, allow_untrained)
        model = load_weights(model_name_or_path, revision, trust_remote_code=trust_remote_code, **model_init_kwargs)
        return cls(model.to(process_state().device), tokenizer, **kwargs)

    @classmethod
    def from_server(
        cls,
        model_name_or_path: str,
        server_config: ServerConfig,
        revision: str = "main",
        trust_remote_code: bool = False,
        allow_untrained: bool = False,
        **kwargs,
    ) -> "GenerativeRewardModel":
        """
        Use a model that a server serves. Its tokenizer and its wording are loaded here, its weights are not.

        The server locates, rewrites and scores; scoring needs a server that returns the log-probabilities of a
        prompt's tokens, as vLLM and SGLang do (see [`~rlmec_trl.generation.server.TokenServer`]). The methods that
        return whole distributions or hidden states raise a [`~rlmec_trl.data.errors.ConfigError`].

        Args:
            model_name_or_path (`str`):
                Path, or name on the Hub, of the model that the server was started with.
            server_config ([`~rlmec_trl.generation.server.ServerConfig`]):
                How to reach the server.
            revision (`str`, *optional*, defaults to `"main"`):
                Revision on the Hub, of the tokenizer and the wording.
            trust_remote_code (`bool`, *optional*, defaults to `False`):
                Whether to run Python code that the model's repository ships.
            allow_untrained (`bool`, *optional*, defaults to `False`):
                Whether the model may be one that was not trained as a generative reward model, without a wording.
            kwargs:
                Arguments of the constructor.

        Raises:
            [`~rlmec_trl.grm.prompts.WordingError`]: If the model has no wording, and none is given.
            [`~rlmec_trl.generation.loading.ModelError`]: If the tokenizer or the configuration cannot be loaded.
        """
        source = ModelConfig(model_name_or_path, model_revision=revision)
        tokenizer = load_tokenizer(source, trust_remote_code)
        if "wording" not in kwargs:
            kwargs["wording"] = load_wording(model_name_or_path, revision, allow_untrained)
        ends = load_eos_token_ids(source, tokenizer, trust_remote_code)
        return cls(None, tokenizer, server=TokenServer(server_config, tokenizer, ends), **kwargs)

    @property
    def eos_token_ids(self) -> set[int]:
        """Every id of the model's own that ends what it writes."""
        if self.model is None:
            return self.server.ends
        return eos_token_ids(self.model.generation_config, self.processing_class)

    def locate(
        self,
        prompts: Sequence[str | list[dict]],
        references: Sequence[str],
        completions: Sequence[str | list[dict]],
        chat_template_kwargs: Sequence[dict | None] | None = None,
    ) -> list[int]:
        """
        Find the first incorrect step of each attempt.

        Args:
            prompts, references, completions (`Sequence`):
                The problems, their correct solutions, and the attempts.
            chat_template_kwargs (`Sequence[dict | None]`, *optional*):
                Arguments of the chat template.

        Returns:
            `list[int]`: Index of the first incorrect step, -1 if there is none. The index after the last step means
            that a step is missing. Any other answer of the model counts as -1.
        """
        prompt_ids = self._encode(encode_locate_prompt, prompts, references, completions, chat_template_kwargs)
        answers = self._generate(prompt_ids, 8, "Locating errors")
        located = []
        for answer_ids, completion in zip(answers, completions, strict=True):
            step = parse_locate(self.wording, self.processing_class.decode(answer_ids, skip_special_tokens=True))
            num_steps = len(split_steps(message_text(completion), self.wording.step_separator))
            located.append(step if step is not None and step <= num_steps else -1)
        return located

    def flagged_steps(
        self,
        completions: Sequence[str | list[dict]],
        completion_ids: Sequence[list[int]],
        token_probs: Sequence[list[float | None]],
        threshold: float = 0.5,
    ) -> list[int]:
        """
        Find the step of each attempt that contains its first flagged token: another way to locate the first error,
        free once the attempts are scored.

        Args:
            completions (`Sequence`):
                The attempts.
            completion_ids (`Sequence[list[int]]`):
                Their token ids, as sampled.
            token_probs (`Sequence[list[float | None]]`):
                Result of [`score`].
            threshold (`float`, *optional*, defaults to `0.5`):
                Probability below which a token is flagged. A token without one is not.

        Returns:
            `list[int]`: Index of the step, -1 if no token is flagged.
        """
        located = []
        for completion, ids, probs in zip(completions, completion_ids, token_probs, strict=True):
            first = num_before_flag(probs, threshold)
            if first == len(probs):
                located.append(-1)
                continue
            # A token belongs to the step of its last character: it may begin with the space that ends a separator
            end = len(decode_completion(self.policy_processing_class, ids[: first + 1]))
            step_ends = list(accumulate(map(len, split_steps(message_text(completion), self.wording.step_separator))))
            # An empty attempt, of which EOS is flagged, has no steps, and is rewritten from its start
            located.append(max(min(bisect_left(step_ends, end), len(step_ends) - 1), 0))
        return located

    def rewrite(
        self,
        prompts: Sequence[str | list[dict]],
        references: Sequence[str],
        completions: Sequence[str | list[dict]],
        completion_ids: Sequence[list[int]],
        error_steps: Sequence[int] | None = None,
        chat_template_kwargs: Sequence[dict | None] | None = None,
    ) -> list[str]:
        """
        Rewrite each attempt, like [`rewrite_ids`], and decode the rewrites.

        Returns:
            `list[str]`: The rewrites.
        """
        rewrites = self.rewrite_ids(
            prompts, references, completions, completion_ids, error_steps, chat_template_kwargs
        )
        return [decode_completion(self.policy_processing_class, ids) for ids in rewrites]

    def rewrite_ids(
        self,
        prompts: Sequence[str | list[dict]],
        references: Sequence[str],
        completions: Sequence[str | list[dict]],
        completion_ids: Sequence[list[int]],
        error_steps: Sequence[int] | None = None,
        chat_template_kwargs: Sequence[dict | None] | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[list[int]]:
        """
        Rewrite each attempt from its first incorrect step on. The tokens of the steps before it are kept unchanged,
        and an attempt without an incorrect step is its own rewrite.

        Args:
            prompts, references, completions (`Sequence`):
                The problems, their correct solutions, and the attempts.
            completion_ids (`Sequence[list[int]]`):
                Token ids of the attempts, as sampled.
            error_steps (`Sequence[int]`, *optional*):
                Index of the first incorrect step of each attempt, -1 for none. By default, the result of [`locate`].
            chat_template_kwargs (`Sequence[dict | None]`, *optional*):
                Arguments of the chat template.
            temperature (`float`, *optional*, defaults to `0.0`):
                Sampling temperature; with `0.0`, `generation_kwargs` apply.
            seed (`int`, *optional*, defaults to `0`):
                Seed of the sampling. The global random state is not changed.

        Returns:
            `list[list[int]]`: Token ids of the rewrites, ending with EOS unless truncated at `max_new_tokens`. Where
            the model has another tokenizer than the policy, it writes in its own tokens; its steps that are also in
            the attempt keep the sampled ids, and the rest of its text is encoded by the policy's tokenizer.

        Raises:
            [`TokenizerMismatchError`]: If the ids are not those of the completion under the policy's tokenizer.
        """
        self._check_tokenizer(completions, completion_ids)
        if error_steps is None:
            error_steps = self.locate(prompts, references, completions, chat_template_kwargs)
        rewrites = [list(ids) for ids in completion_ids]
        to_rewrite = [index for index, step in enumerate(error_steps) if step >= 0]
        kept = []
        for index in to_rewrite:
            own_ids, text = completion_ids[index], message_text(completions[index])
            if not self.shares_tokenizer:
                own_ids = self._own_ids(completion_ids[index])
                text = decode_completion(self.processing_class, own_ids)
            steps = split_steps(text, self.wording.step_separator)
            kept.append(step_prefix_ids(self.processing_class, own_ids, steps, error_steps[index]))
        contexts = self._encode(
            encode_rewrite_prompt,
            [prompts[i] for i in to_rewrite],
            [references[i] for i in to_rewrite],
            [completions[i] for i in to_rewrite],
            None if chat_template_kwargs is None else [chat_template_kwargs[i] for i in to_rewrite],
        )
        generated = self._generate(
            [context + prefix for context, prefix in zip(contexts, kept, strict=True)],
            self.max_new_tokens,
            "Rewriting",
            temperature,
            seed,
            self.generation_kwargs,
        )
        if self.shares_tokenizer:
            for index, prefix, ids in zip(to_rewrite, kept, generated, strict=True):
                rewrites[index] = prefix + ids
            return rewrites
        ends = self.eos_token_ids
        for index, prefix, ids in zip(to_rewrite, kept, generated, strict=True):
            rewrites[index] = translate_rewrite(
                self.processing_class,
                self.policy_processing_class,
                prefix,
                ids,
                bool(ids) and ids[-1] in ends,
                rewrites[index],
                self.wording.step_separator,
            )
        return rewrites

    def score(
        self,
        prompts: Sequence[str | list[dict]],
        references: Sequence[str],
        completions: Sequence[str | list[dict]],
        completion_ids: Sequence[list[int]],
        chat_template_kwargs: Sequence[dict | None] | None = None,
    ) -> list[list[float | None]]:
        """
        Probability of each token of an attempt in a rewrite: `p_t = P_GRM(y_t | problem, reference, y, y_<t)`.

        Where the model has another tokenizer than the policy, it is the joint probability of the model's own tokens
        that begin within the policy's token (see [`~rlmec_trl.credit.across_tokenizers.carry_over`]).

        Args:
            prompts, references, completions (`Sequence`):
                The problems, their correct solutions, and the attempts.
            completion_ids (`Sequence[list[int]]`):
                Token ids of the attempts, as sampled, EOS included.
            chat_template_kwargs (`Sequence[dict | None]`, *optional*):
                Arguments of the chat template.

        Returns:
            `list[list[float | None]]`: One probability for each completion id, or `None` where the model has another
            tokenizer and none of its tokens begins there.

        Raises:
            [`TokenizerMismatchError`]: If the ids are not those of the completion under the policy's tokenizer.
            [`~rlmec_trl.generation.server.ServerError`]: If there is no local model, and the server does not give the
                log-probabilities of the tokens.
        """
        self._check_tokenizer(completions, completion_ids)
        contexts = self._encode(encode_rewrite_prompt, prompts, references, completions, chat_template_kwargs)
        own_ids = completion_ids if self.shares_tokenizer else [self._own_ids(ids) for ids in completion_ids]
        desc = self._desc("Scoring")
        if self.model is None:
            logps = self.server.completion_logps(contexts, own_ids, desc)
        else:
            with self._adapter():
                logps = completion_logps(self.model, self.processing_class, contexts, own_ids, self.batch_size, desc)
        self.num_scored += sum(map(len, own_ids))
        if not self.shares_tokenizer:
            targets = [token_spans(self.policy_processing_class, ids) for ids in completion_ids]
            logps = [
                carry_over(row, token_spans(self.processing_class, own, target.has_eos), target)
                for row, own, target in zip(logps, own_ids, targets, strict=True)
            ]
        return [[None if logp is None else math.exp(logp) for logp in row] for row in logps]

    def score_with_states(
        self,
        prompts: Sequence[str | list[dict]],
        references: Sequence[str],
        completions: Sequence[str | list[dict]],
        completion_ids: Sequence[list[int]],
        chat_template_kwargs: Sequence[dict | None] | None = None,
    ) -> tuple[list[list[float]], list[torch.Tensor]]:
        """
        Like [`score`], together with the last hidden states, from which the LM head makes the whole distribution of
        each token of the attempt.

        Returns:
            `tuple`: The probabilities, and for each attempt a tensor of shape `(tokens, hidden)`, on the device and
            with the dtype of the model.

        Raises:
            [`TokenizerMismatchError`]: If the ids are not those of the completion, or the tokenizers differ.
            [`~rlmec_trl.data.errors.ConfigError`]: If there is no local model.
        """
        self._check_weights()
        if not self.shares_tokenizer:
            raise TokenizerMismatchError(
                "The distributions of a reward model with another tokenizer are not over the policy's tokens. Use a "
                "model of the policy's family."
            )
        self._check_tokenizer(completions, completion_ids)
        contexts = self._encode(encode_rewrite_prompt, prompts, references, completions, chat_template_kwargs)
        with self._adapter():
            logps, states = completion_logps_and_states(
                self.model, self.processing_class, contexts, completion_ids, self.batch_size, self._desc("Scoring")
            )
        self.num_scored += sum(map(len, completion_ids))
        return [[math.exp(logp) for logp in row] for row in logps], states

    def rewrite_topk(
        self,
        prompts: Sequence[str | list[dict]],
        references: Sequence[str],
        completions: Sequence[str | list[dict]],
        rewrite_ids: Sequence[list[int]],
        k: int,
        chat_template_kwargs: Sequence[dict | None] | None = None,
    ) -> tuple[list[list[list[int]]], list[list[list[float]]]]:
        """
        The model's distribution at each token of a rewrite, at temperature 1: the k most likely ids and their
        log-probabilities. [`attempt_topk`] gives it at each token of the attempt.

        Args:
            prompts, references, completions (`Sequence`):
                The problems, their correct solutions, and the attempts.
            rewrite_ids (`Sequence[list[int]]`):
                Token ids of the rewrites.
            k (`int`):
                Number of ids a token.
            chat_template_kwargs (`Sequence[dict | None]`, *optional*):
                Arguments of the chat template.

        Returns:
            `tuple`: Ids and log-probabilities, of shape `(tokens, k)` for each rewrite.

        Raises:
            [`TokenizerMismatchError`]: If the policy has another tokenizer than the model.
            [`~rlmec_trl.data.errors.ConfigError`]: If there are fewer than k ids, or there is no local model.
        """
        self._check_weights()
        if not self.shares_tokenizer:
            check_topk_tokenizer(self.policy_processing_class, self.processing_class)
        contexts = self._encode(encode_rewrite_prompt, prompts, references, completions, chat_template_kwargs)
        return self._topk(contexts, rewrite_ids, k, "Soft targets")

    def attempt_topk(
        self,
        prompts: Sequence[str | list[dict]],
        references: Sequence[str],
        completions: Sequence[str | list[dict]],
        completion_ids: Sequence[list[int]],
        k: int,
        chat_template_kwargs: Sequence[dict | None] | None = None,
    ) -> tuple[list[list[list[int]]], list[list[list[float]]]]:
        """
        The distributions that [`score`] reads the attempt's own tokens from: the k most likely ids at each token of
        the attempt and their log-probabilities, at temperature 1.

        Args:
            prompts, references, completions (`Sequence`):
                The problems, their correct solutions, and the attempts.
            completion_ids (`Sequence[list[int]]`):
                Token ids of the attempts, as sampled, EOS included.
            k (`int`):
                Number of ids a token.
            chat_template_kwargs (`Sequence[dict | None]`, *optional*):
                Arguments of the chat template.

        Returns:
            `tuple`: Ids and log-probabilities, of shape `(tokens, k)` for each attempt.

        Raises:
            [`TokenizerMismatchError`]: If the policy has another tokenizer than the model, or the ids are not those of
                the completion.
            [`~rlmec_trl.data.errors.ConfigError`]: If there are fewer than k ids, or there is no local model.
        """
        self._check_weights()
        if not self.shares_tokenizer:
            check_topk_tokenizer(self.policy_processing_class, self.processing_class, "attempt_topk")
        self._check_tokenizer(completions, completion_ids)
        contexts = self._encode(encode_rewrite_prompt, prompts, references, completions, chat_template_kwargs)
        return self._topk(contexts, completion_ids, k, "Attempts' targets")

    def _topk(
        self, contexts: list[list[int]], target_ids: Sequence[list[int]], k: int, title: str
    ) -> tuple[list[list[list[int]]], list[list[list[float]]]]:
        """The k most likely ids, and their log-probabilities, at each token of the targets after their contexts."""
        vocab_size = self.model.config.get_text_config().vocab_size
        if k > vocab_size:
            raise ConfigError(f"`k` is {k}, but the vocabulary has only {vocab_size} tokens.")
        sequences = [context + list(ids) for context, ids in zip(contexts, target_ids, strict=True)]
        all_ids, all_logps = [None] * len(sequences), [None] * len(sequences)
        pad_token_id = padding_id(self.processing_class)
        with self._adapter(), evaluation_mode(self.model):
            for batch in length_batches([len(ids) for ids in sequences], self.batch_size, self._desc(title)):
                rows = [torch.tensor(sequences[index]) for index in batch]
                # With left padding, all targets end at the last position, so that only their logits are computed
                inputs = {
                    "input_ids": pad(rows, pad_token_id, padding_side="left"),
                    "attention_mask": pad([torch.ones_like(row) for row in rows], padding_side="left"),
                    "position_ids": pad([torch.arange(len(row)) for row in rows], padding_side="left"),
                }
                logits = self.model(
                    **{name: tensor.to(self.model.device) for name, tensor in inputs.items()},
                    logits_to_keep=max(len(target_ids[index]) for index in batch) + 1,
                ).logits
                for row, index in enumerate(batch):
                    top = logits[row, -len(target_ids[index]) - 1 : -1].float().log_softmax(dim=-1).topk(k)
                    all_ids[index], all_logps[index] = top.indices.tolist(), top.values.tolist()
        self.num_scored += sum(map(len, target_ids))
        return all_ids, all_logps

    def _generate(
        self,
        prompt_ids: list[list[int]],
        max_new_tokens: int,
        title: str,
        temperature: float = 0.0,
        seed: int = 0,
        generation_kwargs: dict[str, Any] | None = None,
    ) -> list[list[int]]:
        desc, kwargs = self._desc(title), generation_kwargs or {}
        if self.server is not None:
            generated = self.server.generate_ids(prompt_ids, max_new_tokens, temperature, seed=seed, desc=desc)
        else:
            with self._adapter(), seeded(seed, self.model.device) if temperature > 0 else nullcontext():
                if temperature > 0:
                    kwargs = {**kwargs, "do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
                generated = generate_ids(
                    self.model, self.processing_class, prompt_ids, max_new_tokens, self.batch_size, desc, **kwargs
                )
        self.num_generated += sum(map(len, generated))
        return generated

    def _check_weights(self) -> None:
        if self.model is None:
            raise ConfigError(
                "The distributions of a reward model are computed from its weights: a server returns only the "
                "probabilities of the tokens that it is sent. Load the weights with "
                "`GenerativeRewardModel.from_pretrained`."
            )

    def _adapter(self) -> AbstractContextManager:
        return nullcontext() if self.adapter_name is None else use_adapter(self.model, self.adapter_name)

    def _encode(
        self, encode_question: Callable, prompts, references, completions, chat_template_kwargs
    ) -> list[list[int]]:
        if chat_template_kwargs is None:
            chat_template_kwargs = [None] * len(prompts)
        return [
            self._known(encode_question(self.processing_class, self.wording, *row))
            for row in zip(prompts, references, completions, chat_template_kwargs, strict=True)
        ]

    def _own_ids(self, completion_ids: list[int]) -> list[int]:
        """The model's own ids for a completion of a policy with another tokenizer."""
        return self._known(translate_completion(self.policy_processing_class, self.processing_class, completion_ids))

    def _known(self, token_ids: list[int]) -> list[int]:
        """The ids, if the model has them all. A server, whose model's size is not known here, checks them itself."""
        if self.model is None:
            return token_ids
        vocab_size = self.model.config.get_text_config().vocab_size
        if max(token_ids, default=0) >= vocab_size:
            raise TokenizerMismatchError(
                f"The reward model's tokenizer gives the id {max(token_ids)}, and the model has {vocab_size} ids. Use "
                "the tokenizer that the model was trained with."
            )
        return token_ids

    def _check_tokenizer(self, completions, completion_ids) -> None:
        for index, (ids, completion) in enumerate(zip(completion_ids, completions, strict=True)):
            text = decode_completion(self.policy_processing_class, list(ids))
            if text.strip() != message_text(completion).strip():
                whose = "the reward model's" if self.shares_tokenizer else "the policy's"
                raise TokenizerMismatchError(
                    f"Row {index}: `completion_ids` decode to {text[:60]!r} with {whose} tokenizer, but `completion` "
                    f"is {message_text(completion)[:60]!r}. Give the ids that were sampled. If the policy's tokenizer "
                    "is not the reward model's, pass it as `policy_processing_class`."
                )

    def _desc(self, title: str) -> str | None:
        return title if self.show_progress else None
