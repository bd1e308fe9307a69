"""Base class of API teachers: questions are answered through a journal, within a cost limit."""

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from accelerate.utils import gather_object

from ...generation.asking import ask_all
from ...generation.processes import process_state
from ...generation.server import ServerConfig, describe_error
from ...tasks.wording import Wording
from .budget import Budget, Estimate
from .config import TeacherConfig, answer_cost
from .errors import RequestFailedError, TeacherError
from .journal import Answer, Journal
from .questions import Question


T = TypeVar("T")

# As Anthropic's API and the OpenAI-compatible ones name it
_REFUSED = ("refusal", "content_filter")
_TRUNCATED = ("max_tokens", "model_context_window_exceeded", "length")

# Consecutive requests without an answer after which the run stops
_MAX_FAILURES_IN_A_ROW = 50


class JournaledTeacher(ABC):
    """
    Base class of API teachers. It knows nothing of what is asked: an answer to a question is requested until one is
    usable, at most `config.max_attempts` times, and what is in the journal is never requested again.

    Args:
        model (`str`):
            Name of the model.
        journal ([`~rlmec_trl.teachers.api.journal.Journal`]):
            Where the answers are stored.
        config ([`~rlmec_trl.teachers.api.config.TeacherConfig`]):
            What to request, and what it may cost.
        server_config ([`~rlmec_trl.generation.server.ServerConfig`]):
            How to reach the API.
        budget_share (`float`, *optional*, defaults to `1.0`):
            Share of what is left of `config.max_cost` that this process may spend.

    Raises:
        `ValueError`: If a setting is for another API.
        [`~rlmec_trl.teachers.api.errors.TeacherError`]: If a package is missing.
    """

    # HTTP statuses with which the API rejects every request (key, account, model) or this one (too long)
    _hopeless_statuses: tuple[int, ...]
    _row_statuses: tuple[int, ...]

    def __init__(
        self,
        model: str,
        journal: Journal,
        config: TeacherConfig,
        server_config: ServerConfig,
        budget_share: float = 1.0,
    ):
        self.model = model
        self.journal = journal
        self.config = config
        self.server_config = server_config
        self._check_settings()
        self._batch = "" if config.use_batches else None
        longest = answer_cost(config, Answer("", "", output_tokens=config.max_tokens, batch=self._batch))
        self.budget = Budget(config.max_cost, journal.costs(), budget_share, longest or 0.0)
        # Guards the budget and the failures, which all requesting threads share
        self._lock = threading.Lock()
        # If false, only the journal answers
        self.may_ask = True
        # Why requests of this run got no answer, by key
        self.failures: dict[str, str] = {}
        self._num_failures: Counter[str] = Counter()
        self._num_failures_in_a_row = 0

    @property
    @abstractmethod
    def name(self) -> str:
        """The teacher and what changes its answers: part of the key of every answer."""

    @abstractmethod
    def _check_settings(self) -> None:
        """Refuse settings that this API does not have."""

    @abstractmethod
    def _client(self) -> Any:
        """A new client of the API, closed after use. Several threads share it."""

    @abstractmethod
    def _ask(self, client: Any, question: Question) -> Answer:
        """
        Send one request.

        Raises:
            [`RequestFailedError`]: If this request got no answer.
            [`TeacherError`]: If no request would.
        """

    @abstractmethod
    def _api_errors(self) -> tuple[type[Exception], ...]:
        """The exceptions that the SDK raises for a failed request."""

    @abstractmethod
    def _hopeless(self, error: Exception) -> TeacherError:
        """The error to raise if every request would fail like this one."""

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Turn the SDK's exceptions into [`RequestFailedError`] and [`TeacherError`]."""
        try:
            yield
        except self._api_errors() as error:
            status = getattr(error, "status_code", None)
            if status in self._hopeless_statuses:
                raise self._hopeless(error) from None
            raise RequestFailedError(describe_error(error), status in self._row_statuses) from None
        except (ValueError, AttributeError) as error:
            # A body that is not JSON, or a web page, which the SDK returns as a string
            raise RequestFailedError(f"broken response: {error}") from None

    def make_questions(
        self, make: Callable[..., Question], wording: Wording, *columns: Sequence[str]
    ) -> list[Question]:
        """
        The request for each row. Equal rows have the same key, and are requested once.

        Args:
            make (`Callable`):
                Makes a question from the teacher's name, the wording, whether to request JSON, and a row.
            wording ([`~rlmec_trl.tasks.wording.Wording`]):
                Wording of the task.
            columns (`Sequence[str]`):
                What the rows hold, a column at a time.
        """
        structured = self.config.structured_output
        return [make(self.name, wording, structured, *row) for row in zip(*columns, strict=True)]

    def _count_tokens(self, client: Any, questions: list[Question]) -> list[int] | None:
        """Input tokens of each request, `None` where the API cannot count them."""
        return None

    def _resume(self, client: Any) -> None:
        """Fetch what an earlier run submitted and did not fetch. APIs that answer at once have nothing to fetch."""
        return None

    def _send(self, client: Any, questions: list[Question]) -> None:
        """Send requests as far as the budget allows, and record the answers."""
        self._num_failures_in_a_row = 0

        def ask(question: Question) -> None:
            try:
                self._record(question.key, self._ask(client, question))
            except RequestFailedError as error:
                self._fail(question.key, error)
            finally:
                with self._lock:
                    self.budget.under_way -= 1

        def affordable() -> Iterator[Question]:
            for question in questions:
                if not self.budget.affords(1):
                    return
                with self._lock:
                    self.budget.under_way += 1
                yield question

        ask_all(ask, affordable(), self.server_config.concurrency, len(questions), "Asking the teacher")

    def answer(
        self,
        questions: list[Question],
        read: Callable[[int, str], T],
        usable: Callable[[int, T], bool],
        no_answer: Callable[[str], T],
    ) -> list[T]:
        """
        Answer each question from the journal, or request an answer until one is usable.

        Args:
            questions (`list[Question]`):
                What to ask. Questions with the same key are requested once.
            read (`Callable[[int, str], Any]`):
                Parses the text of an answer to the question with this index.
            usable (`Callable[[int, Any], bool]`):
                Whether the question with this index needs no other answer than the one that gave this result.
            no_answer (`Callable[[str], Any]`):
                The result where there is no answer, or one without a text that could be read, from the reason.

        Returns:
            `list`: The result of the first usable answer to each question, otherwise of the last.
        """
        if self.may_ask:
            self.failures.clear()
            self._num_failures.clear()
        results = [no_answer("not asked")] * len(questions)
        self.budget.under_way = 0
        if self.may_ask and self.journal.own_submissions():
            self._with_client(self._resume)
        # Other processes fetch the answers to these
        waiting = self.journal.waiting_keys()
        done = [False] * len(questions)
        num_read = [0] * len(questions)
        while True:
            pending = {}
            for index, question in enumerate(questions):
                answers = self.journal.answers(question.key)
                # Each answer is read once: verification takes time
                for answer in answers[num_read[index] :]:
                    if not done[index]:
                        unread = _reason_not_to_read(answer)
                        results[index] = read(index, answer.text) if unread is None else no_answer(unread)
                        done[index] = usable(index, results[index])
                num_read[index] = len(answers)
                tries = max(len(answers), self._num_failures[question.key])
                if not done[index] and tries < self.config.max_attempts and question.key not in waiting:
                    pending[question.key] = question
            if not pending or not self.may_ask or not self.budget.affords(1):
                break
            self._with_client(self._send, list(pending.values()))
        return [
            no_answer(self.failures.get(question.key, "not asked")) if count == 0 else result
            for question, result, count in zip(questions, results, num_read, strict=True)
        ]

    def estimate(self, questions: Sequence[Question], sample_size: int = 20) -> Estimate:
        """
        Estimate what the questions without an answer will cost. Tokens are counted on a sample of them and assumed to
        grow with the number of characters.

        Raises:
            [`TeacherError`]: If the teacher cannot be reached.
        """
        waiting = self.journal.waiting_keys()
        asked = {question.key: question for question in questions}
        new = [question for key, question in asked.items() if not self.journal.answers(key) and key not in waiting]
        if not new:
            return Estimate(0)
        sample = new[:: max(1, len(new) // sample_size)][:sample_size]

        counts = self._with_client(self._count_tokens, sample)
        if counts is None:
            return Estimate(len(new))

        def length(questions: list[Question]) -> int:
            return sum(len(question.system) + len(question.user) for question in questions)

        tokens_per_character = sum(counts) / length(sample)
        characters = sum(question.answer_length for question in new)
        answer = Answer(
            text="",
            stop_reason="",
            input_tokens=round(tokens_per_character * length(new)),
            output_tokens=round(tokens_per_character * characters),
            batch=self._batch,
        )
        cost = answer_cost(self.config, answer)
        highest_cost = answer_cost(self.config, replace(answer, output_tokens=self.config.max_tokens * len(new)))
        return Estimate(len(new), answer.input_tokens, answer.output_tokens, cost, highest_cost)

    def _with_client(self, function: Callable, *args) -> Any:
        with self._client() as client:
            try:
                return function(client, *args)
            except RequestFailedError as error:
                raise TeacherError(
                    f"The teacher does not answer ({error}). All answers so far are in "
                    f"{str(self.journal.directory)!r}; re-running the command resumes from there."
                ) from None

    def _record(self, key: str, answer: Answer) -> None:
        answer = replace(answer, cost=answer_cost(self.config, answer))
        self.journal.record_answer(key, answer)
        with self._lock:
            self.budget.add(answer.cost)
            self._num_failures_in_a_row = 0

    def _note_failure(self, key: str, reason: str) -> None:
        with self._lock:
            self.failures[key] = reason
            self._num_failures[key] += 1

    def _fail(self, key: str, error: RequestFailedError) -> None:
        self._note_failure(key, str(error))
        # Rows that are rejected one by one do not stop the run, unless there was never an answer to any row
        if error.about_row and not self.journal.is_empty():
            return
        with self._lock:
            self._num_failures_in_a_row += 1
        # A burst of failures may be as long as the number of requests in flight
        if self._num_failures_in_a_row >= max(_MAX_FAILURES_IN_A_ROW, 2 * self.server_config.concurrency):
            raise TeacherError(
                f"{self._num_failures_in_a_row} requests in a row got no answer, the last one because of: {error}. "
                f"All answers so far are in {str(self.journal.directory)!r}; re-running the command resumes from "
                "there. If the rate limit was exceeded, lower `--concurrency` or raise `--max_retries`."
            )


def _reason_not_to_read(answer: Answer) -> str | None:
    """Why an answer has no text that could be read; `None` if it has."""
    if answer.stop_reason in _REFUSED:
        return "refusal"
    return "truncated" if answer.stop_reason in _TRUNCATED else None


def answer_together(
    teacher: JournaledTeacher, questions: Sequence[Question], answer: Callable[[Sequence[int]], T]
) -> T:
    """
    Ask a teacher on all processes of the run.

    Each process sends its share of the requests. Then all read every answer from the journal, so that the result does
    not depend on the number of processes.

    Args:
        teacher ([`JournaledTeacher`]):
            The teacher.
        questions (`Sequence[Question]`):
            All that is asked.
        answer (`Callable[[Sequence[int]], Any]`):
            Asks the questions with these indices, and makes the result of the answers.

    Returns:
        What `answer` returns for all questions.
    """
    state = process_state()
    if state.num_processes > 1:
        # By request, not by row: equal rows are requested once
        shares = [int(question.key, 16) % state.num_processes for question in questions]
        own = [index for index, share in enumerate(shares) if share == state.process_index]
        if own:
            answer(own)
        for failures in gather_object([teacher.failures]):
            teacher.failures.update(failures)
        teacher.journal.reload()
        teacher.may_ask = False
    try:
        return answer(range(len(questions)))
    finally:
        teacher.may_ask = True
