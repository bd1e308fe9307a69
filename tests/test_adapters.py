"""Adapters, quantized models and bfloat16: train, resume, save, merge, and score and sample with the result."""

import hashlib
import importlib.util
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import ModelConfig

from rlmec_trl import GenerativeRewardModel, GRMConfig, GRMTrainer, RLMECConfig, RLMECTrainer
from rlmec_trl.data.adapters import adapter_base
from rlmec_trl.data.errors import ConfigError
from rlmec_trl.generation.inference import completion_logps, generate_ids
from rlmec_trl.generation.loading import load_eos_token_ids, load_model, model_fingerprint
from rlmec_trl.grm.prompts import WORDING_FILE, save_wording
from rlmec_trl.stages import score
from rlmec_trl.stages.score import ScoreConfig
from rlmec_trl.tasks.arithmetic import make_policy
from rlmec_trl.tasks.wording import WORDING


quantization = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra `quantization`)"
)
TRAINERS = {"rlmec": (RLMECTrainer, RLMECConfig), "grm": (GRMTrainer, GRMConfig)}
ALL_LINEAR = {"target_modules": "all-linear"}
KINDS = [
    pytest.param({}, ALL_LINEAR, id="lora"),
    pytest.param({}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, id="modules_to_save"),
    pytest.param({"dtype": "bfloat16"}, ALL_LINEAR, id="bfloat16"),
    pytest.param({"load_in_4bit": True}, ALL_LINEAR, id="qlora", marks=quantization),
]
# Largest difference of log-probabilities between two ways to compute the same model. bfloat16 has 8 significant bits,
# so logits of about 10 are rounded by up to 0.02, and what differs is the order of sums and whether an adapter is kept
# in float32 (training), in bfloat16 (loading) or added to rounded weights (merging).
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.1}


@pytest.fixture
def make_trainer(base, make_rows, tokenizer, tmp_path):
    def make(name, lora, output_dir="run", model=None, quantized=False, **config):
        trainer_class, config_class = TRAINERS[name]
        config = {
            "output_dir": str(tmp_path / output_dir),
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "save_steps": 2,
            "save_strategy": "steps",
            "learning_rate": 3e-2,
            "logging_steps": 1,
            "bf16": False,
            "use_cpu": True,
            "gradient_checkpointing": False,
            "report_to": "none",
            "disable_tqdm": True,
            **config,
        }
        extra = {"wording": WORDING} if name == "grm" else {}
        return trainer_class(
            model=base if model is None else model,
            args=config_class(**config),
            train_dataset=Dataset.from_list(make_rows(12)),
            processing_class=tokenizer,
            quantization_config=four_bits() if quantized else None,
            peft_config=None if lora is None else LoraConfig(r=4, **lora),
            **extra,
        )

    return make


def four_bits():
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def logps(model, tokenizer, rows):
    prompt_ids = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    rows = completion_logps(model, tokenizer, prompt_ids, [row["completion_ids"] for row in rows])
    return torch.tensor([logp for row in rows for logp in row])


@pytest.mark.parametrize(("model_settings", "lora"), KINDS)
@pytest.mark.parametrize("name", TRAINERS)
def test_an_adapter_is_trained_resumed_saved_loaded_and_merged(
    name, model_settings, lora, base, make_trainer, make_rows, tokenizer, tmp_path
):
    quantized = model_settings.get("load_in_4bit", False)
    dtype = model_settings.get("dtype", "float32")
    settings = {"quantized": quantized, "model_init_kwargs": {"dtype": dtype}}
    whole = make_trainer(name, lora, **settings)
    start = {key: value.detach().clone() for key, value in whole.model.named_parameters()}
    whole.train()
    for key, value in whole.model.named_parameters():
        assert torch.equal(value, start[key]) != value.requires_grad, key
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert len(losses) == 4 and all(map(math.isfinite, losses))

    # Resuming gives the same weights
    resumed = make_trainer(name, lora, output_dir="resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    torch.testing.assert_close(dict(resumed.model.named_parameters()), dict(whole.model.named_parameters()))

    # The adapter alone is saved, with what belongs to it
    adapter = str(tmp_path / "adapter")
    whole.save_model(adapter)
    files = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= files
    assert "model.safetensors" not in files and ("grm_wording.json" in files) == (name == "grm")
    assert adapter_base(adapter) == (base, "main")

    # Loaded, it is the model that was trained, and not its base
    rows = make_rows(8)
    whole.model.eval()
    expected = logps(whole.model, tokenizer, rows)
    model_args = ModelConfig(adapter, dtype=dtype, load_in_4bit=quantized)
    loaded = logps(load_model(model_args)[0], tokenizer, rows)
    # TRL trains the adapter of a quantized model in bfloat16
    atol = TOLERANCE["bfloat16" if quantized else dtype]
    torch.testing.assert_close(loaded, expected, rtol=0, atol=atol)
    assert (logps(AutoModelForCausalLM.from_pretrained(base), tokenizer, rows) - expected).abs().max() > 5 * atol

    # Merged, it is the adapter on the base model that it is merged into, which is not quantized
    AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=dtype).merge_and_unload().save_pretrained(
        tmp_path / "merged"
    )
    tokenizer.save_pretrained(tmp_path / "merged")
    unmerged, merged = (
        logps(load_model(ModelConfig(str(name), dtype=dtype))[0], tokenizer, rows)
        for name in (adapter, tmp_path / "merged")
    )
    torch.testing.assert_close(merged, unmerged, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", TRAINERS)
def test_the_loss_of_a_bfloat16_model_with_an_adapter_is_computed_in_float32(name, make_trainer):
    trainer = make_trainer(name, ALL_LINEAR, model_init_kwargs={"dtype": "bfloat16"})
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    assert trainer.model.get_base_model().dtype == torch.bfloat16 and loss.dtype == torch.float32
    assert loss.item() != loss.bfloat16().item()


def make_adapter(base, folder, tokenizer, wording=None, name_of_base=None, seed=0, **lora):
    """An adapter with large weights, as a trainer saves it."""
    torch.manual_seed(seed)
    lora = {"target_modules": "all-linear"} | lora
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, init_lora_weights=False, **lora)
    )
    model.peft_config["default"].base_model_name_or_path = name_of_base or base
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if wording is not None:
        save_wording(wording, folder)
    return str(folder)


@pytest.fixture
def samples(make_rows):
    columns = ("prompt", "reference", "answer", "completion", "completion_ids", "correct")
    return Dataset.from_list([{name: row[name] for name in columns} for row in make_rows(6)])


def test_scoring_with_adapters_is_scoring_with_the_merged_models(base, samples, tokenizer, tmp_path):
    """The policy and the reward model are adapters on the same base model."""
    names = {"policy": make_adapter(base, tmp_path / "policy", tokenizer, seed=1)}
    names["grm"] = make_adapter(base, tmp_path / "grm", tokenizer, WORDING, seed=2)
    scored = {}
    for kind in ("adapters", "merged"):
        if kind == "merged":
            for name, adapter in names.items():
                names[name] = str(tmp_path / f"merged_{name}")
                model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
                model.merge_and_unload().save_pretrained(names[name])
                tokenizer.save_pretrained(names[name])
            save_wording(WORDING, names["grm"])
        config = ScoreConfig(grm=names["grm"], task="arithmetic", rewrite_max_new_tokens=4)
        scored[kind] = score.run(config, samples, tmp_path / kind, ModelConfig(names["policy"]))
    for column in ("token_probs", "old_logps"):
        for found, expected in zip(scored["adapters"][column], scored["merged"][column], strict=True):
            assert found == pytest.approx(expected, abs=TOLERANCE["float32"]), column
    own = score.run(config, samples, tmp_path / "base_scored", ModelConfig(base))
    assert own["old_logps"][0] != pytest.approx(scored["merged"]["old_logps"][0], abs=0.1)
    assert own["token_probs"][0] == pytest.approx(scored["merged"]["token_probs"][0], abs=TOLERANCE["float32"])


def test_generating_with_an_adapter_is_generating_with_the_merged_model(base, samples, tokenizer, tmp_path):
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer)
    prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in samples["prompt"]]
    models = {
        "adapter": load_model(ModelConfig(adapter))[0],
        "merged": AutoPeftModelForCausalLM.from_pretrained(adapter).merge_and_unload(),
        "base": load_model(ModelConfig(base))[0],
    }
    completions = {name: generate_ids(model, tokenizer, prompt_ids, 8) for name, model in models.items()}
    assert completions["adapter"] == completions["merged"] != completions["base"]


@pytest.mark.parametrize("name_or_path", ["adapter", "base"])
def test_the_ids_that_end_a_completion_are_those_of_the_base_model(name_or_path, base, tokenizer, tmp_path):
    model, _ = load_model(ModelConfig(base))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 7]
    model.save_pretrained(base)
    make_adapter(base, tmp_path / "adapter", tokenizer)
    model_args = ModelConfig(str(tmp_path / name_or_path))
    assert load_eos_token_ids(model_args, tokenizer) == {tokenizer.eos_token_id, 7}


@pytest.mark.parametrize("name", TRAINERS)
def test_an_adapter_is_refused_as_the_model_to_train(name, base, tokenizer, make_trainer, tmp_path):
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer)
    with pytest.raises(ConfigError, match="is an adapter of .*base.* Merge it first"):
        make_trainer(name, None, model=adapter)
    # As a model in memory, it is trained on
    model = AutoPeftModelForCausalLM.from_pretrained(adapter, is_trainable=True)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    trainer = make_trainer(name, None, model=model, max_steps=1)
    trainer.train()
    moved = {key for key, value in trainer.model.named_parameters() if not torch.equal(value, before[key])}
    assert moved and all("lora" in key for key in moved)


def test_an_adapter_on_the_lm_head_is_not_scored_without_it(base, tokenizer, make_rows, tmp_path):
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer, target_modules=["lm_head"])
    with pytest.raises(ConfigError, match="LM head.*Merge"):
        logps(load_model(ModelConfig(adapter))[0], tokenizer, make_rows(2))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Put folders into the Hub's cache, as if they had been downloaded: `hub(repository, revision=folder, ...)`."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))

    def put(repository, **revisions):
        folder = cache / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        for revision, source in revisions.items():
            commit = hashlib.sha1(f"{repository} {revision}".encode()).hexdigest()
            (folder / "refs" / revision).write_text(commit)
            shutil.copytree(source, folder / "snapshots" / commit)
            missing = folder / ".no_exist" / commit
            missing.mkdir(parents=True)
            for name in ("config.json", "generation_config.json", "adapter_config.json", WORDING_FILE):
                if not Path(source, name).exists():
                    (missing / name).touch()

    return put


OTHER_WORDING = replace(WORDING, locate="Where? " + WORDING.locate)


def test_a_reward_model_on_the_hub_is_an_adapter_with_a_revision(base, samples, tokenizer, hub, tmp_path):
    """The base model is read at its own revision, not at that of the adapter."""
    folders = {
        revision: make_adapter(base, tmp_path / revision, tokenizer, wording, "me/base", seed)
        for seed, (revision, wording) in enumerate({"main": WORDING, "v2": OTHER_WORDING}.items())
    }
    hub("me/base", main=base)
    hub("me/grm", **folders)
    columns = [samples[name][:] for name in ("prompt", "reference", "completion", "completion_ids")]
    scores = {}
    for revision, wording in (("main", WORDING), ("v2", OTHER_WORDING)):
        grm = GenerativeRewardModel.from_pretrained("me/grm", revision, show_progress=False)
        assert grm.wording == wording
        scores[revision] = grm.score(*columns)
        local = GenerativeRewardModel.from_pretrained(folders[revision], show_progress=False)
        assert local.score(*columns) == scores[revision]
    assert scores["main"] != scores["v2"]

    config = ScoreConfig(grm="me/grm", grm_revision="v2", task="arithmetic", rewrite_max_new_tokens=4)
    scored = score.run(config, samples, tmp_path / "scored", ModelConfig("me/base"))
    for found, expected in zip(scored["token_probs"], scores["v2"], strict=True):
        assert found == pytest.approx(expected, abs=TOLERANCE["float32"])


def test_a_merged_reward_model_on_the_hub_with_a_revision(base, samples, tokenizer, hub, tmp_path):
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer)
    model = AutoPeftModelForCausalLM.from_pretrained(adapter).merge_and_unload()
    model.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    save_wording(OTHER_WORDING, tmp_path / "merged")
    hub("me/grm", main=base, v2=tmp_path / "merged")
    grm = GenerativeRewardModel.from_pretrained("me/grm", "v2", show_progress=False)
    assert grm.wording == OTHER_WORDING
    torch.testing.assert_close(grm.model.state_dict(), model.state_dict())


def test_the_fingerprint_of_an_adapter_on_the_hub_changes_with_its_commit_and_its_base(base, tokenizer, hub, tmp_path):
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer, name_of_base="me/base")
    hub("me/base", main=base)
    hub("me/adapter", main=adapter, v2=adapter)
    commits = {path.parent.parent.name: path.read_text() for path in tmp_path.glob("cache/*/refs/main")}
    own, of_base = model_fingerprint("me/adapter").split(" ")
    assert own == f"me/adapter@{commits['models--me--adapter']}"
    assert of_base == model_fingerprint("me/base") == f"me/base@{commits['models--me--base']}"
    assert model_fingerprint("me/adapter", "v2") not in (f"{own} {of_base}", f"me/adapter@v2 {of_base}")


@pytest.mark.parametrize("name", TRAINERS)
def test_an_adapter_says_which_revision_of_its_base_it_was_trained_on(
    name, base, make_trainer, make_rows, tokenizer, hub, tmp_path
):
    other = make_policy(tokenizer, seed=1, hidden_size=64, num_hidden_layers=1)
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    hub("me/base", main=base, v2=tmp_path / "other")
    trainer = make_trainer(name, ALL_LINEAR, model="me/base", model_init_kwargs={"revision": "v2"}, max_steps=1)
    trainer.save_model(str(tmp_path / "adapter"))
    assert adapter_base(str(tmp_path / "adapter")) == ("me/base", "v2")
    trainer.model.eval()
    rows = make_rows(2)
    loaded, _ = load_model(ModelConfig(str(tmp_path / "adapter"), dtype="float32"))
    torch.testing.assert_close(logps(loaded, tokenizer, rows), logps(trainer.model, tokenizer, rows))
