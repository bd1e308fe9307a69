"""Text to token ids and back, without changing the ids that a policy sampled."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from .messages import is_conversational, is_storable
from .row_checks import row_error
from .steps import num_shared_steps, split_steps


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_NO_TEMPLATE = (
    "The tokenizer has no chat template for messages. Give the prompts as texts, or use a tokenizer that has one."
)
_OWN_TEMPLATE_KWARGS = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
_BAD_TEMPLATE_KWARGS = (
    "It must be a dictionary of arguments of the chat template, or None. It cannot set "
    f"{', '.join(map(repr, _OWN_TEMPLATE_KWARGS))}."
)


def given_template_kwargs(chat_template_kwargs: dict | None, row: int | None = None) -> dict:
    """
    The arguments of the chat template that a row gives. In a table, each row has the names of all rows, with `None`.

    Raises:
        [`~rlmec_trl.data.errors.DatasetError`]: If they are not a dictionary, or have one that the package sets.
    """
    given = {} if chat_template_kwargs is None else chat_template_kwargs
    if isinstance(given, dict):
        given = {name: value for name, value in given.items() if value is not None}
        if _OWN_TEMPLATE_KWARGS.keys().isdisjoint(given):
            return given
    raise row_error(row, "chat_template_kwargs", chat_template_kwargs, _BAD_TEMPLATE_KWARGS)


def check_chat_template(dataset: Dataset, processing_class: PreTrainedTokenizerBase) -> None:
    """
    Check that prompts that are messages come with a tokenizer that has a chat template, before any expensive work.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If the tokenizer has none.
    """
    # All rows have the form of the first, as `check_dataset` has made sure
    for row, prompt in enumerate(dataset["prompt"][:1]):
        _check_template(processing_class, prompt, row)


def _check_template(processing_class: PreTrainedTokenizerBase, prompt: str | list[dict], row: int | None) -> None:
    if is_conversational(prompt) and getattr(processing_class, "chat_template", None) is None:
        raise row_error(row, "prompt", prompt, _NO_TEMPLATE)


def as_prompt(processing_class: PreTrainedTokenizerBase, text: str) -> str | list[dict]:
    """A prompt in the model's form: a message of the user where it has a chat template, otherwise the text."""
    if getattr(processing_class, "chat_template", None) is not None:
        return [{"role": "user", "content": text}]
    return text


def encode_prompt(
    processing_class: PreTrainedTokenizerBase,
    prompt: str | list[dict],
    chat_template_kwargs: dict | None = None,
    row: int | None = None,
) -> list[int]:
    """
    Token ids of a prompt, as [`~trl.SFTTrainer`] makes them.

    Messages go through the chat template, up to where the assistant begins. A text gets the special tokens that the
    tokenizer adds, except an EOS at its end, where the completion follows.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        prompt (`str` or `list[dict]`):
            Text or messages.
        chat_template_kwargs (`dict`, *optional*):
            Further arguments of the chat template, the row's value of the column that TRL reads under the same name,
            such as `{"enable_thinking": False}`. Values that are `None` are left out: Arrow fills keys that other
            rows have with them. A text does not use them.
        row (`int`, *optional*):
            Number of the row, for the error.

    Returns:
        `list[int]`: Token ids.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If the prompt is neither text nor messages, or the chat template
            refuses it, or there is none.
    """
    if is_conversational(prompt):
        from jinja2 import TemplateError

        _check_template(processing_class, prompt, row)
        given = given_template_kwargs(chat_template_kwargs, row)
        try:
            encoding = processing_class.apply_chat_template(prompt, **_OWN_TEMPLATE_KWARGS, **given)
        except (TemplateError, TypeError) as error:
            # Messages that the template refuses, or cannot render, such as a content of None
            found = f"messages that the chat template refuses ({type(error).__name__}: {error})"
            raise row_error(row, "prompt", found, "Give messages that the template takes.", quote=False) from None
        return list(encoding["input_ids"])
    if not is_storable(prompt):
        raise row_error(row, "prompt", prompt, "It must be a text, without lone surrogates, or a list of messages.")
    prompt_ids = list(processing_class(prompt)["input_ids"])
    # One id alone is the BOS of an empty prompt (some tokenizers use the same token for both)
    added_eos = len(prompt_ids) > 1 and prompt_ids[-1] == processing_class.eos_token_id
    return prompt_ids[:-1] if added_eos and not prompt.endswith(processing_class.eos_token) else prompt_ids


def encode_completion(processing_class: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a completion that is given as text, with EOS at the end and no other special token."""
    if not is_storable(text):
        raise row_error(None, "completion", text, "It must be a text without lone surrogates.")
    return [*processing_class(text, add_special_tokens=False)["input_ids"], processing_class.eos_token_id]


def decode_completion(processing_class: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    """Text of a completion, or of a part of it, without special tokens."""
    return processing_class.decode(token_ids, skip_special_tokens=True)


def ends_with_eos(processing_class: PreTrainedTokenizerBase, token_ids: list[int]) -> bool:
    """Whether the last token is a special one, as every EOS is: the one that was sampled may be another one's EOS."""
    if not token_ids or token_ids[-1] == processing_class.unk_token_id:
        return False
    if token_ids[-1] in processing_class.all_special_ids:
        return True
    # Ends of turns that the tokenizer has no name for
    added = processing_class.added_tokens_decoder.get(token_ids[-1])
    return added is not None and added.special


def same_vocabulary(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers have the same tokens under the same ids."""
    return first.get_vocab() == second.get_vocab()


def step_prefix_ids(
    processing_class: PreTrainedTokenizerBase, completion_ids: list[int], steps: list[str], num_steps: int
) -> list[int]:
    """
    The sampled ids of the first steps of a completion.

    They are the longest prefix of `completion_ids` whose text does not extend beyond the first `num_steps` steps. A
    token that spans the end of the last of these steps is left out, and so is EOS.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer that made `completion_ids`.
        completion_ids (`list[int]`):
            Token ids of the completion.
        steps (`list[str]`):
            The completion's steps, as [`split_steps`] gives them.
        num_steps (`int`):
            Number of steps to keep.

    Returns:
        `list[int]`:
            The first ids of `completion_ids`, unchanged.
    """
    if num_steps < 0:
        raise ValueError(f"`num_steps` is {num_steps}; it counts the steps to keep and cannot be negative")
    kept_text = "".join(steps[:num_steps])

    def length(size: int) -> int:
        # A character whose last byte is missing decodes to replacement characters, with some tokenizers so do complete
        # ones before it, and the text is longer than it will be. Without them it is never longer, so the search may
        # end too far to the right, but not too far to the left.
        return len(decode_completion(processing_class, completion_ids[:size]).rstrip("\ufffd"))

    size = bisect_right(range(len(completion_ids) + 1), len(kept_text), key=length) - 1
    while size > 0 and not kept_text.startswith(decode_completion(processing_class, completion_ids[:size])):
        size -= 1
    # Special tokens have no text, so the prefix may end with some. The sampled EOS need not be the tokenizer's own
    special_ids = set(processing_class.all_special_ids)
    while size > 0 and completion_ids[size - 1] in special_ids:
        size -= 1
    return list(completion_ids[:size])


def encode_rewrite(
    processing_class: PreTrainedTokenizerBase,
    rewrite: str,
    completion: str,
    completion_ids: list[int],
    step_separator: str,
) -> list[int]:
    """
    Token ids of a rewrite that differ from the completion's only where the text does.

    A rewrite that equals the completion gets its ids. Otherwise the leading steps that the two share keep the ids that
    were sampled, and only the text after them is tokenized.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer that made `completion_ids`.
        rewrite (`str`):
            The corrected completion.
        completion (`str`):
            The completion as it was sampled.
        completion_ids (`list[int]`):
            Its token ids.
        step_separator (`str`):
            What stands between two steps.

    Returns:
        `list[int]`:
            Token ids of the rewrite, with EOS at the end.
    """
    if rewrite == completion:
        return list(completion_ids)
    steps = split_steps(completion, step_separator)
    num_shared = num_shared_steps(steps, split_steps(rewrite, step_separator))
    shared_ids = step_prefix_ids(processing_class, completion_ids, steps, num_shared)
    rest = rewrite[len(decode_completion(processing_class, shared_ids)) :]
    joined_ids = [*shared_ids, *encode_completion(processing_class, rest)]
    whole_ids = encode_completion(processing_class, rewrite)
    # Some tokenizers put a space before every text, which is wrong in the middle of a line
    faithful = decode_completion(processing_class, joined_ids) == decode_completion(processing_class, whole_ids)
    return joined_ids if faithful else whole_ids
