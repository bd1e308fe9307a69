"""Training of generative reward models: its examples, training and saving."""

import json
import re

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from rlmec_trl import GenerativeRewardModel, GRMConfig, GRMTrainer
from rlmec_trl.data.schema import DatasetError
from rlmec_trl.grm.grm_trainer import build_examples
from rlmec_trl.grm.prompts import WORDING_FILE, WordingError, load_wording
from rlmec_trl.tasks.arithmetic import WORDING
from rlmec_trl.tasks.wording import WORDING as DEFAULT_WORDING
from rlmec_trl.tasks.wording import locate_prompt, rewrite_prompt


def make_config(output_dir, **kwargs):
    defaults = {
        "output_dir": str(output_dir),
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return GRMConfig(**(defaults | kwargs))


@pytest.fixture
def make_trainer(tmp_path, make_policy, make_rows, tokenizer):
    def make(rows=None, trainer_kwargs=None, **config):
        return GRMTrainer(
            model=make_policy(sharpness=10.0),
            args=make_config(tmp_path, **config),
            train_dataset=Dataset.from_list(make_rows(9) if rows is None else rows),
            processing_class=tokenizer,
            **({"wording": WORDING} | (trainer_kwargs or {})),
        )

    return make


@pytest.fixture(scope="module")
def letters():
    """One token a character, and one for "12": a text can be sampled as other ids than the tokenizer encodes it as."""
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    vocabulary = {token: index for index, token in enumerate(["<eos>", "<pad>", *characters, "12"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[("1", "2")]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def examples_of(rows, tokenizer, use_locate=True, wording=WORDING):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    examples = build_examples(columns | {"use_locate": [use_locate] * len(rows)}, tokenizer, wording)
    return list(zip(examples["input_ids"], examples["labels"], strict=True))


def kinds_of(dataset, tokenizer):
    """(rewriting examples, locating examples) of a prepared dataset."""
    texts = [tokenizer.decode(row["input_ids"]) for row in dataset]
    return sum(" rewrite :" in text for text in texts), sum(" locate :" in text for text in texts)


def test_examples_have_the_prompts_of_both_tasks_and_labels_on_the_answers_only(make_rows, tokenizer):
    rows = make_rows(6)
    examples = examples_of(rows, tokenizer)
    assert len(examples) == 12
    for row, (rewriting, locating) in zip(rows, zip(examples[::2], examples[1::2], strict=True), strict=True):
        question = (row["prompt"], row["reference"], row["completion"])
        locate = "none" if row["error_step"] == -1 else str(row["error_step"])
        for (input_ids, labels), prompt, answer in (
            (rewriting, rewrite_prompt(WORDING, *question), row["rewrite"]),
            (locating, locate_prompt(WORDING, *question), locate),
        ):
            num_prompt = len(tokenizer(prompt)["input_ids"])
            assert tokenizer.decode(input_ids) == f"{prompt}{answer}<eos>"
            assert labels[:num_prompt] == [-100] * num_prompt
            assert labels[num_prompt:] == input_ids[num_prompt:]
            assert tokenizer.decode(labels[num_prompt:]) == f"{answer}<eos>"


def test_a_row_without_locate_gives_only_the_rewriting_example(make_rows, tokenizer):
    assert len(examples_of(make_rows(6), tokenizer, use_locate=False)) == 6


def test_a_copy_keeps_the_ids_that_were_sampled(letters):
    text = "3 + 4 = 12\nThe answer is 12"
    sampled_ids = [letters.convert_tokens_to_ids(character) for character in text] + [letters.eos_token_id]
    assert sampled_ids != letters(text)["input_ids"] + [letters.eos_token_id]
    row = {
        "prompt": "3 + 4",
        "reference": "7",
        "completion": text,
        "completion_ids": sampled_ids,
        "rewrite": text,
        "error_step": -1,
    }
    ((_, labels),) = examples_of([row], letters, use_locate=False, wording=DEFAULT_WORDING)
    assert [label for label in labels if label != -100] == sampled_ids

    # An edit in the second step leaves the first as it was sampled
    edited = row | {"rewrite": "3 + 4 = 12\nThe answer is 7", "error_step": 1}
    ((_, labels),) = examples_of([edited], letters, use_locate=False, wording=DEFAULT_WORDING)
    first_step = len("3 + 4 = 12\n")
    assert [label for label in labels if label != -100][:first_step] == sampled_ids[:first_step]


def test_completions_given_only_as_text_are_tokenized(make_rows, make_trainer, tokenizer):
    rows = make_rows(3)
    texts = [{name: value for name, value in row.items() if name != "completion_ids"} for row in rows]
    assert examples_of(texts, tokenizer) == examples_of(rows, tokenizer)
    assert len(make_trainer(texts).train_dataset) == 6


def test_messages_give_the_examples_of_their_texts(make_rows, tokenizer):
    rows = make_rows(3)
    conversational = [
        row
        | {
            "prompt": [{"role": "system", "content": "Tom"}, {"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
            "rewrite": [{"role": "assistant", "content": row["rewrite"]}],
        }
        for row in rows
    ]
    assert examples_of(conversational, tokenizer) == examples_of(rows, tokenizer)


def test_a_chat_template_is_applied_to_the_prompt(make_rows, chat_tokenizer):
    row = make_rows(1)[0]
    ((input_ids, _),) = examples_of([row], chat_tokenizer, use_locate=False)
    # The template of this tokenizer ends a prompt in " attempt"
    question = rewrite_prompt(WORDING, row["prompt"], row["reference"], row["completion"])
    assert chat_tokenizer.decode(input_ids) == f"{question} attempt{row['rewrite']}<eos>"


def test_both_questions_carry_the_rows_chat_template_kwargs(make_rows, thinking_tokenizer):
    template_kwargs = [{"enable_thinking": False}, {"enable_thinking": True}, None]
    rows = [row | {"chat_template_kwargs": value} for row, value in zip(make_rows(3), template_kwargs, strict=True)]
    texts = [thinking_tokenizer.decode(input_ids) for input_ids, _ in examples_of(rows, thinking_tokenizer)]
    for end, (rewriting, locating) in zip(
        (" = attempt", " makes attempt", " attempt"), zip(texts[::2], texts[1::2], strict=True), strict=True
    ):
        assert f" rewrite :{end}" in rewriting
        assert f" locate :{end}" in locating


def test_chat_template_kwargs_survive_the_trainers_preparation(make_policy, make_rows, thinking_tokenizer, tmp_path):
    rows = make_rows(3)
    rows[1]["chat_template_kwargs"] = {"enable_thinking": False}
    trainer = GRMTrainer(
        model=make_policy(),
        args=make_config(tmp_path),
        train_dataset=Dataset.from_list([{"chat_template_kwargs": None} | row for row in rows]),
        processing_class=thinking_tokenizer,
        wording=WORDING,
    )
    texts = [thinking_tokenizer.decode(row["input_ids"]) for row in trainer.train_dataset]
    assert sum(" : = attempt" in text for text in texts) == 2
    assert sum(" : attempt" in text for text in texts) == 4


def test_answers_that_max_length_truncates_are_counted(make_trainer, make_rows, caplog):
    rows = make_rows(4)
    longest = max(len(row["input_ids"]) for row in make_trainer(rows).train_dataset)
    assert not caplog.records
    trainer = make_trainer(rows, max_length=longest - 1)
    assert len(trainer.train_dataset) == 8
    assert re.search(rf"`max_length={longest - 1}` truncates [1-3] of the 8 examples of the train", caplog.text)


def test_every_row_gives_both_tasks_by_default(make_trainer, tokenizer):
    assert kinds_of(make_trainer().train_dataset, tokenizer) == (9, 9)


@pytest.mark.parametrize(("fraction", "num_locating"), [(0.0, 0), (0.34, 3), (1.0, 9)])
def test_locate_fraction(fraction, num_locating, make_trainer, tokenizer):
    assert kinds_of(make_trainer(locate_fraction=fraction).train_dataset, tokenizer) == (9, num_locating)


@pytest.mark.parametrize(("ratio", "num_rows"), [(0.0, 3), (0.5, 5), (1.0, 6), (5.0, 9), (None, 9)])
def test_max_correct_ratio_limits_the_copies(ratio, num_rows, make_trainer, make_rows, tokenizer):
    rows = make_rows(9, kinds=["right", "wrong", "right"])
    trainer = make_trainer(rows, max_correct_ratio=ratio)
    assert kinds_of(trainer.train_dataset, tokenizer) == (num_rows, num_rows)
    # Every incorrect attempt is kept
    prepared = [tokenizer.decode(row["input_ids"]) for row in trainer.train_dataset]
    for row in rows:
        if row["error_step"] != -1:
            question = rewrite_prompt(WORDING, row["prompt"], row["reference"], row["completion"])
            assert any(text.startswith(question) for text in prepared)


def test_the_selected_rows_depend_only_on_the_seed(make_trainer, make_rows):
    rows = make_rows(9)
    first, again, other = (
        list(make_trainer(rows, locate_fraction=0.4, seed=seed).train_dataset) for seed in (1, 1, 3)
    )
    assert first == again
    assert first != other


def test_rows_without_a_rewrite_are_left_out(make_trainer, make_rows, tokenizer):
    rows = make_rows(9)
    rows[1] |= {"rewrite": None, "error_step": None}
    rows[4] |= {"rewrite": None}
    assert kinds_of(make_trainer(rows).train_dataset, tokenizer) == (7, 7)


def test_no_row_to_train_on_is_an_error(make_trainer, make_rows):
    with pytest.raises(ValueError, match="no row to train a generative reward model on"):
        make_trainer(make_rows(4, kinds=["right"]), max_correct_ratio=1.0)
    with pytest.raises(ValueError, match="no row to train a generative reward model on"):
        make_trainer([row | {"rewrite": None} for row in make_rows(4)])


def test_broken_rows_are_refused(make_trainer, make_rows):
    rows = make_rows(4)
    rows[2]["error_step"] = -3
    with pytest.raises(DatasetError, match="Row 2, column 'error_step'"):
        make_trainer(rows)
    for name in ("rewrite", "error_step", "reference"):
        incomplete = [{key: value for key, value in row.items() if key != name} for row in make_rows(4)]
        with pytest.raises(DatasetError, match=f"'{name}' is missing"):
            make_trainer(incomplete)


def test_an_iterable_dataset_is_refused(make_trainer, make_rows, make_policy, tokenizer, tmp_path):
    with pytest.raises(DatasetError, match="does not support `IterableDataset`"):
        GRMTrainer(
            model=make_policy(),
            args=make_config(tmp_path),
            train_dataset=Dataset.from_list(make_rows(4)).to_iterable_dataset(),
            processing_class=tokenizer,
        )


@pytest.mark.parametrize("setting", [{"locate_fraction": 1.5}, {"max_correct_ratio": -1.0}], ids=str)
def test_an_invalid_config_is_refused(setting, tmp_path):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}` must"):
        make_config(tmp_path, **setting)


def test_another_config_class_is_refused(make_policy, make_rows, tokenizer, tmp_path):
    from trl import SFTConfig

    with pytest.raises(TypeError, match="must be a `GRMConfig`, got `SFTConfig`"):
        GRMTrainer(
            model=make_policy(),
            args=SFTConfig(str(tmp_path), bf16=False, use_cpu=True),
            train_dataset=Dataset.from_list(make_rows(4)),
            processing_class=tokenizer,
        )


def test_without_args_the_defaults_are_used(make_policy, make_rows, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The default is bf16, which the config accepts only with a GPU or with `use_cpu`, which cannot be set here
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    policy = make_policy()
    policy.config._name_or_path = "someone/tiny-policy"
    trainer = GRMTrainer(model=policy, train_dataset=Dataset.from_list(make_rows(4)), processing_class=tokenizer)
    assert trainer.args.output_dir.endswith("tiny-policy-GRM")
    assert trainer.args.max_length == 2048


def test_it_trains_and_the_loss_falls(make_trainer, make_rows):
    trainer = make_trainer(
        make_rows(8),
        trainer_kwargs={"eval_dataset": {"new": Dataset.from_list(make_rows(4, seed=1))}},
        max_steps=20,
        lr_scheduler_type="constant",
    )
    before = trainer.evaluate()["eval_new_loss"]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-3:]) < sum(losses[:3]) - 3.0
    assert trainer.evaluate()["eval_new_loss"] < before


def test_the_wording_is_saved_with_the_model_and_its_checkpoints_and_found_again(make_trainer, make_rows, tmp_path):
    trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    for folder in ("checkpoint-1", "final"):
        assert load_wording(str(tmp_path / folder)) == WORDING
    assert json.loads((tmp_path / "final" / WORDING_FILE).read_text(encoding="utf-8"))["step_separator"] == " ; "

    reward_model = GenerativeRewardModel.from_pretrained(str(tmp_path / "final"), show_progress=False, batch_size=3)
    assert reward_model.wording == WORDING
    assert reward_model.batch_size == 3
    rows = make_rows(3)
    columns = [[row[name] for row in rows] for name in ("prompt", "reference", "completion", "completion_ids")]
    live = GenerativeRewardModel(trainer.model, trainer.processing_class, WORDING, show_progress=False)
    torch.testing.assert_close(
        [torch.tensor(probs) for probs in reward_model.score(*columns)],
        [torch.tensor(probs) for probs in live.score(*columns)],
    )


def test_only_the_process_that_saves_the_model_saves_the_wording(make_trainer, tmp_path, monkeypatch):
    """The others come to `_save` before the folder is there."""
    trainer = make_trainer()
    monkeypatch.setattr(GRMConfig, "should_save", False)
    trainer.save_model(str(tmp_path / "model"))
    assert not (tmp_path / "model").exists()


def test_a_model_that_is_no_reward_model_is_refused_unless_it_is_meant(make_policy, tokenizer, tmp_path):
    make_policy().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(WordingError, match="was not trained as a generative reward model: it has no grm_wording.json"):
        GenerativeRewardModel.from_pretrained(str(tmp_path))
    assert GenerativeRewardModel.from_pretrained(str(tmp_path), allow_untrained=True).wording == DEFAULT_WORDING
    assert GenerativeRewardModel.from_pretrained(str(tmp_path), wording=WORDING).wording == WORDING


def test_an_adapter_is_saved_with_its_wording_and_loaded_with_its_base_model(
    make_policy, make_rows, tokenizer, tmp_path
):
    make_policy(sharpness=10.0).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    trainer = GRMTrainer(
        model=str(tmp_path / "base"),
        args=make_config(tmp_path / "out", learning_rate=0.1),
        train_dataset=Dataset.from_list(make_rows(6)),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "down_proj"]),
        wording=WORDING,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()

    rows = make_rows(3)
    columns = [[row[name] for row in rows] for name in ("prompt", "reference", "completion", "completion_ids")]
    reward_model = GenerativeRewardModel.from_pretrained(str(tmp_path / "adapter"), show_progress=False)
    assert reward_model.wording == WORDING
    found = reward_model.score(*columns)
    merged = trainer.model.merge_and_unload()
    expected = GenerativeRewardModel(merged, tokenizer, WORDING, show_progress=False).score(*columns)
    torch.testing.assert_close([torch.tensor(p) for p in found], [torch.tensor(p) for p in expected])
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert GenerativeRewardModel(base, tokenizer, WORDING, show_progress=False).score(*columns) != found


def test_the_model_card_names_the_method_and_its_paper(make_trainer, tmp_path):
    make_trainer().create_model_card(model_name="tiny")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for tag in ("trl", "rlmec", "generative-reward-model"):
        assert f"- {tag}\n" in card.split("---")[1]
    assert "2401.06081" in card
