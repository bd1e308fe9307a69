"""Any text of Unicode, and values of any type anywhere: what reads rows works, or says what is wrong with them."""

import json

import pyarrow as pa
import pytest
from datasets import Dataset, Features, Json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlmec_trl import RLMECConfig
from rlmec_trl.credit.alignment import edit_mask
from rlmec_trl.credit.preparation import RewardSettings, prepare_row
from rlmec_trl.data.errors import UserError
from rlmec_trl.data.loading import load_rows
from rlmec_trl.data.schema import check_dataset
from rlmec_trl.data.tokens import encode_completion, encode_prompt, encode_rewrite
from rlmec_trl.tasks.problems import to_task_rows
from rlmec_trl.tasks.task import BUILT_IN, load_task
from tests.reliability.sampled_rows import EOS, ROW


SURROGATES = st.characters(categories=["Cs"])
# What programs stumble over: right-to-left marks, NUL, combining and joining characters, the ends of the planes
ODD = st.sampled_from(
    list("\0\x85\u0301\u200b\u200d\u2028\u202e\u05d0\ufeff\ufffe\uffff\U0001f600\U000e0001\U0010ffff")
)
STORABLE = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), ODD), max_size=30)
TEXTS = st.text(st.one_of(st.characters(), ODD, SURROGATES), max_size=30)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), STORABLE, st.sampled_from([EOS, 5, 10**6, -5])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "text", "label", ""]), inner, max_size=3),
    ),
    max_leaves=6,
)
PROPERTY = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
# Each example writes a dataset
SLOW_PROPERTY = settings(PROPERTY, max_examples=20)


def column_of(values):
    """A column as a file of JSON lines gives it: of one type, or of `Json`."""
    try:
        return Dataset.from_dict({"x": values})
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return Dataset.from_dict({"x": values}, features=Features({"x": Json()}))


def works_or_user_error(function, *arguments):
    try:
        return function(*arguments)
    except UserError as error:
        assert len(str(error)) < 1500, "a sentence, and not the whole value"


@PROPERTY
@given(
    stage=st.sampled_from(["task", "samples", "edits", "scores", "policy"]),
    column=st.sampled_from(sorted(ROW)),
    value=VALUES,
)
def test_no_value_in_any_column_ends_a_check_in_a_traceback(stage, column, value):
    for values in ([value], [ROW[column], value]):
        kind = column_of(values).features["x"]
        features = Features(Dataset.from_list([ROW]).features | {column: kind})
        rows = {name: [row] * len(values) for name, row in ROW.items()} | {column: values}
        works_or_user_error(check_dataset, Dataset.from_dict(rows, features=features), stage, EOS)


@SLOW_PROPERTY
@given(rows=st.lists(st.dictionaries(STORABLE, VALUES, max_size=3), min_size=1, max_size=3))
def test_any_objects_can_be_lines_and_are_read_as_the_json_module_reads_them(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    loaded = works_or_user_error(load_rows, str(path))
    assert loaded is None or len(loaded) == len(rows)


@PROPERTY
@given(content=st.one_of(st.binary(max_size=60), TEXTS.map(lambda text: json.dumps({"a": text}).encode() + b"\n")))
def test_any_bytes_can_be_a_file(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "rows.jsonl"
    path.write_bytes(content)
    works_or_user_error(load_rows, str(path))


@SLOW_PROPERTY
@given(text=STORABLE)
def test_any_text_that_can_be_stored_is_kept(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("texts") / "rows.jsonl"
    for ensure_ascii in (True, False):
        path.write_text(json.dumps({"a": text}, ensure_ascii=ensure_ascii) + "\n", encoding="utf-8")
        assert load_rows(str(path))["a"][:] == [text]


@PROPERTY
@given(value=st.one_of(TEXTS, VALUES), kwargs=st.one_of(st.none(), VALUES))
def test_any_prompt_and_completion_is_encoded_or_refused(tokenizer, chat_tokenizer, value, kwargs):
    for processing_class in (tokenizer, chat_tokenizer):
        works_or_user_error(encode_prompt, processing_class, value, kwargs)
        works_or_user_error(encode_completion, processing_class, value)


@PROPERTY
@given(first=STORABLE, second=STORABLE)
def test_any_rewrite_keeps_the_ids_of_its_copy(tokenizer, first, second):
    ids = encode_completion(tokenizer, first)
    assert encode_rewrite(tokenizer, first, first, ids, " ;") == ids
    rewrite_ids = encode_rewrite(tokenizer, second, first, ids, " ;")
    assert rewrite_ids[-1] == tokenizer.eos_token_id and len(edit_mask(ids, rewrite_ids)) == len(rewrite_ids)


@pytest.fixture(scope="module")
def reward_settings(tmp_path_factory):
    args = RLMECConfig(str(tmp_path_factory.mktemp("out")), use_cpu=True, bf16=False, report_to="none")
    return RewardSettings.from_config(args)


@PROPERTY
@given(prompt=STORABLE, rewrite=st.one_of(st.none(), STORABLE), completion=STORABLE)
def test_any_texts_of_a_row_are_prepared(tokenizer, reward_settings, prompt, rewrite, completion):
    ids = encode_completion(tokenizer, completion)
    row = {"prompt": prompt, "completion": completion, "completion_ids": ids, "correct": False, "rewrite": rewrite}
    row["token_probs"] = [0.4] * len(ids)
    prepared = works_or_user_error(prepare_row, row, 0, tokenizer, reward_settings)
    if prepared is not None:
        assert len(prepared["imitation_ids"]) == len(prepared["imitation_weights"])


@SLOW_PROPERTY
@given(
    task=st.sampled_from(BUILT_IN),
    row=st.dictionaries(
        st.sampled_from(["problem", "solution", "answer", "question", "choices", "answerKey", "Body", "Question"]),
        VALUES,
        max_size=5,
    ),
)
def test_any_raw_row_is_read_or_refused(tokenizer, task, row):
    features = Features({name: column_of([value]).features["x"] for name, value in row.items()})
    dataset = Dataset.from_dict({name: [value] for name, value in row.items()}, features=features)
    works_or_user_error(to_task_rows, dataset, load_task(task), tokenizer)
