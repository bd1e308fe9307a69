"""Final answers: extracting and checking them."""

from __future__ import annotations

import asyncio
import inspect
import re
import threading
import unicodedata
from collections.abc import Awaitable, Callable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ..data.errors import ConfigError
from ..data.tokens import encode_completion
from .options import Options, named_options, read_options


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# A longer "answer" is prose, and a symbolic parser can take very long over prose
_MAX_EXPRESSION_LENGTH = 200
_STATES = (
    r"(?:\bthe (?:(?:final |correct )?answer|correct (?:option|choice)) is\b|^[ \t>#*_]*(?:final )?answer(?=[*_]*:))"
)
# The answer may be on the next line, in display mathematics too. Where another statement follows, that one counts
_STATEMENT = re.compile(
    # The lookahead is never tried again with less, which keeps the effort linear
    rf"{_STATES}(?=(?P<gap>[*_\s]*:?[*_\s]*(?:(?:\\\[|\$\$)[ \t]*\n\s*)?))(?P=gap)(?!{_STATES})(?P<answer>.*)",
    re.IGNORECASE | re.MULTILINE,
)
_HASHES = re.compile(r"^[ \t]*####[ \t]*((?=[-+$€£.,/%]*\d)[-+$€£\d.,/%]+)[ \t]*$", re.MULTILINE)
_BOXED = re.compile(r"\\f?boxed\s*\{")
# A word of prose between or after the mathematics: a unit, "because". Names of mathematical functions are not words
_WORD = re.compile(
    r"(?<![\\a-zA-Z])(?<!\\begin\{)(?<!\\end\{)(?!(?:and|or|sin|cos|tan|log|ln|exp|sqrt|pi)\b)[a-zA-Z]{2,}"
)
# Numbers that end in words, "5 million", and words after which a number is only a part of what is stated
_MAGNITUDES = {
    "dozen": 12,
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_IN_WORDS = re.compile(
    rf"(?<![\d./,^}}])([-+]?(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d+)?)((?:\s+(?:{'|'.join(_MAGNITUDES)})s?\b)+)",
    re.IGNORECASE,
)
_PART = re.compile(
    rf"[-\s]*(?:(?:{'|'.join(_MAGNITUDES)})s?\b"
    r"|(?:squared|cubed|factorial|halves|thirds|fourths|quarters|fifths|sixths|eighths|tenths|hundredths)\b"
    r"|(?:to|not|through|by|plus|minus|times|over|divided by|modulo|mod|choose)\s+[-+$]*\d)",
    re.IGNORECASE,
)
# What cannot end an expression: an operator, or a command that needs an argument
_UNFINISHED = re.compile(r"(?:[-+*/=^_<>&|]|\\(?!(?:pi|infty|circ)\b)[a-zA-Z]+)$")
_LATEX_OF_SYMBOL = str.maketrans({"−": "-", "⁄": "/", "°": r"^\circ ", "√": r"\sqrt ", "π": r"\pi "})


class Statement(NamedTuple):
    """
    Where a solution states its final answer.

    Args:
        start, end (`int`):
            Where the statement begins and ends, "The answer is" included.
        text (`str`):
            The answer as it is written there.
        answer (`str`):
            The answer without the markup around it.
    """

    start: int
    end: int
    text: str
    answer: str


def extract_answer(solution: str) -> str | None:
    r"""
    The final answer that a solution states.

    Three forms are known: `The answer is X` or `Answer: X` (X reaches to the end of the line, and may be on the next
    one), a LaTeX box, and `#### N` with a number. If there are several, the last one counts.

    Returns:
        `str` or `None`:
            The answer without the markup around it and without the sentence's period, or `None` if none is stated.

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
    found = _last_statement(solution)
    return None if found is None else (found.start, found.answer)


def find_statements(solution: str) -> list[Statement]:
    """All statements of a final answer, in their order. Of a statement that contains a box, the box is the one."""
    stated = [(match.span(), match.group(1)) for match in _HASHES.finditer(solution)]
    stated += [(match.span(), match["answer"]) for match in _STATEMENT.finditer(solution)]
    stated = [Statement(*span, text, _strip_markup(text)) for span, text in stated]
    closing = _closing_braces(solution)
    for match in _BOXED.finditer(solution):
        if match.end() in closing:
            content = solution[match.end() : closing[match.end()]]
            stated.append(Statement(match.start(), closing[match.end()] + 1, content, content.strip()))
    stated = sorted(statement for statement in stated if statement.answer)
    following = [statement.start for statement in stated[1:]]
    return [one for one, start in zip(stated, [*following, len(solution)], strict=False) if one.end <= start]


def readings(statement: Statement) -> list[str]:
    """The forms in which a stated answer may be that of an option, the most faithful first."""
    return [statement.text, statement.answer, _without_text_mode(statement.answer)]


def check_math(completion: str, answer: str, problem: str = "") -> bool:
    r"""
    Whether a completion's final answer equals `answer`, as mathematics (`0.5` is `\frac{1}{2}`).

    A time limit guards against expressions that take too long. It uses a signal, which Python allows only in the main
    thread of a process: to check many completions at once, use processes.

    Args:
        completion (`str`):
            Solution to check. One that states no answer is correct only if it is nothing but the answer.
        answer (`str`):
            The correct answer, or a solution that states it in one of the forms of [`extract_answer`].

    Returns:
        `bool`:
            Whether the two are equal. Text that cannot be read as mathematics is compared as text.
    """
    expected = extract_answer(answer) or answer
    stated = extract_answer(completion)
    if stated is None:
        if _WORD.search(completion):
            return _same_text(completion, expected)
        stated = completion
    return _same_text(stated, expected) or _same_expression(stated, expected)


def check_choice(completion: str, answer: str, problem: str = "") -> bool:
    """
    Whether a completion's final answer is the option `answer`.

    An option is named by its text, its label ("B", "(b)", "option B") or both ("B) Paris", "Paris (B)"). Case,
    whitespace, Unicode variants and the quotes, markup and punctuation around an answer do not count. An answer that
    names two options, or the label of one with the text of another, is incorrect. So is one whose next line is another
    option. A reason ("B because ...") does not count where it names no other option.

    Args:
        completion (`str`):
            Solution to check. One that states no answer is correct only if it is nothing but the answer.
        answer (`str`):
            Text of the correct option, or its label.
        problem (`str`, *optional*, defaults to `""`):
            The problem with its options: a line "Options:", then one option per line, with or without labels. If it
            lists none, or `answer` is not one of them, only the text of `answer` is correct.
    """
    options = read_options(problem)
    expected = set() if options is None else named_options([answer], options)
    if not expected:
        options, expected = Options((answer,)), {0}
    return _names_only(completion, expected, options)


def check_by_reward(
    reward_func: Callable[..., Sequence[float | None] | Awaitable[Sequence[float | None]]],
    threshold: float = 0.5,
    processing_class: PreTrainedTokenizerBase | None = None,
) -> Callable[[str, str, str], bool]:
    r"""
    Make a `check_answer` of a TRL reward function.

    It is called as [`~trl.GRPOTrainer`] calls it, with one completion at a time: `prompts` and `completions` as
    messages, and the columns `answer` and `solution`, which both hold the correct answer.

    Args:
        reward_func (`Callable`):
            Reward function, such as [`~trl.rewards.accuracy_reward`]. It may be asynchronous.
        threshold (`float`, *optional*, defaults to `0.5`):
            Smallest reward of a correct completion. If the function abstains (`None`), the completion counts as
            incorrect.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer for functions that read `completion_ids`.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If `reward_func` reads `completion_ids` and there is no
            `processing_class`.

    Examples:

    ```python
    >>> from rlmec_trl.tasks.answers import check_by_reward
    >>> from trl.rewards import accuracy_reward
    >>> check_answer = check_by_reward(accuracy_reward)
    >>> check_answer(r"Hence \boxed{0.5}", r"\frac{1}{2}", "What is 1 / 2?")
    True
    ```
    """
    reads_ids = "completion_ids" in inspect.signature(reward_func).parameters
    if reads_ids and processing_class is None:
        raise ConfigError(
            f"The reward function {getattr(reward_func, '__name__', reward_func)!r} reads `completion_ids`: give "
            "`check_by_reward` the `processing_class` that makes them."
        )
    return partial(_check_by_reward, reward_func, threshold, processing_class if reads_ids else None)


def _check_by_reward(
    reward_func: Callable,
    threshold: float,
    processing_class: PreTrainedTokenizerBase | None,
    completion: str,
    answer: str,
    problem: str = "",
) -> bool:
    inputs = {
        "prompts": [[{"role": "user", "content": problem}]],
        "completions": [[{"role": "assistant", "content": completion}]],
        "answer": [answer],
        "solution": [answer],
    }
    if processing_class is not None:
        inputs["completion_ids"] = [encode_completion(processing_class, completion)]
    rewards = reward_func(**inputs)
    if inspect.iscoroutine(rewards):
        # In a separate thread: notebooks run an event loop in this one
        with ThreadPoolExecutor(1) as pool:
            rewards = pool.submit(asyncio.run, rewards).result()
    if not isinstance(rewards, Sized):
        raise TypeError(f"The reward function returned {rewards!r}, not a list with one reward.")
    if len(rewards) != 1:
        raise ValueError(f"The reward function returned {len(rewards)} rewards for one completion.")
    return rewards[0] is not None and bool(rewards[0] >= threshold)


def _names_only(completion: str, expected: set[int], options: Options) -> bool:
    found = _last_statement(completion)
    named = named_options([completion] if found is None else readings(found), options)
    return bool(named) and named <= expected and not _goes_on_with_another(completion, found, named, options)


def _goes_on_with_another(completion: str, found: Statement | None, named: set[int], options: Options) -> bool:
    """Whether the line after the statement names another option: "The answer is A) Paris", then "B) London"."""
    if found is None:
        return False
    lines = completion[completion.index(found.text, found.start) + len(found.text) :].splitlines()[1:]
    following = next((line for line in lines if line.strip()), "")
    return bool(named_options([following], options) - named)


def _last_statement(solution: str) -> Statement | None:
    return max(find_statements(solution), default=None)


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


def _same_text(first: str, second: str) -> bool:
    # Signs and brackets have a meaning in mathematics, so unlike around an option they are kept
    first, second = (_normalized(_strip_markup(_without_text_mode(text))) for text in (first, second))
    return first.replace(" ", "") == second.replace(" ", "") != ""


def _without_text_mode(answer: str) -> str:
    return re.sub(r"\\(?:text|textrm|textbf|mbox|mathrm)\s*\{([^{}]*)\}", r" \1 ", answer)


def _same_expression(stated: str, expected: str) -> bool:
    expressions = [_expression(expected), _expression(stated)]
    if None in expressions:
        return False
    # Imported here, so that tasks without mathematics do not load SymPy
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
    answer = _IN_WORDS.sub(_in_digits, re.split(r"\.\s", answer)[0])
    word = _WORD.search(answer)
    mathematics = answer[: word.start() if word else None].strip(" ,;:")
    if len(mathematics) < len(answer.strip(" ,;:")):
        # Cut inside an expression, as in \overline{AB} or (5, six), the rest would equal that of any other answer
        # "5, not 6" is 5
        if word and _PART.match(answer, word.start()) and not answer[: word.start()].rstrip().endswith(","):
            return None
        opened, closed = (len(re.findall(brackets, mathematics)) for brackets in (r"[(\[{]", r"[)\]}]"))
        if opened != closed or _UNFINISHED.search(mathematics):
            return None
    answer = mathematics
    # "1 1/2" is one and a half; the parser would take the first number alone
    return re.sub(r"^([-+]?\d+)\s+(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", answer) or None


def _in_digits(match: re.Match) -> str:
    value = Fraction(match[1].replace(",", ""))
    for word in match[2].lower().split():
        value *= _MAGNITUDES[word.removesuffix("s")]
    return str(value)


def clean_solution(solution: str) -> str:
    """A solution without calculator marks (`<<2+3=5>>`), its last line `#### N` worded as "The answer is N"."""
    return re.sub(r"####\s*(.+)\s*$", r"The answer is \1", re.sub(r"<<[^<>]*>>", "", solution)).strip()
