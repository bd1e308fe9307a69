"""What a training is compared by: what changes its result is, what changes only how it runs is not."""

import dataclasses
import json
import os
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from trl import GRPOConfig, SFTConfig

from rlmec_trl import GRMConfig, OnlineRLMECConfig, RLMECConfig
from rlmec_trl.stages.contents import model_hash, rows_hash
from rlmec_trl.stages.training_settings import (
    BATCH,
    EVALUATION,
    FIXED,
    NO_EFFECT,
    changed_settings,
    fixed_changes,
    same_batch,
    training_settings,
)


CONFIGS = (RLMECConfig, OnlineRLMECConfig, GRMConfig, SFTConfig, GRPOConfig)


# --- Arguments -------------------------------------------------------------------------------------------------------


def test_every_argument_that_is_not_compared_exists():
    """Otherwise a name with a typing error would be compared, and one that a library has renamed would be, too."""
    known = {field.name for config in CONFIGS for field in dataclasses.fields(config)}
    # Releases of Transformers before 5.23 do not have all of them
    newer = {"activation_checkpointing", "activation_checkpointing_kwargs", "dataloader_multiprocessing_context"}
    assert (NO_EFFECT | EVALUATION) - known <= newer
    assert not NO_EFFECT & EVALUATION


def test_what_the_paper_defines_and_what_an_optimizer_reads_is_compared():
    own = {field.name for field in dataclasses.fields(RLMECConfig)} - {
        field.name for field in dataclasses.fields(SFTConfig)
    }
    assert own - {"stop_on_nonfinite"} and not (own - {"stop_on_nonfinite"}) & (NO_EFFECT | EVALUATION)
    compared = """
        learning_rate weight_decay warmup_steps optim optim_args adam_beta1 adam_beta2 adam_epsilon max_grad_norm
        lr_scheduler_type lr_scheduler_kwargs max_length loss_type seed data_seed bf16 fp16 per_device_train_batch_size
        gradient_accumulation_steps train_sampling_strategy packing beta num_generations temperature
        """.split()
    assert not set(compared) & (NO_EFFECT | EVALUATION)


def test_no_secret_is_recorded():
    """The record is in a file that is pushed to the Hub."""
    names = {field.name for config in CONFIGS for field in dataclasses.fields(config)}
    secrets = {name for name in names if name.endswith(("_token", "_key")) and name not in ("eos_token", "pad_token")}
    assert secrets == {"hub_token"} <= NO_EFFECT


@pytest.mark.parametrize(
    "name",
    [
        "token",
        "use_auth_token",
        "hf_token",
        "key",
        "api_key",
        "WANDB_API_KEY",
        "accessToken",
        "password",
        "db_password",
    ],
)
def test_no_secret_in_a_mapping_of_arguments_is_recorded(tmp_path, policy, name):
    """`model_init_kwargs` may hold the token of a private model, and mappings of further models lie deeper."""
    secret = {name: "hf_SECRET", "nested": [{name: "hf_SECRET"}], "kept": 1}
    args = GRPOConfig(
        str(tmp_path), use_cpu=True, bf16=False, report_to="none", model_init_kwargs=secret, generation_kwargs=secret
    )
    settings = settings_of(args, policy, {"reward": secret})
    assert "hf_SECRET" not in json.dumps(settings)
    assert settings["model_init_kwargs"] == {"nested": [{}], "kept": 1}


def test_where_the_files_of_a_model_come_from_is_not_compared(tmp_path, policy):
    def settings_with(**init_kwargs):
        return settings_of(SFTConfig(str(tmp_path), use_cpu=True, bf16=False, model_init_kwargs=init_kwargs), policy)

    moved = settings_with(token="a", cache_dir="b", local_files_only=True, offload_folder="c", max_memory={0: "1GB"})
    assert moved == settings_with() != settings_with(subfolder="d")
    assert settings_with(subfolder="d")["model_init_kwargs"] == {"subfolder": "d"}
    assert settings_with()["pad_token"] is None  # no secret


def settings_of(args, policy, depends_on=None):
    return training_settings(
        SimpleNamespace(
            args=args,
            model=policy,
            accelerator=SimpleNamespace(unwrap_model=lambda model: model),
            train_dataset=None,
            eval_dataset=None,
            is_deepspeed_enabled=False,
            is_fsdp_enabled=False,
        ),
        depends_on,
    )


def test_changes_are_named_with_both_values():
    before = {"learning_rate": 0.1, "adapter": {"default": {"r": 4, "lora_alpha": 8}}, "seed": 1, "optim": "adamw"}
    now = {"learning_rate": 0.2, "adapter": {"default": {"r": 8, "lora_alpha": 8}}, "seed": 1, "bf16": True}
    assert changed_settings(before, now) == {
        "learning_rate": "learning_rate 0.1 -> 0.2",
        "adapter": "adapter.default.r 4 -> 8",
    }
    assert changed_settings({"adapter": {}}, {"adapter": {"default": {"r": 8}}}) == {
        "adapter": "adapter.default none -> {'r': 8}"
    }


def test_settings_that_say_the_same_are_no_change():
    for nothing in (None, {}, []):
        assert (
            changed_settings({"dataset_kwargs": nothing, "x": {"y": nothing}}, {"dataset_kwargs": {}, "x": {}}) == {}
        )
    assert changed_settings({"dropout": None}, {"dropout": 0}) == {"dropout": "dropout none -> 0"}


def test_a_step_of_as_many_rows_is_the_same_however_they_are_divided():
    def divided(*sizes):
        return dict(zip(BATCH, sizes, strict=True))

    assert same_batch(divided(4, 1, 1), divided(2, 2, 1)) and same_batch(divided(2, 2, 1), divided(1, 2, 2))
    assert not same_batch(divided(4, 1, 1), divided(2, 1, 1)) and same_batch({}, divided(2, 1, 1))


def test_a_record_of_an_earlier_version_is_compared_by_what_it_has():
    before = {"max_steps": 8, "number of rows": 10, "lr_scheduler_type": "linear"}
    now = {"max_steps": 8, "number of rows": 9, "training rows": "ab", "lr_scheduler_type": "linear", "trainer": "X"}
    assert changed_settings(before, now) == {"number of rows": "number of rows 10 -> 9"}


@pytest.mark.parametrize(
    ("before", "now", "change"),
    [
        (("a", "1"), ("b", "1"), None),  # copied elsewhere
        (("a", "1"), ("a", "2"), "the model a has changed"),
        (("a", "1"), ("b", "2"), "model a -> b"),
        (("a", "1"), ("a", None), None),
        (("a", None), ("b", "1"), "model a -> b"),
        ((None, None), (None, None), None),
    ],
)
def test_a_model_is_known_by_its_content(before, now, change):
    records = [{"model": dict(zip(("name", "content"), model, strict=True))} for model in (before, now)]
    assert changed_settings(*records) == ({} if change is None else {"model": change})


def on_hub(commit, adapter):
    return {"model": {"name": "org/m", "content": f"org/m@{commit}"}, "adapter": {"default": {}} if adapter else {}}


def test_a_new_commit_on_the_hub_fixes_only_a_training_whose_checkpoints_lack_weights():
    change = "the model org/m has changed on the Hub (`--model_revision a1` is the one before)"
    for adapter in (True, False):
        before, now = on_hub("a1", adapter), on_hub("b2", adapter)
        assert changed_settings(before, now) == {"model": change}
        assert fixed_changes(before, now) == ([change] if adapter else [])
    other = on_hub("a1", False) | {"model": {"name": "org/other", "content": "org/other@c3"}}
    assert fixed_changes(on_hub("a1", False), other) == ["model org/m -> org/other"]


def test_a_field_that_another_release_of_a_library_has_is_no_change():
    before = {
        "adapter": {"default": {"r": 8, "gone": None}},
        "quantization": {"load_in_4bit": True},
        "accelerator_config": {"even_batches": True},
        "model_init_kwargs": {},
    }
    now = {
        "adapter": {"default": {"r": 8, "new": False}},
        "quantization": {"load_in_4bit": True, "target_parameters": []},
        "accelerator_config": {"even_batches": True, "new": 1},
        "model_init_kwargs": {},
    }
    assert changed_settings(before, now) == changed_settings(now, before) == {}
    now["adapter"]["default"]["r"] = 4
    now["adapter"]["ref"] = {"r": 4}
    now["model_init_kwargs"]["num_labels"] = 2  # from the user
    assert changed_settings(before, now) == {
        "adapter": "adapter.default.r 8 -> 4, adapter.ref none -> {'r': 4}",
        "model_init_kwargs": "model_init_kwargs.num_labels none -> 2",
    }


# --- Rows ------------------------------------------------------------------------------------------------------------

value = st.none() | st.integers(-5, 5)
ids = st.none() | st.lists(value, max_size=3)
row = st.fixed_dictionaries(
    {"ids": ids, "nested": st.none() | st.lists(ids, max_size=2), "text": st.none() | st.text(max_size=3), "x": value}
)


FEATURES = Dataset.from_list([{"ids": [1], "nested": [[1]], "text": "a", "x": 1}]).features


def dataset(rows):
    return Dataset.from_list(rows, features=FEATURES)


@settings(max_examples=20)
@given(rows=st.lists(row, min_size=1, max_size=5), others=st.lists(row, min_size=1, max_size=5))
def test_rows_have_the_same_hash_where_they_are_the_same(rows, others):
    assert (rows_hash(dataset(rows)) == rows_hash(dataset(others))) == (rows == others)


@settings(max_examples=15)
@given(rows=st.lists(row, min_size=2, max_size=6), data=st.data())
def test_rows_have_the_same_hash_however_they_are_stored(rows, data):
    cut = data.draw(st.integers(1, len(rows) - 1))
    parts = concatenate_datasets([dataset(rows[:cut]), dataset(rows[cut:])])
    # With an index, as after shuffling
    backwards = dataset(rows[::-1]).select(range(len(rows) - 1, -1, -1))
    sliced = dataset([rows[-1], *rows, rows[0]]).select(range(1, len(rows) + 1))
    assert len({rows_hash(each) for each in (dataset(rows), parts, backwards, sliced)}) == 1


def test_rows_of_any_type_have_a_hash():
    rows = [{"messages": [{"role": "user", "content": "a\ud800"[:1]}], "flag": True, "score": [0.5, None], "n": None}]
    assert rows_hash(Dataset.from_list(rows)) == rows_hash(Dataset.from_list(rows))
    assert rows_hash(Dataset.from_list(rows)) != rows_hash(Dataset.from_list([rows[0] | {"flag": False}]))


# --- Weights ---------------------------------------------------------------------------------------------------------


def save_weights(folder, changed=None):
    folder.mkdir()
    tensors = {name: torch.zeros(3000) for name in ("a", "b", "c")}
    if changed is not None:
        tensors[changed] = tensors[changed] + 1e-3
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")


@pytest.mark.parametrize("changed", ["a", "b", "c"])
def test_a_model_that_was_trained_has_another_hash_and_a_copy_the_same(changed, tmp_path):
    save_weights(tmp_path / "model")
    save_weights(tmp_path / "copy")
    os.utime(tmp_path / "copy" / "model.safetensors", (0, 0))
    save_weights(tmp_path / "trained", changed)
    assert model_hash(tmp_path / "model") == model_hash(tmp_path / "copy") != model_hash(tmp_path / "trained")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "pytorch_model.bin", "model.gguf"])
def test_settings_tokenizer_and_weights_of_other_formats_are_part_of_the_hash(name, tmp_path):
    save_weights(tmp_path / "model")
    before = model_hash(tmp_path / "model")
    (tmp_path / "model" / name).write_text(json.dumps({"x": 1}))
    one = model_hash(tmp_path / "model")
    (tmp_path / "model" / name).write_text(json.dumps({"x": 2}))
    assert len({before, one, model_hash(tmp_path / "model")}) == 3
    (tmp_path / "model" / "training_args.bin").write_bytes(b"says nothing of the model")
    assert one != model_hash(tmp_path / "model")


def test_settings_that_were_only_laid_out_otherwise_are_the_same_model(tmp_path):
    save_weights(tmp_path / "model")
    hashes = set()
    for text in ('{"a": 1, "b": [2]}', '{"b": [2],\n "a": 1}\n'):
        (tmp_path / "model" / "config.json").write_text(text)
        hashes.add(model_hash(tmp_path / "model"))
    assert len(hashes) == 1


def test_what_cannot_be_continued_is_compared():
    assert not set(FIXED) & (NO_EFFECT | EVALUATION)
