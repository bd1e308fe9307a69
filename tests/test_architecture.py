"""Which subpackage may import which, and that `import rlmec_trl` is fast."""

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
    "tasks": {"data"},
    "generation": {"data"},
    # A local model that edits or rewrites needs batched generation.
    "teachers": {"data", "tasks", "generation", "credit.alignment"},
    "credit": {"data"},
    "grm": {"data", "tasks", "generation", "credit"},
    # The trainers get their rewards as numbers or as callables: how they were made is none of their business. The
    # online one loads the reward model that it is given by name, and prepares it for the devices.
    # While they train, they print completions with colored tokens.
    "trainers": {
        "data",
        "credit",
        "grm.generative_reward_model",
        "grm.in_the_loop",
        "reports.token_credit",
        "reports.token_pieces",
    },
    "reports": {"data", "credit"},
    "stages": {"data", "tasks", "generation", "teachers", "credit", "grm", "trainers", "reports"},
    # The recipes that it runs are scripts, which it does not import.
    "cli": {"data"},
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


def forbidden_imports(source, folder):
    """Those imports in `source`, a module in `folder` (a room, or a folder inside one), that its room may not have."""
    room = folder.split(".")[0]
    allowed = ALLOWED[room] | {room}
    for name in imported_names(source, f"rlmec_trl.{folder}"):
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
        forbidden = list(forbidden_imports(source, ".".join(path.relative_to(ROOT).parts[:-1])))
    assert forbidden == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("data", "from ..credit.alignment import edit_mask"),
        ("data", "from .. import tasks"),
        ("data", "from rlmec_trl import GRMTrainer"),
        ("data", "import rlmec_trl.grm.grm_trainer"),
        ("tasks", "from ..teachers.editors import Editor"),
        ("generation", "def late():\n    from ..teachers import editors"),
        ("generation", "from ..tasks.task import Task"),
        ("teachers", "from ..credit.token_rewards import clip_token_rewards"),
        ("grm", "from ..trainers.losses import imitation_loss"),
        ("trainers", "from ..grm.grm_trainer import GRMTrainer"),
        ("trainers", "from ..grm import grm_config"),
        ("trainers", "import rlmec_trl.tasks"),
        ("trainers", "from recipes.pipeline import main"),
        ("reports", "from ..stages import audit"),
        ("stages", "import recipes.sample"),
    ],
)
def test_the_check_sees_forbidden_imports(room, source):
    assert len(list(forbidden_imports(source, room))) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("data", "from .steps import split_steps\nfrom . import messages\nfrom rlmec_trl import __version__"),
        ("data", "import datasets\nfrom rapidfuzz.distance import Levenshtein"),
        ("trainers", "from ..credit.token_rewards import clip_token_rewards\nfrom ..credit import token_rewards"),
        ("trainers", "from .losses import imitation_loss\nfrom rlmec_trl.credit.alignment import edit_weights"),
        ("teachers", "from ..data.steps import split_steps\nfrom ..credit.alignment import edit_distance"),
        ("stages", "from ..grm.generative_reward_model import GenerativeRewardModel"),
    ],
)
def test_the_check_lets_others_pass(room, source):
    assert not list(forbidden_imports(source, room))


@pytest.mark.parametrize("module", ["rlmec_trl", "rlmec_trl.reports.accuracy", "rlmec_trl.cli.main"])
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
