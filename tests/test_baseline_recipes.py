"""The baselines of `recipes/arithmetic/compare.yaml` with its settings, on models so small that nothing is learned."""

import json
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from safetensors.torch import load_file
from trl import DPOConfig, ModelConfig

from recipes import dpo
from rlmec_trl.data.errors import ConfigError, DatasetError
from rlmec_trl.stages.pipeline import fill_run, plan_run
from rlmec_trl.stages.pipeline_file import load_pipeline
from rlmec_trl.tasks import arithmetic


ROOT = Path(__file__).parents[1]
SMALL = {"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no"}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer, make_rows):
    """What the pipeline has written when its baselines begin: a policy, problems and scored rows."""
    folder = tmp_path_factory.mktemp("baselines")
    policy = arithmetic.make_policy(tokenizer, hidden_size=16, num_hidden_layers=1)
    policy.get_input_embeddings().weight.data.mul_(10.0)
    for name in ("warmup", "rft"):
        policy.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = make_rows(16, kinds=("right", "wrong"))
    rows[1]["rewrite"] = None
    Dataset.from_list(rows).save_to_disk(folder / "scored")
    Dataset.from_list(rows).select_columns(["prompt", "answer"]).save_to_disk(folder / "task" / "train")
    return folder


@pytest.fixture(scope="module")
def train(run, scripts):
    """Run a stage of the comparison as the pipeline does, made small, and return its output and the last log."""
    steps = {step.name: step for step in plan_run(load_pipeline(ROOT / "recipes" / "arithmetic" / "compare.yaml"), 0)}

    def train(name, output_dir, **changes):
        settings = fill_run(steps[name].settings, run) | SMALL | {"output_dir": str(run / output_dir)} | changes
        config = run / f"{output_dir}.yaml"
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        finished = scripts.run(ROOT / "recipes" / f"{steps[name].recipe}.py", "--config", config, cwd=run)
        assert finished.exit_code == 0, finished.stdout[-1000:] + finished.stderr[-3000:]
        log = json.loads((run / output_dir / "trainer_state.json").read_text())["log_history"]
        return finished.stdout, [entry for entry in log if "loss" in entry]

    return train


def largest_difference(run, first, second):
    weights, others = (load_file(run / name / "model.safetensors") for name in (first, second))
    return max((weights[name] - others[name]).abs().max().item() for name in weights)


def test_dpo_prefers_rewrites_and_shared_steps_cancel_in_its_loss_but_not_in_the_sft_term(train, run):
    settings = {"optim": "sgd", "learning_rate": 0.1}  # Adam makes a step of a gradient that is only rounding
    printed, from_start = train("dpo-learning_rate-1e-06", "start", **settings)
    assert "7 pairs of 16 rows (left out: correct sample: 8, no verified rewrite: 1)" in printed
    first_change = settings | {"pair_from": "first_change", "task": "arithmetic"}
    _, from_first_change = train("dpo-learning_rate-1e-06", "first_change", **first_change)
    assert from_start[0]["loss"] == from_first_change[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    moved = largest_difference(run, "warmup", "start")
    assert moved > 1e-4
    assert largest_difference(run, "start", "first_change") < 1e-3 * moved
    assert from_start[0]["num_tokens"] == from_first_change[0]["num_tokens"], "the sequences are the same"

    sft = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
    _, with_sft = train("dpo-learning_rate-1e-06", "sft_start", **settings, **sft)
    _, of_change = train("dpo-learning_rate-1e-06", "sft_first_change", **first_change, **sft)
    assert with_sft[0]["loss"] > 1
    assert abs(with_sft[0]["loss"] - of_change[0]["loss"]) > 1e-3


@pytest.mark.parametrize("name", ["rloo-learning_rate-5e-05", "rft_grpo"])
def test_policies_train_on_the_outcome(name, train, run):
    generation = {"num_generations": 2, "max_completion_length": 4}
    _, log = train(name, f"out_{name}", max_steps=1, **generation)
    assert len(log) == 1 and 0 <= log[0]["reward"] <= 1
    assert (run / f"out_{name}" / "model.safetensors").is_file()


def refused(run, tmp_path, changes=None, **arguments):
    settings = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False} | SMALL
    config = DPOConfig(str(tmp_path / "out"), **settings | (changes or {}))
    dpo.main(dpo.DPOArguments(**{"dataset_name": str(run / "scored")} | arguments), config, ModelConfig("missing"))


def test_settings_of_dpo_that_do_not_fit_together_are_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="`pair_from first_change` compares steps. Set `task`"):
        refused(run, tmp_path, pair_from="first_change")
    with pytest.raises(ConfigError, match="`pair_from` must be one of 'start', 'first_change'"):
        refused(run, tmp_path, pair_from="end")
    with pytest.raises(ConfigError, match="`precompute_ref_log_probs` computes log-probabilities of whole"):
        refused(run, tmp_path, {"precompute_ref_log_probs": True}, pair_from="first_change", task="arithmetic")


def test_rows_that_make_no_pair_are_refused_before_the_model_is_loaded(make_rows, run, tmp_path):
    rows = make_rows(2, kinds=("right", "wrong"))
    rows[1]["rewrite"] = None
    Dataset.from_list(rows).save_to_disk(tmp_path / "none")
    with pytest.raises(DatasetError, match="No row makes a pair"):
        refused(run, tmp_path, dataset_name=str(tmp_path / "none"))
    Dataset.from_list(rows).remove_columns("rewrite").save_to_disk(tmp_path / "samples")
    with pytest.raises(DatasetError, match="Column 'rewrite' is missing"):
        refused(run, tmp_path, dataset_name=str(tmp_path / "samples"))
