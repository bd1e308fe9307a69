"""
Answers of a teacher at Anthropic are never lost and never paid twice, whatever fails. The client is the real one; the
server fails on demand and counts what it bills.
"""

import importlib
import json
import os
import signal
import traceback
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset, concatenate_datasets, load_from_disk

from rlmec_trl.generation.server import ServerConfig
from rlmec_trl.tasks.arithmetic import edit as edit_arithmetic
from rlmec_trl.tasks.arithmetic import rewrite_minimally
from rlmec_trl.tasks.task import load_task
from rlmec_trl.teachers.anthropic_teacher import AnthropicTeacher
from rlmec_trl.teachers.api.config import TeacherConfig
from rlmec_trl.teachers.api.errors import TeacherError
from rlmec_trl.teachers.api.journal import Journal
from rlmec_trl.teachers.editors import edit_dataset, editor_inputs
from rlmec_trl.teachers.journaled_editor import JournaledEditor, edit_through_journal
from tests.fake_anthropic import BROKEN, KEY, FakeAnthropic, read_row


ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "edit.py"
TASK = load_task("arithmetic")
both_ways = pytest.mark.parametrize("use_batches", [False, True], ids=["messages", "batches"])


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    # No key in the user's settings either
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with FakeAnthropic() as server:
        yield server
    assert server.complaints == []


@pytest.fixture(scope="module")
def make_samples(make_rows):
    def make(num_rows, **settings):
        rows = Dataset.from_list(make_rows(num_rows, **settings))
        return rows.select_columns(["prompt", "reference", "answer", "completion", "completion_ids", "correct"])

    return make


def make_editor(journal, server, model="claude-test", wording=TASK.wording, concurrency=8, max_retries=3, **config):
    config = TeacherConfig(**{"poll_seconds": 0.01, **config})
    server_config = ServerConfig(base_url=server.url, concurrency=concurrency, max_retries=max_retries)
    return JournaledEditor(AnthropicTeacher(model, journal, config, server_config), wording)


def edit(folder, server, samples, **settings):
    """One whole run, as in the recipe."""
    with Journal(folder) as journal:
        editor = make_editor(journal, server, **settings)
        editor.estimate(*editor_inputs(samples, TASK))
        return edit_dataset(samples, editor, TASK)


def edit_correctly(samples):
    return edit_dataset(samples, edit_arithmetic, TASK)[0].to_list()


def journal_records(folder, kind="answer"):
    lines = [json.loads(line) for path in Path(folder).glob("*.jsonl") for line in path.read_text().splitlines()]
    return [line for line in lines if line["type"] == kind]


def number(user):
    """A hash of the row, the same on every machine."""
    return zlib.crc32(user.encode())


def paid_once(server, num_rows):
    return set(server.paid.values()) == {1} and len(server.paid) == num_rows


def edit_the_rest(folder, server, samples, **settings):
    """The last run: afterwards every row has the correct edit, and was paid once in all runs together."""
    edited, _ = edit(folder, server, samples, **settings)
    assert edited.to_list() == edit_correctly(samples)
    assert paid_once(server, len(samples))


# --- Many faults -----------------------------------------------------------------------------------------------------


def test_many_faults_lose_no_answer_and_pay_none_twice_with_messages(server, make_samples, tmp_path):
    faults = ["429", "500", "529", "cut off", "reset", "broken json", "slow"]
    server.fault = lambda user, attempt: (
        faults[number(user) % len(faults)] if number(user) // 100 % 3 == 0 and attempt == 0 else None
    )
    samples = make_samples(1000)
    edit_the_rest(tmp_path, server, samples, concurrency=64)
    assert len(journal_records(tmp_path)) == 1000
    assert len(server.asked) > 1200, "there were faults"


def test_many_faults_lose_no_answer_and_pay_none_twice_with_batches(server, make_samples, tmp_path):
    faults = ["errored", "expired"]
    server.fault = lambda user, attempt: (
        faults[number(user) % len(faults)] if number(user) // 100 % 3 == 0 and attempt == 0 else None
    )
    creations = ["429", "500 but created", "500", None, "reset but created", "529", "all expired"]
    server.faults |= {("create", index): fault for index, fault in enumerate(creations)}
    server.faults |= {("results", index): "cut off" for index in range(0, 12, 3)}
    server.faults |= {("retrieve", index): "500" for index in range(5, 60, 10)}
    samples = make_samples(1000)
    edit_the_rest(tmp_path, server, samples, use_batches=True, questions_per_batch=100, max_attempts=5)
    assert len(journal_records(tmp_path)) == 1000
    assert len(server.asked) > 1400, "a third of the rows and a whole batch were requested again"


# --- Unusable answers ------------------------------------------------------------------------------------------------

REASONS = {
    "refusal": "refusal",
    "max_tokens": "truncated",
    "malformed": "malformed",
    "wrong": "wrong answer",
}


@both_ways
def test_an_unusable_answer_is_counted_by_kind_and_never_a_rewrite(server, make_samples, tmp_path, use_batches):
    kinds = [*REASONS, None]
    server.fault = lambda user, attempt: kinds[number(user) % len(kinds)]
    samples = make_samples(60, kinds=("wrong",))
    edited, outcomes = edit(tmp_path, server, samples, use_batches=use_batches, max_attempts=3)
    expected = Counter(REASONS.get(kinds[number(user) % len(kinds)], "rewritten") for user in server.paid)
    assert outcomes == expected
    assert len(outcomes) == len(kinds)
    for row in edited:
        assert (row["rewrite"] is not None) == (row["edit_outcome"] == "rewritten")
        assert row["rewrite"] is not None or row["error_step"] == -1
    wanted = {user: 3 if number(user) % len(kinds) < len(REASONS) else 1 for user in server.paid}
    assert server.paid == wanted, "an unusable answer is requested again, `max_attempts` times in total"


@both_ways
@pytest.mark.parametrize("kind", REASONS)
def test_a_row_with_one_unusable_answer_is_requested_again(server, make_samples, tmp_path, use_batches, kind):
    server.fault = lambda user, attempt: kind if attempt == 0 else None
    samples = make_samples(6, kinds=("wrong",))
    edited, _ = edit(tmp_path, server, samples, use_batches=use_batches, max_attempts=2)
    assert edited.to_list() == edit_correctly(samples)
    assert len(journal_records(tmp_path)) == sum(server.paid.values()) == 12, "both answers were billed"


@both_ways
def test_unusable_answers_of_an_earlier_run_count_as_attempts(server, make_samples, tmp_path, use_batches):
    server.fault = lambda user, attempt: "malformed" if attempt < 2 else None
    samples = make_samples(6)
    for expected in (12, 12):
        _, outcomes = edit(tmp_path, server, samples, use_batches=use_batches, max_attempts=2)
        assert outcomes == {"malformed": 6}
        assert len(server.asked) == expected
    edited, _ = edit(tmp_path, server, samples, use_batches=use_batches, max_attempts=3)
    assert edited.to_list() == edit_correctly(samples)
    assert len(server.asked) == 18


@pytest.mark.parametrize("kind", ["400", *BROKEN])
def test_a_row_that_gets_no_answer_does_not_stop_the_others(server, make_samples, tmp_path, kind):
    samples = make_samples(12)
    unlucky = samples[5]["completion"]
    server.fault = lambda user, attempt: kind if unlucky in user else None
    edited, _ = edit(tmp_path, server, samples, max_retries=1, max_attempts=2)
    expected = edit_correctly(samples)
    for index, row in enumerate(edited):
        if index == 5:
            assert row["rewrite"] is None and row["error_step"] == -1
            assert row["edit_outcome"] not in ("rewritten", "unchanged", "not asked")
        else:
            assert row == expected[index]
    server.fault = lambda user, attempt: None
    edited, _ = edit(tmp_path, server, samples)
    assert edited.to_list() == expected
    assert all(count == 1 for user, count in server.paid.items() if unlucky not in user)


@both_ways
def test_plain_layout_and_json_give_the_same_edits(server, make_samples, tmp_path, use_batches):
    server.structured = False
    samples = make_samples(12)
    edited, _ = edit(tmp_path, server, samples, structured_output=False, use_batches=use_batches)
    assert edited.to_list() == edit_correctly(samples)


def test_max_tokens_may_be_large(server, make_samples, tmp_path):
    # The client refuses long answers unless it is given a timeout
    samples = make_samples(3)
    edited, _ = edit(tmp_path, server, samples, max_tokens=128_000)
    assert edited.to_list() == edit_correctly(samples)


# --- What is requested, and what is not ------------------------------------------------------------------------------


@both_ways
def test_equal_samples_are_requested_once(server, make_samples, tmp_path, use_batches):
    samples = make_samples(10)
    twice = concatenate_datasets([samples, samples, samples.select([3])])
    edited, _ = edit(tmp_path, server, twice, use_batches=use_batches)
    assert edited.to_list() == edit_correctly(twice)
    assert paid_once(server, 10)


@both_ways
def test_only_a_changed_row_is_requested_again(server, make_samples, tmp_path, use_batches):
    samples = make_samples(10)
    edit(tmp_path, server, samples, use_batches=use_batches)

    def change(row, index):
        return {"completion": row["completion"] + " ; Bye"} if index == 4 else {}

    changed = samples.map(change, with_indices=True)
    edited, _ = edit(tmp_path, server, changed, use_batches=use_batches)
    assert edited.to_list() == edit_correctly(changed)
    assert len(server.asked) == 11
    assert server.asked[-1].count(" ; Bye") > 0


@pytest.mark.parametrize(
    "settings",
    [{"model": "claude-other"}, {"wording": replace(TASK.wording, step_separator=" = ")}, {"effort": "low"}],
    ids=lambda settings: next(iter(settings)),
)
def test_another_model_wording_or_effort_is_requested_again(server, make_samples, tmp_path, settings):
    samples = make_samples(6)
    edit(tmp_path, server, samples)
    edit(tmp_path, server, samples, max_attempts=1, **settings)
    assert len(server.asked) == 12
    edit(tmp_path, server, samples, max_attempts=1, **settings)
    edit(tmp_path, server, samples)
    assert len(server.asked) == 12, "the answers to both are in the journal"


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens": 100},
        {"input_price": 3.0, "output_price": 15.0},
        {"concurrency": 1},
        {"use_batches": True},
        {"max_attempts": 9},
        {"poll_seconds": 1.0},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_do_not_change_answers_request_nothing_again(server, make_samples, tmp_path, settings):
    samples = make_samples(6)
    expected, _ = edit(tmp_path, server, samples)
    edited, _ = edit(tmp_path, server, samples, **settings)
    assert edited.to_list() == expected.to_list()
    assert len(server.asked) == 6
    assert server.requests["create"] == 0


def test_one_process_edits_through_the_journal_as_any_editor_does(server, make_samples, tmp_path):
    samples = make_samples(12)
    with Journal(tmp_path) as journal:
        edited, outcomes = edit_through_journal(samples, make_editor(journal, server), TASK)
        left, _ = edit_through_journal(samples, make_editor(journal, server), TASK, check_correct_samples=False)
    assert edited.to_list() == edit_correctly(samples)
    assert sum(outcomes.values()) == 12
    expected, _ = edit_dataset(samples, edit_arithmetic, TASK, check_correct_samples=False)
    assert left.to_list() == expected.to_list()
    assert paid_once(server, 12)


# --- Costs -----------------------------------------------------------------------------------------------------------

# Each kind of token has its own price, so that no kind can be mistaken for another
PRICES = {"input_price": 2.0, "output_price": 10.0, "cache_write_price": 3.0, "cache_read_price": 0.5}


def bill(server):
    """Dollars that the server would charge at these prices."""
    names = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    full, half = (
        sum(tokens[name] * price for name, price in zip(names, PRICES.values(), strict=True)) / 1e6
        for tokens in (server.tokens[False], server.tokens[True])
    )
    return full + half / 2


def estimate(folder, server, samples, **config):
    with Journal(folder) as journal:
        return make_editor(journal, server, **config).estimate(*editor_inputs(samples, TASK))


def test_an_estimate_is_close_to_the_bill_and_requests_no_answer(server, make_samples, tmp_path):
    samples = make_samples(200)
    doubled = concatenate_datasets([samples, samples.select(range(50))])
    found = estimate(tmp_path, server, doubled)
    assert found.requests == 200
    assert (found.cost, found.highest_cost) == (None, None)
    assert server.requests.keys() == {"count_tokens"}
    edit(tmp_path, server, samples)
    tokens = server.tokens[False]
    assert found.input_tokens == pytest.approx(tokens.total() - tokens["output_tokens"], rel=0.02)
    assert found.output_tokens == pytest.approx(tokens["output_tokens"], rel=0.25)
    assert estimate(tmp_path, server, doubled).requests == 0


def test_an_estimate_multiplies_by_the_prices(server, make_samples, tmp_path):
    samples = make_samples(10)
    tokens = estimate(tmp_path, server, samples)
    of_input = estimate(tmp_path, server, samples, input_price=1e6, output_price=0.0)
    assert of_input.cost == of_input.highest_cost == pytest.approx(tokens.input_tokens)
    of_output = estimate(tmp_path, server, samples, input_price=0.0, output_price=1e6, max_tokens=500)
    assert of_output.cost == pytest.approx(tokens.output_tokens)
    assert of_output.highest_cost == pytest.approx(10 * 500)
    by_batches = estimate(tmp_path, server, samples, input_price=1e6, output_price=0.0, use_batches=True)
    assert by_batches.cost == pytest.approx(tokens.input_tokens / 2)


def test_only_rows_without_an_answer_are_estimated(server, make_samples, tmp_path):
    samples = make_samples(10)
    edit(tmp_path, server, samples.select(range(4)))
    assert estimate(tmp_path, server, samples).requests == 6
    # Those in a batch in flight are already paid
    server.faults["retrieve"] = "401"
    with pytest.raises(TeacherError):
        edit(tmp_path, server, samples.select(range(7)), use_batches=True)
    assert estimate(tmp_path, server, samples).requests == 3


@both_ways
def test_max_cost_stops_in_time_keeps_the_answers_and_can_be_raised(server, make_samples, tmp_path, use_batches):
    samples = make_samples(60)
    settings = {**PRICES, "use_batches": use_batches, "questions_per_batch": 5}
    # The estimate is too high, because it cannot know that most of the instructions will be read from the cache
    limit = estimate(tmp_path, server, samples, **settings).cost / 3
    edited, outcomes = edit(tmp_path, server, samples, max_cost=limit, **settings)
    asked = sum(server.paid.values())
    # The cost of an answer is unknown until it has arrived
    assert 0.7 * limit < bill(server) < 1.1 * limit
    assert outcomes["not asked"] == 60 - asked > 0
    assert paid_once(server, asked)
    assert len(edited) - edited["rewrite"].count(None) == asked

    edit(tmp_path, server, samples, max_cost=limit, **settings)
    assert bill(server) < 1.1 * limit, "what an earlier run spent is included"

    edit_the_rest(tmp_path, server, samples, max_cost=10 * limit, **settings)


@both_ways
def test_recorded_costs_add_up_to_the_bill(server, make_samples, tmp_path, use_batches):
    server.fault = lambda user, attempt: [None, "refusal", "malformed", "max_tokens"][(number(user) + attempt) % 4]
    edit(tmp_path, server, make_samples(40), use_batches=use_batches, **PRICES)
    with Journal(tmp_path) as journal:
        assert sum(journal.costs()) == pytest.approx(bill(server), rel=1e-9)
    assert sum(server.paid.values()) > 50


# --- Errors that stop the run ----------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("status", ["401", "404"])
def test_a_rejected_key_or_model_stops_the_run_at_once(server, make_samples, tmp_path, use_batches, status):
    server.faults |= {"messages": status, "create": status}
    with Journal(tmp_path) as journal:
        editor = make_editor(journal, server, "claude-tset", use_batches=use_batches)
        with pytest.raises(TeacherError, match=f"(?s){status}.*ANTHROPIC_API_KEY") as caught:
            edit_dataset(make_samples(200), editor, TASK)
    assert "'claude-tset'" in str(caught.value)
    assert server.requests["messages"] + server.requests["create"] <= 8, "no more than are in flight at a time"
    assert server.paid == {}


def test_answers_before_and_during_a_rejected_key_are_kept(server, make_samples, tmp_path):
    server.delay = lambda user: number(user) % 10 / 100
    server.fault = lambda user, attempt: "401" if len(server.asked) > 20 else None
    samples = make_samples(60)
    with pytest.raises(TeacherError, match="401"):
        edit(tmp_path, server, samples)
    assert len(journal_records(tmp_path)) == sum(server.paid.values()) == 20
    server.fault = lambda user, attempt: None
    edit_the_rest(tmp_path, server, samples)


def test_fifty_failures_in_a_row_stop_the_run(server, make_samples, tmp_path):
    samples = make_samples(400)
    server.fault = lambda user, attempt: "500" if len(server.asked) > 30 else None
    with pytest.raises(TeacherError, match="50 requests in a row.*500"):
        edit(tmp_path, server, samples, max_retries=0)
    # Not exactly 80: an answer that is recorded after the first failures starts the count anew
    assert 80 <= len(server.asked) < 400
    assert len(journal_records(tmp_path)) == 30


def test_a_run_in_which_every_row_is_rejected_stops(server, make_samples, tmp_path):
    """The rows are not to blame: an account without credit gets the same status."""
    server.fault = lambda user, attempt: "400"
    with pytest.raises(TeacherError, match="50 requests in a row.*400"):
        edit(tmp_path, server, make_samples(200))
    assert len(server.asked) <= 50 + 2 * 8


def test_rejected_rows_do_not_stop_a_run_that_has_answers(server, make_samples, tmp_path):
    samples = make_samples(200)
    server.fault = lambda user, attempt: "400" if number(user) % 2 else None
    edited, outcomes = edit(tmp_path, server, samples)
    refused = [outcome for outcome in edited["edit_outcome"] if outcome.startswith("status 400")]
    assert len(refused) > 60 and outcomes["unchanged"] + outcomes["rewritten"] == 200 - len(refused)
    assert set(server.paid.values()) == {1}


def test_an_editor_can_be_used_for_a_second_dataset(server, make_samples, tmp_path):
    samples = make_samples(20)
    with Journal(tmp_path) as journal:
        editor = make_editor(journal, server)
        for half in (samples.select(range(10)), samples.select(range(10, 20))):
            edited, _ = edit_through_journal(half, editor, TASK)
            assert edited.to_list() == edit_correctly(half)


@pytest.mark.parametrize("settings", [{"served_model": "x"}, {"extra_body": {"a": 1}}, {"api_key_env": "TEAM_KEY"}])
def test_settings_for_servers_are_refused(settings, tmp_path):
    with Journal(tmp_path) as journal, pytest.raises(ValueError, match="for servers only"):
        AnthropicTeacher("claude-test", journal, TeacherConfig(), ServerConfig(**settings))


def test_a_journal_inside_the_folder_that_is_replaced_is_refused(server, make_samples, tmp_path):
    make_samples(3).save_to_disk(tmp_path / "samples")
    words = ["--dataset_name", tmp_path / "samples", "--output_dir", tmp_path / "edited", "--task", "arithmetic"]
    words += ["--journal_dir", tmp_path / "edited" / "journal", "--provider", "anthropic", "--teacher", "claude-test"]
    recipe = importlib.import_module("recipes.edit")
    with pytest.raises(ValueError, match="lies in `--output_dir`"):
        recipe.main(*recipe.make_parser().parse_args_and_config([*map(str, words), "--base_url", server.url]))
    assert not server.requests


def test_many_failures_with_answers_in_between_do_not_stop_the_run(server, make_samples, tmp_path):
    samples = make_samples(200)
    server.fault = lambda user, attempt: "400" if number(user) % 4 else None
    _, outcomes = edit(tmp_path, server, samples, max_attempts=1)
    assert len(server.asked) == 200
    assert outcomes["unchanged"] + outcomes["rewritten"] == sum(server.paid.values()) < 80


def test_a_missing_key_is_an_error_before_any_request(server, make_samples, tmp_path, monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(TeacherError, match="set the variable ANTHROPIC_API_KEY"):
        edit(tmp_path, server, make_samples(3))
    assert not server.requests


# --- Batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["500 but created", "reset but created"])
def test_a_batch_that_was_created_despite_an_error_is_found(server, make_samples, tmp_path, fault):
    server.faults["create", 0] = fault
    samples = make_samples(10)
    edit_the_rest(tmp_path, server, samples, use_batches=True)
    assert server.requests["create"] == 1


@pytest.mark.parametrize("use_batches", [True, False])
@pytest.mark.parametrize("fault", ["500 but created", "reset but created"])
def test_a_batch_whose_id_was_lost_is_found_among_others_by_the_next_run(
    server, make_samples, tmp_path, fault, use_batches
):
    samples = make_samples(10)
    for size in (10, 3):
        server.add_batch_of_others(size)
    server.faults = {("create", 0): fault, ("list", 1): "500"}
    with pytest.raises(TeacherError):
        edit(tmp_path, server, samples, use_batches=True, max_retries=0)
    # More than one page of newer batches, some of the same size
    for index in range(120):
        server.add_batch_of_others(10 if index % 40 == 0 else 5)
    server.faults = {}
    edit_the_rest(tmp_path, server, samples, use_batches=use_batches)
    assert server.requests["create"] == 1
    assert server.requests["messages"] == 0


def test_a_batch_that_never_arrived_is_submitted_again(server, make_samples, tmp_path):
    samples = make_samples(10)
    server.add_batch_of_others(10)
    (older,) = server.batches.values()
    server.faults = {"create": "529"}
    with pytest.raises(TeacherError):
        edit(tmp_path, server, samples, use_batches=True, max_retries=1)
    server.faults = {}
    edit_the_rest(tmp_path, server, samples, use_batches=True)
    assert older.looks_left == server.looks, (
        "ours can only be newer: this one has the same size, and is not waited for"
    )


def test_two_batches_of_which_one_was_lost_are_distinguished(server, make_samples, tmp_path):
    samples = make_samples(20)
    server.faults = {("create", 1): "reset but created", ("list", 2): "500"}
    with pytest.raises(TeacherError):
        edit(tmp_path, server, samples, use_batches=True, questions_per_batch=10, max_retries=0)
    server.faults = {}
    edit_the_rest(tmp_path, server, samples, use_batches=True)
    assert server.requests["create"] == 2


@pytest.mark.parametrize("use_batches", [True, False])
def test_a_batch_in_flight_is_waited_for_and_not_submitted_again(server, make_samples, tmp_path, use_batches):
    samples = make_samples(20)
    server.faults = {"retrieve": "401"}
    with pytest.raises(TeacherError):
        edit(tmp_path, server, samples, use_batches=True, questions_per_batch=8)
    assert journal_records(tmp_path) == []
    server.faults = {}
    server.looks = 5
    edit_the_rest(tmp_path, server, samples, use_batches=use_batches)
    assert server.requests["create"] == 3
    assert server.requests["messages"] == 0


def test_a_batch_whose_results_were_deleted_is_submitted_again(server, make_samples, tmp_path):
    samples = make_samples(10)
    server.faults = {"retrieve": "401"}
    with pytest.raises(TeacherError):
        edit(tmp_path, server, samples, use_batches=True)
    server.faults, server.keeps_results = {}, False
    with Journal(tmp_path) as journal:
        teacher = make_editor(journal, server, use_batches=True).teacher
        with teacher._client() as client:
            teacher._resume(client)
        assert journal.submissions() == []
    server.keeps_results = True
    edited, _ = edit(tmp_path, server, samples, use_batches=True)
    assert edited.to_list() == edit_correctly(samples)
    assert set(server.paid.values()) == {2}


def test_a_batch_that_the_key_cannot_see_is_not_submitted_again(server, make_samples, tmp_path):
    """As with the key of another workspace: the answers are paid for, and the correct key fetches them."""
    samples = make_samples(10)
    server.faults = {"retrieve": "401"}
    with pytest.raises(TeacherError):
        edit(tmp_path, server, samples, use_batches=True)
    server.faults, batches = {}, server.batches
    server.batches = {}
    with pytest.raises(TeacherError, match="not known to this key"):
        edit(tmp_path, server, samples, use_batches=True)
    server.batches = batches
    edit_the_rest(tmp_path, server, samples, use_batches=True)


def test_a_batch_that_expired_as_a_whole_is_submitted_again(server, make_samples, tmp_path):
    server.faults["create", 0] = "all expired"
    samples = make_samples(10)
    edit_the_rest(tmp_path, server, samples, use_batches=True)
    assert len(server.asked) == 20


@pytest.mark.parametrize("kind", ["errored", "expired"])
def test_a_row_that_no_batch_answers_has_the_reason_as_its_outcome(server, make_samples, tmp_path, kind):
    samples = make_samples(10)
    unlucky = samples[5]["completion"]
    server.fault = lambda user, attempt: kind if unlucky in user else None
    edited, outcomes = edit(tmp_path, server, samples, use_batches=True, max_attempts=3)
    assert edited[5]["rewrite"] is None
    assert edited[5]["edit_outcome"] == {"errored": "errored: api_error"}.get(kind, kind)
    assert sum(unlucky in user for user in server.asked) == 3
    assert len(server.asked) == 12 and paid_once(server, 9)


@pytest.mark.parametrize("faults", [{"results": "cut off"}, {"results": "500"}, {"results": "401"}])
def test_results_that_cannot_be_fetched_are_fetched_by_the_next_run(server, make_samples, tmp_path, faults):
    samples = make_samples(10)
    server.faults = faults
    with pytest.raises(TeacherError):
        edit(tmp_path, server, samples, use_batches=True, max_retries=1)
    server.faults = {}
    edit_the_rest(tmp_path, server, samples, use_batches=True)
    assert server.requests["create"] == 1


def test_a_canceled_batch_stops_the_run_and_its_answers_are_kept(server, make_samples, tmp_path):
    # A batch that was canceled on purpose must not be submitted again in the same run
    server.fault = lambda user, attempt: "canceled" if number(user) % 2 and attempt == 0 else None
    samples = make_samples(20)
    with pytest.raises(TeacherError, match="canceled"):
        edit(tmp_path, server, samples, use_batches=True)
    assert server.requests["create"] == 1
    assert 0 < len(journal_records(tmp_path)) == server.paid.total() < 20
    edit_the_rest(tmp_path, server, samples, use_batches=True)


def test_a_batch_of_another_process_is_left_to_it(server, make_samples, tmp_path):
    samples = make_samples(12)

    def edit_as(process, **settings):
        with Journal(tmp_path, process, 2) as journal:
            return edit_dataset(samples, make_editor(journal, server, **settings), TASK)

    server.faults = {"retrieve": "401"}
    with pytest.raises(TeacherError):
        edit_as(1, use_batches=True)
    server.faults = {}
    _, outcomes = edit_as(0)
    assert outcomes == {"not asked": 12}
    assert server.requests["messages"] == 0
    edited, _ = edit_as(1)
    assert edited.to_list() == edit_correctly(samples)
    assert paid_once(server, 12)
    # With a single process, no other can fetch it
    edited, _ = edit(tmp_path, server, samples)
    assert edited.to_list() == edit_correctly(samples)
    assert len(server.asked) == 12


def test_a_batch_of_a_process_that_no_longer_exists_is_fetched(server, make_samples, tmp_path):
    samples = make_samples(12)
    server.faults = {"retrieve": "401"}
    with Journal(tmp_path, 1, 2) as journal, pytest.raises(TeacherError):
        edit_dataset(samples, make_editor(journal, server, use_batches=True), TASK)
    server.faults = {}
    edit_the_rest(tmp_path, server, samples)
    assert server.requests["messages"] == 0


def test_results_in_several_parts_are_combined(server, make_samples, tmp_path):
    server.faults |= {("results", 0): "cut off", ("results", 1): "500", ("results", 2): "cut off"}
    samples = make_samples(10)
    edit_the_rest(tmp_path, server, samples, use_batches=True)
    assert len(journal_records(tmp_path)) == 10


# --- Separate processes ----------------------------------------------------------------------------------------------


def recipe_words(tmp_path, server, samples, *words):
    samples.save_to_disk(tmp_path / "samples")
    settings = {"provider": "anthropic", "teacher": "claude-test", "task": "arithmetic", "base_url": server.url}
    settings |= {"dataset_name": tmp_path / "samples", "output_dir": tmp_path / "edited", "concurrency": 8}
    settings |= {"poll_seconds": 0.05, "max_retries": 1}
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))] + list(words)


def recipe_after(statements, tmp_path):
    """A script that runs other code before the recipe."""
    script = tmp_path / "script.py"
    script.write_text(f"import runpy\n{statements}\nrunpy.run_path({str(RECIPE)!r}, run_name='__main__')\n")
    return script


@both_ways
def test_two_processes_share_the_work_and_give_the_dataset_of_one(
    server, make_samples, tmp_path, use_batches, run_on_two
):
    # Some rows are requested again, and some are in the dataset twice
    server.fault = lambda user, attempt: "malformed" if number(user) % 5 == 0 and attempt == 0 else None
    samples = make_samples(60)
    samples = concatenate_datasets([samples, samples.select(range(7))])
    words = recipe_words(tmp_path, server, samples, "--use_batches", str(use_batches).lower())
    run_on_two(RECIPE, *words)
    expected, _ = edit(tmp_path / "alone", server, samples, use_batches=use_batches)
    found = load_from_disk(tmp_path / "edited")
    assert found.to_list() == expected.to_list() == edit_correctly(samples)
    answers = [
        Counter(json.loads(line)["key"] for line in path.read_text().splitlines() if '"answer"' in line)
        for path in sorted((tmp_path / "edited-journal").glob("*.jsonl"))
    ]
    assert len(answers) == 2 and all(len(part) > 15 for part in answers), "both processes took part"
    assert not answers[0].keys() & answers[1].keys(), "no row was requested by both"
    assert sum(map(len, answers)) == 60


def test_ctrl_c_keeps_the_answers_in_flight(server, make_samples, tmp_path, scripts):
    # Never all at once, so that some request is always in flight
    server.delay = lambda user: 0.1 + number(user) % 10 / 50
    samples = make_samples(200)
    # Tests may run where Ctrl-C is ignored, such as in the background of a script
    script = recipe_after("import signal; signal.signal(signal.SIGINT, signal.default_int_handler)", tmp_path)
    (process,) = scripts.start(script, *recipe_words(tmp_path, server, samples), cwd=tmp_path)
    try:
        server.wait_until(lambda: server.paid.total() >= 20)
        os.kill(process, signal.SIGINT)
    finally:
        finished = scripts.wait()
    assert finished.exit_code != 0
    records = journal_records(tmp_path / "edited-journal")
    assert len({record["key"] for record in records}) == len(records) == server.paid.total() == len(server.asked)
    assert 20 <= len(records) < 100, "the run has stopped"
    server.delay = lambda user: 0.0
    edit_the_rest(tmp_path / "edited-journal", server, samples)


# --- The key ---------------------------------------------------------------------------------------------------------

SECRET = KEY.removeprefix("sk-ant-")


@both_ways
@pytest.mark.parametrize("status", ["400", "401", "500"])
def test_the_key_is_in_no_error(server, make_samples, tmp_path, use_batches, status):
    server.echo_key = True
    server.faults |= {"messages": status, "create": status}
    with pytest.raises(TeacherError) as caught:
        edit(tmp_path, server, make_samples(60), use_batches=use_batches, max_retries=0)
    assert f"status {status}" in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    for path in tmp_path.rglob("*.*"):
        assert SECRET not in path.read_text(), path


@both_ways
def test_the_key_is_in_no_file_and_no_output_of_a_run(server, make_samples, tmp_path, use_batches, scripts):
    server.echo_key = True
    samples = make_samples(20)
    unlucky = samples[5]["completion"]
    server.fault = lambda user, attempt: "400" if unlucky in user else None
    server.faults = {("create", 0): "500", ("retrieve", 1): "500"}
    # Everything that any library logs
    script = recipe_after("import logging; logging.basicConfig(level=logging.DEBUG, force=True)", tmp_path)
    words = recipe_words(tmp_path, server, samples, "--use_batches", str(use_batches).lower())
    result = scripts.run(script, *words, cwd=tmp_path, environments=[{"ANTHROPIC_LOG": "debug"}])
    assert result.exit_code == 0, result.stderr[-3000:]
    assert "/v1/messages" in result.stderr, "the client logs its requests"
    outcomes = load_from_disk(tmp_path / "edited")["edit_outcome"]
    assert ("status 400" in outcomes[5]) == (not use_batches)
    assert SECRET not in result.stdout + result.stderr
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_the_fake_server_answers_like_the_programmatic_editor(server, make_samples, tmp_path):
    # Otherwise equal datasets would prove little
    samples = make_samples(6)
    edit(tmp_path, server, samples)
    said = [json.loads(record["text"]) for record in journal_records(tmp_path)]
    said = sorted((answer["error_step"], answer["rewrite"]) for answer in said)
    assert said == sorted(rewrite_minimally(*read_row(user)) for user in server.paid)
