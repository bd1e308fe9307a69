"""
The wheel that `python -m build` makes, installed into an environment of its own, works without a clone.

The environment is empty but for a path to the libraries that the tests run with, so that nothing is downloaded.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml


ROOT = Path(__file__).parents[1]
SOURCES = ("rlmec_trl", "recipes", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")

# Stages of the demo -> what is made smaller. The others are left out.
SMALL = {
    "task": {"warmup_size": 60, "train_size": 16, "test_size": 8, "hidden_size": 32, "num_hidden_layers": 1},
    "warmup": {"max_steps": 160, "learning_rate": 1e-2},
    "samples": {"num_samples": 1, "max_new_tokens": 40},
    "edits": {"max_problems": 8},
    "grm": {"max_steps": 2, "per_device_train_batch_size": 8},
    "scored": {"rewrite_max_new_tokens": 8},
    "audit.json": {},
    "rlmec_paper": {"max_steps": 2, "per_device_train_batch_size": 4},
}

# Runs `rlmec-trl STAGE --help` for each stage, and loads what a shipped pipeline names by its path in a clone
LOOK = """
import io, json, sys
from contextlib import redirect_stdout
import rlmec_trl
from rlmec_trl.cli.main import main
from rlmec_trl.cli.stages import find_stages
from rlmec_trl.tasks.task import load_object

shown = {}
for stage in find_stages():
    with redirect_stdout(io.StringIO()) as text:
        try:
            main([stage, "--help"])
        except SystemExit as stop:
            assert not stop.code, stage
    shown[stage] = text.getvalue()
teacher = load_object("recipes/arithmetic/careless_teachers.py:careless_10")
print(json.dumps({"package": rlmec_trl.__file__, "teacher": teacher.__code__.co_filename, "shown": shown}))
"""


def run(*command, cwd, **changes):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | changes
    return subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, the folder that it is installed in, the programs there, and a working directory."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    # As a user does it, but with the setuptools that is installed: a source distribution, and the wheel from it
    command = (sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source")
    built = run(*command, cwd=folder, PYTHONPATH=os.environ.get("PYTHONPATH", ""))
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (wheel,) = (folder / "dist").glob("*.whl")

    venv.create(folder / "environment", with_pip=False)
    (programs,) = (path.parent for path in (folder / "environment").glob("*/python*") if path.stem == "python")
    found = run(programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    site = Path(found.stdout.strip())
    # Paths in such a file come after the folder itself, and the files of their own kind there are not read: nothing
    # leads to the package that is being tested here
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "libraries.pth").write_text("\n".join(libraries), encoding="utf-8")
    command = (programs / "python", "-m", "pip", "install", "--no-index", "--no-deps", wheel)
    done = run(*command, cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "work").mkdir()
    return SimpleNamespace(wheel=wheel, site=site, programs=programs, work=folder / "work")


def test_the_wheel_has_every_module_and_every_recipe(installed):
    files = (path for path in (ROOT / "rlmec_trl").rglob("*") if path.is_file() and path.suffix != ".pyc")
    expected = {path.relative_to(ROOT).as_posix() for path in files}
    recipes = [path for kind in ("py", "yaml") for path in (ROOT / "recipes").rglob(f"*.{kind}")]
    expected |= {f"rlmec_trl/{path.relative_to(ROOT).as_posix()}" for path in recipes}
    with zipfile.ZipFile(installed.wheel) as wheel:
        found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == expected, "`packages` and `package_data` in setup.cfg say what a wheel has"


def test_every_stage_of_the_wheel_has_help_and_finds_shipped_files(installed):
    done = run(installed.programs / "python", "-c", LOOK, cwd=installed.work)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["package"] == str(installed.site / "rlmec_trl" / "__init__.py")
    assert Path(found["teacher"]) == installed.site / "rlmec_trl" / "recipes" / "arithmetic" / "careless_teachers.py"
    assert {"demo", "sample", "train-grm", "online"} <= found["shown"].keys()
    for stage, text in found["shown"].items():
        assert text.startswith(f"usage: rlmec-trl {stage} ") and "--output_" in text


def test_the_demo_of_the_wheel_runs_in_a_folder_of_the_user(installed):
    shipped = installed.site / "rlmec_trl" / "recipes" / "arithmetic" / "pipeline.yaml"
    settings = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    settings["stages"] = [stage for stage in settings["stages"] if stage["name"] in SMALL]
    for stage in settings["stages"]:
        stage["args"] = stage.get("args", {}) | SMALL[stage["name"]]
    settings["compare"] = [["start", "rlmec_paper"]]
    (installed.work / "small.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")

    words = ("demo", "--config", "small.yaml", "--output_dir", "out", "--seeds", "3")
    done = run(installed.programs / "rlmec-trl", *words, cwd=installed.work)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    report = json.loads((installed.work / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["accuracy"].keys() == {"start", "rlmec_paper"}
    assert (installed.work / "out" / "seed-3" / "rlmec_paper" / "model.safetensors").is_file()
    assert {path.name for path in installed.work.iterdir()} == {"small.yaml", "out"}
    assert "16 samples, " in done.stdout and "Saved to out/seed-3/samples in " in done.stdout
    assert "Next:" not in done.stdout, "the pipeline goes on by itself"
    assert "is deprecated" not in done.stderr and "kernels" not in done.stderr


def test_an_unknown_stage_of_the_console_script_fails(installed):
    done = run(installed.programs / "rlmec-trl", "smaple", cwd=installed.work)
    assert (done.returncode, done.stdout) == (1, "")
    assert "There is no stage 'smaple'. Did you mean 'sample'?" in done.stderr
