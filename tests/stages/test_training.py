"""Training that is interrupted, finished before, or started twice."""

import gc
import json
import logging
import os
import shutil
import signal
import threading

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import ModelConfig, SFTConfig, SFTTrainer

from rlmec_trl import GRMConfig, GRMTrainer, RLMECConfig, RLMECTrainer
from rlmec_trl.data.errors import ConfigError
from rlmec_trl.stages.checkpoints import RECORD, missing_from
from rlmec_trl.stages.output import OutputError
from rlmec_trl.stages.run_folder import MARK
from rlmec_trl.stages.training import set_model_init_kwargs, train_and_save, training_run
from rlmec_trl.tasks.arithmetic import WORDING


STEPS = 8  # of 2 rows, 5 to an epoch
LORA = {"r": 2, "lora_alpha": 64, "target_modules": "all-linear"}


@pytest.fixture(autouse=True, scope="module")
def cheap_collections():
    """Each training collects garbage several times, among all that has been imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Killed(Exception):
    """In place of a kill: the process is gone without saving anything."""


class At(TrainerCallback):
    """Call a function at the end of a step, before the trainer's own callbacks."""

    def __init__(self, step, function):
        self.step, self.function = step, function

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.function()


def kill():
    raise Killed


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def make(tmp_path, make_policy, make_rows, tokenizer):
    """Make trainers that save to `tmp_path`, and may be stopped `at` a step by a function."""

    def make(
        kind="rlmec", output_dir="run", at=None, dropout=0.0, lora=None, rows=10, rows_seed=0, model=None, **config
    ):
        trainer_class, config_class = {
            "rlmec": (RLMECTrainer, RLMECConfig),
            "grm": (GRMTrainer, GRMConfig),
            "sft": (SFTTrainer, SFTConfig),
        }[kind]
        defaults = {
            "output_dir": str(tmp_path / output_dir),
            "bf16": False,
            "use_cpu": True,
            "report_to": "none",
            "gradient_checkpointing": False,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "max_steps": STEPS,
            "save_strategy": "steps",
            "save_steps": 3,
            "logging_steps": 2,
            "disable_tqdm": True,
        }
        if kind == "grm":
            defaults["locate_fraction"] = 0.0  # an example for each row
        policy = make_policy(sharpness=10.0)
        for layer in policy.model.layers:
            layer.self_attn.attention_dropout = dropout
        rows = make_rows(rows, rows_seed)
        if kind == "sft":
            rows = [{"prompt": row["prompt"], "completion": row["rewrite"]} for row in rows]
        trainer = trainer_class(
            policy if model is None else model,
            config_class(**(defaults | config)),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows[:3]) if "eval_strategy" in config else None,
            processing_class=tokenizer,
            peft_config=None if lora is None else LoraConfig(**(LORA | lora)),
            **({"wording": WORDING} if kind == "grm" else {}),
        )
        if at is not None:
            trainer.callback_handler.callbacks.insert(0, At(*at))
        return trainer

    return make


def run(trainer):
    """Train, and say how it ended."""
    try:
        train_and_save(trainer)
    except Killed:
        return "killed"
    except SystemExit as stop:
        return stop.code
    return "finished"


def log_of(trainer):
    """The log without times, and without the summary of each process's own part."""
    times = ("_runtime", "_per_second", "total_flos")
    return [
        {name: value for name, value in entry.items() if not name.endswith(times)}
        for entry in trainer.state.log_history
        if "train_runtime" not in entry
    ]


def saved(folder):
    """The bytes of the final weights."""
    (path,) = folder.glob("*model.safetensors")
    return path.read_bytes()


# --- The result of an interrupted training ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("rlmec", {"lr_scheduler_type": "linear"}),
        ("rlmec", {"lr_scheduler_type": "cosine", "warmup_steps": 2, "dropout": 0.3}),
        ("rlmec", {"lr_scheduler_type": "constant"}),
        ("rlmec", {"gradient_accumulation_steps": 2, "rows": 19}),
        ("rlmec", {"lora": {"lora_dropout": 0.5}, "lr_scheduler_type": "constant"}),
        ("rlmec", {"train_sampling_strategy": "group_by_length", "dropout": 0.3}),
        ("grm", {"lr_scheduler_type": "constant", "dropout": 0.3}),
        ("grm", {"train_sampling_strategy": "group_by_length", "lora": {"lora_dropout": 0.5}}),
        ("sft", {"train_sampling_strategy": "group_by_length", "dropout": 0.3}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())).replace(" ", ""),
)
def test_an_interrupted_training_has_the_weights_and_the_log_of_a_straight_one(kind, settings, make, tmp_path):
    straight = make(kind, "straight", **settings)
    assert run(straight) == "finished"
    # In the middle of an epoch, at its end, and in the middle of the next
    for step, interruption, end in ((4, kill, "killed"), (5, terminate, 143), (7, terminate, 143)):
        assert run(make(kind, at=(step, interruption), **settings)) == end
    resumed = make(kind, **settings)
    assert run(resumed) == "finished"
    assert saved(tmp_path / "run") == saved(tmp_path / "straight")
    assert log_of(resumed) == log_of(straight)


def test_an_epoch_that_was_interrupted_twice_keeps_its_order(make, tmp_path):
    settings = {"train_sampling_strategy": "group_by_length", "dropout": 0.3, "max_steps": 14, "save_steps": 100}
    run(make(output_dir="straight", **settings))
    for step in (7, 9, 10, 13):
        assert run(make(at=(step, terminate), **settings)) == 143
    run(make(**settings))
    assert saved(tmp_path / "run") == saved(tmp_path / "straight")


def test_a_kill_while_any_file_of_a_checkpoint_is_written_changes_nothing(make, tmp_path, caplog):
    settings = {"max_steps": 2, "save_steps": 1, "lr_scheduler_type": "constant"}
    assert run(make(output_dir="straight", **settings)) == "finished"
    straight = tmp_path / "straight"
    last = straight / "checkpoint-2"
    files = sorted((path for path in last.iterdir()), key=lambda path: path.stat().st_mtime_ns)
    written = [path.name for path in files]
    assert written[-1] == "trainer_state.json"
    for index, name in enumerate(written):
        folder = tmp_path / "run"
        shutil.copytree(straight / "checkpoint-1", folder / "checkpoint-1")
        shutil.copytree(last, folder / last.name)
        os.truncate(folder / last.name / name, files[index].stat().st_size // 2)
        for later in written[index + 1 :]:
            (folder / last.name / later).unlink()
        caplog.clear()
        assert run(make(**settings)) == "finished"
        assert f"Skipped the incomplete checkpoint '{folder / last.name}'" in caplog.text, name
        assert saved(folder) == saved(straight), name
        assert missing_from(folder / last.name) == [], name
        shutil.rmtree(folder)


def test_only_what_is_in_the_way_of_a_new_checkpoint_is_removed(make, tmp_path):
    assert run(make(at=(5, kill))) == "killed"
    leftovers = [tmp_path / "run" / f"checkpoint-{step}" for step in (6, 7)]
    for leftover in leftovers:
        leftover.mkdir()
        (leftover / "optimizer.bin").write_bytes(b"of another run")
    assert run(make()) == "finished"
    assert not (leftovers[0] / "optimizer.bin").exists() and missing_from(leftovers[0]) == []
    assert [path.name for path in leftovers[1].iterdir()] == ["optimizer.bin"]


def test_a_limit_of_checkpoints_does_not_count_incomplete_ones(make, tmp_path):
    settings = {"save_total_limit": 1}
    assert run(make(at=(5, kill), **settings)) == "killed"
    (tmp_path / "run" / "checkpoint-7").mkdir()
    assert run(make(at=(7, kill), **settings)) == "killed"
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-6"]


def test_checkpoints_of_weights_alone_are_neither_resumed_from_nor_deleted(make, tmp_path, steps_trained):
    settings = {"save_only_model": True, "save_steps": 2, "save_total_limit": 3}
    assert run(make(at=(5, kill), **settings)) == "killed"
    steps_trained.clear()
    with pytest.raises(ConfigError, match="checkpoint-4' has weights but no optimizer"):
        run(make(**settings))
    assert not steps_trained
    assert run(make(at=(3, kill), resume_from_checkpoint="false", **settings)) == "killed"
    left = sorted(path.name for path in (tmp_path / "run").glob("*checkpoint-*"))
    assert left == ["_checkpoint-2.replaced-1", "_checkpoint-4.replaced-1", "checkpoint-2"]


# --- Finished before -------------------------------------------------------------------------------------------------


@pytest.fixture
def steps_trained(monkeypatch):
    """Counts the steps that any trainer makes."""
    steps = []
    monkeypatch.setattr(torch.optim.AdamW, "step", count(torch.optim.AdamW.step, steps))
    return steps


def count(function, calls):
    def counted(*args, **kwargs):
        calls.append(None)
        return function(*args, **kwargs)

    return counted


@pytest.mark.parametrize("settings", [{}, {"save_strategy": "no"}, {"save_only_model": True}, {"max_steps": -1}])
def test_a_finished_training_is_not_continued(settings, make, tmp_path, steps_trained, capsys):
    settings = {"lr_scheduler_type": "constant", "num_train_epochs": 1} | settings
    run(make(**settings))
    weights, files = saved(tmp_path / "run"), sorted(os.listdir(tmp_path / "run"))
    capsys.readouterr()
    steps_trained.clear()
    assert run(make(**settings)) == "finished"
    assert "is already finished" in capsys.readouterr().out
    assert not steps_trained
    assert saved(tmp_path / "run") == weights and sorted(os.listdir(tmp_path / "run")) == files


@pytest.mark.parametrize("length", [{}, {"max_steps": -1, "num_train_epochs": 1}], ids=["steps", "epochs"])
def test_a_finished_training_is_finished_on_another_number_of_processes_too(length, make, tmp_path, steps_trained):
    """With epochs, fewer processes make more steps of the same training."""
    run(make(**length))
    state_file = tmp_path / "run" / "trainer_state.json"
    state = json.loads(state_file.read_text())
    settings = state["stateful_callbacks"][RECORD]["attributes"]["settings"]
    assert settings["number of processes"] == 1
    settings["number of processes"] = 2
    if length:
        settings["max_steps"] = state["max_steps"] = state["global_step"] = 3
        shutil.rmtree(tmp_path / "run" / "checkpoint-5")
    state_file.write_text(json.dumps(state))
    steps_trained.clear()
    assert run(make(**length)) == "finished"
    assert not steps_trained


def test_epochs_of_smaller_batches_are_not_a_longer_training(make, steps_trained):
    run(make(max_steps=-1, num_train_epochs=1))
    steps_trained.clear()
    with pytest.raises(ConfigError, match="already finished, with other settings: per_device_train_batch_size 2 -> 1"):
        run(make(max_steps=-1, num_train_epochs=1, per_device_train_batch_size=1))
    assert run(make(max_steps=-1, num_train_epochs=2)) == "finished"
    assert len(steps_trained) == 5


def test_a_finished_model_is_evaluated_on_another_dataset(make, tmp_path, steps_trained):
    settings = {"eval_strategy": "epoch", "save_strategy": "no"}
    run(make(**settings))
    weights, results = saved(tmp_path / "run"), tmp_path / "run" / "eval_results.json"
    before = json.loads(results.read_text())["eval_loss"]
    steps_trained.clear()
    evaluations = []
    for _ in range(2):
        trainer = make(**settings)
        trainer.eval_dataset = trainer.eval_dataset.select([0])
        trainer.evaluate = count(trainer.evaluate, evaluations)
        assert run(trainer) == "finished"
    assert len(evaluations) == 1, "once"
    assert not steps_trained and saved(tmp_path / "run") == weights
    assert json.loads(results.read_text())["eval_loss"] != before


def test_a_model_that_was_trained_without_evaluation_is_evaluated_on_each_dataset(make, tmp_path, steps_trained):
    run(make())
    steps_trained.clear()
    losses = []
    for number in (3, 1, 3):
        trainer = make(eval_strategy="epoch")
        trainer.eval_dataset = trainer.eval_dataset.select(range(number))
        assert run(trainer) == "finished"
        losses.append(json.loads((tmp_path / "run" / "eval_results.json").read_text())["eval_loss"])
    assert losses[0] == losses[2] != losses[1] and not steps_trained


@pytest.mark.parametrize("content", ['{"eval_loss"', "[]"])
def test_results_that_were_cut_off_are_written_again(content, make, tmp_path):
    settings = {"eval_strategy": "epoch", "save_strategy": "no", "max_steps": 1}
    run(make(**settings))
    for name in ("eval_results.json", "all_results.json"):
        (tmp_path / "run" / name).write_text(content)
    assert run(make(**settings)) == "finished"
    assert json.loads((tmp_path / "run" / "all_results.json").read_text()).keys() >= {"eval_loss"}


def test_evaluation_rows_that_decide_which_weights_are_kept_count(make):
    settings = {"eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True}
    run(make(**settings))
    trainer = make(**settings)
    trainer.eval_dataset = trainer.eval_dataset.select([0])
    with pytest.raises(ConfigError, match="already finished, with other settings: other evaluation rows"):
        train_and_save(trainer)


@pytest.mark.parametrize("order", [("rlmec", "lora"), ("lora", "rlmec"), ("grm", "rlmec")], ids="-".join)
def test_a_training_that_is_started_over_leaves_no_part_of_another_kind_of_model(order, make, tmp_path):
    parts = {"rlmec": {"model.safetensors"}, "lora": {"adapter_model.safetensors", "adapter_config.json"}}
    parts["grm"] = {*parts["rlmec"], "grm_wording.json"}
    for kind in order:
        settings = {"lora": {}} if kind == "lora" else {"kind": kind}
        run(make(max_steps=1, save_strategy="no", resume_from_checkpoint="false", **settings))
        found = {path.name for path in (tmp_path / "run").iterdir()}
        assert found & set().union(*parts.values()) == parts[kind]
        assert "model-00001-of-00002.safetensors" not in found
        (tmp_path / "run" / "model-00001-of-00002.safetensors").write_bytes(b"a shard")
        (tmp_path / "run" / "model_notes.json").write_text("mine")
    assert (tmp_path / "run" / "model_notes.json").exists()


@pytest.mark.parametrize("lost", ["model.safetensors", "trainer_state.json", "eval_results.json"])
def test_what_a_finished_training_lacks_is_saved(lost, make, tmp_path, steps_trained):
    settings = {"eval_strategy": "steps", "eval_steps": 4}
    run(make(**settings))
    folder = tmp_path / "run"
    weights, evaluation = saved(folder), json.loads((folder / "eval_results.json").read_text())
    (folder / lost).unlink()
    if lost == "eval_results.json":  # killed before it was written, so the state was not written either
        (folder / "trainer_state.json").unlink()
    steps_trained.clear()
    assert run(make(**settings)) == "finished"
    assert not steps_trained
    assert saved(folder) == weights and (folder / lost).exists()
    again = json.loads((folder / "eval_results.json").read_text())
    assert again["eval_loss"] == evaluation["eval_loss"]


def test_the_best_model_is_the_one_that_is_saved_after_a_kill_too(make, tmp_path, steps_trained):
    settings = {
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_steps": 4,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,  # the first one, so that it is not the last
    }
    trainer = make(**settings)
    run(trainer)
    folder = tmp_path / "run"
    weights = saved(folder)
    assert trainer.state.best_global_step == 4 and weights == saved(folder / "checkpoint-4")
    for name in ("model.safetensors", "trainer_state.json"):
        (folder / name).unlink()
    steps_trained.clear()
    run(make(**settings))
    assert saved(folder) == weights and not steps_trained


@pytest.mark.parametrize("left", ["moved", "copied", "lost"])
def test_the_best_model_is_found_in_a_folder_that_was_moved(left, make, tmp_path, steps_trained):
    settings = {"eval_strategy": "steps", "eval_steps": 4, "save_steps": 4, "load_best_model_at_end": True}
    settings |= {"metric_for_best_model": "eval_loss", "greater_is_better": True}  # the first one
    run(make(output_dir="before", **settings))
    weights = saved(tmp_path / "before" / "checkpoint-4")
    shutil.copytree(tmp_path / "before", tmp_path / "run")
    for name in ("model.safetensors", "trainer_state.json"):
        (tmp_path / "run" / name).unlink()
    if left == "copied":  # what became of the original is of no interest
        (tmp_path / "before" / "checkpoint-4" / "model.safetensors").write_bytes(b"changed")
    else:
        shutil.rmtree(tmp_path / "before")
    steps_trained.clear()
    if left == "lost":
        shutil.rmtree(tmp_path / "run" / "checkpoint-4")
        with pytest.raises(ConfigError, match="before/checkpoint-4', the best checkpoint .* is missing. Put it"):
            run(make(**settings))
    else:
        run(make(**settings))
        assert saved(tmp_path / "run") == weights and not steps_trained


def test_a_finished_training_with_more_steps_continues_from_its_checkpoint(make, tmp_path, steps_trained, caplog):
    run(make(lr_scheduler_type="constant"))
    steps_trained.clear()
    run(make(lr_scheduler_type="constant", max_steps=STEPS + 3))
    assert len(steps_trained) == 3
    assert "max_steps 8 -> 11" in caplog.text
    run(make(lr_scheduler_type="constant", max_steps=STEPS + 3, output_dir="straight"))
    assert saved(tmp_path / "run") == saved(tmp_path / "straight")


def test_other_settings_than_those_of_the_checkpoint_are_named(make, caplog):
    run(make(at=(4, kill)))
    run(make(per_device_train_batch_size=1, learning_rate=0.1, rows=9))
    assert "number of rows 10 -> 9, learning_rate 0.01 -> 0.1, per_device_train_batch_size 2 -> 1" in caplog.text


@pytest.mark.parametrize("save_strategy", ["no", "steps"])
def test_a_finished_training_is_not_taken_for_one_with_other_settings(save_strategy, make, tmp_path):
    run(make(save_strategy=save_strategy))
    weights = saved(tmp_path / "run")
    for settings, change in (
        ({"learning_rate": 0.1}, "learning_rate 0.01 -> 0.1"),
        ({"policy_coef": 0.5, "epsilon": 0.2}, "epsilon 0.3 -> 0.2, policy_coef 1.0 -> 0.5"),
        ({"positive_reward_range": [0.0, 0.4]}, "other training rows, positive_reward_range"),
        ({"optim": "adafactor", "weight_decay": 0.1}, "optim adamw_torch.* -> adafactor, weight_decay 0.0 -> 0.1"),
        ({"max_length": 32}, "max_length 1024 -> 32"),
        ({"seed": 1}, "seed 42 -> 1"),
        ({"max_steps": STEPS - 1}, "max_steps 8 -> 7"),
        ({"lora": {}}, "adapter.default none -> "),
        ({"rows": 9}, "number of rows 10 -> 9"),
        ({"rows_seed": 1}, "other training rows"),
        ({"kind": "grm"}, "trainer RLMECTrainer -> GRMTrainer"),
        ({"kind": "sft"}, "trainer RLMECTrainer -> SFTTrainer"),
    ):
        with pytest.raises(ConfigError, match=f"already finished, with other settings: .*{change}"):
            run(make(save_strategy=save_strategy, **settings))
    with pytest.raises(ConfigError, match=r"other settings: depends on\.task none -> math"):
        train_and_save(make(save_strategy=save_strategy), depends_on={"task": "math"})
    assert saved(tmp_path / "run") == weights


def test_what_changes_no_weight_is_not_compared(make, tmp_path, steps_trained, caplog):
    settings = {"logging_steps": 1, "save_steps": 4, "save_total_limit": 5, "gradient_checkpointing": True}
    settings |= {"dataloader_num_workers": 0, "run_name": "another", "pad_to_multiple_of": 8}
    settings |= {"ignore_data_skip": False, "metric_for_best_model": "eval_loss", "greater_is_better": False}
    run(make(at=(4, kill)))
    run(make(**settings))
    assert "other settings" not in caplog.text
    (tmp_path / "run").rename(tmp_path / "moved")
    steps_trained.clear()
    assert run(make(output_dir="moved", max_steps=-1, num_train_epochs=1.6, rows=10)) == "finished"
    divided = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    assert run(make(output_dir="moved", **divided)) == "finished"
    assert not steps_trained


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ({}, {"kind": "sft"}, "trainer RLMECTrainer -> SFTTrainer"),
        ({}, {"optim": "sgd"}, "optim adamw_torch.* -> sgd"),
        ({}, {"lora": {}}, "adapter.default none -> "),
        ({"lora": {}}, {}, "adapter.default .* -> none"),
        ({"lora": {}}, {"lora": {"r": 4}}, "adapter.default.r 2 -> 4"),
        ({}, {"model": "other"}, "model None -> .*other"),
    ],
    ids=str,
)
def test_what_a_checkpoint_cannot_be_continued_as_is_named(before, after, change, make, tmp_path, tokenizer):
    if "model" in after:
        make().model.save_pretrained(tmp_path / "other")
        tokenizer.save_pretrained(tmp_path / "other")
        after = {"model": str(tmp_path / "other")}
    run(make(at=(4, kill), **before))
    with pytest.raises(ConfigError, match=f"checkpoint-3' cannot be continued.*: {change}.*another `--output_dir`"):
        run(make(**after))
    assert run(make(resume_from_checkpoint="false", max_steps=1, **after)) == "finished"


def test_a_model_that_was_trained_again_is_another_one(make, tmp_path, tokenizer):
    model = str(tmp_path / "model")
    trainer = make()
    trainer.model.save_pretrained(model)
    tokenizer.save_pretrained(model)
    assert run(make(model=model)) == "finished"
    trainer.model.get_input_embeddings().weight.data.mul_(1.01)
    trainer.model.save_pretrained(model)
    with pytest.raises(ConfigError, match="other settings: the model .*model has changed"):
        run(make(model=model))


def test_a_checkpoint_beyond_the_last_step_is_not_taken_for_the_end(make, tmp_path, steps_trained):
    run(make(at=(7, kill)))
    steps_trained.clear()
    with pytest.raises(ConfigError, match="checkpoint-6' has been trained for 6 steps, more than the 5"):
        run(make(max_steps=5))
    with pytest.raises(ConfigError, match="checkpoint-6' has all 6 steps.*max_steps 8 -> 6"):
        run(make(max_steps=6))
    assert not steps_trained and not (tmp_path / "run" / "model.safetensors").exists()


def test_a_finished_training_that_cannot_be_continued_is_not_replaced(make, tmp_path):
    """Without a checkpoint, more steps would begin again."""
    run(make(save_strategy="no"))
    weights = saved(tmp_path / "run")
    with pytest.raises(ConfigError, match="already finished, with other settings: max_steps 8 -> 11"):
        run(make(save_strategy="no", max_steps=STEPS + 3))
    assert saved(tmp_path / "run") == weights


def test_a_training_that_was_started_over_and_killed_does_not_become_the_one_before(make, tmp_path, steps_trained):
    run(make())
    assert run(make(at=(4, kill), resume_from_checkpoint="false")) == "killed"
    steps_trained.clear()
    assert run(make()) == "finished"
    assert len(steps_trained) == STEPS - 3


@pytest.mark.parametrize("start", ["false", "checkpoint-3"])
def test_a_training_that_ends_before_it_saves_anything_gives_nothing_up(start, make, tmp_path, steps_trained):
    assert run(make(at=(7, kill))) == "killed"
    start = start if start == "false" else str(tmp_path / "run" / start)
    assert run(make(at=(4, kill), resume_from_checkpoint=start, save_steps=100)) == "killed"
    steps_trained.clear()
    assert run(make()) == "finished"
    assert len(steps_trained) == 2
    assert run(make(at=(4, kill), resume_from_checkpoint=start, save_steps=100)) == "killed"
    steps_trained.clear()
    assert run(make()) == "finished"
    assert not steps_trained


def test_a_checkpoint_of_the_best_model_is_marked_and_replaces_what_is_in_its_way(make, tmp_path):
    settings = {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 4}
    settings |= {"metric_for_best_model": "eval_loss", "greater_is_better": True}  # the first one alone
    leftover = tmp_path / "run" / "checkpoint-4"
    leftover.mkdir(parents=True)
    (tmp_path / "run" / MARK).write_text("{}")
    (leftover / "optimizer.bin").write_bytes(b"of another run")
    assert run(make(**settings)) == "finished"
    assert (leftover / MARK).is_file() and not (leftover / "optimizer.bin").exists()
    assert not (tmp_path / "run" / "checkpoint-8").exists()


@pytest.mark.parametrize("save_strategy", ["no", "steps"])
def test_an_evaluation_that_fails_is_done_again_and_the_training_is_not(
    save_strategy, make, tmp_path, steps_trained, monkeypatch
):
    settings = {"save_strategy": save_strategy, "eval_strategy": "steps", "eval_steps": 100}
    assert run(make(output_dir="straight", **settings)) == "finished"
    trainer = make(**settings)
    evaluate = trainer.evaluate
    # `Trainer` evaluates at the last step, too
    monkeypatch.setattr(trainer, "evaluate", lambda **kwargs: evaluate(**kwargs) if trainer.is_in_train else kill())
    assert run(trainer) == "killed"
    steps_trained.clear()
    again = make(**settings)
    assert run(again) == "finished"
    assert not steps_trained
    assert saved(tmp_path / "run") == saved(tmp_path / "straight")
    results = [json.loads((tmp_path / name / "eval_results.json").read_text()) for name in ("run", "straight")]
    assert results[0]["eval_loss"] == results[1]["eval_loss"]
    states = [json.loads((tmp_path / name / "trainer_state.json").read_text()) for name in ("run", "straight")]
    assert [state["global_step"] for state in states] == [STEPS, STEPS]
    assert ["eval_loss" in state["log_history"][-1] for state in states] == [True, True]


def test_with_the_same_settings_nothing_is_warned_of(make, caplog):
    run(make(at=(4, kill)))
    with caplog.at_level(logging.WARNING, logger="rlmec_trl"):
        run(make())
    assert not [record for record in caplog.records if record.name.startswith("rlmec_trl")]


@pytest.mark.parametrize("settings", [{"max_steps": 0}, {"max_steps": -1, "num_train_epochs": 0}])
def test_no_step_at_all_is_refused(settings, make, tmp_path, steps_trained):
    """`RLMECConfig` refuses it too, but a plain `SFTConfig` does not."""
    trainer = make()
    for name, value in settings.items():
        setattr(trainer.args, name, value)
    with pytest.raises(ConfigError, match="nothing to train"):
        train_and_save(trainer)
    assert not steps_trained and not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("settings", [{}, {"max_steps": -1, "num_train_epochs": 1}])
def test_a_training_without_a_batch_is_not_taken_for_a_finished_one(settings, make, tmp_path):
    settings = {"rows": 1, "dataloader_drop_last": True} | settings
    with pytest.raises(ConfigError, match=r"its 1 rows are too few for `per_device_train_batch_size` 2 on 1 process"):
        run(make(kind="sft", **settings))
    assert os.listdir(tmp_path / "run") == [MARK]


def test_epochs_without_a_batch_are_refused_beside_a_checkpoint_too(make, tmp_path):
    run(make(kind="sft", at=(4, kill)))
    settings = {"rows": 1, "dataloader_drop_last": True, "max_steps": -1, "num_train_epochs": 1}
    with pytest.raises(ConfigError, match="its 1 rows are too few"):
        run(make(kind="sft", **settings))


# --- Where to resume from --------------------------------------------------------------------------------------------


def test_a_named_checkpoint_is_resumed_from_and_an_incomplete_one_refused(make, tmp_path, steps_trained):
    run(make())
    folder = tmp_path / "run"
    (folder / "model.safetensors").unlink()
    steps_trained.clear()
    run(make(resume_from_checkpoint=str(folder / "checkpoint-3")))
    assert len(steps_trained) == STEPS - 3
    (folder / "checkpoint-6" / "optimizer.pt").unlink()
    with pytest.raises(ConfigError, match=r"checkpoint-6' is not a complete checkpoint.*optimizer\.pt"):
        train_and_save(make(resume_from_checkpoint=str(folder / "checkpoint-6")))
    with pytest.raises(ConfigError, match="'nowhere' is not a folder"):
        train_and_save(make(resume_from_checkpoint="nowhere"))


def test_the_same_command_resumes_where_it_names_a_checkpoint_too(make, tmp_path, steps_trained):
    run(make(output_dir="first"))
    settings = {"resume_from_checkpoint": str(tmp_path / "first" / "checkpoint-3"), "save_steps": 2}
    assert run(make(at=(7, kill), **settings)) == "killed"
    for num_missing in (STEPS - 6, 0):
        steps_trained.clear()
        assert run(make(**settings)) == "finished"
        assert len(steps_trained) == num_missing
    assert saved(tmp_path / "run") == saved(tmp_path / "first")


@pytest.mark.parametrize("no", ["False", False])
def test_training_can_be_told_not_to_resume(no, make, steps_trained):
    run(make(at=(4, kill)))
    steps_trained.clear()
    run(make(resume_from_checkpoint=no))
    assert len(steps_trained) == STEPS


def test_a_finished_training_can_be_told_to_start_again(make, steps_trained):
    run(make())
    steps_trained.clear()
    run(make(resume_from_checkpoint="false"))
    assert len(steps_trained) == STEPS


@pytest.mark.parametrize("yes", ["true", True])
def test_training_can_be_told_to_resume(yes, make, steps_trained):
    with pytest.raises(ConfigError, match="has no complete checkpoint"):
        train_and_save(make(resume_from_checkpoint=yes))
    run(make(at=(4, kill)))
    steps_trained.clear()
    run(make(resume_from_checkpoint=yes))
    assert len(steps_trained) == STEPS - 3


def test_a_checkpoint_of_another_program_is_resumed_from_by_its_name(make, tmp_path):
    make(max_steps=4, lr_scheduler_type="constant", output_dir="plain").train()
    checkpoint = tmp_path / "plain" / "checkpoint-4"
    assert RECORD not in json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]
    with pytest.raises(
        OutputError, match=r"To continue from '.*plain/checkpoint-4', name it as `--resume_from_checkpoint`"
    ):
        run(make(lr_scheduler_type="constant", output_dir="plain"))
    assert run(make(lr_scheduler_type="constant", resume_from_checkpoint=str(checkpoint))) == "finished"
    assert run(make(lr_scheduler_type="constant", output_dir="straight")) == "finished"
    assert saved(tmp_path / "run") == saved(tmp_path / "straight")


# --- SIGTERM ---------------------------------------------------------------------------------------------------------


def test_sigterm_saves_in_the_middle_of_an_epoch_without_evaluating(make, tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)
    handlers = []

    def interrupt():
        terminate()
        handlers.append(signal.getsignal(signal.SIGTERM))

    trainer = make(at=(4, interrupt), eval_strategy="steps", eval_steps=4, save_strategy="no")
    assert run(trainer) == 143
    assert handlers == [signal.SIG_DFL], "the second one kills"
    assert signal.getsignal(signal.SIGTERM) is before
    folder = tmp_path / "run"
    assert missing_from(folder / "checkpoint-4") == []
    assert not (folder / "model.safetensors").exists(), "the training is not finished"
    assert not [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert "stopped after step 4 of 8" in capsys.readouterr().out


def test_the_checkpoint_of_sigterm_is_kept_beside_the_best_one(make, tmp_path):
    """At the end of a training, `Trainer` deletes all but the best where the limit is 1."""
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True}
    settings |= {"save_total_limit": 1, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    assert run(make(at=(5, terminate), **settings)) == 143
    assert missing_from(tmp_path / "run" / "checkpoint-5") == []


def test_a_thread_trains_without_handling_signals(make):
    before = signal.getsignal(signal.SIGTERM)
    handlers = []
    trainer = make(at=(1, lambda: handlers.append(signal.getsignal(signal.SIGTERM))), max_steps=1)
    thread = threading.Thread(target=train_and_save, args=(trainer,))
    thread.start()
    thread.join()
    assert handlers == [before]


# --- Folders of others -----------------------------------------------------------------------------------------------


def test_a_training_in_python_does_not_overwrite_files_of_others(make, tmp_path, steps_trained):
    (tmp_path / "run").mkdir()
    for name in ("README.md", "config.json"):
        (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(OutputError, match="no training of rlmec-trl was started there"):
        train_and_save(make())
    assert {path.name: path.read_text() for path in (tmp_path / "run").iterdir()} == {
        "README.md": "mine",
        "config.json": "mine",
    }
    assert not steps_trained


def test_the_folder_is_marked_before_anything_is_written(make, tmp_path):
    seen = []
    trainer = make(max_steps=1)
    trainer.add_callback(At(1, lambda: seen.extend(os.listdir(tmp_path / "run"))))
    run(trainer)
    assert seen == [MARK]
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert run(make(max_steps=1)) == "finished"
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


# --- Two runs at once ------------------------------------------------------------------------------------------------


def test_a_second_run_on_the_same_output_is_refused_until_the_first_ends(make, tmp_path):
    args = make().args
    with training_run(args):
        with pytest.raises(OutputError, match="Another run is writing to .*run'"):
            with training_run(args):
                raise AssertionError("the work of the second run")
    with training_run(args):
        pass
    with pytest.raises(Killed):
        with training_run(args):
            raise Killed
    assert list(tmp_path.glob(".*")) == [] == os.listdir(tmp_path / "run"), "the lock leaves nothing behind"


def test_a_second_run_in_python_is_refused_too(make, tmp_path):
    refusals = []

    def train_again():
        with pytest.raises(OutputError, match="Another run is writing to .*run'") as error:
            train_and_save(make())
        refusals.append(error)

    assert run(make(at=(2, train_again))) == "finished"
    assert len(refusals) == 1 and list(tmp_path.glob(".*")) == []
    with training_run(make().args):  # which the recipes hold around it
        assert run(make()) == "finished"


def test_a_trainer_that_is_not_one_of_trl_is_refused(tmp_path):
    trainer = Trainer(torch.nn.Linear(1, 1), TrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to="none"))
    with pytest.raises(ConfigError, match="needs a trainer of TRL, not a Trainer"):
        train_and_save(trainer)


def test_the_lock_of_a_killed_run_is_gone_with_it(make, tmp_path):
    args = make().args
    process = os.fork()
    if process == 0:
        with training_run(args):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    with training_run(args):
        pass
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("kind", ["file", "root", "below a file"])
def test_an_output_directory_that_cannot_be_used_is_named(kind, make, tmp_path):
    args = make().args
    (tmp_path / "file").write_text("years of work")
    args.output_dir = {"file": str(tmp_path / "file"), "root": "/", "below a file": str(tmp_path / "file" / "run")}[
        kind
    ]
    with pytest.raises(OutputError, match=args.output_dir), training_run(args):
        raise AssertionError("the work of the run")
    assert (tmp_path / "file").read_text() == "years of work"


def test_a_model_is_not_replaced_by_the_one_that_is_trained_from_it(make, tmp_path):
    args = make().args
    (tmp_path / "link").symlink_to("run")
    for name in (args.output_dir, str(tmp_path / "link"), f"{args.output_dir}/checkpoint-2"):
        with pytest.raises(OutputError, match="is the model to start from"):
            set_model_init_kwargs(args, ModelConfig(name))


def test_a_link_to_a_folder_is_the_folder(make, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "run").symlink_to("there")
    args = make().args
    with training_run(args):
        args.output_dir = str(tmp_path / "there")
        with pytest.raises(OutputError, match="Another run"), training_run(args):
            raise AssertionError("the work of the second run")
