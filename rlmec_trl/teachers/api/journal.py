"""The answers of a teacher, written to disk before they are used, so that none is requested or paid for twice."""

import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ...data.errors import UserError


class JournalError(UserError, ValueError):
    """The journal cannot be read or written."""


class JournalInUseError(UserError, RuntimeError):
    """Another run is writing to the journal."""


@dataclass(frozen=True)
class Answer:
    """
    One answer of a teacher, as it was billed.

    Args:
        text (`str`):
            Its text.
        stop_reason (`str`):
            Why it stopped, as the API names it.
        input_tokens, output_tokens, cache_write_tokens, cache_read_tokens (`int`):
            What it is billed for. Input tokens do not include those written to or read from the prompt cache.
        cost (`float`, *optional*):
            Its cost in dollars, at the prices set for that run. `None` if none were set.
        batch (`str`, *optional*):
            Id of the batch that it belongs to.
    """

    text: str
    stop_reason: str
    input_tokens: int = 0
    output_tokens: int = 0
    cache_write_tokens: int = 0
    cache_read_tokens: int = 0
    cost: float | None = None
    batch: str | None = None


@dataclass(frozen=True)
class Submission:
    """
    A batch of requests that was, or was about to be, submitted.

    Args:
        name (`str`):
            Our own name for it, given before it was submitted.
        keys (`list[str]`):
            Keys of its requests.
        after (`str`, *optional*):
            Id of the newest batch before it. A search for a batch whose id is unknown ends at this one.
        batch (`str`, *optional*):
            Its id. `None` as long as it is unknown whether it has arrived.
    """

    name: str
    keys: list[str]
    after: str | None = None
    batch: str | None = None


class Journal:
    """
    The answers of a teacher in a folder of JSON lines. Each answer is appended and flushed to disk by itself.

    Each process writes its own file and reads all of them. A line that a killed process left half-written is cut off
    when its file is opened for writing again, and skipped in the files of others.

    Args:
        directory (`str` or `os.PathLike`):
            Folder of the journal. Created if it does not exist.
        process_index, num_processes (`int`, *optional*, default to `0` and `1`):
            Index of this process among those of the run, and their number.

    Raises:
        [`JournalInUseError`]: If another run is writing the same file.
        [`JournalError`]: If a line that is not the last of its file cannot be read, or the folder cannot be written.
    """

    def __init__(self, directory: str | os.PathLike, process_index: int = 0, num_processes: int = 1):
        self.directory = Path(directory)
        self._process_index, self._num_processes = process_index, num_processes
        path = self.directory / f"answers-{process_index}.jsonl"
        self._thread_lock = threading.Lock()
        self._lock = FileLock(path.with_suffix(".lock"))
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except Timeout:
            raise JournalInUseError(
                f"Another run is writing to the journal {str(self.directory)!r}. Wait for it to end, or name another "
                "journal with `--journal_dir`: two runs that do not see each other's answers would pay twice."
            ) from None
        except OSError as error:
            self._lock.release()
            raise JournalError(
                f"The journal {str(self.directory)!r} cannot be written: {error.strerror or error}. Fix this, or name "
                "another with `--journal_dir`."
            ) from None
        try:
            self._cut_half_written_line()
            self.reload()
        except BaseException:
            # Another attempt can follow once the file is fixed
            self.close()
            raise

    def reload(self) -> None:
        """Read what all processes have written."""
        self._answers: dict[str, list[Answer]] = defaultdict(list)
        self._submissions: dict[str, Submission] = {}
        # The line that closes a submission may be in the file of another process, which is read first
        self._closed: set[str] = set()
        self._writers: dict[str, int] = {}
        # Two processes may fetch the same batch: each of its answers counts once
        self._from_batches: set[tuple[str, str]] = set()
        for path in sorted(self.directory.glob("answers-*.jsonl")):
            for number, line in _read_lines(path):
                try:
                    record = json.loads(line)
                    self._apply(record)
                except (ValueError, TypeError, KeyError) as error:
                    raise JournalError(
                        f"Line {number} of {str(path)!r} is damaged ({error}). Every line is an answer that was paid "
                        "for: fix it, or delete it to have it requested again."
                    ) from None
                if record["type"] == "submission":
                    self._writers[record["name"]] = int(path.stem.removeprefix("answers-"))

    def answers(self, key: str) -> list[Answer]:
        """All answers to a request, oldest first."""
        return self._answers.get(key, [])

    def has_answer_of(self, key: str, batch: str) -> bool:
        """Whether the journal has the answer of a batch to a request."""
        return (key, batch) in self._from_batches

    def batches(self) -> set[str]:
        """Ids of all batches that were ever submitted."""
        return {submission.batch for submission in self._submissions.values() if submission.batch is not None}

    def is_empty(self) -> bool:
        """Whether there are no answers."""
        return not self._answers

    def costs(self) -> list[float]:
        """The cost in dollars of each answer whose price was known."""
        answers = (answer for answers in self._answers.values() for answer in answers)
        return [answer.cost for answer in answers if answer.cost is not None]

    def submissions(self) -> list[Submission]:
        """Batches that were, or may have been, submitted and whose answers were not all fetched."""
        return [submission for name, submission in self._submissions.items() if name not in self._closed]

    def waiting_keys(self) -> set[str]:
        """Keys of the requests in [`submissions`]."""
        return {key for submission in self.submissions() for key in submission.keys}

    def own_submissions(self) -> list[Submission]:
        """The [`submissions`] that this process fetches: its own, and those of processes that no longer exist."""
        own = self._process_index
        return [
            submission
            for submission in self.submissions()
            if self._writers.get(submission.name, own) % self._num_processes == own
        ]

    def record_answer(self, key: str, answer: Answer) -> None:
        """Record an answer. It is on disk when this returns."""
        if answer.batch is None or not self.has_answer_of(key, answer.batch):
            self._write({"type": "answer", "key": key, **asdict(answer)})

    def record_submission(self, submission: Submission) -> None:
        """Record that a batch is about to be submitted (no id yet), or was submitted."""
        self._write({"type": "submission", **asdict(submission)})

    def close_submission(self, name: str) -> None:
        """Record that all answers of a batch were fetched, or that it never arrived."""
        self._write({"type": "closed", "name": name})

    def close(self) -> None:
        """Close the file, so that another run can write it."""
        with self._thread_lock:
            os.close(self._file)
            # A thread that is still running must not write to the file that gets this descriptor next
            self._file = -1
        self._lock.release()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _write(self, record: dict) -> None:
        line = json.dumps(record).encode() + b"\n"
        with self._thread_lock:
            start = os.lseek(self._file, 0, os.SEEK_END)
            try:
                while line:
                    line = line[os.write(self._file, line) :]
            except BaseException:
                # The disk may be full: half a line would corrupt the next one
                os.ftruncate(self._file, start)
                raise
            os.fsync(self._file)
            self._apply(record)

    def _apply(self, record: dict) -> None:
        fields = {name: value for name, value in dict(record).items() if name not in ("type", "key")}
        if record["type"] == "answer":
            key, answer = record["key"], Answer(**fields)
            if answer.batch is None:
                self._answers[key].append(answer)
            elif not self.has_answer_of(key, answer.batch):
                self._answers[key].append(answer)
                self._from_batches.add((key, answer.batch))
        elif record["type"] == "submission":
            known = self._submissions.get(record["name"])
            # Its id may be in the file of another process, which was read first
            if known is None or known.batch is None:
                self._submissions[record["name"]] = Submission(**fields)
        else:
            self._closed.add(record["name"])

    def _cut_half_written_line(self) -> None:
        size = os.lseek(self._file, 0, os.SEEK_END)
        end, tail = size, b""
        while end > 0 and b"\n" not in tail:
            start = max(0, end - 65536)
            tail = os.pread(self._file, end - start, start)
            end = start
        os.ftruncate(self._file, end + tail.rfind(b"\n") + 1)


def _read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    content = path.read_bytes()
    return enumerate(content[: content.rfind(b"\n") + 1].split(b"\n")[:-1], start=1)
