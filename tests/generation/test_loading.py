"""Models for inference, by path."""

import os

import torch
from trl import ModelConfig

from rlmec_trl.generation.loading import load_model, model_fingerprint


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


def test_a_name_on_the_hub_is_its_own_fingerprint():
    assert model_fingerprint("somebody/some-model") == "somebody/some-model"


def test_a_model_is_loaded_for_inference_in_the_dtype_asked_for(make_policy, tokenizer, tmp_path):
    path = save(make_policy(), tokenizer, tmp_path)
    model, loaded_tokenizer = load_model(ModelConfig(path, dtype="bfloat16"))
    assert not model.training
    assert model.dtype == torch.bfloat16
    assert loaded_tokenizer.get_vocab() == tokenizer.get_vocab()


def test_another_model_can_be_named_beside_the_policy(make_policy, tokenizer, tmp_path):
    policy = save(make_policy(), tokenizer, tmp_path / "policy")
    other = save(make_policy(num_hidden_layers=2), tokenizer, tmp_path / "other")
    model, _ = load_model(ModelConfig(policy), other)
    assert model.config.num_hidden_layers == 2
