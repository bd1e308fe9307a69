"""Rows that cannot be used are all found, left out and listed; without that wish, the first of them is an error."""

import copy
import json

import pytest
from datasets import Dataset, load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from trl import ModelConfig

from rlmec_trl.data.errors import ConfigError
from rlmec_trl.data.schema import DatasetError, check_dataset
from rlmec_trl.grm.prompts import save_wording
from rlmec_trl.stages import sample, score
from rlmec_trl.stages.bad_rows import (
    BAD_ROWS_FILE,
    check_completion_ids,
    check_prompts,
    find_bad_rows,
    leave_out_bad_rows,
)
from rlmec_trl.stages.sample import SampleConfig
from rlmec_trl.stages.score import ScoreConfig
from rlmec_trl.tasks import arithmetic
from rlmec_trl.tasks.problems import ProblemConfig


COLUMNS = ["prompt", "reference", "answer", "completion", "completion_ids", "correct"]


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["fine", "", " ", None]), min_size=1, max_size=20))
def test_exactly_the_bad_rows_are_found_each_with_its_number(answers):
    rows = {"prompt": ["p"] * len(answers), "reference": ["r"] * len(answers), "answer": [*answers, "typed"]}
    dataset = Dataset.from_dict({name: (values * 2)[: len(answers) + 1] for name, values in rows.items()})
    found = find_bad_rows(dataset.select(range(len(answers))), lambda part: check_dataset(part, "task"))
    assert [bad_row.row for bad_row in found] == [index for index, answer in enumerate(answers) if answer != "fine"]
    assert {bad_row.column for bad_row in found} <= {"answer"}
    assert all(bad_row.reason.startswith("found ") for bad_row in found)


def test_rows_are_checked_once_where_none_is_bad():
    calls = []
    dataset = Dataset.from_dict({"number": list(range(100))})
    assert find_bad_rows(dataset, lambda part: calls.append(len(part))) == []
    assert calls == [100]


def test_rows_that_are_valid_alone_but_not_together_are_an_error():
    """Texts and messages: it is not for us to say which of them are the bad ones."""

    def check(rows):
        if len(set(rows["form"])) > 1:
            raise DatasetError("found another form. Use one.", 1, "form")

    with pytest.raises(DatasetError, match="found another form"):
        find_bad_rows(Dataset.from_dict({"form": ["text", "text", "messages"]}), check)


def test_a_missing_column_is_not_a_matter_of_rows():
    with pytest.raises(DatasetError, match="Column 'answer' is missing"):
        find_bad_rows(
            Dataset.from_dict({"prompt": ["p"], "reference": ["r"]}), lambda part: check_dataset(part, "task")
        )


def test_a_column_may_have_any_name():
    dataset = Dataset.from_dict({"it's": [1, 2, 3]})

    def check(part):
        for row, value in enumerate(part["it's"]):
            if value == 2:
                raise DatasetError("found 2. Drop it.", row, "it's")

    (bad_row,) = find_bad_rows(dataset, check)
    assert (bad_row.row, bad_row.column, bad_row.reason) == (1, "it's", "found 2. Drop it.")


def test_nothing_left_is_an_error_with_the_first_reason(tmp_path):
    dataset = Dataset.from_dict({"prompt": ["p"] * 2, "reference": ["r"] * 2, "answer": ["", ""]})
    with pytest.raises(DatasetError, match="All 2 rows are invalid. Row 0, column 'answer': found an empty text"):
        leave_out_bad_rows(dataset, lambda part: check_dataset(part, "task"), tmp_path)


def test_a_prompt_that_cannot_be_encoded_or_leaves_no_room_is_named(chat_tokenizer, tokenizer):
    strict = copy.deepcopy(chat_tokenizer)
    strict.chat_template = "{{ raise_exception('roles must alternate') if messages|length > 1 else 'x' }}"
    user = {"role": "user", "content": "x"}
    with pytest.raises(DatasetError, match="Row 1, column 'prompt': found .* refuses .*roles must alternate"):
        check_prompts(Dataset.from_dict({"prompt": [[user], [user, user]]}), strict)
    length = len(tokenizer("59 - 16 + 23")["input_ids"])
    prompts = Dataset.from_dict({"prompt": ["59", "59 - 16 + 23"]})
    check_prompts(prompts, tokenizer, length + 1)
    with pytest.raises(DatasetError, match=f"Row 1, column 'prompt': found {length} tokens, which leave no room"):
        check_prompts(prompts, tokenizer, length)


@pytest.mark.parametrize("ids", [[5, 6, 7], [10_000], [-1]], ids=["others", "too large", "negative"])
def test_ids_that_are_not_those_of_the_text_are_named(make_rows, tokenizer, ids):
    rows = make_rows(3)
    rows[2]["completion_ids"] = ids
    with pytest.raises(DatasetError, match="Row 2, column 'completion_ids': found ids that"):
        check_completion_ids(Dataset.from_list(rows), tokenizer)


# --- Stages ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, make_policy, tokenizer):
    for name in ("policy", "grm"):
        make_policy(sharpness=10.0).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    save_wording(arithmetic.WORDING, tmp_path / "grm")
    return tmp_path


def listed(folder):
    return [json.loads(line) for line in (folder / BAD_ROWS_FILE).read_text(encoding="utf-8").splitlines()]


def sample_with(folder, problems, **kwargs):
    problems.save_to_disk(folder / "problems")
    config = SampleConfig(str(folder / "samples"), "arithmetic", temperature=1.0, max_new_tokens=64, **kwargs)
    return sample.run(config, ProblemConfig(str(folder / "problems")), ModelConfig(str(folder / "policy")))


def test_sampling_leaves_bad_problems_out_and_lists_them(folder, capsys, monkeypatch):
    problems = arithmetic.make_arithmetic(warmup=0, train=6, validation=0, test=0)["train"]
    rows = [dict(row) for row in problems]
    rows[1]["answer"] = None
    rows[4]["prompt"] = "59 - 16 " * 200  # more than the policy has positions
    samples = sample_with(folder, Dataset.from_list(rows), on_bad_row="skip")
    assert 0 < len(samples)
    assert set(samples["prompt"]) <= {rows[index]["prompt"] for index in (0, 2, 3, 5)}
    assert [(row["row"], row["column"]) for row in listed(folder / "samples")] == [(1, "answer"), (4, "prompt")]
    printed = capsys.readouterr().out
    assert "2 of 6 rows are invalid and left out" in printed and BAD_ROWS_FILE in printed and "Row 1" in printed
    assert load_from_disk(folder / "samples").to_list() == samples.to_list()
    # Finished: no model is loaded, and the list is still there
    monkeypatch.setattr(sample, "load_model", None)
    assert sample_with(folder, Dataset.from_list(rows), on_bad_row="skip").to_list() == samples.to_list()
    with pytest.raises(DatasetError, match="Row 1, column 'answer'"):
        sample_with(folder, Dataset.from_list(rows))
    assert len(listed(folder / "samples")) == 2, "the result of the earlier run stays"


def test_with_nothing_to_skip_the_setting_changes_nothing(folder, monkeypatch):
    problems = arithmetic.make_arithmetic(warmup=0, train=3, validation=0, test=0)["train"]
    samples = sample_with(folder, problems)
    monkeypatch.setattr(sample, "load_model", None)
    assert sample_with(folder, problems, on_bad_row="skip").to_list() == samples.to_list()
    assert not (folder / "samples" / BAD_ROWS_FILE).exists()


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_every_prompt_is_checked_once(folder, on_bad_row, make_rows, monkeypatch):
    """... with any number of shards: it is as long as tokenizing all of them."""
    checked = []
    check = sample.check_prompts

    def count(rows, *arguments):
        checked.append(len(rows))
        check(rows, *arguments)

    monkeypatch.setattr(sample, "check_prompts", count)
    monkeypatch.setattr(score, "check_prompts", count)
    problems = arithmetic.make_arithmetic(warmup=0, train=4, validation=0, test=0)["train"]
    sample_with(folder, problems, on_bad_row=on_bad_row, shard_size=2)
    assert checked == [4]
    score_with(folder, make_rows(4), on_bad_row=on_bad_row, shard_size=2)
    assert checked == [4, 4]


def score_with(folder, rows, **kwargs):
    config = ScoreConfig(grm=str(folder / "grm"), task="arithmetic", rewrite_max_new_tokens=4, **kwargs)
    dataset = Dataset.from_list([{name: row[name] for name in COLUMNS} for row in rows])
    return score.run(config, dataset, folder / "scored", ModelConfig(str(folder / "policy")))


def test_scoring_leaves_bad_samples_out_and_lists_them(folder, make_rows):
    rows = make_rows(6)
    rows[0]["completion_ids"] = rows[0]["completion_ids"][:-1]  # no EOS
    rows[3]["reference"] = ""
    rows[5]["completion_ids"] = rows[4]["completion_ids"]
    scored = score_with(folder, rows, on_bad_row="skip")
    assert scored["completion"][:] == [rows[index]["completion"] for index in (1, 2, 4)]
    assert [(row["row"], row["column"]) for row in listed(folder / "scored")] == [
        (0, "completion_ids"),
        (3, "reference"),
        (5, "completion_ids"),
    ]


def test_ids_that_are_not_those_of_the_text_stop_scoring_before_a_model_is_loaded(folder, make_rows, monkeypatch):
    rows = make_rows(6)
    rows[5]["completion_ids"] = rows[4]["completion_ids"]
    monkeypatch.setattr(score, "load_model", None)
    with pytest.raises(DatasetError, match="Row 5, column 'completion_ids': found ids that decode to"):
        score_with(folder, rows, shard_size=2)


@pytest.mark.parametrize("run", [sample_with, score_with])
def test_another_wish_is_refused(folder, run, make_rows):
    rows = Dataset.from_list(make_rows(3)) if run is sample_with else make_rows(3)
    with pytest.raises(ConfigError, match="`on_bad_row` must be one of 'error', 'skip', got 'ignore'"):
        run(folder, rows, on_bad_row="ignore")
