"""
Models behind an OpenAI-compatible server (vLLM, SGLang, `transformers serve`, ...): token ids in, token ids or
log-probabilities out.
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from ..data.checks import check_config
from ..data.errors import ConfigError, UserError
from ..data.messages import is_storable
from .asking import ask_all


@dataclass
class ServerConfig:
    r"""
    How to reach a server.

    Parameters:
        base_url (`str`, *optional*):
            Address of the server, such as `http://localhost:8000/v1`.
        served_model (`str`, *optional*):
            Name of the model on the server. If unset, the only model that it serves, or the name of the teacher.
        concurrency (`int`, *optional*, defaults to `32`):
            Maximum number of concurrent requests.
        timeout (`float`, *optional*, defaults to `600.0`):
            Timeout of a request, in seconds.
        max_retries (`int`, *optional*, defaults to `5`):
            Maximum number of retries of a failed request, with increasing pauses.
        api_key_env (`str`, *optional*, defaults to `"RLMEC_SERVER_API_KEY"`):
            Name of the environment variable with the server's API key, if it requires one.
        extra_body (`dict` or `str`, *optional*):
            Additional fields of each request, as JSON, such as `{"top_k": -1}`.
    """

    base_url: str | None = field(
        default=None, metadata={"help": "Address of the server, such as `http://localhost:8000/v1`."}
    )
    served_model: str | None = field(
        default=None,
        metadata={
            "help": "Name of the model on the server. If unset, the only model that it serves, or the name of the "
            "teacher.",
        },
    )
    concurrency: int = field(default=32, metadata={"help": "Maximum number of concurrent requests."})
    timeout: float = field(default=600.0, metadata={"help": "Timeout of a request, in seconds."})
    max_retries: int = field(
        default=5, metadata={"help": "Maximum number of retries of a failed request, with increasing pauses."}
    )
    api_key_env: str = field(
        default="RLMEC_SERVER_API_KEY",
        metadata={"help": "Name of the environment variable with the server's API key, if it requires one."},
    )
    extra_body: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": 'Additional fields of each request, as JSON, such as `{"top_k": -1}`.'},
    )

    # How each field enters the key of a result (see `stages/keys.py`)
    key_parts: ClassVar[dict[str, str]] = {
        "base_url": "none",
        "served_model": "value",
        "concurrency": "none",
        "timeout": "none",
        "max_retries": "none",
        "api_key_env": "none",
        "extra_body": "value",
    }

    def __post_init__(self):
        check_config(self)
        if isinstance(self.extra_body, str):
            try:
                self.extra_body = json.loads(self.extra_body)
            except ValueError as error:
                raise ConfigError(f"`extra_body` is not JSON ({error}): {self.extra_body!r}") from None
        if self.extra_body is not None and not isinstance(self.extra_body, dict):
            raise ConfigError(f"`extra_body` must be a JSON object, got {self.extra_body!r}.")


# Statuses that concern this request only, for instance because it is too long or has an unknown field
_BAD_REQUEST = (400, 413, 422)
_NO_KEY = "no-key"
# If this many completions of a call are all left out, the prompts are not the cause
_MANY = 20
# Rounding may bring a log-probability above zero, but not by this much
_MAX_LOGP = 1e-2
_WHO_SCORES = ", as vLLM and SGLang do. With another server, load the model's weights to score."


class ServerError(UserError, RuntimeError):
    """The server cannot be used."""


def open_client(config: ServerConfig):
    """
    Open a client of the server. Close it after use.

    Raises:
        [`ServerError`]: If there is no address, or the package `openai` is not installed.
    """
    if config.base_url is None:
        raise ServerError("Pass the address of the server as `--base_url`, such as http://localhost:8000/v1.")
    try:
        import openai
    except ImportError:
        raise ServerError("Using a server requires the package `openai`: pip install 'rlmec-trl[server]'") from None
    return openai.OpenAI(
        base_url=config.base_url,
        # Not the variable that the SDK reads by default: that key is for another server. The SDK refuses an empty key
        api_key=os.environ.get(config.api_key_env) or _NO_KEY,
        timeout=config.timeout,
        max_retries=config.max_retries,
    )


def find_served_model(client, config: ServerConfig) -> str:
    """
    The name of the model on the server.

    Raises:
        [`ServerError`]: If no name is configured and the server does not list exactly one model.
    """
    import openai

    if config.served_model is not None:
        return config.served_model
    try:
        names = [model.id for model in client.models.list()]
    except (openai.APIError, AttributeError, ValueError) as error:
        # A web page, which the SDK fails to parse, or no JSON
        raise ServerError(
            f"The server at {config.base_url} does not list its models ({describe_error(error)}). If the address is "
            "correct, pass the name of the model as `--served_model`."
        ) from None
    if len(names) != 1:
        has = f"serves {', '.join(names)}" if names else "lists no model"
        raise ServerError(f"The server at {config.base_url} {has}: pass the name of one as `--served_model`.")
    return names[0]


def describe_error(error: Exception) -> str:
    """An error of a request on one line, without the API key, even if the server sent it back."""
    # Half a surrogate pair, which JSON may hold, could not be stored
    text = " ".join(str(error).split()).encode("utf-8", "replace").decode()
    status = getattr(error, "status_code", None)
    if status is None:
        return f"{type(error).__name__}: {text[:300]}"
    for header in ("x-api-key", "authorization"):
        secret = error.request.headers.get(header, "").removeprefix("Bearer ")
        text = text.replace(secret, "***") if secret not in ("", _NO_KEY) else text
    return f"status {status}: {text[:300]}"


class TokenServer:
    """
    Continues token ids with a model behind a server, or scores them.

    To continue: if the server supports token ids (vLLM, SGLang), prompts are sent and completions are returned as ids.
    Otherwise, a prompt is sent as text, provided that the text has exactly the same ids. The ids of the completion are
    then recovered from its text, provided that their number is the one reported by the server, that they decode to
    this text, and that the id that ended them is known. Completions that fail these checks are left out and counted: a
    token that was not sampled must not be rewarded. The checks cannot distinguish two tokenizations of the same
    length; only ids from the server are certain.

    Each completion is a separate request with its own seed. Not every server supports `n`, and with prefix caching a
    server processes each prompt only once.

    To score, the server has to accept ids and to return the log-probabilities of a prompt's tokens (`echo` with
    `logprobs`), as vLLM and SGLang do. Nothing can be left out there: a sequence that the server does not score is an
    error.

    Args:
        config ([`ServerConfig`]):
            How to reach the server.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The model's tokenizer.
        ends (`set[int]`):
            Ids that end a completion.
    """

    def __init__(self, config: ServerConfig, processing_class: PreTrainedTokenizerBase, ends: set[int]):
        self.config = config
        self.processing_class = processing_class
        self.ends = ends
        self.left_out: Counter[str] = Counter()
        self.num_usable = 0
        self.last_refusal: str | None = None

    def generate_ids(
        self,
        prompt_ids: Sequence[list[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        desc: str | None = None,
    ) -> list[list[int]]:
        """
        Continue each prompt.

        Args:
            prompt_ids (`Sequence[list[int]]`):
                Token ids of the prompts.
            max_new_tokens (`int`):
                Maximum number of tokens to generate for each.
            temperature (`float`, *optional*, defaults to `0.0`):
                Sampling temperature; `0.0` decodes greedily.
            top_p (`float`, *optional*, defaults to `1.0`):
                Probability mass to sample from.
            seed (`int`, *optional*, defaults to `0`):
                Seed. Whether results are reproducible depends on the server.
            desc (`str`, *optional*):
                Title of a progress bar. If `None`, there is no bar.

        Returns:
            `list[list[int]]`: The new ids for each prompt, up to and including EOS. Ids that do not end with EOS were
            truncated at `max_new_tokens`. An empty list stands for a completion that is left out; `left_out` counts
            these by reason.

        Raises:
            [`ServerError`]: If the server cannot be reached, or its responses are not completions.
        """
        if not prompt_ids:
            return []
        with open_client(self.config) as client:
            model = find_served_model(client, self.config)
            sends_ids = self._knows_token_ids(client, model, prompt_ids)
            prompts = prompt_ids if sends_ids else [self._as_text(ids) for ids in prompt_ids]
            sendable = [index for index, prompt in enumerate(prompts) if prompt is not None]
            responses = {}

            def generate(index: int) -> None:
                responses[index] = self._complete(
                    client,
                    model,
                    prompts[index],
                    sends_ids,
                    max_tokens=max_new_tokens,
                    temperature=temperature,
                    top_p=top_p,
                    seed=_seed_of(seed, index),
                )

            ask_all(generate, sendable, self.config.concurrency, len(sendable), desc)
        # In this thread only: tokenizers are not thread-safe
        completions = [self._read(prompt, responses.get(index)) for index, prompt in enumerate(prompts)]
        if len(completions) >= _MANY and not any(completions):
            raise ServerError(
                f"None of {len(completions)} completions from {self.config.base_url} can be used: "
                f"{dict(self.left_out)} in this run. {self.last_words()}"
            )
        return completions

    def completion_logps(
        self,
        prompt_ids: Sequence[list[int]],
        completion_ids: Sequence[list[int]],
        desc: str | None = None,
    ) -> list[list[float]]:
        """
        Log-probability of each completion token, at temperature 1.

        Args:
            prompt_ids, completion_ids (`Sequence[list[int]]`):
                Token ids of the prompts and of their completions.
            desc (`str`, *optional*):
                Title of a progress bar. If `None`, there is no bar.

        Returns:
            `list[list[float]]`: One log-probability for each completion id.

        Raises:
            [`ServerError`]: If the server cannot be reached, refuses a sequence, or does not return the
                log-probabilities of its tokens.
        """
        logps = [[] for _ in prompt_ids]
        to_score = [index for index, ids in enumerate(completion_ids) if ids]
        if not to_score:
            return logps
        with open_client(self.config) as client:
            model = find_served_model(client, self.config)

            def score(index: int) -> None:
                logps[index] = self._score(client, model, list(prompt_ids[index]), list(completion_ids[index]))

            ask_all(score, to_score, self.config.concurrency, len(to_score), desc)
        return logps

    def _score(self, client, model: str, prompt: list[int], completion: list[int]) -> list[float]:
        sequence = prompt + completion
        # `max_tokens=0` is not accepted by every version of vLLM, and `logprobs=0` stands for none in SGLang
        response = self._complete(client, model, sequence, True, echo=True, logprobs=1, max_tokens=1, temperature=1.0)
        if response is None:
            raise ServerError(
                f"The server at {self.config.base_url} refused to score a sequence of {len(sequence)} tokens "
                f"({self.last_refusal}). Its model needs a context of one token more than that, and it has to support "
                f"`echo` with `logprobs`{_WHO_SCORES}"
            )
        return self._read_logps(response, len(prompt), len(sequence))

    def _read_logps(self, response, start: int, end: int) -> list[float]:
        """The log-probabilities of the tokens from `start` on of a sequence with `end` tokens."""
        from openai.types.completion_choice import Logprobs

        where = f"The server at {self.config.base_url}"
        if response.usage is not None and response.usage.prompt_tokens != end:
            raise ServerError(
                f"{where} read {response.usage.prompt_tokens} tokens where {end} were sent, so its log-probabilities "
                "are not those of these tokens. It must neither truncate prompts nor add tokens to them."
            )
        logprobs = response.choices[0].logprobs
        logps = logprobs.token_logprobs if isinstance(logprobs, Logprobs) else None
        # The last one is that of the generated token. A server that leaves out EOS may leave it out too
        if logps is None or len(logps) not in (end, end + 1):
            raise ServerError(
                f"{where} returned {len(logps or [])} log-probabilities for a sequence of {end} tokens. It has to "
                f"support `echo` with `logprobs`{_WHO_SCORES}"
            )
        for position, logp in enumerate(logps[start:end], start=start):
            if type(logp) not in (int, float) or not math.isfinite(logp) or logp > _MAX_LOGP:
                raise ServerError(
                    f"{where} returned {json.dumps(logp)} for token {position} of a sequence of {end} tokens, which "
                    "is not a log-probability."
                )
        return [min(float(logp), 0.0) for logp in logps[start:end]]

    def _read(self, prompt: list[int] | str | None, response) -> list[int]:
        if prompt is None:
            reason = "prompt has no text with the same ids"
        elif response is None:
            reason = "refused by the server"
        elif (ids := self._read_ids(response)) is None:
            reason = "ids cannot be recovered exactly"
        else:
            self.num_usable += 1
            return ids
        self.left_out[reason] += 1
        return []

    def last_words(self) -> str:
        """A sentence with what the server said when it last refused a request."""
        if self.last_refusal is None:
            return "The server refused no request."
        return f"The last request was refused because of: {self.last_refusal}."

    def _knows_token_ids(self, client, model: str, prompt_ids: Sequence[list[int]]) -> bool:
        """Whether the server accepts and returns token ids. One token is generated to find out."""
        settings = {"max_tokens": 1, "temperature": 0.0}
        shortest_first = sorted(prompt_ids, key=len)
        if self._complete(client, model, shortest_first[0], True, **settings) is not None:
            return True
        # Some servers fail on an empty prompt
        text = next(filter(None, map(self._as_text, shortest_first)), None)
        if text is None or self._complete(client, model, text, False, **settings) is not None:
            return False
        raise ServerError(
            f"The server at {self.config.base_url} accepts prompts neither as token ids nor as text on /completions "
            f"({self.last_refusal})."
        )

    def _complete(self, client, model: str, prompt: list[int] | str, with_ids: bool, **settings):
        """The response, or `None` if the server rejects this request."""
        import openai

        extra = {"return_token_ids": True} if with_ids else {}
        # The SDK does not retry if the body of a response is not a completion
        for _ in range(self.config.max_retries + 1):
            try:
                response = client.completions.create(
                    model=model, prompt=prompt, extra_body={**extra, **(self.config.extra_body or {})}, **settings
                )
                # The SDK returns a web page as a string
                if not isinstance(response, str) and response.choices:
                    return response
                broken = "no completion in it"
            except openai.APIError as error:
                if getattr(error, "status_code", None) in _BAD_REQUEST:
                    self.last_refusal = describe_error(error)
                    return None
                raise ServerError(
                    f"The request to the server at {self.config.base_url} failed ({describe_error(error)}). Finished "
                    "shards and checkpoints are saved: re-run the command to resume."
                ) from None
            except ValueError as error:
                broken = error
        raise ServerError(f"The response of the server at {self.config.base_url} is not a completion ({broken}).")

    def _as_text(self, prompt_ids: list[int]) -> str | None:
        """A text that the server's tokenizer, which is the same as ours, encodes as these ids."""
        text = self.processing_class.decode(prompt_ids)
        bos = self.processing_class.bos_token
        # A tokenizer that adds BOS would add it twice
        for candidate in (text, text.removeprefix(bos) if bos else text):
            if list(self.processing_class(candidate)["input_ids"]) == list(prompt_ids):
                return candidate
        return None

    def _read_ids(self, response) -> list[int] | None:
        choice = response.choices[0]
        counted = None if response.usage is None else response.usage.completion_tokens
        ids = (choice.model_extra or {}).get("token_ids")
        if ids is not None:
            has_end = choice.finish_reason != "stop" or counted != len(ids) + 1 or not ids or ids[-1] in self.ends
            ids = list(ids) if has_end else [*ids, self._end(choice)]
            return ids if all(map(self._is_id, ids)) else None
        if not is_storable(choice.text):
            return None
        ids = list(self.processing_class(choice.text, add_special_tokens=False)["input_ids"])
        if choice.finish_reason == "stop":
            ids.append(self._end(choice))
        exact = None not in ids and counted == len(ids) and self._decode(ids) == choice.text
        return ids if exact else None

    def _end(self, choice) -> int | None:
        """The id that ended a completion, `None` if it is not known or does not end a completion of the model."""
        extra = choice.model_extra or {}
        # The field of SGLang, and that of vLLM, which is null for the tokenizer's own EOS
        end = extra.get("matched_stop", extra.get("stop_reason"))
        stops_at_text = "stop" in (self.config.extra_body or {})
        if end is None and not stops_at_text and (len(self.ends) == 1 or "stop_reason" in extra):
            end = self.processing_class.eos_token_id
        return end if end in self.ends else None

    def _is_id(self, value: Any) -> bool:
        """Whether this is an id of our tokenizer: a server with another model has others."""
        return type(value) is int and 0 <= value < len(self.processing_class)

    def _decode(self, ids: list[int]) -> str:
        return self.processing_class.decode(ids, skip_special_tokens=True)


def _seed_of(seed: int, index: int) -> int:
    # Runs with neighboring seeds must not share the seeds of completions
    return int.from_bytes(hashlib.sha256(f"{seed} {index}".encode()).digest()[:4], "big") >> 1
