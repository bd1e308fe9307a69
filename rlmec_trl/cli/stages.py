"""The stages of `rlmec-trl`: the demo and all recipes, so that a new recipe is a stage without being listed here."""

import ast
import shutil
import textwrap
from pathlib import Path

from ..data.shipped import recipes_folder


# A stage has the name of its recipe, with dashes, but for this one
_RENAMED = {"online_rlmec": "online"}
_DEMO = "All stages on the built-in arithmetic task, on a CPU and without downloads, as `make demo` in a clone."


def find_stages() -> dict[str, Path]:
    """The script of each stage. `demo` is the pipeline with the settings of the arithmetic task."""
    scripts = sorted(recipes_folder().glob("*.py"))
    stages = {_RENAMED.get(path.stem, path.stem.replace("_", "-")): path for path in scripts}
    return {"demo": recipes_folder() / "pipeline.py", **stages}


def describe_stages() -> str:
    """A line for each stage, from the docstring of its recipe: the demo, the numbered stages, and the others."""
    lines = {name: _DEMO if name == "demo" else _summary(path) for name, path in find_stages().items()}
    numbered = {name: line for name, line in lines.items() if line.startswith("Stage ")}  # "Stage 2: a teacher ..."
    order = ["demo", *sorted(numbered, key=numbered.get), *sorted(lines.keys() - numbered.keys() - {"demo"})]
    width = max(map(len, lines)) + 4
    room = max(shutil.get_terminal_size().columns, 80) - width
    return "\n".join(
        f"  {name:<{width - 2}}{textwrap.shorten(lines[name], room, placeholder='...')}" for name in order
    )


def _summary(path: Path) -> str:
    """The first paragraph of a script's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n\n")[0]
