"""Labels: the one that a response states, and the rationale beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .answers import find_statements, readings
from .options import Options, named_options, read_options


POSITIONS = ("last", "first")

# Around a statement, these are no part of the rationale: "> **So the answer is positive.**"
_MARKUP = " \t\r\n>#*_`$()[]\\.,:"
_LEAD_INS = ("", "so", "thus", "hence", "therefore", "overall")
_SENTENCE_END = re.compile(r"[.;!]\s")


class Named(NamedTuple):
    """
    A place where a response names a label as its own.

    Args:
        start, end (`int`):
            Where it begins and ends.
        labels (`set[int]`):
            Indices of the labels that are named there: none where the place names no label.
        reasoned (`bool`):
            Whether a reason follows inside it, "positive because ...".
    """

    start: int
    end: int
    labels: set[int]
    reasoned: bool = False


def stated_label(labels: Sequence[str], label_position: str, response: str, problem: str = "") -> str | None:
    r"""
    The label that a response states as its own.

    A label is stated in the forms of [`~rlmec_trl.tasks.answers.extract_answer`] ("The answer is X", "Answer: X", a
    LaTeX box) anywhere, or by the line at `label_position` if this line is nothing but the label. Case, markup, quotes
    and punctuation around it do not count. The label has to be the whole of what is stated: "not positive" and "very
    positive" are not "positive".

    Args:
        labels (`Sequence[str]`):
            All labels of the task.
        label_position (`str`):
            `"last"` if responses end with their label, `"first"` if they begin with it. If there are several
            statements, the one at that end has to name a label.
        response (`str`):
            Text of the response.
        problem (`str`, *optional*, defaults to `""`):
            The problem. If it lists the labels as options, their letters name them too.

    Returns:
        `str` or `None`:
            The label, as it is written in `labels`, or `None` if the response states none, or two different ones.

    Examples:

    ```python
    >>> stated_label(("negative", "positive"), "last", "The plot is not positive.\nThe answer is **Negative**.")
    'negative'
    >>> stated_label(("negative", "positive"), "last", "Negative or positive? The answer is neither.")
    ```
    """
    options = _options(labels, problem)
    found = _find_own(options, label_position, response)
    return None if found is None else labels[min(found.labels)]


def split_response(labels: Sequence[str], label_position: str, response: str) -> tuple[str, str | None]:
    r"""
    Split a response into its rationale and its label, with the label at its place: after the rationale or before it.

    Args:
        labels (`Sequence[str]`):
            All labels of the task.
        label_position (`str`):
            `"last"` if responses end with their label, `"first"` if they begin with it.
        response (`str`):
            Text of the response.

    Returns:
        `tuple[str, str | None]`:
            The rationale, which is empty if there is only a label, and the label as in [`stated_label`]. If the
            response states no label, or not at its place, the whole response and `None`.

    Examples:

    ```python
    >>> split_response(("negative", "positive"), "last", "A bleak film.\nThe answer is negative.")
    ('A bleak film.', 'negative')
    >>> split_response(("negative", "positive"), "last", "The answer is negative.\nA bleak film.")
    ('The answer is negative.\nA bleak film.', None)
    ```
    """
    found = _find_own(_options(labels), label_position, response)
    if found is not None and not found.reasoned:
        label = labels[min(found.labels)]
        line_start = response.rfind("\n", 0, found.start) + 1
        lead_in = response[line_start : found.start].strip(_MARKUP).casefold()
        before = response[: line_start if lead_in in _LEAD_INS else found.start].strip()
        if label_position == "last" and not response[found.end :].strip(_MARKUP):
            return before, label
        if label_position == "first" and not before:
            same_line, newline, lines = response[found.end :].partition("\n")
            return (same_line.lstrip(" \t*_`$.)") + newline + lines).strip(), label
    return response, None


def check_label(
    completion: str,
    answer: str,
    problem: str = "",
    labels: Sequence[str] = (),
    label_position: str = "last",
    read_label: Callable[[str], str | None] | None = None,
) -> bool:
    """
    Whether a completion states the label `answer`, for tasks in which all problems have the same labels.

    Args:
        completion (`str`):
            Response to check, read by [`stated_label`].
        answer (`str`):
            The correct label.
        problem (`str`, *optional*, defaults to `""`):
            The problem. If it lists the labels as options, their letters name them too.
        labels (`Sequence[str]`):
            All labels of the task.
        label_position (`str`, *optional*, defaults to `"last"`):
            Where a response states its label, as in [`stated_label`].
        read_label (`Callable[[str], str | None]`, *optional*):
            Used instead of [`stated_label`].
    """
    expected = find_label(labels, answer, problem)
    if expected is None:
        return False
    if read_label is not None:
        return read_label(completion) == expected
    return stated_label(labels, label_position, completion, problem) == expected


def find_label(labels: Sequence[str], text: str, problem: str = "") -> str | None:
    """The label that a text names, whatever its case, or `None`. The problem may list the labels with letters."""
    named = named_options([text], _options(labels, problem))
    return labels[min(named)] if named else None


def _options(labels: Sequence[str], problem: str = "") -> Options:
    listed = read_options(problem)
    letters = {} if listed is None else dict(zip(map(_folded, listed.texts), listed.labels, strict=True))
    # Other options are a part of the text that is to be labeled
    if letters.keys() == set(map(_folded, labels)):
        return Options(tuple(labels), tuple(letters[_folded(label)] for label in labels))
    return Options(tuple(labels))


def _folded(label: str) -> str:
    return " ".join(label.casefold().split())


def _find_own(options: Options, label_position: str, response: str) -> Named | None:
    """The place where a response names its label, if it names one there and no other one elsewhere."""
    at_start = label_position == "first"
    places = [
        _read(options, statement.start, statement.end, readings(statement), response, at_start)
        for statement in find_statements(response)
    ]
    lines = list(re.finditer(r"^.*\S.*$", response, re.MULTILINE))
    if not places:
        whole = _read(options, 0, len(response), [response], response)
        if whole.labels:
            return whole
        lone = [_read_line(options, line, response) for line in (lines[:1] if at_start else lines[-1:])]
        places = [place for place in lone if place.labels]
    if not places:
        return None
    own = places[0] if at_start else places[-1]
    # Lines at either end, and the one after the statement, that are nothing but a label
    following = [line for line in lines if line.start() >= own.end][:1]
    others = [_read_line(options, line, response) for line in (*lines[:1], *lines[-1:], *following)]
    named = set().union(*(place.labels for place in (*places, *others)))
    return own if own.labels and named <= own.labels else None


def _read_line(options: Options, line: re.Match, response: str) -> Named:
    # Without the signs of a quotation or a heading
    return _read(options, line.start(), line.end(), [line[0].lstrip(" \t>#")], response)


def _read(options: Options, start: int, end: int, texts: list[str], response: str, by_sentence: bool = False) -> Named:
    labels = named_options(texts, options)
    reasoned = bool(labels) and " because " in " ".join(texts[0].split())
    if not labels and by_sentence and (sentence := _SENTENCE_END.search(texts[0])):
        # "The answer is positive. The plot is great": the rationale follows on the same line
        labels = named_options([texts[0][: sentence.start()]], options)
        if labels:
            end = response.index(texts[0], start) + sentence.end()
    return Named(start, end, labels, reasoned)
