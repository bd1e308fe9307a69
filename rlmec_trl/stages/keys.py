"""
What a stage's result depends on, and so what its key is made of.

`key_parts` of each stage's configuration says how each field enters the key: its `"value"` does, the `"content"` of
what it names does (a model's weights, a task's wording), or `"none"`, because it changes only speed, memory or where
the result goes. So a batch size can be lowered after an out-of-memory error without losing finished work.
"""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

from ..generation.loading import model_fingerprint
from ..tasks.task import Task, source_hash
from ..tasks.wording import Wording


# `ModelConfig` belongs to TRL, so its fields are classified here.
MODEL_FIELDS = {
    "model_name_or_path": "content",
    "model_revision": "content",
    "dtype": "value",
    "attn_implementation": "none",
    "load_in_8bit": "value",
    "load_in_4bit": "value",
    "bnb_4bit_quant_type": "value",
    "use_bnb_nested_quant": "value",
    "bnb_4bit_quant_storage": "none",
    # These are for training
    "use_peft": "none",
    "lora_r": "none",
    "lora_alpha": "none",
    "lora_dropout": "none",
    "lora_target_modules": "none",
    "lora_target_parameters": "none",
    "lora_modules_to_save": "none",
    "lora_task_type": "none",
    "use_rslora": "none",
    "use_dora": "none",
}


def config_key(config: Any) -> dict[str, Any]:
    """The fields of a configuration of ours whose values are part of the key."""
    return {name: getattr(config, name) for name, kind in config.key_parts.items() if kind == "value"}


def model_key(model_args: ModelConfig, processing_class: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Everything that identifies a model: weights, dtype, quantization and chat template."""
    return {
        "model": model_fingerprint(model_args.model_name_or_path, model_args.model_revision),
        "chat_template": _hash(str(processing_class.chat_template)),
        **{name: str(getattr(model_args, name)) for name, kind in MODEL_FIELDS.items() if kind == "value"},
    }


def task_key(task: Task, source: str | Task = "") -> dict[str, Any]:
    """
    A task's name, wording and labels and, of a user-defined task, the file that `source` loads it from and those that
    its checks are written in. What these files import is not part of it.
    """
    checks = [task.check_answer, task.check_steps, task.read_row, task.editor]
    reader = [] if task.read_label is None else function_key(task.read_label)
    return {
        "name": task.name,
        "wording": wording_key(task.wording),
        **({"labels": [task.labels, task.label_position, reader]} if task.labels else {}),
        "checks": [None if check is None else function_key(check) for check in checks],
        "source": source_hash(source) if isinstance(source, str) and ":" in source else None,
    }


def wording_key(wording: Wording) -> str:
    """Hash of all prompts but those of teachers that justify or rate, which are in the keys of their stages alone."""
    prompts = [(name, text) for name, text in asdict(wording).items() if name not in ("justify", "rate")]
    return _hash(repr(sorted(prompts)))


def function_key(function: Callable) -> list:
    """
    A function's name and, unless it is of this package, a hash of the file that it is written in. What has no file (an
    object that is called, a function in a notebook) is identified by its pickled content.
    """
    if isinstance(function, partial):
        values = [*function.args, *(value for _, value in sorted(function.keywords.items()))]
        return [function_key(function.func), [function_key(v) if callable(v) else Hasher.hash(v) for v in values]]
    if not isinstance(function, FunctionType):
        return [type(function).__qualname__, Hasher.hash(function)]
    module = sys.modules.get(function.__module__)
    if function.__module__.partition(".")[0] == __package__.partition(".")[0]:
        return [function.__module__, function.__qualname__]
    file = getattr(module, "__file__", None)
    source = Hasher.hash(function) if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return [function.__qualname__, source]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
