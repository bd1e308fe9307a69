"""What every teacher behind an API has in common: its answers go through the journal, its costs have a limit."""

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from accelerate.utils import gather_object
from datasets import Dataset

from ...generation.asking import ask_all
from ...generation.processes import process_state
from ...generation.server import ServerConfig
from ...tasks.task import Task
from ...tasks.wording import WORDING, Wording
from ..editors import Edit, NoEdit, Usable, edit_dataset, editor_inputs
from .budget import Budget, Estimate
from .config import TeacherConfig, answer_cost
from .journal import Answer, Journal
from .questions import Question, make_question, read_answer


# In the words of Anthropic's API and of the OpenAI-compatible ones
_REFUSED = ("refusal", "content_filter")
_TRUNCATED = ("max_tokens", "model_context_window_exceeded", "length")

# This many questions in a row without an answer are no accident
_MAX_FAILURES_IN_A_ROW = 50


class TeacherError(RuntimeError):
    """The teacher cannot be asked, and would fail for every row alike."""


class RequestFailedError(Exception):
    """
    A question got no answer. Others may.

    Args:
        reason (`str`):
            Why not.
        about_row (`bool`, *optional*, defaults to `False`):
            Whether it is this question that the API finds fault with, and not the API that is in trouble.
    """

    def __init__(self, reason: str, about_row: bool = False):
        super().__init__(reason)
        self.about_row = about_row


class JournaledEditor(ABC):
    """
    A teacher behind an API. A row is asked until one of its answers passes verification, `config.max_attempts` times
    at most, and never again for an answer that is in the journal.

    Args:
        name (`str`):
            Who is asked: part of the key of every answer.
        model (`str`):
            Name of the model.
        journal ([`~rlmec_trl.teachers.api.journal.Journal`]):
            Where the answers are kept.
        config ([`~rlmec_trl.teachers.api.config.TeacherConfig`]):
            How to ask.
        server_config ([`~rlmec_trl.generation.server.ServerConfig`]):
            How to reach the API.
        wording ([`~rlmec_trl.tasks.wording.Wording`], *optional*):
            Wording of the task.
        budget_share (`float`, *optional*, defaults to `1.0`):
            Part of what is left of `config.max_cost` that this process may spend.
    """

    def __init__(
        self,
        name: str,
        model: str,
        journal: Journal,
        config: TeacherConfig,
        server_config: ServerConfig,
        wording: Wording = WORDING,
        budget_share: float = 1.0,
    ):
        self.name = name
        self.model = model
        self.journal = journal
        self.config = config
        self.server_config = server_config
        self.wording = wording
        self._batch = "" if config.use_batches else None
        longest = answer_cost(config, Answer("", "", output_tokens=config.max_tokens, batch=self._batch))
        self.budget = Budget(config.max_cost, journal.costs(), budget_share, longest or 0.0)
        # Of what the threads that ask change: the budget and the failures
        self._lock = threading.Lock()
        # Otherwise it answers from the journal alone
        self.may_ask = True
        # Why questions of this run got no answer, by their keys
        self.failures: dict[str, str] = {}
        self._num_failures: Counter[str] = Counter()
        self._num_failures_in_a_row = 0

    @abstractmethod
    def _client(self) -> Any:
        """A new client of the API, closed after use. Several threads share it."""

    @abstractmethod
    def _ask(self, client: Any, question: Question) -> Answer:
        """
        Ask one question.

        Raises:
            [`RequestFailedError`]: If this question got no answer.
            [`TeacherError`]: If no question would.
        """

    def _count_tokens(self, client: Any, questions: list[Question]) -> list[int] | None:
        """Input tokens of questions, `None` where the API cannot count them."""
        return None

    def _resume(self, client: Any) -> None:
        """Fetch what an earlier run has asked for and not fetched. There is nothing where answers come at once."""
        return None

    def _send(self, client: Any, questions: list[Question]) -> None:
        """Ask questions, as far as the budget goes, and record what comes back."""
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

    def __call__(
        self,
        problems: Sequence[str],
        references: Sequence[str],
        completions: Sequence[str],
        usable: Usable | None = None,
    ) -> list[Edit]:
        questions = self.questions(problems, references, completions)
        usable = usable or (lambda index, edit: not isinstance(edit, NoEdit))
        if self.may_ask:
            self.failures.clear()
            self._num_failures.clear()
        edits: list[Edit] = [NoEdit("not asked")] * len(questions)
        self.budget.under_way = 0
        if self.may_ask and self.journal.own_submissions():
            self._with_client(self._resume)
        # Other processes will see to what these have asked
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
                        edits[index] = self._read(question, answer)
                        done[index] = usable(index, edits[index])
                num_read[index] = len(answers)
                tries = max(len(answers), self._num_failures[question.key])
                if not done[index] and tries < self.config.max_attempts and question.key not in waiting:
                    pending[question.key] = question
            if not pending or not self.may_ask or not self.budget.affords(1):
                break
            self._with_client(self._send, list(pending.values()))
        return [
            NoEdit(self.failures.get(question.key, "not asked")) if count == 0 else edit
            for question, edit, count in zip(questions, edits, num_read, strict=True)
        ]

    def questions(
        self, problems: Sequence[str], references: Sequence[str], completions: Sequence[str]
    ) -> list[Question]:
        """What is asked about each attempt. Attempts that are the same have the same key, and are asked once."""
        structured = self.config.structured_output
        return [
            make_question(self.name, self.wording, structured, *row)
            for row in zip(problems, references, completions, strict=True)
        ]

    def estimate(
        self, problems: Sequence[str], references: Sequence[str], completions: Sequence[str], sample_size: int = 20
    ) -> Estimate:
        """
        Say what the rows that were never asked will come to. Tokens are counted on a sample of them and taken to grow
        with the characters; an answer is expected to be as long as its attempt.

        Raises:
            [`TeacherError`]: If the teacher cannot be asked.
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
        # The number of the step and the layout come on top of the rewrite
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
                    f"{str(self.journal.directory)!r}; the same command goes on from there."
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
        # Rows that are refused one by one stop nothing, but where nothing was ever answered, it is not the row
        if error.about_row and not self.journal.is_empty():
            return
        with self._lock:
            self._num_failures_in_a_row += 1
        # A burst of failures may be as long as there are questions under way
        if self._num_failures_in_a_row >= max(_MAX_FAILURES_IN_A_ROW, 2 * self.server_config.concurrency):
            raise TeacherError(
                f"{self._num_failures_in_a_row} questions in a row got no answer, the last one because of: {error}. "
                f"All answers so far are in {str(self.journal.directory)!r}; the same command goes on from there. "
                "Where the rate is the limit, lower `--concurrency` or raise `--max_retries`."
            )

    def _read(self, question: Question, answer: Answer) -> Edit:
        if answer.stop_reason in _REFUSED:
            return NoEdit("refusal")
        if answer.stop_reason in _TRUNCATED:
            return NoEdit("truncated")
        return read_answer(self.wording, self.config.structured_output, question.attempt, answer.text)


def edit_through_journal(
    dataset: Dataset, editor: JournaledEditor, task: Task, check_correct_samples: bool = True
) -> tuple[Dataset, Counter]:
    """
    [`~rlmec_trl.teachers.editors.edit_dataset`] with a teacher behind an API, on as many processes as there are.

    Each process asks its share of the questions. Then each reads the answers of all from the journal, so that the
    result is the same on any number of them.
    """
    state = process_state()
    if state.num_processes > 1:
        # By question, not by row: samples that are the same are asked once
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
