"""
A local server with the OpenAI wire format, for the real `openai` SDK. The test decides on its answers as token ids, so
that what the client recovers can be compared with what was really generated.
"""

import asyncio
import json
import re
import threading
from collections import deque
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rlmec_trl.tasks.arithmetic import rewrite_minimally


# The fields that a server accepts if it only supports text; it rejects any other
_TEXT_FIELDS = {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop"}

KINDS = ("vllm", "no eos", "old", "text only")


@dataclass
class Exchange:
    """A request, and the ids that the server generated for it, EOS included."""

    path: str
    headers: dict
    body: dict
    prompt_ids: list[int] | None = None
    said: list[int] | None = None


@dataclass
class FakeServer:
    """
    An OpenAI-compatible server in a thread, as a context manager.

    Args:
        tokenizer:
            The served model's tokenizer.
        complete:
            What the model generates: called with the ids of a prompt and the request's body, returns the ids of the
            completion, including the one that ends it. They are truncated at `max_tokens`.
        score:
            What the model gives for the log-probabilities of a prompt's tokens: called with its ids, returns one
            value for each. If `None`, the server ignores `echo`, and returns those of the generated token.
        chat:
            The same for chats: called with the request's body, returns the answer's text and its finish reason.
        kind:
            `"vllm"`: prompts may be ids, and ids are returned if requested. `"no eos"`: the same, but without EOS.
            `"old"`: prompts may be ids, but none are returned. `"text only"`: prompts are text, and an unknown field
            has the request rejected.
        ends:
            Ids that end a completion, besides the tokenizer's EOS.
        key:
            The key that every request must have, if any.
        models:
            Names of the models. If `None`, the address that should list them returns a web page.
        refuse:
            Called with the body of a request, returns whether it is rejected with status 400, or the message.
        together:
            Hold requests back until so many are in flight at the same time.
    """

    tokenizer: object
    complete: object = None
    score: object = None
    chat: object = None
    kind: str = "vllm"
    ends: tuple = ()
    key: str | None = None
    models: tuple | None = ("policy",)
    refuse: object = None
    together: int = 0
    faults: deque = field(default_factory=deque)
    exchanges: list = field(default_factory=list)
    most_at_once: int = 0

    def __enter__(self):
        routes = [
            Route("/v1/models", self._list_models),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/chat/completions", self._chat_completions, methods=["POST"]),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes), host="127.0.0.1", port=0, log_level="critical", timeout_graceful_shutdown=1
        )
        self._under_way = 0
        self._all_together = asyncio.Event()
        self._server = uvicorn.Server(config)
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._started.wait(30), "the server does not start"
        return self

    def __exit__(self, *exception):
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive(), "the server does not stop"

    async def _serve(self):
        async def tell():
            while not self._server.started:
                await asyncio.sleep(0.005)
            self.port = self._server.servers[0].sockets[0].getsockname()[1]
            self._started.set()

        await asyncio.gather(self._server.serve(), tell())

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def asked(self, path="/v1/completions"):
        """What was asked, in order, without what a client asks to find out what the server can do."""
        return [exchange for exchange in self.exchanges if exchange.path == path and not _is_trial(exchange.body)]

    def said(self, path="/v1/completions"):
        """What was said to whom: the ids of the completion by those of the prompt and the seed."""
        return {
            (tuple(exchange.prompt_ids), exchange.body["seed"]): exchange.said
            for exchange in self.asked(path)
            if exchange.said is not None
        }

    # --- Routes ------------------------------------------------------------------------------------------------------

    async def _list_models(self, request: Request):
        if (refusal := self._check_key(request)) is not None:
            return refusal
        if self.models is None:
            return _FAULTS["HTML"](None)
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "test"} for name in self.models]
        return JSONResponse({"object": "list", "data": data})

    async def _completions(self, request: Request):
        return await self._answer(request, self._complete)

    async def _chat_completions(self, request: Request):
        return await self._answer(request, self._reply)

    async def _answer(self, request: Request, make):
        exchange = Exchange(request.url.path, dict(request.headers), await request.json())
        self.exchanges.append(exchange)
        if (refusal := self._check_key(request)) is not None:
            return refusal
        if exchange.body["model"] not in (self.models or ()):
            return _error(404, f"The model {exchange.body['model']!r} does not exist.")
        if self.refuse is not None and (refused := self.refuse(exchange.body)):
            words = refused if isinstance(refused, str) else "This model's maximum context length is 8 tokens."
            return _error(400, words)
        if _is_trial(exchange.body):
            return make(exchange)
        self._under_way += 1
        try:
            self.most_at_once = max(self.most_at_once, self._under_way)
            if self.together:
                if self._under_way == self.together:
                    self._all_together.set()
                await asyncio.wait_for(self._all_together.wait(), 20)
            # Let all that has arrived be counted
            await asyncio.sleep(0.002)
            fault = self.faults.popleft() if self.faults else None
            response = make(exchange)
            if fault is None:
                return response
            exchange.said = None
            return _FAULTS[fault](response)
        finally:
            self._under_way -= 1

    def _check_key(self, request: Request):
        found = request.headers.get("authorization", "")
        if self.key is None or found == f"Bearer {self.key}":
            return None
        return _error(401, f"Incorrect API key provided: {found.removeprefix('Bearer ')}.")

    def _complete(self, exchange: Exchange):
        body = exchange.body
        if self.kind == "text only" and not body.keys() <= _TEXT_FIELDS:
            return _error(422, f"Unexpected fields in the request: {body.keys() - _TEXT_FIELDS}")
        prompt = body["prompt"]
        if isinstance(prompt, list):
            if self.kind == "text only":
                return _error(400, "prompt must be a string.")
            prompt_ids = prompt
        else:
            prompt_ids = self.tokenizer(prompt)["input_ids"]
        if body.get("echo"):
            return self._echo(prompt_ids, body)
        ids = list(self.complete(prompt_ids, body))[: body["max_tokens"]]
        ends = (self.tokenizer.eos_token_id, *self.ends)
        ended = bool(ids) and ids[-1] in ends
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        if (stop := body.get("stop")) is not None and stop in text:
            # The token that completes the stop string was generated and counts; the text ends before it
            size = next(size for size in range(len(ids)) if stop in self.tokenizer.decode(ids[: size + 1]))
            ids, text, ended = ids[: size + 1], text[: text.index(stop)], True
            matched = stop
        else:
            matched = ids[-1] if ended else None
        exchange.prompt_ids, exchange.said = prompt_ids, ids
        choice = {
            "index": 0,
            "text": text,
            "finish_reason": "stop" if ended else "length",
            "logprobs": None,
        }
        # What stopped it: each server has its own field for that, which vLLM leaves empty for the tokenizer's own EOS
        if self.kind == "no eos":
            choice["matched_stop"] = matched
        elif self.kind != "text only":
            choice["stop_reason"] = None if matched == self.tokenizer.eos_token_id else matched
        if body.get("return_token_ids") and self.kind in ("vllm", "no eos"):
            choice["token_ids"] = ids[:-1] if self.kind == "no eos" and ids[-1:] and ids[-1] in ends else ids
        return JSONResponse(
            {"id": "c", "object": "text_completion", "created": 0, "model": body["model"], "choices": [choice]}
            | {"usage": _usage(len(prompt_ids), len(ids))}
        )

    def _echo(self, prompt_ids: list[int], body: dict):
        """The prompt with its log-probabilities, and EOS, the only token that is generated."""
        # Some servers leave EOS out
        generated = [] if self.kind == "no eos" else [-0.5]
        text, token_logprobs = "", generated
        if self.score is not None:
            text, token_logprobs = self.tokenizer.decode(prompt_ids), [*self.score(prompt_ids), *generated]
        logprobs = None
        if body.get("logprobs"):
            logprobs = {"token_logprobs": token_logprobs, "tokens": ["?"] * len(token_logprobs)}
        choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": logprobs}
        return _NaNResponse(
            {"id": "c", "object": "text_completion", "created": 0, "model": body["model"], "choices": [choice]}
            | {"usage": _usage(len(prompt_ids), 1)}
        )

    def _reply(self, exchange: Exchange):
        text, finish_reason = self.chat(exchange.body)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}
        return JSONResponse(
            {"id": "c", "object": "chat.completion", "created": 0, "model": exchange.body["model"]}
            | {"choices": [choice], "usage": _usage(400, 60)}
        )


# --- What the model answers ------------------------------------------------------------------------------------------


def speak_as(policy, tokenizer):
    """`complete` of a server with a local model: greedy, or sampled with the seed of the request."""
    import torch

    from rlmec_trl.generation.inference import generate_ids

    def complete(prompt_ids, body):
        settings = {}
        if body["temperature"] > 0:
            settings = {"do_sample": True, "temperature": body["temperature"], "top_p": body["top_p"], "top_k": 0}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(body.get("seed", 0))
            (ids,) = generate_ids(policy, tokenizer, [prompt_ids], body["max_tokens"], **settings)
        return ids

    return complete


def score_as(model):
    """`score` of a server with a local model: a full softmax in float32."""
    import torch

    def score(prompt_ids):
        with torch.no_grad():
            logps = model(torch.tensor([prompt_ids])).logits[0].float().log_softmax(dim=-1)
        return [None, *(logps[position, token].item() for position, token in enumerate(prompt_ids[1:]))]

    return score


def memorize(model, tokenizer, pairs, num_steps=200):
    """Train a tiny model until it continues prompts as given and then generates EOS."""
    import torch
    from trl.trainer.utils import pad

    from rlmec_trl.data.tokens import encode_completion

    rows, labels = [], []
    for prompt, completion in pairs:
        prompt_ids, completion_ids = tokenizer(prompt)["input_ids"], encode_completion(tokenizer, completion)
        rows.append(torch.tensor(prompt_ids + completion_ids))
        labels.append(torch.tensor([-100] * len(prompt_ids) + completion_ids))
    input_ids, labels = pad(rows, padding_value=tokenizer.pad_token_id), pad(labels, padding_value=-100)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(num_steps):
        model(input_ids=input_ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def parts_of(body):
    """The problem, reference, attempt and numbered steps in a request to a teacher."""
    user = body["messages"][-1]["content"]
    return dict(re.findall(r"<(problem|reference_solution|attempt|steps)>\n(.*?)\n</\1>", user, re.DOTALL))


def teach(body):
    """`chat` of a perfect teacher, in the layout that is requested."""
    parts = parts_of(body)
    error_step, rewrite = rewrite_minimally(parts["problem"], parts["reference_solution"], parts["attempt"])
    if "response_format" in body:
        return json.dumps({"error_step": error_step, "rewrite": rewrite}), "stop"
    return f"{'none' if error_step == -1 else error_step}\n{rewrite}", "stop"


# --- Faults ----------------------------------------------------------------------------------------------------------


class _Reset(Response):
    """Half of the response, then the connection is closed."""

    async def __call__(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body[: len(self.body) // 2], "more_body": True})


def _error(status, message, **headers):
    return JSONResponse({"error": {"message": message, "type": "error"}}, status_code=status, headers=headers)


# Clients wait as long as the headers say: here, not at all
_FAULTS = {
    "429": lambda response: _error(429, "Slow down.", **{"retry-after": "1", "retry-after-ms": "1"}),
    "500": lambda response: _error(500, "Something broke.", **{"retry-after-ms": "1"}),
    "401": lambda response: _error(401, "Unauthorized."),
    "reset": lambda response: _Reset(response.body, media_type="application/json"),
    "broken JSON": lambda response: Response(response.body[:-20], media_type="application/json"),
    "HTML": lambda response: Response("<html>Welcome</html>", media_type="text/html"),
    "no choices": lambda response: JSONResponse({"object": "error", "message": "overloaded"}),
}


class _NaNResponse(JSONResponse):
    """JSON with the literal NaN, which Python's own encoder writes."""

    def render(self, content):
        return json.dumps(content).encode()


def _is_trial(body):
    return body.get("max_tokens") == 1 and "seed" not in body and "echo" not in body


def _usage(prompt_tokens, completion_tokens):
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}
