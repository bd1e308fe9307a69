"""Folders and names of models."""

import shutil
from functools import partial
from pathlib import Path

from rlmec_trl import GenerativeRewardModel
from tests.reliability.case import Case


SECTION = "Models"
# What a library says of a file
LIBRARY = r"(?<=loaded \()[A-Z].*(?=\)\.)|(?<=truncated \().*?(?=\)\. Save)"


def copy(place, change, of="policy"):
    folder = Path(place.path("copy"))
    shutil.copytree(place.shared / of, folder)
    change(folder)
    return str(folder)


def evaluate(change, place):
    place.evaluate(place.file("problems.jsonl", place.problems()), copy(place, change))


def score(change, place):
    place.score(place.samples(), grm=copy(place, change, "grm"))


def score_with(grm, place):
    place.score(place.samples(), grm=grm)


def train(change, place):
    place.train("rlmec", place.saved("scored", place.rows), model_name_or_path=copy(place, change))


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def truncate(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def other_tokens(place, **changes):
    def change(folder):
        tokenizer = place.tokenizer.__class__.from_pretrained(folder)
        tokenizer.add_tokens(["nine", "ten"])
        tokenizer.save_pretrained(folder)

    return f"{len(place.score(place.samples(), grm=copy(place, change, 'grm'), **changes))} rows"


def a_link(place):
    Path(place.path("link")).symlink_to(place.policy)
    return f"{place.evaluate(place.file('problems.jsonl', place.problems()), place.path('link')).total} problems"


def untrained(place):
    place.score(place.samples(), grm=place.policy)


def from_python(name, place):
    GenerativeRewardModel.from_pretrained(name)


CASES = [
    Case("a policy that is not there", lambda p: p.evaluate(p.file("p.jsonl", p.problems()), p.path("none")), "none"),
    Case(
        "a policy on the Hub, offline",
        lambda p: p.evaluate(p.file("p.jsonl", p.problems()), "a/b"),
        "a/b",
        LIBRARY,
    ),
    Case("a policy without its weights", partial(evaluate, remove("model.safetensors")), "copy", LIBRARY),
    Case("a policy whose weights are truncated", partial(evaluate, truncate), "copy", LIBRARY),
    Case("a policy whose weights are empty", partial(evaluate, write("model.safetensors", b"")), "copy", LIBRARY),
    Case("a policy without its tokenizer", partial(evaluate, remove("tokenizer.json")), "copy", LIBRARY),
    Case("a `config.json` that is cut off", partial(evaluate, write("config.json", b"{")), "copy", LIBRARY),
    Case("a `config.json` without a type", partial(evaluate, write("config.json", b"{}")), "copy", LIBRARY),
    Case("a link to a policy", a_link),
    Case("a reward model that is not there", lambda place: score_with(place.path("none"), place), "none"),
    Case("a reward model that was never trained as one", untrained, "grm_wording.json"),
    Case(
        "a `grm_wording.json` that is empty",
        partial(score, write("grm_wording.json", b"")),
        "grm_wording.json",
    ),
    Case(
        "a `grm_wording.json` that is cut off",
        partial(score, write("grm_wording.json", b'{"locate":')),
        "grm_wording.json",
    ),
    Case(
        "a `grm_wording.json` that is a list",
        partial(score, write("grm_wording.json", b"[]")),
        "grm_wording.json",
    ),
    Case(
        "a `grm_wording.json` without its prompts",
        partial(score, write("grm_wording.json", b"{}")),
        "grm_wording.json",
    ),
    Case("a reward model whose weights are truncated", partial(score, truncate), "copy", LIBRARY),
    Case("a reward model with another tokenizer", other_tokens),
    Case(
        "soft targets of a reward model with another tokenizer",
        partial(other_tokens, rewrite_topk=2),
        "differ, first at",
    ),
    Case(
        "distributions on attempts of a reward model with another tokenizer",
        partial(other_tokens, attempt_topk=2),
        "differ, first at",
    ),
    Case("a reward model from Python that is not there", partial(from_python, "runs/none"), "none", LIBRARY),
    Case("training a policy whose weights are truncated", partial(train, truncate), "copy", LIBRARY),
    Case("training a policy without its tokenizer", partial(train, remove("tokenizer.json")), "copy", LIBRARY),
]
