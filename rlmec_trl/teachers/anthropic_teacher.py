"""The Anthropic API as the teacher, through single messages or, at half the price, through batches."""

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from tqdm.auto import tqdm

from ..data.errors import ConfigError
from ..generation.processes import process_state
from ..generation.server import ServerConfig, describe_error
from .api.errors import RequestFailedError, TeacherError
from .api.journal import Answer, Submission
from .api.journaled_teacher import JournaledTeacher
from .api.questions import Question


# The API accepts 256 MB. The client adds little to the requests.
_MAX_BATCH_BYTES = 200_000_000

# Maximum number of failed status requests in a row (an hour, by default)
_MAX_FAILED_POLLS = 60
# The API has not accepted the request, so it can be sent again without paying twice
_NOT_ACCEPTED = (429, 529)


class AnthropicTeacher(JournaledTeacher):
    """
    A Claude model as the teacher, through the official SDK. The key is read from the environment variable
    `ANTHROPIC_API_KEY`. The instructions, which are the same in all requests, are marked for the prompt cache.

    Takes the arguments of [`~rlmec_trl.teachers.api.journaled_teacher.JournaledTeacher`]. With `config.use_batches`,
    requests go through the Message Batches API. Of `server_config`, `concurrency`, `timeout` and `max_retries` apply,
    and `base_url` for another address than Anthropic's.
    """

    _hopeless_statuses = (401, 402, 403, 404)
    _row_statuses = (400, 413, 422)

    @property
    def name(self) -> str:
        # Another effort leads to other answers, another way to send the requests does not
        return f"anthropic {self.model} {self.config.effort or 'default'}"

    def _check_settings(self) -> None:
        settings = self.server_config
        for_servers = (settings.served_model, settings.extra_body, settings.api_key_env)
        if for_servers != (None, None, ServerConfig.api_key_env):
            raise ConfigError("`served_model`, `extra_body` and `api_key_env` are for servers only: unset them.")
        try:
            import anthropic  # noqa: F401
        except ImportError:
            raise TeacherError(
                "This teacher needs the package `anthropic`: pip install 'rlmec-trl[anthropic]'"
            ) from None

    def _client(self) -> Any:
        import anthropic

        settings = self.server_config
        # Without a key, the SDK would look for profiles on disk, and bill the owner of one
        if not os.environ.get("ANTHROPIC_API_KEY") and not os.environ.get("ANTHROPIC_AUTH_TOKEN"):
            raise TeacherError("There is no key for the Anthropic API: set the variable ANTHROPIC_API_KEY.")
        return anthropic.Anthropic(
            base_url=settings.base_url, timeout=settings.timeout, max_retries=settings.max_retries
        )

    def _params(self, question: Question) -> dict[str, Any]:
        output_config = {}
        if question.schema is not None:
            output_config["format"] = {"type": "json_schema", "schema": question.schema}
        if self.config.effort is not None:
            output_config["effort"] = self.config.effort
        return {
            "model": self.model,
            "system": [{"type": "text", "text": question.system, "cache_control": {"type": "ephemeral"}}],
            "messages": [{"role": "user", "content": question.user}],
            **({"output_config": output_config} if output_config else {}),
        }

    def _count_tokens(self, client: Any, questions: list[Question]) -> list[int] | None:
        import anthropic

        with self._translated_errors():
            try:
                return [client.messages.count_tokens(**self._params(question)).input_tokens for question in questions]
            except anthropic.NotFoundError:
                # Not every gateway has this endpoint. If the model is missing, the first request reports it
                return None

    def _ask(self, client: Any, question: Question) -> Answer:
        with self._translated_errors():
            message = client.messages.create(max_tokens=self.config.max_tokens, **self._params(question))
        return _to_answer(message)

    def _send(self, client: Any, questions: list[Question]) -> None:
        if not self.config.use_batches:
            super()._send(client, questions)
            return
        submitted = []
        for chunk in self._chunks(questions):
            submitted.append(self._submit(client, chunk))
            self.budget.under_way += len(chunk)
        for submission in submitted:
            self._collect(client, submission)
            self.budget.under_way -= len(submission.keys)

    def _resume(self, client: Any) -> None:
        for submission in self.journal.own_submissions():
            if submission.batch is None:
                batch = self._find_batch(client, submission)
                if batch is None:
                    self.journal.close_submission(submission.name)
                    continue
                submission = replace(submission, batch=batch)
                self.journal.record_submission(submission)
            self._collect(client, submission)

    def _chunks(self, questions: list[Question]) -> Iterator[list[dict[str, Any]]]:
        """Requests in batches of a size that the API accepts, as many as the budget allows."""
        chunk, num_bytes = [], 0
        for question in questions:
            request = {
                "custom_id": question.key,
                "params": {"max_tokens": self.config.max_tokens, **self._params(question)},
            }
            size = len(json.dumps(request))
            full = len(chunk) == self.config.questions_per_batch or num_bytes + size > _MAX_BATCH_BYTES
            if chunk and full:
                yield chunk
                chunk, num_bytes = [], 0
            if not self.budget.affords(len(chunk) + 1):
                break
            chunk.append(request)
            num_bytes += size
        if chunk:
            yield chunk

    def _submit(self, client: Any, requests: list[dict[str, Any]]) -> Submission:
        """
        Submit a batch. The journal records it before, without its id, and afterwards, with it, so that a batch whose
        id was lost on the way can be found by its requests.
        """
        with self._translated_errors():
            newest = client.messages.batches.list(limit=1).data
        keys = [request["custom_id"] for request in requests]
        submission = Submission(uuid.uuid4().hex, keys, after=newest[0].id if newest else None)
        self.journal.record_submission(submission)
        batch = self._create_batch(client, submission, requests)
        submission = replace(submission, batch=batch)
        self.journal.record_submission(submission)
        return submission

    def _create_batch(self, client: Any, submission: Submission, requests: list[dict]) -> str:
        """Create a batch and return its id. The SDK's own retries could create it, and bill it, twice."""
        import anthropic

        client_without_retries = client.with_options(max_retries=0)
        for attempt in range(self.server_config.max_retries + 1):
            if attempt > 0:
                time.sleep(min(2.0**attempt, self.config.poll_seconds))
            try:
                return client_without_retries.messages.batches.create(requests=requests).id
            except (anthropic.APIError, ValueError, AttributeError) as caught:
                error = caught
            status = getattr(error, "status_code", None)
            if status in _NOT_ACCEPTED:
                continue
            if status is not None and status < 500:
                self.journal.close_submission(submission.name)
                raise self._hopeless(error)
            batch = self._find_batch(client, submission)
            if batch is not None:
                return batch
        raise TeacherError(
            f"The batch could not be submitted ({describe_error(error)}). Re-running the command resumes here: if the "
            "batch has arrived after all, it is found."
        )

    def _find_batch(self, client: Any, submission: Submission) -> str | None:
        """The id of a batch that may have been created, but whose id was not received; `None` if it was not."""
        known = self.journal.batches()
        # A new batch may take a moment to be listed
        for attempt in range(2):
            if attempt > 0:
                time.sleep(self.config.poll_seconds)
            with self._translated_errors():
                seen_after = submission.after is None
                for batch in client.messages.batches.list(limit=100):
                    if batch.id == submission.after:
                        seen_after = True
                        break
                    counts = batch.request_counts
                    total = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
                    if batch.id not in known and total == len(submission.keys):
                        if self._answers_one_of(client, batch.id, set(submission.keys)):
                            return batch.id
        if not seen_after:
            raise self._unknown(submission.after)
        return None

    def _answers_one_of(self, client: Any, batch: str, keys: set[str]) -> bool:
        """Only the results of a batch show which requests are in it."""
        if not self._wait_for(client, batch):
            return False
        first = next(iter(client.messages.batches.results(batch)), None)
        return first is not None and first.custom_id in keys

    def _wait_for(self, client: Any, batch: str) -> bool:
        """Wait for a batch to end. Returns whether its results can be fetched; the API keeps them for 29 days."""
        import anthropic

        num_failures = 0
        while True:
            try:
                with self._translated_errors():
                    try:
                        state = client.messages.batches.retrieve(batch)
                        ended, has_results = state.processing_status == "ended", state.results_url is not None
                        num_failures = 0
                    except anthropic.NotFoundError:
                        raise self._unknown(batch) from None
            except RequestFailedError:
                # A batch takes hours, and the API may be down for some of that time
                num_failures += 1
                if num_failures > _MAX_FAILED_POLLS:
                    raise
                ended = False
            if ended:
                return has_results
            time.sleep(self.config.poll_seconds)

    def _unknown(self, batch: str) -> TeacherError:
        return TeacherError(
            f"Batch {batch} is not known to this key. Use the key and the address that it was submitted with: its "
            "answers are paid for. If it was deleted, delete the lines of type `submission` that name it in "
            f"{str(self.journal.directory)!r}."
        )

    def _collect(self, client: Any, submission: Submission) -> None:
        """
        Wait for a batch, and record its answers.

        Raises:
            [`TeacherError`]: If they cannot be fetched now, or if the batch was canceled.
        """
        missing = set(submission.keys)
        show = process_state().is_local_main_process
        with tqdm(total=len(missing), desc=f"Waiting for batch {submission.batch}", disable=not show) as progress:
            whole = not self._wait_for(client, submission.batch)
            for attempt in range(self.server_config.max_retries + 1):
                if whole:
                    break
                if attempt > 0:
                    time.sleep(min(2.0**attempt, self.config.poll_seconds))
                # Results whose connection broke can be fetched again as often as needed
                with suppress(RequestFailedError), self._translated_errors():
                    for result in client.messages.batches.results(submission.batch):
                        if result.custom_id in missing:
                            self._record_result(submission.batch, result)
                            missing.remove(result.custom_id)
                            progress.update()
                    # There is one result per request: if there are fewer, the response ended early, without an error
                    whole = not missing
        if not whole:
            raise TeacherError(
                f"The results of batch {submission.batch} cannot be fetched. They are kept for some weeks: re-running "
                "the command fetches them."
            )
        for key in missing:
            self._note_failure(key, "no result in its batch")
        self.journal.close_submission(submission.name)
        if "canceled" in self.failures.values():
            raise TeacherError(
                f"Batch {submission.batch} was canceled. Its answers are in the journal; re-running the command "
                "submits its other requests again."
            )

    def _record_result(self, batch: str, result: Any) -> None:
        if result.result.type == "succeeded":
            if not self.journal.has_answer_of(result.custom_id, batch):
                try:
                    self._record(result.custom_id, replace(_to_answer(result.result.message), batch=batch))
                except RequestFailedError as error:
                    self._note_failure(result.custom_id, str(error))
        elif result.result.type == "errored":
            self._note_failure(result.custom_id, f"errored: {result.result.error.error.type}")
        else:
            self._note_failure(result.custom_id, result.result.type)

    def _api_errors(self) -> tuple[type[Exception], ...]:
        import anthropic
        import httpx2

        return (anthropic.AnthropicError, httpx2.HTTPError)

    def _hopeless(self, error: Exception) -> TeacherError:
        return TeacherError(
            f"The API rejects requests to {self.model!r} ({describe_error(error)}). Check the model's name, the "
            "settings that it supports, and the key in ANTHROPIC_API_KEY. All answers so far are in the journal."
        )


def _to_answer(message: Any) -> Answer:
    # The SDK validates nothing, and returns a web page as a string
    if isinstance(message, str) or message.usage is None or message.content is None:
        raise RequestFailedError("broken response: no content or no usage")
    usage = message.usage
    return Answer(
        text="".join(block.text for block in message.content if block.type == "text"),
        stop_reason=message.stop_reason or "",
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_write_tokens=usage.cache_creation_input_tokens or 0,
        cache_read_tokens=usage.cache_read_input_tokens or 0,
    )
