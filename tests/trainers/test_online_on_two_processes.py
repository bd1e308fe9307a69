"""Online training on two CPU processes, with DDP and with FSDP2, gives the weights of one process."""

import runpy
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM


WORKER = Path(__file__).parents[1] / "online_worker.py"
COMPARED = ["loss", "grad_norm", "reward", "policy_loss", "imitation_loss", "attempt_loss", "kl", "rewrite/verified"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, run_on_two, tokenizer, make_rows):
    """Results on one process, and on two."""
    from rlmec_trl.tasks.arithmetic import make_arithmetic, make_policy

    folder = tmp_path_factory.mktemp("online")
    for name, sharpness in (("policy", 3.0), ("grm", 8.0)):
        model = make_policy(tokenizer, hidden_size=16, num_hidden_layers=2)
        model.get_input_embeddings().weight.data.mul_(sharpness)
        for parameter in model.model.layers.parameters():
            parameter.data.mul_(8.0 if parameter.dim() > 1 else 1.0)
        # Completions of different lengths: one of two processes has to wait for the other
        model.generation_config.eos_token_id = list(range(tokenizer.eos_token_id, len(tokenizer), 9))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    problems = make_arithmetic(seed=0, warmup=0, train=12, validation=0, test=0)["train"]
    # A step has four problems, of which each process has two
    lacking = {
        "reference": [None if index in (2, 3) else row for index, row in enumerate(problems["reference"])],
        "verified": [index not in (6, 7) for index in range(12)],
        "correct": [index in (8, 9) for index in range(12)],
    }
    for name, values in lacking.items():
        problems = problems.remove_columns(set(problems.column_names) & {name}).add_column(name, values)
    problems.save_to_disk(folder / "problems")
    Dataset.from_list(make_rows(4)).save_to_disk(folder / "replay")
    run_on_two(WORKER, folder)
    runpy.run_path(str(WORKER))["main"](str(folder))
    results = {number: torch.load(folder / f"{number}.pt") for number in (1, 2)}
    for number in (1, 2):
        path = folder / f"lopsided-{number}" / "completions" / "completions_00001.parquet"
        results[number]["completions"] = pd.read_parquet(path)
    saved = AutoModelForCausalLM.from_pretrained(folder / "all_terms-2" / "checkpoint-2")
    return results | {"saved": saved.state_dict()}


def compared(log):
    return {key: value for key, value in log.items() if key.removeprefix("eval_") in COMPARED and value is not None}


def assert_same_run(run, other):
    logs, expected = ([*each["history"], each["evaluation"]] for each in (run, other))
    assert len(logs) > 2
    for log, expected_log in zip(logs, expected, strict=True):
        assert compared(log) == pytest.approx(compared(expected_log), rel=1e-5, abs=1e-5)
    assert run["token_counts"] == other["token_counts"]
    differences = [(weight - other["weights"][name]).abs().max() for name, weight in run["weights"].items()]
    assert max(differences) <= 1e-5


@pytest.mark.parametrize("name", runpy.run_path(str(WORKER))["RUNS"])
def test_ddp(name, runs):
    assert runs[2][name]["distributed_type"] == "MULTI_CPU"
    assert_same_run(runs[2][name], runs[1][name])


def test_the_credit_of_the_completions_of_both_processes_is_logged(runs):
    both, alone = (runs[number]["completions"] for number in (2, 1))
    assert len(both) == len(alone) == 8
    for column in ("tokens", "token_probs", "token_reward/grm", "token_advantages"):
        for values, expected in zip(both[column], alone[column], strict=True):
            if column == "tokens":
                assert values.tolist() == expected.tolist()
            else:
                assert values == pytest.approx(expected, abs=1e-3, nan_ok=True)
    assert both["token_probs"].map(lambda values: bool((values != values).any())).sum() == 4, "without a reference"


@pytest.mark.parametrize("name", runpy.run_path(str(WORKER))["SHARDED_RUNS"])
def test_fsdp(name, runs):
    run = runs[2][name]
    assert run["distributed_type"] == "FSDP" and run["num_sharded"] == len(run["weights"])
    assert_same_run(run, runs[1][name])


def test_fsdp_saves_whole_models_and_resumes(runs):
    straight, resumed = runs[2]["all_terms"], runs[2]["resumed"]
    assert len(straight["history"]) == len(resumed["history"]) == 2
    for name, weight in straight["weights"].items():
        assert torch.equal(resumed["weights"][name], weight), name
        assert torch.equal(runs["saved"][name], weight), name
