"""A teacher behind an OpenAI-compatible server, over real HTTP: what is requested, how often, and what is kept."""

import json
import traceback
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset, load_from_disk

from rlmec_trl.data.schema import check_dataset
from rlmec_trl.generation.server import ServerConfig, ServerError
from rlmec_trl.tasks.arithmetic import WORDING
from rlmec_trl.tasks.arithmetic import edit as edit_arithmetic
from rlmec_trl.tasks.task import load_task
from rlmec_trl.teachers.api.config import TeacherConfig
from rlmec_trl.teachers.api.errors import TeacherError
from rlmec_trl.teachers.api.journal import Journal
from rlmec_trl.teachers.edit_questions import ANSWER_SCHEMA
from rlmec_trl.teachers.editors import NoEdit, edit_dataset
from rlmec_trl.teachers.journaled_editor import JournaledEditor, edit_through_journal
from rlmec_trl.teachers.server_teacher import ServerTeacher
from tests.fake_openai import FakeServer, parts_of, teach


ROOT = Path(__file__).parents[2]
TASK = load_task("arithmetic")
KEY = "sk-test-0123456789abcdef"
CHAT = "/v1/chat/completions"
SAMPLE_COLUMNS = ["prompt", "reference", "answer", "completion", "completion_ids", "correct"]


@pytest.fixture
def rows(make_rows):
    rows = make_rows(12)
    assert len({row["completion"] for row in rows}) == 12
    return rows


@pytest.fixture
def edit(tmp_path):
    """Have a teacher edit rows through a journal, with `arguments` for its three configurations."""

    def edit(server, rows, model="policy", name="journal", **arguments):
        def take(kind):
            return {name: arguments.pop(name) for name in list(arguments) if name in kind.__dataclass_fields__}

        server_config = ServerConfig(**({"base_url": server.url, "max_retries": 0} | take(ServerConfig)))
        config = TeacherConfig(**take(TeacherConfig))
        dataset = Dataset.from_list([{name: row[name] for name in SAMPLE_COLUMNS} for row in rows])
        with Journal(tmp_path / name) as journal:
            teacher = ServerTeacher(model, journal, config, server_config, **arguments)
            return edit_through_journal(dataset, JournaledEditor(teacher, WORDING), TASK)

    return edit


def asked(server):
    """How often each attempt was requested."""
    return Counter(parts_of(exchange.body)["attempt"] for exchange in server.asked(CHAT))


def perfectly(rows):
    return edit_dataset(Dataset.from_list(rows).select_columns(SAMPLE_COLUMNS), edit_arithmetic, TASK)


# --- Edits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structured_output", [True, False])
def test_a_perfect_teacher_edits_like_the_programmatic_one(structured_output, rows, edit, tokenizer):
    with FakeServer(tokenizer, chat=teach) as server:
        edited, outcomes = edit(server, rows, structured_output=structured_output)
        assert asked(server) == dict.fromkeys([row["completion"] for row in rows], 1)
    expected, expected_outcomes = perfectly(rows)
    assert edited.to_list() == expected.to_list()
    assert outcomes == expected_outcomes == {"rewritten": 8, "unchanged": 4}


@pytest.mark.parametrize("structured_output", [True, False])
def test_a_request_has_the_fields_that_a_server_needs(structured_output, rows, edit, tokenizer):
    settings = {"structured_output": structured_output, "max_tokens": 77, "extra_body": '{"top_k": 5}'}
    with FakeServer(tokenizer, chat=teach) as server:
        edit(server, rows[:3], **settings)
        bodies = [exchange.body for exchange in server.exchanges]
    assert len(bodies) == 3, "only the rows are requested"
    assert len({body["messages"][0]["content"] for body in bodies}) == 1
    by_attempt = {row["completion"]: row for row in rows}
    for body in bodies:
        system, user = body.pop("messages")
        assert (system["role"], user["role"]) == ("system", "user")
        assert ("JSON" in system["content"]) == structured_output
        assert ("first line" in system["content"]) != structured_output
        parts = parts_of({"messages": [user]})
        row = by_attempt[parts["attempt"]]
        assert (parts["problem"], parts["reference_solution"]) == (row["prompt"], row["reference"])
        expected = {"model": "policy", "max_tokens": 77, "temperature": 0.0, "seed": 0, "top_k": 5}
        if structured_output:
            schema = {"name": "edit", "schema": ANSWER_SCHEMA, "strict": True}
            expected["response_format"] = {"type": "json_schema", "json_schema": schema}
        assert body == expected


def test_equal_samples_are_requested_once(rows, edit, tokenizer):
    repeated = [row for row in rows[:3] for _ in range(4)]
    with FakeServer(tokenizer, chat=teach) as server:
        edited, outcomes = edit(server, repeated)
        assert asked(server) == dict.fromkeys([row["completion"] for row in rows[:3]], 1)
    assert edited.to_list() == perfectly(repeated)[0].to_list()
    assert outcomes.total() == 12


def test_the_server_may_know_the_teacher_by_another_name(rows, edit, tokenizer):
    """The journal uses the teacher's own name: a server may be moved, and the path of its model with it."""
    with FakeServer(tokenizer, chat=teach, models=("here", "there")) as server:
        first, _ = edit(server, rows, model="Teacher-72B", served_model="here")
        assert {exchange.body["model"] for exchange in server.exchanges} == {"here"}
        again, _ = edit(server, rows, model="Teacher-72B", served_model="there")
        assert len(server.exchanges) == 12
    assert again.to_list() == first.to_list()


def test_answers_in_the_journal_are_not_requested_again_but_those_of_another_teacher_are(rows, edit, tokenizer):
    with FakeServer(tokenizer, chat=teach, models=("policy", "other")) as server:
        half, _ = edit(server, rows[:6])
        whole, _ = edit(server, rows, max_tokens=100, concurrency=2)
        assert asked(server) == dict.fromkeys([row["completion"] for row in rows], 1)
        edit(server, rows, model="other")
        assert asked(server) == dict.fromkeys([row["completion"] for row in rows], 2)
    assert whole.select(range(6)).to_list() == half.to_list()
    assert whole.to_list() == perfectly(rows)[0].to_list()


def test_answers_are_recorded_with_the_tokens_that_are_billed(rows, edit, tokenizer, tmp_path):
    with FakeServer(tokenizer, chat=teach) as server:
        edit(server, rows, input_price=1.0, output_price=10.0)
    with Journal(tmp_path / "journal") as journal:
        # 400 and 60 tokens each
        assert journal.costs() == pytest.approx([0.001] * 12)


def test_as_many_requests_as_allowed_are_in_flight_and_never_more(rows, edit, tokenizer):
    with FakeServer(tokenizer, chat=teach, together=3) as server:
        edit(server, rows, concurrency=3)
    assert server.most_at_once == 3


# --- Unusable answers ------------------------------------------------------------------------------------------------


def spoil(*answers):
    """`chat` that gives each attempt these answers in turn, then the correct one."""
    seen = Counter()

    def chat(body):
        attempt = parts_of(body)["attempt"]
        seen[attempt] += 1
        return answers[seen[attempt] - 1] if seen[attempt] <= len(answers) else teach(body)

    return chat


USELESS = {
    "truncated": ('{"error_step": 0, "rewr', "length"),
    "refusal": ("", "content_filter"),
    "malformed": ("I would rather not.", "stop"),
    "wrong answer": (json.dumps({"error_step": 0, "rewrite": "The answer is 1000"}), "stop"),
    "empty": (json.dumps({"error_step": 0, "rewrite": ""}), "stop"),
}


@pytest.mark.parametrize("outcome", USELESS)
def test_an_unusable_answer_is_counted_by_kind_and_never_trained_on(outcome, rows, edit, tokenizer):
    with FakeServer(tokenizer, chat=spoil(*[USELESS[outcome]] * 10)) as server:
        edited, outcomes = edit(server, rows, max_attempts=2)
        assert set(asked(server).values()) == {2}
    assert outcomes == {outcome: 12}
    assert edited["edit_outcome"][:] == [outcome] * 12
    assert edited["rewrite"][:] == [None] * 12


def test_an_answer_that_the_server_reports_as_truncated_is_not_used(rows, edit, tokenizer):
    with FakeServer(tokenizer, chat=lambda body: (teach(body)[0], "length")) as server:
        _, outcomes = edit(server, rows, max_attempts=1)
    assert outcomes == {"truncated": 12}


@pytest.mark.parametrize("outcome", USELESS)
def test_the_next_answer_to_a_row_is_sampled_with_another_seed(outcome, rows, edit, tokenizer):
    with FakeServer(tokenizer, chat=spoil(USELESS[outcome], USELESS[outcome])) as server:
        edited, _ = edit(server, rows)
        by_attempt = {}
        for exchange in server.asked(CHAT):
            settings = (exchange.body["temperature"] > 0, exchange.body["seed"])
            by_attempt.setdefault(parts_of(exchange.body)["attempt"], []).append(settings)
    assert edited.to_list() == perfectly(rows)[0].to_list()
    assert len(by_attempt) == 12
    for settings in by_attempt.values():
        assert [sampled for sampled, _ in settings] == [False, True, True], "greedily first"
        assert len({seed for _, seed in settings}) == 3


def test_a_later_run_with_more_attempts_continues_with_the_next_seed(rows, edit, tokenizer):
    with FakeServer(tokenizer, chat=spoil(USELESS["malformed"], USELESS["malformed"])) as server:
        _, outcomes = edit(server, rows, max_attempts=1)
        assert outcomes == {"malformed": 12}
        first = len(server.exchanges)
        _, outcomes = edit(server, rows, max_attempts=3)
        assert outcomes == {"rewritten": 8, "unchanged": 4}
        assert {exchange.body["seed"] for exchange in server.exchanges[first:]} == {1, 2}


# --- Failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["429", "500", "reset", "broken JSON", "HTML", "no choices"])
def test_a_row_whose_answer_did_not_arrive_is_requested_again(fault, rows, edit, tokenizer):
    with FakeServer(tokenizer, chat=teach) as server:
        server.faults.extend([None, fault, fault, None, fault])
        edited, outcomes = edit(server, rows)
        assert len(server.exchanges) == 15
    assert edited.to_list() == perfectly(rows)[0].to_list()


@pytest.mark.parametrize(
    ("fault", "reason"), [("500", "status 500"), ("broken JSON", "broken response"), ("no choices", "no choices")]
)
def test_a_row_without_an_answer_has_the_reason_as_its_outcome(fault, reason, rows, edit, tokenizer):
    with FakeServer(tokenizer, chat=teach) as server:
        server.faults.extend([fault] * 100)
        edited, outcomes = edit(server, rows[:4])
        assert set(asked(server).values()) == {3}
        assert edited["rewrite"][:] == [None] * 4
        assert all(reason in outcome for outcome in outcomes)
        # There was no answer, so the next run requests one
        server.faults.clear()
        edited, _ = edit(server, rows[:4])
    assert edited.to_list() == perfectly(rows[:4])[0].to_list()


def test_a_row_that_the_server_rejects_does_not_stop_the_others(rows, edit, tokenizer):
    long = rows[5]["completion"]
    with FakeServer(tokenizer, chat=teach) as server:
        server.refuse = lambda body: parts_of(body)["attempt"] == long
        edited, outcomes = edit(server, rows)
    assert [index for index, rewrite in enumerate(edited["rewrite"]) if rewrite is None] == [5]
    assert "status 400" in edited[5]["edit_outcome"] and "maximum context length" in edited[5]["edit_outcome"]
    assert outcomes.total() == 12


@pytest.mark.parametrize(
    ("message", "kept"),
    [(None, []), ({"content": [{"type": "text", "text": "1"}]}, []), ({"content": "none\n2"}, ["none\n2"])],
    ids=["no message", "content in parts", "usage without numbers"],
)
def test_odd_bodies_neither_stop_the_run_nor_damage_the_journal(message, kept, tmp_path):
    """The SDK validates nothing. An answer that may have been billed is kept."""
    response = SimpleNamespace(
        choices=[SimpleNamespace(message=message and SimpleNamespace(**message), finish_reason="stop")],
        usage=SimpleNamespace(prompt_tokens=None, completion_tokens=None),
    )
    completions = SimpleNamespace(create=lambda **kwargs: response)
    client = SimpleNamespace(chat=SimpleNamespace(completions=completions))
    config = TeacherConfig(input_price=1.0, output_price=1.0, structured_output=False, max_attempts=1)
    with Journal(tmp_path) as journal:
        teacher = ServerTeacher("teacher", journal, config, ServerConfig(base_url="http://127.0.0.1:9/v1"))
        editor = JournaledEditor(teacher)
        teacher._client = lambda: nullcontext(client)
        (edit,) = editor(["1 + 1"], ["2"], ["3"])
        (question,) = editor.questions(["1 + 1"], ["2"], ["3"])
        assert [answer.text for answer in journal.answers(question.key)] == kept
    assert isinstance(edit, NoEdit) == (not kept)


@pytest.mark.parametrize("wrong", ["key", "model"])
def test_a_rejected_key_or_model_stops_the_run_at_once(wrong, rows, edit, tokenizer, monkeypatch):
    monkeypatch.setenv("RLMEC_SERVER_API_KEY", KEY)
    settings = {"key": "another"} if wrong == "key" else {"models": ("other",)}
    message = r"status 401.*Incorrect API key provided: \*\*\*" if wrong == "key" else "status 404.*does not exist"
    with FakeServer(tokenizer, chat=teach, **settings) as server:
        with pytest.raises(TeacherError, match=rf"(?s)does not serve 'policy' .*{message}.*RLMEC_SERVER_API_KEY") as e:
            edit(server, rows, concurrency=2)
        assert len(server.exchanges) <= 3
    assert KEY not in "".join(traceback.format_exception(e.value))


def test_answers_before_a_rejected_key_are_kept(rows, edit, tokenizer):
    with FakeServer(tokenizer, chat=teach) as server:
        server.faults.extend([None] * 5 + ["401"])
        with pytest.raises(TeacherError, match="All answers so far are in the journal"):
            edit(server, rows, concurrency=1)
        first = len(server.exchanges)
        edited, _ = edit(server, rows)
        assert (first, len(server.exchanges)) == (6, 13)
    assert edited.to_list() == perfectly(rows)[0].to_list()


def test_only_the_key_of_the_named_variable_is_sent(rows, edit, tokenizer, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-you")
    monkeypatch.delenv("RLMEC_SERVER_API_KEY", raising=False)
    with FakeServer(tokenizer, chat=teach) as server:
        edit(server, rows[:2])
        assert "not-for-you" not in str([exchange.headers for exchange in server.exchanges])
    monkeypatch.setenv("TEACHER_KEY", KEY)
    with FakeServer(tokenizer, chat=teach, key=KEY) as server:
        _, outcomes = edit(server, rows[:4], api_key_env="TEACHER_KEY", name="other")
    assert outcomes.total() == 4 and outcomes.keys() <= {"rewritten", "unchanged"}


def test_a_key_that_the_server_repeats_is_not_in_the_dataset(rows, edit, tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("RLMEC_SERVER_API_KEY", KEY)
    # A fault of one row, so that its reason is in the dataset
    with FakeServer(tokenizer, chat=teach, refuse=lambda body: f"Odd header: Bearer {KEY}") as server:
        edited, outcomes = edit(server, rows[:2])
    assert "Odd header: Bearer ***" in str(outcomes)
    assert KEY not in str(outcomes) + str(edited.to_list())
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_a_missing_base_url_is_an_error(rows, edit, tokenizer):
    with FakeServer(tokenizer, chat=teach) as server:
        with pytest.raises(ServerError, match="`--base_url`"):
            edit(server, rows, base_url=None)


def test_a_teacher_that_may_not_send_requests_answers_from_the_journal(rows, edit, tokenizer, tmp_path):
    with FakeServer(tokenizer, chat=teach) as server:
        edit(server, rows[:1])
        asked_before = len(server.exchanges)
        with Journal(tmp_path / "journal") as journal:
            teacher = ServerTeacher("policy", journal, TeacherConfig(), ServerConfig(server.url))
            teacher.may_ask = False
            inputs = [[row[name] for row in rows[:2]] for name in ("prompt", "reference", "completion")]
            known, unknown = JournaledEditor(teacher, WORDING)(*inputs)
            assert known == (rows[0]["error_step"], rows[0]["rewrite"])
            assert unknown == NoEdit("not asked")
        assert len(server.exchanges) == asked_before


# --- The recipe ------------------------------------------------------------------------------------------------------


def test_the_recipe_edits_through_a_server_and_a_second_run_requests_nothing(rows, tokenizer, tmp_path, scripts):
    samples = Dataset.from_list(rows).select_columns(SAMPLE_COLUMNS)
    samples.save_to_disk(tmp_path / "samples")

    def run(server, *words):
        words = ["--dataset_name", "samples", "--task", "arithmetic", "--output_dir", "edits", *words]
        words += ["--provider", "server", "--teacher", "policy", "--base_url", server.url, "--concurrency", "3"]
        finished = scripts.run(ROOT / "recipes" / "edit.py", *words, cwd=tmp_path)
        assert finished.exit_code == 0, finished.stdout[-1000:] + finished.stderr[-3000:]
        return finished.stdout

    with FakeServer(tokenizer, chat=teach) as server:
        output = run(server, "--dry_run", "true")
        assert not server.exchanges and "12" in output
        assert not (tmp_path / "edits").exists()
        first = run(server)
        assert asked(server) == dict.fromkeys([row["completion"] for row in rows], 1)
        edited = load_from_disk(tmp_path / "edits")
        second = run(server)
        assert len(server.exchanges) == 12
    assert edited.to_list() == perfectly(rows)[0].to_list()
    assert load_from_disk(tmp_path / "edits").to_list() == edited.to_list()
    check_dataset(edited, "edits", tokenizer.eos_token_id)
    for output in (first, second):
        assert "12 of 12 samples have a verified rewrite (edited now: rewritten: 8, unchanged: 4)." in output
    assert (tmp_path / "edits-journal").is_dir()
