"""The config: the paper's defaults, documented fields, and validation."""

import dataclasses
import inspect
import re

import pytest
from trl import SFTConfig, TrlParser

from rlmec_trl.trainers.rlmec_config import RLMECConfig


PARENT = {field.name: field for field in dataclasses.fields(SFTConfig)}
FIELDS = {field.name: field for field in dataclasses.fields(RLMECConfig)}
OWN = {name: field for name, field in FIELDS.items() if name in RLMECConfig.__annotations__}
DEFAULTS = {
    "reward_baseline": 0.5,
    "positive_reward_range": [0.0, 0.5],
    "negative_reward_range": [-0.1, 0.0],
    "negative_credit": "all",
    "policy_coef": 1.0,
    "loss_type": "rlmec",
    "epsilon": 0.3,
    "normalize_by": "active_tokens",
    "imitation_coef": 1.0,
    "edited_weight": 1.0,
    "unedited_weight": 0.5,
    "correct_samples": "keep",
    "truncated_rewrites": "drop",
    "imitation_targets": "hard",
    "imitation_temperature": 1.0,
    "imitation_label_smoothing": 0.0,
    "attempt_coef": 0.0,
    "stop_on_nonfinite": True,
}


def make_config(**fields):
    return RLMECConfig(**({"output_dir": "unused", "use_cpu": True, "bf16": False, "report_to": "none"} | fields))


def default_of(field):
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def test_the_defaults_are_the_papers():
    assert {name: default_of(field) for name, field in OWN.items()} == DEFAULTS
    config = make_config()
    assert {name: getattr(config, name) for name in OWN} == DEFAULTS


def test_configs_do_not_share_their_ranges():
    make_config().positive_reward_range.append(7.0)
    assert make_config().positive_reward_range == [0.0, 0.5]


@pytest.mark.parametrize("name", OWN)
def test_every_field_is_in_the_docstring_with_its_default_and_has_help(name):
    docstring = inspect.cleandoc(RLMECConfig.__doc__)  # Python 3.13 takes the indentation away, earlier ones do not
    documented = re.search(rf"^ {{4}}{name} \(`[^`]+`, \*optional\*, defaults to `([^`]+)`\):", docstring, re.M)
    assert documented, f"{name} is not documented"
    assert documented.group(1).replace('"', "'") == repr(DEFAULTS[name])
    assert OWN[name].metadata["help"]


def test_the_docstring_lists_every_default_that_differs_from_the_parents():
    changed = {name for name in OWN if name in PARENT and default_of(PARENT[name]) != default_of(OWN[name])}
    note = RLMECConfig.__doc__.split("different from [`~trl.SFTConfig`]")[1]
    assert set(re.findall(r"> - `(\w+)`", note)) == changed
    assert f'`"{default_of(PARENT["loss_type"])}"`' in note


@pytest.mark.parametrize("name", [name for name, field in OWN.items() if "choices" in field.metadata])
def test_the_config_accepts_exactly_the_choices_of_the_command_line(name):
    for choice in OWN[name].metadata["choices"]:
        assert getattr(make_config(**{name: choice}), name) == choice
        assert f'"{choice}"' in RLMECConfig.__doc__
    with pytest.raises(ValueError, match=f"`{name}` must be one of .*'nll'"):
        make_config(**{name: "nll"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"positive_reward_range": [0.5, 0.0]}, "`positive_reward_range` must be two numbers, the lower bound first"),
        ({"negative_reward_range": [0.0, -0.1]}, "`negative_reward_range` must be two numbers"),
        ({"positive_reward_range": [0.5]}, "`positive_reward_range` must be two numbers"),
        ({"negative_reward_range": [-0.2, -0.1, 0.0]}, "`negative_reward_range` must be two numbers"),
        ({"policy_coef": -1.0}, "`policy_coef` must not be negative"),
        ({"imitation_coef": -0.1}, "`imitation_coef` must not be negative"),
        ({"edited_weight": -1.0}, "`edited_weight` must not be negative"),
        ({"unedited_weight": -1.0}, "`unedited_weight` must not be negative"),
        ({"policy_coef": 0.0, "imitation_coef": 0.0}, "nothing to train on"),
        ({"attempt_coef": -0.1}, "`attempt_coef` must not be negative"),
        ({"epsilon": 0.0}, "`epsilon` must be positive"),
        ({"epsilon": -0.3}, "`epsilon` must be positive"),
        ({"imitation_temperature": 0.0}, "`imitation_temperature` must be at least 0.001"),
        ({"imitation_label_smoothing": -0.1}, "`imitation_label_smoothing` must be at least 0 and under 1"),
        ({"imitation_label_smoothing": 1.0}, "`imitation_label_smoothing` must be at least 0 and under 1"),
    ],
)
def test_an_invalid_value_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make_config(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"policy_coef": 0.0},
        {"imitation_coef": 0.0},
        {"policy_coef": 0.0, "imitation_coef": 0.0, "attempt_coef": 0.1},
        {"unedited_weight": 0.0},
        {"edited_weight": 0.0},
        {"positive_reward_range": [0.0, 0.0]},
        {"negative_reward_range": (-0.2, -0.2)},
        {"imitation_label_smoothing": 0.99},
    ],
)
def test_a_value_at_its_bound_is_accepted(fields):
    config = make_config(**fields)
    assert {name: getattr(config, name) for name in fields} == fields


def parse(arguments):
    common = ["--output_dir", "unused", "--use_cpu", "true", "--bf16", "false", "--report_to", "none"]
    (config,) = TrlParser(RLMECConfig).parse_args_and_config([*common, *arguments])
    return config


def test_the_command_line_reaches_every_kind_of_field():
    config = parse(
        "--negative_reward_range -0.2 0.05 --policy_coef 0.1 --loss_type ppo --correct_samples rewrite "
        "--epsilon 2e-1".split()
    )
    assert config.negative_reward_range == [-0.2, 0.05]
    assert (config.policy_coef, config.loss_type, config.correct_samples) == (0.1, "ppo", "rewrite")
    assert config.epsilon == 0.2
    assert config.positive_reward_range == [0.0, 0.5]


def test_a_yaml_reaches_the_config_and_an_unknown_field_is_an_error(tmp_path):
    path = tmp_path / "rlmec.yaml"
    path.write_text("negative_reward_range: [-0.2, 0.0]\nnormalize_by: completion_tokens\nimitation_coef: 2\n")
    config = parse(["--config", str(path)])
    assert config.negative_reward_range == [-0.2, 0.0]
    assert config.normalize_by == "completion_tokens"
    assert config.imitation_coef == 2.0

    path.write_text("normalise_by: completion_tokens\n")
    with pytest.raises(ValueError, match="normalise_by"):
        parse(["--config", str(path)])


def test_the_command_line_refuses_an_invalid_choice(capsys):
    with pytest.raises(SystemExit):
        parse(["--loss_type", "dpo"])
    assert "invalid choice: 'dpo'" in capsys.readouterr().err
