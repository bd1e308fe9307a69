from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.tasks.equations import read_equations, read_number


def verdicts(text):
    return [equation.holds() for equation in read_equations(text)[0]]


@pytest.mark.parametrize(
    "equation",
    [
        "48/2 = 24",
        "59 - 16 is 43",
        "59 - 16 makes 43",
        "59 - 16 equals 43",
        "59 - 16 is equal to 43",
        "59 - 16 gives 43",
        "59 − 16 = 43",
        "59 – 16 = 43",
        "5 x 3 = 15",
        "5x3=15",
        "5 × 3 = 15",
        "30 ÷ 2 = 15",
        "2 + 3 * 4 = 14",
        "(2 + 3) * 4 = 20",
        "2(3 + 4) = 14",
        "-5 + 8 = 3",
        "2^3 = 8",
        "2**3 = 8",
        "1,200 + 300 = 1,500",
        "$1,200.50 * 2 = $2,401.00",
        "20% * 50 = 10",
        "20% of 50 = 10",
        "1/2 of 50 = 25",
        "12/15 = 80%",
        "12/15 = 80 percent",
        "$80 + 8% = $86.40",
        "80 - 25% off = 60",
        "100% - 25% = 75%",
        "5 / 100 * 100 = 5%",
        "1/12 * 100 = 8.3%",
        "20 minutes / 240 minutes = 8.333...%",
        "3 apples + 4 green apples = 7 apples",
        "$5/hour * 3 hours = $15",
        "6 pages x 7 stickers/page = 42 stickers",
        "**5** + **3** = **8**",
        "1 1/2 * 4 = 6",
        "2 cups / 1/4 cup = 8",
        "6/6 - 1/6 = 5/6",
        "$5 \\times 3 = 15$",
        "5 \\cdot 3 &= 15 \\\\",
        "$\\frac{1}{2} \\cdot 10 = 5$",
        "\\dfrac{3 + \\frac{1}{2}}{7} = \\frac12",
        "1\\frac{1}{2} \\times 4 = \\boxed{6}",
        "10{,}000 \\div 4 = 2,500",
        "5\\% \\cdot \\$200 = \\$10",
        "5 \\text{ cm} + 3 \\text{ cm} = 8 \\text{ cm}^2",
        # Rounded
        "10 / 3 = 3.33",
        "20 / 3 = 6.66",
        "20 / 3 = 6.67",
        "50 / 3 = 16 stickers each, with 2 remaining",
        "2/3 = 66.7%",
        # In a sentence
        "Natalia sold a total of 48 + 24 = 72 clips in May.",
        "The rest (59 - 16 = 43) is for Tom.",
        "1) 59 - 16 = 43",
        "- 59 - 16 = 43",
        "Step 2: 59 - 16 = 43",
        "He has 3 cats, so 59 - 16 = 43 legs.",
    ],
)
def test_a_true_equation_is_read_and_holds_in_any_notation(equation):
    assert verdicts(equation) == [True]


@pytest.mark.parametrize(
    "equation",
    [
        "48/2 = 23",
        "59 - 16 is 42",
        "59 - 16 makes 33",
        "59 - 16 equals 33",
        "59 - 16 is equal to 33",
        "59 - 16 gives 33",
        "$80 + 8% = $87.40",
        "100% - 25% = 65%",
        "12/15 = 90 percent",
        "He has 59 - 16 = 42 more than Tom.",
        "In three weeks, for a total of 48 + 24 = 62",
        "As tall as he is, he has 59 - 16 = 42",
        "59 – 16 = 33",
        "5 x 3 = 16",
        "2 + 3 * 4 = 20",
        "2^3 = 6",
        "1,200 + 300 = 1,600",
        "20% of 50 = 11",
        "3 apples + 4 green apples = 8 apples",
        "$20/hour * 3 hours = $70",
        "2 cups / 1/4 cup = 2",
        "1 1/2 * 4 = 5",
        "$\\frac{1}{2} \\cdot 10 = 4$",
        "5 \\times 3 = \\boxed{16}",
        "6/6 - 1/6 = 4/6",
        "10 / 3 = 3.5",
        "50 / 3 = 18",
        "1/12 * 100 = 8.6%",
        "In total, Natalia sold a total of 48 + 24 = 62 clips in May.",
        "The rest (59 - 16 = 44) is for Tom.",
    ],
)
def test_a_false_equation_does_not_hold(equation):
    assert verdicts(equation) == [False]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "He has 5 nuts and 3 figs.",
        # A statement, a conversion or a ratio rather than a computation
        "x = 5",
        "1 hour = 60 minutes",
        "3:5 = 18:30",
        "Remaining 10 = 62,300/10",
        # Variables and functions
        "2x + 3 = 8",
        "3a = 5 + 2",
        "15 + 2a = 35",
        "2 + n = 5",
        "f(2) + 1 = 9",
        "f(1, 2) + 1 = 9",
        "\\sqrt{16} + 1 = 9",
        "\\binom{5}{2} + 1 = 9",
        "\\cos 60 + 1 = 9",
        "|3 - 5| = 2",
        "5! / 3! = 20",
        "x_1 + 2 = 9",
        # Words that belong to the arithmetic
        "half of 12 + 4 = 8",
        "half of the 12 + 4 = 8",
        "twice 5 + 3 = 16",
        "three times 5 + 2 = 21",
        "10 divided by 2 + 3 = 2",
        "5 + 3 dozen = 41",
        "5 * 3 = 15 hundred",
        "5 + 8 = 3 mod 10",
        "17 / 3 = 5 remainder 2",
        "11 a.m. - 2 hours = 9 a.m.",
        "8:30 + 2 = 10:30",
        "0900 - 0130 = 0730",
        "the 12 boys - the 3 boys who left = 9 boys",
        "10 pages on day 1 * 2 = 20",
        "weeks 3-4 = 26",
        "12 x 1 and 1/4 = 15",
        "2 + + = 5",
        "5 + (3 = 9",
        "14, 400 / 80 = 180",
        "10 + 5 = 3 o'clock",
        "10 + 5 = 3 o’clock",
        "Subtracting 2 * 3 gives 4",
        "Since 3/4 is equal to $15, 1/4 is $5",
        # A part of the other side, or a function of this one
        "3 + 5 is 1 more than 7",
        "3 + 5 is 1 more than Tom's 7",
        "3 + 5 is two more than 6",
        "3 + 5 = 1 more than 7",
        "10 - 2 is 2 less than ten",
        "3 + 5 is 1 short of 9",
        "3 groups of 4 + 2 = 14",
        "three groups of 4 + 2 = 14",
        "twice as many as 4 + 2 is 12",
        "3 times as many as 4 + 2 is 18",
        "3 times Bob's 4 + 2 is 18",
        "the last digit of 7 * 9 is 3",
        "The square root of 9 + 16 is 5",
        # Not defined
        "5 / 0 = 3",
        "0^-1 = 3",
        # Two readings
        "6/2(1+2) = 9",
        "2^3^2 = 64",
    ],
)
def test_what_cannot_be_read_is_not_called_an_equation(text):
    assert verdicts(text) == []


def test_each_equals_sign_of_a_chain_is_an_equation():
    assert verdicts("48/2 = 24 = 24") == [True, True]
    assert verdicts("2 * 3 + 4 = 6 + 4 = 11 = 11") == [True, False, True]
    assert verdicts("y = 2x = 2 * 5 = 11") == [False]
    assert verdicts("3 * 4 = 3 groups of 4 = 12") == []


def test_units_of_different_sizes_are_not_compared_as_numbers():
    assert verdicts("2 * 30 minutes = 60 minutes = 1 hour") == [True, True]
    assert verdicts("20 * 5 cents = $1") == [True]
    assert verdicts("2 * 30 minutes = 50 minutes") == [False]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("24", 24),
        ("$1,024.50", Fraction("1024.5")),
        ("24 clips because she sold more", 24),
        ("\\frac{3}{4}", Fraction(3, 4)),
        ("-2", -2),
    ],
)
def test_a_lone_number_is_read_with_its_unit(text, value):
    assert read_number(text).values == (value,)


@pytest.mark.parametrize("text", ["", "Paris", "x = 5", "3, 1 and 2", "5 feet 3 inches", "2x", "3:5", "five of 6"])
def test_anything_else_is_not_a_number(text):
    assert read_number(text) is None


NOTATIONS = [
    {"+": "+", "-": "-", "*": "*", "/": "/"},
    {"+": " + ", "-": " − ", "*": " x ", "/": " ÷ "},
    {"+": " + $", "-": " – $", "*": " × ", "/": " / "},
    {"+": " nuts + ", "-": " nuts - ", "*": " \\times ", "/": " \\div "},
]


@st.composite
def computations(draw):
    """An expression in some notation, and its value."""
    numbers = draw(st.lists(st.integers(1, 10**6), min_size=2, max_size=6))
    operators = draw(st.lists(st.sampled_from("+-*/"), min_size=len(numbers) - 1, max_size=len(numbers) - 1))
    notation = draw(st.sampled_from(NOTATIONS))
    write = draw(st.sampled_from([str, "{:,}".format]))
    terms = [Fraction(numbers[0])]
    text = write(numbers[0])
    for operator, number in zip(operators, numbers[1:], strict=True):
        text += notation[operator] + write(number)
        if operator in "+-":
            terms.append(Fraction(number if operator == "+" else -number))
        else:
            terms[-1] = terms[-1] * number if operator == "*" else terms[-1] / number
    return text, sum(terms)


def decimal(value, decimals):
    """A fraction rounded to some decimals, as text."""
    scaled = round(value * 10**decimals)
    digits = f"{abs(scaled):0{decimals + 1}d}"
    return "-" * (scaled < 0) + (f"{digits[:-decimals]}.{digits[-decimals:]}" if decimals else digits)


@given(
    computations(), st.integers(0, 6), st.sampled_from(["", "So he has ", "Then ("]), st.sampled_from(["", " nuts."])
)
def test_a_computed_result_holds_however_it_is_written(computation, decimals, before, after):
    text, value = computation
    assert verdicts(f"{before}{text} = {decimal(value, decimals)}{after}") == [True]


@given(computations(), st.integers(0, 6), st.integers(1, 10**6))
def test_a_changed_result_does_not_hold(computation, decimals, change):
    text, value = computation
    unit = Fraction(1, 10**decimals)
    for changed in (value + (change + 1) * unit, value - (change + 1) * unit):
        assert verdicts(f"{text} = {decimal(changed, decimals)}") == [False]
