"""The error tables of docs/data.md quote messages that the code gives."""

import ast
import copy
import re
from pathlib import Path

import pytest
from datasets import Dataset, Features, Json, Value

from rlmec_trl.credit.preparation import RewardSettings, prepare_row
from rlmec_trl.data.columns import MEANINGS
from rlmec_trl.data.schema import DatasetError, StreamCheck, check_dataset, column_features
from rlmec_trl.data.tokens import encode_prompt
from rlmec_trl.tasks.problems import to_task_rows
from rlmec_trl.tasks.task import Task, load_task
from rlmec_trl.trainers.rlmec_config import RLMECConfig


ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")

EOS = 2
ROW = {
    "prompt": "What is 1 + 2?",
    "reference": "1 + 2 = 3",
    "answer": "3",
    "completion": "1 + 2 is 4",
    "completion_ids": [5, EOS],
    "correct": False,
    "rewrite": "1 + 2 is 3",
    "error_step": 0,
    "rewrite_ids": [6, EOS],
    "token_probs": [0.0, 1.0],
    "old_logps": [-0.5, 0.0],
    "token_rewards": [0.0, -0.1],
    "rewrite_topk_ids": [[6, 5], [EOS, 5]],
    "rewrite_topk_logps": [[-0.1, -3.0], [-0.1, -4.0]],
    "attempt_topk_ids": [[5, 6], [EOS, 5]],
    "attempt_topk_logps": [[-0.1, -3.0], [-0.1, -4.0]],
}
# What is checked, and a row's values that fail the check
INVALID = [
    ("task", {"prompt": None}),
    ("task", {"prompt": ""}),
    ("task", {"reference": ""}),
    ("task", {"answer": None}),
    ("samples", {"completion": " "}),
    ("samples", {"completion_ids": []}),
    ("samples", {"completion_ids": [-1, EOS]}),
    ("scores", {"rewrite_ids": [-1, EOS]}),
    ("policy", {"rewrite_topk_ids": [[-1, 5], [EOS, 5]]}),
    ("samples", {"completion_ids": [5, 6]}),
    ("scores", {"rewrite_ids": [5, 6]}),
    ("samples", {"correct": None}),
    ("edits", {"error_step": -2}),
    ("edits", {"error_step": None}),
    ("edits", {"rewrite": None}),
    ("edits", {"rewrite": ""}),
    ("edits", {"correct": True, "error_step": -1}),
    ("scores", {"rewrite_ids": []}),
    *(("policy" if name == "token_rewards" else "scores", {name: None}) for name in ("token_probs", "token_rewards")),
    ("scores", {"old_logps": None}),
    ("scores", {"token_probs": [0.5]}),
    ("policy", {"token_rewards": [0.5]}),
    ("scores", {"old_logps": [-0.5] * 3}),
    ("scores", {"token_probs": [0.5, 1.5]}),
    ("policy", {"token_rewards": [0.5, float("nan")]}),
    ("scores", {"old_logps": [-0.5, float("-inf")]}),
    ("scores", {"old_logps": [0.5, 1.9]}),
    ("policy", {"rewrite_topk_ids": [[6, 5]]}),
    ("policy", {"rewrite_topk_ids": [[6, 5], [EOS]]}),
    ("policy", {"rewrite_topk_ids": [[6, 5], []]}),
    ("policy", {"rewrite_topk_logps": [[-0.1, -3.0], [-0.1, float("nan")]]}),
    ("policy", {"attempt_topk_ids": [[-1, 5], [EOS, 5]]}),
    ("policy", {"attempt_topk_ids": [[5, 6]]}),
    ("policy", {"attempt_topk_logps": [[-0.1, 1.5], [-0.1, -4.0]]}),
    ("policy", {"attempt_topk_logps": [[-float("inf")] * 2, [-0.1, -4.0]]}),
]
PROBLEM = {"problem": "Which?\nOptions:\nsand\nwater", "solution": "The answer is water", "answer": "water"}
LISTED = {"question": "Which?", "choices": {"text": ["sand", "water"], "label": ["A", "B"]}, "answerKey": ""}
# A task, and a raw row that it cannot read
UNREADABLE = [
    (load_task("math"), PROBLEM | {"problem": None}),
    (load_task("math"), PROBLEM | {"solution": None}),
    (load_task("math"), {"problem": "Which?", "solution": "Who knows"}),
    (load_task("choice"), PROBLEM | {"answer": "wine"}),
    (load_task("choice"), PROBLEM | {"problem": "Which?\nOptions:\nwater"}),
    (load_task("math"), PROBLEM | {"answer": ["sand", "water"]}),
    (load_task("svamp"), {"Body": "", "Question": "?", "Equation": "1", "Answer": "1"}),
    (load_task("arc_easy"), {"question": "Which?", "choices": ["sand", "water"], "answerKey": "A"}),
    (load_task("mmlu_math"), {"question": "?", "choices": ["1"], "answer": 0}),
    (load_task("mmlu_math"), {"question": "?", "choices": ["1", None], "answer": 0}),
    (Task("mood", labels=("good", "bad")), PROBLEM | {"answer": "so-so"}),
    (load_task("sst2"), {"problem": None, "answer": "positive"}),
    (load_task("sst2"), {"sentence": "A bleak film.", "label": -1}),
    (load_task("stsb"), {"sentence1": "A dog.", "sentence2": "A cat.", "label": -1.0}),
    (load_task("arc_easy"), LISTED),
    (load_task("ecqa"), {"q_text": "?", **{f"q_op{number}": str(number) for number in range(1, 6)}, "q_ans": "6"}),
    (load_task("mmlu_math"), {"question": "?", "choices": ["1", "2"], "answer": 2}),
]


def table(section):
    text = PAGE[PAGE.index(f"\n## {section}\n") :]
    lines = re.search(r"^\|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)[1].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def stream_errors():
    """What only the rows of a stream can have: a dataset has one type a column, and valid UTF-8."""
    broken = [ROW | {name: "\ud800"} for name in ("prompt", "completion", "rewrite")]
    mixed = [ROW | {name: [{"role": "user", "content": "?"}]} for name in ("prompt", "completion", "rewrite")]
    for stage, row in [
        *(("policy", row) for row in broken + mixed),
        *(("task", ROW | {name: "\ud800"}) for name in ("reference", "answer")),
    ]:
        rows = {name: [ROW[name], row[name]] for name in ROW}
        with pytest.raises(DatasetError) as error:
            StreamCheck(stage)(rows, [0, 1])
        yield str(error.value)


def prompt_errors(tokenizer):
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('no') }}"
    messages = [{"role": "user", "content": "?"}]
    for processing_class, prompt, kwargs in (
        (tokenizer, messages, None),
        (strict, messages, None),
        (strict, messages, "fast"),
    ):
        with pytest.raises(DatasetError) as error:
            encode_prompt(processing_class, prompt, kwargs, 0)
        yield str(error.value)
    settings = RewardSettings.from_config(RLMECConfig("unused", use_cpu=True, bf16=False, report_to="none"))
    unknown = tokenizer.eos_token_id
    for row, vocab_size in (
        (ROW | {"prompt": ""}, None),
        (ROW | {"prompt": tokenizer.eos_token + tokenizer.eos_token}, unknown),
        (ROW | {"prompt": "Tom", "rewrite_ids": [unknown + 100], "rewrite": "?"}, len(tokenizer)),
    ):
        with pytest.raises(DatasetError) as error:
            prepare_row(row, 0, tokenizer, settings, vocab_size)
        yield str(error.value)


def row_errors(tokenizer):
    for stage, values in INVALID:
        with pytest.raises(DatasetError) as error:
            check_dataset(Dataset.from_list([ROW, ROW | values]), stage, eos_token_ids=EOS)
        yield str(error.value)
    mixed = Features({"prompt": Json(), "reference": Value("string"), "answer": Value("string")})
    with pytest.raises(DatasetError) as error:
        rows = {"prompt": ["?", [{"role": "user", "content": "?"}]], "reference": ["1"] * 2, "answer": ["1"] * 2}
        check_dataset(Dataset.from_dict(rows, features=mixed), "task")
    yield str(error.value)
    columns = ["prompt", "completion_ids", "token_rewards", "rewrite"]
    with pytest.raises(DatasetError) as error:
        check_dataset(Dataset.from_list([{name: ROW[name] for name in columns}]), "policy")
    yield str(error.value)
    message = [{"role": "assistant", "content": "?"}]
    for values in ({"completion": message}, {"prompt": message, "rewrite": message * 2}):
        with pytest.raises(DatasetError) as error:
            check_dataset(Dataset.from_list([ROW | values]), "dpo")
        yield str(error.value)
    yield from stream_errors()
    yield from prompt_errors(tokenizer)
    for task, row in UNREADABLE:
        with pytest.raises(DatasetError) as error:
            to_task_rows(Dataset.from_list([row]), task, tokenizer)
        yield str(error.value)


def test_the_table_of_row_errors_has_every_message_and_no_other(tokenizer):
    documented = [(re.findall(r"`(\w+)`", columns), fix) for columns, _, fix in table("Errors in rows")]
    used = set()
    for message in row_errors(tokenizer):
        column = re.match(r"Row \d+, column '(\w+)': found ", message)[1]
        rows = [
            index
            for index, (names, fix) in enumerate(documented)
            if (column in names or not names) and message.endswith(fix)
        ]
        assert rows, message
        # A shorter end may fit as well: "Drop the row, or sample it again." and one that goes on
        used.add(max(rows, key=lambda index: len(documented[index][1])))
    assert used == set(range(len(documented))), [documented[index] for index in set(range(len(documented))) - used]


def messages_in_the_code():
    """All texts in the code, with "..." for what is filled in."""
    for path in [*(ROOT / "rlmec_trl").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_other_error_quotes_a_message_that_is_in_the_code():
    messages = list(messages_in_the_code())
    for _, quoted, _ in table("Other errors about data"):
        for text in re.findall(r"`(.+?)`(?:,|$)", quoted):
            expression = ".*".join(re.escape(part.strip()) for part in text.split("..."))
            assert any(re.search(expression, message) for message in messages), f"no message says {text!r}"


# --- Columns ---------------------------------------------------------------------------------------------------------


def test_the_descriptions_of_columns_begin_with_those_of_dataset_cards():
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|.*\| ([^|]+) \|$", PAGE.split("## Columns\n")[1], re.MULTILINE)
    documented = [
        (re.findall(r"`(\w+)`", names), re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", text)) for names, text in rows
    ]
    for name, meaning in MEANINGS.items():
        assert any(name in names and text.startswith(meaning) for names, text in documented), name
    assert MEANINGS.keys() >= column_features().keys()
