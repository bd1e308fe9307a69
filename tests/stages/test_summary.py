"""The line that a stage ends with."""

import sys

import pytest
from trl import TrlParser

from rlmec_trl.stages.command import run_command
from rlmec_trl.stages.merge import MergeConfig
from rlmec_trl.stages.summary import describe_seconds, print_summary, timed


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""

    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr("rlmec_trl.stages.summary.time", clock)
    return clock


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (103, "1 min 43 s"),
        (3599.7, "1 h 0 min"),
        (93784, "26 h 3 min"),
    ],
)
def test_a_time_has_two_units_at_most(seconds, text):
    assert describe_seconds(seconds) == text


def test_a_summary_says_what_was_done_where_it_is_and_how_long_it_took(clock, capsys):
    @timed
    def inner():
        clock.now += 2
        print_summary("Scored.", "scored")

    @timed
    def stage(output):
        clock.now += 61
        inner()  # has its own time
        print_summary("Trained 3 steps.", output, "evaluate --model_name_or_path")
        return 7

    assert stage("my policy") == 7
    assert capsys.readouterr().out.splitlines() == [
        "Scored. Saved to scored in 2.0 s.",
        "Trained 3 steps. Saved to my policy in 1 min 3 s.",
    ]
    stage(None)
    assert capsys.readouterr().out.splitlines()[1] == "Trained 3 steps. Took 1 min 3 s."


def test_a_recipe_names_the_command_after_its_last_stage(clock, monkeypatch, capsys):
    @timed
    def scoring():
        print_summary("Scored.", "scored", "rlmec --dataset_name")

    def main(config):
        scoring()
        timed(lambda: print_summary("Trained.", config.output_dir, "evaluate --model_name_or_path"))()

    scoring()
    assert capsys.readouterr().out == "Scored. Saved to scored in 0.0 s.\n", "a pipeline knows what it does next"
    monkeypatch.setattr(sys, "argv", ["merge.py", "--output_dir", "my policy"])
    run_command(lambda: TrlParser((MergeConfig,)), main)
    assert capsys.readouterr().out.splitlines() == [
        "Scored. Saved to scored in 0.0 s.",
        "Trained. Saved to my policy in 0.0 s.",
        "Next: rlmec-trl evaluate --model_name_or_path 'my policy'",
    ]
    scoring()  # which does not belong to the next command
    capsys.readouterr()
    run_command(lambda: TrlParser((MergeConfig,)), lambda config: None)
    assert capsys.readouterr().out == ""
    run_command(lambda: TrlParser((MergeConfig,)), lambda config: timed(lambda: print_summary("Read."))())
    assert capsys.readouterr().out == "Read. Took 0.0 s.\n"
