"""Batched generation and log-probabilities for sequences of different lengths."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate.utils import is_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import add_fused_lm_head, pad

from ..data.errors import ConfigError
from .processes import process_state


def eos_token_ids(generation_config: GenerationConfig, processing_class: PreTrainedTokenizerBase) -> set[int]:
    """Every id that ends a completion: the tokenizer's EOS and those of the model's generation config."""
    configured = generation_config.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    return {processing_class.eos_token_id, *configured} - {None}


def padding_id(processing_class: PreTrainedTokenizerBase) -> int:
    """The id to pad with: EOS if the tokenizer has no padding token. Padding is masked, so either works."""
    pad_token_id = processing_class.pad_token_id
    return processing_class.eos_token_id if pad_token_id is None else pad_token_id


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients. The model's mode is restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of a seed, on CPU and on a model's device. The random state is restored afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def fused_lm_head(model: PreTrainedModel) -> Iterator[None]:
    """
    TRL's fused LM head, in float32 whatever the model's dtype; the model's own forward is restored afterwards.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model, with or without a fused head.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If an adapter changes the LM head, whose weight is read directly.
    """
    model = model.get_base_model() if is_peft_model(model) else model
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise ConfigError(
            "The adapter changes the LM head, whose weight is read without the adapter. Merge the adapter into its "
            "base model, and name the merged model."
        )
    own_forward = vars(model).get("forward")
    add_fused_lm_head(model, cast_lm_head_to_fp32=True)
    try:
        yield
    finally:
        del model.forward
        if own_forward is not None:
            model.forward = own_forward


def length_batches(lengths: Sequence[int], batch_size: int, desc: str | None = None) -> Iterator[list[int]]:
    """
    Indices in batches of similar length, the longest first, so that an out-of-memory error occurs at the start.

    Args:
        lengths (`Sequence[int]`):
            Length of each sequence, in tokens.
        batch_size (`int`):
            Number of sequences in a batch.
        desc (`str`, *optional*):
            Title of a progress bar over the sequences, shown by the local main process. If `None`, there is no bar.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    show = desc is not None and process_state().is_local_main_process
    with tqdm(total=len(order), desc=desc, disable=not show) as progress:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            yield batch
            progress.update(len(batch))


def generate_ids(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    prompt_ids: Sequence[list[int]],
    max_new_tokens: int,
    batch_size: int = 16,
    desc: str | None = None,
    **generation_kwargs,
) -> list[list[int]]:
    """
    Continue each prompt.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompt_ids (`Sequence[list[int]]`):
            Token ids of the prompts.
        max_new_tokens (`int`):
            Maximum number of tokens to generate for each.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of prompts in a batch.
        desc (`str`, *optional*):
            Title of a progress bar. If `None`, there is no bar.
        generation_kwargs:
            Additional arguments of `model.generate`. Without any, decoding is greedy.

    Returns:
        `list[list[int]]`: The new ids for each prompt, up to and including EOS. Ids that do not end with EOS were cut
        off by `max_new_tokens`.
    """
    ends = eos_token_ids(model.generation_config, processing_class)
    pad_token_id = padding_id(processing_class)
    if not generation_kwargs:
        generation_kwargs = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    # Many models set a repetition penalty. It would change the distribution, and rewrites have to repeat the attempt
    generation_kwargs = {"repetition_penalty": 1.0, **generation_kwargs}
    completions = [[] for _ in prompt_ids]
    with evaluation_mode(model):
        for batch in length_batches([len(ids) for ids in prompt_ids], batch_size, desc):
            rows = [torch.tensor(prompt_ids[index]) for index in batch]
            input_ids = pad(rows, padding_value=pad_token_id, padding_side="left").to(model.device)
            attention_mask = pad([torch.ones_like(row) for row in rows], padding_side="left").to(model.device)
            generated = model.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad_token_id,
                eos_token_id=sorted(ends),
                use_cache=True,
                **generation_kwargs,
            )
            for index, ids in zip(batch, generated[:, input_ids.size(1) :].tolist(), strict=True):
                end = next((position for position, token in enumerate(ids) if token in ends), len(ids) - 1)
                completions[index] = ids[: end + 1]
    return completions


def completion_logps(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    prompt_ids: Sequence[list[int]],
    completion_ids: Sequence[list[int]],
    batch_size: int = 16,
    desc: str | None = None,
) -> list[list[float]]:
    """
    Log-probability of each completion token, computed in float32 with the model's fused LM head, so that no
    (batch, tokens, vocabulary) tensor is materialized.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompt_ids, completion_ids (`Sequence[list[int]]`):
            Token ids of the prompts and of their completions.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of sequences in a batch.
        desc (`str`, *optional*):
            Title of a progress bar. If `None`, there is no bar.

    Returns:
        `list[list[float]]`: One log-probability for each completion id.
    """
    logps = [[] for _ in prompt_ids]
    for index, row, _ in _run_completions(model, processing_class, prompt_ids, completion_ids, batch_size, desc):
        logps[index] = row.tolist()
    return logps


def completion_logps_and_states(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    prompt_ids: Sequence[list[int]],
    completion_ids: Sequence[list[int]],
    batch_size: int = 16,
    desc: str | None = None,
) -> tuple[list[list[float]], list[torch.Tensor]]:
    """
    Like [`completion_logps`], together with the model's last hidden states, from which the LM head makes the
    distribution of each completion token.

    Returns:
        `tuple`: The log-probabilities, and for each completion a tensor of shape `(tokens, hidden)`, on the device and
        with the dtype of the model.
    """
    logps, states = [[] for _ in prompt_ids], [None] * len(prompt_ids)
    for index, row, row_states in _run_completions(
        model, processing_class, prompt_ids, completion_ids, batch_size, desc
    ):
        # A copy, so that the states of the prompts are not kept in memory with it
        logps[index], states[index] = row.tolist(), row_states.clone()
    return logps, states


def _run_completions(
    model, processing_class, prompt_ids, completion_ids, batch_size, desc
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """The index of each completion with the log-probabilities of its tokens and the states that predict them."""
    sequences = [[*prompt, *completion] for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
    pad_token_id = padding_id(processing_class)
    causal_lm = model.get_base_model() if is_peft_model(model) else model
    captured = []
    with evaluation_mode(model), fused_lm_head(model):
        hook = causal_lm.base_model.register_forward_hook(
            lambda module, inputs, outputs: captured.append(outputs.last_hidden_state)
        )
        try:
            for batch in length_batches([len(ids) for ids in sequences], batch_size, desc):
                rows = [torch.tensor(sequences[index]) for index in batch]
                labels = [row.clone() for row in rows]
                for row, index in zip(labels, batch, strict=True):
                    row[: len(prompt_ids[index])] = -100
                outputs = model(
                    input_ids=pad(rows, padding_value=pad_token_id).to(model.device),
                    attention_mask=pad([torch.ones_like(row) for row in rows]).to(model.device),
                    labels=pad(labels, padding_value=-100).to(model.device),
                    fused_lm_head=True,
                )
                logps = outputs.log_probs.float().cpu()
                # Counted from the end, because prompt-learning PEFT prepends virtual tokens
                states = captured.pop()[:, -logps.size(1) - 1 :]
                for row, index in enumerate(batch):
                    # The value at position t belongs to token t + 1
                    span = slice(len(prompt_ids[index]) - 1, len(sequences[index]) - 1)
                    yield index, logps[row, span], states[row, span]
        finally:
            hook.remove()
