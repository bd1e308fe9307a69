"""Online RLMEC on tiny models made in code, against GRPO and against naive references."""

import copy
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from rlmec_trl import OnlineRLMECConfig, OnlineRLMECTrainer
from rlmec_trl.grm.generative_reward_model import GenerativeRewardModel


LOSS_TYPES = ["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "vespo", "luspo"]


def reward_length(completions, **kwargs):
    """An outcome that differs between the completions of random policies."""
    return [float(len(completion) % 3 == 0) for completion in completions]


@pytest.fixture(scope="module")
def problems():
    from rlmec_trl.tasks.arithmetic import make_arithmetic

    return make_arithmetic(seed=0, warmup=0, train=12, validation=0, test=0)["train"]


@pytest.fixture
def arguments(tmp_path):
    def make(**settings):
        return {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "num_generations": 2,
            "max_completion_length": 12,
            "max_steps": 3,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            **settings,
        }

    return make


def train(trainer):
    trainer.train()
    weights = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    return weights, trainer.state.log_history


def largest_difference(weights, others):
    assert weights.keys() == others.keys()
    return max((weights[name] - others[name]).abs().max().item() for name in weights)


class EndingGRM(GenerativeRewardModel):
    """Ends its rewrites, which random weights rarely do."""

    def rewrite_ids(self, *args):
        return [[*ids[:-1], self.processing_class.eos_token_id] for ids in super().rewrite_ids(*args)]


@pytest.fixture
def make_grm(make_policy, tokenizer):
    def make(**settings):
        return EndingGRM(
            make_policy(sharpness=8, mixing=8), tokenizer, max_new_tokens=8, show_progress=False, **settings
        )

    return make


@pytest.mark.parametrize("settings", [{}, {"num_iterations": 2}, {"beta": 0.1}, {"gradient_accumulation_steps": 2}])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_without_token_rewards_it_is_grpo(loss_type, settings, make_policy, tokenizer, problems, arguments, tmp_path):
    if settings.get("beta"):
        make_policy().save_pretrained(tmp_path / "policy")  # for the reference model
    results = []
    for trainer_class, config in ((GRPOTrainer, GRPOConfig), (OnlineRLMECTrainer, OnlineRLMECConfig)):
        model = str(tmp_path / "policy") if settings.get("beta") else make_policy()
        if isinstance(model, str):
            tokenizer.save_pretrained(model)
        trainer = trainer_class(
            model,
            reward_length,
            config(**arguments(loss_type=loss_type, **settings)),
            problems,
            processing_class=copy.deepcopy(tokenizer),
        )
        results.append(train(trainer))
    (weights, history), (others, other_history) = results
    assert largest_difference(weights, others) <= 1e-6
    for step, other in zip(history, other_history, strict=True):
        for name in ("loss", "grad_norm", "reward"):
            assert step.get(name) == pytest.approx(other.get(name), abs=1e-6)
    fresh = dict(make_policy().named_parameters())
    assert largest_difference(weights, {name: fresh[name] for name in weights}) > 1e-4, "nothing was trained"


@pytest.mark.parametrize("credit", ["add", "place", "scale", "outcome"])
def test_grm_scores_rewrites_and_trains(credit, make_policy, make_grm, tokenizer, problems, arguments):
    trainer = OnlineRLMECTrainer(
        make_policy(),
        reward_length,
        OnlineRLMECConfig(**arguments(token_credit=credit, rewrite_samples="all", attempt_coef=0.5)),
        problems,
        processing_class=copy.deepcopy(tokenizer),
        grm=make_grm(),
        rewrite_verifier=lambda completions, **kwargs: [True] * len(completions),
    )
    weights, history = train(trainer)
    steps = [log for log in history if "loss" in log]
    assert len(steps) == 3
    for name in ("policy_loss", "imitation_loss", "attempt_loss", "token_reward/grm/mean", "rewrite/verified"):
        assert all(name in step for step in steps), name
    assert all(math.isfinite(step["loss"]) for step in steps)


def even_share(model, tokenizer, problems):
    """Probability of an even id after each prompt."""
    ids = [tokenizer(prompt)["input_ids"] for prompt in problems["prompt"]]
    with torch.no_grad():
        logits = [model(torch.tensor([row])).logits[0, -1] for row in ids]
    return torch.stack(logits).softmax(dim=-1)[:, ::2].sum(dim=-1).mean().item()


def test_without_an_outcome_token_rewards_alone_train(make_policy, tokenizer, problems, arguments):
    def likes_even_ids(completion_ids, **kwargs):
        return [[1.0 if token % 2 == 0 else -1.0 for token in ids] for ids in completion_ids]

    trainer = OnlineRLMECTrainer(
        make_policy(),
        None,
        OnlineRLMECConfig(**arguments(max_steps=10, learning_rate=0.05, per_device_train_batch_size=12)),
        problems,
        processing_class=copy.deepcopy(tokenizer),
        token_reward_funcs=likes_even_ids,
    )
    train(trainer)
    assert even_share(trainer.model, tokenizer, problems) > even_share(make_policy(), tokenizer, problems) + 0.1


def passes(completions, **kwargs):
    return [True] * len(completions)


def make_trainer(make_policy, tokenizer, problems, config, reward_funcs=reward_length, **settings):
    return OnlineRLMECTrainer(
        make_policy(), reward_funcs, config, problems, processing_class=copy.deepcopy(tokenizer), **settings
    )


def record_rewrites(grm):
    """Keep what a reward model rewrites: prompts, sampled ids and rewrites."""
    recorded, rewrite_ids = [], grm.rewrite_ids

    def rewrite(prompts, references, completions, completion_ids, *others):
        rewrites = rewrite_ids(prompts, references, completions, completion_ids, *others)
        recorded.extend(zip(prompts, completion_ids, rewrites, strict=True))
        return rewrites

    grm.rewrite_ids = rewrite
    return recorded


def test_imitation_without_the_outcome_is_weighted_sft(make_policy, make_grm, tokenizer, problems, arguments):
    from rlmec_trl.credit.alignment import edit_weights

    grm = make_grm()
    recorded = record_rewrites(grm)
    config = OnlineRLMECConfig(
        **arguments(token_credit="none", rewrite_samples="all", max_steps=1, optim="sgd", learning_rate=0.5,
                    lr_scheduler_type="constant", max_grad_norm=0, imitation_coef=2.0, temperature=0.8)
    )  # fmt: skip
    trainer = make_trainer(make_policy, tokenizer, problems, config, grm=grm, rewrite_verifier=passes)
    weights, _ = train(trainer)

    policy = make_policy()
    total, count = 0.0, 0
    for prompt, sampled, rewrite in recorded:
        prompt_ids = tokenizer(prompt)["input_ids"]
        logits = policy(torch.tensor([prompt_ids + rewrite])).logits[0, len(prompt_ids) - 1 : -1]
        logps = (logits / 0.8).log_softmax(dim=-1)[range(len(rewrite)), rewrite]
        token_weights = torch.tensor(edit_weights(sampled, rewrite))
        total = total - (token_weights * logps).sum()
        count += len(rewrite)
    (2.0 * total / count).backward()
    expected = {name: parameter - 0.5 * parameter.grad for name, parameter in policy.named_parameters()}
    assert len(recorded) == 4
    assert largest_difference(weights, {name: expected[name].detach() for name in weights}) <= 1e-6


@pytest.mark.parametrize("kind", ["reverse_kl", "cross_entropy"])
def test_distillation_is_the_divergence_up_to_the_first_flagged_token(
    kind, make_policy, make_grm, tokenizer, problems, arguments
):
    from rlmec_trl.grm.prompts import encode_rewrite_prompt

    grm = make_grm()
    scored, score = [], grm.score_with_states

    def record(prompts, references, completions, completion_ids, *others):
        probs, states = score(prompts, references, completions, completion_ids, *others)
        scored.extend(zip(prompts, references, completions, completion_ids, probs, strict=True))
        return probs, states

    grm.score_with_states = record
    config = OnlineRLMECConfig(
        **arguments(token_credit="none", imitation_coef=0, attempt_coef=1.0, attempt_loss=kind, max_steps=1,
                    optim="sgd", learning_rate=0.5, lr_scheduler_type="constant", max_grad_norm=0,
                    reward_baseline=0.02)
    )  # fmt: skip
    weights, _ = train(make_trainer(make_policy, tokenizer, problems, config, grm=grm))

    policy, total, count = make_policy(), 0.0, 0
    for prompt, reference, completion, ids, probs in scored:
        prompt_ids = tokenizer(prompt)["input_ids"]
        context = encode_rewrite_prompt(tokenizer, grm.wording, prompt, reference, completion)
        with torch.no_grad():
            target = grm.model(torch.tensor([context + ids])).logits[0, len(context) - 1 : -1].log_softmax(-1)
        logps = policy(torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
        flagged = [token for token, prob in enumerate(probs) if prob < 0.02]
        for token in range(flagged[0] + 1 if flagged else len(ids)):
            p, g = logps[token], target[token]
            total = total + ((p.exp() * (p - g)).sum() if kind == "reverse_kl" else -(g.exp() * p).sum())
            count += 1
    (total / count).backward()
    expected = {name: parameter - 0.5 * parameter.grad for name, parameter in policy.named_parameters()}
    lengths = [len(row[3]) for row in scored]
    assert 0 < count < sum(lengths), "no completion is flagged, or all at once"
    assert largest_difference(weights, {name: expected[name].detach() for name in weights}) <= 1e-6


@pytest.mark.parametrize("credit", ["add", "place", "scale"])
def test_cutting_the_batch_otherwise_gives_the_same_weights(
    credit, make_policy, make_grm, tokenizer, problems, arguments
):
    results = []
    for size, steps in ((8, 1), (2, 4)):
        config = OnlineRLMECConfig(
            **arguments(token_credit=credit, rewrite_samples="all", attempt_coef=0.5, top_k=1,
                        per_device_train_batch_size=size, gradient_accumulation_steps=steps, optim="sgd")
        )  # fmt: skip
        trainer = make_trainer(make_policy, tokenizer, problems, config, grm=make_grm(), rewrite_verifier=passes)
        results.append(train(trainer)[0])
    assert largest_difference(*results) <= 1e-5


def test_the_steps_of_a_generation_batch_share_its_rewrites_and_its_counts(
    make_policy, make_grm, tokenizer, problems, arguments
):
    """At a learning rate of 0, four steps of two completions have on average the losses of one step of eight."""
    logs, num_rewrites = [], []
    for settings in (
        {"per_device_train_batch_size": 8, "max_steps": 1},
        {"per_device_train_batch_size": 2, "max_steps": 8, "steps_per_generation": 4, "num_iterations": 2},
    ):
        config = OnlineRLMECConfig(
            **arguments(rewrite_samples="all", attempt_coef=0.5, reward_baseline=0.02, top_k=1, shuffle_dataset=False,
                        optim="sgd", learning_rate=0.0, **settings)
        )  # fmt: skip
        grm = make_grm()
        recorded = record_rewrites(grm)
        trainer = make_trainer(make_policy, tokenizer, problems, config, grm=grm, rewrite_verifier=passes)
        logs.append([step for step in train(trainer)[1] if "imitation_loss" in step])
        num_rewrites.append(len(recorded))
    (whole,), parts = logs
    assert num_rewrites == [8, 8], "completions are rewritten once, however often they are trained on"
    for name in ("imitation_loss", "attempt_loss"):
        values = [step[name] for step in parts]
        assert sum(values[:4]) / 4 == pytest.approx(whole[name], rel=1e-4)
        assert sorted(values[:4]) == pytest.approx(sorted(values[4:]), rel=1e-4), "the second iteration"
        assert max(values) > min(values)


def test_an_evaluation_has_all_terms_and_trains_nothing(
    make_policy, make_grm, tokenizer, problems, make_rows, arguments
):
    config = OnlineRLMECConfig(
        **arguments(rewrite_samples="all", attempt_coef=0.5, per_device_eval_batch_size=6, steps_per_generation=2)
    )
    trainer = make_trainer(
        make_policy, tokenizer, problems, config, eval_dataset=problems.select(range(6)), grm=make_grm(),
        rewrite_verifier=passes, replay_dataset=Dataset.from_list(make_rows(6)),
    )  # fmt: skip
    trainer.model.train()
    metrics = trainer.evaluate()
    for name in ("policy_loss", "imitation_loss", "attempt_loss", "rewrite/verified", "token_reward/grm/mean"):
        assert math.isfinite(trainer.state.log_history[-1][f"eval_{name}"]), name
    log = trainer.state.log_history[-1]
    total = log["eval_policy_loss"] + log["eval_imitation_loss"] + 0.5 * log["eval_attempt_loss"]
    assert metrics["eval_loss"] == pytest.approx(total, rel=1e-4)
    fresh = dict(make_policy().named_parameters())
    assert all(torch.equal(parameter, fresh[name]) for name, parameter in trainer.model.named_parameters())
    # Those of a benchmark may have no reference
    bare = problems.select(range(6)).remove_columns("reference")
    assert math.isfinite(trainer.evaluate(bare)["eval_loss"])


def test_credit_reaches_the_loss_where_it_was_placed(make_policy, make_grm, tokenizer, problems, arguments):
    config = OnlineRLMECConfig(**arguments(token_credit="place", imitation_coef=0, max_steps=1, reward_baseline=0.02))
    trainer = make_trainer(
        make_policy, tokenizer, problems, config, lambda completions, **kwargs: [0.0, 1.0] * 2, grm=make_grm()
    )
    seen, values, compute, judge = [], {}, GRPOTrainer._compute_loss, trainer._judge

    def record(self, model, inputs):
        seen.append(inputs)
        return compute(self, model, inputs)

    def keep_values(*others):
        credit = judge(*others)
        values.update(zip(map(tuple, credit.completion_ids), credit.values, strict=True))
        return credit

    trainer._judge = keep_values
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRPOTrainer, "_compute_loss", record)
        trainer.train()
    (inputs,) = seen
    assert inputs["advantages"].shape == inputs["completion_mask"].shape
    num_placed = 0
    for advantages, ids, mask in zip(
        inputs["advantages"], inputs["completion_ids"], inputs["completion_mask"].bool(), strict=True
    ):
        flagged = [token for token, value in enumerate(values[tuple(ids[mask].tolist())]) if value < 0]
        blamed = (advantages[mask] < 0).nonzero().flatten().tolist()
        praised = (advantages[mask] > 0).nonzero().flatten().tolist()
        if flagged and (blamed or praised):
            assert blamed == flagged[:1] or praised == list(range(flagged[0]))
            num_placed += 1
    assert num_placed > 0


def test_rows_without_a_reference_get_the_outcome_alone(make_policy, make_grm, tokenizer, problems, arguments):
    references = [None if index % 2 else reference for index, reference in enumerate(problems["reference"])]
    problems = problems.remove_columns("reference").add_column("reference", references)
    config = OnlineRLMECConfig(
        **arguments(token_credit="add", rewrite_samples="all", attempt_coef=0.1, shuffle_dataset=False)
    )
    trainer = make_trainer(make_policy, tokenizer, problems, config, grm=make_grm(), rewrite_verifier=passes)
    judged, judge = [], trainer._judge

    def record(inputs, *others):
        credit = judge(inputs, *others)
        judged.extend(zip(inputs, credit.values, credit.rewrite_ids, credit.states, strict=True))
        return credit

    trainer._judge = record
    train(trainer)
    without = [row for row in judged if row[0]["reference"] is None]
    assert without and len(without) < len(judged)
    for _, values, rewrite, states in without:
        assert all(math.isnan(value) for value in values) and rewrite is None and states is None


def test_the_first_reward_function_decides_which_rewrites_are_imitated(
    make_policy, make_grm, tokenizer, problems, arguments
):
    calls = []

    def odd_length(prompts, completions, completion_ids, answer, log_extra, log_metric, **kwargs):
        calls.append(len(prompts))
        log_extra("length", [len(ids) for ids in completion_ids])
        log_metric("odd", 1.0)
        return [float(len(ids) % 2) for ids in completion_ids]

    config = OnlineRLMECConfig(**arguments(rewrite_samples="all", max_steps=1, log_completions=True))
    trainer = make_trainer(make_policy, tokenizer, problems, config, odd_length, grm=make_grm())
    kept, examples = [], trainer._imitation_examples

    def record(*arguments):
        kept.extend(examples(*arguments))
        return kept

    trainer._imitation_examples = record
    trainer.train()
    assert len(calls) == 2 and len(kept) == 4
    imitated = [example["imitation_ids"] for row in kept for example in row]
    assert all(len(ids) % 2 == 1 for ids in imitated)
    assert len(trainer._logs["extra"]["length"]) == 4, "what is logged of the rewrites was mixed with the completions"


def test_replay_rows_are_imitated(make_policy, tokenizer, problems, make_rows, arguments):
    config = OnlineRLMECConfig(**arguments(token_credit="none", replay_fraction=1.5, max_steps=12, learning_rate=0.02))
    trainer = make_trainer(make_policy, tokenizer, problems, config, replay_dataset=Dataset.from_list(make_rows(6)))
    _, history = train(trainer)
    losses = [step["imitation_loss"] for step in history if "imitation_loss" in step]
    assert len(losses) == 12 and losses[-1] < losses[0] - 0.3
    examples = trainer._imitation_examples({"completion_ids": torch.zeros(4, 3)}, None)
    assert sum(map(len, examples)) == 6


def test_terms_beside_that_of_grpo_are_logged_with_it(make_policy, tokenizer, problems, make_rows, arguments):
    config = OnlineRLMECConfig(**arguments(max_steps=1))
    trainer = make_trainer(make_policy, tokenizer, problems, config, replay_dataset=Dataset.from_list(make_rows(6)))
    log = train(trainer)[1][0]
    assert log["loss"] == pytest.approx(log["policy_loss"] + log["imitation_loss"], abs=1e-4)


def test_rewrites_and_replayed_rows_are_imitated_together(
    make_policy, make_grm, tokenizer, problems, make_rows, arguments
):
    config = OnlineRLMECConfig(**arguments(rewrite_samples="all", replay_fraction=1.0))
    replay = Dataset.from_list(make_rows(6))
    trainer = make_trainer(make_policy, tokenizer, problems, config, grm=make_grm(), replay_dataset=replay)
    # TRL shuffles the completions, so that either kind comes first in one of the steps
    trainer._check_rewrites = lambda prompts, *others: [index == 3 for index in range(len(prompts))]
    _, history = train(trainer)
    assert history[0]["rewrite/verified"] == 0.25 and history[0]["imitation_loss"] > 0


def test_asynchronous_functions_and_weights(make_policy, tokenizer, problems, arguments):
    async def ones(completion_ids, **kwargs):
        return [[1.0] * len(ids) for ids in completion_ids]

    def twos(completion_ids, **kwargs):
        return [[2.0] * len(ids) for ids in completion_ids]

    config = OnlineRLMECConfig(**arguments(token_reward_weights=[0.5, -1.0], max_steps=1))
    trainer = make_trainer(make_policy, tokenizer, problems, config, token_reward_funcs=[ones, twos])
    credit = trainer._judge([{"prompt": "a"}] * 2, ["a"] * 2, ["b"] * 2, [[5], [6, 7]], [0.0, 1.0])
    assert credit.values == [[-1.5], [-1.5, -1.5]]
    train(trainer)


def test_a_bad_token_reward_stops_training_and_names_its_function(make_policy, tokenizer, problems, arguments):
    from rlmec_trl.credit.token_reward_funcs import TokenRewardError

    def too_short(completion_ids, **kwargs):
        return [[0.0] * (len(ids) - 1) for ids in completion_ids]

    config = OnlineRLMECConfig(**arguments())
    trainer = make_trainer(make_policy, tokenizer, problems, config, token_reward_funcs=too_short)
    with pytest.raises(TokenRewardError, match="'too_short' returned .* for sample 0"):
        trainer.train()


def test_foreign_tokens_get_no_credit(make_policy, tokenizer, problems, arguments):
    def minus_ones(completion_ids, **kwargs):
        return [[-1.0] * len(ids) for ids in completion_ids]

    def rollout(prompts, trainer):
        ids = [[5, 6, 7, 8]] * len(prompts)
        return {
            "prompt_ids": [[4, 5]] * len(prompts),
            "completion_ids": ids,
            "logprobs": [[-1.0] * 4] * len(prompts),
            "env_mask": [[0, 1, 0, 1]] * len(prompts),
        }

    config = OnlineRLMECConfig(**arguments(token_credit="place", max_steps=1))
    trainer = make_trainer(
        make_policy, tokenizer, problems, config, token_reward_funcs=minus_ones, rollout_func=rollout,
        reward_funcs=lambda prompts, **kwargs: [float(index % 2) for index in range(len(prompts))],
    )  # fmt: skip
    trainer.model.train()
    batch = [problems[index // 2] for index in range(4)]
    output = trainer._generate_and_score_completions(batch)
    assert (output["advantages"][0, [0, 2, 3]] == 0).all() and output["advantages"][0, 1] < 0
    assert (output["advantages"][1, 1:] == 0).all(), "nothing that the policy wrote stands before the first flag"


def test_masked_truncated_completions_teach_nothing(make_policy, make_grm, tokenizer, problems, arguments):
    policy = make_policy()
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    never_end = {"suppress_tokens": [tokenizer.eos_token_id, tokenizer.pad_token_id]}
    config = OnlineRLMECConfig(
        **arguments(mask_truncated_completions=True, imitation_coef=0, attempt_coef=1.0, max_steps=1,
                    generation_kwargs=never_end)
    )  # fmt: skip
    trainer = make_trainer(lambda: policy, tokenizer, problems, config, grm=make_grm())
    weights, history = train(trainer)
    assert history[0]["completions/clipped_ratio"] == 1.0 and history[0]["token_reward/active_fraction"] > 0
    assert largest_difference(weights, {name: before[name] for name in weights}) == 0.0


def test_completions_are_logged_with_their_token_values(make_policy, make_grm, tokenizer, problems, arguments):
    import pandas as pd

    config = OnlineRLMECConfig(**arguments(max_steps=1, log_completions=True, imitation_coef=0))
    trainer = make_trainer(make_policy, tokenizer, problems, config, grm=make_grm())
    trainer.train()
    (path,) = Path(config.output_dir).rglob("*.parquet")
    file = pd.read_parquet(path)
    for column in ("token_reward/grm", "token_advantages"):
        assert [len(values) for values in file[column]] == [len(values) for values in file["token_advantages"]]
        assert all(len(values) > 0 for values in file[column])


def test_the_grm_as_an_adapter_shares_the_base_model(tmp_path, make_policy, tokenizer, problems, arguments):
    from peft import LoraConfig, get_peft_model

    from rlmec_trl.grm.prompts import save_wording
    from rlmec_trl.tasks.wording import WORDING

    base = str(tmp_path / "base")
    make_policy(sharpness=4).save_pretrained(base)
    tokenizer.save_pretrained(base)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(make_policy(sharpness=4), lora)
    adapted.peft_config["default"].base_model_name_or_path = base
    folder = str(tmp_path / "grm")
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_wording(WORDING, folder)

    def build():
        config = OnlineRLMECConfig(
            **arguments(rewrite_samples="all", attempt_coef=0.5, beta=0.05, save_strategy="steps", save_steps=2)
        )
        return OnlineRLMECTrainer(
            base, reward_length, config, problems, grm=folder, rewrite_verifier=passes,
            peft_config=LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        )  # fmt: skip

    trainer = build()
    assert trainer.grm.model is trainer.model, "the base model is in memory twice"
    inputs = (problems["prompt"][:2], problems["reference"][:2], ["59 - 16 is 43"] * 2)
    ids = [tokenizer("59 - 16 is 43")["input_ids"]] * 2
    alone = GenerativeRewardModel(adapted, tokenizer, WORDING, show_progress=False).score(*inputs, ids)
    assert trainer.grm.score(*inputs, ids) == [pytest.approx(row, rel=1e-5) for row in alone]
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    changed = {
        name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])
    }
    assert changed and all(".default." in name for name in changed)
    assert trainer.grm.score(*inputs, ids) == [pytest.approx(row, rel=1e-5) for row in alone]
    saved = {path.name for path in (tmp_path / "out" / "checkpoint-2").rglob("*")}
    assert "adapter_model.safetensors" in saved and "grm" not in saved
    assert "grm" in trainer.model.peft_config

    resumed = build()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    for (name, parameter), other in zip(trainer.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(parameter, other), name


@pytest.mark.parametrize(
    ("settings", "extra", "said"),
    [
        ({"importance_sampling_level": "sequence"}, {"token_reward_funcs": passes}, "importance_sampling_level"),
        ({"loss_type": "luspo"}, {"token_reward_funcs": passes}, "luspo"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, {"token_reward_funcs": passes}, "normalize_then_sum"),
        ({"token_credit": "none", "imitation_coef": 0.0}, {}, "nothing to train on"),
        ({"token_credit": "none"}, {}, "leaves the policy term out"),
        ({"attempt_coef": 1.0}, {}, "needs a `grm`"),
        ({"sync_grm": True}, {}, "needs a `grm`"),
        ({"token_reward_weights": [1.0]}, {}, "1 numbers for 0 sources"),
        ({}, {"reward_funcs": None}, "nothing to train on"),
        ({"negative_reward_range": [0.0, -1.0]}, {}, "lower bound first"),
        ({"replay_fraction": -1.0}, {}, "replay_fraction"),
        ({}, {"token_reward_funcs": [len, len]}, "the same name"),
    ],
)
def test_what_does_not_fit_together_is_refused(settings, extra, said, make_policy, tokenizer, problems, arguments):
    from rlmec_trl.data.errors import ConfigError

    with pytest.raises(ConfigError, match=said):
        config = OnlineRLMECConfig(**arguments(**settings))
        make_trainer(make_policy, tokenizer, problems, config, **extra)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"problems": "no reference"}, "`reference`"),
        ({"reward_funcs": None, "config": {"rewrite_samples": "all"}}, "rewrite_verifier"),
        ({"tools": [len]}, "cannot be used with `tools`"),
    ],
)
def test_a_grm_that_cannot_work_is_refused_before_the_model_is_prepared(
    change, said, make_policy, make_grm, tokenizer, problems, arguments
):
    from rlmec_trl.data.errors import ConfigError

    change = dict(change)
    config = OnlineRLMECConfig(**arguments(**change.pop("config", {})))
    if change.pop("problems", None):
        problems = problems.remove_columns("reference")
    with pytest.raises(ConfigError, match=said):
        make_trainer(make_policy, tokenizer, problems, config, grm=make_grm(), **change)


def test_references_that_do_not_reach_the_trainer_are_an_error(make_policy, make_grm, tokenizer, problems, arguments):
    from rlmec_trl.data.errors import ConfigError

    config = OnlineRLMECConfig(**arguments(remove_unused_columns=True))
    trainer = make_trainer(make_policy, tokenizer, problems, config, grm=make_grm(), rewrite_verifier=passes)
    with pytest.raises(ConfigError, match="from the column `reference`, .* `remove_unused_columns=False`"):
        trainer.train()


def test_a_reward_model_that_is_the_policy_itself_is_refused(make_policy, tokenizer, problems, arguments):
    from rlmec_trl.data.errors import ConfigError

    policy = make_policy()
    grm = GenerativeRewardModel(policy, tokenizer, show_progress=False)
    with pytest.raises(ConfigError, match="Give `grm` a copy"):
        make_trainer(lambda: policy, tokenizer, problems, OnlineRLMECConfig(**arguments(imitation_coef=0)), grm=grm)
    assert all(parameter.requires_grad for parameter in policy.parameters())


def test_a_reward_model_of_other_sizes_cannot_follow_the_policy(make_policy, tokenizer, problems, arguments):
    from transformers import LlamaConfig, LlamaForCausalLM

    from rlmec_trl.data.errors import ConfigError
    from rlmec_trl.trainers.online_checks import check_sync

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    other = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    grm = GenerativeRewardModel(other, tokenizer, show_progress=False)
    config = OnlineRLMECConfig(**arguments(imitation_coef=0, attempt_coef=1.0, sync_grm=True))
    with pytest.raises(ConfigError, match="`sync_grm` needs a reward model of the policy's architecture"):
        make_trainer(make_policy, tokenizer, problems, config, grm=grm)
    with pytest.raises(ConfigError, match="FSDP shards"):
        check_sync(make_policy(), make_policy(), is_sharded=True)


def test_the_reward_model_reads_the_text_of_the_ids(make_policy, make_grm, tokenizer, problems, arguments):
    """A tokenizer that parses responses leaves reasoning out of the content of the message."""
    config = OnlineRLMECConfig(**arguments())
    trainer = make_trainer(make_policy, tokenizer, problems, config, grm=make_grm(), rewrite_verifier=passes)
    completion = "59 - 16 is 43"
    ids = tokenizer(completion)["input_ids"]
    parsed = [{"role": "assistant", "content": "43", "reasoning_content": "59 - 16 is"}]
    values = [
        trainer._judge([problems[0]], [problems[0]["prompt"]], [shown], [ids], [0.0]).values
        for shown in (completion, parsed)
    ]
    assert values[0] == values[1]


def test_a_self_teacher_follows_the_policy(make_policy, make_grm, tokenizer, problems, arguments):
    config = OnlineRLMECConfig(
        **arguments(token_credit="none", imitation_coef=0, attempt_coef=1.0, sync_grm=True, ref_model_sync_steps=1,
                    ref_model_mixup_alpha=0.5, max_steps=2)
    )  # fmt: skip
    grm = make_grm()
    before = {name: parameter.detach().clone() for name, parameter in grm.model.named_parameters()}
    trainer = make_trainer(make_policy, tokenizer, problems, config, grm=grm)
    weights, _ = train(trainer)
    for name, parameter in grm.model.named_parameters():
        assert not parameter.requires_grad
        if not torch.equal(before[name], weights[name]):
            assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_checkpointing": False},
        {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {
            "use_transformers_continuous_batching": True,
            "transformers_continuous_batching_config": {"num_blocks": 16, "max_batch_tokens": 64},
        },
    ],
    ids=["no checkpointing", "reentrant checkpointing", "continuous batching"],
)
def test_settings_of_speed_and_memory_give_the_same_weights(
    settings, make_policy, make_grm, tokenizer, problems, arguments
):
    results = []
    for changed in ({}, settings):
        config = OnlineRLMECConfig(
            **arguments(rewrite_samples="all", attempt_coef=0.5, top_k=1, max_steps=2, optim="sgd", **changed)
        )
        policy = make_policy(sharpness=4)
        trainer = OnlineRLMECTrainer(
            policy, reward_length, config, problems, processing_class=copy.deepcopy(tokenizer), grm=make_grm(),
            rewrite_verifier=passes,
        )  # fmt: skip
        results.append(train(trainer)[0])
    assert largest_difference(*results) <= 1e-6


def test_conversational_prompts(make_policy, tokenizer, chat_tokenizer, problems, arguments):
    grm = EndingGRM(make_policy(sharpness=8), chat_tokenizer, max_new_tokens=8, show_progress=False)
    problems = problems.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    seen = []

    def verify(prompts, completions, **kwargs):
        seen.extend(completions)
        return [True] * len(completions)

    config = OnlineRLMECConfig(**arguments(rewrite_samples="all", max_steps=1))
    trainer = make_trainer(
        make_policy, chat_tokenizer, problems, config, lambda completions, **kwargs: [0.0, 1.0] * 2, grm=grm,
        rewrite_verifier=verify,
    )  # fmt: skip
    train(trainer)
    assert seen and all(completion[0]["role"] == "assistant" for completion in seen)


def test_a_resumed_training_gives_the_weights_of_an_uninterrupted_one(
    make_policy, make_grm, tokenizer, problems, make_rows, arguments, tmp_path
):
    from rlmec_trl.stages.training import train_and_save

    results = []
    for name in ("straight", "resumed"):
        for max_steps in (4,) if name == "straight" else (2, 4):
            config = OnlineRLMECConfig(
                **arguments(output_dir=str(tmp_path / name), rewrite_samples="all", attempt_coef=0.5, max_steps=4,
                            save_strategy="steps", save_steps=2, lr_scheduler_type="constant")
            )  # fmt: skip
            trainer = make_trainer(
                make_policy, tokenizer, problems, config, grm=make_grm(), rewrite_verifier=passes,
                replay_dataset=Dataset.from_list(make_rows(6)),
            )  # fmt: skip
            if max_steps == 2:
                trainer.add_callback(StopAt(2))
            if max_steps == 2:
                with pytest.raises(KeyboardInterrupt):
                    train_and_save(trainer)
            else:
                train_and_save(trainer)
        results.append({name: parameter.detach() for name, parameter in trainer.model.named_parameters()})
    assert largest_difference(*results) == 0.0


class StopAt(TrainerCallback):
    """Ends a training as a kill after a checkpoint would."""

    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_loss_that_is_not_finite_stops_training_before_the_weights_change(
    make_policy, tokenizer, problems, arguments
):
    from rlmec_trl.credit.trainer_checks import NonfiniteError

    config = OnlineRLMECConfig(**arguments())
    trainer = make_trainer(make_policy, tokenizer, problems, config)
    compute = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: compute(model, inputs) * math.nan
    with pytest.raises(NonfiniteError, match="Optimizer step 1: the loss is nan on a completion of one of 4 prompts"):
        trainer.train()
    fresh = dict(make_policy().named_parameters())
    assert all(torch.equal(parameter, fresh[name]) for name, parameter in trainer.model.named_parameters())


def test_settings_of_whole_sequences_are_grpo_where_there_are_no_token_rewards(
    make_policy, tokenizer, problems, arguments
):
    config = OnlineRLMECConfig(**arguments(importance_sampling_level="sequence", loss_type="grpo", max_steps=1))
    train(make_trainer(make_policy, tokenizer, problems, config))


def test_a_completion_without_an_outcome_is_neither_rewarded_nor_rewritten_as_wrong(
    make_policy, make_grm, tokenizer, problems, arguments
):
    config = OnlineRLMECConfig(**arguments())
    trainer = make_trainer(make_policy, tokenizer, problems, config, grm=make_grm(), rewrite_verifier=passes)
    rows, completion = [problems[0]] * 2, "59 - 16 is 43"
    ids = tokenizer(completion)["input_ids"]
    samples = (rows, [rows[0]["prompt"]] * 2, [completion] * 2, [ids] * 2)
    credit = trainer._judge(*samples, [math.nan, 0.0])
    assert all(math.isnan(value) for value in credit.values[0]) and credit.rewrite_ids[0] is None
    assert not any(math.isnan(value) for value in credit.values[1]) and credit.rewrite_ids[1] is not None
