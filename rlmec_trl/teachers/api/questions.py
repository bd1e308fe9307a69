"""A question to a teacher that answers through a journal."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Question:
    """
    A request to a teacher. Who asks it knows how its answer is read.

    Args:
        key (`str`):
            Hash of the teacher and of the whole text: 64 hexadecimal digits.
        kind (`str`):
            What is asked for, in a word: the name that a server is given for the schema.
        system (`str`):
            The instructions, the same for all rows, so that providers can cache them.
        user (`str`):
            The row.
        answer_length (`int`):
            Number of characters that an answer is expected to have. It matters for estimates alone.
        schema (`dict`, *optional*):
            JSON schema of the answer, `None` where the instructions describe a plain layout.
    """

    key: str
    kind: str
    system: str
    user: str
    answer_length: int
    schema: dict[str, Any] | None = None


def make_question(
    teacher: str,
    kind: str,
    system: str,
    parts: dict[str, str],
    answer_length: int,
    schema: dict[str, Any] | None = None,
) -> Question:
    """
    Make the request for a row.

    Args:
        teacher (`str`):
            The teacher: part of the key, so that answers of one teacher are not taken for those of another.
        kind, system, answer_length, schema:
            As in [`Question`].
        parts (`dict[str, str]`):
            The texts of the row by their names. Each is shown between tags with its name.
    """
    user = show_parts(parts)
    key = hashlib.sha256(json.dumps([teacher, system, user]).encode()).hexdigest()
    return Question(key, kind, system, user, answer_length, schema)


def show_parts(parts: dict[str, str]) -> str:
    """The texts of a row between tags with their names."""
    return "\n\n".join(f"<{name}>\n{text.strip()}\n</{name}>" for name, text in parts.items())


def read_object(text: str) -> dict[str, Any] | None:
    """The JSON object that an answer is; `None` if it is something else."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def without_reasoning(text: str) -> str:
    """A plain answer without the reasoning that some models write before it."""
    return text.rpartition("</think>")[2].strip()
