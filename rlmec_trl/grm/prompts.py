"""Prompts of a generative reward model as token ids, shared by training, scoring and rewriting."""

import json
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..data.messages import message_text, problem_text
from ..data.tokens import as_prompt, encode_prompt
from ..tasks.wording import WORDING, Wording, locate_prompt, raw_problem, rewrite_prompt


WORDING_FILE = "grm_wording.json"


def encode_locate_prompt(
    processing_class: PreTrainedTokenizerBase,
    wording: Wording,
    prompt: str | list[dict],
    reference: str,
    completion: str | list[dict],
    chat_template_kwargs: dict | None = None,
) -> list[int]:
    """Ids of the prompt to locate the first incorrect step, in the chat template if the tokenizer has one."""
    question = locate_prompt(wording, raw_problem(wording, problem_text(prompt)), reference, message_text(completion))
    return encode_prompt(processing_class, as_prompt(processing_class, question), chat_template_kwargs)


def encode_rewrite_prompt(
    processing_class: PreTrainedTokenizerBase,
    wording: Wording,
    prompt: str | list[dict],
    reference: str,
    completion: str | list[dict],
    chat_template_kwargs: dict | None = None,
) -> list[int]:
    """Ids of the prompt to rewrite an attempt, in the chat template if the tokenizer has one."""
    question = rewrite_prompt(wording, raw_problem(wording, problem_text(prompt)), reference, message_text(completion))
    return encode_prompt(processing_class, as_prompt(processing_class, question), chat_template_kwargs)


def save_wording(wording: Wording, directory: str) -> None:
    """Save the wording with the model that was trained with it."""
    Path(directory, WORDING_FILE).write_text(json.dumps(asdict(wording), indent=2) + "\n", encoding="utf-8")


def load_wording(model_name_or_path: str, revision: str = "main") -> Wording:
    """The wording that a model, by path or Hub name, was trained with, or the default if none was saved."""
    path = cached_file(
        model_name_or_path,
        WORDING_FILE,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return WORDING if path is None else Wording(**json.loads(Path(path).read_text(encoding="utf-8")))
