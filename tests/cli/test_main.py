"""`rlmec-trl`: its stages, the files that it finds, and what goes to `accelerate launch`."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands import launch

import rlmec_trl
from rlmec_trl.cli import main as cli
from rlmec_trl.cli.stages import find_stages


ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What a command starts, from a folder of the user's: a script with its words, here or by accelerate."""
    started = SimpleNamespace(script=None, words=None, launcher=None)

    def run_here(script, command, words):
        started.script, started.words = Path(script), [command, *words]

    def launch_it(args):
        started.script, started.words, started.launcher = Path(args.training_script), args.training_script_args, args

    monkeypatch.setattr(cli, "_run", run_here)
    monkeypatch.setattr(launch, "launch_command", launch_it)
    monkeypatch.chdir(tmp_path)
    return started


def test_every_recipe_is_a_stage_with_a_line(capsys):
    cli.main(["--help"])
    shown = capsys.readouterr().out
    named = {path.stem.replace("_", "-") for path in RECIPES.glob("*.py")} - {"online-rlmec"}
    assert find_stages().keys() == {*named, "online", "demo"}
    for name in find_stages():
        (line,) = (line for line in shown.splitlines() if line.startswith(f"  {name} "))
        assert len(line) <= 80 and line[len(name) + 2 :].strip()


def test_a_new_recipe_is_a_stage_without_a_change_here(tmp_path, monkeypatch, capsys):
    (tmp_path / "new_recipe.py").write_text('"""Does something new."""\n')
    monkeypatch.setattr("rlmec_trl.cli.stages.recipes_folder", lambda: tmp_path)
    cli.main(["--help"])
    assert "\n  new-recipe  Does something new.\n" in capsys.readouterr().out


def test_the_list_of_stages_needs_no_library():
    code = "from rlmec_trl.cli.main import main; import sys; main([]); print({*sys.modules} & {'torch', 'accelerate'})"
    shown = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert shown.startswith("usage: rlmec-trl STAGE") and shown.endswith("set()\n")


def test_the_version_is_that_of_the_package(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"rlmec-trl {rlmec_trl.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train_grm"], r"ConfigError: There is no stage 'train_grm'\. Did you mean 'train-grm'\? `rlmec-trl --help`"),
        (["online-rlmec"], r"There is no stage 'online-rlmec'\. Did you mean 'online'"),
        (["--num_processes", "2"], "There is no stage '--num_processes'"),
        (
            ["rlmec", "--config", "rlmc.yaml"],
            r"no file 'rlmc\.yaml', and none of this name ships\. Did you mean 'rlmec",
        ),
        (["pipeline", "--config", "arithmetic/pipline"], r"Did you mean 'arithmetic/pipeline\.yaml'"),
        (["rlmec", "--config_file", "fsdp3.yaml"], r"no file 'fsdp3\.yaml'.* Did you mean 'fsdp2\.yaml'"),
        (["rlmec", "--config", "../setup.cfg"], r"no file '\.\./setup\.cfg'"),
        (
            ["demo", "--num_processes", "2"],
            "`rlmec-trl demo` runs all its stages in one process. Leave out --num",
        ),
    ],
)
def test_a_mistake_is_one_message(started, words, message):
    with pytest.raises(SystemExit, match=message) as stop:
        cli.main(words)
    assert "\n" not in stop.value.code and started.script is None


@pytest.mark.parametrize(
    ("stage", "name", "file"),
    [
        ("rlmec", "rlmec.yaml", "configs/rlmec.yaml"),
        ("rlmec", "rlmec", "configs/rlmec.yaml"),
        ("online", "online_rlmec.yaml", "configs/online_rlmec.yaml"),
        ("edit", "recipes/configs/edit_server.yaml", "configs/edit_server.yaml"),  # as the docs name it
        ("pipeline", "arithmetic/pipeline.yaml", "arithmetic/pipeline.yaml"),
    ],
)
def test_a_shipped_file_is_found_by_its_name(started, stage, name, file):
    cli.main([stage, "--config", name, "--seed", "-1", "--output_dir", "runs"])
    assert started.words == [
        f"rlmec-trl {stage}",
        "--config",
        str(RECIPES / file),
        "--seed",
        "-1",
        "--output_dir",
        "runs",
    ]
    assert started.script == find_stages()[stage] and started.launcher is None


def test_a_shipped_file_is_found_where_its_name_follows_an_equals_sign(started):
    cli.main(["rlmec", "--config=rlmec", "--config_file=ddp.yaml", "--output_dir=runs/a=b"])
    assert started.launcher.config_file == str(RECIPES / "accelerate_configs" / "ddp.yaml")
    assert started.words == ["--config", str(RECIPES / "configs" / "rlmec.yaml"), "--output_dir=runs/a=b"]


def test_a_file_of_the_user_wins(started, tmp_path):
    (tmp_path / "rlmec.yaml").touch()
    cli.main(["rlmec", "--config", "rlmec.yaml"])
    assert started.words == ["rlmec-trl rlmec", "--config", "rlmec.yaml"]


def test_the_demo_is_the_pipeline_of_make_demo(started, tmp_path, monkeypatch):
    (tmp_path / "arithmetic").mkdir()
    (tmp_path / "arithmetic" / "pipeline.yaml").touch()  # not this one
    for variable in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(variable, "set")
        monkeypatch.delenv(variable)
    cli.main(["demo", "--output_dir", "out", "--seeds", "1", "2"])
    config = str(RECIPES / "arithmetic" / "pipeline.yaml")
    assert started.script == RECIPES / "pipeline.py"
    assert started.words == ["rlmec-trl demo", "--config", config, "--output_dir", "out", "--seeds", "1", "2"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for variable, value in cli._DEMO_ENVIRONMENT.items():
        assert f"$(RUNS): export {variable} := {value}\n" in makefile
        assert cli.os.environ[variable] == value


@pytest.mark.parametrize("option", ["--config_file", "--config-file", "--accelerate_config"])
@pytest.mark.parametrize("name", ["ddp", "ddp.yaml", "recipes/accelerate_configs/ddp.yaml"])
def test_options_of_the_launcher_reach_it(started, option, name):
    words = ["--dataset_name", "rows", "--main-process-port=29501", "--gradient_accumulation_steps", "4"]
    cli.main(["rlmec", option, name, *words, "--debug", "--num_processes", "2", "--typo", "1"])
    assert started.launcher.config_file == str(RECIPES / "accelerate_configs" / "ddp.yaml")
    assert (started.launcher.num_processes, started.launcher.main_process_port) == (2, 29501)
    # What the recipe knows, too, is the recipe's, and what nobody knows is for the recipe to refuse
    own = ["--dataset_name", "rows", "--gradient_accumulation_steps", "4", "--debug", "--typo", "1"]
    assert (started.script, started.words) == (RECIPES / "rlmec.py", own)


def test_settings_that_the_launcher_would_also_take_do_not_start_it(started):
    cli.main(["sft", "--gradient_accumulation_steps", "4"])
    assert started.launcher is None and started.words[1:] == ["--gradient_accumulation_steps", "4"]


def test_a_launched_recipe_that_fails_ends_the_command_with_its_status(started, monkeypatch):
    def fail(args):
        raise subprocess.CalledProcessError(3, ["python"])

    monkeypatch.setattr(launch, "launch_command", fail)
    with pytest.raises(SystemExit) as stop:
        cli.main(["task", "--num_processes", "1"])
    assert stop.value.code == 3


def test_a_recipe_runs_as_a_script_under_the_name_of_the_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "new_recipe.py").write_text(
        "import sys\n\nif __name__ == '__main__':\n    print(__file__, sys.argv)\n"
    )
    monkeypatch.setattr("rlmec_trl.cli.stages.recipes_folder", lambda: tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    cli.main(["new-recipe", "--seed", "3"])
    assert capsys.readouterr().out == f"{tmp_path / 'new_recipe.py'} ['rlmec-trl new-recipe', '--seed', '3']\n"
