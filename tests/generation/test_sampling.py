"""Sampling completions from a policy, in this process or with a server."""

import os
import random
import re
import signal
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import load_from_disk

from rlmec_trl.data.schema import check_dataset
from rlmec_trl.data.tokens import encode_completion, encode_prompt
from rlmec_trl.generation.inference import generate_ids
from rlmec_trl.generation.sampling import sample_completions, sample_from_server
from rlmec_trl.generation.server import ServerConfig, TokenServer
from rlmec_trl.tasks import arithmetic
from tests.fake_openai import FakeServer, speak_as


ROOT = Path(__file__).parents[2]
PROMPTS = ["Tom has 5 9 nuts.", "Ann has 1 0 figs, finds 1 1.", "Eva"]


@pytest.fixture
def model(make_policy):
    return make_policy(sharpness=10.0)


def sample(model, tokenizer, prompts=PROMPTS, **kwargs):
    return sample_completions(model, tokenizer, prompts, **({"max_new_tokens": 6, "desc": None} | kwargs))


def test_every_prompt_gets_its_number_of_completions(model, tokenizer):
    completions = sample(model, tokenizer, num_samples=4, temperature=1.0, batch_size=5)
    assert [len(samples) for samples in completions] == [4, 4, 4]
    assert all(1 <= len(ids) <= 6 for samples in completions for ids in samples)
    assert any(first != second for first, second, *_ in completions), "they are sampled one by one"


def test_samples_depend_on_the_seed_and_the_global_random_state_is_not_changed(model, tokenizer):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = sample(model, tokenizer, temperature=1.0, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert sample(model, tokenizer, temperature=1.0, seed=1) == first
    assert sample(model, tokenizer, temperature=1.0, seed=2) != first


def test_every_prompt_is_sampled_with_its_own_chat_template_kwargs(model, thinking_tokenizer, monkeypatch):
    prompts = [[{"role": "user", "content": "Eva"}]] * 3
    template_kwargs = [{"enable_thinking": False}, {"enable_thinking": None}, {"enable_thinking": True}]
    asked = []

    class Server:
        processing_class = thinking_tokenizer

        def generate_ids(self, prompt_ids, *args, **kwargs):
            asked.extend(map(thinking_tokenizer.decode, prompt_ids))
            return prompt_ids

    def generate(model, processing_class, prompt_ids, *args, **kwargs):
        return Server().generate_ids(prompt_ids)

    monkeypatch.setattr("rlmec_trl.generation.sampling.generate_ids", generate)
    expected = ["Eva = attempt"] * 2 + ["Eva attempt"] * 2 + ["Eva makes attempt"] * 2
    for sampler in (
        lambda **kwargs: sample(model, thinking_tokenizer, **kwargs),
        partial(sample_from_server, Server()),
    ):
        asked.clear()
        sampler(prompts=prompts, num_samples=2, chat_template_kwargs=template_kwargs)
        assert asked == expected
        with pytest.raises(ValueError, match="zip"):
            sampler(prompts=prompts, chat_template_kwargs=template_kwargs[:2])


def test_temperature_zero_is_greedy(model, tokenizer):
    greedy = generate_ids(model, tokenizer, [encode_prompt(tokenizer, prompt) for prompt in PROMPTS], 6)
    assert sample(model, tokenizer, num_samples=2, temperature=0.0) == [[ids, ids] for ids in greedy]


def test_samples_follow_the_distribution_of_the_policy(model, tokenizer):
    """At temperature 1, without the `top_k` that a generation config may set."""
    model.generation_config.top_k = 2
    num_samples = 4000
    (samples,) = sample(
        model,
        tokenizer,
        ["Eva"],
        num_samples=num_samples,
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=1,
        batch_size=4000,
    )
    counts = Counter(ids[0] for ids in samples)
    with torch.no_grad():
        probs = model(torch.tensor([encode_prompt(tokenizer, "Eva")])).logits[0, -1].softmax(-1)
    found = torch.tensor([counts[token] / num_samples for token in range(len(probs))])
    assert (found - probs).abs().sum() < 0.1
    assert len(counts) > 30


def test_temperature_and_top_p_narrow_the_distribution(model, tokenizer):
    def num_distinct(**kwargs):
        (samples,) = sample(model, tokenizer, ["Eva"], num_samples=300, max_new_tokens=1, batch_size=300, **kwargs)
        return len({ids[0] for ids in samples})

    wide = num_distinct(temperature=1.0, top_p=1.0)
    assert num_distinct(temperature=0.1, top_p=1.0) < wide
    assert num_distinct(temperature=1.0, top_p=0.2) < wide


def test_messages_are_sampled_through_the_chat_template(model, chat_tokenizer):
    as_messages = sample(model, chat_tokenizer, [[{"role": "user", "content": PROMPTS[0]}]], temperature=0.0)
    # The template of this tokenizer ends a prompt in " attempt"
    assert as_messages == sample(model, chat_tokenizer, [f"{PROMPTS[0]} attempt"], temperature=0.0)


def test_a_model_in_training_mode_stays_in_training_mode(model, tokenizer):
    model.train()
    sample(model, tokenizer, ["Eva"], temperature=1.0)
    assert model.training


# --- With a server ---------------------------------------------------------------------------------------------------


def connect(server):
    return TokenServer(ServerConfig(server.url), server.tokenizer, {server.tokenizer.eos_token_id})


def test_a_server_decodes_greedily_like_the_policy_in_this_process(model, tokenizer):
    with FakeServer(tokenizer, speak_as(model, tokenizer)) as server:
        found = sample_from_server(
            connect(server), PROMPTS, num_samples=2, temperature=0.0, max_new_tokens=6, desc=None
        )
    assert found == sample(model, tokenizer, num_samples=2, temperature=0.0)


def test_a_server_gives_the_number_of_samples_and_they_depend_on_the_seed(model, tokenizer):
    settings = {"num_samples": 4, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 6, "desc": None}
    with FakeServer(tokenizer, speak_as(model, tokenizer)) as server:
        first, again, other = [
            sample_from_server(connect(server), PROMPTS, seed=seed, **settings) for seed in (1, 1, 2)
        ]
        said = server.said()
    assert first == again != other
    for prompt, samples, others in zip(PROMPTS, first, other, strict=True):
        ids = tuple(encode_prompt(tokenizer, prompt))
        assert sorted(samples + others) == sorted(found for (asked, _), found in said.items() if asked == ids)
        assert len({tuple(ids) for ids in samples}) > 1


def test_a_server_gets_messages_through_the_chat_template(model, chat_tokenizer):
    with FakeServer(chat_tokenizer, speak_as(model, chat_tokenizer)) as server:
        prompts = [[{"role": "user", "content": PROMPTS[0]}]]
        found = sample_from_server(connect(server), prompts, temperature=0.0, max_new_tokens=6, desc=None)
    assert found == sample(model, chat_tokenizer, [f"{PROMPTS[0]} attempt"], temperature=0.0)


# --- The recipe, with a server ---------------------------------------------------------------------------------------

NUM_PROBLEMS, NUM_SAMPLES, SHARD_SIZE = 11, 3, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """Problems, and all files of the policy except the weights, which are on the server."""
    folder = tmp_path_factory.mktemp("sampling")
    arithmetic.make_policy(tokenizer, hidden_size=16, num_hidden_layers=1).save_pretrained(folder / "policy")
    (folder / "policy" / "model.safetensors").unlink()
    tokenizer.save_pretrained(folder / "policy")
    rows = arithmetic.make_arithmetic(warmup=0, train=NUM_PROBLEMS, validation=0, test=0)["train"]
    rows.save_to_disk(folder / "problems")
    return folder


@pytest.fixture(scope="module")
def answer(folder, tokenizer):
    """`complete` of a policy that is often incorrect, sometimes does not end, and sometimes cannot be recovered."""

    def complete(prompt_ids, body):
        rng = random.Random(body.get("seed"))
        numbers = arithmetic.read_problem(tokenizer.decode(prompt_ids))
        solution = arithmetic.write_solution(numbers, [rng.choice(arithmetic.CONNECTIVES) for _ in numbers[1:]])
        kind = rng.choice(["right", "right", "wrong", "endless", "odd"])
        ids = encode_completion(tokenizer, solution)
        if kind == "wrong":
            ids = encode_completion(tokenizer, solution.rsplit(" ", 1)[0] + f" {rng.randint(1, 9)}")
        if kind == "odd":
            ids.insert(5, tokenizer.pad_token_id)
        return ids[:-1] * 3 if kind == "endless" else ids

    return complete


@pytest.fixture(scope="module")
def refused(folder):
    """Two prompts that the server refuses: one of the first shard, one of the second."""
    prompts = load_from_disk(folder / "problems")["prompt"]
    return [prompts[1], prompts[SHARD_SIZE]]


@pytest.fixture(scope="module")
def serve(tokenizer, answer, refused):
    def refuse(body):
        prompt = body["prompt"]
        return "seed" in body and (prompt if isinstance(prompt, str) else tokenizer.decode(prompt)) in refused

    def serve(complete=answer):
        return FakeServer(tokenizer, complete, kind="old", refuse=refuse)

    return serve


def recipe(folder, server, output_dir):
    """The recipe and its arguments."""
    settings = {
        "task": "arithmetic",
        "temperature": 1.0,
        "top_p": 1.0,
        "max_new_tokens": 64,
        "model_name_or_path": folder / "policy",
        "dataset_name": folder / "problems",
        "output_dir": folder / output_dir,
        "num_samples": NUM_SAMPLES,
        "shard_size": SHARD_SIZE,
        "base_url": server.url,
        "concurrency": 4,
    }
    words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    return [str(ROOT / "recipes" / "sample.py"), *words]


def prompts_of(exchanges):
    return Counter(tuple(exchange.body["prompt"]) for exchange in exchanges)


@pytest.fixture(scope="module")
def on_two_processes(folder, serve, run_on_two):
    """The samples of two processes, the line that counts them, and the requests to the server."""
    with serve() as server:
        output = run_on_two(*recipe(folder, server, "two"), cwd=folder)
        *_, summary, next_command = output.strip().splitlines()
        assert next_command.startswith("Next: ")
        return load_from_disk(folder / "two"), summary, server


def test_samples_from_a_server_are_those_whose_ids_are_certain(on_two_processes, folder, refused, tokenizer):
    samples, summary, server = on_two_processes
    check_dataset(samples, "samples", tokenizer.eos_token_id)
    problems = load_from_disk(folder / "problems")
    exact = {
        key: ids
        for key, ids in server.said().items()
        if ids[-1] == tokenizer.eos_token_id and tokenizer.pad_token_id not in ids
    }
    by_problem = {
        prompt: sorted(ids for (asked, _), ids in exact.items() if asked == tuple(encode_prompt(tokenizer, prompt)))
        for prompt in problems["prompt"]
    }
    found = {prompt: [] for prompt in problems["prompt"]}
    for row in samples:
        found[row["prompt"]].append(row["completion_ids"])
        assert row["completion"] == tokenizer.decode(row["completion_ids"], skip_special_tokens=True)
        assert row["correct"] == arithmetic.check_answer(row["completion"], row["answer"])
    assert {prompt: sorted(rows) for prompt, rows in found.items()} == by_problem
    assert list(dict.fromkeys(samples["prompt"])) == [prompt for prompt in problems["prompt"] if by_problem[prompt]]
    assert not any(by_problem[prompt] for prompt in refused)
    assert 0 < sum(samples["correct"]) < len(samples)


def test_the_summary_counts_what_was_left_out_on_all_processes(on_two_processes, tokenizer):
    samples, summary, server = on_two_processes
    said = server.said().values()
    odd = sum(ids[-1] == tokenizer.eos_token_id and tokenizer.pad_token_id in ids for ids in said)
    total = NUM_PROBLEMS * NUM_SAMPLES
    assert odd > 0
    assert summary.startswith(
        f"{len(samples)} samples, {sum(samples['correct'])} with a correct answer; {total - len(samples)} left out"
    )
    counts = dict(re.findall(r"; ([a-z ]+): (\d+)", summary))
    assert counts == {"refused by the server": str(2 * NUM_SAMPLES), "ids cannot be recovered exactly": str(odd)}


def test_two_processes_request_every_completion_once(on_two_processes, folder, tokenizer):
    _, _, server = on_two_processes
    prompts = [tuple(encode_prompt(tokenizer, prompt)) for prompt in load_from_disk(folder / "problems")["prompt"]]
    assert prompts_of(server.asked()) == dict.fromkeys(prompts, NUM_SAMPLES)


def test_a_killed_run_requests_no_finished_shard_again(folder, serve, answer, on_two_processes, tokenizer, scripts):
    prompts = [tuple(encode_prompt(tokenizer, prompt)) for prompt in load_from_disk(folder / "problems")["prompt"]]
    processes = []

    def kill_in_the_third_shard(prompt_ids, body):
        if tuple(prompt_ids) == prompts[2 * SHARD_SIZE + 1] and "seed" in body:
            os.kill(processes[0], signal.SIGKILL)
        return answer(prompt_ids, body)

    with serve(kill_in_the_third_shard) as server:
        processes += scripts.start(*recipe(folder, server, "killed"), cwd=folder)
        assert scripts.wait().exit_code == -signal.SIGKILL
        assert prompts_of(server.asked()).keys() >= set(prompts[: 2 * SHARD_SIZE])
        assert not (folder / "killed").exists()
    with serve() as server:
        finished = scripts.run(*recipe(folder, server, "killed"), cwd=folder)
        assert finished.exit_code == 0, finished.stdout[-1000:] + finished.stderr[-3000:]
        assert prompts_of(server.asked()) == dict.fromkeys(prompts[2 * SHARD_SIZE :], NUM_SAMPLES)
    # The same samples as those of two processes that were not killed
    assert load_from_disk(folder / "killed").to_list() == on_two_processes[0].to_list()
