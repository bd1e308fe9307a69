"""Online training with vLLM, which is not installed here: a stand-in gets the weights and samples from them."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration

from rlmec_trl import OnlineRLMECConfig, OnlineRLMECTrainer
from rlmec_trl.grm.prompts import save_wording
from rlmec_trl.tasks.arithmetic import make_arithmetic
from rlmec_trl.tasks.wording import WORDING


LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}


class StandIn(VLLMGeneration):
    """What TRL asks of vLLM in the same process: it takes weights under their names, and samples."""

    # What is added to the log-probabilities of the samples that it returns
    shift = 0.0

    def _init_vllm(self):
        self.served = AutoModelForCausalLM.from_pretrained(self.model.name_or_path)
        self.received = []
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=self.load_weights))
        executor = SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        engine = SimpleNamespace(model_executor=executor)
        self.llm = SimpleNamespace(llm_engine=engine, reset_prefix_cache=lambda: None)

    def load_weights(self, weights):
        served = dict(self.served.named_parameters())
        for name, weight in weights:
            served[name].data.copy_(weight)  # a name that it does not know is an error, as it is in vLLM
            self.received.append(name)

    def generate(self, prompts, images, num_generations, profiler=None):
        completions, logprobs = [], []
        for prompt in prompts:
            ids, logps = [], []
            for _ in range(self.max_completion_length):
                with torch.no_grad():
                    distribution = self.served(torch.tensor([prompt + ids])).logits[0, -1].log_softmax(-1)
                ids.append(distribution.exp().multinomial(1).item())
                logps.append([distribution[ids[-1]].item() + self.shift])
            completions.append(ids)
            logprobs.append(logps)
        return prompts, completions, logprobs, None


def alternate(prompts, **kwargs):
    return [float(index % 2) for index in range(len(prompts))]


@pytest.fixture
def make_trainer(tmp_path, make_policy, tokenizer, monkeypatch):
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", StandIn)
    base = str(tmp_path / "base")
    make_policy(sharpness=4, mixing=8).save_pretrained(base)
    tokenizer.save_pretrained(base)
    problems = make_arithmetic(seed=0, warmup=0, train=12, validation=0, test=0)["train"]

    def make(grm=None, **settings):
        """With `grm`, policy and reward model are adapters, and these are settings of the latter."""
        name = base
        if grm is not None:
            torch.manual_seed(1)
            model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**LORA, **grm))
            name = str(tmp_path / "grm")
            model.save_pretrained(name)
            tokenizer.save_pretrained(name)
            save_wording(WORDING, name)
        settings = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "num_generations": 2,
            "max_completion_length": 8,
            "max_steps": 2,
            "learning_rate": 0.1,
            "use_vllm": True,
            "bf16": False,
            "use_cpu": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "allow_untrained_grm": True,
            **settings,
        }
        return OnlineRLMECTrainer(
            base,
            alternate,
            OnlineRLMECConfig(**settings),
            problems,
            peft_config=None if grm is None else LoraConfig(**LORA),
            grm=name,
            rewrite_verifier=lambda prompts, **kwargs: [True] * len(prompts),
        )

    return make


@pytest.mark.parametrize(
    ("grm", "shares"),
    [
        pytest.param(None, False, id="no adapters"),
        pytest.param({}, True, id="adapter"),
        pytest.param({"modules_to_save": ["lm_head"]}, False, id="adapter with a whole module"),
    ],
)
def test_vllm_gets_the_weights_of_the_policy_and_nothing_of_the_reward_model(grm, shares, make_trainer):
    trainer = make_trainer(grm)
    assert (trainer.grm.model is trainer.model) == shares
    vllm, names = trainer.vllm_generation, list(dict(trainer.vllm_generation.served.named_parameters()))
    trainer.train()
    assert vllm.received == names * 2
    # What it serves is the policy, after another step and with its adapter alone
    vllm.sync_weights()
    ids = torch.arange(5, 25).unsqueeze(0)
    trainer.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(vllm.served(ids).logits, trainer.model(ids).logits, rtol=0, atol=1e-4)
    ratios = [log["sampling/importance_sampling_ratio/mean"] for log in trainer.state.log_history[:-1]]
    assert ratios == pytest.approx([1.0, 1.0], abs=1e-3)


@pytest.mark.parametrize("mode", ["token_truncate", "sequence_mask"])
def test_the_correction_for_the_sampler_weights_the_credit_of_each_token(mode, make_trainer, monkeypatch):
    monkeypatch.setattr(StandIn, "shift", 0.1)
    trainer = make_trainer(token_credit="place", imitation_coef=0.0, max_steps=1, vllm_importance_sampling_mode=mode)
    seen, compute = [], GRPOTrainer._compute_loss

    def record(self, model, inputs):
        seen.append(inputs)
        return compute(self, model, inputs)

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", record)
    trainer.train()
    (inputs,) = seen
    mask, advantages = inputs["completion_mask"], inputs["advantages"]
    assert advantages.shape == mask.shape and (advantages != 0).any()
    # The samples are claimed to be likelier than they were
    ratio = torch.exp(-0.1 * torch.ones_like(mask))
    if mode.startswith("sequence"):
        ratio = torch.exp(-0.1 * mask.sum(dim=-1, keepdim=True))
    torch.testing.assert_close(inputs["importance_sampling_ratio"].expand_as(mask) * mask, ratio * mask)
    expected = -(advantages * ratio * mask).sum() / mask.sum()
    assert trainer.state.log_history[0]["policy_loss"] == pytest.approx(expected.item(), rel=1e-4)
