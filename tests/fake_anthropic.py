"""
The part of Anthropic's API that a teacher needs, on a local port: messages, batches of messages, and token counts.

It corrects attempts at the built-in task, or gives the answers of a test, fails on demand, reports requests that the
real API would reject, and counts what it would have billed.
"""

import asyncio
import json
import random
import re
import socket
import threading
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rlmec_trl.tasks.arithmetic import rewrite_minimally


# Easy to find in places where it must not be
KEY = "sk-ant-test-0123456789abcdef"

# What a row may get instead of a correct answer: failures, which bill nothing ...
STATUSES = {
    "400": "invalid_request_error",
    "401": "authentication_error",
    "404": "not_found_error",
    "429": "rate_limit_error",
    "500": "api_error",
    "529": "overloaded_error",
}
BROKEN = ("cut off", "reset", "broken json", "not json", "no message")
UNANSWERED_IN_BATCH = ("errored", "expired", "canceled")
# ... or answers that are billed and unusable
USELESS = ("refusal", "max_tokens", "malformed", "wrong")


class CutOff(Response):
    """Announces a whole body, and closes the connection after half of it."""

    async def __call__(self, scope, receive, send):
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body[: len(self.body) // 2], "more_body": True})


class Reset(Response):
    """Resets the connection without a response. Only the server's own transport can do that."""

    async def __call__(self, scope, receive, send):
        receive.__self__.transport.abort()


@dataclass
class Batch:
    """A batch: its results, and the number of polls until it has ended."""

    id: str
    results: list[dict]
    looks_left: int


@dataclass
class FakeAnthropic:
    """
    The server, which runs in a thread while the context is open. Tests set its faults and read its counters.

    Args:
        fault (`Callable`):
            What fails for a row, given its user message and how often it was requested before: one of `STATUSES`,
            `BROKEN`, `UNANSWERED_IN_BATCH`, `USELESS`, `"slow"`, or `None` for nothing.
        faults (`dict`):
            What fails for the n-th request of a kind, as `{("create", 0): "500"}`, or with all of them, as
            `{"list": "500"}`: a status, for `"create"` also `"500 but created"`, `"reset but created"` and
            `"all expired"`, for `"results"` also `"cut off"`.
        delay (`Callable`):
            Seconds until a row is answered, given its user message.
        looks (`int`):
            How often a batch is polled before it has ended.
        chunk_delay (`float`):
            Seconds between two lines of results, and before the response to the creation of a batch.
        echo_key (`bool`):
            Whether error messages repeat the key.
        structured (`bool`):
            Whether requests must ask for JSON.
        answer (`Callable`):
            The fields of an answer, given the user message and whether the answer is to be wrong.
    """

    fault: object = lambda user, attempt: None
    faults: dict = field(default_factory=dict)
    delay: object = lambda user: 0.0
    looks: int = 1
    chunk_delay: float = 0.0
    echo_key: bool = False
    structured: bool = True
    answer: object = lambda user, wrong: correct_attempt(user, wrong)

    def __post_init__(self):
        # User messages in the order of the requests, and how often each got an answer that is billed
        self.asked: list[str] = []
        self.paid: Counter[str] = Counter()
        # Billed tokens of each kind, separately for batches
        self.tokens: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
        self.requests: Counter[str] = Counter()
        # The real API keeps them for some weeks
        self.keeps_results = True
        # Number of result lines sent
        self.num_lines = 0
        # How many more may be sent, in a list that the responses share: see `allow_lines`
        self._lines_left = [float("inf")]
        # Requests that the real API would have rejected
        self.complaints: list[str] = []
        self.batches: dict[str, Batch] = {}
        self._cached: set[str] = set()
        self._times_asked: Counter[str] = Counter()

    # --- Running -----------------------------------------------------------------------------------------------------

    def __enter__(self):
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        settings = uvicorn.Config(self._app(), http="h11", log_level="critical", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def wait_until(self, condition, seconds=600.0):
        """Wait until a condition holds. The limit is only for a test that would never end."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "what a test waits for does not happen"
            time.sleep(0.001)

    def allow_lines(self, number):
        """
        Send so many lines of results in the responses that begin from now on. Earlier ones get no more: their client
        may be dead, which the server notices late.
        """
        self._lines_left = [number]

    def _app(self):
        return Starlette(
            routes=[
                Route("/v1/messages", self._messages, methods=["POST"]),
                Route("/v1/messages/count_tokens", self._count_tokens, methods=["POST"]),
                Route("/v1/messages/batches", self._create, methods=["POST"]),
                Route("/v1/messages/batches", self._list, methods=["GET"]),
                Route("/v1/messages/batches/{id}", self._retrieve, methods=["GET"]),
                Route("/v1/messages/batches/{id}/results", self._results, methods=["GET"]),
            ]
        )

    def _begin(self, kind, request):
        """Count a request and check its headers. Returns the fault it gets, and the error to send, if any."""
        fault = self.faults.get((kind, self.requests[kind]), self.faults.get(kind))
        self.requests[kind] += 1
        # The API accepts both, and which of them the client sends depends on its version
        keys = {request.headers.get("x-api-key"), request.headers.get("authorization", "").removeprefix("Bearer ")}
        if KEY not in keys:
            return fault, self._complain(request, "no key")
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", request.headers.get("anthropic-version", "")):
            return fault, self._complain(request, "no anthropic-version")
        return fault, self._error(request, fault) if fault in STATUSES else None

    def _complain(self, request, complaint):
        self.complaints.append(complaint)
        return self._error(request, "400", complaint)

    def _error(self, request, status, message="It was to be expected."):
        if self.echo_key:
            message += f" You sent the key {KEY}."
        body = {"type": "error", "error": {"type": STATUSES[status], "message": message}, "request_id": "req_1"}
        # Without it, the client would pause for half a second
        return JSONResponse(body, int(status), {"retry-after": "0.01"})

    # --- Messages ----------------------------------------------------------------------------------------------------

    async def _messages(self, request: Request):
        params = await request.json()
        _, refused = self._begin("messages", request)
        if refused is not None:
            return refused
        complaint = self._find_fault(params)
        if complaint is not None:
            return self._complain(request, complaint)
        user = params["messages"][0]["content"]
        fault = self._take(user)
        if fault in STATUSES:
            return self._error(request, fault)
        if fault == "reset":
            return Reset()
        if fault == "not json":
            return Response("<html>Please log in.</html>", media_type="text/html")
        if fault == "no message":
            return JSONResponse({"status": "ok"})
        if fault == "cut off":
            return CutOff(json.dumps(self._message(params, None)), media_type="application/json")
        if fault == "broken json":
            return Response(json.dumps(self._message(params, None))[:-20], media_type="application/json")
        await asyncio.sleep(self.delay(user) + (0.2 if fault == "slow" else 0.0))
        message = self._message(params, fault)
        self._bill(params, message, in_batch=False)
        return JSONResponse(message)

    async def _count_tokens(self, request: Request):
        params = await request.json()
        _, refused = self._begin("count_tokens", request)
        if refused is not None:
            return refused
        complaint = self._find_fault({**params, "max_tokens": 1})
        if complaint is not None or "max_tokens" in params:
            return self._complain(request, complaint or "max_tokens: Extra inputs are not permitted")
        texts = (params["system"][0]["text"], params["messages"][0]["content"])
        return JSONResponse({"input_tokens": sum(map(count_tokens, texts))})

    def _take(self, user):
        self.asked.append(user)
        self._times_asked[user] += 1
        return self.fault(user, self._times_asked[user] - 1)

    def _find_fault(self, params):
        """What the real API would refuse about a request, or what a cheap one would not leave out."""
        try:
            known = {"model", "max_tokens", "system", "messages", "output_config"}
            if not params.keys() <= known:
                return f"unknown fields {params.keys() - known}"
            if not isinstance(params["model"], str) or type(params["max_tokens"]) is not int:
                return "model or max_tokens of a wrong type"
            (block,) = params["system"]
            if block["type"] != "text" or block["cache_control"] != {"type": "ephemeral"}:
                return f"the system prompt is not marked for the cache: {block}"
            (message,) = params["messages"]
            if message["role"] != "user" or not isinstance(message["content"], str):
                return f"not one message of the user: {message}"
            self.answer(message["content"], False)
            config = params.get("output_config", {})
            if config.get("effort", "low") not in ("low", "medium", "high", "xhigh", "max"):
                return f"unknown effort {config['effort']}"
            if ("format" in config) != self.structured:
                return f"structured output is {config.get('format')}"
            if self.structured:
                schema = config["format"]["schema"]
                strict = schema["additionalProperties"] is False and set(schema["required"]) == set(
                    schema["properties"]
                )
                if config["format"]["type"] != "json_schema" or not strict:
                    return f"not a schema that the API takes: {config['format']}"
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    def _message(self, params, fault):
        user = params["messages"][0]["content"]
        fields = self.answer(user, fault == "wrong")
        text = json.dumps(fields)
        if not self.structured:
            text = "\n".join("none" if value == -1 else str(value) for value in fields.values())
        if fault in ("malformed", "max_tokens"):
            text = text[: len(text) // 2]
        content = [{"type": "text", "text": text}]
        if fault == "refusal":
            content = []
        elif zlib.crc32(user.encode()) % 2:
            content.insert(0, {"type": "thinking", "thinking": "Let me see ...", "signature": "c2ln"})
        system = count_tokens(params["system"][0]["text"])
        is_cached = params["system"][0]["text"] in self._cached
        return {
            "id": f"msg_{len(self.asked)}",
            "type": "message",
            "role": "assistant",
            "model": params["model"],
            "content": content,
            "stop_reason": fault if fault in ("refusal", "max_tokens") else "end_turn",
            "stop_sequence": None,
            "usage": {
                "input_tokens": count_tokens(user),
                "output_tokens": count_tokens(text),
                "cache_creation_input_tokens": 0 if is_cached else system,
                "cache_read_input_tokens": system if is_cached else 0,
            },
        }

    def _bill(self, params, message, in_batch):
        self._cached.add(params["system"][0]["text"])
        self.paid[params["messages"][0]["content"]] += 1
        self.tokens[in_batch].update(message["usage"])

    # --- Batches -----------------------------------------------------------------------------------------------------

    async def _create(self, request: Request):
        requests = (await request.json())["requests"]
        fault, refused = self._begin("create", request)
        if refused is not None:
            return refused
        ids = [each["custom_id"] for each in requests]
        complaints = [self._find_fault(each["params"]) for each in requests]
        complaints += [f"custom_id {each!r}" for each in ids if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", each)]
        complaints += [] if 0 < len(ids) == len(set(ids)) else ["custom_ids are missing, or not unique"]
        if any(complaints):
            return self._complain(request, next(filter(None, complaints)))
        batch = self.add_batch(requests, all_expired=fault == "all expired")
        await asyncio.sleep(self.chunk_delay)
        if fault == "500 but created":
            return self._error(request, "500")
        if fault == "reset but created":
            return Reset()
        return JSONResponse(self._view(batch))

    def add_batch(self, requests, all_expired=False):
        """Take a batch in and answer it. What it costs is due from here on, whether it is fetched or not."""
        return self._keep([self._result(each, all_expired) for each in requests])

    def add_batch_of_others(self, size):
        """A batch that another program with the same key has submitted."""
        self._keep([{"custom_id": f"theirs-{index}", "result": {"type": "expired"}} for index in range(size)])

    def _keep(self, results):
        # Ids are not ordered by age, and results come in any order
        rng = random.Random(len(self.batches))
        batch = Batch(f"msgbatch_{rng.getrandbits(80):020x}", rng.sample(results, len(results)), self.looks)
        self.batches[batch.id] = batch
        return batch

    def _result(self, request, all_expired):
        params = request["params"]
        fault = self._take(params["messages"][0]["content"])
        if all_expired or fault in ("expired", "canceled"):
            result = {"type": "expired" if all_expired else fault}
        elif fault == "errored":
            error = {"type": "error", "error": {"type": "api_error", "message": "Alas."}, "request_id": "req_1"}
            result = {"type": "errored", "error": error}
        else:
            message = self._message(params, fault)
            self._bill(params, message, in_batch=True)
            result = {"type": "succeeded", "message": message}
        return {"custom_id": request["custom_id"], "result": result}

    def _view(self, batch):
        ended = batch.looks_left < 0
        kinds = Counter(result["result"]["type"] for result in batch.results) if ended else Counter()
        counts = {name: kinds[name] for name in ("succeeded", "errored", "canceled", "expired")}
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": {"processing": 0 if ended else len(batch.results), **counts},
            "created_at": "2026-01-01T00:00:00Z",
            "expires_at": "2026-01-02T00:00:00Z",
            "ended_at": "2026-01-01T01:00:00Z" if ended else None,
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": f"{self.url}/v1/messages/batches/{batch.id}/results"
            if ended and self.keeps_results
            else None,
        }

    async def _list(self, request: Request):
        _, refused = self._begin("list", request)
        if refused is not None:
            return refused
        newest_first = list(reversed(self.batches.values()))
        limit = int(request.query_params.get("limit", 20))
        after = request.query_params.get("after_id")
        start = 1 + [batch.id for batch in newest_first].index(after) if after else 0
        page = newest_first[start : start + limit]
        return JSONResponse(
            {
                "data": [self._view(batch) for batch in page],
                "has_more": len(newest_first) > start + limit,
                "first_id": page[0].id if page else None,
                "last_id": page[-1].id if page else None,
            }
        )

    async def _retrieve(self, request: Request):
        _, refused = self._begin("retrieve", request)
        if refused is not None:
            return refused
        batch = self.batches.get(request.path_params["id"])
        if batch is None:
            return self._error(request, "404")
        batch.looks_left -= 1
        return JSONResponse(self._view(batch))

    async def _results(self, request: Request):
        fault, refused = self._begin("results", request)
        if refused is not None:
            return refused
        batch = self.batches[request.path_params["id"]]
        lines = [json.dumps(result) + "\n" for result in batch.results]
        if fault == "cut off":
            return CutOff("".join(lines), media_type="application/x-jsonl")

        async def stream():
            left = self._lines_left
            for line in lines:
                while not left[0]:
                    await asyncio.sleep(0.001)
                left[0] -= 1
                self.num_lines += 1
                yield line
                await asyncio.sleep(self.chunk_delay)

        return StreamingResponse(stream(), media_type="application/x-jsonl")


def count_tokens(text):
    """Number of tokens for the bill: any tokenizer will do."""
    return len(text) // 4 + 1


def correct_attempt(user, wrong):
    """The edit of an attempt, in the fields of the answer."""
    error_step, rewrite = rewrite_minimally(*read_row(user))
    # No answer of this task has four digits
    return {"error_step": error_step, "rewrite": re.sub(r"\d+$", "1234", rewrite) if wrong else rewrite}


def read_row(user):
    """Problem, reference and attempt of a request."""
    names = ("problem", "reference_solution", "attempt")
    found = [re.search(rf"<{name}>\n(.*?)\n</{name}>", user, re.DOTALL) for name in names]
    if None in found:
        raise ValueError(f"no row in {user!r}")
    return tuple(match[1] for match in found)
