"""Datasets by path or name."""

import json

import pytest
from datasets import Dataset, DatasetDict, List, Value

from rlmec_trl.data.loading import load_rows
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


def test_a_folder_with_several_splits_asks_for_one_of_them(tmp_path):
    dataset = Dataset.from_list(ROWS)
    DatasetDict({"train": dataset, "test": dataset}).save_to_disk(tmp_path / "all")
    with pytest.raises(DatasetError, match=r"all' holds several splits \(train, test\). Name the folder of one of"):
        load_rows(str(tmp_path / "all"))
    assert load_rows(str(tmp_path / "all" / "test")).to_list() == ROWS


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file '.*nothing.jsonl'"):
        load_rows(str(tmp_path / "nothing.jsonl"))


# More than the 10 MB from which types are inferred
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
