"""A result's key holds what changes the result, and nothing else."""

import dataclasses
import os
import subprocess
import sys

import pytest
from trl import ModelConfig

from rlmec_trl.generation.server import ServerConfig
from rlmec_trl.stages.edit import EditConfig
from rlmec_trl.stages.evaluate import EvaluateConfig
from rlmec_trl.stages.evaluate_pairs import EvaluatePairsConfig
from rlmec_trl.stages.keys import MODEL_FIELDS, config_key, model_key, task_key
from rlmec_trl.stages.merge import MergeConfig
from rlmec_trl.stages.pairs import PairsConfig
from rlmec_trl.stages.publishing import PublishConfig
from rlmec_trl.stages.rationales import RationalesConfig
from rlmec_trl.stages.sample import SampleConfig
from rlmec_trl.stages.score import ScoreConfig
from rlmec_trl.tasks.problems import ProblemConfig
from rlmec_trl.tasks.task import load_task
from rlmec_trl.teachers.api.config import TeacherConfig


CONFIGS = [SampleConfig, EditConfig, ScoreConfig, EvaluateConfig, ServerConfig, ProblemConfig, TeacherConfig]
CONFIGS += [RationalesConfig, PairsConfig, MergeConfig, EvaluatePairsConfig, PublishConfig]
FIELDS = [(config, field) for config in CONFIGS for field in dataclasses.fields(config)]
REQUIRED = {"output_dir": "out", "task": "math", "dataset_name": "data", "teacher": "model", "dataset_names": ["data"]}

# What may be lowered or raised without changing a result, whatever a later reader of the code thinks
ONLY_SPEED = {"batch_size", "score_batch_size", "shard_size", "concurrency", "timeout", "max_retries", "output_dir"}


def make(config, **kwargs):
    names = {field.name for field in dataclasses.fields(config)}
    return config(**{name: value for name, value in REQUIRED.items() if name in names} | kwargs)


def other_value(field, value):
    if "price" in field.name or field.name == "max_cost":
        return 1.0
    if isinstance(value, bool) or field.name == "hub_private_repo":
        return not value
    if "choices" in field.metadata:
        return next(choice for choice in field.metadata["choices"] if choice != value)
    if isinstance(value, float):
        return value / 2
    if isinstance(value, int) or field.name in ("max_rows", "max_problems"):
        return (value or 0) + 1
    if isinstance(value, list):
        return [*value, "other"]
    return {"more": 1} if field.name == "extra_body" else f"{value}-other" if value else "other"


@pytest.mark.parametrize(("config", "field"), FIELDS, ids=lambda part: getattr(part, "__name__", None) or part.name)
def test_every_field_says_what_it_is_to_the_key_and_is_that(config, field):
    assert field.metadata["help"]
    kind = config.key_parts[field.name]
    assert kind in ("value", "content", "none")
    if field.name in ONLY_SPEED:
        assert kind == "none"
    before = make(config)
    changed = {field.name: other_value(field, getattr(before, field.name))}
    if field.name in ("input_price", "output_price", "max_cost"):  # prices come together, and a limit needs them
        changed |= {"input_price": 1.0, "output_price": 2.0}
    after = dataclasses.replace(before, **changed)
    assert (config_key(before) != config_key(after)) == (kind == "value")


@pytest.mark.parametrize("config", CONFIGS)
def test_no_field_is_forgotten(config):
    assert {field.name for field in dataclasses.fields(config)} == set(config.key_parts)


def test_every_field_of_trls_model_config_is_known():
    """A new one in TRL must be decided on: it may change what a model answers."""
    assert {field.name for field in dataclasses.fields(ModelConfig)} == set(MODEL_FIELDS)


@pytest.fixture
def model(make_policy, tokenizer, tmp_path):
    make_policy().save_pretrained(tmp_path / "policy")
    return ModelConfig(str(tmp_path / "policy"))


@pytest.mark.parametrize(
    "changes",
    [{"dtype": "bfloat16"}, {"load_in_8bit": True}, {"load_in_4bit": True}, {"bnb_4bit_quant_type": "fp4"}],
    ids=str,
)
def test_how_a_model_is_loaded_is_in_its_key(model, tokenizer, changes):
    assert model_key(dataclasses.replace(model, **changes), tokenizer) != model_key(model, tokenizer)


@pytest.mark.parametrize("changes", [{"attn_implementation": "eager"}, {"lora_r": 5}, {"use_peft": True}], ids=str)
def test_what_changes_no_answer_is_not_in_a_models_key(model, tokenizer, changes):
    assert model_key(dataclasses.replace(model, **changes), tokenizer) == model_key(model, tokenizer)


def test_the_revision_and_the_chat_template_are_in_a_models_key(model, tokenizer, chat_tokenizer):
    assert model_key(model, tokenizer) != model_key(model, chat_tokenizer)
    keys = [model_key(ModelConfig("a/model", model_revision=name), tokenizer) for name in ("main", "v2")]
    assert keys[0] != keys[1]


def test_another_wording_is_another_task():
    task = load_task("math")
    reworded = dataclasses.replace(task, wording=dataclasses.replace(task.wording, policy="{problem}?"))
    assert task_key(task) == task_key(load_task("math")) != task_key(reworded)


def test_a_changed_check_in_a_task_of_ones_own_is_another_task(tmp_path):
    keys = []
    for number, check in enumerate(["completion == answer", "answer in completion"]):
        file = tmp_path / str(number) / "task.py"
        file.parent.mkdir()
        file.write_text(
            "from rlmec_trl.tasks.task import Task\n\n\n"
            f"def check(completion, answer, problem):\n    return {check}\n\n\nTASK = Task('mine', check)\n"
        )
        keys.append(task_key(load_task(f"{file}:TASK")))
    assert keys[0] != keys[1]


NOTEBOOK = """
from functools import partial
from rlmec_trl.stages.keys import function_key

class Editor:
    def __init__(self, size):
        self.size = size
    def __call__(self, problems, references, completions):
        return [(0, "x" * self.size)]

def check(completion, answer, problem):
    return {}

print(function_key(check), function_key(Editor({})))
print(function_key(partial(check, Editor(1))), function_key("a".startswith))
"""


def test_functions_of_a_notebook_and_objects_are_known_by_their_content():
    """They have no file of their own; a memory address in a key would keep a run from ever resuming."""
    variants = [NOTEBOOK.format(*values) for values in (("True", 1), ("False", 1), ("True", 2))]
    code = f"for cell in {variants}: exec(compile(cell, '<cell>', 'exec'))"
    printed = []
    for seed in ("1", "2"):
        command, environment = [sys.executable, "-c", code], os.environ | {"PYTHONHASHSEED": seed}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr
        printed.append(result.stdout)
    assert printed[0] == printed[1], "the same in another process"
    lines = printed[0].splitlines()
    keys = [tuple(lines[start : start + 2]) for start in range(0, 6, 2)]
    assert len(set(keys)) == 3, "another content is another key"


def test_how_the_reward_model_is_loaded_is_in_the_key_of_the_scores(model, tokenizer):
    def key(**changes):
        return model_key(ScoreConfig(grm=model.model_name_or_path, **changes).grm_model_args(model), tokenizer)

    for changes in ({"grm_dtype": "bfloat16"}, {"grm_load_in_8bit": True}, {"grm_load_in_4bit": True}):
        assert key(**changes) != key()
