"""
`kill -9` at any moment loses no answer that is on disk, and none of these is requested again. Requests in flight at
that moment may be lost: of single messages at most `concurrency`, of batches none.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk

from rlmec_trl.tasks import verdicts
from rlmec_trl.tasks.task import load_task
from rlmec_trl.teachers.edit_questions import make_edit_question
from rlmec_trl.teachers.editors import editor_inputs
from rlmec_trl.teachers.text_questions import make_rationale_question
from tests.fake_anthropic import KEY, FakeAnthropic
from tests.survival_worker import CONCURRENCY, edit


WORKER = Path(__file__).parents[1] / "survival_worker.py"
NUM_ROWS = 300
NUM_KILLS = 20


class Worker:
    """A process that starts one run after another."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            env=os.environ | {"PYTHONPATH": str(WORKER.parents[1]), "ANTHROPIC_API_KEY": KEY},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start(self, folder, server, use_batches, work="edit"):
        self._process.stdin.write(json.dumps([work, str(folder), server.url, use_batches]) + "\n")
        self._process.stdin.flush()
        self._run = int(self._process.stdout.readline())

    def kill(self):
        os.kill(self._run, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL, "it was still running"

    def wait(self):
        return int(self._process.stdout.readline())

    def stop(self):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def worker():
    worker = Worker()
    yield worker
    worker.stop()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with FakeAnthropic() as server:
        yield server
    assert server.complaints == []


@pytest.fixture(scope="module")
def samples(make_rows):
    rows = Dataset.from_list(make_rows(NUM_ROWS))
    return rows.select_columns(["prompt", "reference", "answer", "completion", "completion_ids", "correct"])


def keys_of(samples):
    """The key of each request, by its text."""
    task = load_task("arithmetic")
    questions = [
        make_edit_question("anthropic claude-test default", task.wording, True, *row)
        for row in zip(*editor_inputs(samples, task), strict=True)
    ]
    return {question.user: question.key for question in questions}


def answered_keys(folder):
    lines = (folder / "journal" / "answers-0.jsonl").read_text().splitlines()
    return Counter(record["key"] for record in map(json.loads, lines) if record["type"] == "answer")


def edit_uninterrupted(folder, samples, use_batches):
    samples.save_to_disk(folder / "samples")
    with FakeAnthropic() as other_server:
        edit(folder, other_server.url, use_batches)
    return load_from_disk(folder / "edited").to_list()


def progress(server):
    return server.requests.total() + server.num_lines


@pytest.mark.parametrize("use_batches", [False, True], ids=["messages", "batches"])
def test_twenty_kills_lose_no_answer_and_request_none_again(worker, server, samples, tmp_path, use_batches):
    samples.save_to_disk(tmp_path / "samples")
    keys = keys_of(samples)
    rng = random.Random(7)
    # Slow enough for a kill to meet requests in flight, and to leave some for later
    server.delay = lambda user: 0.02
    server.chunk_delay = 0.02
    server.looks = 2
    # The client needs a while for the first line of results
    longest_pause = 0.25 if use_batches else 0.02
    kills = []
    for kill in range(NUM_KILLS):
        goal = progress(server) + rng.randint(1, 20)
        worker.start(tmp_path, server, use_batches)
        server.wait_until(lambda goal=goal: progress(server) >= goal)
        time.sleep(rng.random() * longest_pause)
        worker.kill()
        kills.append((len(server.asked), answered_keys(tmp_path)))
        if kill % 3 == 0:
            # A process may also be killed in the middle of a line
            with open(tmp_path / "journal" / "answers-0.jsonl", "a") as journal:
                journal.write('{"type": "answer", "key": "0123')
    num_answered = [answered.total() for _, answered in kills]
    assert num_answered[-1] < NUM_ROWS, "some rows were left after the last kill"
    assert len(set(num_answered)) >= NUM_KILLS / 2, "the kills came at different moments"
    worker.start(tmp_path, server, use_batches)
    assert worker.wait() == 0

    edited = load_from_disk(tmp_path / "edited").to_list()
    assert edited == edit_uninterrupted(tmp_path / "whole", samples, use_batches)
    assert set(answered_keys(tmp_path).values()) == {1} and len(answered_keys(tmp_path)) == NUM_ROWS
    for num_asked, answered in kills:
        asked_later = {keys[user] for user in server.asked[num_asked:]}
        assert not asked_later & answered.keys(), "answers in the journal are not requested again"
    if use_batches:
        assert any(number % 10 for number in num_answered), "some kills came in the middle of a batch's results"
        assert set(server.paid.values()) == {1} and len(server.paid) == NUM_ROWS
    else:
        assert NUM_ROWS <= server.paid.total() <= NUM_ROWS + NUM_KILLS * CONCURRENCY
        assert max(server.paid.values()) <= 1 + NUM_KILLS


def test_a_kill_while_a_batch_is_submitted_does_not_pay_it_twice(worker, server, samples, tmp_path):
    samples.select(range(40)).save_to_disk(tmp_path / "samples")
    server.chunk_delay = 0.05
    for num_batches in range(1, 5):
        worker.start(tmp_path, server, True)
        # The batch has arrived, and its id has not come back yet
        server.wait_until(lambda number=num_batches: len(server.batches) == number)
        worker.kill()
    worker.start(tmp_path, server, True)
    assert worker.wait() == 0
    assert len(server.batches) == 4
    assert set(server.paid.values()) == {1} and len(server.paid) == 40


def test_a_kill_while_results_are_fetched_does_not_pay_them_twice(worker, server, samples, tmp_path):
    samples.select(range(20)).save_to_disk(tmp_path / "samples")
    # Two batches of ten. The first is sent again to each run until it is complete, and the client sees a line when the
    # next one arrives.
    for num_answers, num_lines in ((3, 4), (7, 8), (12, 13), (17, 8)):
        server.allow_lines(num_lines)
        worker.start(tmp_path, server, True)
        path = tmp_path / "journal" / "answers-0.jsonl"
        server.wait_until(
            lambda path=path, number=num_answers: path.exists() and path.read_text().count('"text"') >= number
        )
        worker.kill()
        assert answered_keys(tmp_path).total() < 20
    server.allow_lines(float("inf"))
    worker.start(tmp_path, server, True)
    assert worker.wait() == 0
    assert set(answered_keys(tmp_path).values()) == {1}
    assert len(server.batches) == 2
    assert set(server.paid.values()) == {1} and len(server.paid) == 20


def justify_as_asked(user, wrong):
    prompt, label = (re.search(rf"<{name}>\n(.*?)\n</{name}>", user, re.DOTALL)[1] for name in ("prompt", "label"))
    return {"response": verdicts.justify(prompt, label)}


@pytest.mark.parametrize("use_batches", [False, True], ids=["messages", "batches"])
def test_kills_lose_no_rationale_and_request_none_again(worker, server, tmp_path, use_batches):
    problems = verdicts.make_verdicts(0, warmup=2, train=40, validation=2, test=2, pairs=2)["train"]
    rows = [{**row, "label": label} for row in problems for label in verdicts.LABELS]
    Dataset.from_list(rows).save_to_disk(tmp_path / "labels")
    server.answer, server.delay, server.chunk_delay = justify_as_asked, lambda user: 0.02, 0.02
    path = tmp_path / "journal" / "answers-0.jsonl"
    kills = []
    for goal in (5, 20, 35):
        worker.start(tmp_path, server, use_batches, work="justify")
        server.wait_until(lambda goal=goal: path.exists() and path.read_text().count('"text"') >= goal, 60)
        worker.kill()
        kills.append((len(server.asked), answered_keys(tmp_path)))
    assert kills[-1][1].total() < 80, "some labels were left after the last kill"
    worker.start(tmp_path, server, use_batches, work="justify")
    assert worker.wait() == 0
    rationales = load_from_disk(tmp_path / "rationales")
    assert rationales["rationale_outcome"][:] == ["accepted"] * 80
    labels = (rationales["prompt"][:], rationales["label"][:])
    expected = [verdicts.justify(prompt, label) for prompt, label in zip(*labels, strict=True)]
    assert rationales["completion"][:] == expected
    assert set(answered_keys(tmp_path).values()) == {1} and len(answered_keys(tmp_path)) == 80
    names = ("anthropic claude-test default", load_task("verdicts").wording, True)
    questions = [make_rationale_question(*names, *row) for row in zip(*labels, strict=True)]
    keys = {question.user: question.key for question in questions}
    for num_asked, answered in kills:
        assert not {keys[user] for user in server.asked[num_asked:]} & answered.keys()
    if use_batches:
        assert set(server.paid.values()) == {1}
