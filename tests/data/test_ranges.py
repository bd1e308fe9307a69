"""Every numeric setting has its range, and a value outside it, or of another type, is refused by name."""

import dataclasses
import importlib
import math
import pickle
import pkgutil
import re
import typing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments
from trl import GRPOConfig, ModelConfig, RewardConfig, SFTConfig

import rlmec_trl
from rlmec_trl.data.checks import check_config, check_setting, is_numeric
from rlmec_trl.data.errors import ConfigError
from rlmec_trl.data.ranges import RANGES, Range, at_least, between, find_range, over
from rlmec_trl.stages.pipeline import Pipeline


ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py") if path.stem != "pipeline")
# What the dataclasses need to be made
REQUIRED = {"output_dir": "out", "task": "math", "dataset_name": "data", "teacher": "model"}
REQUIRED |= {"seen_dataset_name": "data", "tokenizer": "model", "dataset_names": ["data"]}
REQUIRED |= {"results": ["a.json", "b.json"]}
NEEDED = {"ReportConfig": {"output_file": "report.html"}}  # of other classes, the default is none
REQUIRED |= {"label_reward_model": "model", "quality_reward_model": "model", "label_cap": 1.0}
TRAINING = {"use_cpu": True, "bf16": False, "report_to": "none"}
# Settings that are refused on their own
WITH_OTHERS = {
    "max_cost": {"input_price": 1.0, "output_price": 1.0},
    "input_price": {"output_price": 1.0},
    "output_price": {"input_price": 1.0},
    "cap_dataset_name": {"label_cap": None},
}


def configs():
    """Every configuration of the package and of the recipes, by its name."""
    found = {Pipeline}
    for module in pkgutil.walk_packages(rlmec_trl.__path__, "rlmec_trl."):
        found |= {kind for kind in vars(importlib.import_module(module.name)).values() if is_config(kind)}
    for recipe in RECIPES:
        found |= set(importlib.import_module(f"recipes.{recipe}").make_parser().dataclass_types)
    return {kind.__name__: kind for kind in sorted(found, key=lambda kind: kind.__name__) if is_ours(kind)}


def is_ours(kind):
    return kind.__module__.split(".")[0] in ("rlmec_trl", "recipes")


def is_config(kind):
    return (
        isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__name__.endswith(("Config", "Arguments"))
    )


CONFIGS = configs()
OWN = [
    (kind, field)
    for kind in CONFIGS.values()
    for field in dataclasses.fields(kind)
    if not any(field.name in getattr(parent, "__dataclass_fields__", {}) for parent in kind.__mro__[1:])
]
NUMERIC = [(kind, field) for kind, field in OWN if is_numeric(kind, field.name)]
# Every entry of the table, with a class that has it
KINDS = {**CONFIGS, "TrainingArguments": SFTConfig, "SFTConfig": SFTConfig, "GRPOConfig": GRPOConfig}
KINDS |= {"ModelConfig": ModelConfig, "RewardConfig": RewardConfig}
ENTRIES = [
    (KINDS[owner], name)
    for owner, table in RANGES.items()
    for name in table
    if name in KINDS[owner].__dataclass_fields__  # some are of other releases of the libraries
]


def make(kind, /, **changed):
    names = {field.name for field in dataclasses.fields(kind) if "choices" not in field.metadata}
    common = {**REQUIRED, **NEEDED.get(kind.__name__, {}), **(TRAINING if issubclass(kind, TrainingArguments) else {})}
    return kind(**({name: value for name, value in common.items() if name in names} | changed))


def by_name(part):
    return getattr(part, "__name__", None) or getattr(part, "name", None) or str(part)


def hint_of(kind, name):
    return typing.get_type_hints(kind)[name]


def is_list(kind, name):
    return typing.get_origin(hint_of(kind, name)) is list or "list[" in str(hint_of(kind, name))


def is_whole(kind, name):
    return "float" not in str(hint_of(kind, name))


def wrap(kind, name, number):
    return [number, number] if is_list(kind, name) else number


# --- The table -------------------------------------------------------------------------------------------------------


def test_the_walk_finds_the_configs_it_should():
    known = {
        "RLMECConfig",
        "OnlineRLMECConfig",
        "GRMConfig",
        "SampleConfig",
        "EditConfig",
        "ScoreConfig",
        "EvaluateConfig",
        "AuditConfig",
    }
    known |= {"TeacherConfig", "ServerConfig", "ProblemConfig", "TaskArguments", "ScoreArguments", "Pipeline"}
    assert known <= CONFIGS.keys()
    assert len(NUMERIC) > 45


@pytest.mark.parametrize(("kind", "field"), NUMERIC, ids=by_name)
def test_a_numeric_setting_has_a_range_and_is_documented(kind, field):
    permitted = find_range(kind, field.name)
    assert permitted is not None, f"{kind.__name__}.{field.name} needs an entry in `RANGES`"
    assert permitted.effect
    assert kind is Pipeline or field.metadata.get("help")
    if "Arguments" not in kind.__name__:  # a recipe's arguments are documented by their help
        assert re.search(rf"\b{field.name}\b[^\n]*\):\n", kind.__doc__), f"{field.name} is not in the docstring"


def test_a_numeric_setting_without_a_range_would_be_noticed():
    @dataclasses.dataclass
    class NewConfig:
        size: int = 3

    assert is_config(NewConfig) and is_numeric(NewConfig, "size") and find_range(NewConfig, "size") is None


def test_every_entry_of_the_table_is_of_a_class_that_exists_and_ours_of_a_field_that_it_has():
    assert RANGES.keys() <= KINDS.keys()
    for owner in RANGES.keys() & CONFIGS.keys():
        assert RANGES[owner].keys() <= CONFIGS[owner].__dataclass_fields__.keys(), owner


# Fields of some of the releases of TRL and Transformers that setup.cfg permits: another one may lack them
OF_OTHER_RELEASES = {"warmup_ratio"}


def test_every_entry_of_the_table_is_a_field_of_its_class():
    unknown = {
        (owner, name)
        for owner, table in RANGES.items()
        for name in table
        if name not in KINDS[owner].__dataclass_fields__ and name not in OF_OTHER_RELEASES
    }
    assert not unknown


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS.values() if kind is not Pipeline], ids=by_name)
def test_the_defaults_are_permitted(kind):
    check_config(make(kind))


@pytest.mark.parametrize(("kind", "name"), ENTRIES, ids=by_name)
def test_the_default_of_a_setting_in_the_table_is_permitted(kind, name):
    field = kind.__dataclass_fields__[name]
    if field.default is not dataclasses.MISSING:
        check_setting(kind, name, field.default)


@pytest.mark.parametrize(
    ("permitted", "words", "inside", "outside"),
    [
        (at_least(0, ""), "not be negative", [0, 0.1], [-1e-9]),
        (over(0, ""), "be positive", [1e-9], [0, -1]),
        (at_least(1, ""), "be at least 1", [1, 10**12], [0, 0.99]),
        (at_least(1, "", also=-1), "be -1 or at least 1", [-1, 1], [0, -2, -0.5]),
        (between(0, 1, ""), "be at least 0 and at most 1", [0, 1], [-0.01, 1.01]),
        (between(0, 1, "", open_low=True), "be over 0 and at most 1", [1, 0.1], [0]),
        (between(0, 1, "", open_high=True), "be at least 0 and under 1", [0], [1]),
        (between(1, 10_000, ""), "be at least 1 and at most 10,000", [1, 10_000], [0, 10_001]),
    ],
)
def test_a_range_says_what_it_permits(permitted, words, inside, outside):
    assert str(permitted) == words
    assert all(value in permitted for value in inside)
    assert not any(value in permitted for value in (*outside, math.nan))


# --- Values ----------------------------------------------------------------------------------------------------------


def inside(permitted: Range, whole: bool):
    low, high = max(permitted.low, -1e30), min(permitted.high, 1e30)
    if whole:
        numbers = st.integers(math.ceil(low), int(min(high, 2**63 - 1)))
    else:
        numbers = st.floats(low, high, exclude_min=permitted.open_low, exclude_max=permitted.open_high)
    return numbers if permitted.also is None else numbers | st.just(type(1 if whole else 1.0)(permitted.also))


def outside(permitted: Range, whole: bool):
    numbers = st.integers(-(2**70), 2**70) if whole else st.floats(allow_nan=False) | st.integers(-(2**200), 2**200)
    near = [bound + step for bound in (permitted.low, permitted.high) if abs(bound) < 1e30 for step in (-1, 0, 1)]
    numbers |= st.sampled_from([type(1 if whole else 1.0)(number) for number in near] or [2**64 if whole else 1e39])
    largest = 2**63 - 1 if whole else 3.4e38
    return numbers.filter(lambda number: number not in permitted or abs(number) > largest)


@pytest.mark.parametrize(("kind", "name"), ENTRIES, ids=by_name)
def test_a_value_inside_passes_and_one_outside_is_refused_by_name(kind, name):
    permitted, whole = find_range(kind, name), is_whole(kind, name)

    @settings(max_examples=10, deadline=None, database=None)
    @given(inside(permitted, whole), outside(permitted, whole))
    def check(good, bad):
        check_setting(kind, name, wrap(kind, name, good))
        with pytest.raises(ConfigError, match=rf"`{name}` must ") as caught:
            check_setting(kind, name, wrap(kind, name, bad))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400

    check()


@pytest.mark.parametrize(("kind", "name"), ENTRIES, ids=by_name)
def test_nan_infinity_and_other_types_are_refused_by_name(kind, name):
    hint, wrong = hint_of(kind, name), [math.nan, math.inf, -math.inf, True, [1], {"a": 1}, b"1", 1j, np.int64(1)]
    wrong += ["abc"] if "str" not in str(hint) else []
    wrong += [None] if type(None) not in typing.get_args(hint) else []
    wrong += [2.5] if is_whole(kind, name) else []
    for value in wrong:
        with pytest.raises(ConfigError, match=rf"`{name}` must "):
            check_setting(kind, name, wrap(kind, name, value))
    if is_list(kind, name):
        with pytest.raises(ConfigError, match=f"`{name}` must be a list"):
            check_setting(kind, name, 1)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind, name in ENTRIES if is_ours(kind) and kind is not Pipeline],
    ids=by_name,
)
def test_a_config_checks_its_numbers_when_it_is_made(kind, name):
    if kind.__name__ == "ScoreArguments":
        return  # arguments of a recipe are checked when they are parsed
    with pytest.raises(ConfigError, match=f"`{name}` must "):
        make(kind, **WITH_OTHERS.get(name, {}), **{name: wrap(kind, name, math.nan)})


OUT_OF_RANGE = [("warmup_steps", None), ("per_device_train_batch_size", 0), ("learning_rate", math.nan)]
OUT_OF_RANGE += [("max_length", 1), ("num_generations", 1)]
INHERITED = [
    (kind, name, value)
    for kind in CONFIGS.values()
    if issubclass(kind, TrainingArguments)
    for name, value in OUT_OF_RANGE
    if name in kind.__dataclass_fields__
]


@pytest.mark.parametrize(("kind", "name", "value"), INHERITED, ids=by_name)
def test_an_inherited_number_is_checked_before_the_library_fails_on_it(kind, name, value):
    with pytest.raises(ConfigError, match=f"`{name}` must "):
        make(kind, **{name: value})


# --- Texts, booleans and choices -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "field"), OWN, ids=by_name)
def test_a_setting_refuses_what_no_setting_is(kind, field):
    hint = hint_of(kind, field.name)
    if kind is Pipeline or hint is typing.Any:
        return
    with pytest.raises(ConfigError, match=f"`{field.name}` must be "):
        check_setting(kind, field.name, object())


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind, field in OWN if "choices" in field.metadata], ids=by_name
)
def test_choices_hold_in_python_too(kind, field):
    for choice in field.metadata["choices"]:
        assert getattr(make(kind, **{field.name: choice}), field.name) == choice
    for value in ("other", "", 3):
        with pytest.raises(ConfigError, match=f"`{field.name}` must be "):
            make(kind, **{field.name: value})


def test_a_boolean_is_no_text_or_number_and_null_only_where_it_means_something():
    for value in ("true", 1, None):
        with pytest.raises(ConfigError, match="`rewrite_correct` must be true or false"):
            make(CONFIGS["ScoreConfig"], rewrite_correct=value)
    with pytest.raises(ConfigError, match="`output_dir` must be a text, got None"):
        make(CONFIGS["SampleConfig"], output_dir=None)
    assert make(CONFIGS["EditConfig"], max_rows=None).max_rows is None


def test_a_long_value_is_shortened():
    with pytest.raises(ConfigError, match=r"\.\.\.") as caught:
        check_setting(CONFIGS["RLMECConfig"], "positive_reward_range", ["x"] * 100_000)
    assert len(str(caught.value)) < 300


def test_configs_can_still_be_pickled_and_written_as_json():
    config = make(CONFIGS["RLMECConfig"], epsilon=0.25)
    assert pickle.loads(pickle.dumps(config)).to_dict() == config.to_dict()
    assert '"epsilon": 0.25' in config.to_json_string()
