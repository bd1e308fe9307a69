"""Problems with options: how they are written, and which option a text names."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from ..data.errors import ConfigError


_HEADER = re.compile(r"^[ \t]*options:[ \t\r]*$", re.IGNORECASE | re.MULTILINE)
# "A) Paris", "(A) Paris", "A. Paris", "1: Paris"
_LABELED_LINE = re.compile(r"(?:[(\[]([A-Za-z]|\d{1,2})[)\]]|([A-Za-z]|\d{1,2})[).:])(?:\s+(\S.*))?")
_QUOTES = "\"'`*“”‘’«»"

_WORD = r"(?:the\s+)?(?:option|choice|answer|letter)"
_LABEL = r"(?P<label>[a-z]|\d{1,2})"
_BARE_LABEL = re.compile(_LABEL, re.IGNORECASE)


def _patterns(*patterns: str) -> tuple[re.Pattern, ...]:
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)


# Labels that are not an option's text by chance: "(A)", "A)", "option A"
_EXPLICIT_LABELS = _patterns(rf"(?:{_WORD}\s+)?[(\[]?{_LABEL}[)\]]", rf"{_WORD}\s+{_LABEL}")
_LABELS_WITH_TEXT = _patterns(
    # "A) Paris", "(A): Paris", "option (A) Paris"
    rf"(?:{_WORD}\s+)?[(\[]?{_LABEL}[)\]]\s*[.:]?\s*(?P<text>\S.*)",
    # "A. Paris", "option A: Paris", "A - Paris"
    rf"(?:{_WORD}\s+)?{_LABEL}(?:\s*[.:]|\s+[-–—])\s*(?P<text>\S.*)",
    # "A, Paris"
    rf"(?:{_WORD}\s+)?{_LABEL},\s+(?P<text>\S.*)",
    # "A (Paris)"
    rf"(?:{_WORD}\s+)?{_LABEL}\s+\((?P<text>.+)\)",
    # "Paris (A)", "Paris [option A]"
    rf"(?P<text>.*\S)\s*[(\[](?:{_WORD}\s+)?{_LABEL}[)\]]",
    # "Paris, option A"
    rf"(?P<text>.*[^\s,;:])\s*[,;:–—-]?\s+{_WORD}\s+{_LABEL}",
)
# "a" and "I" are words too: a small letter is a label only in brackets or after "option"
_MENTIONED_LABEL = re.compile(
    r"\b([A-Z]|\d{1,2})\b|[(\[]([a-z])[)\]]|\b([a-z])\)|\b(?i:option|choice|answer|letter)\s+([a-z])\b"
)
# What a text may have beyond its option: a label, a word before it, brackets, markup
_MAX_EXTRA_LENGTH = 60


@dataclass(frozen=True)
class Options:
    """
    The options of a problem.

    Args:
        texts (`tuple[str, ...]`):
            Texts of the options, without their labels.
        labels (`tuple[str, ...]`):
            Their labels, casefolded: letters in alphabetical order, or the numbers that the problem gives them.
            Empty where options have none, such as those that a problem does not list.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...] = ()


def write_options(question: str, options: Sequence[str]) -> str:
    """A problem: the question, then "Options:" and one option per line, each with its letter."""
    lines = [f"{letter}) {one_line(option)}" for letter, option in zip(string.ascii_uppercase, options, strict=False)]
    if len(lines) < len(options):
        raise ConfigError(f"A problem can have {len(string.ascii_uppercase)} options, found {len(options)}.")
    return "\n".join([question.strip(), "Options:", *lines])


def one_line(option: str) -> str:
    """An option as a problem lists it: line breaks and repeated spaces become single spaces."""
    return " ".join(option.split())


def read_options(problem: str) -> Options | None:
    """
    The options that a problem lists: the lines after its last "Options:", up to a blank one.

    Labels are letters or numbers in front of the options, in order from A or 1. Options without labels are referred to
    by letter, in their order.

    Returns:
        `Options` or `None`:
            The options, or `None` where the problem lists none.
    """
    headers = list(_HEADER.finditer(problem))
    if not headers:
        return None
    lines = [one_line(line) for line in problem[headers[-1].end() :].strip().splitlines()]
    lines = list(takewhile(bool, lines))
    if not lines:
        return None
    letters = tuple(string.ascii_lowercase[: len(lines)])
    numbers = tuple(str(number) for number in range(1, len(lines) + 1))
    labeled = [_LABELED_LINE.fullmatch(line) for line in lines]
    if all(labeled):
        labels = tuple((match[1] or match[2]).casefold() for match in labeled)
        if labels in (letters, numbers):
            return Options(tuple(match[3] or "" for match in labeled), labels)
    return Options(tuple(lines), letters)


def named_options(readings: Sequence[str], options: Options) -> set[int]:
    """
    The options that a text names, by their text ("Paris"), their label ("B", "(b)", "option B") or both ("B) Paris",
    "Paris (B)").

    A text that is an option's text means that option, even if it could be another one's label. Texts are first
    compared as they are, and only if no option matches, without regard to case, punctuation, quotes and markup around
    them: of the options "us" and "US", "US." names the second.

    Args:
        readings (`Sequence[str]`):
            The text, in one or several forms (with and without markup), the most faithful first.
        options (`Options`):
            The options to choose from.

    Returns:
        `set[int]`:
            Indices of the options. More than one only where options have the same text; none where the text names no
            option, or a label and a text that do not belong together.
    """
    named = _named(readings, options)
    if named:
        return named
    # "B because ...", where the reason names no other option
    for reading in readings:
        head, because, reason = one_line(reading).partition(" because ")
        named = _named([head.rstrip(" ,;")], options) if because else set()
        if named and not _mentions_another(reason, named, options):
            return named
    return set()


def _named(readings: Sequence[str], options: Options) -> set[int]:
    longest = max(len(text) for text in options.texts) + _MAX_EXTRA_LENGTH
    readings = [reading.strip() for reading in readings if len(reading.strip()) <= longest]
    # In this order: exact matches take precedence over abbreviations
    finders = (_by_same_text, _by_explicit_label, _by_text, _by_bare_label, _by_label_and_text)
    found = (finder(reading, options) for finder in finders for reading in readings)
    return next((indices for indices in found if indices), set())


def _mentions_another(reason: str, indices: set[int], options: Options) -> bool:
    """Whether a text contains the text or the label of an option that is not one of `indices`."""
    mentioned = {label.casefold() for match in _MENTIONED_LABEL.finditer(reason) for label in match.groups() if label}
    texts = {text for index, text in enumerate(options.texts) if index not in indices}
    labels = {label for index, label in enumerate(options.labels) if index not in indices}
    return bool(mentioned & labels) or any(_folded(text) in _folded(reason) for text in texts)


def _by_same_text(text: str, options: Options) -> set[int]:
    return {index for index, option in enumerate(options.texts) if one_line(option) == one_line(text)}


def _by_text(text: str, options: Options) -> set[int]:
    for key in (one_line, _folded, _bare, lambda text: _bare(_folded(text))):
        found = {index for index, option in enumerate(options.texts) if key(option) == key(text)}
        if found:
            return found
    return set()


def _by_explicit_label(text: str, options: Options) -> set[int]:
    matches = (pattern.fullmatch(_trimmed(text)) for pattern in _EXPLICIT_LABELS)
    return next((_by_label(match["label"], options) for match in matches if match), set())


def _by_bare_label(text: str, options: Options) -> set[int]:
    match = _BARE_LABEL.fullmatch(_bare(text))
    return set() if match is None else _by_label(match["label"], options)


def _by_label_and_text(text: str, options: Options) -> set[int]:
    plain = text.replace("**", "")
    # The final period may belong to the option
    for form in (text, _trimmed(text), plain, _trimmed(plain)):
        for pattern in _LABELS_WITH_TEXT:
            if match := pattern.fullmatch(form):
                # A label and the text of another option contradict each other
                found = _by_label(match["label"], options) & _by_text(match["text"], options)
                if found:
                    return found
    return set()


def _by_label(label: str, options: Options) -> set[int]:
    return {index for index, other in enumerate(options.labels) if other == label.casefold()}


def _trimmed(text: str) -> str:
    """A text without quotes, markup and sentence punctuation around it."""
    return text.strip(_QUOTES + " ").rstrip(".,;:!? " + _QUOTES)


def _bare(text: str) -> str:
    """A text without what may stand around an answer: also a pair of brackets, and the signs of LaTeX."""
    text = one_line(text)
    inner = _trimmed(text)
    for opening, closing in (("$", "$"), (r"\(", r"\)"), ("(", ")")):
        if inner.startswith(opening) and inner.endswith(closing) and len(inner) > len(opening):
            inner = inner[len(opening) : -len(closing)].strip()
    # An option may be nothing but punctuation
    return inner or text


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", one_line(text)).replace("−", "-").casefold()
