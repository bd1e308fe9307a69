"""What a generative reward model reads and writes, as token ids. Training, scoring and rewriting share it."""

import json
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..data.prompts import WORDING, Wording, locate_prompt, rewrite_prompt
from ..data.tokens import as_prompt, encode_prompt


WORDING_FILE = "grm_wording.json"


def encode_locate_prompt(
    processing_class: PreTrainedTokenizerBase, wording: Wording, problem: str, reference: str, attempt: str
) -> list[int]:
    """Ids of the question for the first wrong step, through the chat template where the tokenizer has one."""
    text = locate_prompt(wording, problem, reference, attempt)
    return encode_prompt(processing_class, as_prompt(processing_class, text))


def encode_rewrite_prompt(
    processing_class: PreTrainedTokenizerBase, wording: Wording, problem: str, reference: str, attempt: str
) -> list[int]:
    """Ids of the question for the corrected attempt, through the chat template where the tokenizer has one."""
    text = rewrite_prompt(wording, problem, reference, attempt)
    return encode_prompt(processing_class, as_prompt(processing_class, text))


def save_wording(wording: Wording, directory: str) -> None:
    """Keep the wording with the model that was trained on it."""
    Path(directory, WORDING_FILE).write_text(json.dumps(asdict(wording), indent=2) + "\n", encoding="utf-8")


def load_wording(directory: str) -> Wording:
    """The wording that a model was trained on, or the default one where none was kept."""
    path = Path(directory, WORDING_FILE)
    return Wording(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else WORDING
