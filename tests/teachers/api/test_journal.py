"""Answers are on disk before they are used, and are found again whatever happened to the process that wrote them."""

import json
import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.teachers.api.journal import Answer, Journal, JournalInUseError, Submission


ROOT = Path(__file__).parents[2]
KEY = "a" * 64
FULL = Answer("The answer is 5", "end_turn", 400, 60, 30, 20, cost=0.0125)
ODD_TEXTS = [
    "two\nlines\r\nand\ra third",
    "\u2028 line and paragraph \u2029 separators \x85",
    "\x00 and \x1a",
    "🧮 ∑ é e\u0301 עברית",
    '"quotes", \\backslashes\\ and {"json": "in json"}\n',
    "half a pair: \ud83d",
    "",
]


def write(directory, *answers, index=0, **kwargs):
    """Record answers, given as (key, answer), as another process would."""
    with Journal(directory, index, **kwargs) as journal:
        for key, answer in answers:
            journal.record_answer(key, answer)
    return directory / f"answers-{index}.jsonl"


def start(code, *arguments, **kwargs):
    """Run code in a separate process."""
    code = "import sys\nfrom rlmec_trl.teachers.api.journal import *\n" + code
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


# --- Round trip ------------------------------------------------------------------------------------------------------


def test_answers_are_read_back_in_order(tmp_path):
    second = Answer("again", "refusal")
    batched = Answer("third", "end_turn", 1, 2, 3, 4, cost=0.0, batch="msgbatch_1")
    with Journal(tmp_path) as journal:
        for key, answer in [(KEY, FULL), ("b" * 64, second), (KEY, second), (KEY, batched)]:
            journal.record_answer(key, answer)
        now = journal.answers(KEY)
    with Journal(tmp_path) as journal:
        assert journal.answers(KEY) == now == [FULL, second, batched]
        assert journal.answers("b" * 64) == [second]
        assert journal.answers("c" * 64) == []
        assert journal.costs() == [FULL.cost, 0.0]
        assert journal.has_answer_of(KEY, "msgbatch_1")
        assert not journal.has_answer_of("b" * 64, "msgbatch_1")
        assert not journal.has_answer_of(KEY, "msgbatch_2")


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_text_survives(tmp_path, text):
    write(tmp_path, (KEY, replace(FULL, text=text)), (KEY, FULL))
    with Journal(tmp_path) as journal:
        assert journal.answers(KEY) == [replace(FULL, text=text), FULL]


@given(texts=st.lists(st.text(), max_size=5))
def test_any_text_survives(tmp_path_factory, texts):
    directory = tmp_path_factory.mktemp("journal")
    path = write(directory, *((KEY, replace(FULL, text=text)) for text in texts))
    assert path.read_bytes().count(b"\n") == len(texts)
    with Journal(directory) as journal:
        assert [answer.text for answer in journal.answers(KEY)] == texts


def test_looking_up_an_answer_changes_nothing(tmp_path):
    with Journal(tmp_path) as journal:
        assert journal.answers(KEY) == [] and not journal.has_answer_of(KEY, "msgbatch_1")
        assert journal.costs() == [] and journal.batches() == set() and journal.submissions() == []
    assert (tmp_path / "answers-0.jsonl").read_bytes() == b""


def test_only_the_owner_may_read_the_file(tmp_path):
    before = os.umask(0)
    try:
        path = write(tmp_path / "deep" / "journal", (KEY, FULL))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# --- Writing ---------------------------------------------------------------------------------------------------------


def test_a_line_is_complete_on_disk_before_the_call_returns(tmp_path, monkeypatch):
    path = tmp_path / "answers-0.jsonl"
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append((os.fstat(file).st_ino, path.read_bytes())))
    with Journal(tmp_path) as journal:
        calls = [
            lambda: journal.record_answer(KEY, FULL),
            lambda: journal.record_submission(Submission("n", [KEY])),
            lambda: journal.record_submission(Submission("n", [KEY], batch="msgbatch_1")),
            lambda: journal.close_submission("n"),
        ]
        for number, call in enumerate(calls, start=1):
            call()
            assert len(flushed) == number
            inode, content = flushed[-1]
            assert inode == path.stat().st_ino
            assert content == path.read_bytes() and content.endswith(b"}\n") and content.count(b"\n") == number


def test_a_kill_right_after_the_call_loses_nothing(tmp_path):
    code = """
import os, signal
journal = Journal(sys.argv[1])
for number in range(50):
    journal.record_answer(str(number), Answer(f"text {number}", "end_turn"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = start(code, tmp_path)
    assert process.wait(timeout=600) == -signal.SIGKILL, process.stderr.read()
    with Journal(tmp_path) as journal:
        assert [journal.answers(str(number))[0].text for number in range(50)] == [f"text {n}" for n in range(50)]


def test_a_write_in_several_parts_is_one_line(tmp_path, monkeypatch):
    write_all = os.write
    with Journal(tmp_path) as journal:
        monkeypatch.setattr(os, "write", lambda file, line: write_all(file, line[:7]))
        journal.record_answer(KEY, FULL)
        monkeypatch.undo()
        journal.record_answer(KEY, FULL)
    with Journal(tmp_path) as journal:
        assert journal.answers(KEY) == [FULL, FULL]


def test_a_full_disk_damages_neither_the_journal_nor_the_next_answer(tmp_path):
    # A limit on the size of files simulates the full disk: the line is written as far as there is room
    code = """
import resource
with Journal(sys.argv[1]) as journal:
    journal.record_answer("first", Answer("text", "end_turn"))
    size = (journal.directory / "answers-0.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))
    try:
        journal.record_answer("second", Answer("text", "end_turn"))
    except OSError:
        print("no room")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert journal.answers("second") == [], "what is not on disk must not be used"
    journal.record_answer("third", Answer("text", "end_turn"))
"""
    process = start(code, tmp_path)
    output, errors = process.communicate(timeout=600)
    assert (process.returncode, output) == (0, "no room\n"), errors
    with Journal(tmp_path) as journal:
        assert [len(journal.answers(key)) for key in ("first", "second", "third")] == [1, 0, 1]


# --- Half-written and damaged lines ----------------------------------------------------------------------------------


def test_a_half_written_last_line_is_cut_off_wherever_it_ends(tmp_path):
    path = write(tmp_path, (KEY, FULL), (KEY, replace(FULL, text="é 🧮 \u2028\n")))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        path.write_bytes(whole[:end])
        with Journal(tmp_path) as journal:
            assert journal.answers(KEY) == [FULL], end
            journal.record_answer("new", FULL)
        assert path.read_bytes() == whole[:first] + whole[:first].replace(KEY.encode(), b"new"), end
        with Journal(tmp_path) as journal:
            assert (journal.answers(KEY), journal.answers("new")) == ([FULL], [FULL]), end


def test_a_journal_with_only_half_a_line_is_empty(tmp_path):
    path = write(tmp_path, (KEY, FULL))
    path.write_bytes(path.read_bytes()[:-1])
    with Journal(tmp_path) as journal:
        assert journal.answers(KEY) == []
    assert path.read_bytes() == b""


@pytest.mark.parametrize("length", [65_000, 65_535, 65_536, 65_537, 200_000])
def test_a_half_written_line_may_be_longer_than_one_read(tmp_path, length):
    path = write(tmp_path, (KEY, FULL))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"type": "answer", "text": "' + b"x" * length)
    write(tmp_path, (KEY, FULL))
    assert path.read_bytes() == whole * 2


def test_a_half_written_line_of_another_process_is_skipped_and_left_to_it(tmp_path):
    path = write(tmp_path, (KEY, FULL), ("b", FULL), index=1, num_processes=2)
    content = path.read_bytes()[:-5]
    path.write_bytes(content)
    with Journal(tmp_path) as journal:
        assert journal.answers(KEY) == [FULL] and journal.answers("b") == []
    # That process may still be writing it
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\x00" * 40,
        b'{"type": "answer", "key": "b", "te',
        b'{"type": "answer"}{"type": "answer"}',
        b'{"type": "closed", "name": "\xff\xfe"}',
        # JSON, but not a line of a journal
        b"null",
        b"{}",
        b'{"type": "answer", "key": "b"}',
    ],
)
@pytest.mark.parametrize("index", [0, 1])
def test_a_damaged_line_that_is_not_the_last_is_an_error_with_its_file_and_number(tmp_path, damaged, index):
    path = write(tmp_path, (KEY, FULL), ("c", FULL), index=index)
    first, last, _ = path.read_bytes().split(b"\n")
    content = b"\n".join([first, damaged, last, b""])
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"Line 2 of '.*answers-{index}\.jsonl' is damaged"):
        Journal(tmp_path)
    # Only the user can fix it
    assert path.read_bytes() == content


def test_a_damaged_journal_can_be_opened_once_it_is_fixed(tmp_path):
    path = write(tmp_path, (KEY, FULL))
    whole = path.read_bytes()
    path.write_bytes(b"damaged\n" + whole)
    # As in a notebook, the exception and its traceback, with all their objects, are still referenced
    with pytest.raises(ValueError, match="Line 1 ") as caught:
        Journal(tmp_path)
    path.write_bytes(whole)
    with Journal(tmp_path) as journal:
        assert journal.answers(KEY) == [FULL]
    assert caught.value is not None


# --- Several processes -----------------------------------------------------------------------------------------------


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    code = """
directory, index = sys.argv[1], int(sys.argv[2])
with Journal(directory, index, 3) as journal:
    print("open", flush=True)
    sys.stdin.read()
    for number in range(100):
        journal.record_answer(f"{index} {number}", Answer("x" * 50 * number, "end_turn", cost=0.5))
        journal.record_answer("common", Answer(f"{index} {number}", "end_turn"))
    journal.record_submission(Submission(f"name {index}", [f"{index}"], batch=f"msgbatch_{index}"))
"""
    processes = [start(code, tmp_path, index, stdin=subprocess.PIPE) for index in range(3)]
    for process in processes:
        assert process.stdout.readline() == "open\n", process.stderr.read()
    for process in processes:
        process.stdin.close()
        process.stdin = None
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    # A run with fewer processes
    with Journal(tmp_path) as journal:
        for index in range(3):
            texts = [journal.answers(f"{index} {number}")[0].text for number in range(100)]
            assert [len(text) for text in texts] == [50 * number for number in range(100)]
        everybodys = [answer.text for answer in journal.answers("common")]
        assert sorted(everybodys) == sorted(f"{index} {number}" for index in range(3) for number in range(100))
        assert journal.costs() == [0.5] * 300
        assert journal.batches() == {f"msgbatch_{index}" for index in range(3)}


def test_lines_of_other_processes_are_seen_after_reloading(tmp_path):
    with Journal(tmp_path, 0, 2) as journal, Journal(tmp_path, 1, 2) as other:
        journal.record_answer(KEY, FULL)
        other.record_answer(KEY, replace(FULL, text="the other's"))
        other.record_submission(Submission("n", ["b"]))
        assert journal.answers(KEY) == [FULL] and journal.submissions() == []
        for _ in range(2):
            journal.reload()
            assert [answer.text for answer in journal.answers(KEY)] == [FULL.text, "the other's"]
            assert journal.submissions() == [Submission("n", ["b"])]
            assert journal.costs() == [FULL.cost] * 2


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path):
    with Journal(tmp_path):
        with pytest.raises(JournalInUseError, match=f"{tmp_path}.*--journal_dir"):
            Journal(tmp_path)
        # Another process of the same run, and another journal
        Journal(tmp_path, 1, 2).close()
        Journal(tmp_path / "other").close()
    Journal(tmp_path).close()


def test_a_refused_run_does_not_touch_the_file(tmp_path):
    path = write(tmp_path, (KEY, FULL))
    with Journal(tmp_path):
        # The first run is in the middle of a line
        content = path.read_bytes()[:-3]
        path.write_bytes(content)
        with pytest.raises(JournalInUseError):
            Journal(tmp_path)
        assert path.read_bytes() == content


def test_a_killed_run_does_not_lock_the_journal(tmp_path):
    code = """
journal = Journal(sys.argv[1])
journal.record_answer("a", Answer("text", "end_turn"))
print("open", flush=True)
sys.stdin.read()
"""
    process = start(code, tmp_path, stdin=subprocess.PIPE)
    assert process.stdout.readline() == "open\n"
    with pytest.raises(JournalInUseError):
        Journal(tmp_path)
    process.kill()
    process.communicate(timeout=600)
    with Journal(tmp_path) as journal:
        assert len(journal.answers("a")) == 1


# --- Batches ---------------------------------------------------------------------------------------------------------


def test_an_answer_of_a_batch_counts_once_however_often_it_is_fetched(tmp_path):
    fetched = replace(FULL, batch="msgbatch_1")
    with Journal(tmp_path) as journal:
        for _ in range(2):
            journal.record_answer(KEY, fetched)
        journal.record_answer("b", fetched)
        assert journal.answers(KEY) == [fetched] and journal.costs() == [FULL.cost] * 2
        # Another batch, or no batch, means another answer, which was paid for as well
        journal.record_answer(KEY, replace(FULL, batch="msgbatch_2"))
        journal.record_answer(KEY, FULL)
        journal.record_answer(KEY, FULL)
        assert len(journal.answers(KEY)) == 4 and journal.costs() == [FULL.cost] * 5
    with Journal(tmp_path) as journal:
        assert len(journal.answers(KEY)) == 4 and journal.costs() == [FULL.cost] * 5
        journal.record_answer(KEY, fetched)
        assert len(journal.answers(KEY)) == 4
    assert (tmp_path / "answers-0.jsonl").read_bytes().count(b"\n") == 5


def test_an_answer_of_a_batch_that_two_processes_fetch_counts_once(tmp_path):
    fetched = replace(FULL, batch="msgbatch_1")
    with Journal(tmp_path, 0, 2) as journal, Journal(tmp_path, 1, 2) as other:
        journal.record_answer(KEY, fetched)
        other.record_answer(KEY, fetched)
        other.record_answer("b", fetched)
        for each in (journal, other):
            each.reload()
            assert each.answers(KEY) == [fetched] == each.answers("b")
            assert each.costs() == [FULL.cost] * 2


def test_a_submission_is_open_from_before_it_is_sent_until_it_is_closed(tmp_path):
    announced = Submission("n", [KEY, "b"], after="msgbatch_0")
    steps = [
        (lambda journal: journal.record_submission(announced), [announced], set()),
        (
            lambda journal: journal.record_submission(replace(announced, batch="msgbatch_1")),
            [replace(announced, batch="msgbatch_1")],
            {"msgbatch_1"},
        ),
        (lambda journal: journal.close_submission("n"), [], {"msgbatch_1"}),
    ]
    for step, submissions, batches in steps:
        with Journal(tmp_path) as journal:
            step(journal)
            now = journal.submissions(), journal.own_submissions(), journal.batches()
        with Journal(tmp_path) as journal:
            found = journal.submissions(), journal.own_submissions(), journal.batches()
            assert found == now == (submissions, submissions, batches)


def test_a_submission_that_never_arrived_is_closed_without_an_id(tmp_path):
    with Journal(tmp_path) as journal:
        journal.record_submission(Submission("lost", [KEY]))
        journal.record_submission(Submission("there", [KEY]))
        journal.close_submission("lost")
    with Journal(tmp_path) as journal:
        assert journal.submissions() == [Submission("there", [KEY])]
        assert journal.batches() == set()


@pytest.mark.parametrize(("opened_by", "closed_by"), [(0, 1), (1, 0), (2, 10), (10, 2)])
def test_a_submission_stays_closed_whichever_process_closed_it(tmp_path, opened_by, closed_by):
    """The file with the closing line may be read before the one with the submission."""
    with Journal(tmp_path, opened_by, 11) as journal:
        journal.record_submission(Submission("n", [KEY]))
        journal.record_submission(Submission("other", [KEY]))
    with Journal(tmp_path, closed_by, 11) as journal:
        journal.close_submission("n")
        assert [submission.name for submission in journal.submissions()] == ["other"]
    with Journal(tmp_path) as journal:
        assert [submission.name for submission in journal.submissions()] == ["other"]


@pytest.mark.parametrize(("announced_by", "found_by"), [(0, 1), (1, 0), (2, 10), (10, 2)])
def test_the_id_that_another_process_found_is_kept(tmp_path, announced_by, found_by):
    """Even if the file without the id is read last."""
    with Journal(tmp_path, announced_by, 11) as journal:
        journal.record_submission(Submission("n", [KEY]))
    found = Submission("n", [KEY], batch="msgbatch_1")
    with Journal(tmp_path, found_by, 11) as journal:
        journal.record_submission(found)
        assert journal.submissions() == [found]
    with Journal(tmp_path) as journal:
        assert journal.submissions() == [found] and journal.batches() == {"msgbatch_1"}


@pytest.mark.parametrize("num_processes", [1, 2, 3, 4, 7])
def test_every_submission_belongs_to_one_process_however_many_there_are_now(tmp_path, num_processes):
    for index in range(4):
        with Journal(tmp_path, index, 4) as journal:
            journal.record_submission(Submission(f"of {index}", [KEY], batch=f"msgbatch_{index}"))
    owners = {}
    for index in range(num_processes):
        with Journal(tmp_path, index, num_processes) as journal:
            for submission in journal.own_submissions():
                owners.setdefault(submission.name, []).append(index)
            assert len(journal.submissions()) == 4
    assert sorted(owners) == [f"of {index}" for index in range(4)]
    assert all(len(indices) == 1 for indices in owners.values())
    # Processes that still exist keep their own
    assert all(owners[f"of {index}"] == [index] for index in range(min(4, num_processes)))


def test_a_new_submission_belongs_to_its_process(tmp_path):
    with Journal(tmp_path, 1, 3) as journal, Journal(tmp_path, 2, 3) as other:
        journal.record_submission(Submission("n", [KEY]))
        assert [submission.name for submission in journal.own_submissions()] == ["n"]
        other.reload()
        assert other.own_submissions() == [] and len(other.submissions()) == 1


# --- The format ------------------------------------------------------------------------------------------------------


def test_a_journal_in_the_first_format_can_be_read(tmp_path):
    """These lines are on users' disks: a new format must still read them."""
    lines = [
        {
            "type": "answer",
            "key": KEY,
            "text": "The answer is 5",
            "stop_reason": "end_turn",
            "input_tokens": 400,
            "output_tokens": 60,
            "cache_write_tokens": 30,
            "cache_read_tokens": 20,
            "cost": 0.0125,
            "batch": None,
        },
        {"type": "submission", "name": "n", "keys": [KEY], "after": None, "batch": None},
        {"type": "submission", "name": "n", "keys": [KEY], "after": None, "batch": "msgbatch_1"},
        {"type": "submission", "name": "m", "keys": ["b"], "after": "msgbatch_1", "batch": None},
        {"type": "closed", "name": "n"},
    ]
    (tmp_path / "answers-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with Journal(tmp_path) as journal:
        assert journal.answers(KEY) == [FULL]
        assert journal.submissions() == [Submission("m", ["b"], after="msgbatch_1")]
        assert journal.batches() == {"msgbatch_1"}
