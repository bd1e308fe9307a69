"""Arithmetic in prose, LaTeX and plain text, as tokens."""

from __future__ import annotations

import re
from typing import NamedTuple


# Longer numbers are not read
_MAX_DIGITS = 40
_MAX_UNIT_WORDS = 4

RELATION_WORDS = ("is", "makes", "equals")
# Next to an expression, these words say that there is more to it than its numbers and operators
_ARITHMETIC_WORDS = frozenset(
    "times plus minus over by than dozen dozens hundred hundreds thousand thousands million millions billion billions "
    "trillion remainder mod modulo squared cubed power factorial choose half halves third thirds fourths fifths am pm "
    "o'clock st nd rd th".split()
)
# Anywhere in the clause before an expression, these apply to its value: "half of the 12 + 4", "last digit of 7 * 9"
_SCALING_WORDS = frozenset(
    "half twice thrice double triple third thirds quarter quarters fourth fourths fifth fifths tenth average times "
    "digit digits remainder root square cube negative opposite reciprocal inverse".split()
)
# "1 below 9", "1 short of 9"
_DISTANCE_WORDS = frozenset("below above under short away off shy".split())
# Before "groups of", they are a factor
_NUMBER_WORDS = frozenset("two three four five six seven eight nine ten eleven twelve".split())
# None of these is part of a unit, and words before them do not apply to the expression after them
_CLAUSE_WORDS = frozenset(
    "and or so as because since then but if that which while leaving thus gives get gets got are was were has had "
    "have he she it we they you".split()
)
# A number after one of these is a name: "on day 1 * 2", "weeks 3-4"
_COUNTED_WORDS = frozenset(
    "step part case day days week weeks month months year years hour hours grade grades house room page pages".split()
)

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

EXPRESSION_KINDS = ("number", "operator", "open", "close", "percent", "unit")
_OPERAND_STARTS = ("number", "open", "unit")
_OPERAND_ENDS = ("number", "close", "percent", "unit")


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
        (r"(?<=\d) per ?cent\b", "%"),
        (r"\bis equal to\b", "is"),
        # Only of a computation that begins the line: "Subtracting 2 * 3 gives 4" says nothing about 2 * 3
        (r"^([ \t]*[$€£(\d][-−–+*/×·÷x$€£()\d,. ]*) gives (?=[$€£]?\d)", r"\1 is "),
        ("’", "'"),
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
        (r"\n", " ; "),
    ]
]


class Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


_NOTHING = Token("break", "", -1, -1)


def read_tokens(text: str) -> list[Token]:
    """
    Read a text as tokens.

    The kinds in `EXPRESSION_KINDS` are part of an expression, `"relation"` stands between two expressions, and
    `"break"` ends one. An expression next to a token of kind `"unknown"` means something that cannot be read here.
    """
    return _resolve_words(_tokenize(text))


def _tokenize(text: str) -> list[Token]:
    for pattern, plain in _SPELLINGS:
        text = pattern.sub(plain, text)
    tokens, groups, expected = [], [], None
    for match in _TOKEN.finditer(text):
        token = Token(match.lastgroup, match.group(), *match.span())
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
        elif kind == "word" and content.lower() in RELATION_WORDS:
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


def _resolve_words(tokens: list[Token]) -> list[Token]:
    """Runs of words become units, operators or the ends of an expression."""
    resolved: list[Token] = []
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


def _resolve_run(resolved: list[Token], words: list[Token], following: Token) -> None:
    """Append what a run of words means to the tokens before it."""
    first, last = words[0], words[-1]
    per = len(resolved) > 1 and resolved[-1].text == "/" and resolved[-2].kind in _OPERAND_ENDS
    if per and not _is_arithmetic(first):
        # "$5/hour" is "$5 per hour"
        resolved.pop()
    before = resolved[-1] if resolved else _NOTHING
    after_operand = before.kind in _OPERAND_ENDS
    before_operand = following.kind in _OPERAND_STARTS
    of_share = after_operand and first.text == "of" and _is_share(resolved)
    if of_share and before_operand and first is last:
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
        is_variable = first.text == "a" and before.end == first.start
        # "3 + 5 is 1 more than 7" does not state a result, "8 - 5 = 3 more than Tom" does
        may_compare = before_operand or any(token.text in RELATION_WORDS for token in resolved[-3:])
        is_part = (
            (is_variable or of_share or _is_arithmetic(first))
            or _is_factor(words, following)
            or (may_compare and _compares(words))
        )
        resolved.append(first._replace(kind="unknown" if is_part else "unit"))
    resolved.append(last._replace(kind="break"))
    if before.kind == "operator" or following.kind == "operator" or _goes_on(words, before, following):
        resolved.append(last._replace(kind="unknown"))


def _are_units(words: list[Token]) -> bool:
    return (
        len(words) <= _MAX_UNIT_WORDS
        and not any(_is_arithmetic(word) or word.text.lower() in _CLAUSE_WORDS for word in words)
        and (not words or words[-1].text != "a")
    )


def _compares(words: list[Token]) -> bool:
    """Whether the words after a number make it a difference: "1 more than", "1 below"."""
    texts = [word.text.lower() for word in words]
    clause_end = next((index for index, text in enumerate(texts) if text in _CLAUSE_WORDS), len(texts))
    compared = texts[:clause_end]
    return "than" in compared or not _DISTANCE_WORDS.isdisjoint(compared[:1])


def _is_factor(words: list[Token], following: Token) -> bool:
    """Whether the words after a number make it a factor of the next one: "3 groups of 4"."""
    texts = [word.text.lower() for word in words]
    return (
        following.kind in _OPERAND_STARTS
        and texts[-1] == "of"
        and len(texts) <= _MAX_UNIT_WORDS
        and _CLAUSE_WORDS.union(("total", "sum")).isdisjoint(texts)
    )


def _goes_on(words: list[Token], before: Token, following: Token) -> bool:
    """Whether an expression after these words is only a part of what is computed."""
    if following.kind not in _OPERAND_STARTS:
        return False
    texts = [word.text.lower() for word in words]
    if before.kind in _OPERAND_ENDS and (
        texts == ["and"]
        or texts[0] == "of"
        or "to" in texts
        or texts[-1] in ("by", "than")
        or _is_factor(words, following)
    ):
        return True
    if texts[-1] == "of" and texts[-2:-1] != ["total"] and not _NUMBER_WORDS.isdisjoint(texts[-4:]):
        return True
    if words[-1].end == following.start or (following.kind == "number" and texts[-1] in _COUNTED_WORDS):
        return True
    # "As many as" ends no clause
    clause_words = _CLAUSE_WORDS - {"as"} if texts.count("as") > 1 else _CLAUSE_WORDS
    clause_start = max((i + 1 for i, text in enumerate(texts) if text in clause_words), default=0)
    return not _SCALING_WORDS.isdisjoint(texts[clause_start:]) or (
        _is_arithmetic(words[-1]) and texts[-1] not in ("by", "than")
    )


def _is_arithmetic(word: Token) -> bool:
    """Whether a word is a variable or a word for arithmetic."""
    letters = re.split("[-/]", word.text)
    return word.text.lower() in _ARITHMETIC_WORDS or (
        word.text not in ("a", "I") and all(len(part) == 1 for part in letters)
    )


def _is_share(tokens: list[Token]) -> bool:
    """Whether the tokens end in something like `20%` or `1/2`."""
    return tokens[-1].kind == "percent" or (
        len(tokens) > 2 and tokens[-1].kind == tokens[-3].kind == "number" and tokens[-2].text == "/"
    )
