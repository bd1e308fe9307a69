"""What stops a trainer: a loss or gradient that is not finite, and inputs that cannot be trained on."""

import copy
import json
import math
import re
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from safetensors.torch import load_file
from transformers import TrainerCallback

from rlmec_trl import GRMConfig, GRMTrainer, RLMECConfig, RLMECTrainer
from rlmec_trl.credit.preparation import PREPARED_FEATURES
from rlmec_trl.credit.trainer_checks import NonfiniteError, check_num_rows
from rlmec_trl.data.errors import ConfigError, DatasetError
from rlmec_trl.stages.training import train_and_save


SETTINGS = {
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 4,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "disable_tqdm": True,
    "shuffle_dataset": False,
    "train_sampling_strategy": "sequential",
}
BOTH = pytest.mark.parametrize("kind", ["rlmec", "grm"])


@pytest.fixture
def make_trainer(tmp_path, make_policy, make_rows, tokenizer):
    def make(kind, rows=None, eval_rows=None, callbacks=None, model=None, tokenizer=tokenizer, **config):
        config_class, trainer_class = {"rlmec": (RLMECConfig, RLMECTrainer), "grm": (GRMConfig, GRMTrainer)}[kind]
        if kind == "grm":  # one example a row, as in the other trainer
            config = {"locate_fraction": 0.0} | config
        return trainer_class(
            model or make_policy(sharpness=10.0),
            config_class(output_dir=str(tmp_path), **(SETTINGS | config)),
            train_dataset=Dataset.from_list(make_rows(16)) if rows is None else rows,
            eval_dataset=eval_rows,
            processing_class=tokenizer,
            callbacks=callbacks,
        )

    return make


def poison(model, token_id=None):
    """Let the embedding of a token, or of all, be NaN."""

    def hook(module, args, output):
        wrong = torch.ones_like(args[0]) if token_id is None else args[0] == token_id
        return output.masked_fill(wrong.bool().unsqueeze(-1), math.nan)

    model.get_input_embeddings().register_forward_hook(hook)


class Poison(TrainerCallback):
    """Break the model before an optimizer step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, model, **kwargs):
        if state.global_step + 1 == self.step:
            poison(model)


class InfiniteGradient(TrainerCallback):
    """Let the backward pass of an optimizer step give an infinite gradient, while every loss is finite."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, model, **kwargs):
        if state.global_step + 1 == self.step:
            parameter = next(model.parameters())
            parameter.register_hook(lambda gradient: gradient * math.inf)


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def all_finite(tensors):
    return all(torch.isfinite(tensor).all() for tensor in tensors)


@BOTH
@pytest.mark.parametrize("break_step", [Poison, InfiniteGradient])
def test_what_is_not_finite_stops_training_and_leaves_the_last_checkpoint_good(
    kind, break_step, make_trainer, tmp_path
):
    trainer = make_trainer(kind, callbacks=[break_step(step=3)])
    found = "the loss is nan" if break_step is Poison else "the losses are finite, but the gradient norm is (inf|nan)"
    with pytest.raises(NonfiniteError, match=f"Optimizer step 3: {found},? on rows 8, 9, 10, 11 of the training"):
        train_and_save(trainer)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert all_finite(weights(tmp_path / "checkpoint-2").values())
    assert not (tmp_path / "model.safetensors").exists(), "nothing is saved as the final model"


@BOTH
def test_the_optimizer_does_not_step_on_a_gradient_that_is_not_finite(kind, make_trainer):
    trainer = make_trainer(kind, callbacks=[InfiniteGradient(step=1)], save_strategy="no")
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    with pytest.raises(NonfiniteError):
        trainer.train()
    assert all(map(torch.equal, before, trainer.model.parameters()))


@BOTH
def test_only_the_rows_of_the_failing_batch_are_named(kind, make_trainer, make_policy, make_rows, tokenizer):
    """Row 6 alone has the token that breaks the model; its micro-batch has rows 6 and 7, its step rows 4 to 7."""
    model = make_policy(sharpness=10.0)
    rows = make_rows(12)
    unused = max(token_id for name, token_id in tokenizer.get_vocab().items() if name.isalpha())
    name = tokenizer.convert_ids_to_tokens(unused)
    assert not any(name in row["prompt"].split() for row in rows)
    rows[6]["prompt"] = f"{name} {rows[6]['prompt']}"
    poison(model, unused)
    trainer = make_trainer(kind, Dataset.from_list(rows), model=model, save_strategy="no")
    with pytest.raises(NonfiniteError, match=r"Optimizer step 2: the loss is nan on rows 6, 7 of the training"):
        trainer.train()


@BOTH
def test_an_evaluation_that_is_not_finite_stops_too(kind, make_trainer, make_rows, tmp_path):
    rows = Dataset.from_list(make_rows(4))
    trainer = make_trainer(kind, eval_rows=rows, callbacks=[Poison(step=9)])
    trainer.evaluate()
    poison(trainer.model)
    with pytest.raises(NonfiniteError, match="Evaluation after optimizer step 0: the loss is nan on rows 0, 1 of the"):
        trainer.evaluate()
    with pytest.raises(NonfiniteError, match="rows 0, 1 of the evaluation dataset"):
        trainer.evaluate({"other": rows})


@BOTH
def test_a_setting_trains_on(kind, make_trainer):
    trainer = make_trainer(kind, callbacks=[InfiniteGradient(step=3)], stop_on_nonfinite=False, save_strategy="no")
    trainer.train()
    assert trainer.state.global_step == 4


@BOTH
def test_a_setting_evaluates_on_and_the_loss_is_not_finite(kind, make_trainer, make_rows):
    """Nothing is left out of the mean."""
    rows = make_rows(4)
    rows[1]["prompt"] = f"Tom Tom {rows[1]['prompt']}"
    trainer = make_trainer(kind, eval_rows=Dataset.from_list(rows), stop_on_nonfinite=False)
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    longest = max(len(row["input_ids"][0]) for row in trainer.get_eval_dataloader())

    def hook(module, args, output):
        return output * (math.nan if args[0].size(1) == longest else 1.0)

    trainer.model.get_input_embeddings().register_forward_hook(hook)
    assert math.isnan(trainer.evaluate()["eval_loss"])


def test_an_evaluation_is_not_added_to_one_before_it(make_trainer, make_rows):
    """`predict` logs nothing, and an evaluation that stopped neither."""
    rows = Dataset.from_list(make_rows(4))
    trainer = make_trainer("rlmec", eval_rows=rows.select([0, 1]), prediction_loss_only=True)
    expected = trainer.evaluate()
    trainer.predict(trainer.train_dataset)
    poisoned = trainer.model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: output * math.nan
    )
    with pytest.raises(NonfiniteError):
        trainer.evaluate()
    poisoned.remove()
    found = trainer.evaluate()
    names = {"eval_loss", "eval_kl", "eval_imitation_loss", "eval_entropy", "eval_token_reward/mean"}
    assert {name: found[name] for name in names} == {name: expected[name] for name in names}


@BOTH
def test_a_training_step_alone_can_be_made(kind, make_trainer):
    """Outside of `train`, nothing collects the batches of a step before."""
    trainer = make_trainer(kind)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.current_gradient_accumulation_steps = 1
    assert math.isfinite(trainer.training_step(trainer.model, batch, trainer._get_num_items_in_batch([batch], "cpu")))


@BOTH
@pytest.mark.parametrize(("scale", "stops"), [(65536.0, False), (1.0, False), (0.5, True)])
def test_gradients_that_overflow_under_loss_scaling_stop_only_where_no_scale_is_left(
    kind, scale, stops, make_trainer, monkeypatch
):
    """With fp16, the first steps overflow; the scaler skips them and halves the scale."""
    trainer = make_trainer(kind, save_strategy="no")
    trainer._step_losses = (({"row": torch.tensor([3])}, torch.tensor(0.5)),)
    monkeypatch.setattr(trainer, "_row_numbers", lambda batches, train: [3])
    scaler = types.SimpleNamespace(is_enabled=lambda: True, get_scale=lambda: scale)
    monkeypatch.setattr(trainer.accelerator, "scaler", scaler)
    if stops:
        with pytest.raises(NonfiniteError, match="gradient norm is inf"):
            trainer._check_step(torch.tensor(math.inf))
    else:
        trainer._check_step(torch.tensor(math.inf))


# --- Inputs ----------------------------------------------------------------------------------------------------------


def generate_nothing():
    yield from ()


def generate_numbers():
    yield 5


WRONG_INPUTS = {
    "nothing": (lambda rows: None, "The train dataset is missing"),
    "path": (lambda rows: "runs/scored", "The train dataset is the text 'runs/scored'. Load it first"),
    "list": (lambda rows: rows, "is an object of type `list`. Pass `Dataset.from_list"),
    "columns": (lambda rows: {"prompt": ["a"]}, "is an object of type `dict`. Pass a `datasets.Dataset`"),
    "splits": (
        lambda rows: DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows)),
        "is a `DatasetDict` with the splits 'train', 'test'. Pass one of the splits",
    ),
    "no rows": (lambda rows: Dataset.from_list(rows).select([]), "The train dataset has no rows"),
    "no columns": (lambda rows: Dataset.from_list([]), "The train dataset has no rows"),
    "transform": (lambda rows: Dataset.from_list(rows).with_transform(lambda batch: batch), "has a transform"),
    "empty stream": (lambda rows: IterableDataset.from_generator(generate_nothing), "The train dataset has no rows"),
    "numbers": (lambda rows: IterableDataset.from_generator(generate_numbers), "gives 5 as a row"),
}


@BOTH
@pytest.mark.parametrize("name", WRONG_INPUTS)
def test_what_is_no_dataset_with_rows_is_refused_before_the_model_is_loaded(kind, name, make_trainer, make_rows):
    make, message = WRONG_INPUTS[name]
    trainer_class = {"rlmec": RLMECTrainer, "grm": GRMTrainer}[kind]
    config = {"rlmec": RLMECConfig, "grm": GRMConfig}[kind]("unused", **SETTINGS)
    with pytest.raises(DatasetError, match=re.escape(message)):
        trainer_class("there/is/no/such/model", config, train_dataset=make(make_rows(2)))


@BOTH
def test_evaluation_sets_have_the_same_checks_and_are_named(kind, make_trainer, make_rows):
    rows = make_rows(4)
    no_rows = Dataset.from_list(rows).select([])
    with pytest.raises(DatasetError, match="The eval dataset has no rows"):
        make_trainer(kind, eval_rows=no_rows)
    with pytest.raises(DatasetError, match="The hard dataset is an object of type `list`"):
        make_trainer(kind, eval_rows={"easy": Dataset.from_list(rows), "hard": rows})
    rows[2]["completion_ids"][0] = 999
    broken = Dataset.from_list(rows)
    for given, name in ((broken, "eval"), ({"hard": broken}, "hard")):
        with pytest.raises(DatasetError, match=f"In the {name} dataset: Row 2, column 'completion_ids': found .*999"):
            make_trainer(kind, eval_rows=given)
    trainer = make_trainer(kind)
    with pytest.raises(DatasetError, match="In the eval dataset: Row 2, column 'completion_ids'"):
        trainer.evaluate(broken)
    with pytest.raises(DatasetError, match="The eval dataset is an object of type `list`"):
        trainer.evaluate(rows)


@BOTH
@pytest.mark.parametrize("token_id", [-1, 10**6])
def test_ids_outside_the_vocabulary_are_refused_with_their_row(kind, token_id, make_trainer, make_rows):
    rows = make_rows(6)
    rows[4]["completion_ids"][1] = token_id
    with pytest.raises(DatasetError, match=f"Row 4, column 'completion_ids': found the id {token_id}, "):
        make_trainer(kind, Dataset.from_list(rows))


def test_rows_without_a_rewrite_count_in_the_number_of_a_row(make_trainer, make_rows):
    """`GRMTrainer` leaves them out before it checks the others."""
    rows = make_rows(6)
    rows[0]["rewrite"] = rows[2]["rewrite"] = None
    rows[4]["completion_ids"][1] = -1
    with pytest.raises(DatasetError, match="Row 4, column 'completion_ids'"):
        make_trainer("grm", Dataset.from_list(rows))
    rows[4]["completion_ids"][1] = 5
    trainer = make_trainer("grm", Dataset.from_list(rows), locate_fraction=1.0)
    assert trainer.train_dataset["row"][:] == [1, 1, 3, 3, 4, 4, 5, 5]


@BOTH
def test_tokens_that_a_cloned_chat_template_adds_are_not_refused(kind, make_trainer, make_rows, tokenizer, tmp_path):
    """TRL adds them to the tokenizer and enlarges the model when the trainer is made."""
    chat = copy.deepcopy(tokenizer)
    chat.add_tokens(["<|im_start|>"])
    chat.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['content'] }}{% endfor %}"
        "{% if add_generation_prompt %} attempt{% endif %}"
    )
    chat.save_pretrained(tmp_path / "chat")
    rows = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in make_rows(4)]
    own = copy.deepcopy(tokenizer)
    trainer = make_trainer(
        kind, Dataset.from_list(rows), tokenizer=own, chat_template_path=str(tmp_path / "chat"), max_steps=1
    )
    added = trainer.processing_class.convert_tokens_to_ids("<|im_start|>")
    prepared = trainer.train_dataset["prompt_ids" if kind == "rlmec" else "input_ids"]
    assert added >= len(tokenizer) and all(added in ids for ids in prepared)
    trainer.train()


@BOTH
def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(kind, make_trainer, make_rows, tokenizer):
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(["elephants"])
    rows = make_rows(4)
    rows[1]["prompt"] += " elephants"
    rows[1]["reference"] += " elephants"
    found = f"Row 1.* id {len(tokenizer)}.* and the model has {len(tokenizer)} ids. Use the tokenizer of the model"
    with pytest.raises(DatasetError, match=f"^{found}"):
        make_trainer(kind, Dataset.from_list(rows), tokenizer=larger)
    with pytest.raises(DatasetError, match=f"^In the eval dataset: {found}"):
        make_trainer(kind, eval_rows=Dataset.from_list(rows), tokenizer=larger)


@BOTH
def test_fewer_rows_than_a_batch_are_refused_where_incomplete_batches_are_dropped(kind, make_trainer, make_rows):
    rows = Dataset.from_list(make_rows(3))
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "save_strategy": "no"}
    with pytest.raises(ConfigError, match="The train dataset has 3 examples, fewer than the 4 of one batch"):
        make_trainer(kind, rows, dataloader_drop_last=True, **settings)
    with pytest.raises(ConfigError, match="The eval dataset has 3 examples.*per_device_eval_batch_size"):
        make_trainer(kind, eval_rows=rows, dataloader_drop_last=True, per_device_eval_batch_size=4)
    trainer = make_trainer(kind, rows, **settings)
    trainer.train()
    assert trainer.state.global_step == 4


@BOTH
def test_a_dataset_of_which_nothing_can_be_trained_on_is_refused(kind, make_trainer, make_rows):
    """Every prompt is longer than `max_length`."""
    rows = Dataset.from_list(make_rows(4))
    with pytest.raises(DatasetError, match="`max_length`"):
        make_trainer(kind, rows, max_length=5)


def test_deepspeed_marks_a_norm_that_is_not_finite_by_a_negative_one(make_trainer):
    trainer = make_trainer("rlmec")
    trainer._step_losses = (({"row": torch.tensor([3, 1])}, torch.tensor(0.5)),)
    with pytest.raises(NonfiniteError, match="gradient norm is nan, on rows 1, 3 of"):
        trainer._check_step(-1.0)
    trainer._check_step(None)


@pytest.mark.parametrize("config", [{"padding_free": True, "max_length": None}, {"packing": True}])
def test_sequences_without_padding_have_no_numbers(config, make_trainer):
    trainer = make_trainer("grm", callbacks=[Poison(step=1)], save_strategy="no", **config)
    with pytest.raises(NonfiniteError, match="Optimizer step 1: the loss is nan on rows of .* that have no numbers"):
        trainer.train()


def test_a_dataset_in_another_format_trains_the_same(make_trainer, make_rows):
    """With arrays for rows, a comparison of two lists of ids would be one for each id."""
    rows = Dataset.from_list(make_rows(8))
    expected = list(make_trainer("rlmec", rows).train_dataset)
    for name in ("numpy", "torch", "arrow"):
        assert list(make_trainer("rlmec", rows.with_format(name)).train_dataset) == expected
    expected = list(make_trainer("grm", rows).train_dataset)
    assert list(make_trainer("grm", rows.with_format("numpy")).train_dataset) == expected


def test_messages_without_a_chat_template_are_refused_with_their_row(make_trainer, make_rows):
    rows = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in make_rows(4)]
    for dataset in (Dataset.from_list(rows), Dataset.from_list(rows).to_iterable_dataset()):
        with pytest.raises(DatasetError, match="Row 0, column 'prompt': found .* has no chat template for messages"):
            list(make_trainer("rlmec", dataset).train_dataset)


def test_messages_that_the_chat_template_refuses_are_named(make_trainer, make_rows, tokenizer):
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}Tom"
    rows = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in make_rows(4)]
    rows[3]["prompt"] = [{"role": "system", "content": "Be brief."}, *rows[3]["prompt"]]
    with pytest.raises(DatasetError, match="Row 3, column 'prompt': found messages that .* refuses .*no system role"):
        make_trainer("rlmec", Dataset.from_list(rows), tokenizer=strict)


# --- Streams ---------------------------------------------------------------------------------------------------------


def stream_of(rows):
    return IterableDataset.from_generator(lambda: iter(rows))


def test_a_broken_stream_stops_training(make_trainer, make_rows, tmp_path):
    """It once gave a model of NaN, and exit status 0."""
    rows = make_rows(8)
    rows[3]["token_probs"][0] = math.nan
    trainer = make_trainer("rlmec", stream_of(rows))
    with pytest.raises(DatasetError, match="Row 3, column 'token_probs': found nan"):
        train_and_save(trainer)
    assert not list(tmp_path.glob("**/model.safetensors"))


def test_a_broken_stream_stops_an_evaluation(make_trainer, make_rows):
    rows = make_rows(4)
    rows[3]["token_probs"][0] = math.nan
    trainer = make_trainer("rlmec", eval_rows=stream_of(rows))
    with pytest.raises(DatasetError, match="Row 3, column 'token_probs': found nan"):
        trainer.evaluate()


def test_a_column_that_comes_later_in_a_stream_is_checked(make_trainer, make_rows):
    rows = make_rows(150)
    for row in rows[:120]:
        del row["old_logps"]
    rows[130]["old_logps"][0] = math.nan
    trainer = make_trainer("rlmec", stream_of(rows))
    with pytest.raises(DatasetError, match="Row 100, column 'old_logps': found None"):
        list(trainer.train_dataset)
    for row in rows[:100]:
        row.pop("token_probs")
    with pytest.raises(DatasetError, match="Column 'token_probs' or 'token_rewards' is missing"):
        make_trainer("rlmec", stream_of(rows))


def test_a_stream_is_prepared_like_its_dataset_and_takes_arrays_and_tuples(make_trainer, make_rows):
    rows = make_rows(130)
    expected = list(make_trainer("rlmec", Dataset.from_list(rows)).train_dataset)
    arrays = [
        row | {"token_probs": np.array(row["token_probs"]), "completion_ids": tuple(row["completion_ids"])}
        for row in rows
    ]
    for given in (rows, arrays):
        prepared = list(make_trainer("rlmec", stream_of(given)).train_dataset)
        assert list(Dataset.from_list(prepared, features=PREPARED_FEATURES)) == expected


def test_the_rows_of_a_stream_are_named_where_the_loss_is_not_finite(make_trainer, make_rows):
    trainer = make_trainer("rlmec", stream_of(make_rows(16)), callbacks=[Poison(step=3)], save_strategy="no")
    with pytest.raises(NonfiniteError, match="Optimizer step 3: the loss is nan on rows 8, 9, 10, 11 of the training"):
        trainer.train()


# --- Two processes ---------------------------------------------------------------------------------------------------


def test_both_processes_stop_together_where_a_row_of_one_is_not_finite(
    run_on_two, make_rows, make_policy, tokenizer, tmp_path
):
    """Also where loss scaling would have the other process skip the step, and in an evaluation."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["poison"])
    policy = make_policy()
    policy.resize_token_embeddings(len(tokenizer))
    policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    rows = make_rows(16)
    rows[7]["prompt"] += " poison"
    Dataset.from_list(rows).save_to_disk(tmp_path / "rows")
    run_on_two(Path(__file__).parents[1] / "nonfinite_worker.py", tmp_path)

    first, second = (json.loads((tmp_path / f"process-{index}.json").read_text()) for index in range(2))
    assert first == second
    # Both trainers, each without and with loss scaling. With one row a micro-batch, sequential, step 2 has rows 4 and
    # 6 on process 0, 5 and 7 on process 1
    for run in first:
        assert run["training"].startswith("Optimizer step 2: the loss is nan on row 7 of the training dataset. ")
        assert run["finite"] and run["changed"]
    for run in first[::2]:
        start = "Evaluation after optimizer step 1: the loss is nan on row 7 of the evaluation dataset. "
        assert run["evaluation"].startswith(start)


def test_with_split_batches_a_batch_is_that_of_all_processes():
    def args(split_batches):
        config = types.SimpleNamespace(split_batches=split_batches)
        return types.SimpleNamespace(
            dataloader_drop_last=True, accelerator_config=config, train_batch_size=8, world_size=2, max_length=9
        )

    rows = Dataset.from_dict({"input_ids": [[1]] * 8})
    check_num_rows(rows, "train", args(split_batches=True))
    with pytest.raises(ConfigError, match="8 examples, fewer than the 16 of one batch"):
        check_num_rows(rows, "train", args(split_batches=False))
    with pytest.raises(ConfigError, match="7 examples, fewer than the 8 of one batch"):
        check_num_rows(rows.select(range(7)), "train", args(split_batches=True))
    with pytest.raises(DatasetError, match="No example of the train dataset is left"):
        check_num_rows(rows.select([]), "train", args(split_batches=True))
