"""Models behind an OpenAI-compatible server (vLLM, SGLang, `transformers serve`, ...): token ids in, token ids out."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from .asking import ask_all


@dataclass
class ServerConfig:
    r"""
    How to reach a server.

    Parameters:
        base_url (`str`, *optional*):
            Address of the server, such as `http://localhost:8000/v1`.
        served_model (`str`, *optional*):
            Name under which the server has the model. If unset, the one model that it has, or of a teacher its name.
        concurrency (`int`, *optional*, defaults to `32`):
            Greatest number of requests under way at a time.
        timeout (`float`, *optional*, defaults to `600.0`):
            Seconds to wait for an answer.
        max_retries (`int`, *optional*, defaults to `5`):
            How often a request that failed is sent again, with growing pauses.
        api_key_env (`str`, *optional*, defaults to `"RLMEC_SERVER_API_KEY"`):
            Name of the environment variable that holds the server's key, if it wants one.
        extra_body (`dict` or `str`, *optional*):
            Further fields of each request, as JSON, such as `{"top_k": -1}`.
    """

    base_url: str | None = field(
        default=None, metadata={"help": "Address of the server, such as `http://localhost:8000/v1`."}
    )
    served_model: str | None = field(
        default=None,
        metadata={
            "help": "Name under which the server has the model. If unset, the one model that it has, or of a teacher "
            "its name.",
        },
    )
    concurrency: int = field(default=32, metadata={"help": "Greatest number of requests under way at a time."})
    timeout: float = field(default=600.0, metadata={"help": "Seconds to wait for an answer."})
    max_retries: int = field(
        default=5,
        metadata={"help": "How often a request that failed is sent again, with growing pauses."},
    )
    api_key_env: str = field(
        default="RLMEC_SERVER_API_KEY",
        metadata={
            "help": "Name of the environment variable that holds the server's key, if it wants one.",
        },
    )
    extra_body: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": 'Further fields of each request, as JSON, such as `{"top_k": -1}`.'},
    )

    # What each field is to the key of a result (see `stages/keys.py`)
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
        if isinstance(self.extra_body, str):
            try:
                self.extra_body = json.loads(self.extra_body)
            except ValueError as error:
                raise ValueError(f"`extra_body` is not JSON ({error}): {self.extra_body!r}") from None
        if self.extra_body is not None and not isinstance(self.extra_body, dict):
            raise ValueError(f"`extra_body` has to be a JSON object, got {self.extra_body!r}.")
        if self.concurrency < 1:
            raise ValueError(f"`concurrency` is {self.concurrency}; at least one request has to be under way.")
        if self.max_retries < 0:
            raise ValueError(f"`max_retries` is {self.max_retries}; it cannot be negative.")


# Statuses by which a server finds fault with this very request: too long, or with a field that it does not know
_BAD_REQUEST = (400, 413, 422)


_NO_KEY = "no-key"
# If so many completions in a call are all left out, it is not the prompts
_MANY = 20


class ServerError(RuntimeError):
    """The server cannot be used as it was asked to be."""


def open_client(config: ServerConfig):
    """
    A client of the server, to be closed after use.

    Raises:
        [`ServerError`]: If there is no address, or the package `openai` is missing.
    """
    if config.base_url is None:
        raise ServerError("Name the server with `--base_url`, such as http://localhost:8000/v1.")
    try:
        import openai
    except ImportError:
        raise ServerError("A server needs the package `openai`: pip install 'rlmec-trl[server]'") from None
    return openai.OpenAI(
        base_url=config.base_url,
        # Never the variable that the SDK would read: that key is for another server. It refuses an empty one.
        api_key=os.environ.get(config.api_key_env) or _NO_KEY,
        timeout=config.timeout,
        max_retries=config.max_retries,
    )


def find_served_model(client, config: ServerConfig) -> str:
    """
    The name under which the server has the model.

    Raises:
        [`ServerError`]: If none was named and the server does not list exactly one.
    """
    import openai

    if config.served_model is not None:
        return config.served_model
    try:
        names = [model.id for model in client.models.list()]
    except (openai.APIError, AttributeError, ValueError) as error:
        # A web page, which the SDK trips over, or no JSON
        raise ServerError(
            f"The server at {config.base_url} does not list its models ({describe_error(error)}). If the address is "
            "right, name the model with `--served_model`."
        ) from None
    if len(names) != 1:
        has = f"has {', '.join(names)}" if names else "lists no model"
        raise ServerError(f"The server at {config.base_url} {has}: name one with `--served_model`.")
    return names[0]


def describe_error(error: Exception) -> str:
    """What went wrong with a request, on one line. The key is not in it, even if the server sent it back."""
    text = " ".join(str(error).split())
    status = getattr(error, "status_code", None)
    if status is None:
        return f"{type(error).__name__}: {text[:300]}"
    for header in ("x-api-key", "authorization"):
        secret = error.request.headers.get(header, "").removeprefix("Bearer ")
        text = text.replace(secret, "***") if secret not in ("", _NO_KEY) else text
    return f"status {status}: {text[:300]}"


class TokenServer:
    """
    Continues token ids with a model behind a server.

    A prompt is sent as ids, and the ids of its completion come back, where the server knows both (vLLM, SGLang).
    Otherwise the prompt is sent as text, if that has the very same ids, and the ids are recovered from the text that
    comes back, if they are as many as the server has counted and have that text, and it is known which id ended them.
    What fails these checks is left out and counted: a token that was not sampled must not be rewarded. Two ways to
    split a text into as many tokens cannot be told apart by them; only ids from the server are certain.

    Each completion is a request of its own with a seed of its own. Not every server knows `n`, and one that keeps
    prompts in its cache reads them only once.

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
        self._refusal = "nothing"

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
                Greatest number of tokens to generate for each.
            temperature (`float`, *optional*, defaults to `0.0`):
                Sampling temperature; `0.0` decodes greedily.
            top_p (`float`, *optional*, defaults to `1.0`):
                Probability mass to sample from.
            seed (`int`, *optional*, defaults to `0`):
                Seed. Whether the same seed gives the same text is up to the server.
            desc (`str`, *optional*):
                Title of a progress bar; none where `None`.

        Returns:
            `list[list[int]]`: The new ids of each prompt, up to and with EOS. Without EOS at the end, `max_new_tokens`
            cut them off. Empty where they could not be had; `left_out` counts these by reason.

        Raises:
            [`ServerError`]: If the server cannot be reached, or does not answer as it should.
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
        # In this thread alone: tokenizers are not made for several
        completions = [self._read(prompt, responses.get(index)) for index, prompt in enumerate(prompts)]
        if len(completions) >= _MANY and not any(completions):
            raise ServerError(
                f"Of {len(completions)} completions from {self.config.base_url} none can be used: "
                f"{dict(self.left_out)} in this run. The last that the server refused was because of: {self._refusal}."
            )
        return completions

    def _read(self, prompt: list[int] | str | None, response) -> list[int]:
        if prompt is None:
            reason = "prompt has no text with the same ids"
        elif response is None:
            reason = "refused by the server"
        elif (ids := self._read_ids(response)) is None:
            reason = "ids cannot be recovered exactly"
        else:
            return ids
        self.left_out[reason] += 1
        return []

    def _knows_token_ids(self, client, model: str, prompt_ids: Sequence[list[int]]) -> bool:
        """Whether the server takes token ids, and the wish to get some back. One token is generated to find out."""
        settings = {"max_tokens": 1, "temperature": 0.0}
        shortest_first = sorted(prompt_ids, key=len)
        if self._complete(client, model, shortest_first[0], True, **settings) is not None:
            return True
        # Some servers fail on an empty text
        text = next(filter(None, map(self._as_text, shortest_first)), None)
        if text is None or self._complete(client, model, text, False, **settings) is not None:
            return False
        raise ServerError(
            f"The server at {self.config.base_url} takes prompts neither as token ids nor as text on /completions "
            f"(it said: {self._refusal})."
        )

    def _complete(self, client, model: str, prompt: list[int] | str, with_ids: bool, **settings):
        """A response, or `None` where the server takes the request for a bad one."""
        import openai

        extra = {"return_token_ids": True} if with_ids else {}
        # After a body that is no completion the SDK does not ask again
        for _ in range(self.config.max_retries + 1):
            try:
                response = client.completions.create(
                    model=model, prompt=prompt, extra_body={**extra, **(self.config.extra_body or {})}, **settings
                )
                # The SDK hands on a web page as a text
                if not isinstance(response, str) and response.choices:
                    return response
                broken = "no completion in it"
            except openai.APIError as error:
                if getattr(error, "status_code", None) in _BAD_REQUEST:
                    self._refusal = describe_error(error)
                    return None
                raise ServerError(
                    f"The server at {self.config.base_url} does not answer ({describe_error(error)}). Finished shards "
                    "are saved: the same command goes on from there."
                ) from None
            except ValueError as error:
                broken = error
        raise ServerError(
            f"The server at {self.config.base_url} answers with something else than a completion ({broken})."
        )

    def _as_text(self, prompt_ids: list[int]) -> str | None:
        """A text that the server's tokenizer, the same as ours, turns into these ids."""
        text = self.processing_class.decode(prompt_ids)
        bos = self.processing_class.bos_token
        # A tokenizer that adds BOS by itself would do so twice
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
            return None if None in ids else ids
        ids = list(self.processing_class(choice.text, add_special_tokens=False)["input_ids"])
        if choice.finish_reason == "stop":
            ids.append(self._end(choice))
        exact = None not in ids and counted == len(ids) and self._decode(ids) == choice.text
        return ids if exact else None

    def _end(self, choice) -> int | None:
        """The id that ended a completion, `None` where it cannot be told, or was none of the model's ends."""
        extra = choice.model_extra or {}
        # SGLang's name, and vLLM's, which is null where it was the tokenizer's own EOS
        end = extra.get("matched_stop", extra.get("stop_reason"))
        stops_at_text = "stop" in (self.config.extra_body or {})
        if end is None and not stops_at_text and (len(self.ends) == 1 or "stop_reason" in extra):
            end = self.processing_class.eos_token_id
        return end if end in self.ends else None

    def _decode(self, ids: list[int]) -> str:
        return self.processing_class.decode(ids, skip_special_tokens=True)


def _seed_of(seed: int, index: int) -> int:
    # Neighbouring seeds of a run must not give neighbouring completions of another
    return int.from_bytes(hashlib.sha256(f"{seed} {index}".encode()).digest()[:4], "big") >> 1
