"""
The real server of transformers. It neither accepts nor returns token ids, so that all of them are recovered from text.
"""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk

from rlmec_trl.data.schema import check_dataset
from rlmec_trl.data.tokens import encode_prompt
from rlmec_trl.generation.inference import generate_ids
from rlmec_trl.generation.server import ServerConfig, ServerError, TokenServer
from rlmec_trl.tasks import arithmetic
from rlmec_trl.tasks.task import load_task
from rlmec_trl.teachers.api.config import TeacherConfig
from rlmec_trl.teachers.api.journal import Journal
from rlmec_trl.teachers.journaled_editor import JournaledEditor, edit_through_journal
from rlmec_trl.teachers.server_teacher import ServerTeacher
from tests.fake_openai import memorize


ROOT = Path(__file__).parents[1]
NUM_PROBLEMS = 8
# More than the longest solution has
MAX_NEW_TOKENS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def problems(folder):
    rows = arithmetic.make_arithmetic(warmup=0, train=NUM_PROBLEMS, validation=0, test=0)["train"]
    rows.save_to_disk(folder / "problems")
    return rows


@pytest.fixture(scope="module")
def policy(folder, problems, tokenizer):
    """A policy that has memorized half of the problems, and generates nonsense for the others."""
    solutions = []
    for problem in problems["prompt"][: NUM_PROBLEMS // 2]:
        numbers = arithmetic.read_problem(problem)
        solutions.append((problem, arithmetic.write_solution(numbers, ["=", "is", "makes"])))
    policy = memorize(arithmetic.make_policy(tokenizer, hidden_size=32, num_hidden_layers=2), tokenizer, solutions)
    # This server samples only if the model's own configuration says so
    policy.generation_config.do_sample = True
    policy.save_pretrained(folder / "policy")
    chat_tokenizer = arithmetic.make_tokenizer()
    chat_tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    chat_tokenizer.save_pretrained(folder / "policy")
    return policy


@pytest.fixture(scope="module")
def server(folder, policy):
    """How to reach the server. Tests are skipped if it cannot be started."""
    log = folder / "serve.log"
    # Another process may take the free port first
    for _ in range(3):
        process, port = start(folder / "policy", log)
        try:
            if becomes_ready(process, port):
                # The server does not list its model
                yield ServerConfig(f"http://127.0.0.1:{port}/v1", served_model=str(folder / "policy"), concurrency=4)
                return
        finally:
            process.kill()
            process.wait()
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    pytest.skip("transformers serve does not start: " + " | ".join(lines[-10:]))


def start(model, log):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", model, "--device", "cpu"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        try:
            return subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT), port
        except OSError as error:
            pytest.skip(f"transformers serve cannot be started: {error}")


def becomes_ready(process, port):
    for _ in range(2400):
        if process.poll() is not None:
            return False
        if answers(f"http://127.0.0.1:{port}/health"):
            # The response must not come from another process on that port
            return process.poll() is None
        time.sleep(0.25)
    return False


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def test_greedy_ids_are_those_of_the_local_model(server, policy, problems, tokenizer):
    prompts = [encode_prompt(tokenizer, prompt) for prompt in problems["prompt"]]
    token_server = TokenServer(server, tokenizer, {tokenizer.eos_token_id})
    found = token_server.generate_ids(prompts, MAX_NEW_TOKENS)
    expected = generate_ids(policy, tokenizer, prompts, MAX_NEW_TOKENS)
    ended = [(ids, truth) for ids, truth in zip(found, expected, strict=True) if truth[-1] == tokenizer.eos_token_id]
    known = NUM_PROBLEMS // 2
    assert found[:known] == expected[:known]
    assert [ids[-1] for ids in expected[:known]] == [tokenizer.eos_token_id] * known
    assert all(ids in (truth, []) for ids, truth in ended)
    assert token_server.left_out.total() == found.count([])


def test_a_truncated_completion_has_no_eos(server, problems, tokenizer):
    prompts = [encode_prompt(tokenizer, prompt) for prompt in problems["prompt"][:2]]
    found = TokenServer(server, tokenizer, {tokenizer.eos_token_id}).generate_ids(prompts, 5)
    assert all(tokenizer.eos_token_id not in ids for ids in found)


def test_its_model_must_be_named(server, tokenizer):
    config = ServerConfig(server.base_url, max_retries=0)
    token_server = TokenServer(config, tokenizer, {tokenizer.eos_token_id})
    with pytest.raises(ServerError, match="`--served_model`"):
        token_server.generate_ids([[5]], 4)


def test_prompts_are_completed_even_if_no_text_gives_the_shortest_one(server, problems, tokenizer):
    # Joined, they are one unknown word
    prompts = [tokenizer.convert_tokens_to_ids(["Tom", "Tom"]), encode_prompt(tokenizer, problems["prompt"][0])]
    config = ServerConfig(server.base_url, server.served_model, max_retries=0)
    token_server = TokenServer(config, tokenizer, {tokenizer.eos_token_id})
    nothing, something = token_server.generate_ids(prompts, MAX_NEW_TOKENS)
    assert nothing == [] and something[-1] == tokenizer.eos_token_id


def test_the_recipe_samples_from_the_server(server, folder, problems, policy, tokenizer, scripts):
    words = ["--task", "arithmetic", "--temperature", "1.0", "--top_p", "1.0", "--max_new_tokens", "64"]
    words += ["--model_name_or_path", "policy", "--dataset_name", "problems", "--output_dir", "samples"]
    words += ["--base_url", server.base_url, "--served_model", server.served_model, "--num_samples", "3"]
    result = scripts.run(ROOT / "recipes" / "sample.py", *words, cwd=folder)
    assert result.exit_code == 0, result.stdout[-1000:] + result.stderr[-3000:]
    samples = load_from_disk(folder / "samples")
    check_dataset(samples, "samples", tokenizer.eos_token_id)
    sampled = Counter(samples["prompt"])
    assert set(problems["prompt"][: NUM_PROBLEMS // 2]) <= sampled.keys()
    assert sum(samples["correct"]) > 0
    left_out = 3 * NUM_PROBLEMS - len(samples)
    assert re.search(rf"{len(samples)} samples, {sum(samples['correct'])} .* {left_out} left out", result.stdout)


def test_bad_answers_of_a_small_model_as_teacher_are_counted_and_not_trained_on(server, make_rows, tmp_path):
    rows = make_rows(6)
    names = ["prompt", "reference", "answer", "completion", "completion_ids", "correct"]
    dataset = Dataset.from_list(rows).select_columns(names)
    config = TeacherConfig(structured_output=False, max_attempts=2, max_tokens=20)
    with Journal(tmp_path / "journal") as journal:
        editor = JournaledEditor(ServerTeacher("policy", journal, config, server), arithmetic.WORDING)
        edited, outcomes = edit_through_journal(dataset, editor, load_task("arithmetic"))
        questions = editor.questions(*[[row[name] for row in rows] for name in ("prompt", "reference", "completion")])
        num_answers = [len(journal.answers(question.key)) for question in questions]
    assert num_answers == [2] * 6
    assert edited["rewrite"][:] == [None] * 6
    assert outcomes.keys() <= {"malformed", "truncated", "inconsistent", "empty", "wrong answer", "left wrong"}
    assert edited["edit_outcome"][:].count(None) == 0
