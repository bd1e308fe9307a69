"""Equations between numbers, read from the text of a solution and checked in exact arithmetic."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple


# Longer numbers, and values that take more bits, are not read: the effort stays bounded whatever the text
_MAX_DIGITS = 40
_MAX_BITS = 1024
_MAX_UNIT_WORDS = 4

_RELATION_WORDS = ("is", "makes", "equals")
# Next to an expression, these words say that there is more to it than its numbers and operators
_ARITHMETIC_WORDS = frozenset(
    "times plus minus over by than dozen dozens hundred hundreds thousand thousands million millions billion billions "
    "trillion remainder mod modulo squared cubed power factorial choose half halves third thirds fourths fifths am pm "
    "st nd rd th".split()
)
# Anywhere in the clause before an expression, these apply to its value: "half of the 12 + 4", "twice 5 + 3"
_SCALING_WORDS = frozenset(
    "half twice thrice double triple third thirds quarter quarters fourth fourths fifth fifths tenth average".split()
)
# None of these is part of a unit, and what stands before them says nothing about the expression after them
_CLAUSE_WORDS = frozenset(
    "and or so as because since then but if that which while leaving thus gives get gets got are was were has had have "
    "he she it we they you".split()
)
# A number after one of these is a name: "on day 1 * 2"
_COUNTED_WORDS = frozenset("step part case day week month year hour grade house room".split())
# Dimensions of units that come in several sizes: "2 * 30 = 60 minutes = 1 hour" is not an error
_DIMENSIONS = {
    unit: dimension
    for dimension, units in {
        "time": "second sec minute min hour hr day week month quarter year decade",
        "money": "cent dollar penny pennie nickel dime quarter",
        "length": "inch inche foot feet ft yard mile mm cm m km millimeter centimeter meter kilometer",
        "mass or volume": "ounce oz pound lb ton g kg gram kilogram ml l milliliter liter cup pint quart gallon",
        "number": "pair dozen",
    }.items()
    for unit in units.split()
}

_TOKEN = re.compile(
    r"(?P<number>\d+(?:,\d+)*(?:\.\d+)?|\.\d+)"
    r"|(?P<fraction>\\[dt]?frac(?![a-zA-Z]))"
    r"|(?P<word>[^\W\d_]+(?:['’][^\W\d_]+)*(?:[/-][^\W\d_]+)*)"
    r"|(?P<unknown>\\[a-zA-Z]+|[<>!:+~]=|(?<=\d):(?=\d)|(?<=[\d)\]])!|[|_√@#\\])"
    r"|(?P<relation>=+(?!>))"
    r"|(?P<operator>[-+*/^](?!>))|(?P<open>[(\[{])|(?P<close>[)\]}])|(?P<percent>%)|(?P<unit>[$€£¢])"
    r"|(?P<break>[=-]+>|\S)"
)
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_EXPRESSION_KINDS = ("number", "operator", "open", "close", "percent", "unit")
_OPERAND_ENDS = ("number", "close", "percent", "unit")
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "of": 2, "sign": 3, "^": 4}


def _mixed_number(match: re.Match) -> str:
    whole, numerator, denominator = (group for group in match.groups() if group)
    # Something like 3\frac{5}{2} may also be a product
    return f"({whole}+{numerator}/{denominator})" if int(numerator) < int(denominator) else "_"


# LaTeX and Unicode as plain text, in this order
_SPELLINGS = [
    (re.compile(pattern, re.IGNORECASE | re.MULTILINE), plain)
    for pattern, plain in [
        (r"(?<=\d)(?:\{,\}|,\\!)(?=\d{3})", ","),
        # Perhaps one number, perhaps two
        (r"(?<=\d), (?=\d{3}\b)", "_"),
        (r"\\([$%])", r"\1"),
        (r"\\(?:text|textrm|textbf|textit|mathrm|mathbf|mbox) ?\{([^{}]*)\}", r" \1 "),
        (r"\\(?:(?:left|right|bigg?[lr]?|boxed|fbox|displaystyle|quad|qquad)(?![a-z])|[,;:! ])|[~&]", " "),
        (r"\\(?:times|cdot|ast)(?![a-z])|[×·∙⋅∗]", "*"),
        (r"\\div(?![a-z])|[÷∕⁄]", "/"),
        (r"[−–]", "-"),
        (r"\^ ?(?:\{ ?\\circ ?\}|\\circ(?![a-z]))|°", " degrees "),
        (r"\\\\|\\(?:approx|to|rightarrow|implies|therefore)(?![a-z])|\\[()\[\]]|\\(?:begin|end)\{[a-z]*\*?\}", " ; "),
        (r"²", "^2"),
        (r"³", "^3"),
        # 8.333... is a rounded number
        (r"(?<=\d)(?:\.{2,}|…)", " "),
        (r"\b([ap])\.m\b\.?", r"\1m"),
        # Powers as Python writes them; other runs of asterisks are bold type
        (r"(?<=[\d)])\*\*(?=[\d(])|(?<=[\d)]) \*\* (?=[\d(])", "^"),
        (r"\*{2,}", " "),
        # Bullets, and labels such as "Step 2 -"
        (r"^[ \t]*(?:[-*•] |(?:step|part|case|day|week|month|year|option|question) \d+ ?[-:.)])", " ; "),
        # The exponent of a unit belongs to the unit
        (r"(?<=[a-z]) ?\^ ?\{?[23]\}?", ""),
        # 1 1/2 and 1\frac{1}{2} are one and a half, and "3 / 1/4" divides by a quarter
        (r"(?<![\d.,/])(\d{1,9}) (\d{1,3})/(\d{1,3})(?![\d.,]*\d|/)", _mixed_number),
        (r"(?<![\d.,])(\d{1,9}) ?\\[dt]?frac ?(?:\{(\d{1,3})\}|(\d)) ?(?:\{(\d{1,3})\}|(\d))", _mixed_number),
        (r"(?<=/ )(\d+)/(\d+)", r"(\1/\2)"),
        (r"\\[dt]?frac ?(\d) ?(\d)", r"(\1/\2)"),
    ]
]


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


_NOTHING = _Token("break", "", -1, -1)


@dataclass(frozen=True)
class Expression:
    """
    One side of an equation.

    Args:
        values (`tuple[Fraction, ...]`):
            Its value, with percent signs as hundredths and, where that differs, without.
        decimals (`int`, *optional*):
            Decimals of a number, which may be rounded. `None` where something is computed.
        units (`frozenset[str]`):
            The convertible units in it.
    """

    values: tuple[Fraction, ...]
    decimals: int | None
    units: frozenset[str]

    def equals(self, stated: Expression) -> bool:
        """Whether another expression states this value, perhaps rounded up or down."""
        units = self.units | stated.units
        if len({_DIMENSIONS[unit] for unit in units}) < len(units):
            # The text does not say how many of one unit another is
            return True
        tolerance = 0 if stated.decimals is None else Fraction(1, 10**stated.decimals)
        differences = [abs(value - other) for value in self.values for other in stated.values]
        return any(difference == 0 or difference < tolerance for difference in differences)


class Equation(NamedTuple):
    """Two expressions that a text states to be equal."""

    left: Expression
    right: Expression

    def holds(self) -> bool:
        return self.left.equals(self.right)


def read_equations(text: str) -> tuple[list[Equation], bool]:
    """
    Read the equations in a text whose left side is computed, such as `48 / 2 = 24` or `59 - 16 is 43`.

    Expressions with variables, functions, words for arithmetic ("half of", "3 dozen") or notation that is not known
    here are left out, together with every equation they are part of. In a chain, each equals sign is an equation.

    Returns:
        `tuple[list[Equation], bool]`:
            The equations, and whether the last of them is the last thing with a number that the text says.
    """
    if not any(character.isdigit() for character in text):
        return [], False
    tokens = _resolve_words(_tokenize(text))
    equations, after = [], -1
    for index, token in enumerate(tokens):
        if token.kind != "relation":
            continue
        left = _read(tokens, _left_start(tokens, index), index)
        end = _right_end(tokens, index + 1)
        right = _read(tokens, index + 1, end)
        if left is None or right is None:
            continue
        computed = left.decimals is None or after == index
        if computed and (token.text not in _RELATION_WORDS or (left.decimals is None and right.decimals is not None)):
            equations.append(Equation(left, right))
            after = end
    is_last = bool(equations) and not any(token.kind in ("number", "unknown", "relation") for token in tokens[after:])
    return equations, is_last


def read_number(text: str) -> Expression | None:
    """The number that a text consists of, with a unit or a remark; `None` if there is none or more than one."""
    tokens = _resolve_words(_tokenize(text))
    end = _right_end(tokens, 0)
    if end is None or any(token.kind in ("number", "relation", "unknown") for token in tokens[end:]):
        return None
    return _read(tokens, 0, end)


# --- From text to tokens ---------------------------------------------------------------------------------------------


def _tokenize(text: str) -> list[_Token]:
    for pattern, plain in _SPELLINGS:
        text = pattern.sub(plain, text)
    tokens, groups, expected = [], [], None
    for match in _TOKEN.finditer(text):
        token = _Token(match.lastgroup, match.group(), *match.span())
        kind, content = token.kind, token.text
        if expected and kind != "open":
            tokens.append(token._replace(kind="unknown"))
            expected = None
        if kind == "fraction":
            tokens.append(token._replace(kind="open"))
            expected = "numerator"
            continue
        if kind == "open":
            groups.append(expected)
            expected = None
        elif kind == "number" and not _is_number(content):
            token = token._replace(kind="unknown")
        elif kind == "word" and content.lower() in _RELATION_WORDS:
            token = token._replace(kind="relation", text=content.lower())
        tokens.append(token)
        group = groups.pop() if kind == "close" and groups else None
        if group == "numerator":
            tokens.append(token._replace(kind="operator", text="/"))
            expected = "denominator"
        elif group == "denominator":
            tokens.append(token)
    return tokens


def _is_number(text: str) -> bool:
    if len(text) > _MAX_DIGITS or ("," in text and not _THOUSANDS.fullmatch(text)):
        return False
    # 0730 is a time
    return not re.fullmatch(r"0\d{3}", text)


def _resolve_words(tokens: list[_Token]) -> list[_Token]:
    """Runs of words become units, operators or the ends of an expression."""
    resolved: list[_Token] = []
    index = 0
    while index < len(tokens):
        end = index
        while end < len(tokens) and tokens[end].kind == "word":
            end += 1
        if end == index:
            resolved.append(tokens[index])
            index += 1
        else:
            following = tokens[end] if end < len(tokens) else _NOTHING
            _resolve_run(resolved, tokens[index:end], following)
            index = end
    return resolved


def _resolve_run(resolved: list[_Token], words: list[_Token], following: _Token) -> None:
    """Append what a run of words means to the tokens before it."""
    if len(resolved) > 1 and resolved[-1].text == "/" and resolved[-2].kind in _OPERAND_ENDS:
        # "$5/hour" is "$5 per hour"
        if not _is_arithmetic(words[0]):
            resolved.pop()
    before = resolved[-1] if resolved else _NOTHING
    first, last = words[0], words[-1]
    after_operand = before.kind in _OPERAND_ENDS
    before_operand = following.kind in ("number", "open", "unit")
    of_share = after_operand and first.text == "of" and _is_share(resolved)
    if of_share and before_operand and len(words) == 1:
        resolved.append(last._replace(kind="operator"))
        return
    multiplies = after_operand and before_operand and last.text in ("x", "X")
    units = words[:-1] if multiplies else words
    ends = multiplies or following.kind in ("operator", "relation", "close")
    if after_operand and ends and not of_share and _are_units(units):
        resolved += [word._replace(kind="unit") for word in units]
        if multiplies:
            resolved.append(last._replace(kind="operator", text="*"))
        return
    if after_operand:
        is_variable = _is_arithmetic(first) or (first.text == "a" and before.end == first.start)
        resolved.append(first._replace(kind="unknown" if is_variable or of_share else "unit"))
    resolved.append(last._replace(kind="break"))
    if (
        before.kind == "operator"
        or following.kind == "operator"
        or (before_operand and _goes_on(words, before, following))
    ):
        resolved.append(last._replace(kind="unknown"))


def _are_units(words: list[_Token]) -> bool:
    return (
        len(words) <= _MAX_UNIT_WORDS
        and not any(_is_arithmetic(word) or word.text.lower() in _CLAUSE_WORDS for word in words)
        and (not words or words[-1].text != "a")
    )


def _goes_on(words: list[_Token], before: _Token, following: _Token) -> bool:
    """Whether an operand after these words is only part of a longer expression."""
    last = words[-1].text.lower()
    if words[-1].end == following.start:
        # A function or an index
        return True
    if before.kind in _OPERAND_ENDS and (
        words[0].text == "of" or last in ("by", "than") or [last] == [w.text for w in words] == ["and"]
    ):
        return True
    if following.kind == "number" and last in _COUNTED_WORDS:
        return True
    if last not in ("by", "than") and _is_arithmetic(words[-1]):
        return True
    clause = []
    for word in reversed(words):
        if word.text.lower() in _CLAUSE_WORDS:
            break
        clause.append(word.text.lower())
    return not _SCALING_WORDS.isdisjoint(clause)


def _is_arithmetic(word: _Token) -> bool:
    """Whether a word is a variable or a word for arithmetic."""
    letters = re.split("[-/]", word.text)
    return word.text.lower() in _ARITHMETIC_WORDS or (
        word.text not in ("a", "I") and all(len(part) == 1 for part in letters)
    )


def _is_share(tokens: list[_Token]) -> bool:
    """Whether the tokens end in something like `20%` or `1/2`."""
    return tokens[-1].kind == "percent" or (
        len(tokens) > 2 and tokens[-1].kind == tokens[-3].kind == "number" and tokens[-2].text == "/"
    )


# --- From tokens to values -------------------------------------------------------------------------------------------


def _left_start(tokens: list[_Token], end: int) -> int | None:
    """Where the expression before `end` starts; `None` if something unknown is part of it."""
    start = end
    while start > 0 and tokens[start - 1].kind in _EXPRESSION_KINDS:
        start -= 1
    # A bracket that is not closed ends the expression: "(5 + 3 = 8)", "1) 5 + 3 = 8"
    cut, opened = start, []
    for index in range(start, end):
        if tokens[index].kind == "open":
            opened.append(index)
        elif tokens[index].kind == "close":
            if opened:
                opened.pop()
            else:
                cut = index + 1
    if opened:
        cut = opened[-1] + 1
    if cut == start:
        return None if start > 0 and tokens[start - 1].kind == "unknown" else start
    if cut < end and tokens[cut - 1].kind == "close" and tokens[cut].kind != "number":
        return None
    if opened and cut - 2 >= start and tokens[cut - 2].kind == "operator":
        return None
    return cut


def _right_end(tokens: list[_Token], start: int) -> int | None:
    """Where the expression that begins at `start` ends; `None` if something unknown is part of it."""
    end, opened = start, []
    while end < len(tokens) and tokens[end].kind in _EXPRESSION_KINDS:
        if tokens[end].kind == "open":
            opened.append(end)
        elif tokens[end].kind == "close":
            if not opened:
                return end
            opened.pop()
        end += 1
    if opened:
        # "= 8 (as 5 + 3 is 8)"
        end = opened[0]
        return None if end == start or tokens[end - 1].end == tokens[end].start else end
    return None if end < len(tokens) and tokens[end].kind == "unknown" else end


def _read(tokens: list[_Token], start: int | None, end: int | None) -> Expression | None:
    if start is None or end is None:
        return None
    units = {
        "cent" if t.text == "¢" else "dollar" if t.text in "$€£" else t.text.lower().removesuffix("s")
        for t in tokens[start:end]
        if t.kind == "unit"
    }
    parts = [token for token in tokens[start:end] if token.kind != "unit"]
    if any(part.text == "of" for part in parts) and start and tokens[start - 1].kind == "relation":
        # "= 15% of $300" rather names the result than computes another one
        return None
    has_percent = any(part.kind == "percent" for part in parts)
    readings = (Fraction(1, 100), Fraction(1)) if has_percent else (Fraction(1),)
    values = [_evaluate(parts, percent) for percent in readings]
    if None in values or (values[0] < 0 and _is_range(parts)):
        return None
    decimals = None
    numbers = [part for part in parts if part.kind == "number"]
    if len(numbers) == 1 and not any(part.text in ("*", "/", "^", "of") for part in parts):
        decimals = len(numbers[0].text.partition(".")[2])
        decimals += 2 * has_percent
    return Expression(tuple(dict.fromkeys(values)), decimals, frozenset(units & _DIMENSIONS.keys()))


def _is_range(tokens: list[_Token]) -> bool:
    """Whether the tokens are something like `3-4`, without spaces."""
    return [token.kind for token in tokens] == ["number", "operator", "number"] and (
        tokens[0].end == tokens[1].start and tokens[1].end == tokens[2].start and tokens[1].text == "-"
    )


def _evaluate(tokens: list[_Token], percent: Fraction) -> Fraction | None:
    """Value of an expression; `None` if it is malformed or too large."""
    values: list[Fraction | None] = []
    operators: list[str] = []
    after_operand = False

    def reduce(precedence: int) -> None:
        while operators and operators[-1] != "(" and _PRECEDENCE[operators[-1]] >= precedence:
            operator = operators.pop()
            right = values.pop()
            values.append(_apply(operator, Fraction(0) if operator == "sign" else values.pop(), right))

    for kind, text, *_ in tokens:
        if kind in ("number", "open") and after_operand:
            if kind == "number" or (operators and operators[-1] == "/"):
                # Two numbers side by side, or a product as in 6/2(1+2), which is read in two ways
                return None
            after_operand = False
            reduce(_PRECEDENCE["*"])
            operators.append("*")
        if kind == "number":
            values.append(Fraction(text.replace(",", "")))
            after_operand = True
        elif kind == "open":
            operators.append("(")
        elif kind == "operator" and after_operand:
            reduce(_PRECEDENCE[text])
            operators.append(text)
            after_operand = False
        elif kind == "operator":
            if text not in "+-" or (operators and operators[-1] != "(" and text == "+"):
                return None
            if text == "-":
                operators.append("sign")
        elif not after_operand:
            return None
        elif kind == "percent":
            values[-1] = _apply("*", values[-1], percent)
        else:
            reduce(0)
            if not operators:
                return None
            operators.pop()
    if not after_operand:
        return None
    reduce(0)
    return values[0] if not operators else None


def _apply(operator: str, left: Fraction | None, right: Fraction | None) -> Fraction | None:
    if left is None or right is None:
        return None
    if operator == "^":
        size = max(left.numerator.bit_length(), left.denominator.bit_length())
        if right.denominator != 1 or abs(right) * size > _MAX_BITS or (left == 0 and right <= 0):
            return None
        return left ** int(right)
    if operator == "/":
        if right == 0:
            return None
        result = left / right
    elif operator in ("*", "of"):
        result = left * right
    else:
        result = left + right if operator == "+" else left - right
    return result if max(result.numerator.bit_length(), result.denominator.bit_length()) <= _MAX_BITS else None
