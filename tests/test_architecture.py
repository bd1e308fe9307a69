"""The rooms of the package and who may look into which; what `import rlmec_trl` may cost."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import rlmec_trl


ROOT = Path(rlmec_trl.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# What each room may import, as module prefixes inside the package (its own modules always).
ALLOWED = {
    "data": set(),
    "generation": {"data"},
    # A local model that edits or judges needs batched generation, so both know that room.
    "editing": {"data", "generation"},
    "reward": {"data", "editing", "generation"},
    # The trainer gets its rewards as numbers: how a probability was made is none of its business.
    "trainer": {"data", "editing", "reward.token_rewards"},
    "evaluation": {"data", "generation", "editing", "reward"},
}
# Folders beside the package, which use it and which it must not know.
OUTSIDE = {"recipes", "tests", "benchmarks"}


def imported_names(source, package):
    """Absolute dotted names of all that `source`, a module of `package`, imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module
            if node.level:
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def forbidden_imports(source, room):
    """Those imports in `source`, a module of `room`, that go where the room may not look."""
    allowed = ALLOWED[room] | {room}
    for name in imported_names(source, f"rlmec_trl.{room}"):
        top, _, inside = name.partition(".")
        if top in OUTSIDE:
            yield name
        elif top == "rlmec_trl" and inside != "__version__":
            if not any(inside == prefix or inside.startswith(f"{prefix}.") for prefix in allowed):
                yield name


def test_every_room_has_its_rule():
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert rooms == set(ALLOWED)
    assert [path.name for path in ROOT.glob("*.py")] == ["__init__.py"], "modules belong into a room"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_imports_upwards(path):
    source = path.read_text(encoding="utf-8")
    if path.parent == ROOT:  # the public names may come from everywhere inside
        forbidden = [name for name in imported_names(source, "rlmec_trl") if name.split(".")[0] in OUTSIDE]
    else:
        forbidden = list(forbidden_imports(source, path.relative_to(ROOT).parts[0]))
    assert forbidden == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("data", "from ..editing.alignment import edit_mask"),
        ("data", "from .. import editing"),
        ("data", "from rlmec_trl import GRMTrainer"),
        ("data", "import rlmec_trl.reward.grm_trainer"),
        ("generation", "def late():\n    from ..editing import editors"),
        ("generation", "from ..reward.token_rewards import clip_token_rewards"),
        ("reward", "from ..trainer.losses import imitation_loss"),
        ("trainer", "from ..reward.generative_reward_model import GenerativeRewardModel"),
        ("trainer", "from ..reward import grm_config"),
        ("trainer", "import rlmec_trl.reward"),
        ("trainer", "from recipes.pipeline import main"),
        ("evaluation", "from ..trainer import losses"),
        ("evaluation", "import recipes.sample"),
    ],
)
def test_the_check_sees_forbidden_imports(room, source):
    assert len(list(forbidden_imports(source, room))) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("data", "from .prompts import Wording\nfrom . import messages\nfrom rlmec_trl import __version__"),
        ("data", "import datasets\nfrom rapidfuzz.distance import Levenshtein"),
        ("trainer", "from ..reward.token_rewards import clip_token_rewards\nfrom ..reward import token_rewards"),
        ("trainer", "from .losses import imitation_loss\nfrom rlmec_trl.editing.alignment import edit_weights"),
        ("evaluation", "from ..reward.generative_reward_model import GenerativeRewardModel"),
    ],
)
def test_the_check_lets_others_pass(room, source):
    assert not list(forbidden_imports(source, room))


@pytest.mark.parametrize("module", ["rlmec_trl", "rlmec_trl.evaluation.accuracy"])
def test_import_is_light(module):
    code = f"import {module}, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


@pytest.mark.parametrize("name", rlmec_trl.__all__)
def test_public_names_resolve(name):
    assert name in dir(rlmec_trl)
    assert getattr(rlmec_trl, name).__name__ == name


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="has no attribute 'RLMECTrianer'"):
        rlmec_trl.RLMECTrianer  # noqa: B018
