"""The result does not depend on how a batch is split into micro-batches or over processes, or on how it is sharded."""

import runpy
from pathlib import Path

import pytest
import torch
from datasets import Dataset


WORKER = Path(__file__).with_name("invariance_worker.py")
BATCH_SIZE = 8
NUM_STEPS = 10
# The last step has three rows: the second of two processes has none of them, and both are filled up
NUM_ROWS = BATCH_SIZE * (NUM_STEPS - 1) + 3
# Depend on the clock, or count batches
NOT_COMPARED = {
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
    "eval_model_preparation_time",
    "epoch",
}
# `SFTTrainer` counts all tokens that went through the model
PROCESSED = {"num_tokens", "eval_num_tokens"}
# `SFTTrainer` averages these over the batches of an evaluation, each with its own number of tokens
PER_BATCH = {"eval_entropy", "eval_mean_token_accuracy"}


@pytest.fixture(scope="module")
def worker():
    return runpy.run_path(str(WORKER))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer, make_rows, make_pairs):
    from transformers import LlamaForSequenceClassification

    from rlmec_trl.grm.prompts import save_wording
    from rlmec_trl.tasks.arithmetic import make_policy
    from rlmec_trl.tasks.wording import WORDING

    folder = tmp_path_factory.mktemp("invariance")
    for name, scale in (("policy", 10.0), ("grm", 15.0)):
        model = make_policy(tokenizer, hidden_size=16, num_hidden_layers=2)
        model.get_input_embeddings().weight.data.mul_(scale)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    save_wording(WORDING, folder / "grm")
    model.config.num_labels = 1
    torch.manual_seed(0)
    LlamaForSequenceClassification(model.config).save_pretrained(folder / "reward_model")
    # A micro-batch of each kind alone, too
    pairs = [
        pair | {"kind": ("label", "rationale")[index // 4 % 2]} for index, pair in enumerate(make_pairs(NUM_ROWS))
    ]
    Dataset.from_list(pairs).save_to_disk(folder / "pairs")
    rows = make_rows(NUM_ROWS)
    Dataset.from_list(rows).save_to_disk(folder / "edits")
    for index, row in enumerate(rows):
        # Different numbers of active tokens per row, down to none for a whole process in every other step
        share = 0 if index % 16 in range(4, 8) else (index % 5) / 4
        length = len(row["token_probs"])
        neutral = [0.5] * (length - round(share * length))
        row["token_probs"] = row["token_probs"][: length - len(neutral)] + neutral
        if index % 6 == 1 and share > 0:  # and rows with nothing to imitate
            row["rewrite"] = None
        # A distribution at each token of the attempt, and none for a whole process in every other step
        ids, probs = row["completion_ids"], row["token_probs"]
        has_distribution = index % 16 not in range(4, 8)
        row["attempt_topk_ids"] = [[token_id, 5 + index % 7] for token_id in ids] if has_distribution else None
        row["attempt_topk_logps"] = [[-0.5, -1.0 - prob] for prob in probs] if has_distribution else None
    Dataset.from_list(rows).save_to_disk(folder / "rows")
    return folder


@pytest.fixture(scope="module")
def whole(folder, worker):
    return worker["train"](folder, BATCH_SIZE)


@pytest.fixture(scope="module")
def accumulated(folder, worker):
    return worker["train"](folder, 1, BATCH_SIZE)


@pytest.fixture(scope="module")
def distributed(folder, run_on_two):
    run_on_two(WORKER, folder)
    return torch.load(folder / "distributed.pt")


def compared(metrics, left_out):
    return {name: value for name, value in metrics.items() if name not in NOT_COMPARED | left_out}


def assert_same_run(run, reference, left_out=frozenset()):
    differences = torch.cat(
        [(value - reference["weights"][name]).abs().flatten() for name, value in run["weights"].items()]
    )
    assert differences.max() < 1e-6
    assert differences.mean() < 1e-8
    assert len(run["logs"]) == len(reference["logs"]) == NUM_STEPS
    for found, expected in zip(
        [*run["logs"], run["evaluation"]], [*reference["logs"], reference["evaluation"]], strict=True
    ):
        assert compared(found, left_out) == pytest.approx(compared(expected, left_out), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", runpy.run_path(str(WORKER))["RUNS"])
class TestTraining:
    def test_the_reference_run_trains(self, name, whole, folder, worker):
        """The weights move far beyond the tolerance, and the losses differ from each other."""
        assert whole[name]["num_rows"] == NUM_ROWS
        (_, _, model_class, model, _), _ = worker["RUNS"][name]
        start = model_class.from_pretrained(folder / model).state_dict()
        moved = torch.cat([(value - start[key]).abs().flatten() for key, value in whole[name]["weights"].items()])
        assert moved.max() > 0.01 and moved.mean() > 1e-4
        for other in whole.keys() - {name}:
            assert whole[other]["logs"][-1]["loss"] != pytest.approx(whole[name]["logs"][-1]["loss"], rel=1e-3)

    def test_gradient_accumulation(self, name, whole, accumulated):
        assert_same_run(accumulated[name], whole[name], PER_BATCH if name == "grm" else frozenset())

    def test_two_processes(self, name, whole, distributed):
        run = distributed["ddp"][name]
        assert (run["distributed_type"], run["num_processes"], run["num_sharded"]) == ("MULTI_CPU", 2, 0)
        assert_same_run(run, whole[name], PROCESSED if name == "grm" else frozenset())

    def test_two_processes_with_a_sharded_model(self, name, whole, distributed):
        run = distributed["fsdp"][name]
        assert (run["distributed_type"], run["num_processes"]) == ("FSDP", 2)
        assert run["num_sharded"] == len(run["weights"])
        assert_same_run(run, whole[name], PROCESSED if name == "grm" else frozenset())

    def test_a_sharded_model_is_saved_whole(self, name, distributed, folder, worker):
        (_, _, model_class, _, _), _ = worker["RUNS"][name]
        saved = model_class.from_pretrained(folder / f"saved_{name}").state_dict()
        for key, value in distributed["fsdp"][name]["weights"].items():
            assert torch.equal(saved[key], value), key
        assert (folder / f"saved_{name}" / "grm_wording.json").exists() == (name == "grm")


@pytest.fixture(scope="module")
def scored(folder, worker):
    scored = worker["score_rows"](folder, "scored_16", 16)
    assert len(scored["token_probs"]) == worker["NUM_SCORED"]
    return scored


class TestScoring:
    def assert_same_scores(self, found, expected):
        for name in ("token_probs", "old_logps"):
            for row, reference in zip(found[name], expected[name], strict=True):
                assert row == pytest.approx(reference, abs=1e-6), name
        # Texts and ids, which have no tolerance
        for name in ("completion", "rewrite", "rewrite_ids", "rewrite_topk_ids"):
            assert found[name] == expected[name], name

    def test_the_batch_size(self, scored, folder, worker):
        self.assert_same_scores(worker["score_rows"](folder, "scored_1", 1), scored)

    def test_two_processes(self, scored, distributed):
        self.assert_same_scores(distributed["scored"], scored)
