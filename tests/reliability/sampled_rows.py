"""Rows that stages and trainers read: every column with what it must not have, and with what it may have."""

from functools import partial

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value

from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.schema import check_dataset
from tests.reliability.case import Case


SECTION = "Rows of samples, edits and scores"
EOS = 1
NAN, INF = float("nan"), float("inf")
ROW = {
    "prompt": "1 + 1?",
    "reference": "1 + 1 = 2",
    "answer": "2",
    "completion": "It is 3.",
    "completion_ids": [7, 6, EOS],
    "correct": False,
    "rewrite": "It is 2.",
    "error_step": 0,
    "rewrite_ids": [8, EOS],
    "token_probs": [0.5, 0.1, 0.9],
    "token_rewards": [0.5, -0.1, 0.0],
    "old_logps": [-0.5, -1.0, -2.0],
    "rewrite_topk_ids": [[8, 9], [EOS, 9]],
    "rewrite_topk_logps": [[-0.1, -3.0], [-0.1, -3.0]],
    "attempt_topk_ids": [[8, 9], [6, 9], [EOS, 9]],
    "attempt_topk_logps": [[-0.1, -3.0], [-0.1, -INF], [-0.1, -3.0]],
}


def check(stage, column, value, place):
    rows = [ROW, ROW | {column: value}]
    try:
        dataset = Dataset.from_list(rows)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        # Values of several types, as only a file of JSON lines has them
        dataset = load_rows(place.file("rows.jsonl", rows))
    check_dataset(dataset, stage, eos_token_ids=EOS)


def refuse(stage, column, name, value, error):
    joined = name if name.startswith(("with", "for ")) else f"is {name}"
    return Case(
        f"{stage}: `{column}` {joined}", partial(check, stage, column, value), f"Row 1, column '{column}': .*{error}"
    )


def without(stage, *columns):
    def run(place):
        row = {name: value for name, value in ROW.items() if name not in columns}
        check_dataset(Dataset.from_list([row]), stage)

    names = " and ".join(f"`{column}`" for column in columns)
    return Case(f"{stage}: no column {names}", run, f"Column .*'{columns[0]}'.* is missing")


def formats(name):
    def run(place):
        check_dataset(Dataset.from_list([ROW] * 3).with_format(name), "policy", eos_token_ids=EOS)

    return run


def own_types(place):
    dataset = Dataset.from_dict({name: [value] for name, value in ROW.items()})
    kinds = {"prompt": Value("large_string"), "correct": Value("bool"), "error_step": Value("int8")}
    check_dataset(dataset.cast(Features(dataset.features | kinds)), "edits")


def from_numpy(place):
    row = ROW | {"completion_ids": np.array([7, 6, EOS], dtype=np.int32), "token_probs": np.full(3, 0.5, np.float16)}
    check_dataset(Dataset.from_list([row | {"correct": np.False_}]), "policy")


def text_everywhere(text):
    def run(place):
        row = ROW | dict.fromkeys(("prompt", "reference", "answer", "completion", "rewrite"), text)
        check_dataset(Dataset.from_list([row]), "edits")
        check_dataset(Dataset.from_list([row]), "policy")

    return run


def no_rewrites(place):
    rows = [ROW | dict.fromkeys(("rewrite", "rewrite_ids", "rewrite_topk_ids", "rewrite_topk_logps"))] * 2
    check_dataset(Dataset.from_list(rows), "policy", eos_token_ids=EOS)


IDS = [
    ("None", None),
    ("empty", []),
    ("a text", "7 6 1"),
    ("floats", [7.5, 1.0]),
    ("texts", ["7", "1"]),
    ("nested", [[7], [1]]),
    ("with None", [7, None, 1]),
]
CASES = [
    *(
        refuse("task", "prompt", name, value, "Give every problem a text")
        for name, value in [
            ("None", None),
            ("an empty text", ""),
            ("only spaces", " \n\t"),
        ]
    ),
    refuse(
        "task", "prompt", "messages where the others are texts", [{"role": "user", "content": "?"}], "another form"
    ),
    refuse("task", "prompt", "an empty list", [], "a string or a list of messages"),
    refuse("task", "prompt", "a number", 5, "a string or a list of messages"),
    refuse("task", "prompt", "a list of texts", ["1 + 1?"], "a string or a list of messages"),
    refuse("task", "reference", "None", None, "correct worked solution"),
    refuse("task", "reference", "empty", "", "correct worked solution"),
    refuse("task", "answer", "None", None, "final answer"),
    refuse("task", "answer", "a list", ["2"], "It must be a string"),
    refuse("samples", "completion", "None", None, "sample it again"),
    refuse("samples", "completion", "empty", " ", "sample it again"),
    *(refuse("samples", "completion_ids", name, value, "") for name, value in IDS),
    refuse("samples", "completion_ids", "without EOS", [7, 6], "does not teach where to stop"),
    refuse("samples", "correct", "None", None, "True or False"),
    refuse("samples", "correct", "1 where the others are False", 1, ""),
    refuse("samples", "correct", "a text", "yes", "True or False"),
    refuse("edits", "rewrite", "None", None, ""),
    refuse("edits", "error_step", "-2", -2, "index of the first incorrect step"),
    refuse("edits", "error_step", "None", None, "index of the first incorrect step"),
    *(refuse("policy", "token_probs", name, value, "") for name, value in IDS[:3] + IDS[4:]),
    refuse("policy", "token_probs", "shorter than the ids", [0.5], "one for each token"),
    refuse("policy", "token_probs", "longer than the ids", [0.5] * 4, "one for each token"),
    refuse("policy", "token_probs", "with NaN", [0.5, NAN, 0.5], "from 0 to 1"),
    refuse("policy", "token_probs", "with 1.5", [0.5, 1.5, 0.5], "from 0 to 1"),
    refuse("policy", "token_probs", "log-probabilities", [-0.5, -1.0, -2.0], "from 0 to 1"),
    refuse("policy", "token_rewards", "with NaN", [0.5, NAN, 0.5], "must be finite"),
    refuse("policy", "token_rewards", "with infinity", [0.5, INF, 0.5], "must be finite"),
    refuse("policy", "old_logps", "with minus infinity", [-0.5, -INF, -0.5], "must be finite"),
    refuse("policy", "old_logps", "None where the others are lists", None, "list of numbers"),
    refuse("policy", "rewrite_ids", "empty", [], "no verified rewrite"),
    refuse("policy", "rewrite_ids", "without EOS", [8, 9], "does not teach where to stop"),
    refuse("policy", "rewrite_topk_ids", "for one token of two", [[8, 9]], "Score the row again"),
    refuse("policy", "rewrite_topk_ids", "not nested", [8, 9], ""),
    refuse("policy", "rewrite_topk_ids", "with a token without candidates", [[8, 9], []], "Score the row again"),
    refuse("policy", "rewrite_topk_logps", "with NaN", [[-0.1, NAN], [-0.1, -3.0]], "Score the row again"),
    refuse("policy", "rewrite_topk_logps", "with fewer candidates", [[-0.1], [-0.1]], "Score the row again"),
    refuse("policy", "rewrite_topk_logps", "with 1.5", [[-0.1, 1.5], [-0.1, -3.0]], "not over 0"),
    refuse("policy", "attempt_topk_ids", "for two tokens of three", [[8, 9], [6, 9]], "Score the row again"),
    refuse("policy", "attempt_topk_ids", "None without its log-probabilities", None, "Score the row again"),
    refuse("policy", "attempt_topk_logps", "without a probability", [[-INF, -INF]] * 3, "Score the row again"),
    without("task", "reference"),
    without("samples", "completion_ids"),
    without("edits", "error_step"),
    without("policy", "token_probs", "token_rewards"),
    without("policy", "rewrite", "rewrite_ids"),
    Case("policy: a dataset in the format of NumPy", formats("numpy")),
    Case("policy: a dataset in the format of torch", formats("torch")),
    Case("policy: a dataset in the format of Arrow", formats("arrow")),
    Case("policy: arrays and bools of NumPy", from_numpy),
    Case("edits: large strings and small integers of Arrow", own_types),
    Case("policy: no row has a rewrite", no_rewrites),
    Case("all: text of all planes", text_everywhere("a\u00e9\u4e2d\U0001f600\U000e0001\U0010ffff")),
    Case("all: right-to-left text with its marks", text_everywhere("\u202e\u05d0\u0628\u202c")),
    Case("all: NUL in a text", text_everywhere("a\0b")),
    Case("all: combining marks alone", text_everywhere("\u0301\u20e3")),
    Case("all: 100,000 characters", text_everywhere("x y " * 25_000)),
]
