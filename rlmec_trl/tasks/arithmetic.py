"""
The built-in task: short sums whose references are not written in the policy's style.

A problem is a short story, "Tom has 59 nuts, loses 16, finds 23, buys 20.". The policy solves it step by step,
"59 - 16 is 43 ; 43 + 23 = 66 ; 66 + 20 makes 86 ; The answer is 86". The reference is correct but terse,
"59 - 16 + 23 + 20 = 86": a policy that imitates it loses its steps. Warm-up problems are mostly easy. About half of
the steps of the others carry or borrow, so a policy trained on the warm-up split solves only some of them.

Every step of a solution can be checked exactly, and every attempt corrected without a language model. The numbers of a
problem are a tuple, the start followed by signed operands: `(59, -16, 23, 20)`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

from ..data.schema import DatasetError
from ..data.steps import split_steps
from .equations import Operation
from .small_models import make_policy as make_policy  # of this task too
from .small_models import make_word_tokenizer
from .steps import check_stated_steps
from .task import Task
from .wording import Wording, locate_prompt, policy_prompt, rewrite_prompt


if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerFast


NAMES = ("Tom", "Ann", "Ben", "Eva", "Max", "Zoe")
OBJECTS = ("nuts", "figs", "plums", "pears", "dates", "eggs")
GAIN_VERBS = ("finds", "buys", "gets", "wins")
LOSS_VERBS = ("loses", "sells", "eats", "drops")
CONNECTIVES = ("=", "is", "makes")

NUM_OPERATIONS = 3
SMALLEST, LARGEST = 10, 99
SMALLEST_OPERAND = 11
WARMUP_CARRY_RATE, CARRY_RATE = 0.08, 0.5

WORDING = Wording(
    locate="{problem} reference {reference} attempt {attempt} locate :",
    rewrite="{problem} reference {reference} attempt {attempt} rewrite :",
    policy="{problem}",
    step_separator=" ; ",
    numbered=False,
    no_error="none",
)

_PROBLEM_PATTERN = re.compile(r"[A-Za-z]+ has (\d+) [A-Za-z]+((?:, [A-Za-z]+ \d+)+)\.")
_ANSWER_PATTERN = re.compile(r"The answer is (\d+)\s*$")
_TERSE_PATTERN = re.compile(rf"\d+(?: [+-] \d+){{{NUM_OPERATIONS}}} = (\d+)")


# --- Problems and their solutions ------------------------------------------------------------------------------------


def make_arithmetic(
    seed: int = 0, warmup: int = 1500, train: int = 4000, validation: int = 500, test: int = 1000
) -> DatasetDict:
    """
    Make the splits of the task. No two problems have the same numbers, across all splits.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Seed of the problems. The global random state is neither read nor changed.
        warmup (`int`, *optional*, defaults to `1500`):
            Number of mostly easy problems with solutions in the policy's style.
        train (`int`, *optional*, defaults to `4000`):
            Number of harder problems, with terse references, for all stages after the warm-up.
        validation (`int`, *optional*, defaults to `500`):
            Number of problems, like those of `train`, to choose settings on.
        test (`int`, *optional*, defaults to `1000`):
            Number of problems, like those of `train`, for the results that are reported.

    Returns:
        `DatasetDict`: `"warmup"` with columns `prompt` and `completion`; `"train"`, `"validation"` and `"test"` with
        columns `prompt`, `reference` and `answer`.
    """
    from datasets import Dataset, DatasetDict

    rng = random.Random(seed)
    seen = set()

    def draw_unseen(carry_rate):
        numbers = draw_numbers(rng, carry_rate)
        while numbers in seen:
            numbers = draw_numbers(rng, carry_rate)
        seen.add(numbers)
        return numbers

    def warmup_row():
        numbers = draw_unseen(WARMUP_CARRY_RATE)
        connectives = [rng.choice(CONNECTIVES) for _ in numbers[1:]]
        return {"prompt": _prompt(rng, numbers), "completion": write_solution(numbers, connectives)}

    def task_row():
        numbers = draw_unseen(CARRY_RATE)
        return {"prompt": _prompt(rng, numbers), "reference": write_reference(numbers), "answer": str(sum(numbers))}

    splits = {"warmup": [warmup_row() for _ in range(warmup)]}
    for name, size in (("train", train), ("validation", validation), ("test", test)):
        splits[name] = [task_row() for _ in range(size)]
    return DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()})


def needs_carry(value: int, operand: int) -> bool:
    """Whether adding the signed `operand` to `value` carries a ten or borrows one."""
    digit = abs(operand) % 10
    return value % 10 + digit > 9 if operand > 0 else value % 10 < digit


def draw_numbers(rng: random.Random, carry_rate: float) -> tuple[int, ...]:
    """
    Draw the numbers of a problem. Each step carries or borrows with probability `carry_rate`. Where no step of the
    drawn kind has a result in range, a step of the other kind is taken.
    """
    value = rng.randint(SMALLEST, LARGEST)
    numbers = [value]
    for _ in range(NUM_OPERATIONS):
        with_carry = rng.random() < carry_rate
        operands = [sign * size for sign in (1, -1) for size in range(SMALLEST_OPERAND, LARGEST + 1)]
        valid = [operand for operand in operands if SMALLEST <= value + operand <= LARGEST]
        wanted = [operand for operand in valid if needs_carry(value, operand) == with_carry]
        numbers.append(rng.choice(wanted or valid))
        value += numbers[-1]
    return tuple(numbers)


def write_problem(rng: random.Random, numbers: tuple[int, ...]) -> str:
    """The story of a problem, with words drawn at random."""
    start, *operands = numbers
    events = [f", {rng.choice(GAIN_VERBS if operand > 0 else LOSS_VERBS)} {abs(operand)}" for operand in operands]
    return f"{rng.choice(NAMES)} has {start} {rng.choice(OBJECTS)}{''.join(events)}."


def read_problem(problem: str) -> tuple[int, ...]:
    """The numbers of a problem: its start, then its signed operands."""
    match = _PROBLEM_PATTERN.fullmatch(problem.strip())
    if match is None:
        raise DatasetError(f"Not a problem of the arithmetic task: {problem!r}. Name the task of these rows.")
    numbers = [int(match[1])]
    for verb, size in re.findall(r"([A-Za-z]+) (\d+)", match[2]):
        if verb not in GAIN_VERBS + LOSS_VERBS:
            raise DatasetError(f"Unknown verb {verb!r} in the problem {problem!r}.")
        numbers.append(int(size) if verb in GAIN_VERBS else -int(size))
    return tuple(numbers)


def write_solution(numbers: tuple[int, ...], connectives: list[str]) -> str:
    """The correct solution in the policy's style, with one connective for each operation."""
    pairs = zip(_steps(numbers), connectives, strict=True)
    steps = [f"{left} {connective} {result}" for (left, result), connective in pairs]
    return WORDING.step_separator.join([*steps, _answer_step(numbers)])


def write_reference(numbers: tuple[int, ...]) -> str:
    """The correct solution in the style of the references, in one line."""
    return " ".join([str(numbers[0]), *(_operation(operand) for operand in numbers[1:]), "=", str(sum(numbers))])


def _prompt(rng, numbers):
    return policy_prompt(WORDING, write_problem(rng, numbers))


def _operation(operand):
    return f"{'+' if operand > 0 else '-'} {abs(operand)}"


def _steps(numbers):
    """Left side and correct result of each step."""
    values = list(accumulate(numbers))
    triples = zip(values[:-1], numbers[1:], values[1:], strict=True)
    return [(f"{value} {_operation(operand)}", result) for value, operand, result in triples]


def _answer_step(numbers):
    return f"The answer is {sum(numbers)}"


# --- Checking and correcting an attempt ------------------------------------------------------------------------------


def check_answer(completion: str, answer: str, problem: str = "") -> bool:
    """
    Whether the completion ends with "The answer is" and the correct number, or is a terse solution like the
    references, "59 - 16 + 23 + 20 = 86", that ends with it.
    """
    match = _ANSWER_PATTERN.search(completion) or _TERSE_PATTERN.fullmatch(completion.strip())
    return match is not None and match[1] == answer.strip()


def check_steps(problem: str, completion: str) -> list[bool]:
    """
    Check every step of a completion, including the final "The answer is", against the true intermediate values. A step
    that follows correctly from an incorrect one is incorrect too, and an incorrect step stays incorrect where a later
    one makes up for it.

    Args:
        problem (`str`):
            Problem text.
        completion (`str`):
            Attempt in the policy's style.

    Returns:
        `list[bool]`: One verdict for each step of [`~rlmec_trl.data.steps.split_steps`]. Malformed and superfluous
        steps are incorrect; a step that is missing at the end is appended as incorrect.
    """
    numbers = read_problem(problem)
    steps = split_steps(completion, WORDING.step_separator)
    bodies = _bodies(steps)
    verdicts = [
        body in {f"{left} {connective} {result}" for connective in CONNECTIVES}
        for body, (left, result) in zip(bodies, _steps(numbers), strict=False)
    ]
    if len(steps) > len(verdicts):
        # Nothing may follow the answer: a separator makes this step incorrect, a further step is itself incorrect.
        final = len(verdicts)
        is_last = final == len(steps) - 1
        verdicts.append((steps[final] if is_last else bodies[final]) == _answer_step(numbers))
    num_steps = max(len(steps), len(numbers))
    return verdicts + [False] * (num_steps - len(verdicts))


def rewrite_minimally(problem: str, reference: str, completion: str) -> tuple[int, str]:
    """
    Correct an attempt with as few changes as possible. The steps before the first incorrect one are kept word for
    word, the later ones get the true numbers and keep their connectives. A missing step is added with "=", a
    superfluous one dropped.

    Args:
        problem (`str`):
            Problem text.
        reference (`str`):
            Unused: the problem has all numbers. Every editor is called with it.
        completion (`str`):
            Attempt in the policy's style.

    Returns:
        `tuple[int, str]`: Index of the first incorrect step (where one is missing, its position), or -1 if all are
        correct, and the rewrite, which is the completion itself in that case.
    """
    verdicts = check_steps(problem, completion)
    if all(verdicts):
        return -1, completion
    error_step = verdicts.index(False)
    numbers = read_problem(problem)
    bodies = _bodies(split_steps(completion, WORDING.step_separator))
    # The correct steps are written again with their own connectives, which gives the same words.
    kept, rest = bodies[:error_step], bodies[error_step:]
    connectives = [_connective(body) for body in kept[:NUM_OPERATIONS]]
    connectives += _match_connectives(rest, [_operation(operand) for operand in numbers[1:][error_step:]])
    return error_step, write_solution(numbers, connectives)


def write_steps(operations: Sequence[Operation], steps: Sequence[str]) -> list[str]:
    """
    Write operations as steps of an attempt, with the connectives of `steps`, the part of the attempt that they
    replace. An operation without a corresponding step gets "=".
    """
    connectives = _match_connectives(_bodies(steps), [f"{one.operator} {one.right}" for one in operations])
    return [
        f"{one.left} {one.operator} {one.right} {connective} {one.result}"
        for one, connective in zip(operations, connectives, strict=True)
    ]


def _bodies(steps):
    """The steps without their separators. A truncated attempt may end with half a separator."""
    bodies = [step.removesuffix(WORDING.step_separator) for step in steps]
    return bodies[:-1] + [body.removesuffix(WORDING.step_separator.rstrip()) for body in bodies[-1:]]


def _connective(body):
    """The connective that a step uses, "=" where it has none."""
    return next((word for word in body.split() if word in CONNECTIVES), "=")


def _match_connectives(bodies, operations):
    """Connectives for the operations, each from the step of the attempt that corresponds to it."""
    bodies = [body for body in bodies if not body.startswith("The answer")]
    attempted = [match[0] if (match := re.search(r"[+-] \d+", body)) else "" for body in bodies]
    connectives = []
    for _, i, i_end, j, j_end in SequenceMatcher(None, attempted, operations, autojunk=False).get_opcodes():
        # Too few steps in this part: the last ones are added. Too many: the last ones are dropped.
        wanted = j_end - j
        connectives += [_connective(body) for body in (bodies[i:i_end] + [""] * wanted)[:wanted]]
    return connectives


# --- A policy small enough for a CPU ---------------------------------------------------------------------------------


def make_tokenizer() -> PreTrainedTokenizerFast:
    """
    Make the word-level tokenizer of the task. Each digit is a token, and a token includes the space before it, so that
    decoding returns exactly the text that was encoded.
    """
    return make_word_tokenizer(_vocabulary())


def _vocabulary():
    """Texts with all tokens that the task and its wording can produce, in a fixed order."""
    digits = [f"{space}{digit}" for space in ("", " ") for digit in range(10)]
    stories = [f"{name} has,." for name in NAMES] + [f" {word}" for word in OBJECTS + GAIN_VERBS + LOSS_VERBS]
    answers = [f" {word}" for word in CONNECTIVES] + [" + - ; The answer is", WORDING.no_error]
    questions = [policy_prompt(WORDING, ""), locate_prompt(WORDING, "", "", ""), rewrite_prompt(WORDING, "", "", "")]
    return digits + stories + answers + questions


def edit(problems, references, completions, usable=None) -> list[tuple[int, str]]:
    """[`rewrite_minimally`] as a teacher ([`~rlmec_trl.teachers.editors.Editor`]), which is always correct."""
    return [rewrite_minimally(*row) for row in zip(problems, references, completions, strict=True)]


# The task knows all true values, but rewrites are verified only by what they state, as in any other task:
# `check_steps` is for audits.
TASK = Task(
    "arithmetic",
    check_answer,
    WORDING,
    check_steps=partial(check_stated_steps, step_separator=WORDING.step_separator),
    editor=edit,
    write_steps=write_steps,
)
