"""The offline trainer: its results against a naive reference, and that inherited features still work."""

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import ParallelismConfig
from datasets import Dataset, IterableDataset, load_from_disk
from peft import LoraConfig
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig

from rlmec_trl import RLMECConfig, RLMECTrainer
from rlmec_trl.credit.alignment import edit_mask
from rlmec_trl.credit.preparation import PREPARED_FEATURES
from rlmec_trl.data.schema import DatasetError


TRAIN_METRICS = {
    "policy_loss",
    "imitation_loss",
    "token_reward/mean",
    "token_reward/active_fraction",
    "clip_ratio/region_mean",
    "kl",
    "edited_fraction",
    "mean_token_accuracy",
    "entropy",
    "num_tokens",
}


def make_config(output_dir, **kwargs):
    defaults = {
        "output_dir": str(output_dir),
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 3e-3,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return RLMECConfig(**(defaults | kwargs))


def without(rows, *columns):
    return [{name: value for name, value in row.items() if name not in columns} for row in rows]


def soft_rows(rows, tokenizer, k=5):
    """Rows with `rewrite_ids` and a made-up distribution on them, peaked at the rewrite's token."""
    generator = torch.Generator().manual_seed(0)
    result = []
    for row in rows:
        rewrite_ids = tokenizer(row["rewrite"])["input_ids"] + [tokenizer.eos_token_id]
        topk_ids, topk_logps = [], []
        for token_id in rewrite_ids:
            others = torch.randperm(len(tokenizer), generator=generator).tolist()
            topk_ids.append([token_id, *[other for other in others if other != token_id][: k - 1]])
            # Log-probabilities that sum to less than one: the rest of the vocabulary was not stored
            logits = torch.randn(k + 3, generator=generator) + torch.tensor([2.0] + [0.0] * (k + 2))
            topk_logps.append(logits.log_softmax(-1)[:k].tolist())
        result.append(
            row | {"rewrite_ids": rewrite_ids, "rewrite_topk_ids": topk_ids, "rewrite_topk_logps": topk_logps}
        )
    return result


@pytest.fixture
def make_trainer(tmp_path, make_policy, make_rows, tokenizer):
    def make(rows=None, model=None, callbacks=None, trainer_kwargs=None, **config):
        rows = make_rows(8) if rows is None else rows
        return RLMECTrainer(
            model=make_policy(sharpness=10.0) if model is None else model,
            args=make_config(**({"output_dir": tmp_path} | config)),
            train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
            processing_class=tokenizer,
            callbacks=callbacks,
            **(trainer_kwargs or {}),
        )

    return make


def whole_batch(trainer):
    return trainer.data_collator(list(trainer.train_dataset))


def sequences_seen(trainer, num_rows):
    """How many sequences the model gets for the first rows."""
    shapes = []
    handle = trainer.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)[:num_rows]))
    handle.remove()
    assert len(shapes) == 1, "one forward pass serves both terms"
    return shapes[0]


# --- The loss against a naive reference ------------------------------------------------------------------------------


def naive_logps(model, prompt_ids, ids):
    """Log-softmax of the full logits at every token of `ids`, one sequence at a time and without padding."""
    logits = model(torch.tensor([prompt_ids + ids])).logits[0]
    return logits[len(prompt_ids) - 1 : -1].float().log_softmax(dim=-1)


def naive_reward(prob, correct):
    return min(max(prob - 0.5, 0.0), 0.5) if correct else min(max(prob - 0.5, -0.1), 0.0)


def naive_loss(model, tokenizer, rows, loss_type="rlmec", normalize_by="active_tokens", **settings):
    """The method's loss in loops over tokens, straight from the columns of the dataset."""
    epsilon = settings.get("epsilon", 0.3)
    temperature = settings.get("imitation_temperature", 1.0)
    smoothing = settings.get("imitation_label_smoothing", 0.0)
    policy_sum, imitation_sum, num_active, num_completion, num_weighted = 0.0, 0.0, 0, 0, 0
    for row in rows:
        prompt_ids, completion_ids = tokenizer(row["prompt"])["input_ids"], row["completion_ids"]
        logps = naive_logps(model, prompt_ids, completion_ids)
        rewards = [naive_reward(prob, row["correct"]) for prob in row["token_probs"]]
        if settings.get("negative_credit") == "first_error":
            negative = [index for index, reward in enumerate(rewards) if reward < 0]
            rewards = [0.0 if index in negative[1:] else reward for index, reward in enumerate(rewards)]
        for t, (token, reward) in enumerate(zip(completion_ids, rewards, strict=True)):
            num_completion += 1
            if reward == 0:
                continue
            num_active += 1
            old_logp = row["old_logps"][t] if "old_logps" in row else logps[t, token].item()
            ratio = torch.exp(logps[t, token] - old_logp)
            advantage = torch.min(ratio * reward, ratio.clamp(1 - epsilon, 1 + epsilon) * reward)
            policy_sum -= advantage.detach() * logps[t, token] if loss_type == "rlmec" else advantage

        keeps_sample = row["correct"] and settings.get("correct_samples", "keep") != "rewrite"
        if keeps_sample:
            target_ids, edited = completion_ids, [False] * len(completion_ids)
            if settings.get("correct_samples") == "cut":
                flags = [prob < 0.5 for prob in row["token_probs"]]
                target_ids = completion_ids[: flags.index(True)] if any(flags) else completion_ids
        else:
            target_ids = tokenizer(row["rewrite"])["input_ids"] + [tokenizer.eos_token_id]
            edited = edit_mask(completion_ids, target_ids)
        if not target_ids:
            continue
        logps = naive_logps(model, prompt_ids, target_ids)
        for t, token in enumerate(target_ids):
            target = torch.zeros(len(tokenizer))
            if settings.get("imitation_targets") == "soft" and row["rewrite_ids"] == target_ids:
                probs = torch.tensor(row["rewrite_topk_logps"][t]).exp() ** (1 / temperature)
                target[row["rewrite_topk_ids"][t]] = probs / probs.sum()
            else:
                target[token] = 1.0
            target = (1 - smoothing) * target + smoothing / len(tokenizer)
            num_weighted += 1
            imitation_sum -= (1.0 if edited[t] else 0.5) * (target * logps[t]).sum()
    num_policy = num_active if normalize_by == "active_tokens" else num_completion
    policy_loss, imitation_loss = policy_sum / num_policy, imitation_sum / num_weighted
    loss = settings.get("policy_coef", 1.0) * policy_loss + settings.get("imitation_coef", 1.0) * imitation_loss
    return loss, policy_loss.item(), imitation_loss.item()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


SETTINGS = [
    {},
    {"loss_type": "ppo"},
    {"loss_type": "ppo", "normalize_by": "completion_tokens", "negative_credit": "first_error", "epsilon": 0.1},
    {"normalize_by": "completion_tokens", "policy_coef": 0.3, "imitation_coef": 2.0},
    {"correct_samples": "cut"},
    {"correct_samples": "rewrite", "negative_credit": "first_error"},
    {"imitation_label_smoothing": 0.2},
    {"imitation_targets": "soft", "correct_samples": "rewrite"},
    {"imitation_targets": "soft", "imitation_temperature": 0.5, "imitation_label_smoothing": 0.1},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: ",".join(map(str, settings.values())) or "paper")
def test_the_loss_of_a_batch_is_the_one_of_a_naive_reference(
    settings, make_trainer, make_policy, make_rows, tokenizer
):
    rows = soft_rows(make_rows(6), tokenizer)
    trainer = make_trainer(rows, **settings)
    reference = make_policy(sharpness=10.0)

    loss = trainer.compute_loss(trainer.model, whole_batch(trainer))
    expected, policy_loss, imitation_loss = naive_loss(reference, tokenizer, rows, **settings)

    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    found = gradients(trainer.model, loss)
    for name, gradient in gradients(reference, expected).items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-3, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
    logs = {}
    trainer.model.train()
    trainer.log(logs)
    assert logs["policy_loss"] == pytest.approx(policy_loss, rel=1e-4, abs=1e-6)
    assert logs["imitation_loss"] == pytest.approx(imitation_loss, rel=1e-4)


def test_without_old_logps_the_ratio_is_one(make_trainer, make_policy, make_rows, tokenizer):
    rows = without(make_rows(6), "old_logps")
    trainer = make_trainer(rows)
    loss = trainer.compute_loss(trainer.model, whole_batch(trainer))
    expected, _, _ = naive_loss(make_policy(sharpness=10.0), tokenizer, rows)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    logs = {}
    trainer.log(logs)
    assert logs["kl"] == 0 and logs["clip_ratio/region_mean"] == 0


def test_precomputed_token_rewards_are_used_unchanged(make_trainer, make_policy, make_rows, tokenizer):
    rows = make_rows(6)
    rewards = [[naive_reward(prob, row["correct"]) for prob in row["token_probs"]] for row in rows]
    ready = [
        row | {"token_rewards": values} for row, values in zip(without(rows, "token_probs"), rewards, strict=True)
    ]
    trainer = make_trainer(ready)
    loss = trainer.compute_loss(trainer.model, whole_batch(trainer))
    expected, _, _ = naive_loss(make_policy(sharpness=10.0), tokenizer, rows)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"imitation_targets": "soft", "correct_samples": "rewrite"}], ids=str)
def test_a_bfloat16_model_gives_a_float32_loss(settings, make_trainer, make_policy, make_rows, tokenizer):
    rows = soft_rows(make_rows(6), tokenizer)
    trainer = make_trainer(rows, model=make_policy(sharpness=10.0).to(torch.bfloat16), **settings)
    loss = trainer.compute_loss(trainer.model, whole_batch(trainer))
    assert loss.dtype == torch.float32
    expected, _, _ = naive_loss(make_policy(sharpness=10.0), tokenizer, rows, **settings)
    assert loss.item() == pytest.approx(expected.item(), rel=0.03)
    assert all(gradient.isfinite().all() for gradient in gradients(trainer.model, loss).values())


def test_max_length_truncates_ids_rewards_and_weights_together(make_trainer, make_policy, make_rows, tokenizer):
    rows = soft_rows(make_rows(6), tokenizer)
    settings = {"correct_samples": "rewrite", "imitation_targets": "soft", "truncated_rewrites": "keep"}
    max_length = 30
    trainer = make_trainer(rows, max_length=max_length, **settings)
    batch = whole_batch(trainer)
    assert batch["input_ids"].shape[1] == max_length

    whole = make_trainer(rows, **settings)
    whole_rows = {name: whole.train_dataset[name] for name in whole.train_dataset.column_names}
    for index, row in enumerate(trainer.train_dataset):
        room = max_length - len(row["prompt_ids"])
        for name, values in row.items():
            expected = whole_rows[name][index]
            if name == "length":
                expected = min(expected, max_length)
            elif isinstance(expected, list) and name != "prompt_ids":
                expected = expected[:room]
            if name not in ("num_edited", "completion_truncated", "imitation_truncated"):
                assert values == expected, name
    assert torch.isfinite(trainer.compute_loss(trainer.model, batch))


# --- What goes through the model -------------------------------------------------------------------------------------


def test_a_correct_sample_that_is_kept_goes_through_the_model_once(make_trainer, make_rows):
    assert sequences_seen(make_trainer(make_rows(4, kinds=["right"])), 4) == 4
    assert sequences_seen(make_trainer(make_rows(4, kinds=["right", "wrong"])), 4) == 6
    # A correct answer with a wrong step and its rewrite are two sequences only if the rewrite is imitated
    flawed = make_rows(4, kinds=["flawed"])
    assert sequences_seen(make_trainer(flawed, correct_samples="keep"), 4) == 4
    assert sequences_seen(make_trainer(flawed, correct_samples="rewrite"), 4) == 8


@pytest.mark.parametrize(("switched_off", "num_sequences"), [("policy_coef", 4), ("imitation_coef", 4)])
def test_a_term_that_is_off_adds_no_forward_pass(switched_off, num_sequences, make_trainer, make_rows):
    rows = make_rows(4, kinds=["right", "wrong"])
    assert sequences_seen(make_trainer(rows), 4) == 6
    assert sequences_seen(make_trainer(rows, **{switched_off: 0.0}), 4) == num_sequences


@pytest.mark.parametrize("switched_off", ["policy_coef", "imitation_coef"])
def test_a_term_that_is_off_contributes_zero(switched_off, make_trainer, make_policy, make_rows, tokenizer):
    rows = make_rows(6)
    trainer = make_trainer(rows, **{switched_off: 0.0})
    loss = trainer.compute_loss(trainer.model, whole_batch(trainer))
    expected, _, _ = naive_loss(make_policy(sharpness=10.0), tokenizer, rows, **{switched_off: 0.0})
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_rows_without_a_trained_token_are_dropped(make_trainer, make_rows):
    rows = make_rows(6, kinds=["right", "wrong"])
    # An incorrect sample with no low token probability and no rewrite
    rows[1] |= {"token_probs": [1.0] * len(rows[1]["completion_ids"]), "rewrite": None}
    assert len(make_trainer(rows).train_dataset) == 5
    # It still counts among the completion tokens
    trainer = make_trainer(rows, normalize_by="completion_tokens")
    assert len(trainer.train_dataset) == 6
    loss = trainer.compute_loss(trainer.model, trainer.data_collator([trainer.train_dataset[1]]))
    assert loss.item() == 0.0
    loss.backward()  # every process takes part in every backward pass
    with pytest.raises(ValueError, match="No row of the train dataset has a token to train on"):
        make_trainer([rows[1]])


# --- Training --------------------------------------------------------------------------------------------------------


def test_it_trains_and_the_loss_falls(make_trainer, make_rows):
    trainer = make_trainer(make_rows(12), max_steps=25, learning_rate=1e-2, lr_scheduler_type="constant")
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "imitation_loss" in entry]
    assert len(logs) == 25
    for name in ("loss", "imitation_loss"):
        first, last = (sum(entry[name] for entry in part) / 3 for part in (logs[:3], logs[-3:]))
        assert last < first - 0.5, name
    for name, parameter in trainer.model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(
    "switches",
    [
        {"loss_type": "ppo", "correct_samples": "cut"},
        {"normalize_by": "completion_tokens", "negative_credit": "first_error", "correct_samples": "rewrite"},
        {"imitation_targets": "soft", "imitation_temperature": 0.7, "imitation_label_smoothing": 0.1},
        {"policy_coef": 0.0, "imitation_targets": "soft", "correct_samples": "rewrite"},
        {"imitation_coef": 0.0, "loss_type": "ppo"},
        {"gradient_checkpointing": True, "gradient_accumulation_steps": 2, "pad_to_multiple_of": 8},
        {"bf16": True, "imitation_targets": "soft"},
        {"average_tokens_across_devices": False, "remove_unused_columns": False, "shuffle_dataset": True},
    ],
    ids=lambda switches: ",".join(switches),
)
def test_every_option_trains(switches, make_trainer, make_rows, tokenizer):
    trainer = make_trainer(soft_rows(make_rows(8), tokenizer), **switches)
    result = trainer.train()
    assert math.isfinite(result.training_loss)
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("imitation_targets", ["hard", "soft"])
def test_gradient_checkpointing_changes_nothing(imitation_targets, make_trainer, make_rows, tokenizer):
    rows = soft_rows(make_rows(8), tokenizer)
    weights = []
    for gradient_checkpointing in (False, True):
        trainer = make_trainer(
            rows, gradient_checkpointing=gradient_checkpointing, imitation_targets=imitation_targets
        )
        trainer.train()
        weights.append(trainer.model.state_dict())
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-6)


def test_metrics_are_logged_in_training_and_with_a_prefix_in_evaluation(make_trainer, make_rows):
    rows = make_rows(8)
    eval_dataset = Dataset.from_list(make_rows(6, seed=1))
    trainer = make_trainer(rows, trainer_kwargs={"eval_dataset": eval_dataset}, eval_strategy="steps", eval_steps=2)
    trainer.train()
    train_logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    eval_logs = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [len(train_logs), len(eval_logs)] == [2, 1]
    assert all(train_logs[0].keys() >= TRAIN_METRICS for _ in train_logs)
    assert eval_logs[0].keys() >= {f"eval_{name}" for name in TRAIN_METRICS}
    assert not any(name.startswith("eval_") for entry in train_logs for name in entry)
    assert train_logs[1]["num_tokens"] > train_logs[0]["num_tokens"]
    # The evaluation adds no trained tokens
    assert eval_logs[0]["eval_num_tokens"] == train_logs[1]["num_tokens"]
    # The loss is the sum of the two terms
    assert train_logs[0]["loss"] == pytest.approx(
        train_logs[0]["policy_loss"] + train_logs[0]["imitation_loss"], abs=1e-5
    )


def test_metrics_against_a_naive_reference(make_trainer, make_rows, make_policy, tokenizer):
    rows = make_rows(6)
    trainer = make_trainer(rows, correct_samples="rewrite")
    trainer.model.eval()
    with torch.no_grad():
        # In two batches, whose sums must add up
        for part in (slice(0, 1), slice(1, 6)):
            trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)[part]))
    logs = {}
    trainer.log(logs)

    model, rewards, clipped, edited, tops = make_policy(sharpness=10.0), [], [], [], []
    for row in rows:
        prompt_ids = tokenizer(row["prompt"])["input_ids"]
        logps = naive_logps(model, prompt_ids, row["completion_ids"])
        row_rewards = [naive_reward(prob, row["correct"]) for prob in row["token_probs"]]
        rewards += row_rewards
        for t, (token, reward) in enumerate(zip(row["completion_ids"], row_rewards, strict=True)):
            if reward != 0:
                difference = logps[t, token].item() - row["old_logps"][t]
                clipped.append(difference > math.log(1.3) if reward > 0 else difference < math.log(0.7))
        rewrite_ids = tokenizer(row["rewrite"])["input_ids"] + [tokenizer.eos_token_id]
        edited += edit_mask(row["completion_ids"], rewrite_ids)
        sequences = [rewrite_ids] if rewrite_ids == row["completion_ids"] else [row["completion_ids"], rewrite_ids]
        for ids in sequences:
            tops += (naive_logps(model, prompt_ids, ids).argmax(-1) == torch.tensor(ids)).tolist()

    def mean(values):
        return sum(values) / len(values)

    assert logs["eval_token_reward/mean"] == pytest.approx(mean(rewards), rel=1e-5)
    assert logs["eval_token_reward/active_fraction"] == pytest.approx(mean([reward != 0 for reward in rewards]))
    assert logs["eval_clip_ratio/region_mean"] == pytest.approx(mean(clipped))
    assert 0 < mean(clipped) < 1
    assert logs["eval_edited_fraction"] == pytest.approx(mean(edited))
    assert 0 < mean(edited) < 1
    assert logs["eval_mean_token_accuracy"] == pytest.approx(mean(tops))
    assert 0 < logs["eval_entropy"] <= math.log(len(tokenizer))


def test_the_logged_kl_is_the_divergence_from_the_sampler(make_trainer, make_policy, tokenizer):
    # A sampler that draws every token of the vocabulary equally often, each once: the mean is the expectation
    prompt, vocabulary = "Tom has 5 9 nuts.", len(tokenizer)
    rows = [
        {
            "prompt": prompt,
            "completion_ids": [token_id],
            "token_rewards": [0.5],
            "old_logps": [-math.log(vocabulary)],
            # Tokens of a rewrite were not sampled and must not count
            "rewrite_ids": [token_id, tokenizer.eos_token_id],
        }
        for token_id in range(vocabulary)
    ]
    trainer = make_trainer(rows)
    trainer.compute_loss(trainer.model, whole_batch(trainer))
    logs = {}
    trainer.log(logs)
    logps = naive_logps(make_policy(sharpness=10.0), tokenizer(prompt)["input_ids"], [0])[0]
    uniform = torch.full((vocabulary,), 1 / vocabulary)
    assert logs["kl"] == pytest.approx(F.kl_div(logps, uniform, reduction="sum").item(), rel=1e-4)


def test_num_tokens_counts_every_token_of_the_forward_passes(make_trainer, make_rows, tokenizer):
    rows = make_rows(6)
    trainer = make_trainer(rows, correct_samples="rewrite")
    expected = 0
    for row in rows:
        sequences = {tuple(row["completion_ids"]), (*tokenizer(row["rewrite"])["input_ids"], tokenizer.eos_token_id)}
        expected += sum(len(tokenizer(row["prompt"])["input_ids"]) + len(ids) for ids in sequences)
    for times in (1, 2):  # the count continues over the whole training
        trainer.model.train()
        trainer.compute_loss(trainer.model, whole_batch(trainer))
        logs = {}
        trainer.log(logs)
        assert logs["num_tokens"] == times * expected


def test_evaluation_datasets_can_be_a_dict_or_passed_to_evaluate(make_trainer, make_rows):
    sets = {"one": Dataset.from_list(make_rows(4, seed=1)), "two": Dataset.from_list(make_rows(4, seed=2))}
    trainer = make_trainer(trainer_kwargs={"eval_dataset": sets})
    metrics = trainer.evaluate()
    assert {"eval_one_loss", "eval_two_loss"} <= metrics.keys()
    assert metrics["eval_one_loss"] != metrics["eval_two_loss"]
    later = trainer.evaluate(Dataset.from_list(make_rows(4, seed=1)), metric_key_prefix="test")
    assert later["test_loss"] == pytest.approx(metrics["eval_one_loss"], rel=1e-6)


def test_an_evaluation_reads_every_sequence_of_a_stream(make_trainer, make_rows):
    """By default, Accelerate cuts the batches of a stream down to as many sequences as there are rows."""
    rows = Dataset.from_list(make_rows(6, seed=1))
    trainer = make_trainer(trainer_kwargs={"eval_dataset": {"rows": rows, "stream": rows.to_iterable_dataset()}})
    metrics = trainer.evaluate()
    names = {name.removeprefix("eval_rows_") for name in metrics if name.startswith("eval_rows_")}
    assert "loss" in names
    for name in names - {"runtime", "samples_per_second", "steps_per_second", "model_preparation_time"}:
        assert metrics[f"eval_stream_{name}"] == pytest.approx(metrics[f"eval_rows_{name}"]), name


@pytest.mark.parametrize("terms", [{}, {"policy_coef": 0.3, "imitation_coef": 2.0}, {"imitation_coef": 0.0}], ids=str)
def test_the_loss_of_an_evaluation_is_that_of_all_its_rows_in_one_batch(terms, make_trainer, make_rows):
    rows = Dataset.from_list(make_rows(7, seed=1))
    in_one, in_three = (
        make_trainer(trainer_kwargs={"eval_dataset": rows}, per_device_eval_batch_size=size, **terms)
        for size in (7, 3)
    )
    batch = next(iter(in_one.get_eval_dataloader()))
    in_one.model.eval()
    with torch.no_grad():
        expected = in_one.compute_loss(in_one.model, batch).item()
    in_one._metric_sums["eval"].clear()
    assert in_one.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert in_three.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)


def test_resuming_gives_the_weights_of_an_uninterrupted_run(make_trainer, make_rows, tmp_path):
    rows = make_rows(16)
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(rows, output_dir=tmp_path / "whole", **settings)
    whole.train()
    resumed = make_trainer(rows, output_dir=tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=1e-7)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "resumed" / "checkpoint-4")
    torch.testing.assert_close(loaded.state_dict(), whole.model.state_dict(), rtol=0, atol=1e-7)


def test_a_stream_trains_for_max_steps(make_trainer, make_rows):
    rows = make_rows(12)

    def generate():
        yield from rows

    for stream in (Dataset.from_list(rows).to_iterable_dataset(), IterableDataset.from_generator(generate)):
        trainer = make_trainer(stream, max_steps=3)
        trainer.train()
        assert trainer.state.global_step == 3
        assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_messages_train_like_texts(make_policy, make_rows, chat_tokenizer, tmp_path):
    rows = make_rows(8)
    conversational = [
        row
        | {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
            "rewrite": [{"role": "assistant", "content": row["rewrite"]}],
        }
        for row in rows
    ]
    # The template of this tokenizer ends a prompt in " attempt"
    standard = [row | {"prompt": f"{row['prompt']} attempt"} for row in rows]
    losses = []
    for dataset in (conversational, standard):
        trainer = RLMECTrainer(
            model=make_policy(),
            args=make_config(tmp_path, correct_samples="rewrite"),
            train_dataset=Dataset.from_list(dataset),
            processing_class=chat_tokenizer,
        )
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("settings", [{}, {"imitation_targets": "soft", "gradient_checkpointing": True}], ids=str)
def test_an_adapter_trains_and_is_saved(settings, make_trainer, make_policy, make_rows, tokenizer, tmp_path):
    policy = make_policy(sharpness=10.0)
    base = copy.deepcopy(policy.state_dict())
    trainer = make_trainer(
        soft_rows(make_rows(8), tokenizer),
        model=policy,
        trainer_kwargs={"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])},
        max_steps=12,
        learning_rate=0.2,
        **settings,
    )
    before = trainer.compute_loss(trainer.model, whole_batch(trainer)).item()
    trainer.train()
    assert trainer.compute_loss(trainer.model, whole_batch(trainer)).item() < before - 0.05
    for name, value in trainer.model.state_dict().items():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if "lora" not in name:
            assert torch.equal(value, base[plain]), name
    trainer.save_model(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "adapter" / "model.safetensors").exists()


def test_an_adapter_gives_the_loss_of_its_base_model_before_training(make_trainer, make_policy, make_rows, tokenizer):
    rows = soft_rows(make_rows(6), tokenizer)
    trainer = make_trainer(
        rows,
        trainer_kwargs={"peft_config": LoraConfig(r=2, target_modules=["q_proj"])},
        imitation_targets="soft",
    )
    loss = trainer.compute_loss(trainer.model, whole_batch(trainer))
    expected, _, _ = naive_loss(make_policy(sharpness=10.0), tokenizer, rows, imitation_targets="soft")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


# --- Data preparation ------------------------------------------------------------------------------------------------


def test_preparation_is_cached_and_depends_only_on_what_it_uses(make_trainer, make_rows, tokenizer, tmp_path):
    Dataset.from_list(make_rows(8)).save_to_disk(tmp_path / "rows")

    def prepared_files(**config):
        trainer = make_trainer(load_from_disk(tmp_path / "rows"), **config)
        return [
            (file["filename"], Path(file["filename"]).stat().st_mtime_ns) for file in trainer.train_dataset.cache_files
        ]

    first = prepared_files()
    assert prepared_files() == first
    assert prepared_files(loss_type="ppo", epsilon=0.1, imitation_temperature=2.0, learning_rate=1.0) == first
    for change in ({"reward_baseline": 0.4}, {"correct_samples": "rewrite"}, {"unedited_weight": 0.3}):
        assert prepared_files(**change) != first


@pytest.mark.parametrize("as_stream", [False, True])
@pytest.mark.parametrize(
    "missing",
    [["rewrite", "rewrite_ids", "rewrite_topk_ids", "rewrite_topk_logps"], ["rewrite_topk_ids", "rewrite_topk_logps"]],
    ids=["rewrite", "distribution"],
)
def test_a_thousand_rows_may_come_before_the_first_with_a_rewrite(
    missing, as_stream, make_trainer, make_rows, tokenizer
):
    """Types are otherwise taken from the first 1,000 rows, where empty lists have none."""
    rows = soft_rows(make_rows(4), tokenizer)
    if "rewrite_ids" not in missing:  # the texts stay; without ids, a rewrite has no distribution
        missing = ["rewrite_ids", *missing]
    bare = [row | dict.fromkeys(missing) for row in rows]
    dataset = Dataset.from_list([*rows, *bare]).select([4, 5, 6, 7] * 251 + [0, 1, 2, 3])
    settings = {"imitation_targets": "soft", "correct_samples": "rewrite", "shuffle_dataset": False}
    trainer = make_trainer(dataset.to_iterable_dataset() if as_stream else dataset, max_steps=1, **settings)
    assert trainer.train_dataset.features == PREPARED_FEATURES
    prepared = list(trainer.train_dataset)
    assert len(prepared) == 1008
    assert [row["row"] for row in prepared] == list(range(1008))
    last = [row | {"row": number} for number, row in enumerate(prepared[-4:])]
    last = Dataset.from_list(last, features=PREPARED_FEATURES)
    assert list(last) == list(make_trainer(rows, **settings).train_dataset)
    trainer.train()


def test_a_prepared_dataset_is_not_prepared_again(make_trainer):
    trainer = make_trainer()
    again = make_trainer(trainer.train_dataset)
    assert list(again.train_dataset) == list(trainer.train_dataset)


def test_a_broken_row_is_refused_before_training(make_trainer, make_rows):
    rows = make_rows(4)
    rows[2]["token_probs"] = rows[2]["token_probs"][:-1]
    with pytest.raises(DatasetError, match="Row 2, column 'token_probs'"):
        make_trainer(rows)


def test_a_missing_column_that_an_option_needs_is_an_error(make_trainer, make_rows):
    ready = [row | {"token_rewards": row["token_probs"]} for row in make_rows(4)]
    with pytest.raises(ValueError, match="`correct_samples='cut'` needs the column `token_probs`"):
        make_trainer(without(ready, "token_probs"), correct_samples="cut")
    with pytest.raises(ValueError, match="`imitation_targets='soft'` needs the columns `rewrite_topk_ids`"):
        make_trainer(make_rows(4), imitation_targets="soft")


@pytest.fixture
def long_rows(make_rows, tokenizer):
    """Correct samples, a `max_length`, and which of the samples it truncates."""
    rows = make_rows(8, kinds=["right"])
    for index, row in enumerate(rows):  # all problems have the same length, so remove leading tokens
        for name in ("completion_ids", "token_probs", "old_logps"):
            row[name] = row[name][2 * index :]
        row["completion"] = row["rewrite"] = tokenizer.decode(row["completion_ids"], skip_special_tokens=True)
    lengths = [len(tokenizer(row["prompt"])["input_ids"]) + len(row["completion_ids"]) for row in rows]
    max_length = sorted(lengths)[4]
    is_truncated = [length > max_length for length in lengths]
    assert 0 < sum(is_truncated) < 8
    return rows, max_length, is_truncated


@pytest.mark.parametrize(
    ("choice", "fate"), [("drop", "left out of imitation"), ("keep", "imitated without their end")]
)
def test_truncated_rows_are_counted_also_when_loaded_from_the_cache(
    choice, fate, make_trainer, long_rows, tmp_path, caplog
):
    rows, max_length, is_truncated = long_rows
    Dataset.from_list(rows).save_to_disk(tmp_path / "rows")
    for _ in range(2):
        caplog.clear()
        make_trainer(load_from_disk(tmp_path / "rows"), max_length=max_length, truncated_rewrites=choice)
        count = sum(is_truncated)
        assert f"`max_length={max_length}` truncates {count} completions and {count} imitation targets" in caplog.text
        assert f"{fate} (`truncated_rewrites='{choice}'`). Raise `max_length`" in caplog.text


def test_truncation_is_counted_only_for_terms_that_are_on(make_trainer, long_rows, caplog):
    rows, max_length, is_truncated = long_rows
    make_trainer(rows, max_length=max_length, imitation_coef=0.0)
    assert f"truncates {sum(is_truncated)} completions and 0 imitation targets" in caplog.text
    caplog.clear()
    make_trainer(rows)
    assert "truncates" not in caplog.text


def test_truncated_targets_are_not_imitated_by_default(make_trainer, long_rows):
    rows, max_length, is_truncated = long_rows

    def imitation_of(rows, **config):
        trainer = make_trainer(rows, policy_coef=0.0, **config)
        batch = whole_batch(trainer)
        return trainer.compute_loss(trainer.model, batch).item(), batch["num_weighted"].sum().item()

    whole_rows = [row for row, truncated in zip(rows, is_truncated, strict=True) if not truncated]
    assert imitation_of(rows, max_length=max_length) == pytest.approx(imitation_of(whole_rows), rel=1e-5)
    _, num_kept = imitation_of(rows, max_length=max_length, truncated_rewrites="keep")
    assert num_kept > imitation_of(whole_rows)[1]


# --- Arguments -------------------------------------------------------------------------------------------------------


def test_the_callers_config_stays_as_it_was(make_policy, make_rows, tokenizer, tmp_path):
    args = make_config(tmp_path, loss_type="ppo")
    before = args.to_dict()
    trainer = RLMECTrainer(
        model=make_policy(), args=args, train_dataset=Dataset.from_list(make_rows(4)), processing_class=tokenizer
    )
    trainer.train()
    assert args.to_dict() == before
    assert args.loss_type == trainer.args.loss_type == "ppo"
    # Also when the constructor fails
    with pytest.raises(ValueError, match="The train dataset is missing"):
        RLMECTrainer(model=make_policy(), args=args, processing_class=tokenizer)
    assert args.to_dict() == before


def test_without_args_the_defaults_are_used(make_policy, make_rows, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The default is bf16, which the config only accepts with a GPU, or with `use_cpu`, which cannot be set here
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    policy = make_policy()
    policy.config._name_or_path = "someone/tiny-policy"
    trainer = RLMECTrainer(model=policy, train_dataset=Dataset.from_list(make_rows(4)), processing_class=tokenizer)
    assert isinstance(trainer.args, RLMECConfig)
    assert Path(trainer.args.output_dir).name == "tiny-policy-RLMEC"
    assert (trainer.args.loss_type, trainer.args.imitation_coef) == ("rlmec", 1.0)


def test_a_model_is_loaded_by_its_path(make_policy, make_rows, tokenizer, tmp_path):
    make_policy().save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    trainer = RLMECTrainer(
        model=str(tmp_path / "policy"),
        args=make_config(tmp_path / "out"),
        train_dataset=Dataset.from_list(make_rows(4)),
    )
    assert isinstance(trainer.processing_class, PreTrainedTokenizerFast)
    trainer.train()


def test_another_config_class_is_refused(make_policy, make_rows, tokenizer, tmp_path):
    with pytest.raises(TypeError, match="must be a `RLMECConfig`, got `SFTConfig`"):
        RLMECTrainer(
            model=make_policy(),
            args=SFTConfig(str(tmp_path), bf16=False, use_cpu=True),
            train_dataset=Dataset.from_list(make_rows(4)),
            processing_class=tokenizer,
        )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"packing": True}, "`packing`"),
        ({"eval_packing": True}, "`eval_packing`"),
        ({"padding_free": True}, "`padding_free`"),
        ({"assistant_only_loss": True}, "`assistant_only_loss`"),
        ({"completion_only_loss": False}, "`completion_only_loss`"),
        ({"label_smoothing_factor": 0.1}, "`imitation_label_smoothing` instead of `label_smoothing_factor`"),
        ({"dataset_kwargs": {"skip_prepare_dataset": True}}, "`skip_prepare_dataset`"),
        ({"truncation_mode": "keep_end"}, "`truncation_mode='keep_start'`"),
        ({"accelerator_config": {"dispatch_batches": True}}, "`dispatch_batches`"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.filterwarnings("ignore:.*`'keep_end'`:FutureWarning")
def test_options_that_would_lose_per_token_columns_are_refused(option, message, make_trainer):
    with pytest.raises(ValueError, match=message):
        make_trainer(**option)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tp_size": 2}, "tensor parallelism.*Set `tp_size` to 1"),
        ({"cp_size": 2}, "context"),
        ({"sp_size": 2}, "context"),
    ],
    ids=str,
)
def test_unsupported_parallelism_is_refused_before_the_model_is_loaded(sizes, message, tmp_path):
    args = make_config(tmp_path)
    args.parallelism_config = ParallelismConfig(**sizes)
    with pytest.raises(ValueError, match=message):
        RLMECTrainer(model=str(tmp_path / "no model here"), args=args)


def test_a_tensor_parallel_model_is_refused(make_trainer, make_policy, tmp_path, monkeypatch):
    for name, value in (("tp_plan", "auto"), ("tp_size", 2)):
        with pytest.raises(ValueError, match="does not support tensor parallelism"):
            make_trainer(model=str(tmp_path / "no model here"), model_init_kwargs={name: value})
    policy = make_policy()
    policy._tp_size = 2  # what `from_pretrained` leaves on a model that it has sharded
    with pytest.raises(ValueError, match="does not support tensor parallelism"):
        make_trainer(model=policy)
    # DeepSpeed and `accelerate launch` configure it where only the finished trainer sees it
    monkeypatch.setattr(RLMECTrainer, "get_tp_size", lambda self: 2)
    with pytest.raises(ValueError, match="does not support tensor parallelism"):
        make_trainer()


@pytest.mark.parametrize(
    "name", ["compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics", "formatting_func"]
)
def test_functions_that_need_logits_or_other_tokens_are_refused(name, make_trainer):
    with pytest.raises(ValueError, match=f"does not support `{name}`"):
        make_trainer(trainer_kwargs={name: lambda *args: None})


def test_outputs_are_refused(make_trainer):
    trainer = make_trainer()
    with pytest.raises(ValueError, match="no logits to return"):
        trainer.compute_loss(trainer.model, whole_batch(trainer), return_outputs=True)


def test_the_model_card_names_the_method_and_its_paper(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.create_model_card(model_name="tiny", dataset_name="sums")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    head = card.split("---")[1]
    for tag in ("trl", "rlmec"):
        assert f"- {tag}\n" in head
    assert "Improving Large Language Models via Fine-grained Reinforcement Learning with Minimum Editing" in card
    assert "2401.06081" in card
    assert "@inproceedings{chen2024rlmec" in card
    assert "RLMEC" in card
    assert {"trl", "rlmec"} <= set(trainer.model.model_tags)


def test_rows_can_be_grouped_by_length(make_trainer, make_rows):
    trainer = make_trainer(make_rows(8), train_sampling_strategy="group_by_length")
    assert len(list(trainer.get_train_dataloader())) == 2
    trainer.train()
