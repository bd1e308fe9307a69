"""
Recipes that are killed while they work. Whenever the signal arrives, running the same command again gives the result
of an undisturbed run. `benchmarks/kill_pipeline.py` does the same at as many random moments as one likes.
"""

import signal
from pathlib import Path

import pytest
import yaml
from datasets import Dataset

from benchmarks.kill_pipeline import contents
from tests.test_recipes import small_pipeline


ROOT = Path(__file__).parents[1]


class Runs:
    """Runs of recipes in a folder."""

    def __init__(self, scripts, folder):
        self.scripts, self.folder = scripts, folder

    def run(self, recipe, words, kill=signal.SIGKILL, when=None):
        """Run a recipe. It gets a signal as soon as there is a file that `when` matches."""
        script = ROOT / "recipes" / f"{recipe}.py"
        finished = self.scripts.run(
            script, *words, cwd=self.folder, environments=[{"COLUMNS": "200"}], kill=int(kill), when=when
        )
        # A machine that is busy may deliver the signal after the end
        assert finished.exit_code in ((0, -kill, 128 + kill) if when else (0,)), finished.stderr[-3000:]


@pytest.fixture
def runs(scripts, tmp_path):
    return Runs(scripts, tmp_path)


def test_training_killed_while_it_writes_checkpoints_and_terminated(runs, make_policy, make_rows, tokenizer):
    folder = runs.folder
    make_policy(sharpness=10.0).save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    Dataset.from_list(make_rows(12)).save_to_disk(folder / "rows")
    settings = {
        "model_name_or_path": "policy",
        "dataset_name": "rows",
        "per_device_train_batch_size": 2,
        "max_steps": 24,
        "save_steps": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "group_by_length",
        "bf16": "false",
        "use_cpu": "true",
        "report_to": "none",
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    runs.run("rlmec", [*words, "--output_dir", "straight"])
    for kill, when in (
        (signal.SIGKILL, "killed/checkpoint-4/model.safetensors"),
        (signal.SIGTERM, "killed/checkpoint-8"),
        (signal.SIGKILL, "killed/checkpoint-16/optimizer.pt"),
        (signal.SIGKILL, "killed/model.safetensors"),
    ):
        runs.run("rlmec", [*words, "--output_dir", "killed"], kill, when)
    runs.run("rlmec", [*words, "--output_dir", "killed"])
    assert contents(folder / "killed") == contents(folder / "straight") != {}


def test_a_pipeline_killed_in_several_stages(runs):
    pipeline = small_pipeline(
        warmup={"max_steps": 40, "save_steps": 5},
        samples={"shard_size": 10},
        grm={"max_steps": 12, "save_steps": 3},
    )
    kept = ("task", "warmup", "samples", "edits", "grm", "scored", "rewrite_all")
    pipeline["stages"] = [stage for stage in pipeline["stages"] if stage["name"] in kept]
    for stage in pipeline["stages"]:
        stage.pop("choose", None)
        stage.pop("evaluate", None)
    for name in ("scored", "tokenizer", "audit", "evaluation", "compare"):
        pipeline.pop(name, None)
    (runs.folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False), encoding="utf-8")
    words = ["--config", "pipeline.yaml", "--output_dir"]
    runs.run("pipeline", [*words, "whole"])
    for when in (
        "ended/seed-0/warmup/checkpoint-10/optimizer.pt",
        "ended/seed-0/.samples.rlmec_trl/*.shards/*",
        "ended/seed-0/grm/checkpoint-6",
        "ended/seed-0/rewrite_all/model.safetensors",
    ):
        runs.run("pipeline", [*words, "ended"], when=when)
    runs.run("pipeline", [*words, "ended"])
    assert contents(runs.folder / "ended") == contents(runs.folder / "whole") != {}
