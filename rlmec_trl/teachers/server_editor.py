"""A large open model behind an OpenAI-compatible server as the teacher."""

from typing import Any

from ..generation.server import ServerConfig, describe_error, open_client
from ..tasks.wording import WORDING, Wording
from .api.config import TeacherConfig
from .api.journal import Answer, Journal
from .api.journaled_editor import JournaledEditor, RequestFailedError, TeacherError
from .api.questions import ANSWER_SCHEMA, Question


# No other row would fare better: the key, the account, the model's name, the address
_HOPELESS = (401, 402, 404)
# This row is at fault: too long, or not let through by a filter
_ABOUT_ROW = (400, 403, 413, 422)


class ServerEditor(JournaledEditor):
    """
    An instruction-tuned model behind an OpenAI-compatible server (vLLM, SGLang, ...) as the teacher.

    The first answer to a row is decoded greedily, further ones are sampled, for they should differ.

    Args:
        model (`str`):
            Whose answers these are: part of the key under which the journal keeps them. Where
            `server_config.served_model` is not set, it is also what the server is asked for.
        journal ([`~rlmec_trl.teachers.api.journal.Journal`]):
            Where the answers are kept.
        config ([`~rlmec_trl.teachers.api.config.TeacherConfig`]):
            How to ask. Without `structured_output`, any server will do.
        server_config ([`~rlmec_trl.generation.server.ServerConfig`]):
            How to reach the server.
        wording ([`~rlmec_trl.tasks.wording.Wording`], *optional*):
            Wording of the task.
        budget_share (`float`, *optional*, defaults to `1.0`):
            Part of what is left of `config.max_cost` that this process may spend.

    Raises:
        `ValueError`: If `config` asks for what only Anthropic's API has.
    """

    def __init__(
        self,
        model: str,
        journal: Journal,
        config: TeacherConfig,
        server_config: ServerConfig,
        wording: Wording = WORDING,
        budget_share: float = 1.0,
    ):
        if config.use_batches or config.effort is not None:
            raise ValueError("`use_batches` and `effort` are for the Anthropic API alone: unset them for a server.")
        super().__init__(f"server {model}", model, journal, config, server_config, wording, budget_share)

    def _client(self) -> Any:
        return open_client(self.server_config)

    def _ask(self, client: Any, question: Question) -> Answer:
        import openai

        num_answers = len(self.journal.answers(question.key))
        schema = {"name": "edit", "schema": ANSWER_SCHEMA, "strict": True}
        extra = {"response_format": {"type": "json_schema", "json_schema": schema}}
        messages = [{"role": "system", "content": question.system}, {"role": "user", "content": question.user}]
        model = self.server_config.served_model or self.model
        try:
            response = client.chat.completions.create(
                model=model,
                messages=messages,
                max_tokens=self.config.max_tokens,
                temperature=0.7 if num_answers else 0.0,
                seed=num_answers,
                extra_body=self.server_config.extra_body,
                **(extra if self.config.structured_output else {}),
            )
        except openai.APIError as error:
            status = getattr(error, "status_code", None)
            if status in _HOPELESS:
                raise TeacherError(
                    f"The server at {self.server_config.base_url} does not serve {model!r} "
                    f"({describe_error(error)}). Check `--base_url`, `--served_model` and the variable "
                    f"{self.server_config.api_key_env}. All answers so far are in the journal."
                ) from None
            raise RequestFailedError(describe_error(error), status in _ABOUT_ROW) from None
        except ValueError as error:
            raise RequestFailedError(f"broken response: {error}") from None
        # The SDK takes what comes, and hands on a web page as a text
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
