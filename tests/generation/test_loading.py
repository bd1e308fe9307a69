"""Models for inference, by path."""

import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from trl import ModelConfig

from rlmec_trl.generation import loading
from rlmec_trl.generation.inference import eos_token_ids
from rlmec_trl.generation.loading import (
    ModelError,
    check_model,
    load_eos_token_ids,
    load_model,
    load_tokenizer,
    model_fingerprint,
)
from rlmec_trl.tasks import arithmetic


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


# --- What cannot be loaded -------------------------------------------------------------------------------------------


def write(name, text):
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def drop_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({name: weights[name] for name in sorted(weights)[:-1]}, folder / "model.safetensors", {"format": "pt"})


def list_a_missing_part(folder):
    weight_map = {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}
    write("model.safetensors.index.json", json.dumps({"weight_map": weight_map}))(folder)


def become_an_adapter(folder):
    write("adapter_config.json", json.dumps({"base_model_name_or_path": str(folder / "base"), "peft_type": "LORA"}))(
        folder
    )


BROKEN = {
    "no config": (remove("config.json"), "holds no model: it has no config.json"),
    "empty config": (write("config.json", ""), "config.json' cannot be read"),
    "list config": (write("config.json", "[1]"), "config.json' is not a JSON object"),
    "unknown architecture": (write("config.json", '{"model_type": "nonesuch"}'), "cannot be loaded .*`nonesuch`"),
    "broken generation config": (write("generation_config.json", "{"), "generation_config.json' cannot be read"),
    "no weights": (remove("model.safetensors"), "holds no weights"),
    "empty weights": (write("model.safetensors", ""), "model.safetensors' is damaged or truncated"),
    "other weights": (write("model.safetensors", "\xff" * 3000), "model.safetensors' is damaged or truncated"),
    "missing part": (
        list_a_missing_part,
        "lacks 'model-00002-of-00002.safetensors', which model.safe",
    ),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), "holds no tokenizer"),
    "half a tokenizer": (write("tokenizer.json", "{"), "tokenizer.json' cannot be read"),
    "strange tokenizer": (write("tokenizer.json", '{"model": 3}'), "The tokenizer of '.*' cannot be loaded"),
    "no base model": (
        become_an_adapter,
        "is an adapter, and its base model cannot be used. There is no",
    ),
    "nameless base model": (write("adapter_config.json", "{}"), "names no base model"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_model_is_named_with_what_is_wrong(kind, make_policy, tokenizer, tmp_path):
    """By what loads it, and by the check that a trainer, which loads its model itself, is preceded by."""
    path = save(make_policy(), tokenizer, tmp_path / "model")
    break_it, message = BROKEN[kind]
    break_it(tmp_path / "model")
    with pytest.raises(ModelError, match=message) as error:
        load_model(ModelConfig(path, dtype="float32"))
    assert path in str(error.value) and "\n" not in str(error.value)
    if kind != "unknown architecture":  # which only the whole configuration tells
        with pytest.raises(ModelError, match=message):
            check_model(path)
    if kind not in ("no tokenizer", "half a tokenizer", "strange tokenizer"):
        return
    with pytest.raises(ModelError, match="okenizer"):
        load_tokenizer(ModelConfig(path))


@settings(max_examples=25)
@given(data=st.data())
def test_weights_that_are_cut_at_any_length_are_named(data, cut_model):
    path, content = cut_model
    length = data.draw(st.integers(0, len(content) - 1))
    (path / "model.safetensors").write_bytes(content[:length])
    for load in (lambda: check_model(str(path), needs_tokenizer=False), lambda: load_model(ModelConfig(str(path)))):
        with pytest.raises(ModelError, match="model.safetensors' is damaged or truncated"):
            load()


@pytest.fixture(scope="module")
def cut_model(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("cut")
    save(arithmetic.make_policy(tokenizer, hidden_size=16, num_hidden_layers=1), tokenizer, path)
    return path, (path / "model.safetensors").read_bytes()


def test_a_model_that_lacks_a_weight_is_refused_instead_of_being_given_a_random_one(make_policy, tokenizer, tmp_path):
    path = save(make_policy(), tokenizer, tmp_path)
    drop_a_weight(tmp_path)
    with pytest.raises(ModelError, match="lacks 1 of its weights, such as 'model"):
        load_model(ModelConfig(path))


def test_a_whole_model_and_a_whole_adapter_pass_the_check(make_policy, tokenizer, tmp_path):
    base = save(make_policy(), tokenizer, tmp_path / "base")
    check_model(base)
    adapter = get_peft_model(make_policy(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapter.peft_config["default"].base_model_name_or_path = base
    adapter.save_pretrained(tmp_path / "adapter")
    check_model(str(tmp_path / "adapter"), needs_tokenizer=False)
    with pytest.raises(ModelError, match="adapter' holds no tokenizer"):
        check_model(str(tmp_path / "adapter"))
    ends = load_eos_token_ids(ModelConfig(str(tmp_path / "adapter")), tokenizer)
    assert ends == load_eos_token_ids(ModelConfig(base), tokenizer)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{}/nowhere", "There is no model '.*nowhere': no such folder exists"),
        ("{}/file", "file' is a file, not a folder"),
        (
            "somebody/some-model",
            "'somebody/some-model' cannot be loaded",
        ),
        ("a b//c", "There is no model 'a b//c'"),
        ("nul\0", "There is no model"),
        ("", "No model is named"),
        (None, "No model is named"),
    ],
    ids=["missing folder", "file", "offline", "no name", "NUL", "empty", "none"],
)
def test_a_model_that_is_nowhere_is_named(name, message, tmp_path):
    (tmp_path / "file").touch()
    name = name and name.format(tmp_path)
    for load in (load_model, load_tokenizer, lambda model_args: check_model(model_args.model_name_or_path)):
        with pytest.raises(ModelError, match=message) as error:
            load(ModelConfig(name))
        assert "\n" not in str(error.value)


def test_running_out_of_memory_is_not_taken_for_a_broken_model(make_policy, tokenizer, tmp_path, monkeypatch):
    path = save(make_policy(), tokenizer, tmp_path)

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(torch.OutOfMemoryError):
        load_model(ModelConfig(path))
