"""Distillation on the attempt in the offline trainer: its loss against a naive reference, and what it leaves alone."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import ModelConfig

from rlmec_trl import RLMECTrainer
from rlmec_trl.grm.prompts import save_wording
from rlmec_trl.stages import score
from rlmec_trl.stages.score import ScoreConfig
from rlmec_trl.tasks.arithmetic import WORDING
from tests.trainers.test_rlmec_trainer import (
    gradients,
    make_config,
    naive_logps,
    naive_loss,
    sequences_seen,
    soft_rows,
    whole_batch,
    without,
)


@pytest.fixture
def make_trainer(tmp_path, make_policy, tokenizer):
    def make(rows, model=None, trainer_kwargs=None, **config):
        return RLMECTrainer(
            model=make_policy(sharpness=10.0) if model is None else model,
            args=make_config(**({"output_dir": tmp_path} | config)),
            train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
            processing_class=tokenizer,
            **(trainer_kwargs or {}),
        )

    return make


@pytest.fixture
def rows(make_rows, tokenizer):
    """
    Rows with soft targets and a made-up distribution at each token of the attempt, of different widths. Their first
    flagged tokens are the first, one in the middle, the last, none, and any; one has no distribution.
    """
    generator = torch.Generator().manual_seed(1)
    made = soft_rows(make_rows(7), tokenizer)
    for index, row in enumerate(made):
        length = len(row["completion_ids"])
        first_flagged = [0, length // 2, length - 1, length][index] if index < 4 else None
        if first_flagged is not None:
            row["token_probs"] = [0.9] * first_flagged + [0.1] * (length - first_flagged)
        # 0.5 is at the baseline, so it is not flagged
        row["token_probs"][0] = 0.5 if row["token_probs"][0] > 0.5 else row["token_probs"][0]
        k = 5 - index % 3
        logits = torch.randn(length, k + 4, generator=generator).log_softmax(-1)[:, :k]
        row["attempt_topk_ids"] = [torch.randperm(len(tokenizer), generator=generator)[:k].tolist() for _ in logits]
        row["attempt_topk_logps"] = logits.tolist()
    made[5] |= {"attempt_topk_ids": None, "attempt_topk_logps": None}
    return made


def without_distributions(rows):
    return without(rows, "attempt_topk_ids", "attempt_topk_logps")


def naive_attempt_loss(model, tokenizer, rows, max_length=None):
    """The cross-entropy in loops over tokens, straight from the columns, and the number of tokens."""
    total, num_tokens = 0.0, 0
    for row in rows:
        if row["attempt_topk_ids"] is None:
            continue
        prompt_ids = tokenizer(row["prompt"])["input_ids"]
        logps = naive_logps(model, prompt_ids, row["completion_ids"])
        for t, prob in enumerate(row["token_probs"]):
            if max_length is not None and len(prompt_ids) + t >= max_length:
                break
            target = torch.zeros(len(tokenizer))
            probs = torch.tensor(row["attempt_topk_logps"][t]).exp()
            target[row["attempt_topk_ids"][t]] = probs / probs.sum()
            total = total - (target * logps[t]).sum()
            num_tokens += 1
            if prob < 0.5:
                break
    return total / num_tokens, num_tokens


SETTINGS = [
    {"attempt_coef": 1.0},
    {"attempt_coef": 0.7, "policy_coef": 0.0, "imitation_coef": 0.0},
    {"attempt_coef": 0.7, "policy_coef": 0.0, "imitation_coef": 0.0, "pad_to_multiple_of": 31},
    {"attempt_coef": 2.0, "imitation_coef": 0.0, "loss_type": "ppo", "normalize_by": "completion_tokens"},
    # What belongs to the imitation term alone
    {"attempt_coef": 1.5, "policy_coef": 0.0, "imitation_label_smoothing": 0.3},
    {
        "attempt_coef": 0.5,
        "imitation_targets": "soft",
        "imitation_temperature": 0.5,
        "imitation_label_smoothing": 0.1,
        "correct_samples": "rewrite",
    },
]


def by_values(settings):
    return ",".join(map(str, settings.values()))


@pytest.mark.parametrize("settings", SETTINGS, ids=by_values)
def test_the_loss_of_a_batch_is_the_one_of_a_naive_reference(settings, rows, make_trainer, make_policy, tokenizer):
    trainer = make_trainer(rows, **settings)
    reference = make_policy(sharpness=10.0)

    loss = trainer.compute_loss(trainer.model, whole_batch(trainer))
    others, _, _ = naive_loss(reference, tokenizer, rows, **settings)
    attempt_loss, _ = naive_attempt_loss(reference, tokenizer, rows)
    expected = others + settings["attempt_coef"] * attempt_loss

    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    found = gradients(trainer.model, loss)
    for name, gradient in gradients(reference, expected).items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-3, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
    logs = {}
    trainer.model.train()
    trainer.log(logs)
    assert logs["attempt_loss"] == pytest.approx(attempt_loss.item(), rel=1e-5)


@pytest.mark.parametrize("room", [1, 5, 12, 31])
def test_max_length_truncates_the_distributions_with_the_attempt(room, rows, make_trainer, make_policy, tokenizer):
    max_length = min(len(tokenizer(row["prompt"])["input_ids"]) for row in rows) + room
    trainer = make_trainer(rows, max_length=max_length, policy_coef=0.0, imitation_coef=0.0, attempt_coef=1.0)
    batch = whole_batch(trainer)
    assert batch["input_ids"].shape[1] <= max_length
    loss = trainer.compute_loss(trainer.model, batch)
    expected, num_tokens = naive_attempt_loss(make_policy(sharpness=10.0), tokenizer, rows, max_length)
    assert trainer._denominators(batch).tolist() == [0, 0, num_tokens]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_correct_samples_are_distilled_too(rows, make_trainer, make_policy, tokenizer):
    correct = [row for row in rows if row["correct"]]
    trainer = make_trainer(correct, policy_coef=0.0, imitation_coef=0.0, attempt_coef=1.0)
    loss = trainer.compute_loss(trainer.model, whole_batch(trainer))
    expected, _ = naive_attempt_loss(make_policy(sharpness=10.0), tokenizer, correct)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_another_baseline_flags_other_tokens(rows, make_trainer):
    counts = []
    for baseline in (0.05, 0.5, 0.95):
        trainer = make_trainer(rows, reward_baseline=baseline, policy_coef=0.0, imitation_coef=0.0, attempt_coef=1.0)
        counts.append(trainer._denominators(whole_batch(trainer))[2].item())
    distilled = [row for row in rows if row["attempt_topk_ids"] is not None]
    assert counts[0] > counts[1] > counts[2] == len(distilled)


def test_a_sample_that_is_its_own_target_goes_through_the_model_once(rows, make_trainer):
    rows = [row for row in rows if row["attempt_topk_ids"] is not None]
    num_copies = sum(row["correct"] for row in rows)
    assert 0 < num_copies < len(rows)
    # Correct samples are their own targets, and the rewrites of the others differ from them
    seen = sequences_seen(make_trainer(rows, policy_coef=0.0, attempt_coef=1.0), len(rows))
    assert seen == num_copies + 2 * (len(rows) - num_copies)


def test_a_row_with_nothing_but_a_distribution_is_kept_and_one_without_any_is_dropped(rows, make_trainer):
    settings = {"policy_coef": 0.0, "attempt_coef": 1.0, "correct_samples": "rewrite"}
    bare = [row | dict.fromkeys(("rewrite", "rewrite_ids", "rewrite_topk_ids", "rewrite_topk_logps")) for row in rows]
    kept = make_trainer(bare, shuffle_dataset=False, **settings).train_dataset["row"]
    assert list(kept) == [index for index, row in enumerate(rows) if row["attempt_topk_ids"] is not None]


@pytest.mark.parametrize("settings", [{}, {"imitation_targets": "soft", "imitation_label_smoothing": 0.1}], ids=str)
def test_switched_off_nothing_changes_bitwise(settings, rows, make_trainer):
    """The columns alone change neither the batch nor the loss nor what is logged."""
    trainers = [make_trainer(made, **settings) for made in (rows, without_distributions(rows))]
    batches = [whole_batch(trainer) for trainer in trainers]
    assert list(batches[0]) == list(batches[1])
    assert not any(name.startswith("attempt") for name in batches[0])
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
    losses = [trainer.compute_loss(trainer.model, batch) for trainer, batch in zip(trainers, batches, strict=True)]
    assert torch.equal(*losses)
    logs = [{}, {}]
    for trainer, values in zip(trainers, logs, strict=True):
        trainer.log(values)
    assert logs[0] == logs[1] and "attempt_loss" not in logs[0]


def test_the_loss_of_an_evaluation_is_that_of_all_its_rows_in_one_batch(rows, make_trainer):
    evaluation = {"eval_dataset": Dataset.from_list(rows)}
    in_one, in_three = (
        make_trainer(rows, trainer_kwargs=evaluation, per_device_eval_batch_size=size, attempt_coef=0.5)
        for size in (7, 3)
    )
    in_one.model.eval()
    with torch.no_grad():
        expected = in_one.compute_loss(in_one.model, next(iter(in_one.get_eval_dataloader()))).item()
    in_one._metric_sums["eval"].clear()
    found = [trainer.evaluate() for trainer in (in_one, in_three)]
    assert [metrics["eval_loss"] for metrics in found] == pytest.approx([expected] * 2, rel=1e-6)
    assert found[0]["eval_attempt_loss"] == pytest.approx(found[1]["eval_attempt_loss"], rel=1e-6)
    parts = {"policy_loss": 1.0, "imitation_loss": 1.0, "attempt_loss": 0.5}
    assert sum(coef * found[1][f"eval_{name}"] for name, coef in parts.items()) == pytest.approx(expected, rel=1e-5)


def test_a_row_that_only_fills_up_a_batch_counts_nothing(rows, make_trainer):
    trainer = make_trainer(rows, attempt_coef=0.5, shuffle_dataset=False)
    prepared = list(trainer.train_dataset)
    masked = trainer._mask_last_rows(trainer.data_collator([*prepared[:3], *prepared[:2]]), 2)
    first = trainer.data_collator(prepared[:3])
    torch.testing.assert_close(trainer._denominators(masked), trainer._denominators(first))
    losses = [trainer.compute_loss(trainer.model, batch) for batch in (masked, first)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("missing", ["token_probs", "attempt_topk_ids"])
def test_missing_columns_are_an_error(missing, rows, make_trainer):
    rows = [row | {"token_rewards": row["token_probs"]} for row in rows]
    rows = without_distributions(rows) if missing == "attempt_topk_ids" else without(rows, missing)
    with pytest.raises(ValueError, match=f"`attempt_coef` needs the columns.*`{missing}`.*with `--attempt_topk`"):
        make_trainer(rows, attempt_coef=1.0)
    make_trainer(rows)


def test_the_preparation_does_not_depend_on_the_weight_of_the_term(rows, make_trainer, tmp_path):
    Dataset.from_list(rows).save_to_disk(tmp_path / "rows")

    def prepared_files(**config):
        trainer = make_trainer(Dataset.load_from_disk(str(tmp_path / "rows")), **config)
        return [file["filename"] for file in trainer.train_dataset.cache_files]

    assert prepared_files(attempt_coef=0.5) == prepared_files(attempt_coef=2.0) != prepared_files()


def test_a_stream_trains(rows, make_trainer):
    stream = Dataset.from_list(rows).to_iterable_dataset()
    trainer = make_trainer(stream, policy_coef=0.0, imitation_coef=0.0, attempt_coef=1.0, max_steps=2)
    trainer.train()
    assert [entry["attempt_loss"] > 0 for entry in trainer.state.log_history if "loss" in entry] == [True] * 2


def test_an_adapter_trains(rows, make_trainer, make_policy, tokenizer):
    peft_config = LoraConfig(r=2, target_modules=["q_proj"])
    trainer = make_trainer(rows, trainer_kwargs={"peft_config": peft_config}, attempt_coef=1.0)
    loss = trainer.compute_loss(trainer.model, whole_batch(trainer))
    reference = make_policy(sharpness=10.0)
    others, _, _ = naive_loss(reference, tokenizer, rows)
    torch.testing.assert_close(loss, others + naive_attempt_loss(reference, tokenizer, rows)[0], rtol=1e-5, atol=1e-6)
    trainer.train()


def test_what_the_score_stage_writes_is_learned(make_rows, make_policy, make_trainer, tokenizer, tmp_path):
    """From samples to a policy whose cross-entropy to the reward model falls to the entropy of its targets."""
    for name, sharpness in (("policy", 10.0), ("grm", 20.0)):
        make_policy(sharpness=sharpness, mixing=sharpness).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    save_wording(WORDING, tmp_path / "grm")
    columns = ("prompt", "reference", "answer", "completion", "completion_ids", "correct")
    samples = Dataset.from_list([{name: row[name] for name in columns} for row in make_rows(4)])
    config = ScoreConfig(grm=str(tmp_path / "grm"), task="arithmetic", attempt_topk=8, rewrite_max_new_tokens=2)
    scored = score.run(config, samples, tmp_path / "scored", ModelConfig(str(tmp_path / "policy")))

    settings = {"policy_coef": 0.0, "imitation_coef": 0.0, "attempt_coef": 1.0, "reward_baseline": 0.0}
    settings |= {"max_steps": 60, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    trainer = make_trainer(scored, **settings)
    batch = whole_batch(trainer)
    probs = batch["attempt_target_logps"][batch["attempt_mask"]].softmax(-1)
    entropy = torch.special.entr(probs).sum(-1).mean().item()
    trainer.train()
    losses = [entry["attempt_loss"] for entry in trainer.state.log_history if "attempt_loss" in entry]
    assert entropy < losses[-1] < entropy + (losses[0] - entropy) / 2
