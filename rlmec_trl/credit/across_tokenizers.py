"""From the tokens of one tokenizer to those of another: log-probabilities by their places in the text, rewrites."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

from rapidfuzz.distance import Levenshtein

from ..data.tokens import decode_completion, encode_completion, encode_rewrite, ends_with_eos


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenSpans:
    """
    Where the tokens of a completion begin in its text.

    Args:
        text (`str`):
            The decoded completion, without special tokens.
        starts (`list[int | Fraction]`):
            Position of the first character of each token. A token spans the text up to the start of the next. Tokens
            without text, such as special ones, have empty spans. Tokens that share a character have equal parts of it:
            of three, the second begins at a third.
        has_eos (`bool`):
            Whether the last token is EOS.
    """

    text: str
    starts: list[int | Fraction]
    has_eos: bool


def token_spans(
    processing_class: PreTrainedTokenizerBase, token_ids: Sequence[int], has_eos: bool | None = None
) -> TokenSpans:
    """
    Find the spans of token ids as they are, without tokenizing their text again.

    The spans are read off what the ids decode to, so they need neither offsets nor knowledge of the tokenizer. A token
    that ends where the text so far does not agree with the whole text ends within the next character. It may hold the
    first bytes of it.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the ids, fast or slow.
        token_ids (`Sequence[int]`):
            Token ids of a completion, as sampled.
        has_eos (`bool`, *optional*):
            Whether the last token is EOS. By default, if it is a special token.
    """
    token_ids = list(token_ids)
    if has_eos is None:
        has_eos = ends_with_eos(processing_class, token_ids)
    text = decode_completion(processing_class, token_ids)
    ends = _decoded_ends(processing_class, token_ids, text, from_start=False)
    if ends and ends[-1] != (len(text), False):  # what a token adds depends on more than the few before it
        ends = _decoded_ends(processing_class, token_ids, text, from_start=True)
    positions = []
    for (settled, within), group in groupby(ends):
        count = len(list(group))
        positions += [settled + Fraction(part, count + 1) if within else settled for part in range(1, count + 1)]
    # Text that vanishes again (an invalid byte that some tokenizers drop) moves no token back or past the end
    positions = [min(position, len(text)) for position in accumulate([0, *positions], max)]
    return TokenSpans(text, positions[: len(token_ids)], has_eos)


def _decoded_ends(
    processing_class: PreTrainedTokenizerBase, token_ids: list[int], text: str, from_start: bool
) -> list[tuple[int, bool]]:
    """
    For each token, how many characters of the text are complete after it, and whether the next one has begun.

    Decoding every prefix takes quadratic time. `from_start=False` decodes only the last tokens, from the one before
    the last that agreed with the text: its text is the context in which the next ones are decoded.
    """
    ends = []
    context = read = settled = reached = 0
    lead = ""
    for end in range(1, len(token_ids) + 1):
        piece = decode_completion(processing_class, token_ids[context:end])
        added = piece[len(lead) :] if piece.startswith(lead) else ""
        agrees = piece.startswith(lead) and text.startswith(added, settled)
        num_common = len(added)
        if not agrees:
            num_common = len(os.path.commonprefix([added, text[settled : settled + len(added)]]))
        # With some tokenizers, the first half of a character spoils complete ones before it until its other half comes
        reached = max(reached, settled + num_common)
        ends.append((reached, not agrees))
        if agrees and added and not from_start:
            settled += len(added)
            context, read = read, end
            lead = decode_completion(processing_class, token_ids[context:read])
    return ends


def carry_over(values: Sequence[float], source: TokenSpans, target: TokenSpans) -> list[float | None]:
    """
    Carry log-probabilities of the tokens of one tokenizer over to those of another one.

    Every source token counts once, for the target token in whose span it begins. EOS counts for EOS, and for nothing
    where the target has none.

    Args:
        values (`Sequence[float]`):
            Log-probability of each source token.
        source, target ([`TokenSpans`]):
            Spans of the two tokenizers' tokens in the same text. Where a tokenizer cannot spell the text exactly (it
            composes accents, or drops a leading space), the two texts are aligned by a minimum edit script.

    Returns:
        `list[float | None]`: For each target token the sum over the source tokens that begin in its span, or `None` if
        none does.
    """
    carried: list[float | None] = [None] * len(target.starts)
    num_texts = len(target.starts) - target.has_eos
    values = list(values)
    if len(values) != len(source.starts):
        raise ValueError(f"{len(values)} values for {len(source.starts)} source tokens")
    if source.has_eos:
        eos_value = values.pop()
        if target.has_eos:
            carried[-1] = eos_value
    if num_texts == 0:
        return carried
    moved = _move(source.starts[: len(values)], source.text, target.text)
    index = 0
    for start, group in groupby(moved):
        # Of target tokens that begin at the same place, all but the last are empty; as are those of the source. They
        # are paired from the last on, so that equal tokens meet.
        first = bisect_left(target.starts, start, hi=num_texts)
        last = bisect_right(target.starts, start, hi=num_texts) - 1
        count = len(list(group))
        for number in range(count):
            owner = max(last - (count - 1 - number), min(first, last))
            carried[owner] = values[index] if carried[owner] is None else carried[owner] + values[index]
            index += 1
    return carried


def _move(positions: Sequence[int | Fraction], source: str, target: str) -> list[int | Fraction]:
    """Positions in one text as positions in another one. The order stays the same."""
    if source == target:
        return list(positions)
    places = _places(source, target)
    moved = []
    for position in positions:
        whole = int(position)
        part = position - whole
        # Of a character that the other text does not have, nothing is left to be within
        moved.append(places[whole] + (part if part and places[whole + 1] > places[whole] else 0))
    return moved


def _places(source: str, target: str) -> list[int]:
    """Where each character of a text, and its end, is in another text."""
    places = [len(target)] * (len(source) + 1)
    for operation in Levenshtein.opcodes(source, target):
        for offset in range(operation.src_end - operation.src_start):
            # Characters that are deleted are where the next one is; others come in pairs
            is_deleted = operation.dest_start == operation.dest_end
            places[operation.src_start + offset] = operation.dest_start + (0 if is_deleted else offset)
    return places


def translate_completion(
    source_class: PreTrainedTokenizerBase, target_class: PreTrainedTokenizerBase, completion_ids: list[int]
) -> list[int]:
    """The ids of a completion in another tokenizer, with EOS where the completion has it."""
    token_ids = encode_completion(target_class, decode_completion(source_class, completion_ids))
    return token_ids if ends_with_eos(source_class, completion_ids) else token_ids[:-1]


def translate_rewrite(
    source_class: PreTrainedTokenizerBase,
    target_class: PreTrainedTokenizerBase,
    kept_ids: list[int],
    new_ids: list[int],
    is_complete: bool,
    completion_ids: list[int],
    step_separator: str,
) -> list[int]:
    """
    The ids of a rewrite in another tokenizer.

    Args:
        source_class, target_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer that the rewrite was generated with, and the one that sampled the completion.
        kept_ids, new_ids (`list[int]`):
            Source ids of the beginning of the completion that was kept, and of what was generated after it.
        is_complete (`bool`):
            Whether the rewrite was generated up to EOS.
        completion_ids (`list[int]`):
            Target ids of the completion, as sampled.
        step_separator (`str`):
            What stands between two steps.

    Returns:
        `list[int]`: Target ids. The leading steps that rewrite and completion share keep the sampled ids, and the rest
        is tokenized (see [`~rlmec_trl.data.tokens.encode_rewrite`]). They end with EOS if the rewrite is complete.
    """
    completion = decode_completion(target_class, completion_ids)
    kept = decode_completion(source_class, kept_ids)
    rewrite = decode_completion(source_class, [*kept_ids, *new_ids])
    if rewrite.startswith(kept):
        # What is kept is spelled as in the completion: the other tokenizer may have lost a leading space
        spelled = decode_completion(source_class, encode_completion(source_class, completion))
        places = _places(spelled, completion)
        kept_end = places[len(kept) - 1] + 1 if kept else places[0]
        rewrite = completion[:kept_end] + rewrite[len(kept) :]
    rewrite_ids = encode_rewrite(target_class, rewrite, completion, completion_ids, step_separator)
    has_eos = ends_with_eos(target_class, rewrite_ids)
    if has_eos and not is_complete:
        return rewrite_ids[:-1]
    return rewrite_ids if has_eos or not is_complete else [*rewrite_ids, target_class.eos_token_id]
