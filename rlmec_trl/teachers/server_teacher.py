"""A large open model behind an OpenAI-compatible server as the teacher."""

from typing import Any

from ..data.errors import ConfigError
from ..generation.server import describe_error, open_client
from .api.errors import RequestFailedError, TeacherError
from .api.journal import Answer
from .api.journaled_teacher import JournaledTeacher
from .api.questions import Question


class ServerTeacher(JournaledTeacher):
    """
    An instruction-tuned model behind an OpenAI-compatible server (vLLM, SGLang, ...) as the teacher.

    The first answer to a row is decoded greedily; further ones are sampled, so that they differ.

    Takes the arguments of [`~rlmec_trl.teachers.api.journaled_teacher.JournaledTeacher`]. `model` is part of the key
    under which the journal stores the answers and, if `server_config.served_model` is not set, also the name that the
    server knows the model by. Without `config.structured_output`, any server with a chat endpoint will do.
    """

    _hopeless_statuses = (401, 402, 404)
    # 403: blocked by a filter
    _row_statuses = (400, 403, 413, 422)

    @property
    def name(self) -> str:
        return f"server {self.model}"

    def _check_settings(self) -> None:
        if self.config.use_batches or self.config.effort is not None:
            raise ConfigError("`use_batches` and `effort` are for the Anthropic API only: unset them for a server.")

    def _client(self) -> Any:
        return open_client(self.server_config)

    def _ask(self, client: Any, question: Question) -> Answer:
        num_answers = len(self.journal.answers(question.key))
        extra = {}
        if question.schema is not None:
            schema = {"name": question.kind, "schema": question.schema, "strict": True}
            extra["response_format"] = {"type": "json_schema", "json_schema": schema}
        with self._translated_errors():
            response = client.chat.completions.create(
                model=self._served_model,
                messages=[{"role": "system", "content": question.system}, {"role": "user", "content": question.user}],
                max_tokens=self.config.max_tokens,
                temperature=0.7 if num_answers else 0.0,
                seed=num_answers,
                extra_body=self.server_config.extra_body,
                **extra,
            )
        # The SDK validates nothing, and returns a web page as a string
        if isinstance(response, str) or not response.choices:
            raise RequestFailedError("broken response: no choices")
        choice, usage = response.choices[0], response.usage
        if choice.message is None or not isinstance(choice.message.content, str | None):
            raise RequestFailedError("broken response: no text")
        return Answer(
            text=choice.message.content or "",
            stop_reason=choice.finish_reason or "",
            input_tokens=(usage and usage.prompt_tokens) or 0,
            output_tokens=(usage and usage.completion_tokens) or 0,
        )

    @property
    def _served_model(self) -> str:
        return self.server_config.served_model or self.model

    def _api_errors(self) -> tuple[type[Exception], ...]:
        import openai

        return (openai.APIError,)

    def _hopeless(self, error: Exception) -> TeacherError:
        return TeacherError(
            f"The server at {self.server_config.base_url} does not serve {self._served_model!r} "
            f"({describe_error(error)}). Check `--base_url`, `--served_model` and the variable "
            f"{self.server_config.api_key_env}. All answers so far are in the journal."
        )
