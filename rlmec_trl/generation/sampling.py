"""Sampling completions from a policy, in this process or with a server."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.tokens import encode_prompt
from .inference import generate_ids, seeded
from .server import TokenServer


def sample_completions(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    prompts: Sequence[str | list[dict]],
    num_samples: int = 5,
    temperature: float = 0.7,
    top_p: float = 0.95,
    max_new_tokens: int = 512,
    batch_size: int = 16,
    seed: int = 0,
    desc: str | None = "Sampling",
    chat_template_kwargs: Sequence[dict | None] | None = None,
) -> list[list[list[int]]]:
    """
    Sample several completions of each prompt. The defaults are those of RLMEC
    (https://huggingface.co/papers/2401.06081).

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`Sequence`):
            Texts or messages.
        num_samples (`int`, *optional*, defaults to `5`):
            Number of completions of each prompt.
        temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature; `0.0` decodes greedily.
        top_p (`float`, *optional*, defaults to `0.95`):
            Probability mass to sample from.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Maximum length of a completion, in tokens.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of sequences in a batch.
        seed (`int`, *optional*, defaults to `0`):
            Seed. The global random state is not changed.
        desc (`str`, *optional*, defaults to `"Sampling"`):
            Title of the progress bar. If `None`, there is no bar.
        chat_template_kwargs (`Sequence[dict | None]`, *optional*):
            Further arguments of the chat template, one entry per prompt (see
            [`~rlmec_trl.data.tokens.encode_prompt`]).

    Returns:
        `list[list[list[int]]]`: For each prompt, the ids of its completions, up to and including EOS. A completion
        that does not end with EOS was truncated at `max_new_tokens`.
    """
    prompt_ids = _repeated_prompt_ids(processing_class, prompts, chat_template_kwargs, num_samples)
    kwargs = {}
    if temperature > 0:
        # The policy's generation config may set a `top_k`, which would change the distribution
        kwargs = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    with seeded(seed, model.device):
        completions = generate_ids(
            model, processing_class, prompt_ids, max_new_tokens, batch_size=batch_size, desc=desc, **kwargs
        )
    return [completions[start : start + num_samples] for start in range(0, len(completions), num_samples)]


def sample_from_server(
    server: TokenServer,
    prompts: Sequence[str | list[dict]],
    num_samples: int = 5,
    temperature: float = 0.7,
    top_p: float = 0.95,
    max_new_tokens: int = 512,
    seed: int = 0,
    desc: str | None = "Sampling",
    chat_template_kwargs: Sequence[dict | None] | None = None,
) -> list[list[list[int]]]:
    """
    [`sample_completions`] from a policy behind a server, with the same arguments and defaults.

    Args:
        server ([`~rlmec_trl.generation.server.TokenServer`]):
            The server, and the policy's tokenizer.
        prompts, num_samples, temperature, top_p, max_new_tokens, seed, desc, chat_template_kwargs:
            As in [`sample_completions`].

    Returns:
        `list[list[list[int]]]`: For each prompt, the ids of its completions, up to and including EOS. A completion
        that does not end with EOS was truncated at `max_new_tokens`. One whose exact ids are not known is empty.
    """
    prompt_ids = _repeated_prompt_ids(server.processing_class, prompts, chat_template_kwargs, num_samples)
    completions = server.generate_ids(prompt_ids, max_new_tokens, temperature, top_p, seed, desc)
    return [completions[start : start + num_samples] for start in range(0, len(completions), num_samples)]


def _repeated_prompt_ids(
    processing_class: PreTrainedTokenizerBase,
    prompts: Sequence[str | list[dict]],
    chat_template_kwargs: Sequence[dict | None] | None,
    num_samples: int,
) -> list[list[int]]:
    if chat_template_kwargs is None:
        chat_template_kwargs = [None] * len(prompts)
    return [
        encode_prompt(processing_class, prompt, kwargs)
        for prompt, kwargs in zip(prompts, chat_template_kwargs, strict=True)
        for _ in range(num_samples)
    ]
