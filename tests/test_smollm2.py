"""A GGUF model becomes a folder that recipes can start from. The real file is no part of the tests."""

import importlib
import os

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from rlmec_trl.data.errors import ConfigError
from rlmec_trl.stages.output import OutputError


@pytest.fixture
def convert(monkeypatch, policy, tokenizer, tmp_path):
    """Convert a file; what Transformers reads from it is `model`."""
    recipe = importlib.import_module("recipes.smollm2.convert")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.gguf").write_bytes(b"GGUF")

    def run(model=policy, **settings):
        calls = []

        def read(folder, gguf_file, **kwargs):
            calls.append((str(folder), gguf_file))
            return model

        monkeypatch.setattr(recipe, "find_spec", lambda name: name)
        monkeypatch.setattr(recipe.AutoModelForCausalLM, "from_pretrained", read)
        monkeypatch.setattr(recipe.AutoTokenizer, "from_pretrained", lambda folder, gguf_file: tokenizer)
        defaults = {"gguf_file": str(tmp_path / "models" / "tiny.gguf"), "output_dir": str(tmp_path / "out")}
        recipe.main(recipe.ConvertArguments(**defaults | settings))
        monkeypatch.undo()
        return calls

    return run


def test_the_folder_holds_the_same_weights_and_tokenizer(convert, policy, tokenizer, tmp_path):
    assert convert() == [(str(tmp_path / "models"), "tiny.gguf")]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(12)[None]
    torch.testing.assert_close(model(input_ids=ids).logits, policy(input_ids=ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("Tom has 5").input_ids == tokenizer("Tom has 5").input_ids
    assert convert() == [], "a finished conversion is not repeated"


def test_another_file_of_the_same_name_and_size_is_converted(convert, make_policy, tmp_path):
    convert()
    os.utime(tmp_path / "models" / "tiny.gguf", (1, 1))
    other = make_policy(sharpness=2.0)
    assert len(convert(model=other)) == 1
    weight = AutoModelForCausalLM.from_pretrained(tmp_path / "out").get_input_embeddings().weight
    torch.testing.assert_close(weight, other.get_input_embeddings().weight)


def test_files_of_others_are_not_replaced(convert, tmp_path):
    with pytest.raises(OutputError):
        convert(output_dir=str(tmp_path / "models"))
    assert (tmp_path / "models" / "tiny.gguf").read_bytes() == b"GGUF"


def test_another_architecture_is_refused(convert, tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1, n_positions=8))
    with pytest.raises(ConfigError, match="'gpt2', not 'llama'"):
        convert(model=model)
    assert not (tmp_path / "out").exists()


def test_a_missing_file_or_package_is_named(convert, monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="none.gguf"):
        convert(gguf_file=str(tmp_path / "none.gguf"))
    monkeypatch.setattr(importlib.import_module("recipes.smollm2.convert"), "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"\.\[gguf\]"):
        importlib.import_module("recipes.smollm2.convert").ConvertArguments("tiny.gguf", str(tmp_path))
