"""Data sets by path, and raw problems as rows of the first stage."""

import json

import pytest
from datasets import Dataset, DatasetDict

from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.schema import DatasetError


ROWS = [{"prompt": f"{index} + 1?", "answer": str(index + 1)} for index in range(5)]
# --- Loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_file_of_json_lines(tmp_path, name):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
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
