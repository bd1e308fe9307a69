"""`recipes/online_rlmec.py` with its YAML file, on the built-in task and models so small that nothing is learned."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk
from transformers import AutoModelForCausalLM


ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "recipes" / "configs" / "online_rlmec.yaml"


@pytest.fixture
def folder(tmp_path, make_policy, tokenizer, make_rows):
    from rlmec_trl.grm.prompts import save_wording
    from rlmec_trl.tasks import arithmetic

    for name, sharpness in (("policy", 1.0), ("grm", 10.0)):
        make_policy(sharpness=sharpness).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    save_wording(arithmetic.WORDING, tmp_path / "grm")
    arithmetic.make_arithmetic(seed=0, warmup=0, train=8, validation=0, test=0)["train"].save_to_disk(
        tmp_path / "task"
    )
    Dataset.from_list(make_rows(6)).save_to_disk(tmp_path / "scored")
    return tmp_path


def words(folder, **settings):
    shared = {
        "config": CONFIG, "model_name_or_path": folder / "policy", "task": "arithmetic",
        "dataset_name": folder / "task", "output_dir": folder / "out", "max_steps": 2,
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_completion_length": 8,
        "logging_steps": 1, "bf16": False, "use_cpu": True, "gradient_checkpointing": False,
    }  # fmt: skip
    return [str(word) for name, value in (shared | settings).items() for word in (f"--{name}", value)]


def logs(folder):
    state = json.loads((folder / "out" / "trainer_state.json").read_text(encoding="utf-8"))
    return [log for log in state["log_history"] if "loss" in log]


def test_the_recipe_trains_with_its_yaml_file_and_a_reward_model(folder):
    recipe = ROOT / "recipes" / "online_rlmec.py"
    result = subprocess.run(
        [sys.executable, recipe, *words(folder, grm=folder / "grm", imitation_coef=1.0, attempt_coef=0.5)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-3000:]
    assert f"Saved to {folder / 'out'}" in result.stdout
    steps = logs(folder)
    assert len(steps) == 2
    for step in steps:
        assert {"rewards/outcome/mean", "token_reward/grm/mean", "attempt_loss", "imitation_loss"} <= step.keys()


def run_here(words):
    from rlmec_trl.stages.settings import parse_settings

    recipe = importlib.import_module("recipes.online_rlmec")
    recipe.main(*parse_settings(recipe.make_parser(), words))


def test_without_a_reward_model_it_is_grpo(folder):
    run_here(words(folder, token_credit="outcome"))
    assert not any("token_reward" in name or "imitation" in name for name in logs(folder)[0])
    assert "rewards/outcome/mean" in logs(folder)[0]


def test_scored_samples_are_replayed_and_the_outcome_can_be_left_out(folder):
    settings = {"replay_dataset_name": folder / "scored", "imitation_coef": 1.0, "outcome": False}
    run_here(words(folder, **settings, token_credit="none"))
    assert all(step["imitation_loss"] > 0 for step in logs(folder))
    assert "rewards/outcome/mean" not in logs(folder)[0]


def test_a_dataset_without_references_is_refused_with_a_reward_model(folder):
    from rlmec_trl.data.errors import UserError

    load_from_disk(folder / "task").remove_columns("reference").save_to_disk(folder / "bare")
    with pytest.raises(UserError, match="`reference`"):
        run_here(words(folder, grm=folder / "grm", dataset_name=folder / "bare"))


def test_the_reward_model_can_be_on_a_server(folder, tokenizer):
    from tests.fake_openai import FakeServer, score_as, speak_as

    model = AutoModelForCausalLM.from_pretrained(folder / "grm").eval()
    for file in (folder / "grm").glob("*.safetensors"):
        file.unlink()
    with FakeServer(tokenizer, speak_as(model, tokenizer), score_as(model)) as server:
        run_here(words(folder, grm=folder / "grm", imitation_coef=1.0, base_url=server.url))
        scored = [exchange for exchange in server.exchanges if "echo" in exchange.body]
    assert len(scored) == 8 and len(server.exchanges) > len(scored)
    assert all("token_reward/grm/mean" in step for step in logs(folder))


def test_a_server_without_the_name_of_its_reward_model_is_refused(folder):
    from rlmec_trl.data.errors import UserError

    with pytest.raises(UserError, match="name that with `--grm`"):
        run_here(words(folder, base_url="http://localhost:9/v1"))


@pytest.mark.parametrize("in_file", [False, True])
def test_a_quantization_of_the_reward_model_is_given_on_the_command_line_or_in_the_file(in_file, tmp_path):
    wanted = {"quantization_config": {"load_in_4bit": True}}
    words = ["--dataset_name", "rows", "--task", "arithmetic", "--output_dir", str(tmp_path), "--bf16", "false"]
    if in_file:
        (tmp_path / "settings.yaml").write_text(json.dumps({"grm_init_kwargs": wanted}))  # JSON is YAML, too
        words += ["--config", str(tmp_path / "settings.yaml")]
    else:
        words += ["--grm_init_kwargs", json.dumps(wanted)]
    _, training_args, *_ = importlib.import_module("recipes.online_rlmec").make_parser().parse_args_and_config(words)
    assert training_args.grm_init_kwargs == wanted
