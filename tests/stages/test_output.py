"""An output folder is replaced only where everything in it is our own, and held by one run at a time."""

import errno
import json
import logging
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmec_trl.data.errors import DatasetError
from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.marks import MARK, find_damage
from rlmec_trl.stages.output import (
    OutputError,
    check_replaceable,
    check_result_file,
    claim,
    claim_file,
    is_finished,
    publish,
    save_rows,
)


DATASET = Dataset.from_dict({"number": list(range(11))})


def save(dataset, output_dir, key="key"):
    with claim(output_dir) as work_dir:
        publish(partial(save_rows, dataset), output_dir, key, work_dir)


def contents(folder):
    """Every file below a folder, with what is in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def refused(output_dir, match):
    before = contents(output_dir.parent)
    with pytest.raises(OutputError, match=match):
        save(DATASET, output_dir)
    assert contents(output_dir.parent) == before


def test_a_folder_with_files_of_the_users_is_refused_by_name(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    refused(tmp_path / "out", r"out' holds files that this stage did not write \(thesis.tex\). Nothing was changed")


def test_a_dataset_that_was_saved_by_hand_is_refused(tmp_path):
    DATASET.save_to_disk(tmp_path / "out")
    refused(tmp_path / "out", "data-00000-of-00001.arrow, dataset_info.json, state.json")


def test_a_file_that_was_added_to_our_result_is_refused_by_name(tmp_path):
    save(DATASET, tmp_path / "out")
    (tmp_path / "out" / "notes" / "deep").mkdir(parents=True)
    (tmp_path / "out" / "notes" / "deep" / "note.txt").write_text("mine")
    refused(tmp_path / "out", r"files that were added or replaced since then \(notes/deep/note.txt\)")


def test_a_dataset_that_was_saved_over_our_result_is_refused(tmp_path):
    """Its files have the names of ours, and our mark is still there."""
    save(DATASET, tmp_path / "out")
    Dataset.from_dict({"thesis": ["years of work"] * 1000}).save_to_disk(tmp_path / "out")
    assert (tmp_path / "out" / MARK).exists()
    refused(tmp_path / "out", r"\(data-00000-of-00001.arrow, dataset_info.json")


def test_a_finished_result_may_have_notes_next_to_it_until_it_would_be_replaced(tmp_path):
    save(DATASET, tmp_path / "out", "same")
    (tmp_path / "out" / "NOTES.md").write_text("mine")
    with claim(tmp_path / "out", "same"):
        pass
    with pytest.raises(OutputError, match="NOTES.md"):
        with claim(tmp_path / "out", "other"):
            pass
    assert (tmp_path / "out" / "NOTES.md").read_text() == "mine"


def test_a_file_in_the_place_of_the_hidden_folder_is_refused(tmp_path):
    (tmp_path / ".out.rlmec_trl").write_text("mine")
    refused(tmp_path / "out", "is a file, but unfinished work is kept under that name")


@pytest.mark.parametrize("text", ["my thesis", "[1]", '{"total": 3}', "\x00", ""])
def test_a_result_file_of_something_else_is_refused(tmp_path, text):
    path = tmp_path / "result.json"
    check_result_file(path, ["correct", "total"])
    path.write_text(text)
    with pytest.raises(OutputError, match="is not a result of this stage. Nothing was changed"):
        check_result_file(path, ["correct", "total"])
    path.write_text('{"correct": 1, "total": 2, "more": 3}')
    check_result_file(path, ["correct", "total"])
    with pytest.raises(OutputError):
        check_result_file(tmp_path, ["correct"])


def test_an_empty_folder_in_our_result_is_refused(tmp_path):
    save(DATASET, tmp_path / "out")
    (tmp_path / "out" / "later").mkdir()
    refused(tmp_path / "out", r"\(later\)")


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"key": "x"}', '{"key": "x", "files": [1]}', "\x00"])
def test_a_mark_that_is_not_ours_is_no_mark(tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MARK).write_text(text)
    refused(tmp_path / "out", MARK)
    assert not is_finished(tmp_path / "out", "x")


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    refused(tmp_path / "out", "is a file, not a folder")


def test_neighbours_with_similar_names_are_left_alone(tmp_path):
    names = ["out.unfinished", "out-scored", ".out", "out.old", "result", "replaced"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text(name)
    before = contents(tmp_path)
    save(DATASET, tmp_path / "out")
    save(DATASET.select([1]), tmp_path / "out")
    after = contents(tmp_path)
    assert {name: value for name, value in after.items() if name.split("/")[0] != "out"} == before


def test_files_of_others_in_the_hidden_folder_are_refused(tmp_path):
    (tmp_path / ".out.rlmec_trl").mkdir()
    (tmp_path / ".out.rlmec_trl" / "thesis.tex").write_text("mine")
    refused(tmp_path / "out", r"the folder of unfinished work, contains other files \(thesis.tex\)")


def test_what_datasets_keeps_beside_a_dataset_does_not_block_its_replacement(tmp_path):
    save(DATASET, tmp_path / "out")
    load_from_disk(tmp_path / "out").map(lambda row: {"double": 2 * row["number"]})
    assert list((tmp_path / "out").glob("cache-*.arrow"))
    save(DATASET.select([1]), tmp_path / "out")
    assert load_from_disk(tmp_path / "out")["number"][:] == [1]


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "out").mkdir()
    save(DATASET, tmp_path / "out")
    assert load_from_disk(tmp_path / "out").to_list() == DATASET.to_list()


@pytest.mark.parametrize("name", ["tmp_figures", "tmp12345678", "cache-thesis.arrow", "cache-0123456789abcdef.arrow"])
def test_no_name_makes_a_file_ours_where_there_is_no_result_of_ours(tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    refused(tmp_path / "out", name)


@pytest.mark.parametrize("name", ["tmp_figures", "cache-thesis.arrow"])
def test_names_like_those_of_a_cache_are_not_taken_for_one(tmp_path, name):
    save(DATASET, tmp_path / "out")
    (tmp_path / "out" / name).write_text("mine")
    refused(tmp_path / "out", name)


def test_the_home_folder_can_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    save(DATASET, "~/deep/out")
    assert is_finished(tmp_path / "deep" / "out", "key") and not (tmp_path / "~").exists()


@pytest.mark.parametrize("path", [".", "..", "../empty"])
def test_the_working_directory_is_never_replaced(tmp_path, monkeypatch, path):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(OutputError, match="is the working directory, or a folder around it"):
        save(DATASET, path)


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for rows in ([1, 2], [3]):
        save(DATASET.select(rows), tmp_path / "out")
        assert (tmp_path / "out").is_symlink()
        assert load_from_disk(tmp_path / "disk")["number"][:] == rows


def test_a_relative_path_with_a_slash_at_its_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(DATASET, "deep/out/")
    assert contents(tmp_path / "deep").keys() == {"out", *(f"out/{name}" for name in contents(tmp_path / "deep/out"))}


def test_a_dataset_without_rows_can_be_saved_and_loaded(tmp_path):
    save(DATASET.select([]), tmp_path / "out")
    assert load_from_disk(tmp_path / "out").column_names == DATASET.column_names


def test_nothing_but_the_result_is_left(tmp_path):
    for number in range(2):
        save(DATASET.select([number]), tmp_path / "out", str(number))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_result_is_finished_for_its_key_alone_and_while_its_files_are_whole(tmp_path):
    save(DATASET, tmp_path / "out", "a")
    assert is_finished(tmp_path / "out", "a")
    assert not is_finished(tmp_path / "out", "b")
    (arrow_file,) = (tmp_path / "out").glob("*.arrow")
    arrow_file.write_bytes(arrow_file.read_bytes()[:-8])
    assert not is_finished(tmp_path / "out", "a"), "a truncated file"
    arrow_file.unlink()
    assert not is_finished(tmp_path / "out", "a"), "a missing file"


def test_files_that_appear_while_the_run_is_at_work_are_not_lost(tmp_path):
    with pytest.raises(OutputError, match="thesis.tex"):
        with claim(tmp_path / "out") as work_dir:
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "thesis.tex").write_text("mine")
            publish(partial(save_rows, DATASET), tmp_path / "out", "key", work_dir)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("stop_at", ["save_to_disk", "first rename", "second rename"])
def test_a_kill_while_a_result_is_replaced_keeps_the_earlier_one(tmp_path, monkeypatch, stop_at):
    save(DATASET, tmp_path / "out", "old")
    renames = []
    rename = type(tmp_path).rename

    def stop_renaming(path, target):
        renames.append(path)
        if len(renames) == {"first rename": 1, "second rename": 2}.get(stop_at):
            raise KeyboardInterrupt
        return rename(path, target)

    def stop_saving(dataset, path, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(tmp_path), "rename", stop_renaming)
    if stop_at == "save_to_disk":
        monkeypatch.setattr(Dataset, "save_to_disk", stop_saving)
    with pytest.raises(KeyboardInterrupt):
        save(DATASET.select([1]), tmp_path / "out", "new")
    monkeypatch.undo()
    with claim(tmp_path / "out"):
        assert load_from_disk(tmp_path / "out").to_list() == DATASET.to_list()
    save(DATASET.select([1]), tmp_path / "out", "new")
    assert load_from_disk(tmp_path / "out")["number"][:] == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_second_run_fails_while_another_one_is_writing(tmp_path):
    code = (
        "import sys; from rlmec_trl.stages.output import claim\n"
        "with claim(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ) as first:
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match=r"Another run is writing to '.*out'. Wait for it to end, or choose"):
            save(DATASET, tmp_path / "out")
        first.kill()
        first.wait()
    save(DATASET, tmp_path / "out")


@pytest.mark.parametrize("key", ["key", "other"])
def test_a_second_run_that_arrives_while_the_first_publishes_is_told_so(tmp_path, key):
    """Whatever state the folders are in: the checks must not run into files that are being moved."""
    save(DATASET, tmp_path / "out", "key")
    arrivals = []

    def arrive():
        arrivals.append(None)
        with pytest.raises(OutputError, match="Another run is writing to '.*out'"):
            with claim(tmp_path / "out", key):
                pass

    def save_slowly(folder):
        arrive()
        save_rows(DATASET.select([1]), folder)
        (tmp_path / "out" / MARK).unlink()  # as it looks while the old result is moved away
        arrive()
        save_rows(DATASET.select([1]), tmp_path / "out")
        for path in (tmp_path / "out").iterdir():
            path.unlink()

    with claim(tmp_path / "out") as work_dir:
        publish(save_slowly, tmp_path / "out", "new", work_dir)
    assert len(arrivals) == 2
    assert is_finished(tmp_path / "out", "new")


@pytest.mark.parametrize("moment", ["before the lock is opened", "after the lock was opened"])
def test_a_run_that_arrives_while_the_first_removes_its_folder_begins_anew(tmp_path, monkeypatch, moment):
    acquire, calls = FileLock.acquire, []

    def lose_the_folder(lock, *args, **kwargs):
        calls.append(None)
        if len(calls) == 1 and moment == "before the lock is opened":
            raise FileNotFoundError(lock.lock_file)
        held = acquire(lock, *args, **kwargs)
        if len(calls) == 1:
            Path(lock.lock_file).unlink()
        return held

    monkeypatch.setattr(FileLock, "acquire", lose_the_folder)
    save(DATASET, tmp_path / "out")
    assert len(calls) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [OutputError("no"), KeyboardInterrupt(), ZeroDivisionError()], ids=repr)
def test_a_run_that_fails_before_any_shard_leaves_nothing_behind(tmp_path, error):
    with pytest.raises(type(error)):
        with claim(tmp_path / "out"):
            raise error
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed_once_its_result_is_found_complete(tmp_path):
    """A kill leaves no time to clean up: after the last rename, the old result is still there."""
    save(DATASET, tmp_path / "out", "key")
    work_dir = tmp_path / ".out.rlmec_trl"
    for name in ("result", "replaced"):
        save_rows(DATASET, work_dir / name)
    (work_dir / "lock").touch()
    with claim(tmp_path / "out", "key"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert is_finished(tmp_path / "out", "key")


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    save(DATASET, tmp_path / "out", "old")
    (tmp_path / ".out.rlmec_trl").mkdir()
    (tmp_path / "out").rename(tmp_path / ".out.rlmec_trl" / "replaced")
    with claim(tmp_path / "out", "new"):
        assert is_finished(tmp_path / "out", "old")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_output_folder_may_be_a_link_to_one(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "results")
    save(DATASET, tmp_path / "out", "first")
    save(DATASET.select([1]), tmp_path / "out", "second")
    assert (tmp_path / "out").is_symlink()
    assert load_from_disk(tmp_path / "disk" / "results")["number"][:] == [1]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.parent.name != "results") == [
        "disk",
        "out",
        "results",
    ]
    with claim(tmp_path / "disk" / "results"):
        with pytest.raises(OutputError, match="Another run is writing"):
            save(DATASET, tmp_path / "out")


@pytest.mark.parametrize("name", ["/", ".", "", "..", "loop", "file/out", "nul\0", "half\ud800", "~nobody-at-all/out"])
def test_a_path_that_cannot_be_an_output_folder_is_refused_by_name(tmp_path, monkeypatch, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = str(tmp_path / name) if name[:1].isalpha() else name
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=re.escape(repr(path))):
        save(DATASET, path)
    assert contents(tmp_path) == before


@settings(max_examples=25)
@given(data=st.data())
def test_a_truncated_result_is_named_moved_aside_and_made_again(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("folder")
    save(DATASET, folder / "out", "key")
    names = sorted(path.name for path in (folder / "out").iterdir() if path.name != MARK)
    damaged = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    for name in damaged:
        path = folder / "out" / name
        length = data.draw(st.none() | st.integers(0, path.stat().st_size - 1))
        path.unlink() if length is None else path.write_bytes(path.read_bytes()[:length])
    left = contents(folder / "out")
    assert not is_finished(folder / "out", "key")
    assert all(any(name in found for name in damaged) for found in find_damage(folder / "out"))
    save(DATASET, folder / "out", "key")
    assert load_from_disk(folder / "out").to_list() == DATASET.to_list()
    assert contents(folder / "out.damaged-1") == left
    assert sorted(path.name for path in folder.iterdir()) == ["out", "out.damaged-1"]


@settings(max_examples=25)
@given(data=st.data())
def test_a_result_that_has_changed_at_the_same_size_is_not_taken_for_finished(tmp_path_factory, data):
    """A byte that the disk has lost, or a block of zeros after a power failure."""
    folder = tmp_path_factory.mktemp("folder")
    save(DATASET, folder / "out", "key")
    path = data.draw(st.sampled_from(sorted(path for path in (folder / "out").iterdir() if path.name != MARK)))
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content) - 1))
    path.write_bytes(content[:start] + bytes([content[start] ^ 0xFF]) + content[start + 1 :])
    left = contents(folder / "out")
    assert not is_finished(folder / "out", "key")
    with pytest.raises(DatasetError, match=f"{path.name} has changed.*run the stage that wrote it again"):
        load_rows(str(folder / "out"))
    save(DATASET, folder / "out", "key")
    assert load_rows(str(folder / "out")).to_list() == DATASET.to_list()
    assert contents(folder / "out.damaged-1") == left


def test_a_result_of_an_earlier_version_without_hashes_is_finished(tmp_path):
    save(DATASET, tmp_path / "out", "key")
    mark = json.loads((tmp_path / "out" / MARK).read_text())
    del mark["hashes"]
    (tmp_path / "out" / MARK).write_text(json.dumps(mark))
    assert is_finished(tmp_path / "out", "key")
    assert load_rows(str(tmp_path / "out")).to_list() == DATASET.to_list()


def test_a_dataset_that_the_user_has_saved_over_a_result_loads_without_the_mark(tmp_path):
    save(DATASET, tmp_path / "out", "key")
    DATASET.map(lambda row: {"number": row["number"] + 1}).save_to_disk(tmp_path / "out")
    with pytest.raises(DatasetError, match=f"delete {re.escape(MARK)}"):
        load_rows(str(tmp_path / "out"))
    (tmp_path / "out" / MARK).unlink()
    assert load_rows(str(tmp_path / "out"))["number"][0] == 1


def test_the_user_is_told_of_a_truncated_result_before_the_work(tmp_path, caplog):
    save(DATASET, tmp_path / "out", "key")
    (arrow_file,) = (tmp_path / "out").glob("*.arrow")
    arrow_file.write_bytes(arrow_file.read_bytes()[:20])
    (tmp_path / "out.damaged-1").write_text("mine")
    with caplog.at_level(logging.WARNING), claim(tmp_path / "out", "key"):
        message = caplog.text
    assert "holds a damaged result (data-00000-of-00001.arrow has 20 of" in message
    assert "moved to" in message and "out.damaged-2" in message
    assert (tmp_path / "out.damaged-1").read_text() == "mine"


def test_a_full_disk_is_named_and_the_earlier_result_stays(tmp_path):
    save(DATASET, tmp_path / "out", "old")

    def fail(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    with pytest.raises(OutputError, match="out' cannot be written: No space left on device"):
        with claim(tmp_path / "out") as work_dir:
            publish(fail, tmp_path / "out", "new", work_dir)
    assert is_finished(tmp_path / "out", "old")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_of_the_work_is_not_taken_for_one_of_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        with claim(tmp_path / "out"):
            raise FileNotFoundError("the model's own")


def test_a_second_run_is_told_that_a_result_file_is_taken(tmp_path):
    with claim_file(tmp_path / "new" / "result.json", ["total"]):
        with pytest.raises(OutputError, match="Another run will write '.*result.json'"):
            with claim_file(tmp_path / "new" / "result.json", ["total"]):
                pass
    assert list((tmp_path / "new").iterdir()) == []
    with claim_file(None, []), claim_file(None, []):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        with claim_file(tmp_path / "file" / "result.json", ["total"]):
            pass


FILE_NAMES = st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,5})?", fullmatch=True)


@settings(max_examples=25)
@given(
    names=st.lists(st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,5})?", fullmatch=True), min_size=1, max_size=4, unique=True)
)
def test_no_file_of_any_name_is_lost(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("folder")
    save(DATASET, folder / "out")
    ours = set(contents(folder / "out"))
    for name in set(names) - ours:
        (folder / "out" / name).write_text(name)
    if set(names) - ours:
        with pytest.raises(OutputError):
            save(DATASET, folder / "out")
        assert all((folder / "out" / name).read_text() == name for name in set(names) - ours)
    else:
        check_replaceable(folder / "out")
