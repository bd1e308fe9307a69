"""Logs of trainings, and the completions behind them, from the files that the stages leave."""

import json

import pytest

from rlmec_trl.data.errors import ConfigError
from rlmec_trl.reports.accuracy import Accuracy
from rlmec_trl.stages.run_logs import read_runs


ONLINE = {
    "trainer": "GRPOTrainer",
    "generation_batch_size": 64,
    "steps_per_generation": 1,
    "gradient_accumulation_steps": 1,
    "number of rows": None,
}


def training(folder, steps, settings, log=None):
    folder.mkdir(parents=True)
    state = {"global_step": steps[-1], "log_history": [{"step": step, **(log or {})} for step in steps]}
    if settings is not None:
        state["stateful_callbacks"] = {"TrainingRecord": {"attributes": {"settings": settings}}}
    (folder / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    return folder


def result(path, correct, total):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"correct": correct, "total": total, "mean": 0.0, "interval": [0, 1]}))
    return path


def test_completions_grow_by_those_of_the_stages_before(tmp_path):
    samples = tmp_path / "samples"
    samples.mkdir()
    mark = {"key": "k", "costs": {"completions": 1000}, "files": {}}
    (samples / "rlmec_trl.json").write_text(json.dumps(mark))
    first = training(tmp_path / "first", [10], ONLINE)
    second = training(tmp_path / "second" / "checkpoint-4", [2, 4], ONLINE).parent
    offline = training(tmp_path / "offline", [7], {"trainer": "RLMECTrainer"})
    runs = read_runs({"all": [samples, first, second], "alone": second, "offline": [samples, offline]})
    assert runs["all"].completions == [1640 + 128, 1640 + 256] and runs["all"].num_completions == 1640 + 256
    assert runs["alone"].completions == [128, 256]
    assert runs["offline"].completions == [1000]
    assert [log["step"] for log in runs["all"].logs] == [2, 4]


def test_of_unrecorded_trainings_only_offline_ones_are_counted(tmp_path):
    grpo = training(tmp_path / "grpo", [1], None, {"completions/mean_length": 3.0})
    sft = training(tmp_path / "sft", [1], None)
    runs = read_runs({"grpo": grpo, "sft": sft})
    assert runs["grpo"].completions == [None] and runs["sft"].completions == [0]


def test_results_lie_in_the_folder_or_beside_it_or_are_named(tmp_path):
    folder = training(tmp_path / "policy", [1], None)
    result(folder / "validation.json", 1, 4)
    (folder / "config.json").write_text("{}")
    result(tmp_path / "results" / "policy-test.json", 2, 4)
    result(tmp_path / "results" / "policy-2-test.json", 3, 4)
    named = result(tmp_path / "hard.json", 4, 4)
    run = read_runs({"run": [folder, named]})["run"]
    assert run.results == {"validation": Accuracy(1, 4), "test": Accuracy(2, 4), "hard": Accuracy(4, 4)}


def test_what_is_no_run_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.json").write_text("{}")
    messages = {"missing": "There is no file", "empty": "trainer_state", "notes.json": "is not a result"}
    for path, message in messages.items():
        with pytest.raises(ConfigError, match=message):
            read_runs({"run": tmp_path / path})


@pytest.mark.parametrize("logs", [{"step": 1}, [1, "a", None, [2]], None, "a"])
def test_logs_of_another_form_are_left_out(tmp_path, logs):
    folder = training(tmp_path / "run", [1], None)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 1, "log_history": logs}))
    assert read_runs({"run": folder})["run"].logs == []


def test_a_vocabulary_beside_a_model_is_no_result(tmp_path):
    folder = training(tmp_path / "run", [1], None)
    (folder / "vocab.json").write_text(json.dumps({"correct": 3, "total": 5, "mean": 1, "interval": 4}))
    assert read_runs({"run": folder})["run"].results == {}
