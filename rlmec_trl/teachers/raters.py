"""What a rater is: how good the rationale of a response is, whatever its label."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from typing import Any, Protocol

from ..data.errors import UserError
from ..tasks.task import Task, user_code
from ..tasks.wording import WORDING, Wording
from .api.journaled_teacher import JournaledTeacher, answer_together
from .api.questions import Question
from .calls import call_function, load_function, name_of, show_entry
from .text_questions import make_rating_question, read_rating


@dataclass(frozen=True)
class NoRating:
    """
    A response that was not rated.

    Args:
        reason (`str`):
            Why not.
    """

    reason: str


# Higher is better
Rating = float | NoRating


class Rater(Protocol):
    """
    Rates rationales. Any callable with this signature works; `--rater package.module:NAME` or
    `--rater path/to/file.py:NAME` loads it. It is called once per shard, and each process has its own shards.

    Args:
        problems (`Sequence[str]`):
            The problems, without the prompt template around them.
        responses (`Sequence[str]`):
            A whole response to each, rationale and label.

    Returns:
        `list[float | None]`: A rating for each response, in the same order; higher is better, and only responses to
        the same problem with the same label are compared. `None` for a response that cannot be rated. Anything else
        is a [`RaterError`].

    Example:

    ```python
    def prefer_short(problems, responses):
        return [-len(response) for response in responses]
    ```
    """

    def __call__(self, problems: Sequence[str], responses: Sequence[str]) -> list[float | None]: ...


class RaterError(UserError, ValueError):
    """A rater failed, or returned something that is not a list with one rating per response."""


def load_rater(path: str) -> Rater:
    """
    Load a rater from `package.module:NAME` or `path/to/file.py:NAME`.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If there is no such object, or it cannot be called.
    """
    return load_function(path, "a rater", "problems and responses", "rlmec_trl.teachers.raters.Rater")


class TaskRater:
    """
    A task's own check of rationales, a response at a time.

    Args:
        task ([`~rlmec_trl.tasks.task.Task`]):
            A task with `rate`.
    """

    def __init__(self, task: Task):
        self.task = task

    def __call__(self, problems: Sequence[str], responses: Sequence[str]) -> list[float]:
        return [self._rate(*row) for row in zip(problems, responses, strict=True)]

    def _rate(self, problem: str, response: str) -> float:
        what = f"`rate` of task '{self.task.name}' failed on the response {response[:60]!r}"
        with user_code(what, "Fix it, or let it return a low number for what it cannot read.", RaterError):
            return self.task.rate(problem, response)


def rate_responses(rater: Rater, problems: list[str], responses: list[str]) -> list[Rating]:
    """
    Have a rater rate responses.

    Raises:
        [`RaterError`]: If it does not return a finite number or `None` for each.
    """
    if not responses:
        return []
    words = ("rater", "rating", "response", "None")
    ratings = call_function(rater, [problems, responses], *words, RaterError)
    for rating, response in zip(ratings, responses, strict=True):
        if rating is not None and not _is_rating(rating):
            raise RaterError(
                f"The rater `{name_of(rater)}` returned {show_entry(rating)} for the response {response[:60]!r}; a "
                "rating is a finite number, or None."
            )
    return [NoRating("no rating") if rating is None else float(rating) for rating in ratings]


def _is_rating(value: Any) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


class JournaledRater:
    """
    An API teacher as a rater: it is asked until an answer has a rating.

    Args:
        teacher ([`~rlmec_trl.teachers.api.journaled_teacher.JournaledTeacher`]):
            The teacher.
        wording ([`~rlmec_trl.tasks.wording.Wording`], *optional*):
            Wording of the task.
    """

    def __init__(self, teacher: JournaledTeacher, wording: Wording = WORDING):
        self.teacher = teacher
        self.wording = wording

    def questions(self, problems: Sequence[str], responses: Sequence[str]) -> list[Question]:
        """The request for each response. Equal ones have the same key, and are requested once."""
        return self.teacher.make_questions(make_rating_question, self.wording, problems, responses)

    def rate(self, problems: Sequence[str], responses: Sequence[str]) -> list[Rating]:
        """The ratings, asked for on all processes of the run."""
        questions = self.questions(problems, responses)

        def read(index: int, text: str) -> Rating:
            rating = read_rating(self.teacher.config.structured_output, text)
            return NoRating("malformed") if rating is None else rating

        def ask(indices: Sequence[int]) -> list[Rating]:
            own = [questions[index] for index in indices]
            return self.teacher.answer(own, read, lambda index, rating: not isinstance(rating, NoRating), NoRating)

        return answer_together(self.teacher, questions, ask)
