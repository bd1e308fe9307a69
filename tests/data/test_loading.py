"""Datasets by path or name."""

import json

import pytest
from datasets import Dataset, DatasetDict, Json, List, Value

from rlmec_trl.data.errors import ConfigError
from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.marks import MARK, make_mark
from rlmec_trl.data.schema import DatasetError, column_features


ROWS = [{"prompt": f"{index} + 1?", "answer": str(index + 1)} for index in range(5)]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_file_of_json_lines(tmp_path, name):
    path = tmp_path / name
    write_lines(path, ROWS)
    assert load_rows(str(path)).to_list() == ROWS
    assert load_rows(str(path), split="test", max_rows=2).to_list() == ROWS[:2], (
        "a file has one split, whatever its name"
    )


def test_a_folder_of_save_to_disk(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "rows")
    assert load_rows(str(tmp_path / "rows")).to_list() == ROWS
    assert load_rows(str(tmp_path / "rows"), max_rows=3).to_list() == ROWS[:3]
    assert load_rows(str(tmp_path / "rows"), max_rows=100).to_list() == ROWS


def test_a_split_of_a_folder_that_has_several(tmp_path):
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:2])}).save_to_disk(tmp_path / "all")
    assert load_rows(str(tmp_path / "all")).to_list() == ROWS
    assert load_rows(str(tmp_path / "all"), split="test").to_list() == ROWS[:2]
    assert load_rows(str(tmp_path / "all" / "test")).to_list() == ROWS[:2]
    with pytest.raises(DatasetError, match=r"all' has no split 'validation'; its splits are train, test"):
        load_rows(str(tmp_path / "all"), split="validation")


@pytest.mark.parametrize("name", ["nothing.jsonl", "no/such/folder", "", "~nobody/rows.jsonl", "a" * 5000 + "/x/y"])
def test_a_file_or_folder_that_is_not_there(name):
    with pytest.raises(DatasetError, match="There is no file or folder"):
        load_rows(name)


def test_a_name_on_the_hub_that_cannot_be_reached():
    with pytest.raises(
        DatasetError, match="no file or folder 'gsm8k', and the split 'test' .* cannot be loaded from the Hub"
    ):
        load_rows("gsm8k", "test")


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet", "rows.jsonl.gz", "rows"])
def test_a_file_of_another_kind(tmp_path, name):
    (tmp_path / name).write_text("prompt\n1?\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="name does not end with .json or .jsonl"):
        load_rows(str(tmp_path / name))


@pytest.mark.parametrize("max_rows", [0, -1])
def test_no_rows_are_not_a_number_of_rows_to_take(tmp_path, max_rows):
    with pytest.raises(ConfigError, match="`max_rows` must be at least 1"):
        load_rows(write_lines(tmp_path / "rows.jsonl", ROWS), max_rows=max_rows)


# --- Folders ---------------------------------------------------------------------------------------------------------


def save(folder):
    Dataset.from_list(ROWS).save_to_disk(folder)
    (data,) = folder.glob("*.arrow")
    return data


def truncate(folder):
    data = save(folder)
    data.write_bytes(data.read_bytes()[:-100])


def empty_a_file(folder):
    save(folder).write_bytes(b"")


def remove_a_file(folder):
    save(folder).unlink()


def break_the_state(folder):
    save(folder)
    (folder / "state.json").write_text("{", encoding="utf-8")


def change_the_state(folder):
    save(folder)
    (folder / "state.json").write_text("{}", encoding="utf-8")


@pytest.mark.parametrize("damage", [truncate, empty_a_file, remove_a_file, break_the_state, change_the_state])
def test_a_dataset_that_is_not_whole_is_named(tmp_path, damage):
    damage(tmp_path / "rows")
    with pytest.raises(DatasetError, match="The dataset in '.*rows' cannot be read .* Write it again"):
        load_rows(str(tmp_path / "rows"))


def test_a_dataset_is_checked_by_the_mark_of_the_result_that_it_is_part_of(tmp_path):
    for name in ("train", "test"):
        Dataset.from_list(ROWS).save_to_disk(tmp_path / "task" / name)
    mark = make_mark(tmp_path / "task", "key")
    (tmp_path / "task" / MARK).write_text(json.dumps(mark))
    (file,) = (tmp_path / "task" / "train").glob("*.arrow")
    file.write_bytes(file.read_bytes().replace(b"1 + 1?", b"1 + 9?"))
    (tmp_path / "link").symlink_to("task/train")
    for path in (tmp_path / "task" / "train", tmp_path / "link"):
        with pytest.raises(DatasetError, match=r"not as it was written \(train/.*arrow has changed\). Delete .*task'"):
            load_rows(str(path))
    assert load_rows(str(tmp_path / "task" / "test")).to_list() == ROWS


def test_a_folder_without_a_dataset_says_what_it_holds(tmp_path):
    with pytest.raises(DatasetError, match="is not a folder that `save_to_disk` wrote: it is empty"):
        load_rows(str(tmp_path))
    write_lines(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(DatasetError, match="wrote: it holds rows.jsonl"):
        load_rows(str(tmp_path))


@pytest.mark.parametrize("num_shards", [None, 1])
def test_a_folder_without_rows(tmp_path, num_shards):
    Dataset.from_list(ROWS).select([]).save_to_disk(tmp_path / "rows", num_shards=num_shards)
    with pytest.raises(DatasetError, match="rows' has no rows"):
        load_rows(str(tmp_path / "rows"))


def test_links_to_files_and_folders(tmp_path):
    save(tmp_path / "rows")
    (tmp_path / "link").symlink_to(tmp_path / "rows")
    write_lines(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "rows.jsonl")
    for name in ("link", "link.jsonl"):
        assert load_rows(str(tmp_path / name)).to_list() == ROWS


# --- Types -----------------------------------------------------------------------------------------------------------


# More than the 10 MB from which `datasets` infers types
LONG_HEAD = 1100
FILLER = "x" * 11_000
LATE = {
    "completion": "4 * 3 = 11",
    "rewrite": "4 * 3 = 12",
    "rewrite_ids": [5, 6],
    "error_step": 0,
    "correct": False,
    "token_probs": [0.5, 1],
    "old_logps": [-0.5, -1.5],
    "rewrite_topk_ids": [[5, 6], [7, 8]],
    "rewrite_topk_logps": [[-0.5, -1.0], [-0.5, -2.0]],
    "attempt_topk_ids": [[5, 6], [7, 8]],
    "attempt_topk_logps": [[-0.5, -1.0], [-0.5, -2.0]],
}
EARLY = dict.fromkeys(LATE) | {"token_probs": [0, 1], "old_logps": []}


def test_a_column_of_json_lines_may_begin_with_more_than_a_chunk_of_nulls(tmp_path):
    rows = [{"prompt": FILLER, **EARLY}] * LONG_HEAD + [{"prompt": "p", **LATE}]
    loaded = load_rows(write_lines(tmp_path / "rows.jsonl", rows))
    assert loaded[0] == rows[0]
    assert loaded[-1] == rows[-1]
    assert {name: loaded.features[name] for name in loaded.column_names} == {
        name: feature for name, feature in column_features().items() if name in loaded.column_names
    }


def test_a_rewrite_that_begins_with_nulls_gets_the_form_of_its_completion(tmp_path):
    message = [{"role": "assistant", "content": "4 * 3 = 12"}]
    head = {"prompt": [{"role": "user", "content": FILLER}], "completion": message, "rewrite": None}
    rows = [head] * LONG_HEAD + [head | {"rewrite": message}]
    loaded = load_rows(write_lines(tmp_path / "rows.jsonl", rows))
    assert (loaded[0]["rewrite"], loaded[-1]["rewrite"]) == (None, message)


def test_types_that_a_file_tells_are_left_alone(tmp_path):
    rows = [{"answer": 3, "level": 1.5, "prompt": {"a": 1}, "correct": "yes", "token_probs": [0.5]}]
    loaded = load_rows(write_lines(tmp_path / "rows.jsonl", rows))
    assert loaded.to_list() == rows
    assert loaded.features["answer"] == Value("int64")
    assert loaded.features["token_probs"] == List(Value("float64"))


def test_a_file_that_is_one_json_array(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    assert load_rows(str(tmp_path / "rows.json")).to_list() == ROWS


@pytest.mark.parametrize(
    ("early", "late", "feature"),
    [
        (None, "a text", Value("string")),
        (None, 3, Value("int64")),
        (None, [1], List(Value("int64"))),
        (None, {"a": 1}, {"a": Value("int64")}),
        (1, 1.5, Value("float64")),
        ([], ["a"], List(Value("string"))),
        ({"a": None}, {"a": "a text"}, {"a": Value("string")}),
        ("2024-01-01", "no date", Value("string")),
        ("2024-01-01", "2024-01-02", Value("string")),
        # No type fits these, and each value stays as it is
        ("a text", ["a", "list"], Json()),
        (1, "a text", Json()),
        ("2", 2, Json()),
        (True, 1, Json()),
        (1, 2**64, Json()),
        ({}, {"a": 1}, Json()),
    ],
)
def test_all_rows_decide_the_type_of_a_column(tmp_path, early, late, feature):
    rows = [{"own": early}] * LONG_HEAD + [{"own": late}]
    loaded = load_rows(write_lines(tmp_path / "rows.jsonl", rows))
    assert loaded.features["own"] == feature
    last = loaded[-1]["own"]
    # `datasets` returns an integer over 64 bits as text
    assert (loaded[0]["own"], last) == (early, late if late != 2**64 else str(late))


def test_a_key_that_lines_lack_is_none(tmp_path):
    loaded = load_rows(write_lines(tmp_path / "rows.jsonl", [{"a": 1}] * LONG_HEAD + [{"b": {"c": 2}}]))
    assert (loaded[0], loaded[-1]) == ({"a": 1, "b": None}, {"a": None, "b": {"c": 2}})


def test_a_file_that_changes_is_read_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    for rows in (ROWS, ROWS[:2]):
        assert load_rows(write_lines(path, rows)).to_list() == rows


def test_values_are_what_the_json_module_reads(tmp_path):
    row = {"nul": "a\0b", "long": "x" * 100_000, "emoji": "\U0001f600", "rtl": "\u05d0\u202e", "line": "a\u2028b"}
    assert load_rows(write_lines(tmp_path / "rows.jsonl", [row])).to_list() == [row]
    (tmp_path / "more.jsonl").write_text('{"x": NaN}\n{"x": -Infinity}\n', encoding="utf-8")
    first, second = load_rows(str(tmp_path / "more.jsonl"))["x"]
    assert first != first and second == float("-inf")


# --- JSON lines ------------------------------------------------------------------------------------------------------


TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + TEXT,
        TEXT.replace("\n", "\r\n"),
        TEXT.replace("\n", "\r"),
        TEXT.rstrip("\n"),
        "\n \n" + TEXT.replace("\n", "\n\n"),
        json.dumps(ROWS, indent=2),
        "\ufeff\n" + json.dumps(ROWS),
    ],
    ids=["byte order mark", "CRLF", "CR", "no last LF", "blank lines", "an array", "an array below a blank line"],
)
def test_forms_of_a_file(tmp_path, content):
    (tmp_path / "rows.jsonl").write_bytes(content.encode())
    assert load_rows(str(tmp_path / "rows.jsonl")).to_list() == ROWS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no rows"),
        (b"\n\n", "has no rows"),
        (b"[]", "has no rows"),
        (b"{}\n", "has no rows"),
        (b'{"a": 1}\n\n{"a": \n{"a": 2}\n', r"line 3: found '{\"a\": ', which is not JSON \(Expecting value, at char"),
        (b'{"a": 1}\n{"a": 2', "line 2: found .* which is not JSON"),
        (b'{"a": 1}\r\n{"a": 2,}\r\n', "line 2: found .* which is not JSON"),
        (b'{"a": 1} {"a": 2}\n', "line 1: found .*Extra data"),
        (b'[{"a": 1},\n{"a" 2}]', r"line 2: found '{\"a\" 2}\]', which is not JSON"),
        (b'[{"a": 1}, 5]', "entry 1 of its array: found 5, which is not an object"),
        (b'{"a": 1}\nnull\n', "line 2: found None, which is not an object"),
        (b'{"a": 1}\n"a"\n', "line 2: found a, which is not an object"),
        (b'{"a": "\xe9"}\n', "line 1: found bytes that are not UTF-8"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "line 2: found bytes that are not UTF-8"),
        ('{"a": 1}\n'.encode("utf-16"), "line 1: found bytes that are not UTF-8"),
        (b'{"a": "b\0"}\n', "line 1: .*Invalid control character"),
        (b'{"a": "b"}\n{"a": "\\ud800"}\n', "line 2: found a lone surrogate"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}\n', "line 1: the key 'b' appears twice"),
        (b'{"a": {"\\u0000": 1}}\n', "line 1: the key .* has a NUL character"),
        (b'{"a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}\n", "line 1: found lists that are nested too"),
        (b'{"a": ' + b"1" * 5000 + b"}\n", "line 1: Exceeds the limit"),
        (b"PAR1\x15\x04", "line 1: found .* which is not JSON"),
    ],
)  # fmt: skip
def test_a_broken_line_is_named(tmp_path, content, message):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        load_rows(str(tmp_path / "rows.jsonl"))


def test_lists_that_are_nested_deeply_are_kept(tmp_path):
    deep = 1
    for _ in range(200):
        deep = [{"a": deep}]
    assert load_rows(write_lines(tmp_path / "rows.jsonl", [{"own": deep}]))[0]["own"] == deep


def test_a_surrogate_pair_is_one_character(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": "\\ud83d\\ude00"}\n', encoding="utf-8")
    assert load_rows(str(tmp_path / "rows.jsonl"))[0]["a"] == "\U0001f600"
