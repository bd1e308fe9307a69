"""Questions to a causal language model in this process."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.tokens import as_prompt, encode_prompt
from ..generation.inference import eos_token_ids, generate_ids


def ask_model(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    desc: str,
) -> list[str | None]:
    """
    The greedy answers of a model; `None` for those truncated at `max_new_tokens`.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any instruction-tuned causal language model.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer. If it has a chat template, each prompt is a user message.
        prompts (`Sequence[str]`):
            The questions.
        max_new_tokens (`int`):
            Maximum length of an answer, in tokens.
        batch_size (`int`):
            Number of answers in a batch.
        desc (`str`):
            Description of the progress bar.
    """
    prompt_ids = [encode_prompt(processing_class, as_prompt(processing_class, prompt)) for prompt in prompts]
    answers = generate_ids(model, processing_class, prompt_ids, max_new_tokens, batch_size, desc)
    ends = eos_token_ids(model.generation_config, processing_class)
    return [
        processing_class.decode(ids, skip_special_tokens=True).strip() if ids[-1] in ends else None for ids in answers
    ]
