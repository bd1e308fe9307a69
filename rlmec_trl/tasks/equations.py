"""Equations between numbers, read from the text of a solution and checked in exact arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from .notation import EXPRESSION_KINDS, RELATION_WORDS, Token, read_tokens


# Larger values are not evaluated, which bounds the cost for any input
_MAX_BITS = 1024
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "of": 2, "sign": 3, "^": 4}
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


class Operation(NamedTuple):
    """One operation of a computation, with its result. `operator` is `+`, `-`, `*`, `/`, `^` or `of`."""

    left: Fraction
    operator: str
    right: Fraction
    result: Fraction


@dataclass(frozen=True)
class Expression:
    """
    One side of an equation.

    Args:
        values (`tuple[Fraction, ...]`):
            Its value, with percent signs as hundredths and, where that differs, without, and as shops mean them.
        tolerances (`tuple[Fraction, ...]`):
            For each value, how far the exact value may be from it: one unit in the last place of a number, which may
            be rounded, and 0 for a computed value.
        units (`frozenset[str]`):
            The convertible units in it.
        numbers (`tuple[Fraction, ...]`, *optional*, defaults to `()`):
            The numbers in it, as they are written.
        operations (`tuple[Operation, ...]`, *optional*, defaults to `()`):
            The operations of the computation in their order, with percent signs as hundredths.
    """

    values: tuple[Fraction, ...]
    tolerances: tuple[Fraction, ...]
    units: frozenset[str]
    numbers: tuple[Fraction, ...] = ()
    operations: tuple[Operation, ...] = ()

    @property
    def is_computed(self) -> bool:
        """Whether it is more than a number."""
        return not any(self.tolerances)

    def equals(self, stated: Expression) -> bool:
        """Whether another expression states this value, perhaps rounded up or down."""
        units = self.units | stated.units
        if len({_DIMENSIONS[unit] for unit in units}) < len(units):
            # The text does not say how many of one unit another is
            return True
        return any(
            value == other or abs(value - other) < tolerance
            for value in self.values
            for other, tolerance in zip(stated.values, stated.tolerances, strict=True)
        )


class Equation(NamedTuple):
    """Two expressions that a text states to be equal."""

    left: Expression
    right: Expression

    def holds(self) -> bool:
        return self.left.equals(self.right)


def read_equations(text: str) -> tuple[list[Equation], list[Expression], bool]:
    """
    Read the equations in a text whose left side is computed, such as `48 / 2 = 24` or `59 - 16 is 43`.

    Expressions with variables, functions, words for arithmetic ("half of", "3 dozen") or notation that is not known
    here are left out, together with every equation they are part of. In a chain, each equals sign is an equation.

    Returns:
        `tuple[list[Equation], list[Expression], bool]`:
            The equations; the results, which are their right sides and the numbers beside other relations (`x = 5`);
            and whether no number follows the last equation.
    """
    if not any(character.isdigit() for character in text):
        return [], [], False
    tokens = read_tokens(text)
    equations, results, after = [], [], -1
    for index, token in enumerate(tokens):
        if token.kind != "relation":
            continue
        left = _read(tokens, _left_start(tokens, index), index)
        end = _right_end(tokens, index + 1)
        right = _read(tokens, index + 1, end)
        results += [side for side in (left, right) if side and (side is right or not side.is_computed)]
        if left is None or right is None:
            continue
        if token.text in RELATION_WORDS:
            # "3/4 is $15" rather says what a share comes to
            is_share = tokens[index - 2].text == "/" and all(0 < value < 1 for value in left.values)
            is_equation = left.is_computed and not right.is_computed and not is_share
        else:
            # "1 hour = 60 minutes" is no computation, but in a chain a number may continue one
            is_equation = left.is_computed or after == index
        if is_equation:
            equations.append(Equation(left, right))
            after = end
    # "72 clips, which is a lot" says nothing about another number
    rest = {token.kind for token in tokens[max(after, 0) :] if token.text not in RELATION_WORDS}
    return equations, results, bool(equations) and rest.isdisjoint(("number", "relation", "unknown"))


def read_number(text: str) -> Expression | None:
    """The number that a text consists of, with a unit or a remark; `None` if there is none or more than one."""
    tokens = read_tokens(text)
    end = _right_end(tokens, 0)
    if end is None or any(token.kind in ("number", "relation", "unknown") for token in tokens[end:]):
        return None
    return _read(tokens, 0, end)


def _left_start(tokens: list[Token], end: int) -> int | None:
    """Where the expression before `end` starts; `None` if something unknown is part of it."""
    start = end
    while start > 0 and tokens[start - 1].kind in EXPRESSION_KINDS:
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


def _right_end(tokens: list[Token], start: int) -> int | None:
    """Where the expression that begins at `start` ends; `None` if something unknown is part of it."""
    end, opened = start, []
    while end < len(tokens) and tokens[end].kind in EXPRESSION_KINDS:
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


def _read(tokens: list[Token], start: int | None, end: int | None) -> Expression | None:
    if start is None or end is None:
        return None
    units = {
        "cent" if t.text == "¢" else "dollar" if t.text in "$€£" else t.text.lower().removesuffix("s")
        for t in tokens[start:end]
        if t.kind == "unit"
    }
    parts = [token for token in tokens[start:end] if token.kind != "unit"]
    if any(part.text == "of" for part in parts) and start and tokens[start - 1].kind == "relation":
        # "= 15% of $300" names the result; it is not another computation
        return None
    has_percent = any(part.kind == "percent" for part in parts)
    scales = (Fraction(1, 100), Fraction(1)) if has_percent else (Fraction(1),)
    operations: list[Operation] = []
    values = (_evaluate(parts, scales[0], operations=operations),)
    if has_percent:
        values += (_evaluate(parts, percent=scales[1]),)
        scales += (scales[0],)
        values += (_evaluate(parts, percent=scales[0], of_total=True),)
    if None in values:
        return None
    numbers = [part.text.replace(",", "") for part in parts if part.kind == "number"]
    is_computed = len(numbers) > 1 or any(part.text in ("*", "/", "^") for part in parts)
    unit = Fraction(0) if is_computed else Fraction(1, 10 ** len(numbers[0].partition(".")[2]))
    return Expression(
        values,
        tuple(unit * scale for scale in scales),
        frozenset(units & _DIMENSIONS.keys()),
        tuple(map(Fraction, numbers)),
        tuple(operations),
    )


def _evaluate(
    tokens: list[Token], percent: Fraction, of_total: bool = False, operations: list[Operation] | None = None
) -> Fraction | None:
    """
    Value of an expression; `None` if it is malformed or too large. A percent sign multiplies by `percent`. With
    `of_total`, an added or subtracted percentage is one of what stands before it: "$80 + 8%" is $86.40. The operations
    are appended to `operations`, signs and percent signs aside.
    """
    values: list[Fraction | None] = []
    operators: list[str] = []
    after_operand = False

    def reduce(precedence: int) -> None:
        while operators and operators[-1] != "(" and _PRECEDENCE[operators[-1]] >= precedence:
            operator = operators.pop()
            right = values.pop()
            left = Fraction(0) if operator == "sign" else values.pop()
            values.append(_apply(operator, left, right))
            if operations is not None and operator != "sign" and values[-1] is not None:
                operations.append(Operation(left, operator, right, values[-1]))

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
            if text == "^" and operators and operators[-1] == "^":
                # Some read 2^3^2 from the left and some from the right
                return None
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
            if of_total and operators and operators[-1] in "+-":
                values[-1] = _apply("*", values[-2], values[-1])
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
