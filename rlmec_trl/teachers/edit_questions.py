"""The edit question: one answer gives the first incorrect step and the corrected attempt."""

import re

from ..data.messages import is_storable
from ..data.steps import first_changed_step, split_steps
from ..tasks.wording import Wording, number_steps
from .api.questions import Question, make_question, read_object, without_reasoning
from .editors import NoEdit


_JSON_LAYOUT = """\
Answer with a JSON object: `error_step` is the number of the first wrong step, or -1 if every step is right; \
`rewrite` is the corrected attempt."""

_PLAIN_LAYOUT = """\
Answer with the number of the first wrong step, or with none if every step is right, alone on the first line, and \
with the corrected attempt from the second line on. Write nothing else."""

ANSWER_SCHEMA = {
    "type": "object",
    "properties": {
        "error_step": {"type": "integer", "description": "Number of the first wrong step, -1 if every step is right."},
        "rewrite": {"type": "string", "description": "The corrected attempt."},
    },
    "required": ["error_step", "rewrite"],
    "additionalProperties": False,
}


def make_edit_question(
    teacher: str, wording: Wording, structured: bool, problem: str, reference: str, attempt: str
) -> Question:
    """
    Make the request for a row.

    Args:
        teacher (`str`):
            The teacher: part of the key, so that answers of one teacher are not taken for those of another.
        wording ([`~rlmec_trl.tasks.wording.Wording`]):
            The teacher's instructions, and how attempts at the task divide into steps.
        structured (`bool`):
            Whether to request JSON, or the plain layout.
        problem, reference, attempt (`str`):
            The row.
    """
    system = f"{wording.teacher.strip()}\n\n{_JSON_LAYOUT if structured else _PLAIN_LAYOUT}"
    parts = {
        "problem": problem,
        "reference_solution": reference,
        "attempt": attempt,
        "steps": number_steps(wording, attempt),
    }
    # The number of the step and the layout add to the rewrite
    answer_length = len(attempt) + 40
    return make_question(teacher, "edit", system, parts, answer_length, ANSWER_SCHEMA if structured else None)


def read_edit(wording: Wording, structured: bool, attempt: str, text: str) -> tuple[int, str] | NoEdit:
    """
    Read the answer to a request from [`make_edit_question`].

    Args:
        wording ([`~rlmec_trl.tasks.wording.Wording`]):
            Wording of the task.
        structured (`bool`):
            Whether JSON was requested.
        attempt (`str`):
            The attempt.
        text (`str`):
            The answer.

    Returns:
        `tuple[int, str]` or [`~rlmec_trl.teachers.editors.NoEdit`]: The index of the first incorrect step and the
        rewrite, with the attempt's leading and trailing whitespace; or why there is none: `"malformed"`, or
        `"inconsistent"` if the rewrite repeats the step that the teacher calls incorrect.
    """
    found = _read_json(text) if structured else _read_plain(text)
    num_steps = len(split_steps(attempt, wording.step_separator))
    if found is None or not -1 <= found[0] <= num_steps or not is_storable(found[1]):
        return NoEdit("malformed")
    error_step, rewrite = found
    rewrite = _as_written(attempt, rewrite)
    first_changed = first_changed_step(attempt, rewrite, wording.step_separator)
    if error_step >= 0 and first_changed == -1:
        return NoEdit("inconsistent")
    if error_step == num_steps:
        # A step is missing at the end: the rewrite shows where
        error_step = first_changed
    return NoEdit("inconsistent") if 0 <= error_step < first_changed else (error_step, rewrite)


def _read_json(text: str) -> tuple[int, str] | None:
    answer = read_object(text)
    if answer is None:
        return None
    error_step, rewrite = answer.get("error_step"), answer.get("rewrite")
    if type(error_step) is not int or not isinstance(rewrite, str):
        return None
    return error_step, rewrite


def _read_plain(text: str) -> tuple[int, str] | None:
    first_line, _, rewrite = without_reasoning(text).partition("\n")
    # The number must stand alone: an answer may begin with the rewrite, and the rewrite with a sum
    found = re.fullmatch(r"\W*?(?:step\s*)?(-?[0-9]{1,9}|none)\W*", first_line, re.IGNORECASE)
    if found is None:
        return None
    return (-1 if found[1].lower() == "none" else int(found[1])), rewrite


def _as_written(attempt: str, rewrite: str) -> str:
    """A rewrite with the line ends and the outer whitespace of its attempt: a change in these is not an edit."""
    if "\r" not in attempt:
        rewrite = rewrite.replace("\r\n", "\n")
    start = attempt[: len(attempt) - len(attempt.lstrip())]
    end = attempt[len(attempt.rstrip()) :]
    return start + rewrite.strip() + end if rewrite.strip() else ""
