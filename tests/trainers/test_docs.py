"""docs/online.md is run as it stands: its diff is applied and both sides trained, and all of its code is executed."""

import functools
import re
from pathlib import Path

import pytest
from datasets import Dataset

from rlmec_trl import OnlineRLMECConfig, OnlineRLMECTrainer
from tests.fake_openai import FakeServer, score_as, speak_as


PAGE = (Path(__file__).parents[2] / "docs" / "online.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CODE = [code for language, code in BLOCKS if language == "python"]
DIFF = next(code for language, code in BLOCKS if language == "diff")
PROGRAM = "a = 3 * 4\nb = a / (a - 12)\nc = a + 1\n"


def side(mark):
    """The script before (-) or after (+) the diff."""
    return "".join(line[1:] for line in DIFF.splitlines(keepends=True) if line[0] in (" ", mark, "\n"))


@pytest.fixture(scope="module")
def byte_tokenizer():
    """Every byte is a token, so there is a token for whatever the page writes, new lines included."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(["<eos>", *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


@pytest.fixture
def page_files(tmp_path, monkeypatch, byte_tokenizer):
    """What the page takes for granted: a policy, a reward model, a process reward model and problems, all tiny."""
    import torch
    import trl
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification

    import rlmec_trl
    from rlmec_trl.grm.prompts import save_wording
    from rlmec_trl.tasks.wording import WORDING

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": len(byte_tokenizer), "eos_token_id": 0, "pad_token_id": 0, "bos_token_id": None}
    for name, kind in (
        ("policy", LlamaForCausalLM), ("grm", LlamaForCausalLM), ("prm", LlamaForTokenClassification)
    ):  # fmt: skip
        kind(LlamaConfig(**sizes, **ids, num_labels=2)).save_pretrained(f"runs/{name}")
        byte_tokenizer.save_pretrained(f"runs/{name}")
    save_wording(WORDING, "runs/grm")
    row = {"prompt": "3 * 4 + 1 ?\n", "answer": "13", "reference": "3 * 4 = 12\nThe answer is 13"}
    Dataset.from_list([row] * 8).save_to_disk("runs/problems")
    small = {
        "max_steps": 1, "max_completion_length": 8, "per_device_train_batch_size": 8, "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True,
    }  # fmt: skip
    monkeypatch.setattr(trl, "GRPOConfig", functools.partial(trl.GRPOConfig, **small))
    monkeypatch.setattr(rlmec_trl, "OnlineRLMECConfig", functools.partial(OnlineRLMECConfig, **small))
    return tmp_path


@pytest.fixture
def page(page_files, byte_tokenizer, monkeypatch):
    """What all code of the page defines, and the questions that its judge was asked."""

    def answer(body):
        return ("The first incorrect line is 2.", "stop")

    with FakeServer(byte_tokenizer, chat=answer, models=("judge",)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        yield {"server": server}


def run(namespace, *code):
    for block in code:
        exec(compile(block, "docs/online.md", "exec"), namespace)
    return namespace


def lines_with_values(tokenizer, values, ids):
    """The lines whose tokens have a value, with it; each line has one value."""
    text, found = tokenizer.decode(ids, skip_special_tokens=True), {}
    for position, value in enumerate(values[: len(text)]):
        found.setdefault(text[:position].count("\n") + 1, set()).add(value)
    assert all(len(kinds) == 1 for kinds in found.values())
    return {line: value for line, (value,) in found.items() if value is not None}


def test_the_diff_has_five_lines_and_turns_grpo_into_token_credit(page_files):
    from trl import GRPOTrainer

    assert len(re.findall(r"^\+", DIFF, re.MULTILINE)) == 5
    before, after = (run({}, side(mark))["trainer"] for mark in "-+")
    assert type(before) is GRPOTrainer and type(after) is OnlineRLMECTrainer
    logs = [trainer.state.log_history[0] for trainer in (before, after)]
    assert all("rewards/is_correct/mean" in log for log in logs)
    assert "token_reward/grm/mean" in logs[1] and "imitation_loss" in logs[1]


def test_all_code_of_the_page_runs_and_the_three_functions_train_together(page):
    namespace = run(page, *CODE[:5])
    log = namespace["trainer"].state.log_history[0]
    for name in ("process_reward", "first_failing_line", "judge_steps"):
        assert f"token_reward/{name}/mean" in log
    assert len(page["server"].asked("/v1/chat/completions")) == 8
    log = run(namespace, CODE[5])["trainer"].state.log_history[0]
    assert "attempt_loss" in log and "imitation_loss" not in log


def test_the_reward_model_of_the_page_is_on_a_server(page_files, byte_tokenizer):
    from transformers import AutoModelForCausalLM

    namespace = run({}, side("+"))
    model = AutoModelForCausalLM.from_pretrained("runs/grm").eval()
    speak = speak_as(model, byte_tokenizer)

    def complete(prompt_ids, body):
        return speak(prompt_ids, body | {"max_tokens": 8})

    for file in Path("runs/grm").glob("*.safetensors"):
        file.unlink()
    address = "http://localhost:8000/v1"
    assert address in CODE[6]
    with FakeServer(byte_tokenizer, complete, score_as(model)) as server:
        trainer = run(namespace, CODE[6].replace(address, server.url))["served"]
        assert sum("echo" in exchange.body for exchange in server.exchanges) == 8
    assert trainer.grm.model is None
    assert "token_reward/grm/mean" in trainer.state.log_history[0]


def test_the_functions_of_the_page_judge_lines(page, byte_tokenizer):
    import asyncio

    namespace = run(page, *CODE[:4])
    ids = byte_tokenizer(PROGRAM)["input_ids"] + [0]
    arguments = {"prompts": ["3 * 4 + 1 ?\n"], "completions": [PROGRAM], "completion_ids": [ids]}
    (traced,) = namespace["first_failing_line"](**arguments)
    assert lines_with_values(byte_tokenizer, traced, ids) == {2: -1.0}
    (judged,) = asyncio.run(namespace["judge_steps"](**arguments, reference=["12"]))
    assert lines_with_values(byte_tokenizer, judged, ids) == {2: -1.0}
    assert "2. b = a" in page["server"].asked("/v1/chat/completions")[0].body["messages"][0]["content"]
    (scored,) = namespace["process_reward"](**arguments)
    values = lines_with_values(byte_tokenizer, scored, ids)
    assert set(values) == {1, 2, 3} and all(-0.5 < value < 0.5 for value in values.values())
    assert traced[-1] is judged[-1] is scored[-1] is None, "EOS belongs to no line"


@pytest.mark.parametrize(
    "program",
    [
        "__import__('os')", "open('x')", "x = ().__class__", "9 ** 9", "x = 'a' * 9", "while True: pass", "a = b",
        "1 +", "x = [0] * 9", "import os", "lambda: 0", "a.b = 1", "del a", "\0", "(" * 500, "f'{1}'",
        "__builtins__.x",
    ],
)  # fmt: skip
def test_the_tracer_runs_nothing_but_arithmetic(program, page, byte_tokenizer):
    trace = run(page, CODE[0], CODE[2])["trace"]
    ids = byte_tokenizer(program)["input_ids"]
    assert set(trace(program, ids)) == {-1.0}


def test_the_tracer_has_no_opinion_of_a_program_that_runs(page, byte_tokenizer):
    ids = byte_tokenizer("a = 3 * 4\nb = a - 1.5\n")["input_ids"]
    assert set(run(page, CODE[0], CODE[2])["trace"]("a = 3 * 4\nb = a - 1.5\n", ids)) == {None}
