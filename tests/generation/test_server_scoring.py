"""Log-probabilities of given tokens from a model on a server, over real HTTP, and servers that do not give them."""

import copy
import json
import math

import pytest
from starlette.responses import JSONResponse

from rlmec_trl.generation.inference import completion_logps
from rlmec_trl.generation.server import ServerConfig, ServerError, TokenServer
from tests.fake_openai import FakeServer, score_as


# The others only accept text
KINDS = ("vllm", "no eos", "old")


@pytest.fixture
def model(make_policy):
    return make_policy(sharpness=20.0, mixing=20.0, num_hidden_layers=2).eval()


@pytest.fixture
def sequences(make_rows, tokenizer):
    """Prompts and completions, one of them down to EOS alone and one without any token."""
    rows = make_rows(9)
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    completions = [row["completion_ids"] for row in rows]
    return prompts, [*completions[:7], completions[7][-1:], []]


def connect(server, **config):
    config = {"base_url": server.url, "max_retries": 2} | config
    return TokenServer(ServerConfig(**config), server.tokenizer, {server.tokenizer.eos_token_id})


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_those_of_the_model_in_this_process(kind, model, sequences, tokenizer):
    expected = completion_logps(model, tokenizer, *sequences)
    with FakeServer(tokenizer, score=score_as(copy.deepcopy(model)), kind=kind) as server:
        logps = connect(server).completion_logps(*sequences)
        assert len(server.exchanges) == 8, "a completion without tokens needs no request, and nothing is tried out"
    assert list(map(len, logps)) == list(map(len, sequences[1]))
    for row, others in zip(logps, expected, strict=True):
        assert row == pytest.approx(others, abs=1e-5)


def test_every_request_asks_for_the_raw_distribution_of_the_ids_that_it_sends(model, sequences, tokenizer):
    with FakeServer(tokenizer, score=score_as(model)) as server:
        connect(server, extra_body={"top_k": -1}).completion_logps(*sequences)
        bodies = [exchange.body for exchange in server.exchanges]
    sent = [prompt + completion for prompt, completion in zip(*sequences, strict=True) if completion]
    assert sorted(body["prompt"] for body in bodies) == sorted(sent)
    for body in bodies:
        assert body["echo"] is True and body["logprobs"] == 1
        assert body["max_tokens"] == 1 and body["temperature"] == 1.0
        assert body["top_k"] == -1


@pytest.mark.parametrize("concurrency", [1, 4])
def test_concurrent_requests_keep_the_order_and_their_limit(concurrency, sequences, tokenizer):
    prompts, completions = sequences[0] * 3, sequences[1] * 3

    def score(ids):
        return [None, *(-float(token) for token in ids[1:])]

    with FakeServer(tokenizer, score=score, together=concurrency) as server:
        logps = connect(server, concurrency=concurrency).completion_logps(prompts, completions)
        assert server.most_at_once == concurrency
    assert logps == [[-float(token) for token in ids] for ids in completions]


def test_no_sequences_send_no_requests(tokenizer):
    with FakeServer(tokenizer) as server:
        assert connect(server).completion_logps([], []) == []
        assert connect(server).completion_logps([[1]], [[]]) == [[]]
        assert not server.exchanges


@pytest.mark.parametrize("fault", ["429", "500", "reset", "broken JSON", "no choices"])
def test_a_request_that_fails_is_sent_again(fault, model, sequences, tokenizer):
    with FakeServer(tokenizer, score=score_as(model)) as server:
        server.faults.extend([fault] * 2)
        logps = connect(server).completion_logps(*sequences)
    expected = completion_logps(model, tokenizer, *sequences)
    assert logps[0] == pytest.approx(expected[0], abs=1e-5)


# --- Servers that do not give them -----------------------------------------------------------------------------------


def spoiled(change):
    """`score` of a server that changes the log-probabilities of the last tokens."""
    return lambda ids: [None, *([-1.0] * (len(ids) - 2)), change]


@pytest.mark.parametrize(
    "score, message",
    [
        (None, r"returned 1 log-probabilities for a sequence of \d+ tokens.*`echo`.*vLLM and SGLang"),
        (lambda ids: [], r"returned 1 log-probabilities"),
        (lambda ids: [None] + [-1.0] * (len(ids) - 3), r"returned \d+ log-probabilities for a sequence of"),
        (lambda ids: [None] + [-1.0] * (len(ids) + 1), r"returned \d+ log-probabilities for a sequence of"),
        (spoiled(None), r"returned null for token \d+ of a sequence of \d+ tokens"),
        (spoiled(math.nan), r"returned NaN for token"),
        (spoiled(-math.inf), r"returned -Infinity for token"),
        (spoiled("-1.0"), r'returned "-1.0" for token'),
        (spoiled(0.5), r"returned 0.5 for token \d+ .* not a log-probability"),
    ],
    ids=["no echo", "none", "too few", "too many", "null", "nan", "infinite", "text", "a probability"],
)
def test_a_server_that_does_not_return_log_probabilities_of_the_prompt_is_refused(
    score, message, sequences, tokenizer
):
    with FakeServer(tokenizer, score=score) as server, pytest.raises(ServerError, match=message):
        connect(server).completion_logps(*sequences)


@pytest.mark.parametrize("logprobs", [None, {"content": []}, [-1.0, -1.0]], ids=["null", "of chats", "a list"])
def test_log_probabilities_in_another_form_are_refused(logprobs, sequences, tokenizer, monkeypatch):
    echo = FakeServer._echo

    def changed(self, prompt_ids, body):
        content = json.loads(echo(self, prompt_ids, body).body)
        content["choices"][0]["logprobs"] = logprobs
        return JSONResponse(content)

    monkeypatch.setattr(FakeServer, "_echo", changed)
    with FakeServer(tokenizer) as server, pytest.raises(ServerError, match="returned 0 log-probabilities"):
        connect(server).completion_logps(*sequences)


@pytest.mark.parametrize("change", [lambda ids: [0, *ids], lambda ids: ids[1:]], ids=["adds BOS", "truncates"])
def test_a_server_that_reads_other_tokens_than_were_sent_is_refused(change, model, sequences, tokenizer, monkeypatch):
    # With one token more and no generated one, the number of log-probabilities is as expected
    echo = FakeServer._echo
    monkeypatch.setattr(FakeServer, "_echo", lambda self, ids, body: echo(self, change(ids), body))
    with (
        FakeServer(tokenizer, score=score_as(model), kind="no eos") as server,
        pytest.raises(ServerError, match=r"read \d+ tokens where \d+ were sent"),
    ):
        connect(server).completion_logps(*sequences)


def test_rounding_above_zero_is_certainty(sequences, tokenizer):
    with FakeServer(tokenizer, score=spoiled(1e-6)) as server:
        logps = connect(server).completion_logps(*sequences)
    assert all(row[-1] == 0.0 for row in logps if row)


def test_a_refused_sequence_is_an_error_with_the_servers_reason(model, sequences, tokenizer):
    with FakeServer(tokenizer, score=score_as(model), refuse=lambda body: len(body["prompt"]) > 40) as server:
        with pytest.raises(ServerError, match=r"refused to score a sequence of \d+ tokens .*maximum context length"):
            connect(server, concurrency=1).completion_logps(*sequences)


def test_a_server_of_texts_is_refused(model, sequences, tokenizer):
    with FakeServer(tokenizer, score=score_as(model), kind="text only") as server:
        with pytest.raises(ServerError, match="refused to score .*Unexpected fields"):
            connect(server).completion_logps(*sequences)
