"""A response justifies the label that was asked for, and no other, or it is not trained on."""

import json
import random
from collections import Counter

import pytest
from datasets import Dataset

from rlmec_trl.data.errors import ConfigError
from rlmec_trl.generation.server import ServerConfig
from rlmec_trl.tasks import verdicts
from rlmec_trl.tasks.classification import label_first
from rlmec_trl.tasks.task import Task, load_task
from rlmec_trl.tasks.wording import WORDING, policy_prompt
from rlmec_trl.teachers.api.config import TeacherConfig
from rlmec_trl.teachers.api.journal import Journal
from rlmec_trl.teachers.journaled_justifier import JournaledJustifier, justify_through_journal
from rlmec_trl.teachers.model_justifier import ModelJustifier
from rlmec_trl.teachers.raters import JournaledRater, NoRating, RaterError, rate_responses
from rlmec_trl.teachers.rationales import (
    NoRationale,
    RationaleError,
    TaskJustifier,
    justify_dataset,
    load_justifier,
    verify_rationale,
)
from rlmec_trl.teachers.server_teacher import ServerTeacher
from rlmec_trl.teachers.text_questions import (
    RATIONALE_SCHEMA,
    justify_prompt,
    make_rating_question,
    make_rationale_question,
    read_rating,
    read_rationale,
)
from tests.fake_openai import FakeServer


SST2 = load_task("sst2")
CHAT = "/v1/chat/completions"
GOOD = "The pace never drags.\nThe answer is positive"


# --- What is accepted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (GOOD, None),
        ("The pace never drags. It is not negative at all.\n**The answer is Positive.**", None),
        ("", "empty"),
        ("The pace never drags.", "no label"),
        ("The pace drags.\nThe answer is negative", "wrong label"),
        ("The answer is negative. No: the pace never drags.\nThe answer is positive", "several labels"),
        ("The answer is positive\nThe pace never drags.", "misplaced label"),
        ("The answer is positive", "no rationale"),
        ("...\n\n---\nThe answer is positive", "no rationale"),
    ],
)
def test_a_response_has_to_end_with_the_label_that_was_asked_for(response, reason):
    assert verify_rationale(SST2, "Sentence: fine", "positive", response) == reason


def test_a_response_may_have_to_begin_with_its_label():
    task = label_first(SST2)
    assert verify_rationale(task, "", "positive", "The answer is positive\nThe pace never drags.") is None
    assert verify_rationale(task, "", "positive", GOOD) == "misplaced label"


def test_a_task_that_reads_labels_itself_decides():
    task = load_task("verdicts")
    review = verdicts.write_review(verdicts.draw_review(random.Random(0), "positive", 0.3, 1.0))
    assert verify_rationale(task, review, "negative", verdicts.justify(review, "negative")) is None
    assert verify_rationale(task, review, "positive", verdicts.justify(review, "negative")) == "wrong label"
    assert verify_rationale(task, review, "positive", GOOD) == "no label"


def rows(messages=False, number=3):
    texts = [f"Sentence: film {index}" for index in range(number)]
    prompts = [policy_prompt(SST2.wording, text) for text in texts]
    prompts = [[{"role": "user", "content": prompt}] if messages else prompt for prompt in prompts]
    columns = {"prompt": prompts, "answer": ["positive"] * number, "level": list(range(number))}
    return Dataset.from_dict({**columns, "label": ["positive", "negative", "positive"][:number]})


@pytest.mark.parametrize("messages", [False, True])
def test_what_fails_is_none_with_its_reason_and_only_gold_labels_are_correct(messages):
    def teacher(problems, labels):
        assert problems == [f"Sentence: film {index}" for index in range(3)], "without the policy's prompt"
        assert labels == ["positive", "negative", "positive"]
        return [GOOD, GOOD.replace("positive", "negative"), NoRationale("tired")]

    found, outcomes = justify_dataset(rows(messages), teacher, SST2)
    assert outcomes == {"accepted": 2, "tired": 1}
    assert found["rationale_outcome"][:] == ["accepted", "accepted", "tired"]
    assert found["correct"][:] == [True, False, False]
    assert found["level"][:] == [0, 1, 2]
    assert found["completion"][2] is None
    expected = [{"role": "assistant", "content": GOOD}] if messages else GOOD
    assert found["completion"][0] == expected
    # Also of a shard without a response
    nothing, _ = justify_dataset(rows(messages), lambda problems, labels: [NoRationale("tired")] * 3, SST2)
    assert nothing.features == found.features


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda problems: "text", "returned a `str`; it must return a list with one response per problem"),
        (lambda problems: [GOOD], "returned 1 responses for 3 problems"),
        (lambda problems: [GOOD, None, GOOD], "returned None for row 101; a response is a text"),
        (lambda problems: [GOOD, "\ud800", GOOD], r"for row 101; a response is a text"),
        (lambda problems: [NoRationale("accepted")] * 3, "for row 100"),
        (lambda problems: 1 / 0, "failed on 3 problems: ZeroDivisionError.*test_rationales.py, line"),
    ],
)
def test_a_broken_teacher_is_an_error_that_names_it_and_the_row(returned, message):
    def my_teacher(problems, labels):
        return returned(problems)

    with pytest.raises(RationaleError, match=f"my_teacher.*{message}"):
        justify_dataset(rows(), my_teacher, SST2, first_row=100)


def test_the_tasks_own_writer_may_have_none_and_may_fail():
    answers = {"positive": GOOD, "negative": None}
    task = Task("mood", labels=("negative", "positive"), justifier=lambda problem, label: answers[label])
    _, outcomes = justify_dataset(rows(), TaskJustifier(task), task)
    assert outcomes == {"accepted": 2, "no rationale": 1}
    task = Task("mood", labels=("negative", "positive"), justifier=lambda problem, label: 1 / 0)
    with pytest.raises(RationaleError, match="`justifier` of task 'mood' failed on the problem .*ZeroDivisionError"):
        justify_dataset(rows(), TaskJustifier(task), task)


def test_what_is_no_function_is_no_teacher(tmp_path):
    (tmp_path / "mine.py").write_text("SETTINGS = {}\n")
    with pytest.raises(ConfigError, match="is a `dict`, not a teacher of rationales. .* problems and labels"):
        load_justifier(f"{tmp_path / 'mine.py'}:SETTINGS")


# --- What is asked, and how it is read -------------------------------------------------------------------------------


@pytest.mark.parametrize("structured", [True, False])
def test_a_request_shows_the_policys_prompt_and_the_label_and_does_not_tell_whether_it_is_wrong(structured):
    asked = [make_rationale_question("t", SST2.wording, structured, "Sentence: fine", label) for label in SST2.labels]
    assert asked[0].system == asked[1].system and asked[0].key != asked[1].key
    assert f"<prompt>\n{policy_prompt(SST2.wording, 'Sentence: fine').strip()}\n</prompt>" in asked[0].user
    assert asked[0].user.endswith("<label>\nnegative\n</label>")
    assert ("JSON" in asked[0].system) == (asked[0].schema is not None) == structured
    assert justify_prompt(SST2.wording, "Sentence: fine", "negative").endswith(asked[0].user)


def test_answers_in_existing_journals_are_still_found():
    """With another key, every label and rating of every journal would be requested and paid for again."""
    arguments = ("anthropic claude default", WORDING, True, "Sentence: fine")
    assert make_rationale_question(*arguments, "positive").key[:16] == "a34a8d53a9d07045"
    assert make_rating_question(*arguments, GOOD).key[:16] == "3d383fb7ea4844a6"


@pytest.mark.parametrize(
    ("structured", "text", "expected"),
    [
        (True, '{"response": " so positive\\n"}', "so positive"),
        (True, "so positive", NoRationale("malformed")),
        (True, '{"response": 3}', NoRationale("malformed")),
        (True, '["response"]', NoRationale("malformed")),
        (True, '{"response": "\\ud800"}', NoRationale("malformed")),
        (False, "<think>Hm.</think>\n\nso positive", "so positive"),
    ],
)
def test_an_answer_is_never_read_as_more_than_it_says(structured, text, expected):
    assert read_rationale(structured, text) == expected


@pytest.mark.parametrize(
    ("structured", "text", "expected"),
    [
        (True, '{"rating": 7}', 7.0),
        (True, '{"rating": 7.0}', 7.0),
        (True, '{"rating": 7.5}', None),
        (True, '{"rating": NaN}', None),
        (True, '{"rating": 11}', None),
        (True, '{"rating": true}', None),
        (True, "7", None),
        (False, " **8**/10.", 8.0),
        (False, "<think>3?</think>9", 9.0),
        (False, "7 or 8", None),
        (False, "0", None),
    ],
)
def test_a_rating_is_a_number_from_one_to_ten(structured, text, expected):
    assert read_rating(structured, text) == expected


def test_a_local_model_is_asked_once_for_each_label(monkeypatch):
    asked = []

    def ask(justifier, prompts, desc):
        asked.extend(prompts)
        assert (justifier.max_new_tokens, justifier.batch_size) == (77, 5)
        return [GOOD, "<think>Hm</think>" + GOOD.replace("positive", "negative"), None]

    monkeypatch.setattr(ModelJustifier, "ask", ask)
    found, outcomes = justify_dataset(rows(), ModelJustifier(None, None, SST2.wording, 5, 77), SST2)
    assert asked == [justify_prompt(SST2.wording, f"Sentence: film {i}", rows()["label"][i]) for i in range(3)]
    assert outcomes == {"accepted": 2, "truncated": 1}


# --- Through the journal ---------------------------------------------------------------------------------------------


def label_in(body):
    return body["messages"][-1]["content"].split("<label>\n")[1].split("\n")[0]


def good_for(label, structured=True):
    text = GOOD.replace("positive", label)
    return json.dumps({"response": text}) if structured else text


@pytest.fixture
def justify(tmp_path):
    """Have a teacher behind a server justify the labels of rows through a journal."""

    def justify(server, dataset, **settings):
        server_config = ServerConfig(base_url=server.url, max_retries=0)
        with Journal(tmp_path / "journal") as journal:
            teacher = ServerTeacher("policy", journal, TeacherConfig(**settings), server_config)
            return justify_through_journal(dataset, JournaledJustifier(teacher, SST2.wording), SST2)

    return justify


@pytest.mark.parametrize("structured", [True, False])
def test_rationales_through_a_server_and_a_second_run_requests_nothing(structured, justify, tokenizer):
    def chat(body):
        return good_for(label_in(body), structured), "stop"

    with FakeServer(tokenizer, chat=chat) as server:
        found, outcomes = justify(server, rows(), structured_output=structured)
        again, _ = justify(server, rows(), structured_output=structured)
        bodies = [exchange.body for exchange in server.asked(CHAT)]
    assert outcomes == {"accepted": 3} and again.to_list() == found.to_list()
    assert len(bodies) == 3
    schema = {"type": "json_schema", "json_schema": {"name": "rationale", "schema": RATIONALE_SCHEMA, "strict": True}}
    assert all(body.get("response_format") == (schema if structured else None) for body in bodies)


USELESS = {
    "truncated": ('{"response": "The pa', "length"),
    "refusal": ("", "content_filter"),
    "malformed": ("I would rather not.", "stop"),
    "wrong label": (good_for("negative"), "stop"),
    "no label": ('{"response": "Hm."}', "stop"),
    "empty": ('{"response": ""}', "stop"),
}


@pytest.mark.parametrize("outcome", USELESS)
def test_a_useless_answer_is_requested_again_and_counted_by_kind_if_it_stays_so(outcome, justify, tokenizer):
    dataset = rows().filter(lambda row: row["label"] == "positive")
    seen = Counter()

    def chat(body):
        key = body["messages"][-1]["content"]
        seen[key] += 1
        return USELESS[outcome] if seen[key] <= 2 else (good_for("positive"), "stop")

    with FakeServer(tokenizer, chat=chat) as server:
        found, outcomes = justify(server, dataset, max_attempts=2)
        assert outcomes == {outcome: 2} and found["completion"][:] == [None, None]
        found, outcomes = justify(server, dataset, max_attempts=3)
    assert outcomes == {"accepted": 2}
    assert set(seen.values()) == {3}


def test_faults_of_a_server_lose_no_rationale(justify, tokenizer):
    with FakeServer(tokenizer, chat=lambda body: (good_for(label_in(body)), "stop")) as server:
        server.faults.extend(["500", "broken JSON", None, "no choices", "429"])
        _, outcomes = justify(server, rows(), max_attempts=5)
        assert len(server.exchanges) == 7
    assert outcomes == {"accepted": 3}


# --- Ratings ---------------------------------------------------------------------------------------------------------


def test_a_teacher_rates_and_what_cannot_be_read_is_no_rating(tmp_path, tokenizer):
    def chat(body):
        text = body["messages"][-1]["content"]
        return ('{"rating": 8}' if "good" in text else "I cannot say.", "stop")

    with FakeServer(tokenizer, chat=chat) as server, Journal(tmp_path / "journal") as journal:
        config = TeacherConfig(max_attempts=2)
        teacher = ServerTeacher("policy", journal, config, ServerConfig(base_url=server.url, max_retries=0))
        rater = JournaledRater(teacher, WORDING)
        for _ in range(2):
            ratings = rater.rate(["p", "p", "p"], ["good", "odd", "good"])
            assert ratings == [8.0, NoRating("malformed"), 8.0]
        assert len(server.exchanges) == 3, "equal responses once, and the odd one twice"


@pytest.mark.parametrize("value", ["7", True, float("nan"), float("inf")])
def test_a_rating_is_a_finite_number_or_none(value):
    def my_rater(problems, responses):
        return [1, None, value]

    with pytest.raises(RaterError, match="`.*my_rater` returned .* for the response 'c'; a rating is a finite number"):
        rate_responses(my_rater, ["p"] * 3, ["a", "b", "c"])
    assert rate_responses(lambda problems, responses: [1, None], ["p"] * 2, ["a", "b"]) == [1.0, NoRating("no rating")]
