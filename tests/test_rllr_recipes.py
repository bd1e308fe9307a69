"""The recipes of RLLR by real launches, on verdicts so small that nothing is learned; and merged adapters."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import ModelConfig

from rlmec_trl import OnlineRLMECConfig, OnlineRLMECTrainer
from rlmec_trl.data.errors import ConfigError, DatasetError, ModelError
from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.tokens import encode_completion
from rlmec_trl.generation.loading import load_weights
from rlmec_trl.generation.reward_models import SequenceRewardModel
from rlmec_trl.grm.prompts import load_wording, save_wording
from rlmec_trl.stages import evaluate_pairs, merge
from rlmec_trl.stages.evaluate_pairs import EvaluatePairsConfig
from rlmec_trl.stages.merge import MergeConfig
from rlmec_trl.stages.output import OutputError
from rlmec_trl.stages.reward_settings import LabelSensitiveRewardConfig, load_reward
from rlmec_trl.tasks import verdicts
from rlmec_trl.tasks.wording import WORDING


RECIPES = Path(__file__).parents[1] / "recipes"
TRAINING = {"max_steps": 1, "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no"}
RL = {**TRAINING, "num_generations": 2, "max_completion_length": 8, "reward_batch_size": 4}
# What makes the shipped pipeline small
SMALL = {
    "task": {
        **{"warmup_size": 40, "train_size": 16, "validation_size": 8, "test_size": 8, "pairs_size": 8},
        **{"hidden_size": 32, "num_hidden_layers": 1},
    },
    "sample": {"num_samples": 1},
    "sft": TRAINING,
    "train_label_reward": TRAINING,
    "rllr": RL,
}
# Enough for the policy to answer: without a correct one of its samples there is no cap, and no pair of rationales
# without one that can be read
WARMUP = {"max_steps": 250, "per_device_train_batch_size": 16, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, scripts):
    """The shipped pipeline, made small, and the folder of its seed."""
    folder = tmp_path_factory.mktemp("rllr")
    settings = yaml.safe_load((RECIPES / "verdicts" / "demo.yaml").read_text(encoding="utf-8"))
    for recipe, changes in SMALL.items():
        settings["defaults"][recipe] |= changes
    for stage in settings["stages"]:
        if stage["name"] == "warmup":
            stage["args"] |= WARMUP
    (folder / "small.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    run = scripts.run(RECIPES / "pipeline.py", "--config", "small.yaml", cwd=folder, environments=[{"COLUMNS": "200"}])
    assert run.exit_code == 0, run.stdout[-2000:] + run.stderr[-3000:]
    return folder / "runs" / "rllr", run.stdout


def test_the_report_has_every_policy_and_reward_model_with_intervals(finished):
    folder, printed = finished
    report = json.loads((folder / "report.json").read_text())
    policies = ["start", "continued_sft", "label_sft", "rlhf", "rllr", "rllr_mixed"]
    assert list(report["accuracy"]) == policies
    for result in report["accuracy"].values():
        assert result["total"] == 8
        for share in (result, result["perfect"], result["correct_and_perfect"]):
            low, high = share["interval"]
            assert low <= share["mean"] == share["correct"] / 8 <= high
        assert result["correct_and_perfect"]["correct"] <= min(result["correct"], result["perfect"]["correct"])
    assert report["accuracy"]["label_sft"]["perfect"]["correct"] == 0, "a label alone has no rationale"
    assert list(report["reward_models"]) == ["rlhf", "rllr"]
    for result in report["reward_models"].values():
        assert {kind: one["total"] for kind, one in result.items()} == {"label": 8, "rationale": 8}
    assert report["seconds"]["rllr_mixed"] > 0
    for words in (*policies, "perfect rationale", "both", "label pairs", "rationale pairs"):
        assert words in printed


def test_the_same_reward_trains_with_grpo(finished, scripts, tmp_path):
    run = finished[0] / "seed-0"
    settings = {
        "model_name_or_path": run / "warmup",
        "dataset_name": run / "task" / "train",
        "label_reward_model": run / "label_reward",
        "quality_reward_model": run / "quality_reward",
        "cap_dataset_name": run / "validation_samples",
        "normalize_reward": "true",
        "beta": 0.04,
        "scale_rewards": "batch",
        **{"use_cpu": "true", "bf16": "false", "gradient_checkpointing": "false", "report_to": "none"},
        **{"use_peft": "true", "lora_r": 2, "lora_target_modules": "q_proj v_proj"},
        **RL,
        "output_dir": "grpo",
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", *str(value).split())]
    for printed in ("The label score is capped at", "already finished (1 steps)"):
        grpo = scripts.run(RECIPES / "rllr_grpo.py", *words, cwd=tmp_path)
        assert grpo.exit_code == 0, grpo.stderr[-3000:]
        assert printed in grpo.stdout
    (log,) = [
        entry
        for entry in json.loads((tmp_path / "grpo" / "trainer_state.json").read_text())["log_history"]
        if "rllr_mixed/label" in entry
    ]
    assert log["kl"] == 0, "the first step is that of the reference"
    merged = scripts.run(
        *(RECIPES / "merge.py", "--model_name_or_path", "grpo", "--output_dir", "merged"), cwd=tmp_path
    )
    assert merged.exit_code == 0, merged.stderr[-3000:]
    assert not list((tmp_path / "merged").glob("adapter*"))


def test_the_online_trainer_takes_the_same_reward(finished, tmp_path):
    run = finished[0] / "seed-0"
    policy = ModelConfig(str(run / "warmup"), dtype="float32")
    config = LabelSensitiveRewardConfig(reward="rlhf", quality_reward_model=str(run / "quality_reward"))
    reward_func, _ = load_reward(config, policy)
    settings = {"num_generations": 2, "per_device_train_batch_size": 4, "max_completion_length": 8, "max_steps": 1}
    settings |= {"logging_steps": 1, "save_strategy": "no", "bf16": False, "use_cpu": True, "report_to": "none"}
    trainer = OnlineRLMECTrainer(
        model=policy.model_name_or_path,
        reward_funcs=reward_func,
        args=OnlineRLMECConfig(str(tmp_path), gradient_checkpointing=False, beta=0.04, **settings),
        train_dataset=load_rows(str(run / "task" / "train")),
    )
    trainer.train()
    assert "rewards/rlhf/mean" in trainer.state.log_history[0]


def test_a_cap_that_is_a_number_needs_no_validation_and_other_rewards_no_cap(finished):
    run = finished[0] / "seed-0"
    label, quality = str(run / "label_reward"), str(run / "quality_reward")
    policy = ModelConfig(str(run / "warmup"), dtype="float32")
    prompts = ["Review : the plot is great . Verdict :"] * 2
    ids = [[5, 6, 1], [7, 1]]

    def rewards(**settings):
        reward_func, depends_on = load_reward(LabelSensitiveRewardConfig(**settings), policy)
        assert depends_on["reward"] == settings["reward"]
        return torch.tensor(reward_func(prompts=prompts, completions=["", ""], completion_ids=ids))

    rlhf = rewards(reward="rlhf", quality_reward_model=quality)
    rllr = rewards(reward="rllr", label_reward_model=label)
    both = {"label_reward_model": label, "quality_reward_model": quality}
    cap = rllr.mean().item()
    mixed = rewards(reward="rllr_mixed", label_cap=cap, **both)
    torch.testing.assert_close(mixed, rllr.clamp(max=cap) + rlhf)
    # Without its task, a reward model scores responses that state no label too
    floored = rewards(reward="rllr", label_reward_model=label, task="verdicts")
    torch.testing.assert_close(floored, rllr.min().expand(2))
    # One reward model for both, trained on both kinds of pairs
    alone = rewards(reward="rllr_mixed", label_cap=cap, label_reward_model=label, quality_reward_model=label)
    torch.testing.assert_close(alone, rllr.clamp(max=cap) + rllr)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward": "rlhf"}, "needs `--quality_reward_model`"),
        ({"reward": "rllr"}, "needs `--label_reward_model`"),
        ({"label_reward_model": "l"}, "needs `--quality_reward_model`"),
        ({"label_reward_model": "l", "quality_reward_model": "q"}, "either a number as `--label_cap`"),
        ({"reward": "ppo"}, "`reward` must be one of"),
        ({"reward": "rlhf", "quality_reward_model": "q", "reward_batch_size": 0}, "`reward_batch_size` must be"),
    ],
)
def test_rewards_without_what_they_need_are_refused_when_parsed(settings, message):
    with pytest.raises(ConfigError, match=message):
        LabelSensitiveRewardConfig(**settings)


def test_each_reward_model_is_loaded_at_its_revision(monkeypatch):
    asked = []

    class Loaded:
        processing_class = verdicts.make_tokenizer()

        @classmethod
        def from_pretrained(cls, name, revision, trust_remote_code, **kwargs):
            asked.append((name, revision, trust_remote_code, kwargs["beside"]))
            return cls()

    settings = "rlmec_trl.stages.reward_settings."
    monkeypatch.setattr(f"{settings}SequenceRewardModel", Loaded)
    monkeypatch.setattr(f"{settings}load_tokenizer", lambda *args: Loaded.processing_class)
    monkeypatch.setattr(f"{settings}named_model", lambda *args: args)
    names = {name: "me/reward" for name in ("label_reward_model", "quality_reward_model")}
    for revision, num_models in (("v1", 2), ("main", 1)):
        config = LabelSensitiveRewardConfig(label_cap=1.0, label_reward_model_revision=revision, **names)
        asked.clear()
        _, depends_on = load_reward(config, ModelConfig("me/policy"), trust_remote_code=True)
        assert [each[:3] for each in asked] == [("me/reward", each, True) for each in (revision, "main")][:num_models]
        assert depends_on["label reward model"] == ("me/reward", revision)
        assert depends_on["quality reward model"] == ("me/reward", "main")


def test_a_reward_model_of_another_tokenizer_is_refused(finished, make_reward_model, tokenizer, tmp_path):
    make_reward_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = LabelSensitiveRewardConfig(reward="rllr", label_reward_model=str(tmp_path))
    with pytest.raises(ConfigError, match="label reward model .* has another tokenizer"):
        load_reward(config, ModelConfig(str(finished[0] / "seed-0" / "warmup")))


# --- Reward models on pairs ------------------------------------------------------------------------------------------


def test_pairs_are_counted_by_kind_and_ties_are_not_correct(make_reward_model, tokenizer, make_pairs, tmp_path):
    make_reward_model().save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    pairs = make_pairs(6)
    pairs[0]["rejected"] = pairs[0]["chosen"]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    config = EvaluatePairsConfig([str(tmp_path / "pairs.jsonl")] * 2, output_file=str(tmp_path / "result.json"))
    result = evaluate_pairs.run(config, ModelConfig(str(tmp_path / "reward"), dtype="float32"))
    reward_model = SequenceRewardModel.from_pretrained(str(tmp_path / "reward"))
    chosen, rejected = (
        reward_model.score(
            [pair["prompt"] for pair in pairs], [encode_completion(tokenizer, pair[side]) for pair in pairs]
        )
        for side in ("chosen", "rejected")
    )
    better = [first > second for first, second in zip(chosen, rejected, strict=True)]
    assert not better[0]
    saved = json.loads((tmp_path / "result.json").read_text())["pairs"]
    for kind, expected in (("label", better[::2]), ("rationale", better[1::2])):
        assert (result[kind].correct, result[kind].total) == (2 * sum(expected), 6)
        assert saved[kind]["correct"] == 2 * sum(expected) and saved[kind]["interval"] == list(result[kind].interval)
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    with pytest.raises(OutputError):
        evaluate_pairs.run(EvaluatePairsConfig(["pairs.jsonl"], str(tmp_path / "notes.json")), ModelConfig("reward"))


def test_two_processes_count_each_pair_once_and_merge_once(
    make_reward_model, tokenizer, make_pairs, run_on_two, tmp_path
):
    base = str(tmp_path / "base")
    make_reward_model().save_pretrained(base)
    tokenizer.save_pretrained(base)
    adapter, merged, result = (tmp_path / name for name in ("adapter", "merged", "result.json"))
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    save_adapter(model, adapter, tokenizer, "SEQ_CLS")
    run_on_two(RECIPES / "merge.py", "--model_name_or_path", str(adapter), "--output_dir", str(merged))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in make_pairs(7)), encoding="utf-8")
    names = ["--model_name_or_path", str(merged), "--dtype", "float32", "--dataset_names", str(pairs)]
    run_on_two(RECIPES / "evaluate_pairs.py", *names, "--output_file", str(result))
    alone = evaluate_pairs.run(EvaluatePairsConfig([str(pairs)]), ModelConfig(str(merged), dtype="float32"))
    saved = json.loads(result.read_text())["pairs"]
    assert {kind: (one["correct"], one["total"]) for kind, one in saved.items()} == {
        kind: (one.correct, one.total) for kind, one in alone.items()
    }
    assert saved["label"]["total"] == 4


def test_pairs_that_cannot_be_meant_are_refused_and_named(make_reward_model, tokenizer, make_pairs, tmp_path):
    with pytest.raises(ConfigError, match="`dataset_names` is empty"):
        EvaluatePairsConfig([])
    with pytest.raises(ConfigError, match="leave `--load_in_4bit`"):
        evaluate_pairs.run(EvaluatePairsConfig(["pairs.jsonl"]), ModelConfig("reward", load_in_4bit=True))
    (good,) = make_pairs(1)
    names = [str(tmp_path / f"{name}.jsonl") for name in ("good", "odd")]
    for name, row in zip(names, (good, good | {"rejected": " "}), strict=True):
        Path(name).write_text(json.dumps(row) + "\n")
    with pytest.raises(DatasetError, match=r"Row 0, column 'rejected': .* \(In '.*odd.jsonl'.\)"):
        evaluate_pairs.run(EvaluatePairsConfig(names), ModelConfig("reward"))
    model = make_reward_model()
    model.score.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(ModelError, match="The reward model '.*broken' gives completion 0 the score nan"):
        evaluate_pairs.run(EvaluatePairsConfig(names[:1]), ModelConfig(str(tmp_path / "broken"), dtype="float32"))


def test_a_sample_for_the_cap_with_ids_of_another_vocabulary_is_named(make_reward_model, tokenizer, tmp_path):
    for name in ("policy", "reward"):
        make_reward_model().save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    row = {"prompt": "1 + 2 =", "completion_ids": [5, 1], "correct": True}
    rows = [row | {"correct": False}, row, row | {"completion_ids": [5, 1_000_000]}]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reward = str(tmp_path / "reward")
    config = LabelSensitiveRewardConfig(
        label_reward_model=reward, quality_reward_model=reward, cap_dataset_name=str(tmp_path / "samples.jsonl")
    )
    with pytest.raises(
        DatasetError, match=r"Row 2, column 'completion_ids': .* id 1000000, .* \(In '.*samples.jsonl'"
    ):
        load_reward(config, ModelConfig(str(tmp_path / "policy")))


# --- Merging ---------------------------------------------------------------------------------------------------------


def save_adapter(base, folder, tokenizer, task_type="CAUSAL_LM", **settings):
    torch.manual_seed(0)
    adapted = get_peft_model(base, LoraConfig(task_type=task_type, r=2, init_lora_weights=False, **settings))
    if task_type == "SEQ_CLS":
        adapted.score.modules_to_save["default"].weight.data.normal_()
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_a_merged_policy_gives_the_logits_of_its_adapter_and_keeps_the_wording_of_a_grm(tmp_path):
    tokenizer = verdicts.make_tokenizer()
    base = verdicts.make_policy(tokenizer, hidden_size=16, num_hidden_layers=1)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    adapter = str(tmp_path / "adapter")
    save_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), adapter, tokenizer)
    save_wording(WORDING, adapter)
    merged = tmp_path / "merged"
    merge.run(MergeConfig(str(merged)), ModelConfig(adapter, dtype="float32"))
    ids = torch.arange(3, 13).unsqueeze(0)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), adapter)
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(merged)(ids).logits
        torch.testing.assert_close(found, adapted(ids).logits)
        assert not torch.allclose(found, base(ids).logits, atol=1e-2), "the adapter does something"
    assert not list(merged.glob("adapter*")) and (merged / "tokenizer.json").is_file()
    assert load_wording(str(merged)) == WORDING


def test_a_merged_reward_model_keeps_the_head_that_was_trained(make_reward_model, tokenizer, tmp_path):
    base, adapter, merged = (str(tmp_path / name) for name in ("base", "adapter", "merged"))
    make_reward_model().save_pretrained(base)
    tokenizer.save_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    save_adapter(model, adapter, tokenizer, "SEQ_CLS")
    merge.run(MergeConfig(merged), ModelConfig(adapter, dtype="float32"))
    rows = [["1 + 2 ="], [[4, 5, 6, 1]]]
    scores = [SequenceRewardModel.from_pretrained(name).score(*rows) for name in (adapter, merged, base)]
    assert scores[1] == pytest.approx(scores[0], rel=1e-4, abs=1e-4)
    assert abs(scores[1][0] - scores[2][0]) > 1e-2, "neither adapter nor head is lost"


def name_base(adapter, base):
    settings = Path(adapter) / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": str(base)}))


def test_an_adapter_of_a_reward_model_is_merged_as_one_even_if_it_names_no_task(
    make_reward_model, tokenizer, tmp_path
):
    base, adapter, merged = (str(tmp_path / name) for name in ("base", "adapter", "merged"))
    make_reward_model().save_pretrained(base)
    tokenizer.save_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    save_adapter(model, adapter, tokenizer, None, target_modules=["q_proj"])
    merge.run(MergeConfig(merged), ModelConfig(adapter, dtype="float32"))
    rows = [["1 + 2 ="], [[4, 5, 6, 1]]]
    scores = [SequenceRewardModel.from_pretrained(name).score(*rows) for name in (adapter, merged)]
    assert scores[1] == pytest.approx(scores[0], rel=1e-4, abs=1e-4)


def test_a_merge_never_replaces_the_base_model(tokenizer, make_policy, tmp_path):
    make_policy().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    save_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "first", tokenizer)
    merged = tmp_path / "merged"
    merge.run(MergeConfig(str(merged)), ModelConfig(str(tmp_path / "first")))
    save_adapter(AutoModelForCausalLM.from_pretrained(merged), tmp_path / "second", tokenizer)
    before = (merged / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="holds '.*merged', of which the merged model is made"):
        merge.run(MergeConfig(str(merged)), ModelConfig(str(tmp_path / "second")))
    assert (merged / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(("trained_on", "named"), [(1, 2), (2, 1)])
def test_an_adapter_of_a_model_with_other_layers_is_refused(trained_on, named, tokenizer, make_policy, tmp_path):
    for number in (1, 2):
        make_policy(num_hidden_layers=number).save_pretrained(tmp_path / str(number))
        tokenizer.save_pretrained(tmp_path / str(number))
    adapter = tmp_path / "adapter"
    save_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / str(trained_on)), adapter, tokenizer)
    name_base(adapter, tmp_path / str(named))
    with pytest.raises(
        ModelError, match=rf"adapter' was not trained on '.*{named}'.* alone has 'base_model.*layers.1"
    ):
        merge.run(MergeConfig(str(tmp_path / "merged")), ModelConfig(str(adapter)))
    with pytest.raises(ModelError, match=r"layers.1.self_attn"):
        load_weights(str(adapter))
    for base, message in ((adapter, "names itself as its base model"), ("no model", "its base model cannot be used")):
        name_base(adapter, base)
        with pytest.raises(ModelError, match=message):
            merge.run(MergeConfig(str(tmp_path / "merged")), ModelConfig(str(adapter)))
    save_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "1"), tmp_path / "below", tokenizer)
    name_base(adapter, tmp_path / "below")
    with pytest.raises(ConfigError, match="an adapter of '.*below', which is an adapter itself. Merge that one first"):
        merge.run(MergeConfig(str(tmp_path / "merged")), ModelConfig(str(adapter)))
    assert not (tmp_path / "merged").exists()


def test_a_merge_is_done_once_and_refuses_what_it_cannot_replace_or_merge(tokenizer, make_policy, tmp_path, capfd):
    make_policy().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    adapter, merged = str(tmp_path / "adapter"), tmp_path / "merged"
    save_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), adapter, tokenizer)
    merge.run(MergeConfig(str(merged)), ModelConfig(adapter))
    before = (merged / "model.safetensors").stat().st_mtime_ns
    merge.run(MergeConfig(str(merged)), ModelConfig(adapter))
    assert (merged / "model.safetensors").stat().st_mtime_ns == before
    assert "already holds this merged model" in capfd.readouterr().out
    with pytest.raises(ConfigError, match="is a whole model, not an adapter"):
        merge.run(MergeConfig(str(tmp_path / "again")), ModelConfig(str(tmp_path / "base")))
    with pytest.raises(OutputError):
        merge.run(MergeConfig(adapter), ModelConfig(adapter))
    with pytest.raises(ConfigError, match="are not for merging, which would round the weights"):
        merge.run(MergeConfig(str(tmp_path / "again")), ModelConfig(adapter, load_in_4bit=True))
    (merged / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        merge.run(MergeConfig(str(merged)), ModelConfig(adapter, dtype="bfloat16"))
