"""The wording of a task: the prompts of the policy, the generative reward model and the teacher."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..data.errors import ConfigError
from ..data.steps import split_steps


TEACHER_INSTRUCTIONS = """\
You correct students' attempts at problems. You are given a problem, a correct reference solution, a student's \
attempt, and the attempt's steps, numbered from 0.

1. Find the first step of the attempt that is wrong. Check every step, also where the final answer is right: two \
mistakes may cancel. A step is wrong if it states something false, computes something wrongly, or does not follow \
from the problem and the steps before it. Being different from the reference solution is not an error.
2. Correct the attempt with as few edits as possible. Keep everything that is right word for word, with its spaces \
and line breaks, in the student's own style and order, and change, add or remove only what has to be for every step \
and the final answer to be right. Do not number the steps. If nothing is wrong, repeat the attempt unchanged. End \
with the final answer in the form that the attempt uses, or with "The answer is X" where it has none.

"""
"""Instructions of an API teacher, unless a task has its own."""

JUSTIFY_INSTRUCTIONS = """\
You write training data for a model that labels texts. You are given a prompt and one of the labels that it allows. \
Write the response that the prompt asks for, with the given label as its answer.

1. Argue for the given label, whether or not it is the one that you would choose. Some of the given labels are wrong: \
a response with a wrong label is a counter-argument, from which a model learns to tell correct labels from incorrect \
ones. Make the best case that the text allows for, and invent nothing that is not in it.
2. Give a short rationale in your own words, of one to three sentences unless the prompt asks for something else. It \
names what in the text speaks for the label.
3. State the label word for word, at the place and in the form that the prompt asks for. Where it asks for no form, \
end with a line that says "The answer is X", where X is the label. State no other label as the answer.
4. Write as if you had chosen the label yourself: do not mention that it was given to you, and express no doubt about \
it.

"""
"""Instructions of a teacher that justifies labels, unless a task has its own."""

RATE_INSTRUCTIONS = """\
You rate the rationales of a model that labels texts. You are given a prompt and a response to it, which has a \
rationale and a label. Rate the rationale from 1 (useless) to 10 (perfect): whether what it says about the text is \
true, whether it names what matters, whether it supports the very label that the response states, and whether it is \
clear and free of repetition. Do not rate the label: a wrong label may have a good rationale, and a correct label a \
poor one.

"""
"""Instructions of a teacher that rates responses, unless a task has its own."""


@dataclass(frozen=True)
class Wording:
    r"""
    The prompts of a task, and how attempts at it are split into steps.

    Templates have their slots in braces. Other braces are kept, so LaTeX needs no escaping.

    Args:
        locate (`str`):
            Template that asks for the first incorrect step, with `{problem}`, `{reference}` and `{attempt}`.
        rewrite (`str`):
            Template that asks for the minimally corrected attempt, with `{problem}`, `{reference}` and `{attempt}`.
        policy (`str`):
            Template with `{problem}` that turns a raw problem into the policy's prompt.
        step_separator (`str`, *optional*, defaults to `"\n"`):
            Separator of the steps of an attempt.
        numbered (`bool`, *optional*, defaults to `False`):
            Whether the locate prompt shows the steps of the attempt numbered from 0, one per line.
        no_error (`str`, *optional*, defaults to `"none"`):
            Answer to the locate prompt where every step is correct.
        teacher (`str`, *optional*, defaults to `TEACHER_INSTRUCTIONS`):
            Instructions for an API teacher: find the first incorrect step and correct the attempt with as few edits as
            possible. They have no slots: the row follows in a separate message. The format of the answer is
            appended to them.
        justify (`str`, *optional*, defaults to `JUSTIFY_INSTRUCTIONS`):
            Instructions for a teacher: write the response to a prompt that justifies a given label, even a wrong one.
            They have no slots: the policy's prompt and the label follow.
        rate (`str`, *optional*, defaults to `RATE_INSTRUCTIONS`):
            Instructions for a teacher: rate the rationale of a response from 1 to 10. They have no slots: the policy's
            prompt and the response follow.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If a field is not a text, or `step_separator` is empty.
    """

    locate: str
    rewrite: str
    policy: str
    step_separator: str = "\n"
    numbered: bool = False
    no_error: str = "none"
    teacher: str = TEACHER_INSTRUCTIONS
    justify: str = JUSTIFY_INSTRUCTIONS
    rate: str = RATE_INSTRUCTIONS

    def __post_init__(self):
        for name in ("locate", "rewrite", "policy", "step_separator", "no_error", "teacher", "justify", "rate"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"`{name}` of a wording must be a text, got {getattr(self, name)!r}.")
        if not self.step_separator:
            raise ConfigError("`step_separator` of a wording is empty: no text can be divided into steps by it.")


WORDING = Wording(
    locate=(
        "Below are a problem, a correct reference solution, and a student's attempt whose steps are numbered from 0. "
        "Find the first step of the attempt that is wrong. A step is wrong if it states something false, computes "
        "something wrongly, or does not follow from the problem and the steps before it; being different from the "
        "reference is not an error. Answer with the number of that step alone, or with none if every step is right."
        "\n\nProblem:\n{problem}\n\nReference solution:\n{reference}\n\nAttempt:\n{attempt}\n\nFirst wrong step:\n"
    ),
    rewrite=(
        "Below are a problem, a correct reference solution, and a student's attempt. Correct the attempt with as few "
        "edits as possible. Keep everything that is right word for word, in the student's own style and order, and "
        "change, add or remove only what has to be for every step and the final answer to be right. If nothing is "
        'wrong, repeat the attempt unchanged. Write the corrected attempt alone and end it with "The answer is X", '
        "as the attempt does."
        "\n\nProblem:\n{problem}\n\nReference solution:\n{reference}\n\nAttempt:\n{attempt}\n\nCorrected attempt:\n"
    ),
    policy=(
        "Solve the problem step by step, one step on each line. End with a line that says "
        '"The answer is X", where X is the final answer and nothing else.'
        "\n\nProblem:\n{problem}\n\nSolution:\n"
    ),
    numbered=True,
)
"""The default wording."""

LABEL_LAST = (
    "Read the text and answer the question about it. First explain in one to three sentences what in the text decides "
    'the answer. Then end with a line that says "The answer is X", where X is one of the labels and nothing else.'
    "\n\n{problem}\n\nResponse:\n"
)
"""The policy's prompt for a task with labels: a rationale, then the label."""

LABEL_FIRST = (
    'Read the text and answer the question about it. Begin with a line that says "The answer is X", where X is one of '
    "the labels and nothing else. Then explain in one to three sentences what in the text decides the answer."
    "\n\n{problem}\n\nResponse:\n"
)
"""The policy's prompt for a task with labels: the label, then a rationale."""


def number_steps(wording: Wording, attempt: str) -> str:
    """The steps of an attempt, numbered from 0, one per line."""
    separator = wording.step_separator
    shown = [" ".join(step.replace(separator, " ").split()) for step in split_steps(attempt, separator)]
    return "\n".join(f"{index}: {step}" for index, step in enumerate(shown))


def policy_prompt(wording: Wording, problem: str) -> str:
    """The policy's prompt for a raw problem."""
    return _fill(wording.policy, problem=problem)


def raw_problem(wording: Wording, prompt: str) -> str:
    """The problem in a policy's prompt, without the template where there is one."""
    before, _, after = wording.policy.partition("{problem}")
    framed = prompt.startswith(before) and prompt.endswith(after) and len(prompt) >= len(before) + len(after)
    return prompt[len(before) : len(prompt) - len(after)] if framed else prompt


def locate_prompt(wording: Wording, problem: str, reference: str, attempt: str) -> str:
    """The prompt for the first incorrect step of an attempt."""
    if wording.numbered:
        attempt = number_steps(wording, attempt)
    return _fill(wording.locate, problem=problem, reference=reference, attempt=attempt)


def rewrite_prompt(wording: Wording, problem: str, reference: str, attempt: str) -> str:
    """The prompt for the minimally corrected attempt."""
    return _fill(wording.rewrite, problem=problem, reference=reference, attempt=attempt)


def locate_answer(wording: Wording, error_step: int) -> str:
    """The correct answer to the locate prompt. `error_step` is -1 where every step is correct."""
    return wording.no_error if error_step == -1 else str(error_step)


def parse_locate(wording: Wording, text: str) -> int | None:
    """
    Read an answer to the locate prompt.

    The first line that is not blank counts: a step number or `no_error`, optionally after "step" and before a remark.

    Returns:
        `int` or `None`:
            Index of the step, -1 for `no_error`, `None` for any other answer.
    """
    lines = [line.strip(" \t\r*`\"'") for line in text.splitlines()]
    first_line = next((line for line in lines if line), "")
    # The end, or a remark after punctuation: "3 apples" and "1.5" are not step numbers
    remark = r"(?:[*`\"':.,;)]+(?:\s.*)?|\s+[-–—(].*)?"
    if re.fullmatch(re.escape(wording.no_error.strip()) + remark, first_line, re.IGNORECASE):
        return -1
    found = re.fullmatch(r"(?:step\s*)?([0-9]{1,9})" + remark, first_line, re.IGNORECASE)
    return int(found.group(1)) if found else None


def _fill(template: str, **values: str) -> str:
    # One pass, unlike chained `str.replace`: a problem that itself contains "{attempt}" stays as it is
    return re.sub(r"\{(problem|reference|attempt)\}", lambda slot: values.get(slot.group(1), slot.group(0)), template)
