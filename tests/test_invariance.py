"""The result does not depend on how a batch is split into micro-batches or over processes."""

import runpy
from pathlib import Path

import pytest
import torch
from datasets import Dataset


WORKER = Path(__file__).with_name("invariance_worker.py")
BATCH_SIZE = 8
NUM_STEPS = 3
# Depends on the clock
NOT_COMPARED = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer, make_rows):
    from rlmec_trl.tasks.arithmetic import make_policy

    folder = tmp_path_factory.mktemp("invariance")
    policy = make_policy(tokenizer, hidden_size=16, num_hidden_layers=2)
    policy.get_input_embeddings().weight.data.mul_(10.0)
    policy.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    rows = make_rows(BATCH_SIZE * NUM_STEPS)
    for index, row in enumerate(rows):
        # Different numbers of active tokens per row, down to none
        share = (index % 5) / 4
        length = len(row["token_probs"])
        neutral = [0.5] * (length - round(share * length))
        row["token_probs"] = row["token_probs"][: length - len(neutral)] + neutral
        if index % 6 == 1:  # and rows with nothing to imitate
            row["rewrite"] = None
    Dataset.from_list(rows).save_to_disk(folder / "rows")
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    return runpy.run_path(str(WORKER))["train"](folder, BATCH_SIZE, 1)


@pytest.fixture(scope="module")
def accumulated(folder):
    return runpy.run_path(str(WORKER))["train"](folder, BATCH_SIZE // 4, 4)


@pytest.fixture(scope="module")
def distributed(folder, run_on_two):
    run_on_two(WORKER, folder, BATCH_SIZE // 2, 1, folder / "distributed.pt")
    return torch.load(folder / "distributed.pt")


def assert_same_run(run, reference):
    differences = torch.cat(
        [(value - reference["weights"][name]).abs().flatten() for name, value in run["weights"].items()]
    )
    assert differences.max() < 2e-5
    assert differences.mean() < 1e-6
    assert run["num_rows"] == reference["num_rows"] == BATCH_SIZE * NUM_STEPS, "no step is smaller than the others"
    assert len(run["logs"]) == len(reference["logs"]) == NUM_STEPS
    for found, expected in zip(run["logs"], reference["logs"], strict=True):
        assert found.keys() == expected.keys()
        for name in ("loss", "grad_norm"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4), name
        for name in expected.keys() - {"loss", "grad_norm"}:
            assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("loss", runpy.run_path(str(WORKER))["LOSSES"], ids="-".join)
class TestInvariance:
    def test_the_reference_run_trains(self, loss, whole, folder):
        """The weights move far beyond the tolerance, and the losses differ from each other."""
        from transformers import AutoModelForCausalLM

        start = AutoModelForCausalLM.from_pretrained(folder / "policy").state_dict()
        moved = torch.cat([(value - start[name]).abs().flatten() for name, value in whole[loss]["weights"].items()])
        assert moved.max() > 0.01 and moved.mean() > 1e-4
        for other in whole.keys() - {loss}:
            assert whole[other]["logs"][-1]["loss"] != pytest.approx(whole[loss]["logs"][-1]["loss"], rel=1e-3)

    def test_gradient_accumulation(self, loss, whole, accumulated):
        assert_same_run(accumulated[loss], whole[loss])

    def test_two_processes(self, loss, whole, distributed):
        assert distributed[loss]["num_processes"] == 2
        assert_same_run(distributed[loss], whole[loss])

    def test_an_evaluation_on_two_processes_has_the_same_metrics(self, loss, whole, distributed):
        found, expected = distributed[loss]["evaluation"], whole[loss]["evaluation"]
        # As in `SFTTrainer`, an evaluation loss is the mean over batches, each with its own counts
        for name in expected.keys() - NOT_COMPARED - {"eval_loss"}:
            assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
