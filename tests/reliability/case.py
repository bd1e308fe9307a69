"""What a case is: a bad or odd input, what runs with it, and what a user must see."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from trl import ModelConfig

from rlmec_trl.data.errors import UserError
from rlmec_trl.tasks.problems import ProblemConfig


@dataclass(frozen=True)
class Case:
    """
    An input that was tried.

    Args:
        name (`str`):
            The input, in plain words.
        run (`Callable[[Place], str | None]`):
            Runs it. If it works, the function has checked the result, and returns what to say of it.
        error (`str`, *optional*):
            Regular expression for the message of the error. `None` where the input works.
        varies (`str`, *optional*):
            Regular expression for the part of the message that another release of a library may word otherwise. The
            table leaves it out.
    """

    name: str
    run: Callable
    error: str | None = None
    varies: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What a case gave: the text of the table, and what is wrong with it, if anything is."""

    text: str
    wrong: str | None = None


class Place:
    """A folder for one case, with the means to fill it and to run stages in it."""

    def __init__(self, folder: Path, shared: Path, tokenizer, chat_tokenizer, rows: list[dict]):
        self.folder, self.shared = folder, shared
        self.tokenizer, self.chat_tokenizer = tokenizer, chat_tokenizer
        self.rows = rows
        self.policy, self.grm, self.chat_policy = (str(shared / name) for name in ("policy", "grm", "chat"))

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def file(self, name: str, content: str | bytes | list[dict]) -> str:
        """A file: bytes, a text, or rows as JSON lines."""
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def saved(self, name: str, rows: list[dict]) -> str:
        """A folder with a dataset."""
        Dataset.from_list(rows).save_to_disk(self.path(name))
        return self.path(name)

    def problems(self, number: int = 2) -> list[dict]:
        return [{name: row[name] for name in ("prompt", "reference", "answer")} for row in self.rows[:number]]

    def samples(self, number: int = 3, **changes) -> Dataset:
        """Sampled rows, with some columns changed in all of them."""
        names = ("prompt", "reference", "answer", "completion", "completion_ids", "correct")
        return Dataset.from_list([{name: row[name] for name in names} | changes for row in self.rows[:number]])

    def sample(self, dataset: str, model: str | None = None, server=None, **changes) -> Dataset:
        from rlmec_trl.stages import sample

        settings = {"output_dir": self.path("samples"), "task": "arithmetic", "num_samples": 1, "max_new_tokens": 48}
        config = sample.SampleConfig(**settings | {"temperature": 1.0, "top_p": 1.0} | changes)
        return sample.run(config, ProblemConfig(dataset), ModelConfig(model or self.policy), server)

    def edit(self, dataset: str, server=None, **changes) -> Dataset:
        from rlmec_trl.stages import edit

        settings = {"output_dir": self.path("edits"), "task": "arithmetic", "teacher": "task"}
        return edit.run(edit.EditConfig(dataset_name=dataset, **settings | changes), server_config=server)

    def score(self, samples: Dataset, model: str | None = None, server=None, **changes) -> Dataset:
        from rlmec_trl.stages import score

        settings = {"grm": self.grm, "task": "arithmetic", "rewrite_max_new_tokens": 4}
        config = score.ScoreConfig(**settings | changes)
        return score.run(config, samples, self.path("scored"), ModelConfig(model or self.policy), server)

    def evaluate(self, dataset: str, model: str | None = None, **changes):
        from rlmec_trl.stages import evaluate

        config = evaluate.EvaluateConfig(**{"task": "arithmetic", "max_new_tokens": 4} | changes)
        return evaluate.run(config, ProblemConfig(dataset), ModelConfig(model or self.policy))

    def recipe(self, name: str, /, **settings):
        """A recipe, as its command line runs it; settings that are `None` are left out."""
        import importlib

        from rlmec_trl.stages.settings import parse_settings

        recipe = importlib.import_module(f"recipes.{name}")
        words = [str(word) for key, value in settings.items() if value is not None for word in (f"--{key}", value)]
        return recipe.main(*parse_settings(recipe.make_parser(), words))

    def train(self, recipe: str, dataset: str, **settings):
        """A training recipe, for one step on two rows."""
        small = {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True, "bf16": False, "report_to": "none"}
        small |= {"model_name_or_path": self.policy, "output_dir": self.path("model"), "save_strategy": "no"}
        if recipe in ("train_grm", "grpo"):
            small["task"] = "arithmetic"
        if recipe == "grpo":
            small |= {"num_generations": 2, "max_completion_length": 4}
        return self.recipe(recipe, dataset_name=dataset, **small | settings)


def try_case(case: Case, place: Place) -> Outcome:
    """Run a case. Everything but a `UserError` is a traceback for the user."""
    try:
        text = case.run(place)
    except UserError as error:
        kind, message = type(error).__name__, str(error)
    except Exception as error:  # whatever a library raises
        return Outcome("", f"a traceback: {type(error).__name__}: {error}")
    else:
        if case.error is not None:
            return Outcome("", f"no error, where one should say {case.error!r}")
        return Outcome("works" if text is None else f"works: {text}")
    if case.error is None or not re.search(case.error, message, re.DOTALL):
        return Outcome("", f"{kind}: {message}")
    return Outcome(f"`{kind}`: {_stable(message, place, case.varies)}")


def _stable(message: str, place: Place, varies: str | None) -> str:
    """A message without what differs from run to run, and from one release of a library to another."""
    for folder, name in ((place.folder, "runs"), (place.shared, "models")):
        message = message.replace(str(folder), name)
    if varies is not None:
        message = re.sub(varies, "...", message, flags=re.DOTALL)
    return message
