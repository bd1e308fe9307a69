"""Cards of datasets: what the columns mean, how many rows there are of each kind, and who wrote them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from datasets import Dataset

from .. import __version__
from ..credit.paper import PAPER
from ..data.columns import MEANINGS, type_name
from ..data.public_names import public_name
from ..tasks.wording import Wording
from .keys import config_key


_COUNTED = {
    "correct": "correct",
    "edit_outcome": "edit outcome",
    "rationale_outcome": "rationale outcome",
    "kind": "kind",
}

_MAX_COUNTED = 20  # values of a column


@dataclass(frozen=True)
class DatasetFacts:
    """
    What a stage knows of its dataset.

    Args:
        what (`str`):
            What the rows are, such as `"samples"`.
        text (`str`):
            A sentence about how they were made.
        made_by (`dict[str, str | None]`, *optional*, defaults to `{}`):
            Models, datasets and tasks by what they were used for. Of a path, the card has only the last part.
        settings (`dict`, *optional*, defaults to `{}`):
            Settings that decide what the rows are like.
        wording (`dict[str, str]`, *optional*, defaults to `{}`):
            Prompts by what they ask for.
        paper (`dict[str, str]`, *optional*):
            The paper whose method this is, RLMEC by default.
    """

    what: str
    text: str
    made_by: Mapping[str, str | None] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    wording: Mapping[str, str] = field(default_factory=dict)
    paper: Mapping[str, str] = field(default_factory=lambda: PAPER)


def prompts_of(wording: Wording, *names: str) -> dict[str, str]:
    """The prompts of a wording by name, for a card."""
    return {name: getattr(wording, name) for name in names}


def card_settings(config: Any) -> dict[str, Any]:
    """The settings of a stage that decide what its rows are like: those whose values are in the key of its result."""
    return config_key(config)


def teacher_of(teacher: str, provider: str, role: str = "teacher") -> dict[str, str]:
    """Who a teacher is and, unless it runs in this process, who provides it."""
    if provider != "local":
        return {role: teacher, "provider": provider}
    programs = {"task": "a program of the task", "reference": "the values that the references state"}
    return {role: programs.get(teacher, teacher)}


def is_model(teacher: str, provider: str) -> bool:
    """Whether a teacher is a model, which was given a prompt."""
    return provider != "local" or (teacher not in ("task", "reference") and ":" not in teacher)


def dataset_tags(facts: DatasetFacts) -> list[str]:
    return ["rlmec", "rlmec-trl", "trl", facts.what.replace(" ", "-")]


def dataset_card(dataset: Dataset, facts: DatasetFacts, repo_id: str) -> str:
    """The text of a dataset's card, below its metadata."""
    name = repo_id.rpartition("/")[2]
    made_by = {what: shown_name(value) for what, value in facts.made_by.items() if value is not None}
    settings = {code(name): code(value) for name, value in facts.settings.items() if value is not None}
    sections = [
        f"# {name}\n\n{facts.text} Written by rlmec-trl, a package for TRL, for "
        f"[{facts.paper['title']}](https://huggingface.co/papers/{facts.paper['id']}).",
        "## Load it\n\n```python\nfrom datasets import load_dataset\n\n"
        f'dataset = load_dataset("{repo_id}", split="train")\n```\n\n'
        f"The recipes of rlmec-trl and its `load_rows` take `{repo_id}` as the name of a dataset, too.",
        "## How it was made\n\n" + table(("", ""), {**made_by, **settings}.items()),
        f"## Rows\n\n{_counts(dataset)}",
        "## Columns\n\n" + table(("column", "type", "meaning"), _columns(dataset)),
        *(
            ["## Wording\n\n" + "\n\n".join(f"`{name}`:\n\n{fenced(text)}" for name, text in facts.wording.items())]
            if facts.wording
            else []
        ),
        "## License\n\nWhoever publishes this dataset chooses its license, and sets `license` in the metadata of this "
        "card, where later pushes keep it. Without it, none has been chosen. Texts that a model wrote may be subject "
        "to its license or to the terms of its provider, some of which restrict training other models on them, and "
        "problems to the license of their source.",
        f"## Framework versions\n\n{versions('datasets', 'transformers', 'trl')}",
        f"## Citation\n\n{fenced(facts.paper['citation'], 'bibtex')}",
    ]
    return "\n" + "\n\n".join(sections) + "\n"


def shown_name(name: str) -> str:
    """A model, a dataset or a Python object for a card, without the path that leads to it."""
    return code(public_name(name))


def table(head: tuple[str, ...], rows) -> str:
    """A table in Markdown, each row of which is one line."""
    lines = [head, ("---",) * len(head), *rows]
    cells = ([" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def code(value: Any) -> str:
    """A value as code within a line, whatever it contains."""
    text, fence = str(value), "`"
    while fence in text:
        fence += "`"
    return f"{fence}{text}{fence}" if fence == "`" else f"{fence} {text} {fence}"


def fenced(text: str, language: str = "") -> str:
    """A text as a block of code, whatever it contains."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def versions(*packages: str) -> str:
    """A list of the versions of packages, this one's first."""
    return "\n".join([f"- rlmec-trl: {__version__}", *(f"- {package}: {version(package)}" for package in packages)])


def _counts(dataset: Dataset) -> str:
    rows = [("all", "", f"{len(dataset):,}")]
    for name, shown in _COUNTED.items():
        if name in dataset.column_names:
            counts = Counter(map(str, dataset[name][:]))
            rows += [(shown, code(value), f"{count:,}") for value, count in counts.most_common()[:_MAX_COUNTED]]
            others = sum(count for _, count in counts.most_common()[_MAX_COUNTED:])
            if others > 0:  # a column of the problems that only has this name
                rows.append((shown, "others", f"{others:,}"))
    if "rewrite" in dataset.column_names:
        verified = len(dataset) - dataset.data["rewrite"].null_count
        rows.append(("rewrite", "verified", f"{verified:,}"))
    return table(("", "", "rows"), rows)


def _columns(dataset: Dataset) -> list[tuple[str, str, str]]:
    return [
        (code(name), type_name(feature), MEANINGS.get(name, "a column of the problems"))
        for name, feature in dataset.features.items()
    ]
