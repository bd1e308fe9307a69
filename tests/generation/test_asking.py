"""Pending requests never exceed the limit and are never dropped: each of them is billed."""

import asyncio
import itertools
import os
import random
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.generation.asking import ask_all


ROOT = Path(__file__).parents[2]


class Server:
    """Responds to each request after a pause, or fails."""

    def __init__(self, seconds, failing=()):
        self.seconds, self.failing = seconds, failing
        self.lock = threading.Lock()
        self.taken, self.asked, self.answered = [], [], []
        self.most_under_way = 0

    def questions(self, number):
        for question in range(number):
            self.taken.append(question)
            yield question

    def ask(self, question):
        with self.lock:
            self.asked.append(question)
            self.most_under_way = max(self.most_under_way, len(self.asked) - len(self.answered))
        time.sleep(self.seconds(question))
        with self.lock:
            self.answered.append(question)
        if question in self.failing:
            raise RuntimeError(f"question {question}")

    def run(self, number, concurrency):
        ask_all(self.ask, self.questions(number), concurrency, number)


# --- Requests --------------------------------------------------------------------------------------------------------


@given(number=st.integers(0, 30), concurrency=st.integers(1, 8), seed=st.integers(0, 99))
def test_every_request_is_sent_once_and_never_more_than_the_limit_at_a_time(number, concurrency, seed):
    rng = random.Random(seed)
    server = Server(lambda question: rng.random() / 1000)
    server.run(number, concurrency)
    assert sorted(server.asked) == list(range(number)) == server.taken == sorted(server.answered)
    assert server.most_under_way <= concurrency


@pytest.mark.parametrize("concurrency", [1, 3, 50])
def test_as_many_requests_are_pending_as_allowed(concurrency):
    # No response before as many requests are pending
    full = threading.Barrier(concurrency)
    ask_all(lambda question: full.wait(timeout=600), range(2 * concurrency), concurrency, 2 * concurrency)


def test_a_slow_response_does_not_delay_the_others():
    server = Server(lambda question: 2 if question == 0 else 0.001)
    server.run(20, 2)
    assert server.answered == [*range(1, 20), 0]


def test_a_request_is_taken_from_the_iterator_only_when_it_can_be_sent():
    server = Server(lambda question: 0.01)
    too_early = []

    def questions():
        for question in server.questions(30):
            # So that an iterator decides as late as possible
            too_early.append(len(server.taken) - len(server.answered) > 4)
            yield question

    ask_all(server.ask, questions(), 4, 30)
    assert len(server.answered) == 30 and not any(too_early)


def test_an_iterator_may_end_early_depending_on_the_responses():
    """As the budget of a teacher does."""
    server = Server(lambda question: 0.003)

    def questions():
        for question in server.questions(1000):
            if len(server.answered) >= 10:
                return
            yield question

    ask_all(server.ask, questions(), 4, 1000)
    assert 10 <= len(server.answered) == len(server.asked) <= 10 + 4


def test_the_progress_bar_counts_responses_and_is_shown_only_with_a_title(capsys):
    server = Server(lambda question: 0)
    ask_all(server.ask, server.questions(7), 2, 7)
    assert capsys.readouterr().err == ""
    ask_all(server.ask, server.questions(7), 2, 7, "Asking")
    assert "Asking: 100%" in (shown := capsys.readouterr().err) and "7/7" in shown


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 2, 5])
def test_after_an_error_no_request_is_sent_and_the_pending_ones_end(concurrency):
    server = Server(lambda question: 0.01 if question <= 7 else 0.5, failing={7})
    with pytest.raises(RuntimeError, match="question 7"):
        server.run(100, concurrency)
    assert sorted(server.answered) == sorted(server.asked)
    assert 8 <= len(server.asked) <= 7 + concurrency


def test_the_first_of_several_errors_is_raised():
    server = Server(lambda question: 0.5 - question / 10, failing=set(range(10)))
    with pytest.raises(RuntimeError, match="question 4"):
        server.run(100, 5)
    assert sorted(server.answered) == [0, 1, 2, 3, 4]


def test_an_error_of_the_last_request_is_raised_too():
    server = Server(lambda question: 0.003, failing={9})
    with pytest.raises(RuntimeError, match="question 9"):
        server.run(10, 4)
    assert len(server.answered) == 10


def test_no_request_is_sent_after_an_immediate_error():
    def ask(question):
        raise RuntimeError(f"question {question}")

    with pytest.raises(RuntimeError, match="question 0"):
        ask_all(ask, iter(range(10)), 1, 10)


def test_a_failing_iterator_loses_no_pending_response():
    server = Server(lambda question: 0.1)

    def questions():
        yield from server.questions(3)
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        ask_all(server.ask, questions(), 10, 10)
    assert sorted(server.answered) == [0, 1, 2]


def test_it_runs_inside_a_running_event_loop_as_in_a_notebook():
    server = Server(lambda question: 0.001)

    async def cell():
        server.run(20, 4)

    asyncio.run(cell())
    assert sorted(server.answered) == list(range(20))


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------

WORKER = """
import asyncio, os, signal
from rlmec_trl.generation.asking import ask_all

# Tests may run where Ctrl-C is ignored, for instance in the background of a script
signal.signal(signal.SIGINT, signal.default_int_handler)

def say(*words):
    # A single write, unlike print
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def ask(question):
    say("asked", question)
    if question >= 5:
        # Until the test writes to it
        os.read(0, 1)
    say("answered", question)

def main():
    ask_all(ask, iter(range(50)), 3, 50, "Asking")
"""
SCRIPT = "main()"
NOTEBOOK = """
async def cell():
    main()

asyncio.new_event_loop().run_until_complete(cell())
"""


class Worker:
    """A process that sends requests until three of them, 5 to 7, are pending."""

    def __init__(self, end, last="asked 7\n"):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen([sys.executable, "-u", "-c", WORKER + end], cwd=ROOT, **pipes)
        self.output = ""
        self.wait_for(last)

    def wait_for(self, text):
        while text not in self.output:
            ready, _, _ = select.select([self.process.stdout], [], [], 120)
            more = os.read(self.process.stdout.fileno(), 65536).decode() if ready else ""
            assert more, f"{text!r} is not in {self.output!r}"
            self.output += more

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)

    def end(self, lines):
        output, _ = self.process.communicate(b"\n" * lines, timeout=600)
        self.output += output.decode()
        return self.process.returncode

    def numbers(self, word):
        return sorted(map(int, re.findall(rf"\b{word} (\d+)", self.output)))


@pytest.fixture
def start():
    workers = []

    def start(*args):
        workers.append(Worker(*args))
        return workers[-1]

    yield start
    for worker in workers:
        worker.process.kill()
        worker.process.communicate()


@pytest.mark.parametrize("end", [SCRIPT, NOTEBOOK], ids=["script", "notebook"])
def test_after_ctrl_c_no_request_is_sent_and_the_pending_ones_end(start, end):
    worker = start(end)
    worker.interrupt()
    worker.wait_for("waiting for pending responses")
    # More lines than are pending: any further request would get a response, too
    assert worker.end(lines=50) != 0
    assert worker.numbers("asked") == worker.numbers("answered") == list(range(8))
    assert "KeyboardInterrupt" in worker.output


def test_ctrl_c_while_a_single_thread_is_awaited_does_not_lose_its_response(start):
    """`Thread.join` takes a thread for one that has ended if Ctrl-C interrupts it."""
    worker = start("ask_all(ask, iter(range(50)), 1, 50, 'Asking')", "asked 5\n")
    time.sleep(1)
    worker.interrupt()
    worker.wait_for("waiting for pending responses")
    with pytest.raises(subprocess.TimeoutExpired):
        worker.process.wait(timeout=2)
    assert worker.end(lines=50) != 0
    assert worker.numbers("asked") == worker.numbers("answered") == list(range(6))


def test_ctrl_c_that_comes_out_of_the_start_of_a_thread_as_another_error_is_one(capfd):
    """`Thread.start` waits for the thread under a lock, and may fail to release it once it has been interrupted."""
    started, answered, start = [], [], threading.Thread.start

    def interrupted_start(thread):
        start(thread)
        started.append(thread)
        if len(started) == 2:
            try:
                raise KeyboardInterrupt
            finally:
                raise RuntimeError("release unlocked lock")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted_start)
        with pytest.raises(KeyboardInterrupt):
            ask_all(answered.append, itertools.repeat(0, 10**9), 3, 10**9)
    assert "waiting for pending responses" in capfd.readouterr().err
    assert len(started) == 2 and answered


def test_a_second_ctrl_c_drops_the_pending_requests(start):
    worker = start(SCRIPT)
    worker.interrupt()
    worker.wait_for("waiting for pending responses")
    worker.interrupt()
    # There are no responses, but it ends
    assert worker.process.wait(timeout=600) != 0
    worker.end(lines=0)
    assert worker.numbers("answered") == list(range(5))


def test_without_ctrl_c_the_worker_sends_all_requests(start):
    worker = start(SCRIPT)
    assert worker.end(lines=50) == 0
    assert worker.numbers("asked") == worker.numbers("answered") == list(range(50))
