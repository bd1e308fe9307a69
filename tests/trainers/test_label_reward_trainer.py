"""Training of reward models on pairs: what is compared, with which model, and what is measured and refused."""

import copy
import json
import logging
import math

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.trainer_pt_utils import AcceleratorConfig
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from rlmec_trl import LabelRewardConfig, LabelRewardTrainer
from rlmec_trl.credit.trainer_checks import NonfiniteError
from rlmec_trl.data.errors import ConfigError, DatasetError, ModelError
from rlmec_trl.data.tokens import encode_completion, encode_prompt
from rlmec_trl.stages.training import train_and_save
from tests.trainers.test_pair_losses import naive_loss


SETTINGS = {
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "max_steps": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "optim": "sgd",
    "learning_rate": 0.1,
    "disable_tqdm": True,
    "train_sampling_strategy": "sequential",
}


@pytest.fixture
def make_trainer(tmp_path, make_reward_model, make_pairs, tokenizer):
    def make(rows=None, eval_rows=None, model=None, tokenizer=tokenizer, **config):
        others = {name: config.pop(name) for name in OTHERS if name in config}
        return LabelRewardTrainer(
            model or make_reward_model(),
            LabelRewardConfig(**({"output_dir": str(tmp_path)} | SETTINGS | config)),
            train_dataset=as_dataset(make_pairs(8) if rows is None else rows),
            eval_dataset=None if eval_rows is None else as_dataset(eval_rows),
            processing_class=tokenizer,
            **others,
        )

    return make


OTHERS = ("peft_config", "data_collator", "compute_metrics")


def as_dataset(rows):
    return Dataset.from_list(rows) if isinstance(rows, list) else rows


def batch_of(trainer, num_pairs=4):
    return trainer.data_collator([trainer.train_dataset[index] for index in range(num_pairs)])


def plain_values(model, ids):
    """The values of all tokens of one sequence, without padding and without hooks."""
    return model.score(model.model(torch.tensor([ids])).last_hidden_state)[0, :, 0]


def losses_of(model, trainer, indices):
    rows = [trainer.train_dataset[index] for index in indices]
    return [
        naive_loss(
            *(plain_values(model, row[name]) for name in ("chosen_ids", "rejected_ids")),
            row["chosen_ids"],
            row["rejected_ids"],
        )
        for row in rows
    ]


def lora(**changes):
    return LoraConfig(**({"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "SEQ_CLS"} | changes))


# --- The loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_the_loss_and_its_gradients_are_those_of_plain_forward_passes(tied, make_trainer, make_reward_model):
    model = make_reward_model(tie_word_embeddings=tied)
    plain = copy.deepcopy(model)
    trainer = make_trainer(model=model)
    loss = trainer.compute_loss(trainer.model, batch_of(trainer))
    expected = torch.stack(losses_of(plain, trainer, range(4))).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for (name, parameter), other in zip(trainer.model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_last_token_trains_the_weights_that_trl_trains(
    make_trainer, make_reward_model, make_pairs, tokenizer, tmp_path
):
    pairs = [pair | {"margin": 0.1 * index} for index, pair in enumerate(make_pairs(8))]
    ours = make_trainer(pairs, loss_type="last_token", center_rewards_coefficient=0.01)
    theirs = RewardTrainer(
        make_reward_model(),
        RewardConfig(str(tmp_path), center_rewards_coefficient=0.01, **SETTINGS),
        train_dataset=ours.train_dataset.remove_columns(["kind", "row"]),
        processing_class=tokenizer,
    )
    start = make_reward_model().state_dict()
    ours.train()
    theirs.train()
    trained = theirs.model.state_dict()
    assert max((start[name] - value).abs().max() for name, value in trained.items()) > 1e-3
    for name, value in ours.model.state_dict().items():
        torch.testing.assert_close(value, trained[name])
    names = ("loss", "accuracy", "margin", "mean_reward", "min_reward", "max_reward", "num_tokens", "grad_norm")
    for found, expected in zip(ours.state.log_history[:2], theirs.state.log_history[:2], strict=True):
        assert [found[name] for name in names] == pytest.approx([expected[name] for name in names], rel=1e-4)


def test_temperature_and_the_switch_for_padding_values_reach_the_loss(make_trainer):
    losses = {}
    for settings in ({}, {"pair_temperature": 3.0}, {"use_pad_values": True}, {"loss_type": "last_token"}):
        trainer = make_trainer(**settings)
        losses[str(settings)] = round(trainer.compute_loss(trainer.model, batch_of(trainer)).item(), 4)
    assert len(set(losses.values())) == 4, losses


def test_with_eos_as_padding_the_reward_is_that_of_eos(make_trainer, make_reward_model, tokenizer):
    """Transformers takes the last token that is not padding, which would be the one before EOS."""
    same = copy.deepcopy(tokenizer)
    same.pad_token = same.eos_token
    trainer = make_trainer(tokenizer=same, loss_type="last_token")
    _, outputs = trainer.compute_loss(trainer.model, batch_of(trainer), return_outputs=True)
    plain = make_reward_model()
    for name, found in zip(("chosen_ids", "rejected_ids"), outputs.logits.chunk(2), strict=True):
        ids = trainer.train_dataset[0][name]
        assert ids[-1] == tokenizer.eos_token_id
        assert found[0].item() == pytest.approx(plain_values(plain, ids)[-1].item(), rel=1e-4)


def test_a_model_may_be_given_to_another_trainer(make_trainer, make_reward_model):
    model = make_reward_model()
    first, second = make_trainer(model=model), make_trainer(model=model)
    losses = [trainer.compute_loss(trainer.model, batch_of(trainer)) for trainer in (first, second)]
    assert losses[0] == losses[1]


def test_a_bfloat16_model_has_a_float32_loss(make_trainer, make_reward_model):
    trainer = make_trainer(model=make_reward_model().to(torch.bfloat16))
    loss = trainer.compute_loss(trainer.model, batch_of(trainer))
    assert loss.dtype == torch.float32
    trainer.train()
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history[:2])


def test_values_of_a_bfloat16_model_are_compared_in_float32(make_trainer, make_reward_model):
    trainer = make_trainer(model=make_reward_model().to(torch.bfloat16))
    seen = []
    trainer.model.model.register_forward_hook(lambda module, args, outputs: seen.append(outputs.last_hidden_state))
    batch = {name: batch_of(trainer)[name] for name in ("input_ids", "attention_mask")}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = trainer.model(**batch).token_values
    assert values.dtype == torch.float32 and seen[0].dtype == torch.bfloat16
    torch.testing.assert_close(values, seen[0].float() @ trainer.model.score.weight.float()[0])


def test_gradient_checkpointing_changes_nothing(make_trainer):
    logs = []
    for checkpointing in (False, True):
        trainer = make_trainer(gradient_checkpointing=checkpointing)
        trainer.train()
        logs.append([entry["loss"] for entry in trainer.state.log_history[:2]])
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)


# --- Adapters --------------------------------------------------------------------------------------------------------


def test_the_head_of_an_adapter_on_a_bfloat16_model_learns_what_bfloat16_would_round_away(
    make_trainer, make_reward_model, tmp_path
):
    model = make_reward_model().to(torch.bfloat16)
    before = model.score.weight.clone()
    trainer = make_trainer(model=model, peft_config=lora(), optim="adamw_torch", learning_rate=1e-6, max_steps=1)
    trainer.train()
    trainer.save_model()
    after = load_file(tmp_path / "adapter_model.safetensors")["base_model.model.score.weight"]
    assert after.dtype == torch.float32
    assert (after != before.float()).all() and torch.equal(after.bfloat16(), before)


def test_an_adapter_begins_with_the_loss_of_its_base_trains_the_head_and_is_saved_with_it(
    make_trainer, make_reward_model, tmp_path
):
    base = make_reward_model()
    base.save_pretrained(tmp_path / "base")
    model = type(base).from_pretrained(tmp_path / "base")
    trainer = make_trainer(model=model, peft_config=lora(), max_steps=3)
    batch = batch_of(trainer)
    expected = torch.stack(losses_of(base, trainer, range(4))).mean()
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), expected)
    trainer.train()
    head = trainer.model.get_base_model().score.modules_to_save["default"].weight
    assert not torch.equal(head, base.score.weight)
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=1)
    with torch.no_grad():
        rewards = trainer.compute_loss(trainer.model.eval(), batch, return_outputs=True)[1].logits
        plain = loaded(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(rewards, plain)
    assert not torch.allclose(plain, base(batch["input_ids"], batch["attention_mask"]).logits, atol=1e-3)


def test_values_are_counted_from_the_end_because_prompt_tuning_prepends_tokens(make_trainer):
    trainer = make_trainer(peft_config=PromptTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS"))
    alone, batch = batch_of(trainer, 1), batch_of(trainer, 4)
    for each in (alone, batch):
        each["pair_mask"][1:] = False
    losses = [trainer.compute_loss(trainer.model, each) for each in (alone, batch)]
    torch.testing.assert_close(*losses)
    trainer.train()


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", None])
def test_an_adapter_that_would_leave_the_head_untrained_is_refused_before_the_model_is_loaded(task_type, make_trainer):
    with pytest.raises(ConfigError, match="'SEQ_CLS'"):
        make_trainer(model="no/such-model", peft_config=lora(task_type=task_type))


def test_a_given_adapter_without_a_trained_head_is_refused(make_trainer, make_reward_model):
    adapter = get_peft_model(make_reward_model(), lora(task_type=None))
    with pytest.raises(ConfigError, match="score head is not trained"):
        make_trainer(model=adapter)
    make_trainer(model=get_peft_model(make_reward_model(), lora())).train()


def test_a_model_whose_head_pools_is_refused(make_trainer, tokenizer):
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(**sizes, vocab_size=len(tokenizer), num_labels=1))
    with pytest.raises(ModelError, match="`BertForSequenceClassification` has no head named `score`"):
        make_trainer(model=model)


# --- Rows ------------------------------------------------------------------------------------------------------------


def test_prompt_and_response_are_encoded_apart_as_in_sampling(make_trainer, make_pairs, tokenizer):
    pair = make_pairs(1)[0]
    prepared = make_trainer([pair] * 4).train_dataset[3]
    for name in ("chosen", "rejected"):
        expected = encode_prompt(tokenizer, pair["prompt"]) + encode_completion(tokenizer, pair[name])
        assert prepared[f"{name}_ids"] == expected and expected[-1] == tokenizer.eos_token_id
    assert (prepared["kind"], prepared["row"]) == ("label", 3)


def test_messages_go_through_the_chat_template_up_to_the_response(make_trainer, make_pairs, thinking_tokenizer):
    pair = make_pairs(1)[0]
    prompt = [{"role": "user", "content": pair["prompt"]}]
    row = {"prompt": prompt, "chat_template_kwargs": {"enable_thinking": False}}
    row |= {name: [{"role": "assistant", "content": pair[name]}] for name in ("chosen", "rejected")}
    prepared = make_trainer([row] * 4, tokenizer=thinking_tokenizer).train_dataset[0]
    expected = encode_prompt(thinking_tokenizer, prompt, {"enable_thinking": False})
    assert expected != encode_prompt(thinking_tokenizer, prompt)
    assert prepared["chosen_ids"] == [*expected, *encode_completion(thinking_tokenizer, pair["chosen"])]


def test_a_stream_trains_and_its_rows_are_checked_as_they_are_read(make_trainer, make_pairs):
    pairs = make_pairs(8)

    def stream(rows):
        return IterableDataset.from_generator(lambda: iter(rows))

    reference = make_trainer(pairs)
    reference.train()
    trainer = make_trainer(stream(pairs), stream(pairs))
    trainer.train()
    losses = [[entry["loss"] for entry in each.state.log_history[:2]] for each in (reference, trainer)]
    assert losses[0] == losses[1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(reference.evaluate(as_dataset(pairs))["eval_loss"])
    with pytest.raises(DatasetError, match="Row 6, column 'chosen'"):
        make_trainer(stream([*pairs[:6], pairs[6] | {"chosen": " "}])).train()


def test_tokenized_pairs_are_used_as_they_are(make_trainer):
    ready = make_trainer().train_dataset
    again = make_trainer(ready.remove_columns(["row", "kind"])).train_dataset
    assert again["chosen_ids"] == ready["chosen_ids"] and again["row"] == ready["row"]


def test_pairs_that_are_too_long_are_dropped_with_a_warning(make_trainer, make_pairs, caplog):
    pairs = make_pairs(8)
    pairs[2]["rejected"] += " 1" * 60
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(pairs, max_length=60)
    assert trainer.train_dataset["row"] == [0, 1, 3, 4, 5, 6, 7]
    assert "Dropped 1 of the 8 pairs of the train dataset: one of their sequences" in caplog.text
    with pytest.raises(DatasetError, match="No example of the train dataset is left"):
        make_trainer(max_length=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "Row 2, column 'prompt': found None"),
        ({"chosen": ""}, "Row 2, column 'chosen': found an empty text"),
        ({"rejected": None}, "Row 2, column 'rejected': found None"),
        ({"kind": "labels"}, "Row 2, column 'kind': found 'labels'. It must be one of 'label', 'rationale'"),
        ({"kind": None}, "Row 2, column 'kind': found None"),
        ({"margin": math.nan}, "Row 2, column 'margin': found nan"),
        ({"margin": None}, "Row 2, column 'margin': found None"),
    ],
)
def test_a_broken_row_is_named_in_every_dataset(change, message, make_trainer, make_pairs):
    rows = [pair | {"margin": 0.0} for pair in make_pairs(4)]
    rows[2] |= change
    with pytest.raises(DatasetError, match=message):
        make_trainer(rows)
    with pytest.raises(DatasetError, match=f"In the eval dataset: {message}"):
        make_trainer(make_pairs(4), rows)
    with pytest.raises(DatasetError, match=message):
        make_trainer().evaluate(as_dataset(rows))


def test_a_response_of_several_messages_is_refused(make_trainer, make_pairs, chat_tokenizer):
    messages = [{"role": "assistant", "content": "59"}, {"role": "user", "content": "16"}]
    row = {"prompt": messages[1:], "chosen": messages, "rejected": messages[:1]}
    with pytest.raises(DatasetError, match="Row 0, column 'chosen': found 2 messages. A response is one message"):
        make_trainer([row] * 4, tokenizer=chat_tokenizer)


def test_an_implicit_prompt_is_refused_with_the_way_out(make_trainer, make_pairs):
    import trl

    rows = [{name: pair["prompt"] + pair[name] for name in ("chosen", "rejected")} for pair in make_pairs(4)]
    with pytest.raises(DatasetError, match="Column 'prompt' is missing.*trl.extract_prompt"):
        make_trainer(rows)
    make_trainer(as_dataset(rows).map(trl.extract_prompt))


def test_ids_of_another_tokenizer_are_refused(make_trainer, tokenizer):
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(["59"])
    row = {"prompt": "59", "chosen": "1", "rejected": "2"}
    with pytest.raises(
        DatasetError, match=rf"column 'chosen_ids': found the token id {len(tokenizer)}, and the model"
    ):
        make_trainer([row] * 4, tokenizer=larger)
    with pytest.raises(DatasetError, match=r"Row 1, column 'rejected_ids': found the token id 999"):
        make_trainer([{"chosen_ids": [5], "rejected_ids": [6]}, {"chosen_ids": [5], "rejected_ids": [999]}])


# --- What is measured ------------------------------------------------------------------------------------------------


def test_each_kind_of_pair_has_its_own_accuracy_margin_and_loss(make_trainer, make_pairs, make_reward_model):
    rows = [pair | {"kind": "label" if index < 2 else "rationale"} for index, pair in enumerate(make_pairs(7))]
    trainer = make_trainer(rows, rows)
    found = trainer.evaluate()
    plain = make_reward_model()
    losses = torch.stack(losses_of(plain, trainer, range(7))).tolist()
    margins = [
        (plain_values(plain, row["chosen_ids"])[-1] - plain_values(plain, row["rejected_ids"])[-1]).item()
        for row in trainer.train_dataset
    ]
    for name, part in (("", slice(0, 7)), ("/label", slice(0, 2)), ("/rationale", slice(2, 7))):
        margin, loss = torch.tensor(margins[part]), torch.tensor(losses[part])
        assert found[f"eval_accuracy{name}"] == pytest.approx((margin > 0).float().mean().item())
        assert found[f"eval_margin{name}"] == pytest.approx(margin.mean().item(), rel=1e-4, abs=1e-5)
        assert found[f"eval_loss{name}"] == pytest.approx(loss.mean().item(), rel=1e-4)
    assert 0 < found["eval_accuracy"] < 1, "the test sees something"


def test_a_kind_that_is_not_there_has_no_accuracy(make_trainer, make_pairs):
    rows = [pair | {"kind": "label"} for pair in make_pairs(8)]
    trainer = make_trainer(rows, [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows])
    trainer.train()
    names = trainer.state.log_history[0].keys()
    assert {"accuracy/label", "margin/label", "loss/label"} <= names and "accuracy/rationale" not in names
    assert not any("/" in name for name in trainer.evaluate())


def test_pairs_that_only_fill_up_a_batch_count_nothing(make_trainer):
    trainer = make_trainer()
    whole = batch_of(trainer, 4)
    masked = trainer._mask_last_rows(whole, 3)
    masked["margin"] = torch.tensor([0.0, math.nan, math.nan, math.nan])
    loss = trainer.compute_loss(trainer.model, masked)
    torch.testing.assert_close(loss, trainer.compute_loss(trainer.model, batch_of(trainer, 1)))
    assert whole["pair_mask"].all(), "the given batch is unchanged"
    _, count = trainer._metric_sums["eval"]["accuracy"]
    assert count == 2
    assert trainer._get_num_items_in_batch([masked, whole], torch.device("cpu")) == 5


def test_a_loss_that_is_not_finite_stops_training_and_names_its_rows(make_trainer, make_reward_model, tokenizer):
    model = make_reward_model()
    rows = [{"prompt": "Tom has 1 nuts.", "chosen": "1", "rejected": "2"} for _ in range(8)]
    rows[5]["chosen"] = "; ;"
    semicolon = tokenizer.convert_tokens_to_ids(";")

    def poison(module, args, output):
        return output.masked_fill((args[0] == semicolon).unsqueeze(-1), math.nan)

    model.get_input_embeddings().register_forward_hook(poison)
    trainer = make_trainer(rows, model=model, per_device_train_batch_size=2, per_device_eval_batch_size=2, max_steps=4)
    with pytest.raises(NonfiniteError, match=r"Optimizer step 3: the loss is nan on rows 4, 5 of the training"):
        trainer.train()
    with pytest.raises(NonfiniteError, match=r"the loss is nan on rows 4, 5 of the evaluation"):
        trainer.evaluate(as_dataset(rows))


def test_the_collator_of_trl_and_metrics_of_the_user_work_too(make_trainer, make_pairs, tokenizer):
    seen = []

    def compute_metrics(prediction):
        chosen, rejected = torch.tensor(prediction.predictions).reshape(2, 2, 4).transpose(0, 1).reshape(2, 8)
        seen.append((chosen > rejected).float().mean().item())
        return {"own": seen[-1]}

    trainer = make_trainer(make_pairs(8), make_pairs(8), compute_metrics=compute_metrics)
    found = trainer.evaluate()
    assert found["eval_own"] == found["eval_accuracy"]
    plain = make_trainer(data_collator=DataCollatorForPreference(tokenizer.pad_token_id))
    ours = make_trainer()
    for trainer in (plain, ours):
        trainer.train()
    losses = [[entry["loss"] for entry in each.state.log_history[:2]] for each in (plain, ours)]
    assert losses[0] == losses[1]


# --- Arguments -------------------------------------------------------------------------------------------------------


def test_what_cannot_work_is_refused(make_trainer, make_reward_model, tokenizer, tmp_path, make_pairs):
    with pytest.raises(TypeError, match="must be a `LabelRewardConfig`, got `RewardConfig`"):
        LabelRewardTrainer(make_reward_model(), RewardConfig(str(tmp_path), **SETTINGS))
    with pytest.raises(ConfigError, match="`dispatch_batches`"):
        make_trainer(accelerator_config=AcceleratorConfig(dispatch_batches=True))
    with pytest.raises(ConfigError, match="`loss_type` must be one of 'divergent_tokens', 'last_token'"):
        make_trainer(loss_type="last")
    with pytest.raises(ConfigError, match="`pair_temperature`"):
        make_trainer(pair_temperature=0.0)
    without = copy.deepcopy(tokenizer)
    without.eos_token = None
    with pytest.raises(ConfigError, match="no EOS token"):
        make_trainer(tokenizer=without)


def test_the_config_of_the_caller_is_not_changed(make_reward_model, make_pairs, tokenizer, tmp_path):
    args = LabelRewardConfig(str(tmp_path), **SETTINGS)
    before = json.dumps(args.to_dict(), default=str)
    LabelRewardTrainer(make_reward_model(), args, None, as_dataset(make_pairs(4)), None, tokenizer)
    assert json.dumps(args.to_dict(), default=str) == before


def test_the_model_card_cites_the_paper(make_trainer, tmp_path):
    make_trainer().create_model_card(model_name="label-reward")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "LabelReward" in card and "https://huggingface.co/papers/2405.19763" in card and "liao2024rllr" in card
    assert "- rllr" in card and "- reward-trainer" in card


def test_an_interrupted_training_has_the_log_and_the_weights_of_a_straight_one(make_trainer, make_pairs, tmp_path):
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    settings = {"max_steps": 4, "logging_steps": 4, "save_strategy": "steps", "save_steps": 2}
    straight, interrupted, resumed = (
        make_trainer(make_pairs(16), output_dir=str(tmp_path / name), **settings) for name in ("a", "b", "b")
    )
    train_and_save(straight)
    interrupted.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        train_and_save(interrupted)
    train_and_save(resumed)
    clock = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")
    logs = [
        [{name: value for name, value in entry.items() if name not in clock} for entry in each.state.log_history]
        for each in (straight, resumed)
    ]
    assert logs[0][0] == logs[1][0] and "accuracy/label" in logs[0][0]
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
