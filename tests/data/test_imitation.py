"""Rows for supervised fine-tuning: what is kept of them, and that each is checked."""

import json

import pytest
from datasets import Dataset, Features, Json, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmec_trl.data.errors import DatasetError
from rlmec_trl.data.imitation import prompt_completion_rows


MESSAGES = [{"role": "user", "content": "1 + 1"}]
ANSWER = [{"role": "assistant", "content": "2"}]


def rows(*changes):
    return Dataset.from_list([{"prompt": "1 + 1", "completion": "2", "correct": True} | change for change in changes])


def as_json(*values):
    """A column of several types, as a file of JSON lines gives it."""
    features = Features({"prompt": Json(), "completion": Value("string")})
    return Dataset.from_dict({"prompt": list(values), "completion": ["2"] * len(values)}, features=features)


def test_the_column_and_the_arguments_of_the_chat_template_are_kept():
    dataset = rows({"reference": "two", "chat_template_kwargs": {"enable_thinking": True}})
    assert prompt_completion_rows(dataset, "reference").to_list() == [
        {"prompt": "1 + 1", "completion": "two", "chat_template_kwargs": {"enable_thinking": True}}
    ]


CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
CALLS = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]


def test_tools_are_kept_and_a_call_of_one_needs_no_text():
    tools = json.dumps([{"type": "function", "function": {"name": "add"}}])
    dataset = rows({"prompt": MESSAGES, "completion": CALLS, "tools": tools})
    assert prompt_completion_rows(dataset).to_list() == [{"prompt": MESSAGES, "completion": CALLS, "tools": tools}]
    no_call = [CALLS[0] | {"tool_calls": []}]
    for refused in (rows({"prompt": MESSAGES, "completion": no_call}), rows({"completion": CALLS})):
        with pytest.raises(DatasetError, match="^Row 0, column 'completion': found"):
            prompt_completion_rows(refused)


def test_a_row_without_arguments_of_the_chat_template_has_none_of_the_others():
    dataset = rows(
        {"chat_template_kwargs": {"depth": 1}}, {"chat_template_kwargs": None}, {"chat_template_kwargs": {}}
    )
    assert prompt_completion_rows(dataset)["chat_template_kwargs"][:] == [{"depth": 1}, {}, {}]


def test_a_text_after_messages_becomes_the_message_of_the_assistant():
    assert prompt_completion_rows(rows({"prompt": MESSAGES}))["completion"][:] == [ANSWER]
    assert prompt_completion_rows(rows({"prompt": MESSAGES, "completion": ANSWER}))["completion"][:] == [ANSWER]


def test_only_correct_rows_are_kept_and_checked():
    dataset = rows({}, {"correct": False, "completion": None}, {"completion": "3"})
    assert prompt_completion_rows(dataset, only_correct=True)["completion"][:] == ["2", "3"]
    with pytest.raises(DatasetError, match="^Row 1, column 'completion': found None"):
        prompt_completion_rows(dataset)


@pytest.mark.parametrize(
    ("dataset", "settings", "message"),
    [
        (rows({}, {"prompt": None}), {}, "Row 1, column 'prompt': found None"),
        (rows({}, {"prompt": " "}), {}, "Row 1, column 'prompt': found an empty text"),
        (rows({"completion": 5}), {}, "Row 0, column 'completion': found 5"),
        (rows({"completion": ANSWER}), {}, "The prompt is a string, so the completion must be one too"),
        (rows({"prompt": MESSAGES, "completion": [{"role": "assistant"}]}), {}, "Row 0, column 'completion'"),
        (as_json("1 + 1", MESSAGES), {}, "Row 1, column 'prompt'.*another form"),
        (as_json(MESSAGES, "1 + 1"), {}, "Row 1, column 'prompt'.*another form"),
        (rows({}), {"completion_column": "solution"}, "Column 'solution' is missing.*'prompt', 'completion'"),
        (rows({}).remove_columns("prompt"), {}, "Column 'prompt' is missing"),
        (rows({}).remove_columns("correct"), {"only_correct": True}, "Column 'correct' is missing"),
        (rows({"correct": False}), {"only_correct": True}, "none is `correct`"),
        (rows({}, {"correct": None}), {"only_correct": True}, "Row 1, column 'correct': found None"),
        (rows({"correct": 1}), {"only_correct": True}, "Row 0, column 'correct': found 1"),
        (rows({"chat_template_kwargs": {"tokenize": True}}), {}, "It cannot set 'add_generation_prompt', 'tokenize'"),
        (rows({"chat_template_kwargs": "x"}), {}, "Row 0, column 'chat_template_kwargs': found 'x'"),
        (rows({}).select([]), {}, "There is no row to imitate"),
        # A row that is left out before does not change the number of the one that is named
        (rows({"correct": False}, {"completion": ""}), {"only_correct": True}, "Row 1, column 'completion'"),
    ],
)
def test_a_row_that_cannot_be_imitated_is_named(dataset, settings, message):
    with pytest.raises(DatasetError, match=message):
        prompt_completion_rows(dataset, **settings)


@settings(max_examples=30)
@given(
    st.lists(
        st.none()
        | st.integers(-(2**63), 2**63 - 1)  # larger ones become texts in a dataset
        | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
        | st.just(MESSAGES),
        min_size=1,
        max_size=4,
    )
)
def test_any_prompts_are_kept_or_named(values):
    dataset = as_json(*values)
    try:
        assert prompt_completion_rows(dataset)["prompt"][:] == values
    except DatasetError as error:
        assert str(error).startswith("Row ")
