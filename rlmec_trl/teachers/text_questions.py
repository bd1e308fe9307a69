"""Questions about one text: the response that justifies a label, and the rating of a response."""

import re

from ..data.messages import is_storable
from ..tasks.wording import Wording, policy_prompt
from .api.questions import Question, make_question, read_object, show_parts, without_reasoning
from .rationales import NoRationale, Rationale


_JUSTIFY_JSON = "Answer with a JSON object: `response` is the whole response."
_JUSTIFY_PLAIN = "Write the response alone, with nothing before or after it."
_RATE_JSON = "Answer with a JSON object: `rating` is the number."
_RATE_PLAIN = "Answer with the number alone."

# What is usual: one to three sentences and the label, or a number, each with the layout
_RATIONALE_LENGTH = 400
_RATING_LENGTH = 20

LOWEST_RATING, HIGHEST_RATING = 1, 10


def _schema(name: str, kind: str, description: str) -> dict:
    return {
        "type": "object",
        "properties": {name: {"type": kind, "description": description}},
        "required": [name],
        "additionalProperties": False,
    }


RATIONALE_SCHEMA = _schema("response", "string", "The whole response: the rationale and the label.")
RATING_SCHEMA = _schema("rating", "integer", f"A number from {LOWEST_RATING} to {HIGHEST_RATING}.")


def make_rationale_question(teacher: str, wording: Wording, structured: bool, problem: str, label: str) -> Question:
    """
    Make the request for a response that justifies a label.

    Args:
        teacher (`str`):
            The teacher: part of the key.
        wording ([`~rlmec_trl.tasks.wording.Wording`]):
            The teacher's instructions, and the policy's prompt, which says what a response looks like.
        structured (`bool`):
            Whether to request JSON, or the response alone.
        problem, label (`str`):
            The row.
    """
    system = _justify_system(wording, _JUSTIFY_JSON if structured else _JUSTIFY_PLAIN)
    schema = RATIONALE_SCHEMA if structured else None
    return make_question(
        teacher, "rationale", system, _justify_parts(wording, problem, label), _RATIONALE_LENGTH, schema
    )


def justify_prompt(wording: Wording, problem: str, label: str) -> str:
    """The same request as one text, for a model in this process."""
    return f"{_justify_system(wording, _JUSTIFY_PLAIN)}\n\n{show_parts(_justify_parts(wording, problem, label))}"


def read_rationale(structured: bool, text: str) -> Rationale:
    """The response in an answer to [`make_rationale_question`], or to [`justify_prompt`]."""
    response = (read_object(text) or {}).get("response") if structured else without_reasoning(text)
    return response.strip() if is_storable(response) else NoRationale("malformed")


def make_rating_question(teacher: str, wording: Wording, structured: bool, problem: str, response: str) -> Question:
    """
    Make the request for a rating of a response.

    Args:
        teacher, wording, structured:
            As in [`make_rationale_question`].
        problem, response (`str`):
            The row.
    """
    system = f"{wording.rate.strip()}\n\n{_RATE_JSON if structured else _RATE_PLAIN}"
    parts = {"prompt": policy_prompt(wording, problem), "response": response}
    return make_question(teacher, "rating", system, parts, _RATING_LENGTH, RATING_SCHEMA if structured else None)


def read_rating(structured: bool, text: str) -> float | None:
    """The rating in an answer to [`make_rating_question`]; `None` if there is none."""
    if structured:
        rating = (read_object(text) or {}).get("rating")
    else:
        found = re.fullmatch(r"\W*([0-9]{1,2})(?:\W*/\s*10)?\W*", without_reasoning(text))
        rating = None if found is None else int(found[1])
    # In JSON, 7.0 is an integer too
    is_whole = type(rating) is int or (type(rating) is float and rating.is_integer())
    is_rating = is_whole and LOWEST_RATING <= rating <= HIGHEST_RATING
    return float(rating) if is_rating else None


def _justify_system(wording: Wording, layout: str) -> str:
    return f"{wording.justify.strip()}\n\n{layout}"


def _justify_parts(wording: Wording, problem: str, label: str) -> dict[str, str]:
    return {"prompt": policy_prompt(wording, problem), "label": label}
