"""Prompts of a generative reward model as token ids, shared by training, scoring and rewriting."""

import json
from dataclasses import asdict, fields
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..data.errors import UserError
from ..data.messages import message_text, problem_text
from ..data.tokens import as_prompt, encode_prompt
from ..generation.loading import is_folder, translated_errors
from ..tasks.wording import WORDING, Wording, locate_prompt, raw_problem, rewrite_prompt


WORDING_FILE = "grm_wording.json"


class WordingError(UserError, ValueError):
    """A model has no wording, or one that cannot be read."""


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


def load_wording(model_name_or_path: str, revision: str = "main", allow_untrained: bool = False) -> Wording:
    """
    The wording that a generative reward model was trained with.

    Args:
        model_name_or_path (`str`):
            The model, by path or Hub name.
        revision (`str`, *optional*, defaults to `"main"`):
            Its revision on the Hub.
        allow_untrained (`bool`, *optional*, defaults to `False`):
            Whether a model without wording, which was not trained as a reward model, gets the default one.

    Raises:
        [`WordingError`]: If the model has no wording, or its file is damaged.
    """
    in_folder = is_folder(model_name_or_path)
    with translated_errors("reward model", model_name_or_path):
        path = cached_file(
            model_name_or_path, WORDING_FILE, revision=revision, _raise_exceptions_for_missing_entries=False
        )
    if path is None:
        if allow_untrained:
            return WORDING
        where = "" if in_folder else f" at revision {revision!r} (or, offline, none in the cache)"
        raise WordingError(
            f"{model_name_or_path!r} was not trained as a generative reward model: it has no {WORDING_FILE}{where}, "
            "which `train_grm.py` saves with the model. If it was moved or merged, copy this file to it; to use an "
            "untrained model, pass `--allow_untrained_grm true` (in Python, `allow_untrained=True`)."
        )
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        wording = Wording(**values)
    except (OSError, ValueError) as error:
        raise WordingError(_damaged(path, error)) from None
    except TypeError:
        names = ", ".join(repr(field.name) for field in fields(Wording))
        raise WordingError(_damaged(path, f"it must be a JSON object with the keys {names}")) from None
    for name, value in asdict(wording).items():
        expected = bool if name == "numbered" else str
        if not isinstance(value, expected):
            raise WordingError(_damaged(path, f"`{name}` is {value!r}, not a `{expected.__name__}`"))
    return wording


def _damaged(path: str, reason: object) -> str:
    return (
        f"{path!r}, the wording that the reward model was trained with, is damaged ({reason}). Copy it from the "
        "output folder of the training or from one of its checkpoints, or train the model again."
    )
