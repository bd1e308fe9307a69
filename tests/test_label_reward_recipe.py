"""The recipe that trains reward models on pairs: an adapter and a whole model, which then score completions."""

import json
from pathlib import Path

import pytest

from rlmec_trl.data.tokens import encode_completion
from rlmec_trl.generation.reward_models import SequenceRewardModel


RECIPE = Path(__file__).parents[1] / "recipes" / "train_label_reward.py"
SETTINGS = {
    "dataset_name": "pairs.jsonl",
    "eval_dataset_name": "pairs.jsonl",
    "eval_strategy": "epoch",
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "learning_rate": 0.01,
    "report_to": "none",
    "use_cpu": "true",
    "bf16": "false",
    "gradient_checkpointing": "false",
}
LORA = {"use_peft": "true", "lora_task_type": "SEQ_CLS", "lora_r": 2, "lora_target_modules": "q_proj v_proj"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer, make_pairs):
    from rlmec_trl.tasks import arithmetic

    folder = tmp_path_factory.mktemp("label_reward")
    arithmetic.make_policy(tokenizer, hidden_size=16, num_hidden_layers=1).save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    lines = [json.dumps(pair) + "\n" for pair in make_pairs(8)]
    (folder / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "rationale.jsonl").write_text("".join(lines[1::2]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def train(folder, scripts):
    def train(**settings):
        settings = {"model_name_or_path": "policy", **SETTINGS, **settings}
        words = [word for name, value in settings.items() for word in (f"--{name}", *str(value).split())]
        return scripts.run(RECIPE, *words, cwd=folder)

    return train


@pytest.fixture(scope="module")
def finished(train):
    """An adapter that was trained on label pairs, and a whole model on rationale pairs."""
    finished = {
        "label": train(output_dir="label", kind="label", **LORA),
        "rationale": train(output_dir="rationale", kind="rationale"),
    }
    for name, run in finished.items():
        assert run.exit_code == 0, run.stderr[-3000:]
        assert f"Saved to {name}" in run.stdout
    return finished


@pytest.mark.parametrize("kind", ["label", "rationale"])
def test_what_was_evaluated_in_training_is_what_the_saved_model_gives(
    kind, finished, folder, make_pairs, tokenizer, monkeypatch
):
    monkeypatch.chdir(folder)  # an adapter names its base model as the recipe was given it
    pairs = make_pairs(8)
    log = json.loads((folder / kind / "trainer_state.json").read_text())["log_history"]
    assert [name for name in log[0] if name.startswith("accuracy/")] == [f"accuracy/{kind}"], "the others are left out"
    reward_model = SequenceRewardModel.from_pretrained(str(folder / kind))
    prompts = [pair["prompt"] for pair in pairs]
    chosen, rejected = (
        reward_model.score(prompts, [encode_completion(tokenizer, pair[side]) for pair in pairs])
        for side in ("chosen", "rejected")
    )
    margins = [first - second for first, second in zip(chosen, rejected, strict=True)]
    evaluation = json.loads((folder / kind / "eval_results.json").read_text())
    for name, part in (("", margins), ("/label", margins[::2]), ("/rationale", margins[1::2])):
        assert evaluation[f"eval_margin{name}"] == pytest.approx(sum(part) / len(part), rel=1e-3, abs=1e-5)
        assert evaluation[f"eval_accuracy{name}"] == sum(margin > 0 for margin in part) / len(part)
    assert (folder / kind / "adapter_config.json").exists() == (kind == "label")


def test_a_finished_training_is_not_trained_again_and_other_settings_are_named(finished, train):
    again = train(output_dir="rationale", kind="rationale")
    assert again.exit_code == 0 and "already finished (2 steps)" in again.stdout
    other = train(output_dir="rationale", kind="rationale", loss_type="last_token")
    assert other.exit_code == 1 and "loss_type" in other.stderr and "Traceback" not in other.stderr


def test_what_cannot_work_is_one_message(train):
    for settings, message in (
        ({"use_peft": "true"}, "task type 'CAUSAL_LM'"),
        ({"dataset_name": "rationale.jsonl", "kind": "label"}, "no pair of kind 'label'"),
    ):
        refused = train(output_dir="refused", **settings)
        assert refused.exit_code == 1 and "Traceback" not in refused.stderr, refused.stderr[-2000:]
        assert message in refused.stderr
