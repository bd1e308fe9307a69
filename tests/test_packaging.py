"""The settings of pip, make and accelerate are consistent."""

import configparser
import importlib.util
import os
import re
import zipfile
from pathlib import Path

import pip
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import rlmec_trl


ROOT = Path(__file__).parents[1]
ACCELERATE_CONFIGS = sorted((ROOT / "recipes" / "accelerate_configs").glob("*.yaml"))

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")

SPEC = importlib.util.spec_from_file_location("audit_pins", ROOT / ".ci" / "audit_pins.py")
AUDIT = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(AUDIT)


def requirements(section, key):
    return [Requirement(line) for line in SETUP[section][key].split("\n") if line]


def pins():
    return AUDIT.read_pins(ROOT / "constraints.txt")


EXTRAS = [extra for extra in SETUP["options.extras_require"] if extra != "all"]
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


def test_the_table_of_versions_has_the_ranges_of_setup_cfg():
    text = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    table = text.split("## Ranges\n")[1].split("\n## ")[0]
    shown = {name: rest for name, rest in re.findall(r"^\| `([\w-]+)` \| (.*) \|$", table, re.MULTILINE)}
    asked = {"python": SETUP["options"]["python_requires"]}
    for section, key in [("options", "install_requires"), *(("options.extras_require", key) for key in EXTRAS)]:
        asked |= {requirement.name: str(requirement.specifier) for requirement in requirements(section, key)}
    assert shown.keys() == asked.keys()
    for name, specifier in asked.items():
        cell, tested, *_ = shown[name].split(" | ")
        assert SpecifierSet(cell.strip("`")) == SpecifierSet(specifier), name
        assert name not in pins() or tested == pins()[name], name


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


def test_the_audit_names_what_was_withdrawn_and_what_has_no_pin():
    def item(name, is_yanked=False):
        return {"is_yanked": is_yanked, "metadata": {"name": name, "version": "1.0"}}

    report = [item("sound"), item("shaky", True)]
    withdrawn, stray = AUDIT.find_problems(report, {"sound": "1.0"}, {"sound", "pip", "stray"})
    assert withdrawn.startswith("shaky 1.0 was withdrawn")
    assert stray.startswith("stray is installed without a pin")
    assert not AUDIT.find_problems(report[:1], {"sound": "1.0"}, {"sound", "pip"})


@pytest.mark.skipif(Version(pip.__version__) < Version("23.3"), reason="its reports do not say what was withdrawn")
def test_the_audit_asks_the_index_of_pips_configuration(tmp_path, monkeypatch):
    folder = tmp_path / "shaky"
    folder.mkdir()
    with zipfile.ZipFile(folder / "shaky-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("shaky-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: shaky\nVersion: 1.0\n")
        wheel.writestr("shaky-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("shaky-1.0.dist-info/RECORD", "")
    link = '<a href="shaky-1.0-py3-none-any.whl" data-yanked="broken">shaky-1.0-py3-none-any.whl</a>'
    (folder / "index.html").write_text(link, encoding="utf-8")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", tmp_path.as_uri())
    constraints = tmp_path / "constraints.txt"

    constraints.write_text("shaky==1.0\n", encoding="utf-8")
    (item,) = AUDIT.ask_index(constraints)
    assert item["metadata"]["name"] == "shaky" and item["is_yanked"]

    constraints.write_text("shaky==2.0\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="does not have every pin(.|\n)*shaky==2.0"):
        AUDIT.ask_index(constraints)

    # Port 9 of this machine: refused at once
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(AUDIT.NoAnswerError):
        AUDIT.ask_index(constraints)


def test_every_file_beside_the_modules_is_packaged():
    patterns = SETUP["options.package_data"]["rlmec_trl"].split()
    package = ROOT / "rlmec_trl"
    packaged = {path for pattern in patterns for path in package.glob(pattern)}
    others = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert packaged == others and package / "reports" / "web" / "report.html" in packaged
