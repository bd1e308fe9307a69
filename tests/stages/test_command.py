"""A recipe on the command line: what the user has to fix is one message, anything else keeps its traceback."""

import sys
from dataclasses import dataclass

import pytest
from trl import SFTConfig, TrlParser

from rlmec_trl.data.errors import ConfigError, UserError
from rlmec_trl.data.schema import DatasetError
from rlmec_trl.stages import command
from rlmec_trl.stages.command import run_command
from rlmec_trl.stages.output import OutputError


@dataclass
class Arguments:
    number: int = 1

    def __post_init__(self):
        if self.number < 0:
            raise ConfigError(f"`number` must not be negative, got {self.number}.")


def make_parser():
    return TrlParser((Arguments,))


@pytest.fixture
def words(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipe"])
    return sys.argv


@pytest.mark.parametrize("kind", [UserError, ConfigError, DatasetError, OutputError])
def test_a_user_error_is_one_message_and_a_failing_exit_status(kind, words):
    def main(args):
        raise kind("Row 3 is empty. Drop it.")

    with pytest.raises(SystemExit) as caught:
        run_command(make_parser, main)
    assert caught.value.code == f"{kind.__name__}: Row 3 is empty. Drop it."


def test_a_setting_that_its_dataclass_refuses_is_one_message_too(words):
    words += ["--number", "-1"]
    with pytest.raises(SystemExit, match="`number` must not be negative, got -1"):
        run_command(make_parser, lambda args: None)


def test_a_mistake_of_ours_keeps_its_traceback(words):
    with pytest.raises(ZeroDivisionError):
        run_command(make_parser, lambda args: 1 / 0)


def test_the_result_is_returned_and_the_process_group_ended(words, monkeypatch):
    ended = []
    monkeypatch.setattr(command, "end_processes", lambda: ended.append(True))
    words += ["--number", "7"]
    assert run_command(make_parser, lambda args: args.number) == 7 and ended == [True]


def test_a_deprecation_that_no_user_can_act_on_is_not_shown(words, monkeypatch, tmp_path, recwarn):
    monkeypatch.setattr(command, "end_processes", lambda: None)
    words += ["--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false", "--gradient_checkpointing", "false"]
    args = run_command(lambda: TrlParser((SFTConfig,)), lambda args: args)
    assert not args.gradient_checkpointing
    assert not [warning for warning in recwarn if warning.category is FutureWarning]
