"""What the trainers print, report and write of the credit of tokens while they train."""

import math
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset
from transformers import TrainerControl, TrainerState
from trl import SFTConfig

from rlmec_trl import OnlineRLMECConfig, OnlineRLMECTrainer, RLMECConfig, RLMECTrainer, TokenCreditCallback
from rlmec_trl.data.errors import ConfigError, DatasetError


@pytest.fixture
def config(tmp_path):
    def make(kind=RLMECConfig, **settings):
        common = {
            "max_steps": 4, "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True, "bf16": False,
            "disable_tqdm": True, "per_device_train_batch_size": 2,
        }  # fmt: skip
        return kind(str(tmp_path / "out"), **common | settings)

    return make


def files(config):
    return {path.name: pd.read_parquet(path) for path in Path(config.output_dir, "completions").glob("*.parquet")}


@pytest.mark.parametrize("kind", ["token_probs", "token_rewards"])
def test_samples_are_shown_with_probability_reward_and_weight(kind, make_policy, make_rows, tokenizer, config, capsys):
    rows = make_rows(5)
    for number, row in enumerate(rows):
        row["prompt"] += f" ({number})"
        row["token_probs"][:2] = [0.25, 0.75]
    if kind == "token_rewards":
        rows = [row | {"token_rewards": [p - 0.5 for p in row.pop("token_probs")]} for row in rows]
    dataset, args = Dataset.from_list(rows), config(max_length=200)
    callback = TokenCreditCallback(dataset, num_completions=2, every=2)
    trainer = RLMECTrainer(
        make_policy(), args, train_dataset=dataset, processing_class=tokenizer, callbacks=[callback]
    )
    trainer.train()
    shown = files(args)
    assert set(shown) == {"completions_00002.parquet", "completions_00004.parquet"}
    first, second = shown["completions_00002.parquet"], shown["completions_00004.parquet"]
    assert len(first) == len(second) == 2
    row = second.loc[0]
    (source,) = (one for one in rows if one["prompt"] == row["prompt"])
    assert row["completion_ids"].tolist() == source["completion_ids"]
    assert "".join(row["tokens"]).startswith(source["completion"])
    if kind == "token_probs":
        assert row["token_probs"].tolist() == pytest.approx(source["token_probs"])
        low, high = (0.0, 0.5) if source["correct"] else (-0.1, 0.0)
        expected = [min(max(p - 0.5, low), high) for p in source["token_probs"]]
    else:
        expected = source["token_rewards"]
    assert row["token_rewards"].tolist() == pytest.approx(expected)
    weights = pd.concat([first, second])["imitation_weights"].explode()
    assert set(weights) <= {0.5, 1.0} and len(row["imitation_ids"]) == len(row["imitation_weights"])
    output = capsys.readouterr().out
    assert "Step 2" in output and "Step 3" not in output and "correct " in output


def test_all_samples_have_their_turn_whatever_the_distance_of_logs(make_rows, tokenizer, config, capsys):
    """With as many samples between two logs as the dataset has, a fixed order would always show the same ones."""
    rows = [row | {"prompt": str(number)} for number, row in enumerate(make_rows(6))]
    args = config()

    def shown(step):
        callback = TokenCreditCallback(Dataset.from_list(rows), num_completions=2)
        state = TrainerState(global_step=step, is_world_process_zero=True)
        callback.on_log(args, state, TrainerControl(), logs={"loss": 1.0}, processing_class=tokenizer)
        return files(args)[f"completions_{step:05d}.parquet"]["prompt"].tolist()

    first = [shown(step) for step in range(3, 61, 3)]
    assert {prompt for prompts in first for prompt in prompts} == set("012345")
    assert first[0] == shown(3), "a training that is resumed shows the same"


def test_other_processes_and_other_logs_show_nothing(make_rows, tokenizer, config, capsys):
    callback, args = TokenCreditCallback(Dataset.from_list(make_rows(3))), config()

    def log(logs, main=True):
        state = TrainerState(global_step=1, is_world_process_zero=main)
        callback.on_log(args, state, TrainerControl(), logs=logs, processing_class=tokenizer)

    log({"loss": 1.0}, main=False)
    log({"eval_loss": 1.0})
    log({"train_loss": 1.0})
    assert capsys.readouterr().out == "" and not Path(args.output_dir, "completions").exists()
    log({"loss": 1.0})
    assert "Step 1" in capsys.readouterr().out


def test_what_cannot_be_shown_is_refused(make_rows, tokenizer, config):
    rows = make_rows(2)
    for settings in ({"num_completions": 0}, {"every": 0}, {"every": 1.5}):
        with pytest.raises(ConfigError, match="whole number from 1"):
            TokenCreditCallback(Dataset.from_list(rows), **settings)
    with pytest.raises(DatasetError, match="is empty"):
        TokenCreditCallback(Dataset.from_list([]))
    with pytest.raises(DatasetError, match="Column 'token_probs'"):
        TokenCreditCallback(Dataset.from_list(rows).remove_columns("token_probs"))
    for bad in (math.nan, 1.5):  # which has no color, and would end the training in the middle
        row = rows[1] | {"token_probs": [bad, *rows[1]["token_probs"][1:]]}
        with pytest.raises(DatasetError, match="Row 1, column 'token_probs'"):
            TokenCreditCallback(Dataset.from_list([rows[0], row]))
    with pytest.raises(ConfigError, match="got `SFTConfig`"):
        callback = TokenCreditCallback(Dataset.from_list(rows))
        callback.on_train_begin(config(SFTConfig), TrainerState(), TrainerControl())


def test_a_file_is_whole_or_not_there(make_rows, tokenizer, config, monkeypatch):
    args = config(max_length=200)
    callback = TokenCreditCallback(Dataset.from_list(make_rows(2)))
    state = TrainerState(global_step=1, is_world_process_zero=True)

    def log():
        callback.on_log(args, state, TrainerControl(), {"loss": 1.0}, tokenizer)

    log()
    before = files(args)

    def be_killed(frame, path):
        Path(path).write_bytes(b"PAR1")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pd.DataFrame, "to_parquet", be_killed)
        log()
    assert files(args).keys() == before.keys() == {"completions_00001.parquet"}
    log()
    assert len(list(Path(args.output_dir, "completions").iterdir())) == 1


# --- Online ----------------------------------------------------------------------------------------------------------


def odd(completion_ids, **kwargs):
    return [[None if index == 0 else token % 3 - 1.0 for index, token in enumerate(ids)] for ids in completion_ids]


def position(completion_ids, **kwargs):
    return [[float(index) for index in range(len(ids))] for ids in completion_ids]


def outcome(completions, **kwargs):
    return [float(index % 2) for index in range(len(completions))]


@pytest.fixture
def train_online(make_policy, tokenizer, config):
    from rlmec_trl.tasks.arithmetic import make_arithmetic

    problems = make_arithmetic(seed=0, warmup=0, train=4, validation=0, test=0)["train"]

    def train(sources, **settings):
        settings = {"log_completions": True, "max_steps": 1, "num_generations": 2} | settings
        args = config(OnlineRLMECConfig, max_completion_length=6, **settings)
        trainer = OnlineRLMECTrainer(
            make_policy(), outcome, args, problems, processing_class=tokenizer, token_reward_funcs=sources
        )
        trainer.train()
        return trainer

    return train


def test_online_completions_are_printed_with_colored_tokens_and_not_as_trls_table(train_online, capsys, monkeypatch):
    reported = []
    monkeypatch.setattr(
        "rlmec_trl.trainers.online_rlmec_trainer.CompletionReporter.report",
        lambda self, completions, step, table: reported.append((completions, step, table)),
    )
    trainer = train_online([odd, position])
    output = capsys.readouterr().out
    assert "Step 1" in output and "reward/odd" in output and "┃ Prompt" not in output
    completions, step, table = reported[0]
    assert len(completions) == 2 and step == 1 and table is False
    frame = files(trainer.args)["completions_00001.parquet"]
    for index, one in enumerate(completions):
        row = frame.loc[index]
        assert list(row["tokens"]) == list(one.tokens)
        combined = one.token_values["token_reward"]
        both = zip(one.token_values["token_reward/odd"], one.token_values["token_reward/position"], strict=True)
        expected = [b if a != a else a + b for a, b in both]
        assert combined == pytest.approx(expected)
        assert [shade is None for shade in one.shades] == [reward == 0 for reward in combined]
        assert set(one.values) == {"outcome", "advantage"}
    assert trainer.num_completions_to_print is None


def test_as_many_online_completions_are_printed_as_were_asked_for(train_online, capsys):
    train_online(odd, num_completions_to_print=1)
    output = capsys.readouterr().out
    first = output[: output.index("╯")]
    assert first.count("advantage ") == 1


def test_grpo_without_credit_keeps_trls_table(train_online, capsys):
    train_online(None, token_credit="outcome")
    assert "┃ Prompt" in capsys.readouterr().out


def test_nothing_is_decoded_or_printed_unless_asked_for(train_online, capsys, monkeypatch):
    def refuse(*args):
        raise AssertionError("tokens were decoded")

    monkeypatch.setattr("rlmec_trl.trainers.online_rlmec_trainer.token_texts", refuse)
    trainer = train_online(odd, log_completions=False)
    assert "Step" not in capsys.readouterr().out and not trainer._logs["extra"]
