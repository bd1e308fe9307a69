"""The settings of pip, make and accelerate are consistent."""

import configparser
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rlmec_trl


ROOT = Path(__file__).parents[1]
ACCELERATE_CONFIGS = sorted((ROOT / "recipes" / "accelerate_configs").glob("*.yaml"))

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


def requirements(section, key):
    return [Requirement(line) for line in SETUP[section][key].split("\n") if line]


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names_and_versions = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in names_and_versions}


INSTALLED_BY_MAKE = [
    *requirements("options", "install_requires"),
    *requirements("options.extras_require", "test"),
    *requirements("options.extras_require", "lint"),
]


@pytest.mark.parametrize("requirement", INSTALLED_BY_MAKE, ids=str)
def test_tested_version_lies_within_the_range(requirement):
    version = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier, "a range without a lower bound promises too much"
    assert requirement.specifier.contains(version), f"{version} is pinned, {requirement} is promised"


def test_torch_pin_fits_every_build():
    # The Makefile installs this line by itself; a local version such as +cpu would tie everybody to one build.
    assert "+" not in pins()["torch"]


def test_extra_all_holds_every_other_extra():
    (requirement,) = requirements("options.extras_require", "all")
    assert requirement.name == SETUP["metadata"]["name"]
    assert requirement.extras == set(SETUP["options.extras_require"]) - {"all"}


def test_version_has_one_source():
    assert SETUP["metadata"]["version"] == "attr: rlmec_trl.__version__"
    assert rlmec_trl.__version__.count(".") == 2


@pytest.mark.parametrize("path", ACCELERATE_CONFIGS, ids=lambda path: path.name)
def test_accelerate_config_loads(path):
    config = load_config_from_file(str(path))
    # accelerate refuses unknown keys at the top level but drops them further down; there each is a launch option.
    known = {action.dest for action in launch_command_parser()._actions}
    assert {*config.deepspeed_config, *config.fsdp_config} <= known
    assert config.num_processes == {"single_gpu": 1, "cpu2": 2}.get(path.stem, 8)
    assert config.mixed_precision == ("no" if path.stem == "cpu2" else "bf16")
    head = path.read_text(encoding="utf-8").split("distributed_type:")[0]
    assert f"accelerate launch --config_file recipes/accelerate_configs/{path.name}" in head
