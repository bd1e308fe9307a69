"""Texts in TRL's two formats: strings and lists of messages."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from datasets import Dataset


def is_conversational(value: Any) -> bool:
    """Whether `value` is a list of chat messages (`[{"role": ..., "content": ...}, ...]`)."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(part, dict) and isinstance(part.get("role"), str) and "content" in part for part in value)
    )


def is_storable(value: Any) -> bool:
    """Whether a value is a string that a dataset can store: Python allows half a surrogate pair in one, UTF-8 not."""
    return isinstance(value, str) and re.search("[\ud800-\udfff]", value) is None


def message_text(value: str | list[dict]) -> str:
    """The text of a completion or rewrite: the string itself, or the content of the last message."""
    return value[-1]["content"] if is_conversational(value) else value


def problem_text(prompt: str | list[dict]) -> str:
    """The text of a prompt: the string itself, or the content of the last message of the user."""
    if not is_conversational(prompt):
        return prompt
    user_messages = [message for message in prompt if message["role"] == "user"]
    # Without a user message, the last message is used
    return (user_messages or prompt)[-1]["content"]


def without_empty_fields(prompt: str | list[dict]) -> str | list[dict]:
    """A prompt whose messages have only the fields with a value: those of two datasets may differ in the others."""
    if not is_conversational(prompt):
        return prompt
    return [{name: value for name, value in message.items() if value is not None} for message in prompt]


def template_kwargs(dataset: Dataset) -> list[dict | None] | None:
    """The column `chat_template_kwargs`, further arguments of the chat template for each row; `None` without one."""
    return dataset["chat_template_kwargs"][:] if "chat_template_kwargs" in dataset.column_names else None
