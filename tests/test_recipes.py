"""
Every shipped YAML is read as strictly as its recipe reads it, and every recipe runs, on an arithmetic task so small
that nothing is learned but when to stop.
"""

import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, load_from_disk


ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
CONFIGS = sorted(path for path in (ROOT / "recipes").glob("*/*.yaml") if path.parent.name != "accelerate_configs")
LAUNCH = re.compile(
    r"^# .*(?:python|accelerate launch) .*?recipes/(\w+)\.py(?: \\\n#)? .*--config (\S+)", re.MULTILINE
)


def recipe_of(path):
    """The recipe that the launch command in a file's head comment names, once it names the file itself."""
    command = LAUNCH.match(path.read_text(encoding="utf-8"))
    assert command, "the file begins with its launch command"
    assert command[2] == path.relative_to(ROOT).as_posix()
    return command[1]


STAGE_CONFIGS = [path for path in CONFIGS if recipe_of(path) != "pipeline"]
PIPELINE_CONFIGS = [path for path in CONFIGS if recipe_of(path) == "pipeline"]


def names(paths):
    return [f"{path.parent.name}-{path.stem}" for path in paths]


def parse(recipe, words):
    """What a recipe makes of its command line."""
    parser = importlib.import_module(f"recipes.{recipe}").make_parser()
    if any("use_cpu" in field.name for kind in parser.dataclass_types for field in kind.__dataclass_fields__.values()):
        words = [*words, "--use_cpu", "true"]  # where there is no GPU, some of what asks for one is refused
    return parser.parse_args_and_config(words)


# --- Shipped files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"audit", "pipeline", "task"}))
def test_a_recipe_for_several_processes_ends_their_group(name):
    source = (ROOT / "recipes" / f"{name}.py").read_text(encoding="utf-8")
    assert "    train_and_save(trainer" in source or source.endswith("    end_processes()\n")


@pytest.mark.parametrize("path", STAGE_CONFIGS, ids=names(STAGE_CONFIGS))
def test_a_config_has_only_arguments_of_its_recipe(path):
    parsed = parse(recipe_of(path), ["--config", str(path)])
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = {name: value for part in parsed for name, value in vars(part).items()}
    assert settings.keys() <= found.keys()
    for name in settings.keys() - {"use_cpu", "lr_scheduler_type", "report_to"}:  # the last two are turned
        assert found[name] == settings[name] or str(found[name]) == str(settings[name]), name


@pytest.mark.parametrize("recipe", sorted({recipe_of(path) for path in STAGE_CONFIGS}))
def test_a_key_that_no_recipe_knows_is_refused(recipe, tmp_path):
    path = next(path for path in STAGE_CONFIGS if recipe_of(path) == recipe)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(path.read_text(encoding="utf-8") + "\nlearning_rat: 0.1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="learning_rat"):
        parse(recipe, ["--config", str(wrong)])


@pytest.mark.parametrize("path", PIPELINE_CONFIGS, ids=names(PIPELINE_CONFIGS))
def test_a_pipeline_fits_its_recipes(path):
    pipeline_recipe = importlib.import_module("recipes.pipeline")
    pipeline = pipeline_recipe.Pipeline(**yaml.safe_load(path.read_text(encoding="utf-8")))
    run, known = Path("run"), {"run"}
    for stage in [pipeline_recipe.Stage(**stage) for stage in pipeline.stages]:
        config = None if stage.config is None else path.parent / stage.config
        assert config is None or recipe_of(config) == stage.recipe
        args = pipeline_recipe.fill(stage.args, run, 3)
        for argument, candidates in (stage.choose or {}).items():
            args |= {argument: candidates[0], "output_dir": str(run / stage.name)}
        parse(stage.recipe, pipeline_recipe.command_line(config and str(config), args))
        assert str(run / stage.name) in (args.get("output_dir"), args.get("output_file"))
        read = [value for name, value in args.items() if name not in ("output_dir", "output_file", "seed")]
        for value in read:
            assert not str(value).startswith("run/") or value.split("/")[1] in known, f"{value} is made later"
        known.add(stage.name)
    for value in [pipeline.evaluation["test"], pipeline.evaluation["validation"], pipeline.scored, pipeline.tokenizer]:
        assert value.split("/")[1] in known
    parse("evaluate", ["--config", str(path.parent / pipeline.evaluation["config"])])


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_is_there(recipe, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"), run_name="__main__")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--output_" in shown and (recipe == "pipeline" or "--seed" in shown or "--dataset_name" in shown)


def test_every_recipe_has_a_launch_command_that_names_it():
    for recipe in RECIPES:
        docstring = importlib.import_module(f"recipes.{recipe}").__doc__
        assert f"recipes/{recipe}.py" in docstring


# --- The pipeline's bookkeeping, with recipes that only pretend ------------------------------------------------------


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Run stages `first` and `second`, which reads it; returns the names of those that did run."""
    pipeline_recipe = importlib.import_module("recipes.pipeline")
    ran = []

    class Recipe:
        fail = None

        def make_parser(self):
            return self

        def parse_args_and_config(self, words):
            return [dict(zip(words[::2], words[1::2], strict=True))]

        def main(self, args):
            output = Path(args["--output_dir"])
            ran.append(output.name)
            output.mkdir(exist_ok=True)
            kept = (output / "progress").exists()
            (output / "progress").write_text("half")
            if self.fail == output.name:
                raise KeyboardInterrupt
            (output / "progress").write_text("went on" if kept else "whole")

    recipe = Recipe()
    monkeypatch.setattr(pipeline_recipe, "load_recipe", lambda name: recipe)
    pipeline = pipeline_recipe.Pipeline(str(tmp_path / "runs"), [0], [], {}, "Pretended")
    run_folder = tmp_path / "runs" / "seed-0"

    def start(fail=None, **first_args):
        ran.clear()
        recipe.fail = fail
        run = pipeline_recipe.Run(pipeline, 0, tmp_path)
        try:
            run.run_stage(pipeline_recipe.Stage("first", "any", None, {"output_dir": "{run}/first", **first_args}))
            args = {"output_dir": "{run}/second", "dataset_name": "{run}/first/part"}
            run.run_stage(pipeline_recipe.Stage("second", "any", None, args))
        except KeyboardInterrupt:
            pass
        progress = [run_folder / name / "progress" for name in ("first", "second")]
        return list(ran), [path.read_text() if path.exists() else None for path in progress]

    return start, run_folder


def test_a_finished_stage_is_skipped(pretend):
    start, _ = pretend
    assert start() == (["first", "second"], ["whole", "whole"])
    assert start() == ([], ["whole", "whole"])


def test_a_stage_that_was_cut_off_goes_on(pretend):
    start, _ = pretend
    assert start(fail="second") == (["first", "second"], ["whole", "half"])
    assert start() == (["second"], ["whole", "went on"])


def test_a_stage_that_was_cut_off_with_other_settings_starts_anew(pretend):
    start, _ = pretend
    assert start(fail="first") == (["first"], ["half", None])
    assert start(seed="{seed}") == (["first", "second"], ["whole", "whole"])


def test_a_changed_setting_starts_anew_what_reads_from_it(pretend):
    start, _ = pretend
    start()
    assert start(temperature=0.5) == (["first", "second"], ["whole", "whole"])
    assert start(temperature=0.5) == ([], ["whole", "whole"])


def test_a_deleted_stage_is_made_again(pretend):
    start, folder = pretend
    start()
    shutil.rmtree(folder / "first")
    assert start() == (["first"], ["whole", "whole"])


def test_a_deleted_stage_that_was_then_cut_off_goes_on(pretend):
    start, folder = pretend
    start()
    shutil.rmtree(folder / "first")
    assert start(fail="first") == (["first"], ["half", "whole"])
    assert start() == (["first"], ["went on", "whole"])


# --- The pipeline for good -------------------------------------------------------------------------------------------

# Shipped file -> what is made smaller
SMALL = {
    "warmup": {"max_steps": 160, "save_steps": 80, "save_total_limit": 2, "learning_rate": 1e-2},
    "sample": {"num_samples": 1, "max_new_tokens": 40, "shard_size": 25},
    "edit": {"max_problems": 20},
    "train_grm": {"max_steps": 4, "save_steps": 4, "per_device_train_batch_size": 8},
    "score": {"rewrite_max_new_tokens": 8, "rewrite_topk": 2, "shard_size": 20},
    "audit": {},
    "reference_sft": {"max_steps": 2, "per_device_train_batch_size": 8},
    "rlmec": {"max_steps": 2, "per_device_train_batch_size": 8},
    "grpo": {
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "generation_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 8,
    },
    "evaluate": {"max_new_tokens": 30},
}


def small_stage(name, recipe, config=None, evaluate=None, choose=None, **args):
    config = config and f"{config}.yaml"
    return {"name": name, "recipe": recipe, "config": config, "evaluate": evaluate, "choose": choose, "args": args}


SMALL_PIPELINE = {
    "title": "Small",
    "output_dir": "runs",
    "seeds": [0],
    "stages": [
        small_stage(
            "task",
            "task",
            output_dir="{run}/task",
            seed="{seed}",
            warmup_size=60,
            train_size=40,
            validation_size=16,
            test_size=16,
            hidden_size=32,
            num_hidden_layers=1,
        ),
        small_stage(
            "warmup",
            "sft",
            "warmup",
            model_name_or_path="{run}/task/policy",
            dataset_name="{run}/task/warmup",
            output_dir="{run}/warmup",
        ),
        small_stage(
            "samples",
            "sample",
            "sample",
            model_name_or_path="{run}/warmup",
            dataset_name="{run}/task/train",
            output_dir="{run}/samples",
        ),
        small_stage("edits", "edit", "edit", dataset_name="{run}/samples", output_dir="{run}/edits"),
        small_stage(
            "grm",
            "train_grm",
            "train_grm",
            model_name_or_path="{run}/warmup",
            dataset_name="{run}/edits",
            output_dir="{run}/grm",
        ),
        small_stage(
            "scored",
            "score",
            "score",
            model_name_or_path="{run}/warmup",
            grm="{run}/grm",
            dataset_name="{run}/samples",
            output_dir="{run}/scored",
        ),
        small_stage(
            "audit.json",
            "audit",
            "audit",
            dataset_name="{run}/scored",
            seen_dataset_name="{run}/edits",
            tokenizer="{run}/warmup",
            output_file="{run}/audit.json",
        ),
        small_stage(
            "reference_sft",
            "sft",
            "reference_sft",
            evaluate="reference_sft",
            model_name_or_path="{run}/warmup",
            dataset_name="{run}/task/train",
            output_dir="{run}/reference_sft",
        ),
        small_stage(
            "rlmec",
            "rlmec",
            "rlmec",
            evaluate="rlmec",
            choose={"policy_coef": [0.1, 1.0]},
            model_name_or_path="{run}/warmup",
            dataset_name="{run}/scored",
        ),
        small_stage(
            "grpo",
            "grpo",
            "grpo",
            evaluate="grpo",
            model_name_or_path="{run}/warmup",
            dataset_name="{run}/task/train",
            output_dir="{run}/grpo",
        ),
    ],
    "evaluation": {"config": "evaluate.yaml", "test": "{run}/task/test", "validation": "{run}/task/validation"},
    "scored": "{run}/scored",
    "tokenizer": "{run}/warmup",
    "audit": "{run}/audit.json",
}


def write_small(folder, name, **overrides):
    settings = yaml.safe_load((ROOT / "recipes" / "arithmetic" / f"{name}.yaml").read_text(encoding="utf-8"))
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings | SMALL[name] | overrides), encoding="utf-8")


def run_recipe(*command, cwd, **environment):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | environment
    result = subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-3000:]
    return result.stdout


class PipelineRun:
    """A folder in which the small pipeline is started again and again."""

    def __init__(self, folder):
        self.folder, self.run = folder, folder / "runs" / "seed-0"
        for name in SMALL:
            write_small(folder, name)
        (folder / "pipeline.yaml").write_text(yaml.safe_dump(SMALL_PIPELINE, sort_keys=False), encoding="utf-8")

    def start(self):
        """The names of the stages that did run, of those that are said to be done before, and all that was printed."""
        output = run_recipe(str(ROOT / "recipes" / "pipeline.py"), "--config", "pipeline.yaml", cwd=self.folder)
        ran = re.findall(r"^(\S+) \(seed 0\) ─", output, re.MULTILINE)
        skipped = re.findall(r"^runs/seed-0/(\S+): done before", output, re.MULTILINE)
        # The report asks for every result once more
        return ran, [name for name in dict.fromkeys(skipped) if name not in ran], output

    @property
    def report(self):
        return json.loads((self.folder / "runs" / "report.json").read_text(encoding="utf-8"))


CHOICE = [
    *("rlmec-policy_coef-0.1", "results/rlmec-policy_coef-0.1-validation.json"),
    *("rlmec-policy_coef-1.0", "results/rlmec-policy_coef-1.0-validation.json", "results/rlmec-test.json"),
]
STAGES = [
    *("task", "warmup", "samples", "edits", "grm", "scored", "audit.json"),
    *("reference_sft", "results/reference_sft-test.json", *CHOICE, "grpo", "results/grpo-test.json"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The small pipeline after its first start, and what it printed."""
    pipeline = PipelineRun(tmp_path_factory.mktemp("pipeline"))
    return pipeline, pipeline.start()


@pytest.fixture
def copy_of(tmp_path):
    def copy(pipeline):
        shutil.copytree(pipeline.folder, tmp_path / "copy", symlinks=True)
        copied = PipelineRun.__new__(PipelineRun)
        copied.folder, copied.run = tmp_path / "copy", tmp_path / "copy" / "runs" / "seed-0"
        return copied

    return copy


def test_the_pipeline_runs_every_stage_and_reports(finished):
    pipeline, (ran, _, output) = finished
    assert ran == STAGES
    report = pipeline.report
    assert set(report["accuracy"]) == {"reference_sft", "rlmec", "grpo"}
    for result in report["accuracy"].values():
        assert {"mean", "std", "seeds", "n"} <= result.keys()
        assert 0 <= result["mean"] <= 1 and (result["std"], result["seeds"], result["n"]) == (0.0, 1, 16)
    audit = report["grm_audit"]
    assert {"first_wrong_flagged", "clean_kept", "auc", "wrong_rewritten", "error_located"} <= audit.keys()
    num_samples = len(load_from_disk(pipeline.run / "samples"))
    assert audit["error_located"]["total"] == num_samples - 20 > 0, "the problems that the reward model has not seen"
    assert list(report["seconds"]) == STAGES
    assert all(seconds > 0 for seconds in report["seconds"].values())
    chosen = report["chosen"]["seed-0"]["rlmec"]
    assert chosen["argument"] == "policy_coef" and chosen["value"] in (0.1, 1.0)
    assert os.readlink(pipeline.run / "rlmec") == f"rlmec-policy_coef-{chosen['value']}"
    assert "Small: test split, 16 problems" in output and "report.json" in output


def test_the_stages_hand_on_what_they_promise(finished):
    from rlmec_trl.data.schema import check_dataset

    pipeline, _ = finished
    for name, stage in (("samples", "samples"), ("edits", "edits"), ("scored", "scores"), ("scored", "policy")):
        check_dataset(load_from_disk(pipeline.run / name), stage)
    samples, scored = (load_from_disk(pipeline.run / name) for name in ("samples", "scored"))
    assert scored.select_columns(samples.column_names).to_list() == samples.to_list()
    assert "rewrite_topk_ids" in scored.column_names
    assert len(load_from_disk(pipeline.run / "edits")) == 20
    assert not [path for path in pipeline.run.iterdir() if path.name.startswith((".samples", ".edits", ".scored"))]


def test_a_second_start_skips_what_is_finished(finished):
    pipeline, _ = finished
    before = pipeline.report
    ran, skipped, _ = pipeline.start()
    assert (ran, skipped) == ([], STAGES)
    assert pipeline.report == before


def test_a_changed_config_and_a_deleted_and_a_cut_off_stage(finished, copy_of):
    pipeline = copy_of(finished[0])
    # A stage whose config has changed, and whose readers follow ...
    write_small(pipeline.folder, "score", rewrite_max_new_tokens=4)
    # ... one whose result was deleted, which comes back as it was ...
    shutil.rmtree(pipeline.run / "edits")
    # ... and a training that was cut off after a checkpoint
    marker = pipeline.run / ".stages" / "warmup.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"finished": False}))
    weights = (pipeline.run / "warmup" / "model.safetensors").read_bytes()
    (pipeline.run / "warmup" / "model.safetensors").unlink()
    shutil.rmtree(pipeline.run / "warmup" / "checkpoint-160")
    checkpoint = pipeline.run / "warmup" / "checkpoint-80" / "trainer_state.json"
    written = checkpoint.stat().st_mtime_ns

    ran, skipped, _ = pipeline.start()
    assert ran == ["warmup", "edits", "scored", "audit.json", *CHOICE]
    assert skipped == [name for name in STAGES if name not in ran]
    assert checkpoint.stat().st_mtime_ns == written, "it went on from there"
    assert (pipeline.run / "warmup" / "checkpoint-160").is_dir()
    assert (pipeline.run / "warmup" / "model.safetensors").read_bytes() == weights, "as if it had not been cut off"
    assert len(load_from_disk(pipeline.run / "edits")) == 20


# --- Training on samples that nobody has scored ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def unscored(tmp_path_factory, tokenizer, make_rows):
    from rlmec_trl.grm.prompts import save_wording
    from rlmec_trl.tasks import arithmetic

    folder = tmp_path_factory.mktemp("unscored")
    for name, seed in (("policy", 0), ("grm", 1)):
        model = arithmetic.make_policy(tokenizer, seed=seed, hidden_size=16, num_hidden_layers=1)
        model.get_input_embeddings().weight.data.mul_(10.0)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    save_wording(arithmetic.WORDING, folder / "grm")
    columns = ["prompt", "reference", "answer", "completion", "completion_ids", "correct"]
    Dataset.from_list(make_rows(16)).select_columns(columns).save_to_disk(folder / "samples")
    return folder


@pytest.fixture(scope="module")
def train(unscored, run_on_two):
    """Launch the recipe on 1 or 2 processes, with the same number of rows in a step."""

    def train(num_processes):
        output_dir = unscored / f"out-{num_processes}"
        settings = {
            "config": ROOT / "recipes" / "arithmetic" / "rlmec.yaml",
            "model_name_or_path": unscored / "policy",
            "grm": unscored / "grm",
            "dataset_name": unscored / "samples",
            "output_dir": output_dir,
            "task": "arithmetic",
            "rewrite_max_new_tokens": 4,
            "score_batch_size": 4,
            "shard_size": 3,
            "policy_coef": 1.0,
            "max_steps": 2,
            "per_device_train_batch_size": 8 // num_processes,
            "optim": "sgd",
        }
        words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
        if num_processes == 2:
            output = run_on_two(ROOT / "recipes" / "rlmec.py", *words, cwd=unscored)
        else:
            launch = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"]
            recipe = str(ROOT / "recipes" / "rlmec.py")
            output = run_recipe(*launch, recipe, *words, cwd=unscored, ACCELERATE_USE_CPU="true")
        assert output.count(f"Model saved to {output_dir}") == 1
        return output_dir

    return train


def test_samples_are_scored_first_on_one_process_and_on_two(train, unscored):
    from safetensors.torch import load_file

    from rlmec_trl.data.schema import check_dataset

    one, two = train(1), train(2)
    samples = load_from_disk(unscored / "samples")
    scored = [load_from_disk(f"{output_dir}-scored") for output_dir in (one, two)]
    check_dataset(scored[0], "scores")
    assert scored[0].select_columns(samples.column_names).to_list() == samples.to_list()
    for row, other in zip(*scored, strict=True):
        for name in ("token_probs", "old_logps"):
            assert row.pop(name) == pytest.approx(other.pop(name), rel=1e-4, abs=1e-6)
        assert row == other
    start, *ends = [load_file(folder / "model.safetensors") for folder in (unscored / "policy", one, two)]
    moved = max((ends[0][name] - start[name]).abs().max().item() for name in start)
    apart = max((ends[0][name] - ends[1][name]).abs().max().item() for name in start)
    assert moved > 1e-4
    assert apart < 0.01 * moved, "the same model, however many processes"
