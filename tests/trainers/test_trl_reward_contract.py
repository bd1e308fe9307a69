"""The private parts of TRL, PEFT and Transformers that `LabelRewardTrainer` relies on, one test each."""

import inspect
from functools import partial

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from peft.utils import ModulesToSaveWrapper
from transformers import LlamaForCausalLM, LlamaForSequenceClassification
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference, suppress_seqcls_warning

from rlmec_trl import LabelRewardTrainer


@pytest.fixture
def make_reward_trainer(make_reward_model, tokenizer, tmp_path):
    def make(trainer_class=RewardTrainer, rows=None, **config):
        settings = {"bf16": False, "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
        rows = rows or [{"chosen_ids": [5, 6, index], "rejected_ids": [5, 7]} for index in range(8, 12)]
        return trainer_class(
            make_reward_model(),
            RewardConfig(str(tmp_path), max_steps=1, gradient_checkpointing=False, **settings, **config),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )

    return make


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_what_the_reward_trainer_overrides_takes_what_ours_takes():
    for name in (
        "_prepare_dataset", "_set_signature_columns_if_needed", "_get_num_items_in_batch", "compute_loss",
        "evaluation_loop", "log", "prediction_step", "training_step",
    ):  # fmt: skip
        given = parameters(getattr(RewardTrainer, name))
        if given != ["self", "args", "kwargs"]:  # of TRL's context for offloading, which hands them on
            assert parameters(getattr(LabelRewardTrainer, name)) == given, name


def test_our_constructor_takes_what_reward_trainer_takes_in_its_order():
    assert parameters(LabelRewardTrainer.__init__) == parameters(RewardTrainer.__init__)
    assert parameters(RewardTrainer.__init__)[1:7] == [
        "model", "args", "data_collator", "train_dataset", "eval_dataset", "processing_class",
    ]  # fmt: skip


def test_the_reward_trainer_prepares_every_dataset_by_one_method(make_reward_trainer):
    calls = []

    class Spy(RewardTrainer):
        def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
            calls.append(dataset_name)
            return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    trainer = make_reward_trainer(Spy)
    trainer.evaluate(trainer.train_dataset)
    trainer.evaluate({"other": trainer.train_dataset})
    assert calls[:3] == ["train", "eval", "other"]


def test_it_keeps_tokenized_pairs_with_their_columns_and_drops_those_that_are_too_long(make_reward_trainer):
    rows = [{"chosen_ids": [5] * size, "rejected_ids": [6], "row": size} for size in (3, 4, 5)]
    prepared = make_reward_trainer(rows=rows, max_length=4).train_dataset
    assert prepared["row"] == [3, 4] and prepared["chosen_ids"] == [[5] * 3, [5] * 4]


def test_the_collator_puts_the_chosen_sequences_first_and_pads_on_the_right():
    examples = [{"chosen_ids": [5, 6], "rejected_ids": [7], "margin": 0.5}, {"chosen_ids": [8], "rejected_ids": [9]}]
    examples[1]["margin"] = 1.0
    batch = DataCollatorForPreference(pad_token_id=0).torch_call(examples)
    assert batch["input_ids"].tolist() == [[5, 6], [8, 0], [7, 0], [9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0], [1, 0], [1, 0]]
    assert batch["margin"].tolist() == [0.5, 1.0]


def test_attributes_of_the_reward_trainer_that_we_read(make_reward_trainer):
    trainer = make_reward_trainer()
    assert set(trainer._metrics) == {"train", "eval"} and trainer._total_train_tokens == 0
    assert trainer._tp_size == 1 and trainer._signature_columns is None
    assert RewardTrainer.loss_is_scaled_for_ga is False


def test_the_reward_trainer_averages_metrics_and_prefixes_those_of_an_evaluation(make_reward_trainer):
    trainer = make_reward_trainer()
    trainer.model.eval()
    trainer._metrics["eval"]["min_reward"] = [1.0, 3.0]
    logs = {}
    trainer.log(logs)
    assert logs["eval_min_reward"] == 2.0 and not trainer._metrics["eval"]


def test_the_score_head_is_called_once_with_all_tokens_and_its_output_is_pooled(make_reward_model):
    """`add_token_values` and `SequenceRewardModel` take the values from there."""
    model, seen = make_reward_model(), []
    model.score.register_forward_hook(lambda module, args, scores: seen.append(scores))
    outputs = model(torch.arange(5, 11).reshape(2, 3), torch.ones(2, 3, dtype=torch.long))
    (scores,) = seen
    assert scores.shape == (2, 3, 1)
    assert torch.equal(outputs.logits, scores[:, -1])
    assert set(outputs) <= {"logits", "past_key_values"}, "what is unpacked into the output with token values"


def test_an_adapter_for_sequence_classification_has_a_head_of_its_own(make_reward_model):
    model = get_peft_model(make_reward_model(), LoraConfig(target_modules=["q_proj"], task_type="SEQ_CLS"))
    head = model.get_base_model().score
    assert isinstance(head, ModulesToSaveWrapper)
    assert head.modules_to_save["default"].weight.requires_grad and not head.original_module.weight.requires_grad
    called = []
    head.register_forward_hook(lambda *args: called.append(args))
    model(torch.arange(5, 8).reshape(1, 3))
    assert len(called) == 1


def test_a_head_that_is_expected_to_be_missing_is_neither_reported_nor_named(make_reward_model, tmp_path):
    LlamaForCausalLM(make_reward_model().config).save_pretrained(tmp_path)
    load = partial(LlamaForSequenceClassification.from_pretrained, tmp_path, num_labels=1, output_loading_info=True)
    assert load()[1]["missing_keys"] == {"score.weight"}
    with suppress_seqcls_warning():
        model, info = load()
    assert not info["missing_keys"] and torch.isfinite(model.score.weight).all()
    assert load()[1]["missing_keys"] == {"score.weight"}, "only inside"


def test_the_card_of_a_reward_model_cites_the_paper_that_the_class_names():
    assert RewardTrainer._template_file == "rm_model_card.md"
    assert {"_tag_names", "_name", "_template_file"} <= vars(RewardTrainer).keys()


def test_the_function_that_an_error_recommends_splits_off_the_prompt():
    row = {"chosen": "What is it ? good", "rejected": "What is it ? bad"}
    assert trl.extract_prompt(row) == {"prompt": "What is it ?", "chosen": " good", "rejected": " bad"}
