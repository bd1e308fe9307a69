"""Every invalid row is found, and the message names the row, the column, the value and the fix."""

import json
import math
import re
import sys

import numpy as np
import pytest
from datasets import Dataset, Features, IterableDataset, Json, List, Value, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.schema import DatasetError, StreamCheck, check_dataset, column_features


EOS = 2
ROW = {
    "prompt": "What is 1 + 2?",
    "reference": "1 + 2 = 3",
    "answer": "3",
    "completion": "1 + 2 is 4",
    "completion_ids": [5, 6, EOS],
    "correct": False,
    "rewrite": "1 + 2 is 3",
    "error_step": 0,
    "rewrite_ids": [5, 7, 8, EOS],
    "token_probs": [0.0, 1.0, 0.5],
    "old_logps": [-0.5, 0.0, -3.0],
    "token_rewards": [0.0, -0.1, 2.0],
    "rewrite_topk_ids": [[5, 6], [7, 4], [8, 9], [EOS, 5]],
    "rewrite_topk_logps": [[-0.1, -3.0], [-0.1, -4.0], [-1.0, -1.5], [-0.2, -2.0]],
    "attempt_topk_ids": [[5, 6], [7, 6], [EOS, 5]],
    "attempt_topk_logps": [[-0.1, -3.0], [0.01, -math.inf], [-1.0, -1.5]],
    "chosen": "1 + 2 is 3",
    "rejected": "1 + 2 is 4",
    "kind": "label",
    "margin": 0.5,
}
STAGES = {
    "task": ["prompt", "reference", "answer"],
    "samples": ["prompt", "reference", "answer", "completion", "completion_ids", "correct"],
    "edits": ["prompt", "reference", "completion", "correct", "rewrite", "error_step"],
    "scores": ["prompt", "completion", "completion_ids", "correct", "token_probs", "old_logps", "rewrite"],
    "policy": ["prompt", "completion_ids", "correct", "token_probs", "rewrite_ids"],
    "dpo": ["prompt", "completion", "correct", "rewrite"],
    "preference": ["prompt", "chosen", "rejected"],
}
EVERYTHING = list(ROW)


def dataset(columns=EVERYTHING, **bad):
    """Two valid rows, then one with the given values."""
    rows = [{name: ROW[name] for name in columns} for _ in range(3)]
    rows[2] |= bad
    return Dataset.from_list(rows)


def refusal(data, stage, **kwargs):
    with pytest.raises(DatasetError) as error:
        check_dataset(data, stage, **kwargs)
    return str(error.value)


@pytest.mark.parametrize("stage", STAGES)
def test_valid_rows_pass_with_no_more_than_the_columns_of_their_stage(stage):
    check_dataset(dataset(STAGES[stage]), stage, eos_token_ids=EOS)
    check_dataset(dataset(), stage, eos_token_ids={EOS, 9})


@pytest.mark.parametrize(("stage", "name"), [(stage, name) for stage in STAGES for name in STAGES[stage]])
def test_the_error_for_a_missing_column_names_what_writes_it(stage, name):
    message = refusal(dataset([column for column in STAGES[stage] if column != name]), stage)
    assert f"'{name}'" in message
    assert "recipes/" in message or "the task's dataset" in message


@pytest.mark.parametrize(
    ("name", "recipe"),
    [("completion_ids", "recipes/sample.py"), ("error_step", "recipes/edit.py"), ("old_logps", "recipes/score.py")],
)
def test_the_error_for_a_missing_column_names_the_recipe_that_writes_it(name, recipe):
    stage = next(stage for stage in STAGES if name in STAGES[stage])
    assert recipe in refusal(dataset([column for column in STAGES[stage] if column != name]), stage)


@pytest.mark.parametrize(
    ("value", "fix"), [(5.0, "not over 0"), (-1e308, "must be finite"), (1.1, "not over 0"), (-math.inf, "finite")]
)
def test_log_probabilities_that_no_sampler_gives_are_refused(value, fix, make_rows):
    """They would train on garbage without ever giving a loss that is not finite."""
    rows = make_rows(3)
    rows[1]["old_logps"][2] = value
    with pytest.raises(DatasetError, match=f"Row 1, column 'old_logps'.*{fix}"):
        check_dataset(Dataset.from_list(rows), "policy")
    rows[1]["old_logps"][2] = 0.03  # of logits in bfloat16
    check_dataset(Dataset.from_list(rows), "policy")


def test_own_token_rewards_replace_probabilities_and_verdict():
    check_dataset(dataset(["prompt", "completion_ids", "token_rewards", "rewrite_ids"]), "policy")


def test_topk_columns_are_accepted_only_together():
    columns = STAGES["policy"]
    assert "'rewrite_topk_logps' is missing" in refusal(dataset([*columns, "rewrite_topk_ids"]), "policy")
    assert "'rewrite_topk_ids' is missing" in refusal(dataset([*columns, "rewrite_topk_logps"]), "policy")
    assert "'attempt_topk_logps' is missing" in refusal(dataset([*columns, "attempt_topk_ids"]), "policy")
    assert "'attempt_topk_ids' is missing" in refusal(dataset([*columns, "attempt_topk_logps"]), "policy")
    columns = [*STAGES["scores"], "rewrite_topk_ids", "rewrite_topk_logps"]
    assert "'rewrite_ids' is missing" in refusal(dataset(columns), "policy")


@pytest.mark.parametrize(
    ("stage", "name", "value", "found", "fix"),
    [
        ("task", "prompt", "", "''", "text"),
        ("task", "prompt", None, "None", "text"),
        ("task", "reference", " \n", "empty", "worked solution"),
        ("task", "answer", None, "None", "final answer"),
        ("samples", "completion", "", "empty", "sample it again"),
        ("samples", "completion_ids", [], "[]", "sample it again"),
        ("samples", "completion_ids", None, "None", "list of token ids"),
        ("samples", "completion_ids", [5, None], "None", "list of token ids"),
        ("samples", "correct", None, "None", "True or False"),
        ("edits", "rewrite", None, "None", "None where there is no verified rewrite"),
        ("edits", "rewrite", "", "empty", "None where there is no verified rewrite"),
        ("edits", "error_step", None, "None", "-1 where there is none"),
        ("edits", "error_step", -2, "-2", "-1 where there is none"),
        ("preference", "chosen", "", "empty", "two responses"),
        ("preference", "rejected", None, "None", "two responses"),
        ("preference", "kind", "labels", "labels", "one of 'label', 'rationale'"),
        ("preference", "kind", None, "None", "one of 'label', 'rationale'"),
        ("preference", "margin", math.nan, "nan", "a finite number"),
        ("preference", "margin", math.inf, "inf", "a finite number"),
        ("scores", "rewrite", "", "empty", "None where there is no verified rewrite"),
        ("scores", "rewrite_ids", [], "[]", "None where there is no verified rewrite"),
        ("scores", "token_probs", [0.1, 0.2], "2 values for 3 completion_ids", "one for each token"),
        ("scores", "token_probs", None, "None", "one for each token"),
        ("scores", "token_probs", [0.1, 0.2, 1.5], "1.5", "from 0 to 1"),
        ("scores", "token_probs", [0.1, -0.2, 0.5], "-0.2", "log-probability"),
        ("scores", "token_probs", [0.1, float("nan"), 0.5], "nan", "from 0 to 1"),
        ("scores", "token_probs", [None, 1.5, 0.5], "1.5", "from 0 to 1"),
        ("scores", "old_logps", [-0.1, None, -0.5], "None", "list of numbers"),
        ("scores", "old_logps", [-0.1] * 4, "4 values for 3 completion_ids", "one for each token"),
        ("scores", "old_logps", [-0.1, float("-inf"), 0.0], "-inf", "finite"),
        ("policy", "token_rewards", [0.1], "1 values for 3 completion_ids", "one for each token"),
        ("policy", "token_rewards", [0.1, float("nan"), 0.0], "nan", "finite"),
        ("policy", "token_rewards", [0.1, float("inf"), 0.0], "inf", "finite"),
        ("policy", "completion", "", "empty", "sample it again"),
        ("policy", "rewrite_topk_ids", [[5], [7], [8]], "3 tokens, where rewrite_ids has 4", "score.py"),
        ("policy", "rewrite_topk_logps", [[-1.0]] * 5, "5 tokens, where rewrite_ids has 4", "score.py"),
        ("policy", "rewrite_topk_logps", [[-1.0]] * 4, "1 log-probabilities", "score.py"),
        ("policy", "rewrite_topk_ids", [[5, 6], [], [8, 9], [2, 5]], "without candidates", "score.py"),
        ("policy", "rewrite_topk_logps", [[-1.0, float("nan")], *[[0.0, 0.0]] * 3], "nan", "score.py"),
        ("policy", "rewrite_topk_ids", None, "0 tokens, where rewrite_ids has 4", "score.py"),
        ("policy", "rewrite_topk_logps", [[-1.0, -2.0], [-0.1, 1.5], *[[0.0, 0.0]] * 2], "1.5", "not over 0"),
        ("scores", "rewrite_topk_logps", [[-1.0, math.inf], *[[0.0, 0.0]] * 3], "inf", "not over 0"),
        ("policy", "rewrite_topk_logps", [*[[0.0, -math.inf]] * 3, [-math.inf] * 2], "probability 0", "score.py"),
        ("policy", "attempt_topk_ids", [[5], [7]], "2 tokens, where completion_ids has 3", "score.py"),
        ("scores", "attempt_topk_logps", [[-1.0]] * 4, "4 tokens, where completion_ids has 3", "score.py"),
        ("policy", "attempt_topk_logps", [[-1.0]] * 3, "where attempt_topk_ids has 2 ids", "score.py"),
        ("policy", "attempt_topk_ids", [[5, 6], [], [2, 5]], "without candidates", "token of the completion"),
        ("policy", "attempt_topk_ids", [[5, 6], [5], [2, 5]], "2 candidates for one token and 1", "as many"),
        ("policy", "attempt_topk_logps", [[-1.0, float("nan")], *[[0.0, 0.0]] * 2], "nan", "score.py"),
        ("policy", "attempt_topk_logps", [[-1.0, -2.0], [-1e308] * 2, [0.0, 0.0]], "probability 0", "score.py"),
        ("scores", "attempt_topk_logps", [[-1.0, -2.0], [0.9, 1.1], [0.0, 0.0]], "1.1", "not over 0"),
        ("policy", "attempt_topk_ids", None, "0 tokens, where completion_ids has 3", "score.py"),
        ("policy", "attempt_topk_logps", None, "0 tokens, where completion_ids has 3", "score.py"),
        (
            "policy",
            "rewrite_topk_ids",
            [[5, 6], [7, 4], [8, 9, 5], [2, 5]],
            "2 candidates for one token and 3 for the next",
            "Every token of a row must have as many",
        ),
        (
            "scores",
            "rewrite_topk_logps",
            [[-1.0, -2.0], [-1.0], [-1.0, -2.0], [-1.0, -2.0]],
            "2 candidates for one token and 1 for the next",
            "Every token of a row must have as many",
        ),
    ],
)
def test_a_broken_value_is_reported_with_row_column_value_and_fix(stage, name, value, found, fix):
    message = refusal(dataset(**{name: value}), stage)
    assert message.startswith(f"Row 2, column '{name}': found ")
    assert found in message
    assert fix in message


@pytest.mark.parametrize("stage", ["scores", "policy"])
@pytest.mark.parametrize("probs", [[0.1, None, 0.5], [None, None, 1.0], [None, None, None], [1, None, 0]])
def test_a_token_that_the_reward_model_has_no_opinion_on_is_none(stage, probs):
    check_dataset(dataset(token_probs=probs), stage)
    check_dataset(Dataset.from_list([{name: ROW[name] for name in EVERYTHING} | {"token_probs": probs}] * 2), stage)
    (read,) = read_stream([{name: ROW[name] for name in EVERYTHING} | {"token_probs": probs}])
    assert read["token_probs"] == probs


@pytest.mark.parametrize(
    "value", [[None, "a", None], [None, True, None], [None, [0.5], None], [0.5, float("nan"), None]]
)
def test_what_is_no_probability_is_refused_beside_none_too(value):
    row = {name: ROW[name] for name in EVERYTHING} | {"token_probs": value}
    found = next(element for element in value if element is not None and element != 0.5)
    assert refusal(Dataset.from_list([row] * 2), "policy").startswith("Row 0, column 'token_probs': found ")
    with pytest.raises(DatasetError, match=rf"^Row 0, column 'token_probs': found {found!r}".replace("[", r"\[")):
        StreamCheck("policy")({name: [value] for name, value in row.items()}, [0])


@pytest.mark.parametrize(
    ("stage", "name", "values"),
    [
        ("task", "answer", [3.0, 4.0]),
        ("task", "reference", [[{"role": "assistant", "content": "x"}]] * 2),
        ("samples", "correct", [1, 0]),
        ("samples", "correct", ["True", "False"]),
        ("samples", "completion_ids", [[1.0, 2.0], [1.0]]),
        ("samples", "completion_ids", ["5 6 2", "5 2"]),
        ("samples", "completion_ids", [None, None]),
        ("edits", "error_step", [0.0, 1.0]),
        ("edits", "error_step", [False, True]),
        ("scores", "token_probs", [0.5, 0.5]),
        ("scores", "token_probs", [["a"], ["b"]]),
        ("policy", "rewrite_topk_ids", [[5, 6, 7, 2]] * 2),
        ("policy", "attempt_topk_ids", [[5, 6, 2]] * 2),
        ("policy", "attempt_topk_logps", [[["a"], ["b"], ["c"]]] * 2),
    ],
)
def test_a_column_of_the_wrong_type_is_reported_at_its_first_row(stage, name, values):
    columns = {column: [ROW[column]] * 2 for column in EVERYTHING} | {name: values}
    assert refusal(Dataset.from_dict(columns), stage).startswith(f"Row 0, column '{name}': found ")


def test_a_fraction_that_makes_floats_of_all_ids_is_reported_at_its_row():
    columns = {column: [ROW[column]] * 2 for column in EVERYTHING} | {"completion_ids": [[1, 2], [1.5]]}
    assert "Row 1, column 'completion_ids': found 1.5 " in refusal(Dataset.from_dict(columns), "samples")


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [("completion_ids", "5 6", "'5 6'"), ("correct", "yes", "'yes'"), ("token_probs", [["a"]], r"\['a'\] among")],
)
def test_the_broken_row_of_a_column_of_json_is_reported(tmp_path, name, value, found):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (ROW, ROW, ROW | {name: value}, ROW)))
    loaded = load_rows(str(path))
    assert loaded.features[name] == Json()
    assert re.match(f"Row 2, column '{name}': found {found}", refusal(loaded, "scores"))


def test_rows_may_differ_in_their_number_of_candidates():
    narrow = {
        "rewrite_topk_ids": [[token] for token in ROW["rewrite_ids"]],
        "rewrite_topk_logps": [[-0.1]] * len(ROW["rewrite_ids"]),
    }
    check_dataset(dataset(**narrow), "policy", eos_token_ids=EOS)


@pytest.mark.parametrize("stage", ["scores", "policy"])
def test_rows_without_a_distribution_on_the_attempt_may_be_among_others(stage):
    nothing = {"attempt_topk_ids": None, "attempt_topk_logps": None}
    check_dataset(dataset(**nothing), stage)
    check_dataset(Dataset.from_list([ROW | nothing] * 2), stage)
    (read,) = read_stream([{name: ROW[name] for name in EVERYTHING} | nothing])
    assert read["attempt_topk_ids"] is read["attempt_topk_logps"] is None


def test_a_rewrite_without_ids_needs_the_completion():
    text_only = ["prompt", "completion_ids", "correct", "token_probs", "rewrite"]
    check_dataset(dataset([*text_only, "completion"]), "policy")
    check_dataset(dataset([*text_only, "rewrite_ids"]), "policy")
    message = refusal(dataset(text_only), "policy")
    assert message.startswith("Row 0, column 'rewrite': found the text '1 + 2 is 3' without `rewrite_ids`")
    assert "no column `completion`" in message
    assert "recipes/sample.py" in message and "recipes/score.py" in message
    # In one row among others, and where there is nothing to imitate
    message = refusal(dataset([*text_only, "rewrite_ids"], rewrite_ids=None), "policy")
    assert message.startswith("Row 2, column 'rewrite': found the text")
    check_dataset(dataset([*text_only, "rewrite_ids"], rewrite_ids=None, rewrite=None), "policy")
    check_dataset(Dataset.from_list([{name: ROW[name] for name in text_only} | {"rewrite": None}] * 2), "policy")
    # The score stage does not read the completion for this
    check_dataset(dataset([*text_only, "completion", "old_logps"]), "scores")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("prompt", ["", " \n", [{"role": "user", "content": ""}]])
def test_an_empty_prompt_is_refused_at_every_stage(stage, prompt):
    rows = [{name: ROW[name] for name in STAGES[stage]} | {"prompt": prompt} for _ in range(2)]
    message = refusal(Dataset.from_list(rows), stage)
    assert message.startswith("Row 0, column 'prompt': found an empty text") and "Give every problem a text" in message


def test_a_truncated_completion_is_found_by_its_missing_eos():
    data = dataset(STAGES["samples"], completion_ids=[5, 6, 7, 8])
    check_dataset(data, "samples")
    message = refusal(data, "samples", eos_token_ids=[EOS, 9])
    assert message.startswith("Row 2, column 'completion_ids': found 4 tokens that end with id 8, not with EOS (2, 9)")
    assert "max_new_tokens" in message
    check_dataset(data, "samples", eos_token_ids=[EOS, 8])


def test_a_rewrite_without_eos_is_found_among_rows_without_rewrite():
    rows = [ROW, ROW | {"rewrite_ids": None}, ROW | {"rewrite_ids": [5, EOS]}, ROW | {"rewrite_ids": [5, 6]}]
    data = Dataset.from_list(rows).remove_columns(["rewrite_topk_ids", "rewrite_topk_logps"])
    assert refusal(data, "scores", eos_token_ids=EOS).startswith("Row 3, column 'rewrite_ids': found 2 tokens")


@pytest.mark.parametrize("stage", ["scores", "policy"])
def test_a_scored_row_may_have_no_verified_rewrite(stage):
    nothing = {name: None for name in ("rewrite", "rewrite_ids", "rewrite_topk_ids", "rewrite_topk_logps")}
    check_dataset(dataset(**nothing), stage, eos_token_ids=EOS)
    check_dataset(Dataset.from_list([ROW | nothing] * 2), stage, eos_token_ids=EOS)


def test_a_correct_sample_without_an_incorrect_step_must_be_its_own_rewrite():
    message = refusal(dataset(correct=True, error_step=-1), "edits")
    assert message.startswith("Row 2, column 'rewrite': found '1 + 2 is 3'")
    assert "word for word" in message
    check_dataset(dataset(correct=True, error_step=-1, rewrite=ROW["completion"]), "edits")
    # A correct answer may hide incorrect steps
    check_dataset(dataset(correct=True, error_step=0), "edits")


def chat(role, text):
    return [{"role": role, "content": text}]


@pytest.mark.parametrize("stage", STAGES)
def test_messages_are_read_as_strings_are(stage):
    row = ROW | {
        "prompt": chat("system", "Be brief.") + chat("user", ROW["prompt"]),
        "completion": chat("assistant", ROW["completion"]),
        "rewrite": chat("assistant", ROW["rewrite"]),
    }
    check_dataset(Dataset.from_list([row] * 2), stage, eos_token_ids=EOS)


def test_an_empty_message_is_refused_like_an_empty_string():
    rows = [ROW | {"completion": chat("assistant", text)} for text in ("fine", "")]
    assert refusal(Dataset.from_list(rows), "samples").startswith("Row 1, column 'completion': found an empty text")


def test_a_string_and_a_message_with_the_same_text_are_copies():
    row = ROW | {"completion": chat("assistant", "x"), "rewrite": "x", "correct": True, "error_step": -1}
    check_dataset(Dataset.from_list([row]), "edits")


def test_a_column_that_the_stage_does_not_read_may_be_anything():
    columns = {name: [ROW[name]] for name in STAGES["task"]}
    check_dataset(Dataset.from_dict(columns | {"correct": ["maybe"], "completion": [""]}), "task")


def test_rows_are_numbered_as_in_the_dataset_that_was_given():
    data = dataset(STAGES["task"], answer="").select([2, 0, 1]).select([1, 2, 0])
    assert refusal(data, "task").startswith("Row 2,")


def test_rows_are_numbered_across_batches():
    data = Dataset.from_dict({name: [ROW[name]] * 12_000 for name in STAGES["samples"]})
    bad = data.select(range(1)).map(lambda row: {"completion_ids": [5, 6]})
    assert refusal(concatenate_datasets([data, bad]), "samples", eos_token_ids=EOS).startswith("Row 12000,")


def test_other_widths_of_numbers_and_lists_are_read():
    features = {"completion_ids": List(Value("int32"), length=3), "token_probs": List(Value("float16"))}
    columns = {name: [ROW[name]] * 2 for name in STAGES["policy"]}
    data = Dataset.from_dict(columns)
    data = data.cast(Features(data.features | features))
    check_dataset(data, "policy", eos_token_ids=EOS)


@pytest.mark.parametrize("messages", [False, True])
def test_the_known_types_are_those_that_rows_of_python_values_get(messages):
    of_pairs = {"chosen", "rejected", "kind", "margin"}  # no stage writes them into samples
    row = {name: value for name, value in ROW.items() if name not in of_pairs} | {
        "edit_outcome": "rewritten",
        "label": "positive",
        "rationale_outcome": "accepted",
        "rewrite_index": 0,
    }
    if messages:
        row |= {name: chat("user", row[name]) for name in ("prompt", "completion", "rewrite")}
    assert column_features(messages) == Dataset.from_list([row]).features


def test_an_unknown_stage_is_a_plain_value_error():
    with pytest.raises(ValueError, match="samples"):
        check_dataset(dataset(), "sampled")


def test_tokens_are_not_checked_one_by_one_in_python():
    def num_calls(tokens, rows=50):
        ids = np.full((rows, tokens), 5)
        ids[:, -1] = EOS
        columns = {name: [ROW[name]] * rows for name in ("prompt", "correct", "completion", "rewrite")}
        data = Dataset.from_dict(columns | {"completion_ids": ids, "token_probs": np.full((rows, tokens), 0.5)})
        calls = []
        sys.setprofile(lambda frame, event, arg: calls.append(event))
        try:
            check_dataset(data, "policy", eos_token_ids=EOS)
        finally:
            sys.setprofile(None)
        return len(calls)

    num_calls(10)  # imports and compilations, which happen once
    assert num_calls(200) < num_calls(10) + 1000, "and not one for each of 10,000 tokens"


@pytest.mark.parametrize("messages_first", [True, False])
def test_a_column_with_texts_and_messages_is_an_error(tmp_path, messages_first):
    """As `datasets` loads it from JSON lines; all completions would take the form of the first row."""
    prompts = [[{"role": "user", "content": "1 + 1?"}], "1 + 1?"]
    rows = [{"prompt": prompt, "reference": "2", "answer": "2"} for prompt in prompts]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (rows if messages_first else rows[::-1])))
    with pytest.raises(DatasetError, match="Row 1, column 'prompt': found .* The rows before have another form"):
        check_dataset(load_rows(str(path)), "task")


# --- Streams ---------------------------------------------------------------------------------------------------------

SCORED = {name: ROW[name] for name in (*STAGES["policy"], "old_logps", "completion", "rewrite")}


def read_stream(rows, **kwargs):
    stream = IterableDataset.from_generator(lambda: iter(rows))
    return list(stream.map(StreamCheck("policy", **kwargs), batched=True, batch_size=10, with_indices=True))


def replace_first(name, value):
    return [value, *SCORED[name][1:]]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("token_probs", replace_first("token_probs", float("nan")), "found nan. It must be a probability"),
        ("token_probs", replace_first("token_probs", 1.5), "found 1.5. It must be a probability"),
        ("token_probs", SCORED["token_probs"][1:], "values for"),
        ("token_probs", None, "found None. It must be a list of numbers"),
        ("token_probs", replace_first("token_probs", "a"), "It must be a list of numbers"),
        ("token_probs", "0.5", "found '0.5'. It must be a list of numbers"),
        ("token_probs", object(), "found <object .* It must be a list of numbers"),
        ("old_logps", replace_first("old_logps", float("nan")), "found nan. It must be finite"),
        ("old_logps", replace_first("old_logps", float("-inf")), "found -inf. It must be finite"),
        ("completion_ids", [], "Drop the row, or sample it again"),
        ("completion_ids", replace_first("completion_ids", -1), "found the id -1"),
        ("completion_ids", replace_first("completion_ids", 999), "found the id 999"),
        ("completion_ids", replace_first("completion_ids", 2**70), "It must be a list of token ids"),
        ("completion_ids", replace_first("completion_ids", 0.5), "It must be a list of token ids"),
        ("completion_ids", replace_first("completion_ids", "\ud800"), "It must be a list of token ids"),
        ("completion_ids", [[5], 6], "It must be a list of token ids"),
        ("correct", None, "found None. It must be True or False"),
        ("correct", "yes", "found 'yes'. It must be True or False"),
        ("prompt", None, "found None. It must be a string or a list of messages"),
        ("prompt", 5, "found 5. It must be a string or a list of messages"),
        ("prompt", " ", "found an empty text"),
        ("prompt", "59 - \ud800", "a character is broken"),
        ("prompt", chat("user", "59 - 16"), "The rows before have another form"),
        ("prompt", [*chat("user", "59 - 16"), 5], "It must be a string or a list of messages"),
        ("prompt", [[chat("user", "59 - 16")]], "It must be a string or a list of messages"),
        ("prompt", [{"role": "user", "content": None}], "It must be a string or a list of messages"),
        ("rewrite", "", "found an empty text"),
        ("rewrite", ["59"], "It must be a string or a list of messages"),
    ],
)
@pytest.mark.parametrize("number", [1, 13])
def test_a_broken_row_of_a_stream_is_refused_when_it_is_read(number, name, value, message):
    """The second number is in the second batch, behind rows that are good."""
    rows = [dict(SCORED) for _ in range(15)]
    assert len(read_stream(rows, vocab_size=100)) == 15
    rows[number][name] = value
    with pytest.raises(DatasetError, match=f"^Row {number}, column '{name}': .*{message}"):
        read_stream(rows, vocab_size=100)


def test_a_stream_may_have_rows_of_messages_with_different_fields():
    """Arrow has no common type for them, and need not have one."""
    prompts = [[{"role": "user", "content": "2 + 3?", "extra": extra}] for extra in (1, "one", ["1"])]
    read = read_stream([SCORED | {"prompt": prompt} for prompt in prompts])
    assert [row["prompt"] for row in read] == prompts


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=8,
)


@given(name=st.sampled_from(sorted(SCORED)), value=json_values, number=st.integers(0, 3))
def test_any_value_in_a_stream_is_taken_or_refused_by_its_row(name, value, number):
    """Nothing else than a `DatasetError` comes out, and it names the row that was changed."""
    rows = {name: [SCORED[name]] * 4 for name in SCORED}
    rows[name][number] = value
    try:
        StreamCheck("policy", vocab_size=100)(rows, [7, 8, 9, 10])
    except DatasetError as error:
        # A row of messages before rows of texts makes these the odd ones
        assert str(error).startswith(f"Row {7 + number}, column ") or "another form" in str(error)


# --- Vocabulary ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("completion_ids", [5, 100, EOS]),
        ("rewrite_ids", [5, 7, 100, EOS]),
        ("rewrite_topk_ids", [[5, 6], [7, 4], [100, 9], [2, 5]]),
        ("attempt_topk_ids", [[5, 6], [7, 100], [2, 5]]),
    ],
)
def test_an_id_outside_the_vocabulary_is_refused(name, value):
    data = Dataset.from_list([ROW, ROW | {name: value}])
    check_dataset(data, "policy")
    check_dataset(data, "policy", vocab_size=101)
    with pytest.raises(
        DatasetError, match=f"Row 1, column '{name}': found the id 100, .* from 0 to 99. Use the model"
    ):
        check_dataset(data, "policy", vocab_size=100)
    negative = json.loads(json.dumps(value).replace("100", "-1"))
    with pytest.raises(DatasetError, match=f"Row 1, column '{name}': found the id -1"):
        check_dataset(Dataset.from_list([ROW, ROW | {name: negative}]), "policy")


def test_rows_of_a_selection_keep_their_numbers():
    with pytest.raises(DatasetError, match="Row 42, "):
        check_dataset(dataset(completion_ids=[-1, 5, EOS]), "samples", row_numbers=[40, 41, 42])
