"""The values that a reference states, and whether the steps of an attempt agree with them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cached_property

from ..data.steps import split_steps
from ..tasks.answers import Statement, extract_answer, find_statements
from ..tasks.equations import Equation, Expression, Operation, read_equations, read_number
from ..tasks.steps import read_step


_NUMERAL = re.compile(r"(\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(%?)")
# "2 * 8 = 16" after whatever words. The check of steps passes over some, because the words may be a part of it. What a
# number can be repeated in is bounded, which keeps the effort linear
_PLAIN_EQUATION = re.compile(
    r"(?<![\w.,)%=+*/×÷-])(?<![=+*/×÷-] )[$€£(]{0,9}\d[\d.,$€£()+*/x×÷ -]{0,200}="
    r"[ ]?[$€£]?\d[\d,]*(?:\.\d+)?(?![.,]?\d|[ ]?[-+*/x×÷=])"
)
# "2. ", "Step 2:", also in bold type: the number of a step is no value
_STEP_NUMBER = re.compile(r"^\s*(?:[-*•#]+\s*)?(?:step\s*)?\d{1,2}\s*[.):](?=[\s*]|$)", re.IGNORECASE)
# A computation and a relation: "59 - is 43", "2x + 3 = 15"
_OPERATOR = re.compile(r"[\w)]\s*[-+*/^×÷](?![A-Za-z])")
_RELATION = re.compile(r"=|\b(?:is|makes|equals)\b")
# They may appear without being stated before: "in 1 hour", "20 / 100"
_COMMON = frozenset((Fraction(1), Fraction(100)))


@dataclass(frozen=True)
class Computation:
    """
    One operation of a reference.

    Args:
        step (`int`):
            Index of the reference's step that it is a part of.
        operation ([`~rlmec_trl.tasks.equations.Operation`]):
            The operation.
        values (`frozenset[Fraction]`):
            Its result and, if it is the last one of an equation, what the reference states as its result, which may
            be rounded.
    """

    step: int
    operation: Operation
    values: frozenset[Fraction]

    @cached_property
    def operands(self) -> frozenset[Fraction]:
        return frozenset((self.operation.left, self.operation.right))

    def uses(self, values: Iterable[Fraction]) -> bool:
        """Whether one of the values is an operand."""
        return not self.operands.isdisjoint(values)


@dataclass(frozen=True)
class ReferenceValues:
    """
    What a reference states.

    Args:
        steps (`tuple[str, ...]`):
            Its steps.
        computations (`tuple[Computation, ...]`):
            Its computations in their order.
        answer (`str`):
            Its final answer.
        given (`frozenset[Fraction]`):
            The numbers that need not be computed: those of the problem, and those that the reference brings along.
    """

    steps: tuple[str, ...]
    computations: tuple[Computation, ...]
    answer: str
    given: frozenset[Fraction]

    @cached_property
    def values(self) -> frozenset[Fraction]:
        """The results of all computations."""
        return frozenset().union(*(one.values for one in self.computations))

    def computes(self, left: Expression, values: frozenset[Fraction], remaining: Sequence[Computation]) -> bool:
        """
        Whether an equation has a value of the reference. Small numbers coincide, so a single operation has to share a
        number with the computation of that value, and a value that has been computed before is computed again only
        from the same numbers.
        """
        for one in self.computations:
            if values.isdisjoint(one.values):
                continue
            is_single = len(left.operations) == 1
            if one in remaining and (not is_single or one.uses(left.numbers)):
                return True
            same = [one] if is_single else [other for other in self.computations if other.step == one.step]
            if {number for other in same for number in other.operands}.issuperset(left.numbers):
                return True
        return False

    def is_answer(self, text: str) -> bool:
        """Whether a stated answer is that of the reference."""
        expected, stated = read_number(self.answer), read_number(text)
        return stated is not None and not set(expected.values).isdisjoint(stated.values)

    def remaining(self, stated: Sequence["StepValues"]) -> list[Computation]:
        """
        The computations that are still to be done after steps that agree. One whose result only serves computations
        that are done is not needed.
        """
        done: set[int] = set()
        for step in stated:
            for result, numbers in step.results:
                done.update(self._computed(result, numbers, done))
            for number in step.numbers - self.given - step.operands:
                # A result that is stated without a computation
                same = self._places.get(number, [])
                if done.isdisjoint(same):
                    done.update(same[:1])
        for index, consumers in reversed(list(enumerate(self._consumers))):
            if consumers and done.issuperset(consumers):
                done.add(index)
        return [one for index, one in enumerate(self.computations) if index not in done]

    def _computed(self, result: frozenset[Fraction], numbers: frozenset[Fraction], done: set[int]) -> list[int]:
        """The computation that a step does, preferably one with the same numbers."""
        same = {index for value in result for index in self._places.get(value, ())} - done
        return sorted(same, key=lambda index: (not self.computations[index].uses(numbers), index))[:1]

    @cached_property
    def _places(self) -> dict[Fraction, list[int]]:
        """For each value the computations that have it, in their order."""
        places: dict[Fraction, list[int]] = {}
        for index, one in enumerate(self.computations):
            for value in one.values:
                places.setdefault(value, []).append(index)
        return places

    @cached_property
    def _consumers(self) -> list[list[int]]:
        """For each computation the later ones that use its result, up to the next one with the same result."""
        found = []
        for index, one in enumerate(self.computations):
            consumers: list[int] = []
            for place, other in enumerate(self.computations[index + 1 :], index + 1):
                if other.uses(one.values):
                    consumers.append(place)
                if not one.values.isdisjoint(other.values):
                    break
            found.append(consumers)
        return found


@dataclass(frozen=True)
class StepValues:
    """
    What a step of an attempt states.

    Args:
        results (`tuple[tuple[frozenset[Fraction], frozenset[Fraction]], ...]`):
            For each equation, the values of its two sides, and the numbers on the left.
        numbers (`frozenset[Fraction]`):
            All numbers in it.
    """

    results: tuple[tuple[frozenset[Fraction], frozenset[Fraction]], ...]
    numbers: frozenset[Fraction]

    @property
    def operands(self) -> frozenset[Fraction]:
        """The numbers that it computes with."""
        return frozenset().union(*(numbers for _, numbers in self.results))


def read_reference(problem: str, reference: str, step_separator: str) -> ReferenceValues | None:
    """
    Read a reference.

    Returns:
        [`ReferenceValues`] or `None`:
            `None` if its values cannot be compared: it states no computation or a wrong one, or its final answer is
            not one of its results.
    """
    steps = split_steps(reference, step_separator)
    computations, given, results = [], set(_COMMON), set()
    last_result = ""
    for index, step in enumerate(steps):
        if not read_step(step)[0]:
            return None
        for left, right in stated_equations(step):
            if not left.equals(right):
                continue
            # What it uses before computing it is given: "two friends" in the problem
            given.update(set(left.numbers) - results if left.is_computed else ())
            for place, operation in enumerate(left.operations, 1):
                is_last = place == len(left.operations)
                values = frozenset((operation.result, *right.values)) if is_last else frozenset((operation.result,))
                one = Computation(index, operation, values)
                # Calculator marks repeat what the text states
                if (operation, index) not in [(other.operation, other.step) for other in computations]:
                    computations.append(one)
                results |= values
            last_result = str(right.values[0])
    answer = extract_answer(reference) or last_result
    number = read_number(answer)
    if number is None or results.isdisjoint(number.values):
        return None
    given |= numbers_of(problem) | (numbers_of(reference) - results)
    return ReferenceValues(tuple(steps), tuple(computations), answer, frozenset(given))


def agreeing(
    reference: ReferenceValues, before: Sequence[StepValues], step: str, any_results: bool = False
) -> StepValues | None:
    """
    Read a step of an attempt, if it agrees with the reference.

    It agrees if all that it states holds, all numbers that it computes with are given or stated before, and every
    value that it states is one of the reference's. An answer has to be the reference's, after the computation that it
    is the result of. A computation that cannot be read, such as an equation with variables, does not agree. A step
    without numbers states nothing that could disagree.

    Args:
        reference ([`ReferenceValues`]):
            What the reference states.
        before (`Sequence[StepValues]`):
            The steps before it, which agree.
        step (`str`):
            The step.
        any_results (`bool`, *optional*, defaults to `False`):
            Whether other results than those of the reference are accepted too, if they are computed from its numbers.
    """
    equations = [equation for equation in stated_equations(step) if equation.holds()]
    is_unreadable = not equations and _OPERATOR.search(_STEP_NUMBER.sub("", step)) and _RELATION.search(step)
    if not read_step(step)[0] or is_unreadable:
        return None
    known = set(reference.given).union(*(one.numbers for one in before))
    if any_results:
        known |= reference.values
    results, remaining = [], reference.remaining(before)
    for left, right in equations:
        values = frozenset((*left.values, *right.values))
        # 20% is written as 20 and may be known as .2
        sources = [{number, number / 100} for number in left.numbers]
        if left.is_computed and any(known.isdisjoint(source) for source in sources):
            return None
        if not any_results and not reference.computes(left, values, remaining):
            return None
        if left.is_computed:
            results.append((values, frozenset(left.numbers)))
        known |= values | {abs(value) for value in values}
    statements = find_statements(step)
    rest = _without(step, statements)
    if any(known.isdisjoint(numeral) and reference.values.isdisjoint(numeral) for numeral in _numerals(rest)):
        return None
    stated = StepValues(tuple(results), frozenset(numbers_of(rest)).union(*(values for values, _ in results)))
    for statement in statements:
        if not reference.is_answer(statement.answer):
            return None
        if not any_results and not _reaches_answer(reference, [*before, stated]):
            return None
    return stated


def has_answer(reference: ReferenceValues, completion: str) -> bool:
    """Whether the final answer of an attempt is that of the reference."""
    statements = find_statements(completion)
    return bool(statements) and reference.is_answer(statements[-1].answer)


def stated_equations(step: str) -> list[Equation]:
    """The equations in a step that are checked, and after them plain ones that are not, which need not be meant so."""
    equations = read_step(step)[1]
    plain = [equation for match in _PLAIN_EQUATION.finditer(step) for equation in read_equations(match[0])[0]]
    return equations + [equation for equation in plain if equation not in equations]


def numbers_of(text: str) -> set[Fraction]:
    """The numbers in a text, of a percentage also the hundredths."""
    return {value for numeral in _numerals(text) for value in numeral}


def replace_numbers(text: str, corrections: dict[Fraction, Fraction]) -> str:
    """Replace numbers in a text by others, in the notation of those that they replace."""

    def replaced(match: re.Match) -> str:
        correction = corrections.get(_value(match[1]))
        return match[0] if correction is None else format_number(correction, like=match[1]) + match[2]

    return _NUMERAL.sub(replaced, text)


def format_number(value: Fraction, like: str = "0") -> str:
    """A number as text: with thousands separators and at least as many decimals as `like`."""
    decimals = len(like.partition(".")[2])
    while decimals < 6 and (value * 10**decimals).denominator != 1:
        decimals += 1
    separator = "," if "," in like else ""
    # Not as a float, which has only 15 digits
    return f"{Decimal(f'{round(value * 10**decimals)}e-{decimals}'):{separator}.{decimals}f}"


def _reaches_answer(reference: ReferenceValues, stated: Sequence[StepValues]) -> bool:
    return not any(reference.is_answer(str(value)) for one in reference.remaining(stated) for value in one.values)


def _without(step: str, statements: Sequence[Statement]) -> str:
    """A step without its own number, and without the statements of an answer."""
    for statement in reversed(statements):
        step = step[: statement.start] + step[statement.end :]
    return _STEP_NUMBER.sub("", step)


def _numerals(text: str) -> list[set[Fraction]]:
    """What each number in a text may mean."""
    found = [(_value(match[1]), match[2]) for match in _NUMERAL.finditer(text)]
    return [{value, value / 100} if percent else {value} for value, percent in found]


def _value(numeral: str) -> Fraction:
    # By way of `Decimal`, since Python limits the digits of a string that becomes an integer
    return Fraction(Decimal(numeral.replace(",", "")))
