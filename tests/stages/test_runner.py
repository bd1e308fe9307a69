"""Interrupted work resumes, other work starts from the beginning, and the number of processes changes nothing."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value, load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmec_trl.data.marks import MARK
from rlmec_trl.stages import runner
from rlmec_trl.stages.output import OutputError
from rlmec_trl.stages.runner import EmptyResultError, map_shards


ROOT = Path(__file__).parents[2]
DATASET = Dataset.from_dict({"number": list(range(11)), "text": [f"row {index}" for index in range(11)]})

WORKER = """
import random, sys, time
from datetime import timedelta
from pathlib import Path
import torch
from accelerate import PartialState
from rlmec_trl.generation.processes import end_processes, process_state
from datasets import Dataset
from rlmec_trl.stages import runner
from rlmec_trl.stages.output import OutputError
from rlmec_trl.stages.runner import map_shards

folder, output_dir = sys.argv[1:]
state = process_state()
if state.num_processes > 1:
    group = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
    assert group.options._timeout > timedelta(days=1), group.options._timeout

wait_for_everyone = PartialState.wait_for_everyone

def wait_for_no_shard(self):
    # At a barrier, which has a time limit, nobody waits for work
    finished = Path(folder).glob(".out.rlmec_trl/*.shards/?????????-?????????")
    assert Path(output_dir).exists() or len(list(finished)) == 6
    wait_for_everyone(self)

PartialState.wait_for_everyone = wait_for_no_shard
load_from_disk = runner.load_from_disk

def load_late(path):
    # The main process must not remove the shards before this one has opened them
    if state.process_index == 1:
        time.sleep(0.3)
    return load_from_disk(path)

runner.load_from_disk = load_late

def work(shard, index):
    if index == 5:
        time.sleep(0.5)
    Path(folder, f"shard-{index}-of-process-{state.process_index}").touch()
    rng = random.Random(index)
    rows = [{**row, "draw": rng.random()} for row in shard for _ in range(index % 3)]
    return Dataset.from_list(rows) if rows else shard.select([])

dataset = Dataset.from_dict({"number": list(range(11)), "text": [f"row {index}" for index in range(11)]})
result = map_shards(dataset, work, output_dir, {}, shard_size=2)
Path(folder, f"rows-{state.process_index}-of-{state.num_processes}").write_text(repr(result.to_list()))
end_processes()
"""


def doubling(calls, stop_at=None):
    """A function for `map_shards` that remembers its calls, and fails at one shard."""

    def work(shard, index):
        calls.append(index)
        if index == stop_at:
            raise KeyboardInterrupt
        return shard.map(lambda row: {"double": 2 * row["number"]})

    return work


def expected_rows(dataset=DATASET):
    return [{**row, "double": 2 * row["number"]} for row in dataset]


def test_the_result_is_in_order_and_nothing_else_is_left(tmp_path):
    calls = []
    result = map_shards(DATASET, doubling(calls), tmp_path / "out", {}, shard_size=3)
    assert calls == [0, 1, 2, 3]
    assert result.to_list() == load_from_disk(tmp_path / "out").to_list() == expected_rows()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_function_sees_its_rows_and_may_give_back_any_number(tmp_path):
    seen = []

    def work(shard, index):
        seen.append((index, shard["number"][:]))
        return shard.select(range(index))

    result = map_shards(DATASET, work, tmp_path / "out", {}, shard_size=4)
    assert seen == [(0, [0, 1, 2, 3]), (1, [4, 5, 6, 7]), (2, [8, 9, 10])]
    assert result["number"][:] == [4, 8, 9]


def test_there_may_be_nothing_to_give_back_at_all(tmp_path):
    result = map_shards(DATASET, lambda shard, index: shard.select([]), tmp_path / "out", {}, shard_size=4)
    assert len(result) == len(load_from_disk(tmp_path / "out")) == 0
    assert result.column_names == DATASET.column_names


def test_an_empty_dataset_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="There are no rows to work on for '.*out'"):
        map_shards(DATASET.select([]), doubling([]), tmp_path / "out", {})


def test_a_column_that_is_empty_in_a_shard_is_joined_with_the_others(tmp_path):
    """As where no rewrite of a shard was verified."""

    def work(shard, index):
        columns = {"text": ["x"], "messages": [[{"role": "assistant", "content": "x"}]], "ids": [[1, 2]]}
        rows = {name: value * len(shard) if index == 1 else [None] * len(shard) for name, value in columns.items()}
        return Dataset.from_dict(rows)

    rows = map_shards(DATASET, work, tmp_path / "out", {}, shard_size=4).to_list()
    assert [index for index, row in enumerate(rows) if row["text"] is not None] == [4, 5, 6, 7]
    assert rows[4] == {"text": "x", "messages": [{"role": "assistant", "content": "x"}], "ids": [1, 2]}
    assert rows[0] == {"text": None, "messages": None, "ids": None}


def interrupted(tmp_path, stop_at=2, dataset=DATASET, settings=None):
    with pytest.raises(KeyboardInterrupt):
        map_shards(dataset, doubling([], stop_at), tmp_path / "out", settings or {"seed": 0}, shard_size=3)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_resumes(tmp_path):
    interrupted(tmp_path)
    calls = []
    # Made anew, with another fingerprint: only the rows count
    dataset = Dataset.from_dict(DATASET.to_dict())
    result = map_shards(dataset, doubling(calls), tmp_path / "out", {"seed": 0}, shard_size=3)
    assert calls == [2, 3]
    assert result.to_list() == expected_rows()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("dataset", "settings", "shard_size"),
    [
        (DATASET, {"seed": 1}, 3),
        (DATASET, {"seed": 0, "more": True}, 3),
        (DATASET, {"seed": 0}, 4),
        (DATASET.select([*range(10), 9]), {"seed": 0}, 3),
        (DATASET.rename_column("text", "name"), {"seed": 0}, 3),
    ],
    ids=["setting", "further setting", "shard size", "rows", "columns"],
)
def test_other_rows_or_settings_start_from_the_first_shard(tmp_path, dataset, settings, shard_size):
    interrupted(tmp_path)
    calls = []
    result = map_shards(dataset, doubling(calls), tmp_path / "out", settings, shard_size=shard_size)
    assert calls[0] == 0
    assert result.to_list() == expected_rows(dataset)


def test_a_half_written_shard_is_ignored(tmp_path):
    interrupted(tmp_path)
    (work_dir,) = tmp_path.iterdir()
    (shards_dir,) = work_dir.glob("*.shards")
    unfinished = shards_dir / "000000006-000000009.unfinished"
    shutil.copytree(shards_dir / "000000000-000000003", unfinished)
    (arrow_file,) = unfinished.glob("*.arrow")
    arrow_file.write_bytes(arrow_file.read_bytes()[:20])
    shutil.copytree(unfinished, work_dir / "result")  # and so is a half-joined result
    calls = []
    result = map_shards(DATASET, doubling(calls), tmp_path / "out", {"seed": 0}, shard_size=3)
    assert calls == [2, 3]
    assert result.to_list() == expected_rows()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("num_saved", [1, 4], ids=["second shard", "result"])
def test_a_run_that_was_interrupted_while_saving_resumes(tmp_path, monkeypatch, num_saved):
    save_to_disk, saved = Dataset.save_to_disk, []

    def save_half(dataset, path, **kwargs):
        save_to_disk(dataset, path, **kwargs)
        saved.append(path)
        if len(saved) > num_saved:
            next(Path(path).glob("*.arrow")).write_bytes(b"half")
            raise KeyboardInterrupt

    monkeypatch.setattr(Dataset, "save_to_disk", save_half)
    with pytest.raises(KeyboardInterrupt):
        map_shards(DATASET, doubling([]), tmp_path / "out", {"seed": 0}, shard_size=3)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    calls = []
    result = map_shards(DATASET, doubling(calls), tmp_path / "out", {"seed": 0}, shard_size=3)
    assert calls == list(range(num_saved, 4))
    assert result.to_list() == expected_rows()


def test_a_finished_run_is_loaded_and_not_done_again(tmp_path):
    map_shards(DATASET, doubling([]), tmp_path / "out", {"seed": 0}, shard_size=3)
    calls = []
    result = map_shards(DATASET, doubling(calls), tmp_path / "out", {"seed": 0}, shard_size=3)
    assert calls == []
    assert result.to_list() == expected_rows()
    map_shards(DATASET, doubling(calls), tmp_path / "out", {"seed": 1}, shard_size=3)
    assert calls == [0, 1, 2, 3]


def test_an_earlier_result_stays_until_the_new_one_is_there(tmp_path):
    map_shards(DATASET, doubling([]), tmp_path / "out", {"seed": 0}, shard_size=3)
    with pytest.raises(KeyboardInterrupt):
        map_shards(DATASET.select(range(7)), doubling([], 1), tmp_path / "out", {}, shard_size=3)
    assert load_from_disk(tmp_path / "out").to_list() == expected_rows()
    result = map_shards(DATASET.select(range(7)), doubling([]), tmp_path / "out", {}, shard_size=3)
    assert result.to_list() == expected_rows()[:7]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_dataset_does_not_replace_itself(tmp_path):
    """Half of the samples, scored, would otherwise be all that is left of them."""
    map_shards(DATASET, doubling([]), tmp_path / "out", {}, shard_size=3)
    for rows in (load_from_disk(tmp_path / "out"), load_from_disk(tmp_path / "out").select([1, 2])):
        with pytest.raises(OutputError, match="out' is where the rows to work on were loaded from"):
            map_shards(rows, doubling([]), tmp_path / "out", {"other": 1}, shard_size=3)
    assert load_from_disk(tmp_path / "out").to_list() == expected_rows()


def test_shards_of_another_size_are_kept_where_they_hold_the_same_rows(tmp_path):
    """Lowering a batch size after an out-of-memory error must not cost finished shards; nor may rows be mixed up."""
    interrupted(tmp_path, stop_at=2)
    calls = []
    result = map_shards(DATASET, doubling(calls), tmp_path / "out", {"seed": 0}, shard_size=6)
    assert calls == [0, 1]
    assert result.to_list() == expected_rows()


def test_column_types_survive(tmp_path):
    features = Features(
        {"label": ClassLabel(names=["no", "yes"]), "small": Value("int8"), "ids": List(Value("int32"))}
    )
    dataset = Dataset.from_dict({"label": [0, 1, 0], "small": [1, 2, 3], "ids": [[1], [], None]}, features=features)
    result = map_shards(dataset, lambda shard, index: shard, tmp_path / "out", {}, shard_size=2)
    assert result.features == features
    assert result.to_list() == dataset.to_list()


# --- Damage ----------------------------------------------------------------------------------------------------------


@settings(max_examples=12)
@given(data=st.data())
def test_a_damaged_shard_is_named_and_recomputed(tmp_path_factory, data):
    """Any of its files, cut to any length, missing or changed; or something else in its place."""
    folder = tmp_path_factory.mktemp("folder")
    interrupted(folder)
    (shards_dir,) = folder.glob(".out.rlmec_trl/*.shards")
    shard = shards_dir / "000000003-000000006"
    name = data.draw(st.sampled_from(sorted(path.name for path in shard.iterdir())))
    content = (shard / name).read_bytes()
    # One without a mark is of an earlier version
    kinds = ["cut", "garbage", "file instead"] + (["missing"] if name != MARK else [])
    kind = data.draw(st.sampled_from(kinds))
    if kind == "cut":
        (shard / name).write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    elif kind == "garbage":
        start = data.draw(st.integers(0, len(content) - 1))
        (shard / name).write_bytes(content[:start] + bytes([content[start] ^ 0xFF]) + content[start + 1 :])
    else:
        shutil.rmtree(shard) if kind == "file instead" else (shard / name).unlink()
        shard.touch() if kind == "file instead" else None
    messages, calls = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.logger, "warning", messages.append)
        result = map_shards(DATASET, doubling(calls), folder / "out", {"seed": 0}, shard_size=3)
    assert calls == [1, 2, 3]
    assert len(messages) == 1 and str(shard) in messages[0]
    assert result.to_list() == expected_rows()
    assert [path.name for path in folder.iterdir()] == ["out"]


def test_a_shard_of_an_earlier_version_is_done_again_and_not_called_damaged(tmp_path, caplog):
    interrupted(tmp_path)
    for path in tmp_path.glob(f".out.rlmec_trl/*.shards/*/{MARK}"):
        path.unlink()
    calls = []
    with caplog.at_level(logging.WARNING):
        result = map_shards(DATASET, doubling(calls), tmp_path / "out", {"seed": 0}, shard_size=3)
    assert calls == [0, 1, 2, 3] and result.to_list() == expected_rows()
    assert not caplog.records


def test_a_result_that_cannot_be_read_is_made_again(tmp_path, caplog):
    map_shards(DATASET, doubling([]), tmp_path / "out", {"seed": 0}, shard_size=3)
    path = tmp_path / "out" / "state.json"
    path.write_bytes(b"?" * path.stat().st_size)
    calls = []
    with caplog.at_level(logging.WARNING):
        result = map_shards(DATASET, doubling(calls), tmp_path / "out", {"seed": 0}, shard_size=3)
    assert "holds a damaged result" in caplog.text
    assert calls == [0, 1, 2, 3]
    assert result.to_list() == expected_rows()


def test_shards_of_other_settings_are_kept_and_told_of(tmp_path, caplog):
    """They may have cost hours. With their settings, the run resumes."""
    interrupted(tmp_path)
    with caplog.at_level(logging.WARNING):
        map_shards(DATASET, doubling([]), tmp_path / "out", {"seed": 1}, shard_size=3)
    assert ".out.rlmec_trl' has unfinished work of runs with other rows or settings" in caplog.text
    calls = []
    map_shards(DATASET, doubling(calls), tmp_path / "out", {"seed": 0}, shard_size=3)
    assert calls == [2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- Nothing to save -------------------------------------------------------------------------------------------------


def refuse(rows):
    raise EmptyResultError(f"{len(rows)} rows of no use")


def test_an_empty_result_keeps_the_earlier_one_and_no_shard(tmp_path):
    map_shards(DATASET, doubling([]), tmp_path / "out", {"seed": 0}, shard_size=3)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for _ in range(2):
        calls = []
        with pytest.raises(EmptyResultError, match="11 rows of no use"):
            map_shards(DATASET, doubling(calls), tmp_path / "out", {"seed": 1}, shard_size=3, check=refuse)
        assert calls == [0, 1, 2, 3], "a shard of nothing is not taken for finished work"
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- Two runs --------------------------------------------------------------------------------------------------------

HELD = """
import sys
from datasets import Dataset
from rlmec_trl.stages.runner import map_shards

def work(shard, index):
    print("at work", flush=True)
    sys.stdin.readline()
    return shard.map(lambda row: {"double": 2 * row["number"]})

dataset = Dataset.from_dict({"number": list(range(11)), "text": [f"row {index}" for index in range(11)]})
map_shards(dataset, work, sys.argv[1], {"seed": 0}, shard_size=6)
"""


def test_a_second_process_is_told_that_the_first_is_at_work_and_takes_nothing_from_it(tmp_path):
    command = [sys.executable, "-c", HELD, str(tmp_path / "out")]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as first:
        for _ in range(2):
            assert first.stdout.readline() == "at work\n"
            # With the same settings, and with others
            for seed in (0, 1):
                with pytest.raises(OutputError, match="Another run is writing to '.*out'. Wait for it to end"):
                    map_shards(DATASET, doubling([]), tmp_path / "out", {"seed": seed}, shard_size=6)
            first.stdin.write("\n")
            first.stdin.flush()
        first.communicate(timeout=300)
        assert first.returncode == 0
    calls = []
    result = map_shards(DATASET, doubling(calls), tmp_path / "out", {"seed": 0}, shard_size=6)
    assert calls == []
    assert result.to_list() == expected_rows()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- Several processes -----------------------------------------------------------------------------------------------


def test_two_processes_give_the_rows_of_one_in_the_same_order(tmp_path, scripts, run_on_two):
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    words = {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        words[name] = [str(tmp_path / "worker.py"), str(tmp_path / name), str(tmp_path / name / "out")]
    run_on_two(*words["two"])
    finished = scripts.run(*words["one"], cwd=tmp_path, environments=[{"ACCELERATE_USE_CPU": "true"}])
    assert finished.exit_code == 0, finished.stderr[-3000:]
    took = {tuple(path.name.split("-")[1::3]) for path in (tmp_path / "two").glob("shard-*")}
    assert took == {("0", "0"), ("1", "1"), ("2", "0"), ("3", "1"), ("4", "0"), ("5", "1")}
    expected = (tmp_path / "one" / "rows-0-of-1").read_text()
    assert expected.count("'draw'") == 2 + 4 + 2 + 2, "shards of 0, 1 and 2 times their rows"
    for process in (0, 1):
        assert (tmp_path / "two" / f"rows-{process}-of-2").read_text() == expected
    assert repr(load_from_disk(tmp_path / "two" / "out").to_list()) == expected
