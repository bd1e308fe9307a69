"""Online training where policy and reward model are adapters, or are quantized."""

import importlib.util
import json

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from rlmec_trl import GenerativeRewardModel, OnlineRLMECConfig, OnlineRLMECTrainer
from rlmec_trl.data.errors import UserError
from rlmec_trl.grm.prompts import save_wording
from rlmec_trl.tasks.arithmetic import make_arithmetic
from rlmec_trl.tasks.wording import WORDING


quantization = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra `quantization`)"
)
FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def problems():
    return make_arithmetic(seed=0, warmup=0, train=12, validation=0, test=0)["train"]


@pytest.fixture
def make_adapter(base, tmp_path, tokenizer):
    def make(lora=None, name="grm"):
        """A reward model with large weights, as a trainer saves it."""
        torch.manual_seed(0)
        lora = lora or LoraConfig(init_lora_weights=False, **LORA)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        save_wording(WORDING, tmp_path / name)
        return str(tmp_path / name)

    return make


@pytest.fixture
def make_trainer(base, problems, tmp_path):
    def make(grm, lora=None, quantized=False, output_dir="out", **settings):
        settings = {
            "output_dir": str(tmp_path / output_dir),
            "per_device_train_batch_size": 2,
            "num_generations": 2,
            "max_completion_length": 6,
            "max_steps": 1,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            "imitation_coef": 0.0,
            "allow_untrained_grm": True,
            **settings,
        }
        return OnlineRLMECTrainer(
            base,
            lambda prompts, **kwargs: [float(index % 2) for index in range(len(prompts))],
            OnlineRLMECConfig(**settings),
            problems,
            grm=grm,
            quantization_config=BitsAndBytesConfig(**FOUR_BITS) if quantized else None,
            peft_config=lora,
            rewrite_verifier=lambda prompts, **kwargs: [True] * len(prompts),
        )

    return make


def adapters(model):
    """The weights of all adapters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if "lora" in name}


def scores(grm, tokenizer, problems):
    texts = ["59 - 16 is 43", "23 + 20 = 44 ; The answer is 44"]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    return [prob for row in grm.score(problems["prompt"][:2], problems["reference"][:2], texts, ids) for prob in row]


@pytest.mark.parametrize("owner", ["policy", "grm"])
def test_a_shared_reward_model_teaches_what_a_separate_one_does_where_an_adapter_has_its_own_head(
    owner, make_adapter, make_trainer
):
    head = {"modules_to_save": ["lm_head"]}
    grm = make_adapter(LoraConfig(**LORA, **(head if owner == "grm" else {})))
    losses = []
    for shared in (True, False):
        torch.manual_seed(0)
        trainer = make_trainer(
            grm if shared else GenerativeRewardModel.from_pretrained(grm, show_progress=False),
            LoraConfig(**LORA, **(head if owner == "policy" else {})),
            token_credit="none", attempt_coef=1.0, max_steps=2, learning_rate=0.1, top_k=1,
        )  # fmt: skip
        assert (trainer.grm.model is trainer.model) == shared
        trainer.train()
        losses.append([log["attempt_loss"] for log in trainer.state.log_history[:-1]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("grm", "own"),
    [
        pytest.param(IA3Config(task_type="CAUSAL_LM"), LoraConfig(**LORA), id="another type"),
        pytest.param(LoraConfig(bias="all", **LORA), LoraConfig(**LORA), id="reward model with biases"),
        pytest.param(LoraConfig(**LORA), LoraConfig(bias="all", **LORA), id="policy with biases"),
    ],
)
def test_an_adapter_that_cannot_stand_beside_the_policys_is_loaded_beside_the_policy(
    grm, own, make_adapter, make_trainer, tokenizer, problems
):
    trainer = make_trainer(make_adapter(grm), own)
    assert trainer.grm.model is not trainer.model and set(trainer.model.peft_config) == {"default"}
    assert len(scores(trainer.grm, tokenizer, problems)) > 0


@pytest.mark.parametrize("quantized", [False, pytest.param(True, marks=quantization)], ids=["lora", "qlora"])
def test_an_adapter_and_its_reward_model_on_one_base_model_are_trained_saved_and_resumed(
    quantized, make_adapter, make_trainer, tokenizer, problems, tmp_path, monkeypatch
):
    if quantized:
        # On some CPUs, bitsandbytes packs weights for inference in evaluation mode, and has no gradients from then on
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    grm = make_adapter()
    lora = LoraConfig(**LORA)
    saving = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "beta": 0.1, "attempt_coef": 0.5}
    trainer = make_trainer(grm, lora, quantized=quantized, **saving)
    assert trainer.grm.model is trainer.model
    init_kwargs = {"quantization_config": FOUR_BITS} if quantized else {}
    alone = GenerativeRewardModel.from_pretrained(
        grm, model_init_kwargs={"dtype": torch.float32, **init_kwargs}, show_progress=False
    )
    expected = pytest.approx(scores(alone, tokenizer, problems), rel=1e-3)
    assert scores(trainer.grm, tokenizer, problems) == expected
    start = adapters(trainer.model)
    trainer.train()
    trained = adapters(trainer.model)
    for name, parameter in trained.items():
        assert torch.equal(parameter, start[name]) != (".default." in name), name
    assert scores(trainer.grm, tokenizer, problems) == expected

    # A checkpoint has the policy's adapter alone, and training resumes from it
    checkpoint = tmp_path / "out" / "checkpoint-1"
    saved = load_file(checkpoint / "adapter_model.safetensors")
    assert len(saved) == len(trained) / 2 and not any("grm" in name for name in saved)
    assert not [path.name for path in checkpoint.iterdir() if path.is_dir()]
    resumed = make_trainer(grm, lora, quantized=quantized, output_dir="resumed", **saving)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    torch.testing.assert_close(adapters(resumed.model), trained)


@quantization
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_reward_model_judges_and_teaches(bits, make_trainer, base, tokenizer):
    save_wording(WORDING, base)
    settings = {f"load_in_{bits}bit": True}
    # As on the command line, and in Python
    for given in (
        json.dumps({"quantization_config": settings}),
        {"quantization_config": BitsAndBytesConfig(**settings)},
    ):
        trainer = make_trainer(base, grm_init_kwargs=given, attempt_coef=0.5)
        assert trainer.grm.model.is_quantized and not hasattr(trainer.model, "is_quantized")
    json.loads(trainer.args.to_json_string())  # for the loggers
    trainer.train()
    assert trainer.state.log_history[0]["attempt_loss"] > 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"load_in_4bit": True}, '"quantization_config": {"load_in_4bit": true}'),
        ('{"load_in_8bit": true}', '"quantization_config": {"load_in_8bit": true}'),
        ("load_in_4bit", "`grm_init_kwargs` must be a dictionary"),
    ],
)
def test_arguments_that_no_reward_model_takes_are_refused(given, said, make_trainer, base):
    save_wording(WORDING, base)
    with pytest.raises(UserError, match=said):
        make_trainer(base, grm_init_kwargs=given)
