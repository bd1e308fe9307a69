"""Online RLMEC with a reward model wholly behind a server, over real HTTP, against the same model in this process."""

import copy
import runpy
from pathlib import Path

import pytest
import torch

from rlmec_trl import OnlineRLMECConfig, OnlineRLMECTrainer
from rlmec_trl.data.errors import ConfigError
from rlmec_trl.generation.server import ServerConfig, ServerError
from rlmec_trl.grm.generative_reward_model import GenerativeRewardModel
from rlmec_trl.trainers import online_checks
from tests.fake_openai import FakeServer, score_as, speak_as


WORKER = Path(__file__).parents[1] / "online_worker.py"
SETTINGS = {"allow_untrained": True, "show_progress": False, "max_new_tokens": 8}


class EndingGRM(GenerativeRewardModel):
    """Ends its rewrites, which random weights rarely do."""

    def rewrite_ids(self, *args):
        return [[*ids[:-1], self.processing_class.eos_token_id] for ids in super().rewrite_ids(*args)]


def reward_length(completions, **kwargs):
    """An outcome that differs between the completions of random policies."""
    return [float(len(completion) % 3 == 0) for completion in completions]


def verify_all(completions, **kwargs):
    return [True] * len(completions)


@pytest.fixture(scope="module")
def problems():
    from rlmec_trl.tasks.arithmetic import make_arithmetic

    return make_arithmetic(seed=0, warmup=0, train=12, validation=0, test=0)["train"]


@pytest.fixture
def reward_model(make_policy):
    return make_policy(sharpness=8, mixing=8).eval()


@pytest.fixture
def served(reward_model, tokenizer, tmp_path):
    """A server of the reward model, and the folder with all of it but the weights."""
    folder = tmp_path / "grm"
    tokenizer.save_pretrained(folder)
    reward_model.config.save_pretrained(folder)
    model = copy.deepcopy(reward_model)
    with FakeServer(tokenizer, speak_as(model, tokenizer), score_as(model)) as server:
        yield server, str(folder)


@pytest.fixture
def make_trainer(make_policy, tokenizer, problems, tmp_path):
    def make(grm, **settings):
        config = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "num_generations": 2,
            "max_completion_length": 12,
            "max_steps": 2,
            "optim": "sgd",
            "learning_rate": 0.5,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            "rewrite_samples": "all",
            "reward_baseline": 0.02,
            **settings,
        }
        return OnlineRLMECTrainer(
            make_policy(),
            reward_length,
            OnlineRLMECConfig(**config),
            problems,
            processing_class=copy.deepcopy(tokenizer),
            grm=grm,
            rewrite_verifier=verify_all,
        )

    return make


def train(trainer):
    trainer.train()
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def largest_difference(weights, others):
    assert weights.keys() == others.keys()
    return max((weights[name] - others[name]).abs().max().item() for name in weights)


@pytest.mark.parametrize("credit", ["add", "place", "scale", "outcome", "none"])
def test_a_served_grm_trains_the_same_weights_as_a_local_one(
    credit, make_trainer, make_policy, served, reward_model, tokenizer
):
    server, folder = served
    here = EndingGRM(reward_model, tokenizer, max_new_tokens=8, show_progress=False)
    there = EndingGRM.from_server(folder, ServerConfig(server.url), **SETTINGS)
    # One after the other, because each sets the seed
    expected = make_trainer(here, token_credit=credit)
    others = train(expected)
    trainer = make_trainer(there, token_credit=credit)
    weights = train(trainer)
    assert server.exchanges and trainer.grm.model is None
    assert largest_difference(weights, others) <= 1e-6
    assert largest_difference(weights, dict(make_policy().named_parameters())) > 1e-4, "nothing was trained"
    for name in ("rewrite/verified", "token_reward/grm/mean", "imitation_loss"):
        logged, wanted = ([log[name] for log in one.state.log_history if name in log] for one in (trainer, expected))
        assert len(logged) == 2
        assert logged == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"attempt_coef": 0.5}, "`attempt_coef` learns from the reward model's whole distribution"),
        ({"sync_grm": True}, "`sync_grm` changes the reward model's weights"),
    ],
)
def test_what_needs_the_weights_is_refused_before_any_request(settings, message, make_trainer, served):
    server, folder = served
    grm = GenerativeRewardModel.from_server(folder, ServerConfig(server.url), **SETTINGS)
    with pytest.raises(ConfigError, match=message):
        make_trainer(grm, **settings)
    assert not server.exchanges


def test_zero_3_does_not_shard_what_is_on_a_server(make_trainer, served, reward_model, tokenizer, monkeypatch):
    server, folder = served
    monkeypatch.setattr(online_checks, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ConfigError, match="ZeRO-3"):
        make_trainer(EndingGRM(reward_model, tokenizer))
    assert make_trainer(EndingGRM.from_server(folder, ServerConfig(server.url), **SETTINGS)).grm.model is None


def test_a_server_that_cannot_score_stops_the_training_with_its_reason(make_trainer, served):
    server, folder = served
    server.score = None
    trainer = make_trainer(GenerativeRewardModel.from_server(folder, ServerConfig(server.url), **SETTINGS))
    with pytest.raises(ServerError, match="has to support `echo` with `logprobs`"):
        trainer.train()


def test_two_processes_ask_for_their_own_completions_and_give_the_weights_of_one(
    served, make_policy, tokenizer, problems, tmp_path, run_on_two
):
    server, _ = served
    make_policy().save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    # The worker reads the outcomes from the problems
    for name in ("verified", "correct"):
        problems = problems.remove_columns(set(problems.column_names) & {name})
        problems = problems.add_column(name, [name == "verified"] * len(problems))
    problems.save_to_disk(str(tmp_path / "problems"))
    runpy.run_path(str(WORKER))["main"](str(tmp_path), server.url)
    asked = sorted(exchange.body["prompt"] for exchange in server.exchanges if "echo" in exchange.body)
    server.exchanges.clear()
    run_on_two(WORKER, str(tmp_path), server.url)
    one, two = (torch.load(tmp_path / f"{number}.pt")["served"] for number in (1, 2))
    assert largest_difference(one["weights"], two["weights"]) <= 1e-6
    assert len(asked) == 40  # 3 steps of 8 completions, and an evaluation of 16
    assert sorted(exchange.body["prompt"] for exchange in server.exchanges if "echo" in exchange.body) == asked
