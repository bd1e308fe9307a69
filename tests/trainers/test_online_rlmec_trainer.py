"""Online RLMEC on tiny models made in code, against GRPO and against naive references."""

import copy
import math

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from rlmec_trl import OnlineRLMECConfig, OnlineRLMECTrainer
from rlmec_trl.grm.generative_reward_model import GenerativeRewardModel


LOSS_TYPES = ["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "vespo"]


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


@pytest.fixture
def make_grm(make_policy, tokenizer):
    def make(**settings):
        return GenerativeRewardModel(
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
