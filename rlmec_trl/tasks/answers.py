"""Final answers: finding the one that a solution states, and telling whether it is the right one."""

from __future__ import annotations

import re
import threading
import unicodedata


# A longer "answer" is prose, and a symbolic parser can take very long over prose
_MAX_EXPRESSION_LENGTH = 200
_STATEMENT = re.compile(r"\bthe (?:final |correct )?answer is\b[*_\s]*:?(.*)", re.IGNORECASE)
_HASHES = re.compile(r"^[ \t]*####[ \t]*((?=[-+$€£.,/%]*\d)[-+$€£\d.,/%]+)[ \t]*$", re.MULTILINE)
_BOXED = re.compile(r"\\f?boxed\s*\{")
_QUOTES = "\"'`*“”‘’«»"
# A word of prose between or after the mathematics: a unit, "because". Names that are mathematics are none
_WORD = re.compile(
    r"(?<![\\a-zA-Z])(?<!\\begin\{)(?<!\\end\{)(?!(?:and|or|sin|cos|tan|log|ln|exp|sqrt|pi)\b)[a-zA-Z]{2,}"
)
# What cannot end an expression: an operator, or a command that needs an argument
_UNFINISHED = re.compile(r"(?:[-+*/=^_<>&|]|\\(?!(?:pi|infty|circ)\b)[a-zA-Z]+)$")
_LATEX_OF_SYMBOL = str.maketrans({"−": "-", "⁄": "/", "°": r"^\circ ", "√": r"\sqrt ", "π": r"\pi "})


def extract_answer(solution: str) -> str | None:
    r"""
    The final answer that a solution states.

    Three forms are known: `The answer is X` (X reaches to the end of the line), a LaTeX box, and `#### N` with a
    number. Where there are several, the last one counts.

    Returns:
        `str` or `None`:
            The answer without the markup around it and without the sentence's period, or `None` where none is stated.

    Examples:

    ```python
    >>> extract_answer("48 / 2 = 24\n48 + 24 = 72\nThe answer is **72**.")
    '72'
    >>> extract_answer(r"Hence $x = \boxed{\frac{1}{2}}$.")
    '\\frac{1}{2}'
    ```
    """
    found = find_answer(solution)
    return None if found is None else found[1]


def find_answer(solution: str) -> tuple[int, str] | None:
    """Where a solution states its final answer, and that answer as [`extract_answer`] returns it."""
    stated = [(match.start(), _strip_markup(match.group(1))) for match in _HASHES.finditer(solution)]
    for match in _STATEMENT.finditer(solution):
        # A box inside the statement is found below, as what stands last
        stated.append((match.start(), _strip_markup(match.group(1))))
    closing = _closing_braces(solution)
    for match in _BOXED.finditer(solution):
        if match.end() in closing:
            stated.append((match.start(), solution[match.end() : closing[match.end()]].strip()))
    return max(((start, answer) for start, answer in stated if answer), default=None)


def check_math(completion: str, answer: str, problem: str = "") -> bool:
    r"""
    Whether a completion's final answer equals `answer`, as mathematics (`0.5` is `\frac{1}{2}`).

    A time limit guards against expressions that explode. It rests on a signal, which Python allows in a process's main
    thread alone: to check many completions at once, use processes.

    Args:
        completion (`str`):
            Solution to judge. One that states no answer is right only where it is nothing but the answer.
        answer (`str`):
            The right answer, or a solution that states it in one of the forms of [`extract_answer`].

    Returns:
        `bool`:
            Whether the two are equal. Text that cannot be read as mathematics is compared as text.
    """
    right = extract_answer(answer) or answer
    stated = extract_answer(completion)
    if stated is None:
        if _WORD.search(completion):
            return _same_text(completion, right)
        stated = completion
    return _same_text(stated, right) or _same_expression(stated, right)


def check_choice(completion: str, answer: str, problem: str = "") -> bool:
    """
    Whether a completion's final answer is the option `answer`.

    Case, whitespace, Unicode variants and the quotes and punctuation around the two do not count.

    Args:
        completion (`str`):
            Solution to judge. One that states no answer is right only where it is nothing but the answer.
        answer (`str`):
            Text of the right option.
    """
    stated = extract_answer(completion)
    return _normalized_choice(completion if stated is None else stated) == _normalized_choice(answer)


def _closing_braces(text: str) -> dict[int, int]:
    """Where the content of each pair of braces starts, and where it ends."""
    opened, closing = [], {}
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text):
        # An escaped brace matches together with its backslash and is skipped
        if match.group() == "{":
            opened.append(match.end())
        elif match.group() == "}" and opened:
            closing[opened.pop()] = match.start()
    return closing


def _strip_markup(text: str) -> str:
    text = text.strip(" \t\r*`").removesuffix(".").strip(" \t\r*`")
    for opening, closing in (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        # "$3$" is mathematics in a sentence, "$3" is money
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening):
            text = text[len(opening) : -len(closing)].strip("$ \t")
    return text.removesuffix(".").strip()


def _normalized(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _normalized_choice(text: str) -> str:
    text = _normalized(text)
    inner = text.strip(_QUOTES + " ").rstrip(".,;:!? " + _QUOTES)
    if inner.startswith("(") and inner.endswith(")"):
        inner = inner[1:-1].strip()
    # An option may be nothing but punctuation
    return inner or text


def _same_text(first: str, second: str) -> bool:
    # Signs and brackets mean something in mathematics, so unlike around an option they stay
    first, second = (_normalized(_strip_markup(_without_text_mode(text))) for text in (first, second))
    return first.replace(" ", "") == second.replace(" ", "") != ""


def _without_text_mode(answer: str) -> str:
    return re.sub(r"\\(?:text|textrm|textbf|mbox|mathrm)\s*\{([^{}]*)\}", r" \1 ", answer)


def _same_expression(stated: str, right: str) -> bool:
    expressions = [_expression(right), _expression(stated)]
    if None in expressions:
        return False
    # Imported here because a task without mathematics should not wait for SymPy
    from math_verify import parse, verify

    seconds = 5 if threading.current_thread() is threading.main_thread() else None
    gold, target = (parse(rf"\boxed{{{expression}}}", parsing_timeout=seconds) for expression in expressions)
    return verify(gold, target, timeout_seconds=seconds)


def _expression(answer: str) -> str | None:
    """The LaTeX at the start of a stated answer, without units and remarks; `None` where it starts with prose."""
    answer = unicodedata.normalize("NFKC", answer).translate(_LATEX_OF_SYMBOL).strip()
    if len(answer) > _MAX_EXPRESSION_LENGTH or "\n" in answer:
        return None
    answer = re.sub(r"\\[()\[\]]|\\?\$", "", _without_text_mode(answer))
    answer = re.split(r"\.\s", answer)[0]
    mathematics = _WORD.split(answer)[0].strip(" ,;:")
    if len(mathematics) < len(answer.strip(" ,;:")):
        # Cut inside an expression, as in \overline{AB} or (5, six), the rest would equal that of any other answer
        opened, closed = (len(re.findall(brackets, mathematics)) for brackets in (r"[(\[{]", r"[)\]}]"))
        if opened != closed or _UNFINISHED.search(mathematics):
            return None
    answer = mathematics
    # "1 1/2" is one and a half; the parser would take the first number alone
    return re.sub(r"^([-+]?\d+)\s+(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", answer) or None


def clean_solution(solution: str) -> str:
    """A solution without calculator marks (`<<2+3=5>>`), its last line `#### N` worded as "The answer is N"."""
    return re.sub(r"####\s*(.+)\s*$", r"The answer is \1", re.sub(r"<<[^<>]*>>", "", solution)).strip()
