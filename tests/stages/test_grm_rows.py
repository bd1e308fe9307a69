"""Which scored rows train the next reward model beside a teacher's edits, and how."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from recipes import train_grm
from rlmec_trl.data.errors import ConfigError, DatasetError
from rlmec_trl.data.schema import check_dataset
from rlmec_trl.stages.grm_rows import gather_grm_rows
from rlmec_trl.tasks.arithmetic import make_policy
from rlmec_trl.tasks.task import load_task


ROOT = Path(__file__).parents[2]
TASK = load_task("arithmetic")
EDIT_COLUMNS = ["prompt", "reference", "answer", "completion", "completion_ids", "correct", "rewrite", "error_step"]
KEPT = ["prompt", "reference", "completion", "correct", "rewrite", "error_step", "completion_ids"]


def edited(rows, columns=EDIT_COLUMNS):
    return Dataset.from_list([{name: row[name] for name in columns} for row in rows])


def scored(rows, **changes):
    """The rows as `score.py` writes them. A value of `changes` is a function of the row."""
    columns = {"rewrite_ids": lambda row: None if row["rewrite"] is None else [1], **changes}
    return Dataset.from_list(
        [
            {name: value for name, value in row.items() if name != "error_step"}
            | {name: function(row) for name, function in columns.items()}
            for row in rows
        ]
    )


def as_messages(rows):
    def message(role, text):
        return None if text is None else [{"role": role, "content": text}]

    texts = {"prompt": "user", "completion": "assistant", "rewrite": "assistant"}
    return [row | {name: message(role, row[name]) for name, role in texts.items()} for row in rows]


@pytest.fixture
def rows(make_rows):
    """A correct, an incorrect and a flawed sample, three times, with verified rewrites."""
    return make_rows(9)


# --- Edits alone -----------------------------------------------------------------------------------------------------


def test_a_single_dataset_of_edits_is_used_as_it_is(rows):
    dataset = edited([{**row, "rewrite": None} if row is rows[0] else row for row in rows])
    gathered, left_out = gather_grm_rows({"edits": dataset}, TASK)
    assert gathered is dataset
    assert not left_out


def test_two_datasets_of_edits_are_joined(rows):
    without = [{**row, "rewrite": None} if row is rows[5] else row for row in rows[4:]]
    gathered, left_out = gather_grm_rows({"a": edited(rows[:4]), "b": edited(without)}, TASK)
    assert gathered.to_list() == edited([row for row in rows if row is not rows[5]], KEPT).to_list()
    assert not left_out


# --- Scored rows -----------------------------------------------------------------------------------------------------


def test_verified_rewrites_become_edits_with_the_first_step_that_they_change(rows):
    gathered, left_out = gather_grm_rows({"edits": edited(rows[:3]), "scored": scored(rows[3:])}, TASK)
    # The teacher of these rows is never wrong, and the task finds the flaw of each flawed sample, so nothing differs
    assert gathered.to_list() == edited(rows, KEPT).to_list()
    assert not left_out
    check_dataset(gathered, "edits")


def test_scored_rows_alone_are_enough(rows):
    gathered, _ = gather_grm_rows({"scored": scored(rows)}, TASK)
    assert gathered.to_list() == edited(rows, KEPT).to_list()


@pytest.mark.parametrize("edits_first", [True, False])
def test_edits_win_over_scored_rows_of_their_problem(rows, edits_first):
    other = {**rows[0], "completion": rows[0]["completion"] + " ", "rewrite": rows[0]["completion"] + " "}
    datasets = {"edits": edited(rows[:3]), "scored": scored([*rows, other])}
    if not edits_first:
        datasets = dict(reversed(datasets.items()))
    gathered, left_out = gather_grm_rows(datasets, TASK)
    assert gathered.to_list() == edited(rows, KEPT).to_list()
    assert left_out == {"problem with an edit": 4}, "other samples of the problem too"


def test_a_problem_whose_edits_all_failed_may_have_a_scored_row(rows):
    failed = edited([rows[0], {**rows[1], "rewrite": None}])
    gathered, left_out = gather_grm_rows({"edits": failed, "scored": scored(rows[:3])}, TASK)
    assert gathered["prompt"][:] == [row["prompt"] for row in rows[:3]]
    assert left_out == {"problem with an edit": 1}


def test_every_reason_to_leave_a_row_out_is_counted(rows):
    correct, incorrect, flawed = rows[:3]
    needless = {**correct, "rewrite": correct["completion"].replace(" is ", " = ").replace(" makes ", " = ")}
    needless["completion"] = needless["rewrite"].replace(" = ", " is ")
    given = [
        {**incorrect, "rewrite": None},
        {**flawed, "rewrite": None},
        needless,
        {**incorrect, "rewrite": incorrect["completion"]},
        flawed,
    ]
    gathered, left_out = gather_grm_rows({"scored": scored(given)}, TASK)
    assert left_out == {
        "no verified rewrite": 2,
        "correct sample without a wrong step, changed": 1,
        "incorrect sample, not changed": 1,
    }
    assert gathered.to_list() == edited([flawed], KEPT).to_list(), "a wrong step is reason enough to change it"


def test_white_space_around_a_rewrite_is_no_change(rows):
    gathered, left_out = gather_grm_rows({"scored": scored([{**rows[0], "rewrite": rows[0]["rewrite"] + " "}])}, TASK)
    assert gathered.to_list() == edited(rows[:1], KEPT).to_list()
    assert not left_out


def test_what_the_edit_stage_wrote_before_scoring_is_not_read(rows):
    """Edits that were scored keep no teacher's step: the rewrite is the reward model's."""
    stale = scored(rows, error_step=lambda row: 7)
    gathered, _ = gather_grm_rows({"scored": stale}, TASK)
    assert gathered["error_step"][:] == [row["error_step"] for row in rows]


# --- Columns ---------------------------------------------------------------------------------------------------------


def test_messages_stay_messages_whatever_fields_they_have(rows):
    chats = as_messages(rows)
    named = [{**row, "prompt": [{**row["prompt"][0], "name": None}]} for row in chats]
    gathered, left_out = gather_grm_rows({"edits": edited(chats[:3]), "scored": scored(named)}, TASK)
    assert left_out == {"problem with an edit": 3}
    assert gathered["rewrite"][:] == [row["rewrite"] for row in chats]
    assert gathered["error_step"][:] == [row["error_step"] for row in rows]
    check_dataset(gathered, "edits")


def test_arguments_of_the_chat_template_and_sampled_ids_are_kept_where_they_are(rows):
    thinking = {"enable_thinking": True}
    with_arguments = scored(rows[3:], chat_template_kwargs=lambda row: thinking)
    gathered, _ = gather_grm_rows({"edits": edited(rows[:3]), "scored": with_arguments}, TASK)
    assert gathered["chat_template_kwargs"][:] == [None] * 3 + [thinking] * 6
    # Edits from elsewhere may have no ids, and a column with some would not pass the trainer's checks
    without_ids = edited(rows[:3], [name for name in EDIT_COLUMNS if name != "completion_ids"])
    gathered, _ = gather_grm_rows({"edits": without_ids, "scored": scored(rows)}, TASK)
    assert gathered.column_names == [name for name in KEPT if name != "completion_ids"]


# --- Errors ----------------------------------------------------------------------------------------------------------


def test_an_invalid_row_is_named_with_its_dataset(rows):
    rows[4] = {**rows[4], "reference": ""}
    with pytest.raises(DatasetError, match=r"Row 1, column 'reference': .* \(In 'mine'\.\)"):
        gather_grm_rows({"edits": edited(rows[:3]), "mine": scored(rows[3:])}, TASK)
    rows[0] = {**rows[0], "rewrite": None}
    with pytest.raises(DatasetError, match=r"Row 4, column 'reference': .* \(In 'edits'\.\)"):
        gather_grm_rows({"edits": edited(rows), "mine": scored(rows[:2])}, TASK)


def test_samples_without_a_rewrite_are_refused_by_name(rows):
    samples = edited(rows, EDIT_COLUMNS[:-2])
    with pytest.raises(DatasetError, match=r"'rewrite' is missing, .* \(In 'samples'\.\)"):
        gather_grm_rows({"edits": edited(rows[:3]), "samples": samples}, TASK)


def test_texts_and_messages_together_are_refused(rows):
    with pytest.raises(DatasetError, match="Some prompts of 'edits', 'scored' are strings, and others messages"):
        gather_grm_rows({"edits": edited(rows[:3]), "scored": scored(as_messages(rows))}, TASK)


def test_responses_that_are_texts_in_one_dataset_and_messages_in_another_are_joined(rows):
    texts = [row | {"prompt": message["prompt"]} for row, message in zip(rows, as_messages(rows), strict=True)]
    gathered, _ = gather_grm_rows({"edits": edited(texts[:3]), "scored": scored(as_messages(rows[3:]))}, TASK)
    for name in ("completion", "rewrite"):
        assert gathered[name][:] == [row[name] for row in rows]


def test_fields_of_messages_that_cannot_be_joined_are_one_error(rows):
    def with_field(rows, value):
        return [row | {"prompt": [row["prompt"][0] | {"source": value}]} for row in as_messages(rows)]

    datasets = {"edits": edited(with_field(rows[:3], {"id": 1})), "scored": scored(with_field(rows[3:], [2]))}
    with pytest.raises(
        DatasetError, match="messages of 'edits', 'scored' have a field with values of different types"
    ):
        gather_grm_rows(datasets, TASK)


@pytest.mark.parametrize("again", ["runs/edits", "runs/edits/", "./runs/edits"])
def test_a_dataset_that_is_named_twice_is_refused(again):
    with pytest.raises(ConfigError, match="`dataset_name` names 'runs/edits' twice"):
        train_grm.GRMArguments(dataset_name=["runs/edits", "runs/scored", again], task="arithmetic")


def test_nothing_to_train_on_is_said_with_the_reasons(rows):
    nothing = scored([{**row, "rewrite": None} for row in rows], rewrite=lambda row: None)
    with pytest.raises(DatasetError, match=r"no row to train .* in 'scored' \(no verified rewrite: 9\)"):
        gather_grm_rows({"scored": nothing}, TASK)


# --- The recipe ------------------------------------------------------------------------------------------------------


def test_the_recipe_trains_on_edits_and_scored_rows(rows, tmp_path, tokenizer, scripts):
    edited(rows[:3]).save_to_disk(tmp_path / "edits")
    scored([*rows[:-1], {**rows[-1], "rewrite": None}]).save_to_disk(tmp_path / "scored")
    for part in (make_policy(tokenizer, hidden_size=16, num_hidden_layers=1), tokenizer):
        part.save_pretrained(tmp_path / "policy")
    words = ["--dataset_name", "edits", "scored", "--task", "arithmetic", "--model_name_or_path", "policy"]
    words += ["--output_dir", "grm", "--max_steps", "1", "--per_device_train_batch_size", "2", "--use_cpu", "true"]
    words += ["--bf16", "false", "--report_to", "none", "--locate_fraction", "0"]
    finished = scripts.run(ROOT / "recipes" / "train_grm.py", *words, cwd=tmp_path)
    assert finished.exit_code == 0, finished.stderr[-3000:]
    counts = "problem with an edit: 3, no verified rewrite: 1"
    assert f"Training on 8 rows. Scored rows left out: {counts}" in finished.stdout
    state = json.loads((tmp_path / "grm" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["epoch"] == 0.25, "one step of four"
