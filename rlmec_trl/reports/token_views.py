"""Samples for people to look at, with the reward model's score of every token."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from rich.console import Group
from rich.panel import Panel
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ..credit.alignment import edit_mask
from ..data.messages import message_text, problem_text


# Control characters, which a terminal would obey, as the pictures of Unicode for them. Tab and newline stay
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
_CONTROL_PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def printable(text: str) -> str:
    """A text without control characters that move the cursor, or do worse."""
    return text.translate(_CONTROL_PICTURES)


def color_tokens(
    processing_class: PreTrainedTokenizerBase, completion_ids: Sequence[int], token_probs: Sequence[float | None]
) -> Text:
    """
    A completion, each token on a background between red (probability 0) and green (probability 1).

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        completion_ids (`Sequence[int]`):
            Token ids of the completion.
        token_probs (`Sequence[float | None]`):
            Probability of each token under the reward model. A token without one has no background.

    Raises:
        `ValueError`: If the two lists differ in length.
    """
    return color_texts([processing_class.decode([token]) for token in completion_ids], token_probs)


def color_texts(tokens: Sequence[str], token_probs: Sequence[float | None]) -> Text:
    """The same, of the texts of the tokens."""
    text = Text()
    for token, prob in zip(tokens, token_probs, strict=True):
        style = None
        if prob is not None:
            red, green = int(200 * (1 - prob)), int(130 * prob)
            style = f"bold white on rgb({red},{green},40)"
        text.append(printable(token), style=style)
    return text


def mark_edits(
    processing_class: PreTrainedTokenizerBase, completion_ids: Sequence[int], rewrite_ids: Sequence[int]
) -> Text:
    """The rewrite of a completion, with the tokens underlined that the minimum edit script touches."""
    text = Text()
    for token, edited in zip(rewrite_ids, edit_mask(completion_ids, rewrite_ids), strict=True):
        text.append(printable(processing_class.decode([token])), style="bold underline yellow" if edited else None)
    return text


def show_sample(row: dict[str, Any], processing_class: PreTrainedTokenizerBase) -> Panel:
    """A scored sample with the probability of every flagged token, and its rewrite."""
    ids, probs = row["completion_ids"], row["token_probs"]
    flagged = [
        f"{processing_class.decode([token]).strip()}: p = {prob:.2f}"
        for token, prob in zip(ids, probs, strict=True)
        if prob is not None and prob < 0.5
    ]
    lines = [
        Text(problem_text(row["prompt"]), style="italic"),
        Text("reference  ").append(row["reference"]),
        Text("sample     ").append_text(color_tokens(processing_class, ids, probs)),
        Text("flagged    ").append(", ".join(flagged) or "nothing"),
    ]
    if row["rewrite_ids"] is not None:
        lines.append(Text("rewrite    ").append_text(mark_edits(processing_class, ids, row["rewrite_ids"])))
    verdict = "a correct" if row["correct"] else "an incorrect"
    return Panel(Group(*lines), title=f"sample with {verdict} answer", title_align="left")


def pick_samples(dataset: Dataset, count: int = 2) -> list[dict[str, Any]]:
    """
    The first scored samples that the reward model rewrote: one with an incorrect answer, then one with a correct
    answer and an incorrect step, then more of the first kind.

    Args:
        dataset ([`~datasets.Dataset`]):
            Scored rows.
        count (`int`, *optional*, defaults to `2`):
            Maximum number of rows to return.
    """
    incorrect, flawed = [], []
    for row in dataset:
        if row["rewrite"] is None or message_text(row["rewrite"]) == message_text(row["completion"]):
            continue
        (flawed if row["correct"] else incorrect).append(row)
        if len(incorrect) >= count and flawed:
            break
    return [*incorrect[:1], *flawed[:1], *incorrect[1:]][:count]
