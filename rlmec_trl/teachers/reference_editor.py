"""The reference as the teacher: attempts are corrected by the values that it states, without a model."""

import re
from collections.abc import Sequence
from fractions import Fraction

from ..data.steps import split_steps
from ..tasks.answers import find_statements
from ..tasks.steps import read_step
from ..tasks.task import Task
from .editors import Edit, NoEdit, Usable
from .reference_values import (
    ReferenceValues,
    StepValues,
    agreeing,
    has_answer,
    read_reference,
    replace_numbers,
    stated_equations,
)


NOT_COMPARABLE = NoEdit("no values in the reference")
ANOTHER_WAY = NoEdit("another way")
# Its sign may be a hyphen, a minus sign or a dash, and before the currency
_NUMBER = re.compile(r"(?P<sign>[-−–]?)(?P<currency>[$€£]?)(?P<number>-?\d[\d,]*(?:\.\d+)?)")


class ReferenceEditor:
    """
    The reference as the teacher. It needs no model: it compares the values that an attempt's steps state with those
    of the reference.

    The steps of the attempt are kept as long as they agree with the reference, in any order in which the values that
    they use are known. A step that computes the right thing and states another result gets the result of the
    reference, and so do later steps that use it, as long as they then agree. After that, the computations of the
    reference that are still to be done follow: in the form of the attempt if the task has `write_steps`, otherwise
    as the steps of the reference that contain them. The answer is stated as the attempt states it.

    Not edited are

    - rows whose reference states no values that can be compared ([`NoEdit`] with `"no values in the reference"`);
    - attempts with a correct answer in which every equation holds. They are kept as they are or, if they have numbers
      that neither the problem nor the reference leads to, left without an edit (`"another way"`): nobody knows
      whether they are correct.

    Args:
        task ([`~rlmec_trl.tasks.task.Task`]):
            Separator of the steps, and how computations are written in the form of an attempt.
    """

    def __init__(self, task: Task):
        self.step_separator = task.wording.step_separator
        self.write_steps = task.write_steps

    def __call__(
        self,
        problems: Sequence[str],
        references: Sequence[str],
        completions: Sequence[str],
        usable: Usable | None = None,
    ) -> list[Edit]:
        return [self.edit(*row) for row in zip(problems, references, completions, strict=True)]

    def edit(self, problem: str, reference: str, completion: str) -> Edit:
        """Correct one attempt."""
        expected = read_reference(problem, reference, self.step_separator)
        if expected is None:
            return NOT_COMPARABLE
        steps = split_steps(completion, self.step_separator)
        kept, stated = self._correct(expected, steps)
        is_finished = len(kept) == len(steps) and has_answer(expected, "".join(kept))
        if is_finished and kept == steps:
            return -1, completion
        if has_answer(expected, completion) and all(read_step(step)[0] for step in steps):
            return (-1, completion) if _is_derived(expected, steps) else ANOTHER_WAY
        if kept and not is_finished and _answer_step(expected, completion).startswith(kept[-1].strip()):
            # An attempt that was truncated in "The answer is"
            kept, stated = kept[:-1], stated[:-1]
        changed = [index for index, (step, new) in enumerate(zip(steps, kept, strict=False)) if step != new]
        error_step = min([*changed, len(kept)])
        if is_finished:
            return error_step, "".join(kept)
        return error_step, self._continue(expected, completion, kept, stated, steps[len(kept) :])

    def _correct(self, reference: ReferenceValues, steps: list[str]) -> tuple[list[str], list[StepValues]]:
        """The steps up to the first one that cannot be made to agree, with corrected results, and their values."""
        kept: list[str] = []
        stated: list[StepValues] = []
        corrections: dict[Fraction, Fraction] = {}
        for step in steps:
            carried = replace_numbers(step, corrections)
            slips = _slips(reference, carried)
            for candidate in (step, carried, replace_numbers(carried, slips), _with_answer(reference, carried)):
                values = agreeing(reference, stated, candidate)
                if values is not None:
                    break
            else:
                break
            if candidate not in (step, carried):
                corrections |= slips
                # A result that has been corrected twice
                corrections = {old: slips.get(new, new) for old, new in corrections.items()}
            kept.append(candidate)
            stated.append(values)
        return kept, stated

    def _continue(
        self,
        reference: ReferenceValues,
        completion: str,
        kept: list[str],
        stated: list[StepValues],
        replaced: list[str],
    ) -> str:
        """The kept steps, the computations that are still to be done, and the answer."""
        remaining = reference.remaining(stated)
        if self.write_steps is not None:
            new = self.write_steps([one.operation for one in remaining], replaced)
        else:
            new = _steps_of_reference(reference, {one.step for one in remaining})
            if "<<" not in completion:
                new = [re.sub(r"<<[^<>\n]*>>", "", step) for step in new]
        new = [step.strip() for step in new]
        if not has_answer(reference, "".join(kept)) or new:
            new.append(_answer_step(reference, completion))
        text = "".join(kept)
        if text and not text.endswith(self.step_separator):
            # A truncated attempt may end in half a separator
            text = text.removesuffix(self.step_separator.rstrip() or self.step_separator) + self.step_separator
        return text + self.step_separator.join(new)


def _slips(reference: ReferenceValues, step: str) -> dict[Fraction, Fraction]:
    """The incorrect results in a step whose computations are those of the reference, and the correct ones."""
    slips = {}
    for left, right in stated_equations(step):
        correct = [value for value in left.values if value in reference.values]
        if correct and left.is_computed and not left.equals(right):
            slips[right.values[0]] = correct[0]
    return slips


def _with_answer(reference: ReferenceValues, step: str) -> str:
    """A step with the reference's answer where it states another one."""
    for statement in reversed(find_statements(step)):
        place = step.index(statement.answer, statement.start)
        step = step[:place] + _answer_like(reference, statement.answer) + step[place + len(statement.answer) :]
    return step


def _answer_like(reference: ReferenceValues, answer: str) -> str:
    """The reference's answer, with the unit of another one if that is a number."""
    numbers, expected = (list(_NUMBER.finditer(text)) for text in (answer, reference.answer))
    if len(numbers) != 1 or (numbers[0][0] == answer and not numbers[0]["currency"]):
        return reference.answer
    # Without the reference's own unit: "$3" and "4 dollars" do not make "$3 dollars"
    new = "".join(expected[0].group("sign", "number")) if len(expected) == 1 else reference.answer
    return answer[: numbers[0].start()] + numbers[0]["currency"] + new + answer[numbers[0].end() :]


def _answer_step(reference: ReferenceValues, completion: str) -> str:
    statements = find_statements(completion)
    if not statements:
        return f"The answer is {reference.answer}"
    start, end, *_ = statements[-1]
    return _with_answer(reference, completion[start:end]).strip()


def _steps_of_reference(reference: ReferenceValues, wanted: set[int]) -> list[str]:
    """Steps of the reference, with the steps without a computation that lead to them."""
    computing = {one.step for one in reference.computations}
    steps, leading = [], []
    for index, step in enumerate(reference.steps):
        leading.append(step)
        if index in computing:
            steps += leading if index in wanted else []
            leading = []
    return steps


def _is_derived(reference: ReferenceValues, steps: list[str]) -> bool:
    """Whether an attempt computes with numbers of the problem and of the reference alone, in whatever way."""
    stated: list[StepValues] = []
    for step in steps:
        values = agreeing(reference, stated, step, any_results=True)
        if values is None:
            return False
        stated.append(values)
    return True
