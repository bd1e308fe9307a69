"""Which checkpoints count as complete."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from rlmec_trl.data.errors import ConfigError
from rlmec_trl.stages.checkpoints import RECORD, STATE, check_complete, missing_from, missing_weights, read_record


def write_state(folder, step=4, num_processes=None):
    callbacks = {} if num_processes is None else {RECORD: {"attributes": {"num_processes": num_processes}}}
    (folder / STATE).write_text(json.dumps({"global_step": step, "stateful_callbacks": callbacks}))


@pytest.fixture
def checkpoint(tmp_path):
    """What `Trainer` writes on one process."""
    return write_checkpoint(tmp_path / "checkpoint-4")


def write_checkpoint(folder, num_processes=None):
    folder.mkdir(parents=True)
    save_file({"a": torch.zeros(8), "b": torch.ones(3, 2)}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text("{}")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.arange(5)}, folder / name)
    write_state(folder, num_processes=num_processes)
    return folder


def test_a_whole_checkpoint_lacks_nothing(checkpoint):
    assert missing_from(checkpoint) == []
    check_complete(checkpoint)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", STATE]
)
@pytest.mark.parametrize("harm", ["removed", "emptied", "cut off"])
def test_a_file_that_is_missing_or_cut_off_is_named(name, harm, checkpoint):
    path = checkpoint / name
    content = path.read_bytes()
    path.unlink()
    if harm != "removed":
        path.write_bytes(content[: len(content) // 2 if harm == "cut off" else 0])
    missing = missing_from(checkpoint)
    assert missing == [name if (name, harm) != ("model.safetensors", "removed") else "the weights"]
    with pytest.raises(ConfigError, match=f"checkpoint-4' is not a complete checkpoint.*{missing[0]}"):
        check_complete(checkpoint)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), name=st.sampled_from(["model.safetensors", "optimizer.pt"]))
def test_wherever_a_file_is_cut_off_it_is_noticed(share, name, checkpoint):
    path = checkpoint / name
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert missing_from(checkpoint) == [name]
    path.write_bytes(content)


def test_every_shard_that_the_index_lists_has_to_be_there(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    save_file({"a": torch.zeros(8)}, checkpoint / shards[0])
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}))
    assert missing_from(checkpoint) == [shards[1]]
    save_file({"b": torch.zeros(8)}, checkpoint / shards[1])
    assert missing_from(checkpoint) == []
    for content in (index.read_text()[:20], "{}", "[]"):
        index.write_text(content)
        assert missing_from(checkpoint) == [index.name]


def test_an_adapter_counts_as_weights_and_each_has_to_be_there(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "adapter_model.safetensors")
    (checkpoint / "adapter_config.json").write_text("{}")
    assert missing_from(checkpoint) == []
    (checkpoint / "ref").mkdir()
    (checkpoint / "ref" / "adapter_config.json").write_text("{}")
    assert missing_from(checkpoint) == ["ref/adapter_model.safetensors"]
    shutil.copy(checkpoint / "adapter_model.safetensors", checkpoint / "ref")
    (checkpoint / "adapter_model.safetensors").unlink()
    assert missing_from(checkpoint) == ["adapter_model.safetensors"]


def test_the_adapters_of_checkpoints_are_not_those_of_the_model_beside_them(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "adapter_config.json").write_text("{}")
    assert missing_weights(tmp_path) == ["the weights"]
    for name in ("adapter_model.safetensors", "checkpoint-2/adapter_model.safetensors"):
        save_file({"a": torch.zeros(8)}, tmp_path / name)
    assert missing_weights(tmp_path) == ["the weights"]
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "checkpoint-2" / "adapter_model.safetensors").unlink()
    assert missing_weights(tmp_path) == []


def test_the_random_numbers_of_every_process_have_to_be_there(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint-4", num_processes=2)
    assert missing_from(folder) == ["rng_state_0.pth", "rng_state_1.pth"]
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    assert missing_from(folder) == ["rng_state_1.pth"]
    shutil.copy(folder / "rng_state_0.pth", folder / "rng_state_1.pth")
    assert missing_from(folder) == []
    # Written by another program, which does not say how many there were
    write_state(folder)
    assert missing_from(folder) == []
    (folder / "rng_state_0.pth").unlink()
    assert missing_from(folder) == ["rng_state_0.pth"]


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        ({0, 1}, []),  # those of the other nodes are on their own disks
        ({0, 1, 2, 3, 4}, []),
        ({0, 1, 4}, []),
        ({0, 1, 2}, [3]),
        ({0, 2, 3, 4}, [1]),
        ({2, 3, 4}, [0, 1]),
    ],
    ids=str,
)
def test_nodes_without_a_shared_disk_have_the_random_numbers_of_their_own_processes(there, missing, checkpoint):
    """Three nodes of 2, 2 and 1 processes, seen from the first."""
    (checkpoint / "rng_state.pth").unlink()
    record = {"num_processes": 5, "num_local_processes": 2}
    state = {"global_step": 4, "stateful_callbacks": {RECORD: {"attributes": record}}}
    (checkpoint / STATE).write_text(json.dumps(state))
    for index in there:
        torch.save({}, checkpoint / f"rng_state_{index}.pth")
    assert missing_from(checkpoint) == [f"rng_state_{index}.pth" for index in missing]


def test_what_only_model_weights_were_saved_of_is_not_resumed_from(checkpoint):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (checkpoint / name).unlink()
    assert missing_from(checkpoint) == ["optimizer.pt", "rng_state.pth", "scheduler.pt"]


def test_files_of_others_in_a_checkpoint_do_not_count(checkpoint):
    for name in ("metrics.json", "samples.pt", "vectors.bin"):
        (checkpoint / name).write_text("not what a file of `Trainer` with this ending is")
    assert missing_from(checkpoint) == []
    assert missing_weights(checkpoint) == []


def test_shards_of_fsdp_are_complete_with_their_index(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "optimizer.pt").unlink()
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        (checkpoint / name).mkdir()
        (checkpoint / name / "__0_0.distcp").write_bytes(b"x")
    assert missing_from(checkpoint) == ["optimizer.pt", "the weights"]
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        (checkpoint / name / ".metadata").write_bytes(b"x")
    assert missing_from(checkpoint) == []


def test_a_whole_state_of_fsdp_counts(checkpoint):
    (checkpoint / "optimizer.pt").rename(checkpoint / "optimizer.bin")
    shutil.copy(checkpoint / "optimizer.bin", checkpoint / "pytorch_model_fsdp.bin")
    (checkpoint / "model.safetensors").unlink()
    assert missing_from(checkpoint) == []


def test_deepspeed_names_its_folder_when_all_has_been_written(checkpoint):
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
        (checkpoint / name).unlink()
    folder = checkpoint / "global_step4"
    folder.mkdir()
    for name in ("zero_pp_rank_0_mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        torch.save({}, folder / name)
    assert missing_from(checkpoint) == ["optimizer.pt", "scheduler.pt", "the weights"]
    (checkpoint / "latest").write_text("global_step4")
    assert missing_from(checkpoint) == []
    (folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    assert missing_from(checkpoint) == ["global_step4/optim_states"]
    shutil.rmtree(folder)
    assert missing_from(checkpoint) == ["the folder that `latest` names"]


def test_a_checkpoint_that_transformers_has_marked_as_unfinished_is_not_complete(checkpoint):
    (checkpoint / "checkpoint-is-incomplete.txt").write_text("")
    assert len(missing_from(checkpoint)) == 1


@pytest.mark.parametrize("callbacks", [[], None, {RECORD: []}, {RECORD: None}, {"Other": {}}], ids=str)
def test_a_state_of_another_program_has_no_record(callbacks):
    assert read_record({"global_step": 4, "stateful_callbacks": callbacks}) is None


def test_a_path_that_is_no_folder_is_refused():
    with pytest.raises(ConfigError, match="'nowhere' is not a folder"):
        check_complete(Path("nowhere"))


def test_the_weights_of_a_finished_model_have_to_be_whole(checkpoint):
    assert missing_weights(checkpoint) == []
    os.truncate(checkpoint / "model.safetensors", 30)
    assert missing_weights(checkpoint) == ["model.safetensors"]


def test_torch_saves_files_whose_end_tells_that_they_are_whole(tmp_path):
    torch.save({}, tmp_path / "file.pt")
    assert zipfile.is_zipfile(tmp_path / "file.pt")


@pytest.mark.parametrize("name", ["model_notes.json", "my_config.json", "tokenizer_experiments/vocab.json"])
def test_notes_of_others_whose_names_begin_like_ours_damage_nothing(name, checkpoint):
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_text("// a comment\n{}")
    assert missing_from(checkpoint) == missing_weights(checkpoint) == []


@pytest.mark.parametrize("content", ['{"a": 1}', "[]"])
def test_an_index_of_others_says_nothing_of_the_weights(content, checkpoint):
    (checkpoint / "faiss.index.json").write_text(content)
    assert missing_from(checkpoint) == missing_weights(checkpoint) == []


@pytest.mark.parametrize("name", ["scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_file_that_changed_without_changing_its_size_is_noticed(name, checkpoint):
    content = bytearray((checkpoint / name).read_bytes())
    where = content.index(torch.arange(5).numpy().tobytes())
    content[where] ^= 0xFF
    (checkpoint / name).write_bytes(content)
    assert missing_from(checkpoint) == [name]


def test_an_output_folder_is_refused_as_a_checkpoint(checkpoint):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (checkpoint / name).unlink()
    state = {"global_step": 4, "stateful_callbacks": {RECORD: {"attributes": {"settings": {}, "epochs": None}}}}
    (checkpoint / STATE).write_text(json.dumps(state))
    with pytest.raises(ConfigError, match="is not a complete checkpoint.*optimizer.pt"):
        check_complete(checkpoint)
