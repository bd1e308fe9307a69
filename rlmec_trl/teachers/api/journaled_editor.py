"""Base class of API teachers, with a journal and a cost limit."""

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from accelerate.utils import gather_object
from datasets import Dataset

from ...generation.asking import ask_all
from ...generation.processes import process_state
from ...generation.server import ServerConfig, describe_error
from ...tasks.task import Task
from ...tasks.wording import WORDING, Wording
from ..editors import Edit, NoEdit, Usable, edit_dataset, editor_inputs
from .budget import Budget, Estimate
from .config import TeacherConfig, answer_cost
from .errors import RequestFailedError, TeacherError
from .journal import Answer, Journal
from .questions import Question, make_question, read_answer


# As Anthropic's API and the OpenAI-compatible ones name it
_REFUSED = ("refusal", "content_filter")
_TRUNCATED = ("max_tokens", "model_context_window_exceeded", "length")

# Consecutive requests without an answer after which the run stops
_MAX_FAILURES_IN_A_ROW = 50


class JournaledEditor(ABC):
    """
    Base class of API teachers. An answer to a row is requested until one passes verification, at most
    `config.max_attempts` times; what is in the journal is never requested again.

    Args:
        model (`str`):
            Name of the model.
        journal ([`~rlmec_trl.teachers.api.journal.Journal`]):
            Where the answers are stored.
        config ([`~rlmec_trl.teachers.api.config.TeacherConfig`]):
            What to request, and what it may cost.
        server_config ([`~rlmec_trl.generation.server.ServerConfig`]):
            How to reach the API.
        wording ([`~rlmec_trl.tasks.wording.Wording`], *optional*):
            Wording of the task.
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
        wording: Wording = WORDING,
        budget_share: float = 1.0,
    ):
        self.model = model
        self.journal = journal
        self.config = config
        self.server_config = server_config
        self.wording = wording
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

        ask_all(ask, affordable(), self.server_config.concurrency, len(questions), "Editing")

    def __call__(
        self,
        problems: Sequence[str],
        references: Sequence[str],
        completions: Sequence[str],
        usable: Usable | None = None,
    ) -> list[Edit]:
        def read(question: Question, text: str) -> Edit:
            return read_answer(self.wording, self.config.structured_output, question.attempt, text)

        usable = usable or (lambda index, edit: not isinstance(edit, NoEdit))
        return self.answer(self.questions(problems, references, completions), read, usable)

    def answer(
        self,
        questions: list[Question],
        read: Callable[[Question, str], Any],
        usable: Callable[[int, Any], bool],
    ) -> list[Any]:
        """
        Answer each question from the journal, or request an answer until one is usable.

        Args:
            questions (`list[Question]`):
                What to ask. Questions with the same key are requested once.
            read (`Callable[[Question, str], Any]`):
                Parses the text of an answer; [`~rlmec_trl.teachers.editors.NoEdit`] if it cannot be parsed.
            usable (`Callable[[int, Any], bool]`):
                Whether the question with this index needs no other answer.

        Returns:
            `list`: The result of the first usable answer to each question, otherwise of the last. `NoEdit` with the
            reason if there is no answer.
        """
        if self.may_ask:
            self.failures.clear()
            self._num_failures.clear()
        results: list[Any] = [NoEdit("not asked")] * len(questions)
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
                        results[index] = _no_answer(answer) or read(question, answer.text)
                        done[index] = usable(index, results[index])
                num_read[index] = len(answers)
                tries = max(len(answers), self._num_failures[question.key])
                if not done[index] and tries < self.config.max_attempts and question.key not in waiting:
                    pending[question.key] = question
            if not pending or not self.may_ask or not self.budget.affords(1):
                break
            self._with_client(self._send, list(pending.values()))
        return [
            NoEdit(self.failures.get(question.key, "not asked")) if count == 0 else result
            for question, result, count in zip(questions, results, num_read, strict=True)
        ]

    def questions(
        self, problems: Sequence[str], references: Sequence[str], completions: Sequence[str]
    ) -> list[Question]:
        """The request for each attempt. Equal rows have the same key, and are requested once."""
        structured = self.config.structured_output
        return [
            make_question(self.name, self.wording, structured, *row)
            for row in zip(problems, references, completions, strict=True)
        ]

    def estimate(
        self, problems: Sequence[str], references: Sequence[str], completions: Sequence[str], sample_size: int = 20
    ) -> Estimate:
        """
        Estimate what the rows without an answer will cost. Tokens are counted on a sample of the rows and assumed to
        grow with the number of characters; an answer is expected to be as long as its attempt.

        Raises:
            [`TeacherError`]: If the teacher cannot be reached.
        """
        waiting = self.journal.waiting_keys()
        questions = {question.key: question for question in self.questions(problems, references, completions)}
        new = [question for key, question in questions.items() if not self.journal.answers(key) and key not in waiting]
        if not new:
            return Estimate(0)
        sample = new[:: max(1, len(new) // sample_size)][:sample_size]

        counts = self._with_client(self._count_tokens, sample)
        if counts is None:
            return Estimate(len(new))

        def length(questions: list[Question]) -> int:
            return sum(len(question.system) + len(question.user) for question in questions)

        tokens_per_character = sum(counts) / length(sample)
        # The number of the step and the layout add to the rewrite
        characters = sum(len(question.attempt) + 40 for question in new)
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


def _no_answer(answer: Answer) -> NoEdit | None:
    """The reason why an answer has no usable text; `None` if it has."""
    if answer.stop_reason in _REFUSED:
        return NoEdit("refusal")
    return NoEdit("truncated") if answer.stop_reason in _TRUNCATED else None


def edit_through_journal(
    dataset: Dataset, editor: JournaledEditor, task: Task, check_correct_samples: bool = True
) -> tuple[Dataset, Counter]:
    """
    [`~rlmec_trl.teachers.editors.edit_dataset`] with an API teacher, on all processes of the run.

    Each process sends its share of the requests. Then all read every answer from the journal, so that the result does
    not depend on the number of processes.
    """
    state = process_state()
    if state.num_processes > 1:
        # By request, not by row: equal rows are requested once
        questions = editor.questions(*editor_inputs(dataset, task))
        shares = [int(question.key, 16) % state.num_processes for question in questions]
        own = [index for index, share in enumerate(shares) if share == state.process_index]
        if own:
            edit_dataset(dataset.select(own), editor, task, check_correct_samples)
        for failures in gather_object([editor.failures]):
            editor.failures.update(failures)
        editor.journal.reload()
        editor.may_ask = False
    try:
        return edit_dataset(dataset, editor, task, check_correct_samples)
    finally:
        editor.may_ask = True
