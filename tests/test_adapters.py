"""Adapters, quantized models and bfloat16: train, resume, save, merge, and score and sample with the result."""

import importlib.util
import json
import math
import shutil

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import ModelConfig

from rlmec_trl import GenerativeRewardModel, GRMConfig, GRMTrainer, RLMECConfig, RLMECTrainer
from rlmec_trl.data.adapters import adapter_base
from rlmec_trl.data.errors import ConfigError
from rlmec_trl.generation.inference import completion_logps
from rlmec_trl.generation.loading import load_model, model_fingerprint
from rlmec_trl.stages import sample, score
from rlmec_trl.stages.sample import SampleConfig
from rlmec_trl.stages.score import ScoreConfig
from rlmec_trl.tasks.wording import WORDING, Wording


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
# Largest difference of log-probabilities between an adapter and its merged model. In bfloat16 the merged weights are
# rounded to 8 bits: each by up to 2**-9 of itself, in every layer.
MERGED_TOLERANCE = {"float32": 1e-5, "bfloat16": 0.05}


@pytest.fixture
def base(tmp_path, make_policy, tokenizer):
    make_policy(sharpness=10.0).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


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

    # Loaded, it is the model that was trained
    rows = make_rows(8)
    whole.model.eval()
    expected = logps(whole.model, tokenizer, rows)
    loaded, _ = load_model(ModelConfig(adapter, dtype=dtype, **({"load_in_4bit": True} if quantized else {})))
    atol = {"float32": 1e-6, "bfloat16": MERGED_TOLERANCE["bfloat16"]}[dtype]
    print((logps(loaded, tokenizer, rows) - expected).abs().max())
    torch.testing.assert_close(logps(loaded, tokenizer, rows), expected, rtol=0, atol=atol)
    # ... and not its base
    assert (logps(AutoModelForCausalLM.from_pretrained(base), tokenizer, rows) - expected).abs().max() > 0.1

    # Merged, too
    if not quantized:
        merged = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=dtype).merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        tokenizer.save_pretrained(tmp_path / "merged")
        reloaded, _ = load_model(ModelConfig(str(tmp_path / "merged"), dtype=dtype))
        found = logps(reloaded, tokenizer, rows)
        torch.testing.assert_close(found, expected, rtol=0, atol=MERGED_TOLERANCE[dtype])
