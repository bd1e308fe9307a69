"""Servers that policies, reward models and teachers run behind."""

from rlmec_trl.generation.server import ServerConfig
from tests.fake_openai import FakeServer
from tests.reliability.case import Case


SECTION = "Servers"


def say(place, text="The answer is 5"):
    ids = [*place.tokenizer(text)["input_ids"], place.tokenizer.eos_token_id]
    return lambda *given: ids


def sample(served=None, **kind):
    def run(place):
        kind.setdefault("complete", say(place))
        with FakeServer(place.tokenizer, **kind) as server:
            config = ServerConfig(base_url=server.url, served_model=served, max_retries=0)
            samples = place.sample(place.file("problems.jsonl", place.problems()), server=config)
        return f"{len(samples)} samples"

    return run


def edit(served=None, **kind):
    def run(place):
        with FakeServer(place.tokenizer, **kind) as server:
            config = ServerConfig(base_url=server.url, served_model=served, max_retries=0)
            samples = place.saved("samples", place.samples().to_list())
            place.edit(samples, server=config, provider="server", teacher="policy")

    return run


def nobody(place):
    place.sample(
        place.file("p.jsonl", place.problems()), server=ServerConfig(base_url="http://localhost:9/v1", max_retries=0)
    )


def score(**kind):
    def run(place):
        with FakeServer(place.tokenizer, **kind) as server:
            place.score(place.samples(), server=ServerConfig(base_url=server.url, max_retries=0))

    return run


ADDRESS = r"(?<=://localhost:)\d+|(?<=127.0.0.1:)\d+"
CASES = [
    Case("sample: a server that answers", sample()),
    Case("sample: no server at the address", nobody, "localhost:9"),
    Case(
        "sample: a server of another model",
        sample("other", refuse=lambda body: "The model `other` does not exist"),
        "other",
        ADDRESS,
    ),
    Case("sample: a server of two models", sample(models=("a", "b")), "serves a, b", ADDRESS),
    Case("sample: a server that lists no model", sample(models=()), "lists no model", ADDRESS),
    Case(
        "sample: a web page instead of a server",
        sample(models=None),
        "does not list its models",
        ADDRESS + r"|(?<=models \().*?(?=\))",
    ),
    Case("sample: a server that refuses each request", sample(refuse=lambda body: "too long"), "too long", ADDRESS),
    Case("edit: a server that refuses each request", edit(refuse=lambda body: "too long"), "too long", ADDRESS),
    Case(
        "edit: a server that answers with text that is no edit",
        edit(chat=lambda body: ("I cannot.", "stop")),
        "gave no verified rewrite of any",
        ADDRESS,
    ),
    Case("score: a server that refuses each request", score(refuse=lambda body: "too long"), "too long", ADDRESS),
]
