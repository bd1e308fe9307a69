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
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from accelerate import ParallelismConfig
from datasets import Dataset, load_from_disk
from filelock import FileLock
from transformers.trainer_pt_utils import AcceleratorConfig
from trl import GRPOConfig, ModelConfig

from rlmec_trl.data.errors import ConfigError
from rlmec_trl.reports.comparisons import ComparisonError
from rlmec_trl.reports.tables import AUDIT_LABELS
from rlmec_trl.stages.output import OutputError
from rlmec_trl.stages.pipeline import Job, Pipeline, PipelineError, fill_run, plan_run
from rlmec_trl.stages.pipeline_file import load_pipeline
from rlmec_trl.stages.refusals import check_generation_batch
from rlmec_trl.stages.settings import parse_settings


ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
# One YAML file a stage, named by its recipe, and by what it is for where there are several
STAGE_CONFIGS = {path: path.stem for path in sorted((ROOT / "recipes" / "configs").glob("*.yaml"))}
for recipe in ("edit", "sft"):
    STAGE_CONFIGS |= {path: recipe for path in STAGE_CONFIGS if path.stem.startswith(f"{recipe}_")}
PIPELINE_CONFIGS = sorted(
    path for folder in ("arithmetic", "smollm2", "verdicts") for path in (ROOT / "recipes" / folder).glob("*.yaml")
)
# Paths that a recipe asks for as soon as it is parsed
PATHS = {"label_reward_model": "label", "quality_reward_model": "quality", "cap_dataset_name": "samples"}


def parser_of(recipe):
    return importlib.import_module(f"recipes.{recipe}").make_parser()


def parse(recipe, config, **others):
    """What a recipe makes of a YAML file and of arguments that stand on its command line."""
    parser = parser_of(recipe)
    required = {action.dest: "any" for action in parser._actions if action.required}
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    others = {name: value for name, value in required.items() if name not in settings} | others
    known = {action.dest for action in parser._actions}
    others |= {name: value for name, value in PATHS.items() if name in known and name not in settings}
    if any(action.dest == "use_cpu" for action in parser._actions):
        others["use_cpu"] = True  # where there is no GPU, some of what asks for one is refused
    words = [word for name, value in others.items() for word in (f"--{name}", str(value))]
    return parser.parse_args_and_config(["--config", str(config), *words])


def assert_parsed_as_given(parsed, settings):
    found = {name: value for part in parsed for name, value in vars(part).items()}
    assert settings.keys() <= found.keys()
    for name in settings.keys() - {"use_cpu", "lr_scheduler_type", "report_to"}:  # the last two are converted
        # Where a recipe takes several names, a single one may be given as a text
        as_given = (settings[name], [settings[name]])
        assert found[name] in as_given or str(found[name]) == str(settings[name]), name


# --- Shipped files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"pipeline"}))
def test_a_recipe_prints_user_errors_without_a_traceback_and_ends_its_process_group(name):
    source = (ROOT / "recipes" / f"{name}.py").read_text(encoding="utf-8")
    assert source.rstrip(")\n").endswith("run_command(make_parser, main")


@pytest.mark.parametrize("path", STAGE_CONFIGS, ids=lambda path: path.stem)
def test_a_config_has_only_arguments_of_its_recipe(path):
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert_parsed_as_given(parse(STAGE_CONFIGS[path], path), settings)
    assert not {"task", "output_dir", "dataset_name"} & settings.keys(), "a task is a flag"


@pytest.mark.parametrize("path", STAGE_CONFIGS, ids=lambda path: path.stem)
def test_a_key_that_no_recipe_knows_is_refused(path, tmp_path):
    changed = tmp_path / "changed.yaml"
    changed.write_text(path.read_text(encoding="utf-8") + "\nlearning_rat: 0.1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="learning_rat"):
        parse(STAGE_CONFIGS[path], changed)


@pytest.mark.parametrize("path", PIPELINE_CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_pipeline_fits_its_recipes(path, tmp_path):
    pipeline_recipe = importlib.import_module("recipes.pipeline")
    pipeline = load_pipeline(path)
    pipeline_recipe.check_settings([pipeline_recipe.Run(pipeline, seed) for seed in pipeline.seeds])
    for job in plan_run(pipeline, 3):
        if isinstance(job, Job):
            config = tmp_path / "config.yaml"
            config.write_text(yaml.safe_dump(fill_run(job.settings, "run")), encoding="utf-8")
            assert_parsed_as_given(parse(job.recipe, config), fill_run(job.settings, "run"))


def test_the_comparison_is_the_demo_the_online_stages_baselines_and_a_second_round_over_five_seeds():
    # so that all share the finished stages of seed 0
    demo, online, comparison = (
        load_pipeline(ROOT / "recipes" / "arithmetic" / f"{name}.yaml") for name in ("pipeline", "online", "compare")
    )
    steps, more = plan_run(online, 0), plan_run(comparison, 0)
    assert more[: len(steps)] == steps
    assert comparison.compare[: len(online.compare)] == online.compare != comparison.compare
    assert (demo.seeds, comparison.seeds) == ([0], [0, 1, 2, 3, 4])
    assert demo.output_dir == comparison.output_dir and demo.report != comparison.report
    policies = [step for step in more[len(steps) :] if isinstance(step, Job) and "learning_rate" in step.settings]
    policies = [step for step in policies if step.recipe != "train_grm"]
    assert {step.recipe for step in policies} == {"dpo", "grpo", "rloo", "rlmec"}
    for step in policies:
        num_steps = 1000 if step.name == "grpo_long" else 250
        assert (step.settings["max_steps"], step.settings["per_device_train_batch_size"]) == (num_steps, 64)
        assert step.settings["model_name_or_path"].endswith("/rft" if step.name == "rft_grpo" else "/warmup")
    rows = {stage.evaluate for stage in comparison.stages} - {stage.evaluate for stage in online.stages}
    baselines = {"dpo", "dpo_sft", "grpo", "grpo_long", "rloo", "rft_grpo"}
    assert rows == baselines | {"rewrite_all_2", "rewards_alone", "imitation_equal"}


def test_the_online_pipeline_is_the_demo_and_online_stages_of_equal_completions():
    demo, online = (load_pipeline(ROOT / "recipes" / "arithmetic" / f"{name}.yaml") for name in ("pipeline", "online"))
    steps, more = plan_run(demo, 0), plan_run(online, 0)
    assert more[: len(steps)] == steps, "so that both share the finished stages of seed 0"
    assert demo.output_dir == online.output_dir and demo.report != online.report
    trained = [step for step in more[len(steps) :] if step.recipe == "online_rlmec"]
    names = ["online_place", "online_add", "online_imitation", "online_imitation_place", "online_distill"]
    names += ["rewrite_all_online", "rewrite_all_grpo"]
    assert [step.name for step in trained] == names
    assert [stage.evaluate for stage in online.stages if stage.recipe == "online_rlmec"] == names
    for step in trained:
        assert (step.settings["max_steps"], step.settings["per_device_train_batch_size"]) == (250, 64)
        offline = step.name.startswith("rewrite_all")
        assert step.settings["model_name_or_path"].endswith("/rewrite_all" if offline else "/warmup")
        assert ("grm" in step.settings) == (step.name != "rewrite_all_grpo")


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_is_there(recipe, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"), run_name="__main__")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    without_data = {"pipeline", "merge", "compare_results"}
    assert "--output_" in shown and (recipe in without_data or "--seed" in shown or "--dataset_name" in shown)


def test_a_task_is_described_in_the_same_words_everywhere():
    # `task.py` writes a task, and has only those that are made in code
    parsers = {recipe: parser_of(recipe) for recipe in set(RECIPES) - {"pipeline", "task"}}
    texts = {
        recipe: action.help
        for recipe, parser in parsers.items()
        for action in parser._actions
        if action.dest == "task"
    }
    recipes = {"sample", "edit", "train_grm", "score", "rlmec", "online_rlmec", "evaluate", "audit", "grpo", "rloo"}
    assert recipes <= texts.keys()
    # Only some tasks have labels
    labels = {recipe: texts.pop(recipe) for recipe in ("rationales", "pairs", "rllr", "rllr_grpo")}
    # Without a task, a report has fewer charts
    assert texts.pop("report").startswith(texts["audit"])
    assert len(set(texts.values())) == 1, texts
    assert all(text.startswith(labels["pairs"].removesuffix(".")) for text in labels.values()), labels


def test_fewer_problems_than_a_batch_of_grpo_takes_are_refused():
    """Its sampler drops what does not fill one, and would train no step."""
    settings = {"per_device_train_batch_size": 8, "num_generations": 2, "use_cpu": True, "bf16": False}
    training_args = GRPOConfig("runs", report_to="none", **settings)
    check_generation_batch(4, training_args)
    with pytest.raises(ConfigError, match="`generation_batch_size` 8 takes 4 problems.* the dataset has 3"):
        check_generation_batch(3, training_args)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"name": "warmup", "recipe": "stf"}, r"Stage 'warmup': no recipe 'stf'\. Choose one of audit, "),
        (
            {"name": "warmup", "recipe": "sft", "args": {"dataset_name": "x", "learning_rat": 0.1}},
            r"Stage 'warmup': the recipe 'sft' has no setting 'learning_rat'\. Did you mean 'learning_rate'",
        ),
        ({"name": "warmup", "recipe": "sft"}, r"Stage 'warmup': the recipe 'sft' needs dataset_name\."),
    ],
)
def test_a_stage_that_does_not_fit_its_recipe_is_named_before_any_work(tmp_path, stage, message, scripts):
    path = tmp_path / "pipeline.yaml"
    settings = {"title": "Small", "output_dir": str(tmp_path / "runs"), "seeds": [0], "stages": [stage]}
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    output = refuse_recipe(scripts, ROOT / "recipes" / "pipeline.py", "--config", path, cwd=tmp_path)
    assert re.search(message, output)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"args": {"max_steps": 0}}, r"Stage 'last': `max_steps` must be -1 or at least 1, got 0"),
        ({"args": {"reward_baseline": float("nan")}}, r"Stage 'last': `reward_baseline` must be finite"),
        (
            {"args": {"per_device_train_batch_size": None}},
            r"Stage 'last': `per_device_train_batch_size` must be an int",
        ),
        ({"args": {"score_batch_size": 2.5}}, r"Stage 'last': `score_batch_size` must be an integer, got 2\.5"),
        (
            {"args": {"max_length": "{seed}"}},
            r"Stage 'last': `max_length` must be at least 2, got 1",
        ),  # of seed 1 only
        (
            {"args": {"policy_coef": 0, "imitation_coef": 0}},
            r"Stage 'last': `policy_coef`, `imitation_coef` and `attempt_coef` are all 0",
        ),
        ({"args": {"logging_steps": 2.5}}, r"Stage 'last': --logging_steps must be an integer"),
        ({"choose": {"epsilon": [0.3, -1]}}, r"Stage 'last-epsilon--1': `epsilon` must be positive, got -1"),
        ({"recipe": "pipeline"}, r"Stage 'last': no recipe 'pipeline'\. Choose one of audit, "),
        ({"args": {"help": 3}}, r"Stage 'last': the recipe 'rlmec' has no setting 'help'"),
    ],
)
def test_a_value_that_cannot_work_in_the_last_stage_is_found_before_the_first_one_runs(tmp_path, change, message):
    pipeline_recipe = importlib.import_module("recipes.pipeline")
    last = {"name": "last", "recipe": "rlmec"} | change
    shared = {"dataset_name": "{run}/task/train", "use_cpu": True, "bf16": False, "seed": "{seed}"}
    settings = {
        "title": "Small",
        "output_dir": str(tmp_path / "runs"),
        "seeds": [2, 1],
        "defaults": {"rlmec": shared, "evaluate": {"task": "arithmetic"}},
        "stages": [{"name": "task", "recipe": "task"}, last],
        "evaluation": {"test": "{run}/task/test", "validation": "{run}/task/validation"},
    }
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    pipeline = load_pipeline(tmp_path / "pipeline.yaml")
    with pytest.raises(PipelineError, match=message):
        not_in_key = pipeline_recipe.settings_without_effect(pipeline)
        pipeline_recipe.check_settings([pipeline_recipe.Run(pipeline, seed, not_in_key) for seed in pipeline.seeds])


def test_a_pipelines_folder_that_is_a_file_is_named(tmp_path, monkeypatch):
    pipeline_recipe = importlib.import_module("recipes.pipeline")
    (tmp_path / "runs").write_text("mine")
    stages = [{"name": "task", "recipe": "task"}]
    settings = {"title": "Small", "output_dir": str(tmp_path / "runs"), "seeds": [0], "stages": stages}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["pipeline.py", "--config", str(tmp_path / "pipeline.yaml")])
    with pytest.raises(SystemExit, match=r"PipelineError: `output_dir` '.*runs' is no folder \(File exists\)"):
        pipeline_recipe.main()


def test_defaults_of_a_recipe_that_does_not_exist_are_refused(tmp_path):
    pipeline_recipe = importlib.import_module("recipes.pipeline")
    settings = {
        "title": "Small",
        "output_dir": str(tmp_path / "runs"),
        "seeds": [0],
        "defaults": {"smaple": {}},
        "stages": [{"name": "task", "recipe": "task"}],
    }
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    pipeline = load_pipeline(tmp_path / "pipeline.yaml")
    with pytest.raises(PipelineError, match="`defaults`: no recipe 'smaple'"):
        pipeline_recipe.check_settings([pipeline_recipe.Run(pipeline, 0)])


@pytest.mark.parametrize("several", [True, False])
def test_the_report_has_the_audits_by_their_names(tmp_path, capsys, several):
    pipeline_recipe = importlib.import_module("recipes.pipeline")
    count = {"correct": 1, "total": 4}
    runs = []
    for seed in (0, 1):
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir()
        for number in (1, 2):
            audit = dict.fromkeys(AUDIT_LABELS, {**count, "correct": number}) | {"auc": 0.5}
            (folder / f"audit_{number}.json").write_text(json.dumps(audit))
        runs.append(SimpleNamespace(seed=seed, folder=folder, results={}, seconds={}, chosen={}, steps=[]))
    files = {"[first]": "{run}/audit_1.json", "[second]": "{run}/audit_2.json"}
    audit = files if several else files["[second]"]
    pipeline_recipe.report(Pipeline("Small", str(tmp_path), [0, 1], [], audit=audit), runs)
    result = json.loads((tmp_path / "report.json").read_text())["grm_audit"]
    expected = {"mean": 0.5, "correct": 4, "total": 8}
    assert (result["[second]"] if several else result)["clean_kept"] == expected
    assert ("on unseen problems: [first]" in capsys.readouterr().out) == several
    (tmp_path / "seed-1" / "audit_2.json").write_text(json.dumps({"correct": 1, "total": 4}))
    with pytest.raises(PipelineError, match=r"`audit`: .*audit_2\.json is not an output of `audit\.py`"):
        pipeline_recipe.report(Pipeline("Small", str(tmp_path), [0, 1], [], audit=audit), runs)


# --- The pipeline on a small task ------------------------------------------------------------------------------------

# Stages of the shipped pipeline -> what is made smaller. The others are left out.
SMALL = {
    "task": {
        "warmup_size": 60,
        "train_size": 40,
        "validation_size": 16,
        "test_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 1,
    },
    "warmup": {"max_steps": 160, "save_steps": 80, "save_total_limit": 2, "learning_rate": 1e-2},
    "samples": {"num_samples": 1, "max_new_tokens": 40, "shard_size": 25},
    "edits": {"max_problems": 20},
    "grm": {"max_steps": 4, "save_steps": 4, "per_device_train_batch_size": 8},
    "scored": {"rewrite_max_new_tokens": 8, "rewrite_topk": 2, "shard_size": 20},
    "audit.json": {},
    "report.html": {"max_rows": 20, "runs": ["start={run}/warmup", "rewrite_all={run}/samples,{run}/rewrite_all"]},
    "reference_sft": {"max_steps": 2, "per_device_train_batch_size": 8},
    "rewrite_all": {"max_steps": 2, "per_device_train_batch_size": 8},
    "grpo": {
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "generation_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 8,
    },
}


def small_pipeline(**changes):
    """The shipped pipeline with GRPO, made small. `changes` are settings of its stages, by name."""
    files = [
        yaml.safe_load((ROOT / "recipes" / "arithmetic" / name).read_text())
        for name in ("pipeline.yaml", "compare.yaml")
    ]
    stages = [stage for file in files for stage in file["stages"] if stage["name"] in SMALL]
    files[0]["defaults"] |= files[1]["defaults"]
    for stage in stages:
        stage["args"] = {**stage.get("args", {}), **SMALL[stage["name"]], **changes.get(stage["name"], {})}
        if stage["name"] in ("warmup", "grpo"):
            stage["evaluate"] = None if stage["name"] == "warmup" else "grpo"
        if stage["name"] == "rewrite_all":
            stage["choose"] = {"policy_coef": [0.1, 1.0]}
        if stage["name"] == "grpo":
            del stage["choose"]
    settings = files[0] | {"title": "Small", "output_dir": "runs", "stages": stages}
    settings["defaults"]["evaluate"]["max_new_tokens"] = 30
    settings["compare"] = [["rewrite_all", "reference_sft"], ["rewrite_all", "grpo"]]
    return settings


WIDE = {"COLUMNS": "200"}


def run_command(*command, cwd, **environment):
    """Run Python in a new process, as users do."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | WIDE | environment
    command = [sys.executable, *map(str, command)]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-3000:]
    return result.stdout


def run_recipe(scripts, *command, cwd):
    """Run a recipe without waiting for imports."""
    finished = scripts.run(*command, cwd=cwd, environments=[WIDE])
    assert finished.exit_code == 0, finished.stdout[-1000:] + finished.stderr[-3000:]
    return finished.stdout


def refuse_recipe(scripts, *command, cwd):
    """What is printed by a recipe that fails for a reason that it names."""
    finished = scripts.run(*command, cwd=cwd, environments=[WIDE])
    assert finished.exit_code == 1 and "Traceback" not in finished.stderr, finished.stderr[-3000:]
    return finished.stderr


class PipelineRun:
    """A folder in which the small pipeline is run again and again."""

    def __init__(self, folder):
        self.folder, self.run = folder, folder / "runs" / "seed-0"
        self.command = [str(ROOT / "recipes" / "pipeline.py"), "--config", "pipeline.yaml"]

    def write(self, **changes):
        text = yaml.safe_dump(small_pipeline(**changes), sort_keys=False)
        (self.folder / "pipeline.yaml").write_text(text, encoding="utf-8")
        return self

    def start(self, scripts=None):
        """The names of the stages that ran, of those that were already finished, and all that was printed."""
        start = run_command if scripts is None else partial(run_recipe, scripts)
        output = start(*self.command, cwd=self.folder)
        ran = re.findall(r"^(\S+) \(seed 0\) ─", output, re.MULTILINE)
        skipped = re.findall(r"^runs/seed-0/(\S+): already finished", output, re.MULTILINE)
        return ran, skipped, output

    def files(self):
        """Every file in the folder of the runs, and when it was written."""
        return {str(path): path.lstat().st_mtime_ns for path in (self.folder / "runs").rglob("*") if not path.is_dir()}

    @property
    def report(self):
        return json.loads((self.folder / "runs" / "report.json").read_text(encoding="utf-8"))


CHOICE = [
    *("rewrite_all-policy_coef-0.1", "results/rewrite_all-policy_coef-0.1-validation.json"),
    *("rewrite_all-policy_coef-1.0", "results/rewrite_all-policy_coef-1.0-validation.json"),
    "results/rewrite_all-test.json",
]
STAGES = [
    *("task", "warmup", "samples", "edits", "grm", "scored", "audit.json"),
    *("reference_sft", "results/reference_sft-test.json", *CHOICE, "report.html"),
    *("grpo", "results/grpo-test.json"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The small pipeline after its first run, and what it printed."""
    pipeline = PipelineRun(tmp_path_factory.mktemp("pipeline")).write()
    return pipeline, pipeline.start()


@pytest.fixture
def copy_of(tmp_path):
    def copy(pipeline):
        shutil.copytree(pipeline.folder, tmp_path / "copy", symlinks=True)
        return PipelineRun(tmp_path / "copy")

    return copy


def test_the_pipeline_runs_every_stage_and_reports(finished):
    pipeline, (ran, _, output) = finished
    assert ran == STAGES
    report = pipeline.report
    assert set(report["accuracy"]) == {"reference_sft", "rewrite_all", "grpo"}
    for result in report["accuracy"].values():
        assert {"mean", "std", "seeds", "n"} <= result.keys()
        assert 0 <= result["mean"] <= 1 and (result["std"], result["seeds"], result["n"]) == (0.0, 1, 16)
    audit = report["grm_audit"]
    assert {"first_wrong_flagged", "clean_kept", "auc", "wrong_rewritten", "error_located"} <= audit.keys()
    num_samples = len(load_from_disk(pipeline.run / "samples"))
    assert audit["error_located"]["total"] == num_samples - 20 > 0, "the problems that the reward model has not seen"
    assert list(report["seconds"]) == STAGES
    assert all(seconds > 0 for seconds in report["seconds"].values())
    costs, run = report["costs"], pipeline.run
    assert report["shared_costs"]["stages"] == ["task", "warmup"] and report["shared_costs"]["policy_tokens"] > 0
    assert costs["reference_sft"] | {"completions": 0, "teacher_edits": 0} == costs["reference_sft"]
    assert (costs["grpo"]["completions"], costs["rewrite_all"]["completions"]) == (4, 40)
    assert costs["rewrite_all"]["teacher_edits"] == len(load_from_disk(run / "edits"))
    # The attempts, and the rewrites whose distributions are stored, of which some are not verified
    probs = load_from_disk(run / "scored")["token_probs"]
    assert costs["rewrite_all"]["grm_tokens_scored"] > sum(map(len, probs)) > 0
    assert all(figure > 0 for name, figure in costs["rewrite_all"].items() if name != "search")
    assert costs["rewrite_all"]["search"]["completions"] == 2 * 16, "both candidates are evaluated on validation"
    needed = ["samples", "edits", "grm", "scored", os.readlink(run / "rewrite_all")]
    assert costs["rewrite_all"]["seconds"] == pytest.approx(sum(report["seconds"][name] for name in needed))
    assert "Costs, without what all methods share (task, warmup)" in output
    chosen = report["chosen"]["seed-0"]["rewrite_all"]
    assert chosen["argument"] == "policy_coef" and chosen["value"] in (0.1, 1.0)
    assert os.readlink(pipeline.run / "rewrite_all") == f"rewrite_all-policy_coef-{chosen['value']}"
    assert "Small: test split, 16 problems" in output and "report.json" in output
    assert "open runs/seed-0/report.html in a browser" in output.splitlines()[-1]


def test_the_report_compares_rows_problem_by_problem(finished):
    pipeline, (_, _, output) = finished
    report = pipeline.report
    assert [one["rows"] for one in report["comparisons"]] == [
        ["rewrite_all", "reference_sft"],
        ["rewrite_all", "grpo"],
    ]
    for one in report["comparisons"]:
        means = [report["accuracy"][row]["mean"] for row in one["rows"]]
        assert one["accuracy"] == means and one["difference"] == pytest.approx(means[0] - means[1])
        assert (one["total"], one["seeds"], one["t_interval"]) == (16, 1, None)
        assert one["interval"][0] <= one["difference"] <= one["interval"][1]
        counts = [report["accuracy"][row]["correct"] for row in one["rows"]]
        assert one["only_first"] - one["only_second"] == counts[0] - counts[1]
    assert "Paired comparisons, 16 problems" in output
    json.dumps(report, allow_nan=False)


def run_of(pipeline):
    """The pipeline of a folder, and the run of its seed, in this process."""
    recipe = importlib.import_module("recipes.pipeline")
    settings = load_pipeline(pipeline.folder / "pipeline.yaml", output_dir=str(pipeline.folder / "runs"))
    return settings, recipe.Run(settings, 0, recipe.settings_without_effect(settings))


def test_results_of_an_earlier_version_are_kept_and_named_and_compared_once_they_are_deleted(
    finished, copy_of, capsys
):
    pipeline = copy_of(finished[0])
    expected = pipeline.report["comparisons"]
    path = pipeline.run / "results" / "grpo-test.json"
    new = json.loads(path.read_text())
    path.write_text(json.dumps({name: new[name] for name in ("correct", "total", "mean", "interval")}))
    settings, run = run_of(pipeline)
    assert not run.ledger.refusals(run.steps)
    assert all(run.ledger.is_finished(step) for step in run.steps if step.name == f"results/{path.name}")
    compared = importlib.import_module("recipes.pipeline").compare_rows(settings, [run])
    assert compared == [expected[0], {"rows": ["rewrite_all", "grpo"], "missing": [str(path)]}]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("No comparison with grpo: ") and line.endswith(f": {path}")
    path.unlink()
    run.run()
    importlib.import_module("recipes.pipeline").report(settings, [run])
    output = capsys.readouterr().out
    assert re.findall(r"^(\S+) \(seed 0\) ─", output, re.MULTILINE) == ["results/grpo-test.json"]
    assert "No comparison" not in output
    assert pipeline.report["comparisons"] == expected


def test_rows_that_were_evaluated_on_other_problems_leave_the_other_figures_as_they_are(finished, copy_of, capsys):
    pipeline = copy_of(finished[0])
    path = pipeline.run / "results" / "grpo-test.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"problems": "others"}))
    settings, run = run_of(pipeline)
    compared = importlib.import_module("recipes.pipeline").compare_rows(settings, [run])
    assert compared[0] == pipeline.report["comparisons"][0]
    assert compared[1]["missing"] == [str(path.with_name("rewrite_all-test.json")), str(path)]
    assert "rewrite_all with grpo" in capsys.readouterr().out


def test_results_are_compared_by_hand(finished, tmp_path, monkeypatch, capsys):
    pipeline, _ = finished
    recipe = importlib.import_module("recipes.compare_results")
    monkeypatch.chdir(pipeline.folder)
    monkeypatch.setenv("COLUMNS", "200")
    results = [f"runs/seed-0/results/{name}-test.json" for name in ("reference_sft", "rewrite_all", "grpo")]

    def start(*results, output=tmp_path / "compared.json"):
        recipe.main(*parse_settings(recipe.make_parser(), ["--results", *results, "--output_file", str(output)]))

    for _ in range(2):  # an earlier result is replaced
        start(*results)
    output = capsys.readouterr().out
    assert "Accuracy on 16 problems" in output and results[1] in output
    compared = json.loads((tmp_path / "compared.json").read_text())["comparisons"]
    assert [one["rows"] for one in compared] == [[results[1], results[0]], [results[2], results[0]]]
    assert compared[0] == pipeline.report["comparisons"][0] | {"rows": [results[1], results[0]]}
    with pytest.raises(ConfigError, match="`results` needs two files or more to compare, got "):
        start(results[0])
    with pytest.raises(ComparisonError, match=r"'runs/report\.json' is not a result of `evaluate\.py`"):
        start(results[0], "runs/report.json")
    with pytest.raises(OutputError, match="report.json' exists and is not a result of this stage"):
        start(*results, output="runs/report.json")


def test_each_stage_writes_what_the_next_one_reads(finished):
    from rlmec_trl.data.schema import check_dataset

    pipeline, _ = finished
    for name, stage in (("samples", "samples"), ("edits", "edits"), ("scored", "scores"), ("scored", "policy")):
        check_dataset(load_from_disk(pipeline.run / name), stage)
    samples, scored = (load_from_disk(pipeline.run / name) for name in ("samples", "scored"))
    assert scored.select_columns(samples.column_names).to_list() == samples.to_list()
    assert "rewrite_topk_ids" in scored.column_names
    assert len(load_from_disk(pipeline.run / "edits")) == 20
    assert not [path for path in pipeline.run.iterdir() if path.name.startswith((".samples", ".edits", ".scored"))]


def test_a_second_run_skips_what_is_finished(finished, scripts):
    pipeline, _ = finished
    before = pipeline.report
    ran, skipped, _ = pipeline.start(scripts)
    assert (ran, skipped) == ([], STAGES)
    assert pipeline.report == before


def test_the_settings_of_a_stage_run_it_on_its_own(finished, tmp_path, scripts):
    pipeline, _ = finished
    recipe, config = str(ROOT / "recipes" / "evaluate.py"), "runs/seed-0/.stages/results/grpo-test.json.yaml"
    run_recipe(scripts, recipe, "--config", config, "--output_file", str(tmp_path / "again.json"), cwd=pipeline.folder)
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["mean"] == pipeline.report["accuracy"]["grpo"]["mean"]


def test_a_changed_setting_and_a_deleted_and_an_interrupted_stage(finished, copy_of, scripts):
    # A stage whose settings have changed, and whose readers follow ...
    pipeline = copy_of(finished[0]).write(scored={"rewrite_max_new_tokens": 4})
    # ... one whose result was deleted, which comes back as it was ...
    shutil.rmtree(pipeline.run / "edits")
    # ... and a training that was interrupted after a checkpoint
    marker = pipeline.run / ".stages" / "warmup.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"finished": False, "files": {}}))
    weights = (pipeline.run / "warmup" / "model.safetensors").read_bytes()
    (pipeline.run / "warmup" / "model.safetensors").unlink()
    shutil.rmtree(pipeline.run / "warmup" / "checkpoint-160")
    checkpoint = pipeline.run / "warmup" / "checkpoint-80" / "trainer_state.json"
    written = checkpoint.stat().st_mtime_ns

    ran, skipped, _ = pipeline.start(scripts)
    assert ran == ["warmup", "edits", "scored", "audit.json", *CHOICE, "report.html"]
    assert skipped == [name for name in STAGES if name not in ran]
    assert checkpoint.stat().st_mtime_ns == written, "training resumed from there"
    assert (pipeline.run / "warmup" / "checkpoint-160").is_dir()
    assert (pipeline.run / "warmup" / "model.safetensors").read_bytes() == weights, "as without the interruption"
    assert len(load_from_disk(pipeline.run / "edits")) == 20


def test_foreign_files_are_refused_by_name_before_any_work(finished, copy_of, scripts):
    pipeline = copy_of(finished[0]).write(warmup={"learning_rate": 2e-2})
    (pipeline.run / "grm" / "thesis.tex").write_text("years of work")
    (pipeline.run / ".stages" / "reference_sft.json").unlink()
    (pipeline.folder / "runs" / "report.json").write_text("years of work")
    before = pipeline.files()
    output = refuse_recipe(scripts, *pipeline.command, cwd=pipeline.folder)
    listed = [line for line in output.splitlines() if line.startswith("- ")]
    assert len(listed) == 3
    assert "runs/seed-0/grm" in listed[0] and "thesis.tex" in listed[0]
    assert "runs/seed-0/reference_sft" in listed[1]
    assert "runs/report.json" in listed[2]
    assert pipeline.files() == before


def test_batch_sizes_of_stages_are_in_no_key_of_a_pipeline_and_those_of_training_are():
    from recipes.pipeline import settings_without_effect
    from rlmec_trl.stages.pipeline_file import load_pipeline

    without = settings_without_effect(load_pipeline(ROOT / "recipes" / "arithmetic" / "compare.yaml"))
    assert {"batch_size", "shard_size", "concurrency", "output_dir"} <= without["sample"]
    assert {"score_batch_size", "shard_size"} <= without["score"]
    assert "batch_size" in without["evaluate"] and "temperature" not in without["sample"]
    assert not without["rlmec"] & {"per_device_train_batch_size", "learning_rate", "output_dir"}
    assert {"push_to_hub", "hub_model_id"} <= without["rlmec"] and "hub_dataset_id" in without["score"]


def test_a_second_pipeline_in_the_same_folder_fails(finished, scripts):
    pipeline, _ = finished
    with FileLock(pipeline.folder / "runs" / ".pipeline.lock"):
        before = pipeline.files()
        assert "Another pipeline is running in runs" in refuse_recipe(scripts, *pipeline.command, cwd=pipeline.folder)
        assert pipeline.files() == before


# --- Training on samples that are not scored yet ---------------------------------------------------------------------


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
    steps = plan_run(load_pipeline(ROOT / "recipes" / "arithmetic" / "pipeline.yaml"), 0)
    settings = next(step.settings for step in steps if step.name == "rewrite_all-policy_coef-0.1")
    (folder / "rlmec.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def train(unscored, scripts):
    """Run the recipe on 1 process, or launch it on 2, with the same number of rows in a step."""

    def train(num_processes):
        output_dir = unscored / f"out-{num_processes}"
        settings = {
            "config": unscored / "rlmec.yaml",
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
            "logging_steps": 1,
            "log_completions": True,
        }
        words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
        recipe = ROOT / "recipes" / "rlmec.py"
        if num_processes == 1:
            output = run_recipe(scripts, recipe, *words, "--use_cpu", "true", cwd=unscored)
        else:
            config = ROOT / "recipes" / "accelerate_configs" / "cpu2.yaml"
            launch = ["-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file", config]
            recipe = [ROOT / "tests" / "on_two.py", recipe]
            output = run_command(*launch, *recipe, *words, cwd=unscored, ACCELERATE_USE_CPU="true")
        assert output.count(f"Saved to {output_dir} in ") == 1
        assert output.count("─ Step 2 ─") == 1, "only the main process shows completions"
        assert len(list(output_dir.glob("completions/completions_0000[12].parquet"))) == 2
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_name_or_path": "adapter"}, "'adapter' is an adapter of 'policy'"),
        ({"model_name_or_path": "missing"}, "'missing'"),
        ({"packing": True}, "does not support `packing`"),
        ({"accelerator_config": AcceleratorConfig(dispatch_batches=True)}, "does not support `dispatch_batches`"),
        ({"parallelism_config": ParallelismConfig(tp_size=2)}, "does not support tensor parallelism"),
        ({"imitation_targets": "soft"}, "set `rewrite_topk`"),
    ],
)
def test_settings_that_cannot_train_are_refused_before_the_samples_are_scored(
    settings, message, unscored, monkeypatch, tmp_path
):
    import torch
    from safetensors.torch import save_file

    from recipes.rlmec import RLMECArguments, main
    from rlmec_trl import RLMECConfig
    from rlmec_trl.data.errors import UserError
    from rlmec_trl.stages import score

    def run(*args, **kwargs):
        raise AssertionError("scored")

    monkeypatch.setattr(score, "run", run)
    monkeypatch.chdir(unscored)
    (unscored / "adapter").mkdir(exist_ok=True)
    (unscored / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "policy"}')
    save_file({"lora": torch.zeros(1)}, unscored / "adapter" / "adapter_model.safetensors")
    args = RLMECConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none")
    name = settings.get("model_name_or_path", "policy")
    for setting in settings.keys() - {"model_name_or_path"}:
        setattr(args, setting, settings[setting])
    with pytest.raises(UserError, match=message):
        main(RLMECArguments("samples"), args, score.ScoreConfig(grm="grm", task="arithmetic"), ModelConfig(name))
