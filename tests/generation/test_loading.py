"""Loading models for inference."""

import json
import os

import pytest
import torch
from trl import ModelConfig

from rlmec_trl.generation.inference import eos_token_ids
from rlmec_trl.generation.loading import load_model, load_tokenizer, model_fingerprint


def save(policy, tokenizer, folder):
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_model_retrained_in_the_same_folder_has_another_fingerprint(make_policy, tokenizer, tmp_path):
    path = save(make_policy(), tokenizer, tmp_path)
    before = model_fingerprint(path)
    assert model_fingerprint(path) == before
    weights = tmp_path / "model.safetensors"
    stat = weights.stat()
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert model_fingerprint(path) != before


def test_a_name_on_the_hub_is_its_own_fingerprint():
    assert model_fingerprint("somebody/some-model") == "somebody/some-model"


def test_a_model_is_loaded_for_inference_in_the_requested_dtype(make_policy, tokenizer, tmp_path):
    path = save(make_policy(), tokenizer, tmp_path)
    model, loaded_tokenizer = load_model(ModelConfig(path, dtype="bfloat16"))
    assert not model.training
    assert model.dtype == torch.bfloat16
    assert loaded_tokenizer.get_vocab() == tokenizer.get_vocab()


def test_another_model_than_the_policy_can_be_loaded(make_policy, tokenizer, tmp_path):
    policy = save(make_policy(), tokenizer, tmp_path / "policy")
    other = save(make_policy(num_hidden_layers=2), tokenizer, tmp_path / "other")
    model, _ = load_model(ModelConfig(policy), other)
    assert model.config.num_hidden_layers == 2


# --- The tokenizer alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(
    ("configured", "expected"), [(1, {1}), (5, {1, 5}), ([7, 5], {1, 5, 7}), (None, {1})], ids=str
)
def test_the_eos_ids_are_known_without_loading_the_model(file, configured, expected, make_policy, tokenizer, tmp_path):
    """Old models have no generation config. It is derived from their configuration."""
    assert tokenizer.eos_token_id == 1
    path = save(make_policy(), tokenizer, tmp_path)
    if file == "config.json":
        (tmp_path / "generation_config.json").unlink()
    settings = json.loads((tmp_path / file).read_text(encoding="utf-8"))
    (tmp_path / file).write_text(json.dumps(settings | {"eos_token_id": configured}), encoding="utf-8")
    model, _ = load_model(ModelConfig(path, dtype="float32"))
    # The weights are on a server
    (tmp_path / "model.safetensors").unlink()
    loaded, ends = load_tokenizer(ModelConfig(path))
    assert ends == expected == eos_token_ids(model.generation_config, tokenizer)
    assert loaded.get_vocab() == tokenizer.get_vocab()


def test_a_missing_model_is_not_mistaken_for_one_without_generation_config(tmp_path):
    with pytest.raises(OSError):
        load_tokenizer(ModelConfig(str(tmp_path / "nowhere")))
