"""A model on a server, over real HTTP: exactly the sampled ids or none, and the errors of a server that fails."""

import asyncio
import copy
import random
import socket
import traceback
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from trl import TrlParser

from rlmec_trl.data.tokens import encode_completion, encode_prompt
from rlmec_trl.generation.server import ServerConfig, ServerError, TokenServer, describe_error
from rlmec_trl.tasks import arithmetic
from tests.fake_openai import KINDS, FakeServer, speak_as


KEY = "sk-test-0123456789abcdef"
# These accept prompts as ids. The others do not return ids
TAKES_IDS = ("vllm", "no eos", "old")
WITHOUT_IDS = ("old", "text only")


def make_letters(*merges, with_bos=False):
    """A tokenizer of characters and merged pairs, for which not every sequence of ids survives a round trip."""
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    tokens = ["<eos>", "<pad>", "<bos>", "<end>", *characters, *map("".join, merges)]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges=list(merges)))
    backend.decoder = decoders.Fuse()
    if with_bos:
        backend.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<eos>",
        pad_token="<pad>",
        bos_token="<bos>",
        extra_special_tokens=["<end>"],
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="module")
def letters():
    return make_letters(("1", "2"))


def connect(server, tokenizer=None, ends=None, **config):
    tokenizer = tokenizer or server.tokenizer
    config = {"base_url": server.url, "max_retries": 2} | config
    return TokenServer(ServerConfig(**config), tokenizer, ends or {tokenizer.eos_token_id})


def by_prompt(table):
    """`complete` of a server that looks up its response to each prompt in a table."""
    table = {tuple(prompt_ids): ids for prompt_ids, ids in table}
    return lambda prompt_ids, body: table[tuple(prompt_ids)]


def solve(tokenizer):
    """`complete` of a model that solves arithmetic, with words that depend on the seed."""

    def complete(prompt_ids, body):
        rng = random.Random(body.get("seed"))
        numbers = arithmetic.read_problem(tokenizer.decode(prompt_ids))
        connectives = [rng.choice(arithmetic.CONNECTIVES) for _ in numbers[1:]]
        return encode_completion(tokenizer, arithmetic.write_solution(numbers, connectives))

    return complete


def problems(tokenizer, number):
    rows = arithmetic.make_arithmetic(warmup=0, train=number, validation=0, test=0)["train"]
    return [encode_prompt(tokenizer, prompt) for prompt in rows["prompt"]]


# --- Ids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_completions_are_the_ids_that_the_model_sampled_in_the_order_of_the_prompts(kind, tokenizer):
    prompts = problems(tokenizer, 9)
    with FakeServer(tokenizer, solve(tokenizer), kind=kind) as server:
        token_server = connect(server)
        completions = token_server.generate_ids([*prompts, *prompts], 64, temperature=1.0)
        said = server.said()
    assert len(said) == 18
    for index, prompt_ids in enumerate(prompts):
        both = sorted(ids for (asked, _), ids in said.items() if asked == tuple(prompt_ids))
        assert sorted([completions[index], completions[index + 9]]) == both
    assert all(ids[-1] == tokenizer.eos_token_id for ids in completions)
    assert not token_server.left_out


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_completions_match_those_of_the_model_in_this_process(kind, make_policy, tokenizer):
    from rlmec_trl.generation.inference import generate_ids

    policy = make_policy(sharpness=20.0, mixing=20.0, num_hidden_layers=2)
    prompts = problems(tokenizer, 6)
    expected = generate_ids(policy, tokenizer, prompts, 12)
    assert len({tuple(ids) for ids in expected}) > 1
    # From now on, the fifth token of the first completion is an EOS: some end there, some are truncated
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(expected[0][4])
    policy.generation_config.eos_token_id = tokenizer.eos_token_id
    expected = generate_ids(policy, tokenizer, prompts, 12)
    with FakeServer(tokenizer, speak_as(policy, tokenizer), kind=kind) as server:
        completions = connect(server).generate_ids(prompts, 12)
    if kind in ("vllm", "no eos"):
        assert completions == expected
    # The ids of random words cannot always be recovered, but are never incorrect
    end = [tokenizer.eos_token_id]
    finished = [(ids, truth) for ids, truth in zip(completions, expected, strict=True) if truth[-1:] == end]
    assert finished and all(ids in (truth, []) for ids, truth in finished)
    assert not [ids for ids, truth in zip(completions, expected, strict=True) if ids[-1:] == end != truth[-1:]]


def odd_completions(tokenizer, number, size=8):
    """Sequences that the tokenizer does not produce: unmerged pairs, special tokens in the middle."""
    rng = random.Random(0)
    vocabulary = tokenizer.convert_tokens_to_ids(["1", "2", "12", "a", " ", "\n", "<pad>", "<bos>"])
    weights = [3, 3, 3, 3, 1, 1, 0.5, 0.5]
    rows = []
    for _ in range(number):
        ids = rng.choices(vocabulary, weights, k=rng.randint(0, size - 1))
        rows.append([*ids, tokenizer.eos_token_id] if rng.random() < 0.8 else ids + vocabulary[:1] * (size - len(ids)))
    return rows


@pytest.mark.parametrize("kind", KINDS)
def test_ids_that_cannot_be_recovered_from_the_text_are_left_out_and_counted(kind, letters):
    completions = odd_completions(letters, 200)
    prompts = [letters(f"problem {index}")["input_ids"] for index in range(200)]
    with FakeServer(letters, by_prompt(zip(prompts, completions, strict=True)), kind=kind) as server:
        token_server = connect(server)
        found = token_server.generate_ids(prompts, 8)
    if kind in ("vllm", "no eos"):
        # A completion that consists of EOS, which such a server does not return, is empty
        assert [ids for ids in found if len(ids) > 1] == [ids for ids in completions if len(ids) > 1]
        assert not token_server.left_out
        return
    end = [letters.eos_token_id]
    assert all(ids in (truth, []) for ids, truth in zip(found, completions, strict=True) if truth[-1:] == end)
    assert not [ids for ids, truth in zip(found, completions, strict=True) if ids[-1:] == end != truth[-1:]]
    assert token_server.left_out == {"ids cannot be recovered exactly": found.count([])}
    assert found.count([]) > 20
    assert sum(ids[-1:] == end for ids in found) > 20
    # Sequences that the tokenizer produces are not left out
    for ids, truth in zip(found, completions, strict=True):
        text = letters.decode(truth, skip_special_tokens=True)
        if encode_completion(letters, text) == truth:
            assert ids == truth


@pytest.mark.xfail(strict=True, reason="a text and a number of tokens do not tell these two from each other")
@pytest.mark.parametrize("kind", WITHOUT_IDS)
def test_other_ids_with_the_same_text_and_length_are_not_mistaken_for_the_sampled_ones(kind):
    letters = make_letters(("1", "2"), ("2", "3"))
    sampled = [*letters.convert_tokens_to_ids(["1", "23"]), letters.eos_token_id]
    assert letters("123")["input_ids"] == letters.convert_tokens_to_ids(["12", "3"])
    with FakeServer(letters, lambda prompt_ids, body: sampled, kind=kind) as server:
        assert connect(server).generate_ids([letters("a")["input_ids"]], 8) in ([sampled], [[]])


@pytest.mark.parametrize("kind", KINDS)
def test_another_eos_is_not_mistaken_for_that_of_the_tokenizer(kind, letters):
    """Chat models end a turn with one token and a text with another. Either may have been sampled."""
    end = letters.convert_tokens_to_ids("<end>")
    said = [[*letters("yes")["input_ids"], end], [*letters("no")["input_ids"], letters.eos_token_id]]
    prompts = [letters(text)["input_ids"] for text in ("one", "two")]
    with FakeServer(letters, by_prompt(zip(prompts, said, strict=True)), kind=kind, ends=(end,)) as server:
        found = connect(server, ends={letters.eos_token_id, end}).generate_ids(prompts, 8)
    for ids, truth in zip(found, said, strict=True):
        assert ids in (truth, [])
    if kind != "text only":
        # These report the stop token
        assert found == said


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_completion_has_no_eos(kind, letters):
    said = letters("a completion that goes on")["input_ids"]
    with FakeServer(letters, lambda prompt_ids, body: said, kind=kind) as server:
        token_server = connect(server)
        assert token_server.generate_ids([letters("go")["input_ids"]], 7) == [said[:7]]
    assert not token_server.left_out


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_spells_eos_does_not_end_the_completion(kind, letters):
    """It is five characters, although the tokenizer encodes them as one token."""
    said = letters.convert_tokens_to_ids([*"so <eos>"])
    with FakeServer(letters, lambda prompt_ids, body: said, kind=kind) as server:
        (ids,) = connect(server).generate_ids([letters("go")["input_ids"]], 8)
    assert ids[-1:] != [letters.eos_token_id]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_string_is_no_eos(kind, letters):
    """The model did not sample an EOS there."""
    said = encode_completion(letters, "one\n3 two")
    with FakeServer(letters, lambda prompt_ids, body: said, kind=kind) as server:
        (ids,) = connect(server, extra_body={"stop": "\n"}).generate_ids([letters("go")["input_ids"]], 12)
    assert ids[-1:] != [letters.eos_token_id]


@pytest.mark.parametrize("kind", KINDS)
def test_a_completion_that_ends_at_the_maximum_length_has_its_eos(kind, letters):
    said = encode_completion(letters, "abc")
    with FakeServer(letters, lambda prompt_ids, body: said, kind=kind) as server:
        assert connect(server).generate_ids([letters("go")["input_ids"]], 4) == [said]


# --- Prompts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TAKES_IDS)
def test_a_prompt_that_the_tokenizer_does_not_produce_is_sent_as_ids(kind, letters):
    prompt_ids = letters.convert_tokens_to_ids(["1", "2", "<pad>", "<end>", "12"])
    with FakeServer(letters, lambda prompt_ids, body: [7, letters.eos_token_id], kind=kind) as server:
        assert connect(server).generate_ids([prompt_ids], 4) == [[7, letters.eos_token_id]]
        assert [exchange.body["prompt"] for exchange in server.asked()] == [prompt_ids]


def test_a_prompt_is_sent_as_text_only_if_it_has_the_same_ids(letters):
    told = [letters(text)["input_ids"] for text in ("a 12", " b\n", "3 <end>4", "<bos>5")]
    untold = [letters.convert_tokens_to_ids(tokens) for tokens in (["1", "2"], ["a", "1", "2"])]
    with FakeServer(letters, lambda prompt_ids, body: [7, letters.eos_token_id], kind="text only") as server:
        token_server = connect(server)
        completions = token_server.generate_ids([untold[0], *told, untold[1]], 4)
        assert sorted(exchange.prompt_ids for exchange in server.asked()) == sorted(told)
    assert completions == [[], *[[7, letters.eos_token_id]] * 4, []]
    assert token_server.left_out == {"prompt has no text with the same ids": 2}


def test_a_bos_that_the_tokenizer_adds_is_not_sent_twice():
    letters = make_letters(("1", "2"), with_bos=True)
    prompts = [encode_prompt(letters, text) for text in ("a", "12", "b <end>")]
    # One without BOS, and one with two
    prompts += [letters("c", add_special_tokens=False)["input_ids"], encode_prompt(letters, "<bos>d")]
    assert [prompt_ids[:2].count(letters.bos_token_id) for prompt_ids in prompts] == [1, 1, 1, 0, 2]
    with FakeServer(letters, lambda prompt_ids, body: [7, letters.eos_token_id], kind="text only") as server:
        token_server = connect(server)
        completions = token_server.generate_ids(prompts, 4)
        asked = [exchange.prompt_ids for exchange in server.asked()]
    assert sorted(asked) == sorted([*prompts[:3], prompts[4]])
    assert completions[3] == [] and token_server.left_out == {"prompt has no text with the same ids": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_conversations_reach_the_server_with_the_special_tokens_of_their_template(kind):
    letters = make_letters(with_bos=True)
    letters.chat_template = (
        "<bos>{% for message in messages %}{{ message['role'] }}:{{ message['content'] }}<end>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    prompts = [encode_prompt(letters, [{"role": "user", "content": text}]) for text in ("one", "two")]
    assert prompts[0].count(letters.bos_token_id) == prompts[0].count(letters.convert_tokens_to_ids("<end>")) == 1
    with FakeServer(letters, lambda prompt_ids, body: [7, letters.eos_token_id], kind=kind) as server:
        assert connect(server).generate_ids(prompts, 4) == [[7, letters.eos_token_id]] * 2
        assert sorted(exchange.prompt_ids for exchange in server.asked()) == sorted(prompts)


def test_a_shortest_prompt_without_a_text_does_not_block_the_others(letters):
    """It is used to find out whether a server accepts text, and some servers refuse an empty text."""
    prompts = [letters.convert_tokens_to_ids(["1", "2"]), letters("abc")["input_ids"]]
    settings = {"kind": "text only", "refuse": lambda body: not body["prompt"]}
    with FakeServer(letters, lambda prompt_ids, body: [7, letters.eos_token_id], **settings) as server:
        assert connect(server).generate_ids(prompts, 4) == [[], [7, letters.eos_token_id]]


def test_no_prompts_send_no_requests(letters):
    assert TokenServer(ServerConfig(base_url="http://127.0.0.1:9/v1"), letters, {0}).generate_ids([], 4) == []


# --- Requests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_is_sent(kind, tokenizer):
    prompts = problems(tokenizer, 2)
    extra = {"stop": None} if kind == "text only" else {"top_k": -1, "min_p": 0.1}
    with FakeServer(tokenizer, solve(tokenizer), kind=kind, models=("a", "b")) as server:
        token_server = connect(server, served_model="b", extra_body=extra)
        token_server.generate_ids(prompts, 33, temperature=0.7, top_p=0.95, seed=5)
        bodies = [exchange.body for exchange in server.asked()]
    assert len(bodies) == 2
    for body in bodies:
        expected = {"model": "b", "max_tokens": 33, "temperature": 0.7, "top_p": 0.95, **extra}
        assert expected.items() <= body.items()
        assert isinstance(body["prompt"], str if kind == "text only" else list)
        assert body.get("return_token_ids", False) == (kind != "text only")
        assert body.keys() - expected.keys() - {"return_token_ids"} == {"prompt", "seed"}


def test_every_completion_has_its_own_seed_and_every_run_has_the_same_seeds(tokenizer):
    prompt = problems(tokenizer, 1)[0]
    seeds = []
    with FakeServer(tokenizer, solve(tokenizer)) as server:
        for seed in (0, 0, 1):
            asked = len(server.asked())
            found = connect(server).generate_ids([prompt] * 30, 64, temperature=1.0, seed=seed)
            seeds.append([exchange.body["seed"] for exchange in server.asked()[asked:]])
            assert len({tuple(ids) for ids in found}) > 5, "the seed chooses among 27 solutions"
    assert len(set(seeds[0])) == 30
    assert set(seeds[1]) == set(seeds[0])
    assert set(seeds[2]).isdisjoint(seeds[0])
    # The range that all servers accept
    assert all(0 <= seed < 2**31 for seed in seeds[0] + seeds[2])


@pytest.mark.parametrize("concurrency", [1, 5])
def test_as_many_requests_are_pending_as_allowed_and_never_more(concurrency, tokenizer):
    prompts = problems(tokenizer, 23)
    with FakeServer(tokenizer, solve(tokenizer), together=concurrency) as server:
        completions = connect(server, concurrency=concurrency).generate_ids(prompts, 64)
    assert all(completions)
    assert server.most_at_once == concurrency


def test_the_only_model_of_a_server_needs_no_name(tokenizer):
    with FakeServer(tokenizer, solve(tokenizer), models=("some/model",)) as server:
        assert all(connect(server).generate_ids(problems(tokenizer, 2), 64))
        assert {exchange.body["model"] for exchange in server.exchanges} == {"some/model"}


def test_it_works_inside_a_running_event_loop(tokenizer):
    """As in a notebook."""

    async def cell(server):
        return connect(server).generate_ids(problems(tokenizer, 2), 64)

    with FakeServer(tokenizer, solve(tokenizer)) as server:
        assert all(asyncio.run(cell(server)))


# --- Failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["429", "500", "reset", "broken JSON"])
def test_a_request_that_fails_is_sent_again(fault, tokenizer):
    prompts = problems(tokenizer, 6)
    with FakeServer(tokenizer, solve(tokenizer)) as server:
        server.faults.extend([None, fault, fault])
        token_server = connect(server)
        completions = token_server.generate_ids(prompts, 64)
        assert len(server.asked()) == 8
        assert [[tuple(prompt_ids), ids] for prompt_ids, ids in zip(prompts, completions, strict=True)] == [
            [key, ids] for prompt_ids in prompts for (key, _), ids in server.said().items() if key == tuple(prompt_ids)
        ]
    assert not token_server.left_out


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("429", "failed .status 429: .*Slow down"),
        ("500", "failed .status 500: .*Something broke"),
        ("reset", "failed .APIConnectionError"),
        ("broken JSON", "is not a completion"),
        ("HTML", "is not a completion"),
        ("no choices", "is not a completion"),
    ],
)
def test_a_server_that_keeps_failing_is_named_with_its_error(fault, message, tokenizer):
    with FakeServer(tokenizer, solve(tokenizer)) as server:
        server.faults.extend([fault] * 50)
        with pytest.raises(ServerError, match=rf"server at {server.url} .*{message}"):
            connect(server, max_retries=1, concurrency=1).generate_ids(problems(tokenizer, 3), 64)
        assert len(server.asked()) == 2, "one retry, and no further request"


def test_a_server_that_refuses_everything_is_an_error_not_an_empty_result(tokenizer):
    """An empty result would be saved, and loaded by a later run after the server is fixed."""
    with FakeServer(tokenizer, solve(tokenizer)) as server:
        server.refuse = lambda body: body["max_tokens"] > 1
        with pytest.raises(ServerError, match="None of 20 completions .* can be used.*maximum context length"):
            connect(server).generate_ids(problems(tokenizer, 20), 64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_row_affects_only_that_row(kind, tokenizer):
    prompts = problems(tokenizer, 5)
    text = tokenizer.decode(prompts[3])
    with FakeServer(tokenizer, solve(tokenizer), kind=kind) as server:
        server.refuse = lambda body: body["prompt"] in (prompts[3], text) and body["max_tokens"] > 1
        token_server = connect(server)
        completions = token_server.generate_ids(prompts, 64)
        assert len(server.asked()) == 5, "and it is not sent again"
    assert [index for index, ids in enumerate(completions) if not ids] == [3]
    assert token_server.left_out == {"refused by the server": 1}


def test_a_server_that_refuses_ids_and_text_is_an_error_with_its_reason(tokenizer):
    with FakeServer(tokenizer, solve(tokenizer), refuse=lambda body: True) as server:
        with pytest.raises(ServerError, match=r"neither as token ids nor as text.*maximum context length is 8"):
            connect(server).generate_ids(problems(tokenizer, 3), 64)
        assert server.asked() == []


def test_no_server_at_the_address(tokenizer):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    for served_model in (None, "policy"):
        token_server = TokenServer(ServerConfig(url, served_model, max_retries=0), tokenizer, {1})
        with pytest.raises(ServerError, match=f"server at {url} .*Connection error"):
            token_server.generate_ids([[5]], 4)


def test_no_address(tokenizer):
    with pytest.raises(ServerError, match="`--base_url`"):
        TokenServer(ServerConfig(), tokenizer, {1}).generate_ids([[5]], 4)


def test_an_address_without_the_api(tokenizer):
    with FakeServer(tokenizer, solve(tokenizer)) as server:
        url = server.url.removesuffix("/v1")
        for served_model in (None, "policy"):
            with pytest.raises(ServerError, match=rf"server at {url} .*status 404"):
                connect(server, base_url=url, served_model=served_model).generate_ids([[5]], 4)


def test_an_address_of_a_web_page(tokenizer):
    with FakeServer(tokenizer, solve(tokenizer), models=None) as server:
        with pytest.raises(ServerError, match=rf"The server at {server.url} does not list its models"):
            connect(server).generate_ids([[5]], 4)


@pytest.mark.parametrize(("names", "message"), [((), "lists no model"), (("a", "b"), "serves a, b")])
def test_without_exactly_one_model_its_name_is_required(names, message, tokenizer):
    with FakeServer(tokenizer, solve(tokenizer), models=names) as server:
        with pytest.raises(ServerError, match=f"{message}: pass the name of one as `--served_model`"):
            connect(server).generate_ids([[5]], 4)


def test_a_model_that_does_not_exist(tokenizer):
    with FakeServer(tokenizer, solve(tokenizer)) as server:
        with pytest.raises(ServerError, match=r"status 404.*'other' does not exist"):
            connect(server, served_model="other").generate_ids([[5]], 4)
        assert len(server.exchanges) == 1


# --- Keys -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch):
    """The settings that the SDK finds in the environment are for another server."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-you")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-not-for-you-either")
    monkeypatch.delenv("RLMEC_SERVER_API_KEY", raising=False)


def test_the_key_is_read_from_the_configured_variable(tokenizer, elsewhere, monkeypatch):
    prompts = problems(tokenizer, 2)
    with FakeServer(tokenizer, solve(tokenizer), key=KEY) as server:
        monkeypatch.setenv("RLMEC_SERVER_API_KEY", KEY)
        assert all(connect(server).generate_ids(prompts, 64))
        monkeypatch.delenv("RLMEC_SERVER_API_KEY")
        monkeypatch.setenv("SOME_KEY", KEY)
        assert all(connect(server, api_key_env="SOME_KEY").generate_ids(prompts, 64))
        with pytest.raises(ServerError, match="status 401"):
            connect(server).generate_ids(prompts, 64)


def test_a_key_for_another_server_is_not_sent(tokenizer, elsewhere):
    with FakeServer(tokenizer, solve(tokenizer)) as server:
        assert all(connect(server).generate_ids(problems(tokenizer, 2), 64))
        assert len(server.exchanges) == 3
        assert not [exchange for exchange in server.exchanges if "not-for-you" in str(exchange.headers)]


@pytest.mark.parametrize("served_model", [None, "policy"])
def test_a_key_that_the_server_sends_back_is_not_in_the_message(served_model, tokenizer, elsewhere, monkeypatch):
    monkeypatch.setenv("RLMEC_SERVER_API_KEY", KEY)
    with FakeServer(tokenizer, solve(tokenizer), key="another") as server:
        with pytest.raises(ServerError, match=r"status 401.*Incorrect API key provided: \*\*\*") as caught:
            connect(server, served_model=served_model).generate_ids(problems(tokenizer, 2), 64)
    assert KEY not in "".join(traceback.format_exception(caught.value))


# --- Configuration --------------------------------------------------------------------------------------------------


def test_additional_fields_can_be_given_as_json():
    assert ServerConfig(extra_body='{"top_k": -1, "nested": {"a": null}}').extra_body == {
        "top_k": -1,
        "nested": {"a": None},
    }
    assert ServerConfig(extra_body={"top_k": -1}).extra_body == {"top_k": -1}
    assert ServerConfig().extra_body is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"extra_body": "{top_k: -1}"}, "`extra_body` is not JSON .*top_k: -1"),
        ({"extra_body": "[1]"}, r"`extra_body` must be a JSON object, got \[1\]"),
        ({"extra_body": "null "}, None),
        ({"concurrency": 0}, "`concurrency` must be at least 1 and at most 10,000, got 0"),
    ],
)
def test_an_invalid_setting_is_refused(settings, message):
    if message is None:
        assert ServerConfig(**settings).extra_body is None
        return
    with pytest.raises(ValueError, match=message):
        ServerConfig(**settings)


@dataclass
class Nothing:
    something: int = field(default=0)


def test_additional_fields_are_read_from_the_command_line_and_from_a_file(tmp_path):
    parser = TrlParser((Nothing, ServerConfig))
    _, config = parser.parse_args_and_config(["--extra_body", '{"top_k": -1}', "--base_url", "http://x/v1"])
    assert (config.extra_body, config.base_url) == ({"top_k": -1}, "http://x/v1")
    path = tmp_path / "config.yaml"
    for line in ("extra_body: {top_k: -1, min_p: 0.1}", 'extra_body: \'{"top_k": -1, "min_p": 0.1}\''):
        path.write_text(line + "\nconcurrency: 3\n", encoding="utf-8")
        _, config = parser.parse_args_and_config(["--config", str(path)])
        assert config.extra_body == {"top_k": -1, "min_p": 0.1}
        assert config.concurrency == 3


@pytest.mark.parametrize("text", ["\ud800 is half a pair", "a\udc00"])
def test_what_a_server_says_can_be_stored(text):
    """JSON may hold half a surrogate pair; a dataset, whose rows have it as their outcome, may not."""
    assert describe_error(ValueError(text)).encode() and "half" in describe_error(ValueError(text + "half"))


@pytest.mark.parametrize("token_ids", [[60], [-1], ["5"], [None], [True], [10**12]])
def test_ids_that_the_tokenizer_does_not_have_are_left_out(token_ids, tokenizer):
    server = TokenServer(ServerConfig("http://nowhere"), tokenizer, {tokenizer.eos_token_id})
    assert len(tokenizer) == 60
    choice = SimpleNamespace(finish_reason="length", text="", model_extra={"token_ids": token_ids})
    usage = SimpleNamespace(completion_tokens=len(token_ids))
    assert server._read([1], SimpleNamespace(choices=[choice], usage=usage)) == []
    assert server.left_out == {"ids cannot be recovered exactly": 1}
    choice.model_extra, choice.text = {}, "\ud800"
    assert server._read([1], SimpleNamespace(choices=[choice], usage=usage)) == []
