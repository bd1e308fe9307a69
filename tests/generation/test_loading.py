"""Models for inference, by path."""

import json
import os

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl import ModelConfig

from rlmec_trl.generation.inference import eos_token_ids
from rlmec_trl.generation.loading import (
    ModelError,
    load_eos_token_ids,
    load_model,
    load_tokenizer,
    model_fingerprint,
)


def save(policy, tokenizer, folder):
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_model_that_was_trained_again_in_the_same_folder_is_another(make_policy, tokenizer, tmp_path):
    path = save(make_policy(), tokenizer, tmp_path)
    before = model_fingerprint(path)
    assert model_fingerprint(path) == before
    weights = tmp_path / "model.safetensors"
    stat = weights.stat()
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert model_fingerprint(path) != before


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf", "generation_config.json", "tokenizer.json"])
def test_every_file_that_decides_what_a_model_answers_counts(make_policy, tokenizer, tmp_path, name):
    path = save(make_policy(), tokenizer, tmp_path)
    before = model_fingerprint(path)
    (tmp_path / name).write_text('{"eos_token_id": 7}')
    assert model_fingerprint(path) != before


def test_a_model_that_was_moved_is_the_same(make_policy, tokenizer, tmp_path):
    path = save(make_policy(), tokenizer, tmp_path / "here")
    before = model_fingerprint(path)
    (tmp_path / "here").rename(tmp_path / "there")
    assert model_fingerprint(str(tmp_path / "there")) == before


def test_a_name_on_the_hub_is_its_own_fingerprint():
    assert model_fingerprint("somebody/some-model") == "somebody/some-model@main"
    assert model_fingerprint("somebody/some-model", "v2") == "somebody/some-model@v2"


def test_an_adapter_is_another_model_where_its_base_model_is(make_policy, tokenizer, tmp_path):
    base = save(make_policy(), tokenizer, tmp_path / "base")
    adapter = get_peft_model(make_policy(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapter.peft_config["default"].base_model_name_or_path = base
    adapter.save_pretrained(tmp_path / "adapter")
    before = model_fingerprint(str(tmp_path / "adapter"))
    os.utime(tmp_path / "base" / "model.safetensors", ns=(1, 1))
    assert model_fingerprint(str(tmp_path / "adapter")) != before


def test_a_model_is_loaded_for_inference_in_the_dtype_asked_for(make_policy, tokenizer, tmp_path):
    path = save(make_policy(), tokenizer, tmp_path)
    model, loaded_tokenizer = load_model(ModelConfig(path, dtype="bfloat16"))
    assert not model.training
    assert model.dtype == torch.bfloat16
    assert loaded_tokenizer.get_vocab() == tokenizer.get_vocab()


# --- The tokenizer alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(
    ("configured", "expected"), [(1, {1}), (5, {1, 5}), ([7, 5], {1, 5, 7}), (None, {1})], ids=str
)
def test_the_ends_of_a_model_that_is_not_loaded_are_those_it_would_have(
    file, configured, expected, make_policy, tokenizer, tmp_path
):
    """Old models have no generation config: theirs is made of their configuration."""
    assert tokenizer.eos_token_id == 1
    path = save(make_policy(), tokenizer, tmp_path)
    if file == "config.json":
        (tmp_path / "generation_config.json").unlink()
    settings = json.loads((tmp_path / file).read_text(encoding="utf-8"))
    (tmp_path / file).write_text(json.dumps(settings | {"eos_token_id": configured}), encoding="utf-8")
    model, _ = load_model(ModelConfig(path, dtype="float32"))
    # The weights are behind a server
    (tmp_path / "model.safetensors").unlink()
    loaded = load_tokenizer(ModelConfig(path))
    ends = load_eos_token_ids(ModelConfig(path), loaded)
    assert ends == expected == eos_token_ids(model.generation_config, tokenizer)
    assert loaded.get_vocab() == tokenizer.get_vocab()


def test_a_tokenizer_that_is_nowhere_is_no_model_without_generation_config(tmp_path):
    with pytest.raises(ModelError, match="There is no model '.*nowhere': no such folder exists"):
        load_tokenizer(ModelConfig(str(tmp_path / "nowhere")))
