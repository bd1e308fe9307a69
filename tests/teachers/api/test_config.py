"""Impossible settings are refused, and an answer costs what the price list says."""

import dataclasses
import inspect
import re

import pytest
from trl import TrlParser

from rlmec_trl.teachers.api.config import TeacherConfig, answer_cost
from rlmec_trl.teachers.api.journal import Answer


FIELDS = {field.name: field for field in dataclasses.fields(TeacherConfig)}
DOCUMENTED_TOGETHER = {"input_price": "input_price, output_price", "output_price": "input_price, output_price"}
DOCUMENTED_TOGETHER |= dict.fromkeys(("cache_write_price", "cache_read_price"), "cache_write_price, cache_read_price")


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_in_the_docstring_with_its_default_and_has_help(name):
    shown = DOCUMENTED_TOGETHER.get(name, name)
    docstring = inspect.cleandoc(TeacherConfig.__doc__)  # Python 3.13 takes the indentation away, earlier ones do not
    found = re.search(rf"^ {{4}}{shown} \(`[^`]+`, \*optional\*(.*)\):$", docstring, re.M)
    assert found, f"{name} is not documented"
    default = FIELDS[name].default
    assert found.group(1) == ("" if default is None else f", defaults to `{default}`")
    assert FIELDS[name].metadata["help"]


# --- Validation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input_price": 5.0}, "Set both `--input_price` and `--output_price`, or neither"),
        ({"output_price": 5.0}, "Set both `--input_price` and `--output_price`, or neither"),
        ({"max_cost": 10.0}, "`--max_cost` needs the teacher's prices.*`--input_price` and `--output_price`"),
        ({"max_attempts": 0}, "`max_attempts` must be at least 1, got 0"),
        ({"questions_per_batch": 0}, "`questions_per_batch` must be .* at most 100,000, got 0: the API accepts"),
        (
            {"questions_per_batch": 100_001},
            "`questions_per_batch` must be .* at most 100,000, got 100001: the API accepts",
        ),
    ],
)
def test_an_impossible_setting_is_refused_with_a_fix(fields, message):
    with pytest.raises(ValueError, match=message):
        TeacherConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"input_price": 0.0, "output_price": 0.0, "max_cost": 0.0},
        {"max_attempts": 1, "questions_per_batch": 1},
        {"questions_per_batch": 100_000},
    ],
)
def test_settings_at_the_limits_are_accepted(fields):
    config = TeacherConfig(**fields)
    assert {name: getattr(config, name) for name in fields} == fields


def test_the_command_line_knows_the_fields():
    arguments = ["--max_cost", "12.5", "--input_price", "5", "--output_price", "25", "--use_batches", "true"]
    (config,) = TrlParser(TeacherConfig).parse_args_and_config([*arguments, "--effort", "low"])
    assert config == TeacherConfig(max_cost=12.5, input_price=5.0, output_price=25.0, use_batches=True, effort="low")
    with pytest.raises(SystemExit):
        TrlParser(TeacherConfig).parse_args_and_config(["--effort", "lowest"])


# --- Costs -----------------------------------------------------------------------------------------------------------

TOKENS = {"input_tokens": 100, "output_tokens": 50, "cache_write_tokens": 1000, "cache_read_tokens": 2000}


@pytest.mark.parametrize(
    ("prices", "tokens", "dollars"),
    [
        # A million input tokens at 5 dollars
        ({"input_price": 5.0, "output_price": 25.0}, {"input_tokens": 1_000_000}, 5.0),
        # 200 input tokens are a tenth of a cent, and so are 40 output tokens
        ({"input_price": 5.0, "output_price": 25.0}, {"input_tokens": 200, "output_tokens": 40}, 0.002),
        # 0.03 in, 0.03 out, 0.30 * 1.25 written, 0.60 read, all in cents
        ({"input_price": 3.0, "output_price": 6.0}, TOKENS, 0.01035),
        # 0.03 in, 0.03 out, 0.40 written, 0.06 read
        (
            {"input_price": 3.0, "output_price": 6.0, "cache_write_price": 4.0, "cache_read_price": 0.3},
            TOKENS,
            0.0052,
        ),
        # Zero is a price
        (
            {"input_price": 3.0, "output_price": 6.0, "cache_write_price": 0.0, "cache_read_price": 0.0},
            TOKENS,
            0.0006,
        ),
        ({"input_price": 0.0, "output_price": 0.0}, TOKENS, 0.0),
    ],
)
def test_an_answer_costs_what_a_calculation_by_hand_gives(prices, tokens, dollars):
    config, answer = TeacherConfig(**prices), Answer("text", "end_turn", **tokens)
    assert answer_cost(config, answer) == pytest.approx(dollars, rel=1e-12)
    # Answers of a batch cost half, however the config sends requests now
    batched = dataclasses.replace(answer, batch="msgbatch_1")
    assert answer_cost(config, batched) == pytest.approx(dollars / 2, rel=1e-12)
    assert answer_cost(TeacherConfig(**prices, use_batches=True), answer) == pytest.approx(dollars, rel=1e-12)


def test_without_prices_the_cost_is_unknown():
    assert answer_cost(TeacherConfig(), Answer("text", "end_turn", 400, 60)) is None
    assert answer_cost(TeacherConfig(), Answer("text", "end_turn", 400, 60, batch="msgbatch_1")) is None


def test_an_answer_without_text_has_a_cost():
    config = TeacherConfig(input_price=5.0, output_price=25.0)
    assert answer_cost(config, Answer("", "refusal", 200, 40)) == pytest.approx(0.002, rel=1e-12)
