"""A score is that of a plain forward pass over one completion, whatever the batch, the padding and the adapter."""

import copy
import json
import logging
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, LlamaForSequenceClassification
from transformers.integrations.fsdp import is_fsdp_enabled

from rlmec_trl.data.errors import ConfigError, ModelError
from rlmec_trl.data.tokens import encode_completion, encode_prompt
from rlmec_trl.generation.reward_models import SequenceRewardModel


@pytest.fixture
def samples(make_pairs, tokenizer):
    """Prompts and completions of different lengths: with EOS, without, and an empty one."""
    pairs = make_pairs(6)
    completion_ids = [encode_completion(tokenizer, pair["rejected"]) for pair in pairs]
    completion_ids[1] = completion_ids[1][:5]
    completion_ids[4] = []
    return [pair["prompt"] for pair in pairs], completion_ids


def plain(model, tokenizer, samples):
    """The head on the last hidden state of each sequence alone. An adapter changes the layers of its base model."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    scores = []
    with torch.no_grad():
        for prompt, ids in zip(*samples, strict=True):
            states = base.model(torch.tensor([encode_prompt(tokenizer, prompt) + ids])).last_hidden_state
            scores.append(base.score(states)[0, -1, 0].item())
    return scores


def adapter_of(base, seed, scale=1.0):
    """An adapter whose layers and head differ from the base model's."""
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS", init_lora_weights=False)
    torch.manual_seed(seed)
    adapter = get_peft_model(base, config)
    head = adapter.get_base_model().score.modules_to_save["default"]
    head.weight.data = torch.randn_like(head.weight) * scale
    return adapter.eval()


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_scores_are_those_of_plain_forward_passes(batch_size, padding_side, make_reward_model, tokenizer, samples):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = padding_side
    model = make_reward_model()
    expected = plain(model, tokenizer, samples)
    assert SequenceRewardModel(model, tokenizer, batch_size).score(*samples) == pytest.approx(expected, rel=1e-4)
    assert len({round(score, 3) for score in expected}) == 6, "the scores differ"


def test_with_eos_as_padding_the_score_is_that_of_eos(make_reward_model, tokenizer, samples):
    same = copy.deepcopy(tokenizer)
    same.pad_token = same.eos_token
    model = make_reward_model(pad_token_id=same.eos_token_id)
    expected = plain(model, same, samples)
    assert SequenceRewardModel(model, same).score(*samples) == pytest.approx(expected, rel=1e-4)


def test_a_model_and_a_tokenizer_without_a_padding_token(make_reward_model, tokenizer, samples):
    without = copy.deepcopy(tokenizer)
    without.pad_token = None
    model = make_reward_model(pad_token_id=None)
    expected = plain(model, tokenizer, samples)
    assert SequenceRewardModel(model, without).score(*samples) == pytest.approx(expected, rel=1e-4)


def test_the_order_of_the_completions_changes_nothing(make_reward_model, tokenizer, samples):
    reward_model = SequenceRewardModel(make_reward_model(), tokenizer, batch_size=2)
    reverse = [column[::-1] for column in samples]
    assert reward_model.score(*reverse)[::-1] == pytest.approx(reward_model.score(*samples), rel=1e-4)
    assert reward_model.score([], []) == []


def test_messages_and_arguments_of_the_chat_template_are_read(make_reward_model, thinking_tokenizer):
    model = make_reward_model()
    message = [{"role": "user", "content": "59 - 16"}]
    kwargs = [None, {"enable_thinking": True}]
    scores = SequenceRewardModel(model, thinking_tokenizer).score([message] * 2, [[5, 6]] * 2, kwargs)
    for score, each in zip(scores, kwargs, strict=True):
        ids = [*encode_prompt(thinking_tokenizer, message, each), 5, 6]
        assert score == pytest.approx(model(torch.tensor([ids])).logits.item(), rel=1e-4)
    assert scores[0] != pytest.approx(scores[1], rel=1e-3)


def test_scores_are_float32_and_the_mode_and_hooks_of_the_model_are_restored(make_reward_model, tokenizer, samples):
    model = make_reward_model().to(torch.bfloat16).train()
    scores = SequenceRewardModel(model, tokenizer).score(*samples)
    assert all(isinstance(score, float) for score in scores) and model.training
    assert not model.score._forward_hooks and all(parameter.requires_grad for parameter in model.parameters())
    expected = plain(model.float(), tokenizer, samples)
    assert scores == pytest.approx(expected, rel=0.05, abs=0.1)


def test_scores_of_a_bfloat16_model_are_not_rounded_to_bfloat16(make_reward_model, tokenizer, samples):
    """The difference of two close scores would be a matter of rounding."""
    model = make_reward_model().to(torch.bfloat16)
    model.score.weight.data += 3  # large scores, whose differences are small
    states = []
    model.model.register_forward_hook(lambda module, args, outputs: states.append(outputs.last_hidden_state))
    weight = model.score.weight.detach().float()[0]
    scores = SequenceRewardModel(model, tokenizer, batch_size=1).score(*samples)
    assert states[0].dtype == torch.bfloat16
    expected = sorted((state[0, -1].float() @ weight).item() for state in states)
    assert sorted(scores) == pytest.approx(expected, rel=1e-5)
    assert not torch.equal(torch.tensor(scores), torch.tensor(scores).bfloat16().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal(torch.tensor(scores), model.score(states[0]).squeeze().bfloat16().float())
        assert model.score(states[0]).dtype == torch.float32


def test_ids_of_another_tokenizer_are_refused(make_reward_model, tokenizer):
    reward_model = SequenceRewardModel(make_reward_model(), tokenizer)
    with pytest.raises(ConfigError, match="has 60 ids, and completion 1 and its prompt have the id 9999"):
        reward_model.score(["Tom", "Tom"], [[5], [9999]])
    with pytest.raises(ConfigError, match="completion 0 and its prompt have no token at all"):
        reward_model.score([""], [[]])


def test_a_score_that_is_not_finite_is_an_error_and_no_missing_reward(make_reward_model, tokenizer):
    """TRL takes NaN as the opinion of a function that has none."""
    model = make_reward_model()
    model.score.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="The reward model gives completion 0 the score nan"):
        SequenceRewardModel(model, tokenizer).score(["Tom"], [[5]])


@contextmanager
def captured_warnings(caplog):
    """The warnings of Transformers, whose logger does not hand them on."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        yield
    finally:
        logger.removeHandler(caplog.handler)


# --- Adapters --------------------------------------------------------------------------------------------------------


def test_an_adapter_is_switched_on_while_it_scores_and_the_policy_stays_trainable(
    make_reward_model, tokenizer, samples
):
    expected = plain(adapter_of(make_reward_model(), 1), tokenizer, samples)
    shared = adapter_of(make_reward_model(), 2)  # "default": being trained
    other = adapter_of(make_reward_model(), 1)
    shared.add_adapter("quality", copy.deepcopy(other.peft_config["default"]))
    state = {name.replace(".default", ".quality"): value for name, value in other.state_dict().items()}
    shared.load_state_dict({name: value for name, value in state.items() if ".quality" in name}, strict=False)
    before = {name: parameter.requires_grad for name, parameter in shared.named_parameters()}
    reward_model = SequenceRewardModel(shared, tokenizer, adapter_name="quality")
    assert reward_model.score(*samples) == pytest.approx(expected, rel=1e-4)
    assert shared.active_adapter == "default"
    assert {name: parameter.requires_grad for name, parameter in shared.named_parameters()} == before


def test_virtual_tokens_of_prompt_tuning_are_read_and_not_counted(make_reward_model, tokenizer, samples):
    torch.manual_seed(0)
    config = PromptTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS")
    reward_model = SequenceRewardModel(get_peft_model(make_reward_model(), config).eval(), tokenizer)
    together, alone = reward_model.score(*samples), []
    for prompt, ids in zip(*samples, strict=True):
        alone += reward_model.score([prompt], [ids])
    assert together == pytest.approx(alone, rel=1e-4)
    assert together != pytest.approx(plain(make_reward_model(), tokenizer, samples), rel=1e-2)


@pytest.fixture
def saved(tmp_path, make_reward_model, tokenizer):
    """A causal LM, a reward model, and two adapters on the causal LM."""
    reward_model = make_reward_model()
    causal = LlamaForCausalLM(reward_model.config)
    causal.save_pretrained(tmp_path / "causal")
    reward_model.save_pretrained(tmp_path / "whole")
    for seed, name in enumerate(("label", "quality")):
        base = LlamaForSequenceClassification.from_pretrained(tmp_path / "causal", num_labels=1)
        adapter_of(base, seed).save_pretrained(tmp_path / name)
    for name in ("causal", "whole", "label", "quality"):
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path


def test_a_saved_model_is_loaded_frozen_and_gives_its_scores(saved, tokenizer, samples):
    loaded = SequenceRewardModel.from_pretrained(str(saved / "whole"), batch_size=3)
    model = LlamaForSequenceClassification.from_pretrained(saved / "whole")
    assert loaded.score(*samples) == pytest.approx(plain(model, tokenizer, samples), rel=1e-4)
    assert not loaded.model.training and not any(each.requires_grad for each in loaded.model.parameters())


def test_two_adapters_share_one_base_model_and_keep_their_own_scores(saved, tokenizer, samples):
    label = SequenceRewardModel.from_pretrained(str(saved / "label"))
    quality = SequenceRewardModel.from_pretrained(str(saved / "quality"), beside=label)
    assert label.model is quality.model
    for reward_model, name in ((label, "label"), (quality, "quality"), (label, "label")):
        base = LlamaForSequenceClassification.from_pretrained(saved / "causal", num_labels=1)
        alone = PeftModel.from_pretrained(base, saved / name).eval()
        assert reward_model.score(*samples) == pytest.approx(plain(alone, tokenizer, samples), rel=1e-4)
        assert not any(each.requires_grad for each in reward_model.model.parameters())
    whole = SequenceRewardModel.from_pretrained(str(saved / "whole"), beside=label)
    assert whole.model is not label.model


def test_the_heads_of_adapters_on_a_bfloat16_model_keep_the_float32_weights_they_were_saved_with(saved):
    kwargs = {"model_init_kwargs": {"dtype": "bfloat16"}}
    label = SequenceRewardModel.from_pretrained(str(saved / "label"), **kwargs)
    quality = SequenceRewardModel.from_pretrained(str(saved / "quality"), beside=label, **kwargs)
    assert quality.model is label.model and label.model.dtype == torch.bfloat16
    for reward_model, name in ((label, "label"), (quality, "quality")):
        head = label.model.get_base_model().score.modules_to_save[reward_model.adapter_name]
        weights = load_file(saved / name / "adapter_model.safetensors")
        assert torch.equal(head.weight, weights["base_model.model.score.weight"])


def test_no_warning_says_that_the_head_of_an_adapters_base_model_is_missing(saved, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    LlamaForSequenceClassification.from_pretrained(saved / "causal", num_labels=1)
    assert "score.weight" in caplog.text
    caplog.clear()
    SequenceRewardModel.from_pretrained(str(saved / "label"))
    assert not caplog.text


def test_a_model_without_a_trained_head_is_refused(saved, make_reward_model, tokenizer):
    with pytest.raises(ModelError, match="causal' is not a reward model: it has no score head, which would be random"):
        SequenceRewardModel.from_pretrained(str(saved / "causal"))
    config = LoraConfig(r=2, target_modules=["q_proj"])
    base = LlamaForSequenceClassification.from_pretrained(saved / "causal", num_labels=1)
    get_peft_model(base, config).save_pretrained(saved / "headless")
    tokenizer.save_pretrained(saved / "headless")
    label = SequenceRewardModel.from_pretrained(str(saved / "label"))
    for beside in (None, label):
        with pytest.raises(ModelError, match="headless' is not a reward model"):
            SequenceRewardModel.from_pretrained(str(saved / "headless"), beside=beside)
    # Unless its base model has one
    settings = saved / "headless" / "adapter_config.json"
    settings.write_text(
        json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": str(saved / "whole")})
    )
    SequenceRewardModel.from_pretrained(str(saved / "headless"))


@pytest.fixture
def under_fsdp(monkeypatch, tmp_path):
    """A process of a node that is not its first, to which FSDP would send the weights of the first."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    monkeypatch.setenv("LOCAL_RANK", "1")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_each_process_has_the_whole_reward_model_under_fsdp(saved, samples, under_fsdp, monkeypatch):
    for name in ("whole", "label"):
        found = SequenceRewardModel.from_pretrained(str(saved / name)).score(*samples)
        assert is_fsdp_enabled(), "the policy, which is loaded after it, is still sent by the first process"
        with monkeypatch.context() as alone:
            alone.setenv("ACCELERATE_USE_FSDP", "false")
            assert found == SequenceRewardModel.from_pretrained(str(saved / name)).score(*samples)


def test_under_zero3_a_reward_model_is_refused(saved, monkeypatch):
    monkeypatch.setattr("rlmec_trl.generation.reward_models.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ConfigError, match="ZeRO-3 would shard it"):
        SequenceRewardModel.from_pretrained(str(saved / "whole"))


def test_an_adapter_that_has_a_head_is_loaded_without_a_warning_that_its_base_model_has_none(saved, caplog):
    with captured_warnings(caplog):
        SequenceRewardModel.from_pretrained(str(saved / "label"))
    assert not caplog.records
    with captured_warnings(caplog), pytest.raises(ModelError):
        SequenceRewardModel.from_pretrained(str(saved / "causal"))
    assert "score.weight" in caplog.text, "the test sees something"


def test_what_else_cannot_be_loaded_is_named(saved, make_reward_model, tokenizer):
    with pytest.raises(ModelError, match="There is no model 'no model'"):
        SequenceRewardModel.from_pretrained("no model")
    make_reward_model(num_labels=2).save_pretrained(saved / "two")
    tokenizer.save_pretrained(saved / "two")
    with pytest.raises(ModelError, match="two' is not a reward model: .* has 2 outputs"):
        SequenceRewardModel.from_pretrained(str(saved / "two"))
    with pytest.raises(ModelError, match="one output, and this model has 2"):
        SequenceRewardModel(make_reward_model(num_labels=2), tokenizer)
    weights = saved / "label" / "adapter_model.safetensors"
    torch.save({"score": torch.zeros(1)}, saved / "label" / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(ModelError, match="The adapter '.*label' cannot be loaded"):
        SequenceRewardModel.from_pretrained(str(saved / "label"))
