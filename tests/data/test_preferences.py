"""Pairs for preference optimization: which rows make one, and where the response of a pair begins."""

import copy
import json
from types import SimpleNamespace

import pytest
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from rlmec_trl.data.errors import DatasetError
from rlmec_trl.data.preferences import move_shared_steps, preference_rows


SEPARATOR = " ; "
PROMPT = [{"role": "user", "content": "1 + 1"}]
ROW = {"prompt": "1 + 1", "completion": "1 + 1 = 3", "correct": False, "rewrite": "1 + 1 = 2"}


def message(text):
    return [{"role": "assistant", "content": text}]


def rows(*changes):
    return Dataset.from_list([ROW | change for change in changes])


def test_a_verified_rewrite_is_chosen_over_the_incorrect_sample():
    pairs, left_out = preference_rows(rows({}, {"completion": "5", "rewrite": "2"}))
    assert pairs.to_list() == [
        {"prompt": "1 + 1", "chosen": "1 + 1 = 2", "rejected": "1 + 1 = 3"},
        {"prompt": "1 + 1", "chosen": "2", "rejected": "5"},
    ]
    assert not left_out


def test_rows_without_a_preference_are_left_out_and_counted_by_their_reason():
    same = {"rewrite": ROW["completion"]}
    # A correct sample may have a rewrite, too, or none
    correct = ({"correct": True}, {"correct": True, "rewrite": None}, {"correct": True} | same)
    pairs, left_out = preference_rows(rows(*correct, {"rewrite": None}, same, same, {"completion": "5"}))
    assert pairs["rejected"][:] == ["5"]
    assert left_out == {"correct sample": 3, "no verified rewrite": 1, "rewrite equal to the sample": 2}


def test_responses_to_messages_become_messages_of_the_assistant():
    given = {"prompt": PROMPT, "completion": message("3"), "rewrite": message("2")}
    for changes in (given, given | {"completion": "3", "rewrite": "2"}, given | {"rewrite": "2"}):
        pairs, _ = preference_rows(rows(changes))
        assert pairs.to_list() == [{"prompt": PROMPT, "chosen": message("2"), "rejected": message("3")}]
    _, left_out = preference_rows(rows(given, given | {"rewrite": message("3")}))
    assert left_out == {"rewrite equal to the sample": 1}


def test_the_arguments_of_the_chat_template_and_tools_stay_with_their_rows():
    tools = [json.dumps([{"name": name}]) for name in ("add", "subtract")]
    pairs, _ = preference_rows(
        rows(
            {"correct": True, "chat_template_kwargs": {"depth": 9}, "tools": tools[0]},
            {"chat_template_kwargs": {"depth": 1}, "tools": tools[1]},
            {"chat_template_kwargs": None, "tools": tools[0]},
        )
    )
    assert pairs["chat_template_kwargs"][:] == [{"depth": 1}, {}]
    assert pairs["tools"][:] == [tools[1], tools[0]]


@pytest.mark.parametrize(
    ("dataset", "error"),
    [
        (rows({}, {"rewrite": ""}), "Row 1, column 'rewrite': found an empty text"),
        (rows({}, {"completion": None}), "Row 1, column 'completion': found None"),
        (rows({}, {"prompt": " "}), "Row 1, column 'prompt': found an empty text"),
        (rows({"correct": None}), "Row 0, column 'correct': found None"),
        (rows({"completion": message("3")}), "Row 0, column 'completion'.*The prompt is a string"),
        (rows({"rewrite": message("2")}), "Row 0, column 'rewrite'.*The prompt is a string"),
        (
            rows({"prompt": PROMPT, "rewrite": [*message("1"), *message("2")]}),
            "Row 0, column 'rewrite': found 2 messages",
        ),
        (
            rows({"prompt": PROMPT, "completion": [message("5")[0] | {"tool_calls": [{"name": "add"}]}]}),
            "Row 0, column 'completion': found a message with tool calls",
        ),
        (rows({}).remove_columns("rewrite"), "Column 'rewrite' is missing.*score.py"),
        # A row that is left out before does not change the number of the one that is named
        (
            rows({"correct": True, "chat_template_kwargs": "x"}, {"chat_template_kwargs": "x"}),
            "Row 1, column 'chat_template_kwargs'",
        ),
        (rows({"correct": True}, {"rewrite": None}), "No row makes a pair .correct sample: 1, no verified rewrite: 1"),
    ],
)
def test_rows_that_cannot_be_paired_are_named(dataset, error):
    with pytest.raises(DatasetError, match=error):
        preference_rows(dataset)


STEPS = ["1 + 2 = 3", "3 + 4 = 7", "7 + 1 = 8", "The answer is 8"]


@pytest.mark.parametrize(
    ("sample", "rewrite", "num_shared"),
    [
        (["1 + 2 = 4", *STEPS[1:]], STEPS, 0),
        ([*STEPS[:2], "7 + 1 = 9", "The answer is 9"], STEPS, 2),
        ([*STEPS[:-1], "The answer is 9"], STEPS, 3),
        # The last step of the shorter one is changed, too: it goes on
        (STEPS[:2], STEPS, 1),
        (STEPS, STEPS[:2], 1),
        (STEPS[2:], STEPS, 0),
        (["8"], STEPS, 0),
    ],
    ids=["first", "middle", "last", "longer", "shorter", "nothing shared", "one step"],
)
@pytest.mark.parametrize("form", ["text", "messages"])
def test_the_shared_steps_move_into_the_prompt_and_no_token_changes(
    sample, rewrite, num_shared, form, tokenizer, chat_tokenizer
):
    sample, rewrite = SEPARATOR.join(sample), SEPARATOR.join(rewrite)
    tokenizer = tokenizer if form == "text" else chat_tokenizer
    question = "Ann has 1 eggs, wins 2."
    prompt = question if form == "text" else [{"role": "user", "content": question}]
    pairs, _ = preference_rows(rows({"prompt": prompt, "completion": sample, "rewrite": rewrite}), SEPARATOR)
    shared = "".join(step + SEPARATOR for step in STEPS[:num_shared])
    assert pairs["shared_steps"][:] == [shared]

    whole = tokenized(tokenizer, pairs)
    moved = move_shared_steps(whole, tokenizer)
    before, after = whole[0], moved[0]
    for name in ("chosen_ids", "rejected_ids"):
        assert after["prompt_ids"] + after[name] == before["prompt_ids"] + before[name]
    start = len(before["prompt_ids"])
    # The tokenizer has a space before a word as part of it, so that the one after the separator stays in the response
    assert tokenizer.decode(after["prompt_ids"][start:]) == shared.rstrip()
    for name, text in (("chosen_ids", rewrite), ("rejected_ids", sample)):
        assert tokenizer.decode(after[name], skip_special_tokens=True).strip() == text.removeprefix(shared)


def tokenized(tokenizer, pairs):
    """The pairs as `DPOTrainer` tokenizes them."""
    args = DPOConfig("out", bf16=False, use_cpu=True, report_to="none")
    return DPOTrainer._prepare_dataset(SimpleNamespace(_tokenizer=tokenizer), pairs, tokenizer, args, "train")


def test_shared_steps_are_found_with_the_arguments_that_the_row_gives_the_chat_template(chat_tokenizer):
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = "{{ '=' if brief else 'makes' }}" + chat_tokenizer.chat_template
    responses = {"completion": SEPARATOR.join(STEPS[:3]), "rewrite": SEPARATOR.join(STEPS)}
    kwargs = {"chat_template_kwargs": {"brief": True}}
    pairs, _ = preference_rows(rows({"prompt": PROMPT} | responses | kwargs), SEPARATOR)
    whole = tokenized(tokenizer, pairs)
    moved = move_shared_steps(whole, tokenizer)[0]
    assert tokenizer.decode(moved["prompt_ids"]).endswith(STEPS[1] + " ;")


def test_pairs_whose_shared_steps_fill_the_length_are_left_out(tokenizer):
    changes = [{"completion": f"{SEPARATOR.join(STEPS[:-1][:size])} ; 5", "rewrite": "8"} for size in (1, 3)]
    for change in changes:
        change["rewrite"] = change["completion"][:-1] + "8"
    pairs, _ = preference_rows(rows(*changes), SEPARATOR)
    whole = tokenized(tokenizer, pairs)
    lengths = [len(row["prompt_ids"]) for row in move_shared_steps(whole, tokenizer)]
    assert lengths[0] < lengths[1]
    assert len(move_shared_steps(whole, tokenizer, max_length=lengths[1])) == 1
    assert len(move_shared_steps(whole, tokenizer, max_length=lengths[1] + 1)) == 2
