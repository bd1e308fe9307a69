"""A pipeline's file is read strictly, and its steps are known, with their keys, before any of them runs."""

import copy

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlmec_trl.stages.pipeline import Choice, Job, PipelineError, fill_run, plan_run
from rlmec_trl.stages.pipeline_file import load_pipeline


SETTINGS = {
    "title": "Small",
    "output_dir": "runs",
    "seeds": [0, 1],
    "defaults": {"sft": {"seed": "{seed}", "max_steps": 10}, "evaluate": {"batch_size": 4}},
    "stages": [
        {"name": "task", "recipe": "task", "args": {"seed": "{seed}"}},
        {"name": "warmup", "recipe": "sft", "args": {"dataset_name": "{run}/task/warmup"}, "evaluate": "start"},
        {
            "name": "policy",
            "recipe": "sft",
            "args": {"model_name_or_path": "{run}/warmup", "max_steps": 5},
            "choose": {"learning_rate": [1e-3, 1e-4]},
            "evaluate": "policy",
        },
    ],
    "evaluation": {"test": "{run}/task/test", "validation": "{run}/task/validation"},
}


@pytest.fixture
def write(tmp_path):
    def write(name="pipeline.yaml", settings=SETTINGS, **changes):
        path = tmp_path / name
        path.write_text(yaml.safe_dump({**settings, **changes}), encoding="utf-8")
        return path

    return write


def changed(change):
    """The settings after a change in place."""
    settings = copy.deepcopy(SETTINGS)
    change(settings)
    return settings


# --- The file --------------------------------------------------------------------------------------------------------


def test_defaults_of_the_recipe_and_args_of_the_stage_make_the_settings(write):
    steps = {step.name: step for step in plan_run(load_pipeline(write()), 1)}
    assert list(steps) == [
        *("task", "warmup", "results/warmup-test.json"),
        *("policy-learning_rate-0.001", "results/policy-learning_rate-0.001-validation.json"),
        *("policy-learning_rate-0.0001", "results/policy-learning_rate-0.0001-validation.json"),
        *("policy", "results/policy-test.json"),
    ]
    assert steps["warmup"].settings == {
        "seed": 1,
        "max_steps": 10,
        "dataset_name": "{run}/task/warmup",
        "output_dir": "{run}/warmup",
    }
    assert steps["policy-learning_rate-0.001"].settings["max_steps"] == 5
    assert fill_run(steps["results/warmup-test.json"].settings, "runs/seed-1") == {
        "batch_size": 4,
        "model_name_or_path": "runs/seed-1/warmup",
        "dataset_name": "runs/seed-1/task/test",
        "output_file": "runs/seed-1/results/warmup-test.json",
    }
    assert isinstance(steps["policy"], Choice)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.update(titel="x"),
            r"pipeline\.yaml: unknown key 'titel'\. Known keys: extends, title, output",
        ),
        (
            lambda s: s["stages"][1].update(arguments={}),
            r"yaml, stage 2 \(warmup\): unknown key 'arguments'",
        ),
        (lambda s: s["stages"][1].pop("recipe"), r"pipeline\.yaml, stage 2 \(warmup\): missing key 'recipe'"),
        (lambda s: s["evaluation"].update(train="x"), r"pipeline\.yaml, evaluation: unknown key 'train'"),
        (lambda s: s["stages"].append("grpo"), r"pipeline\.yaml, stage 4: expected a mapping, found 'grpo'"),
        (lambda s: s.update(defaults={"sft": 3}), r"pipeline\.yaml: `defaults` of 'sft' has to be a mapping, found 3"),
        (lambda s: s.pop("seeds"), r"pipeline\.yaml: missing key 'seeds'"),
        (
            lambda s: s.update(seeds=[]),
            r"yaml: `seeds` has to be a list of at least one integer, found \[\]",
        ),
        (lambda s: s.update(seeds=["0"]), r"at least one integer"),
        (lambda s: s.update(seeds=[0, 1, 0]), r"a seed twice"),
        (lambda s: s.update(stages=[]), r"`stages` is empty"),
        (lambda s: s.update(scored="{run}/scored"), r"`scored` is `\{run\}/scored`, which no stage writes"),
        (lambda s: s.update(reward_models=["{run}/a.json"]), r"`reward_models` has to be a mapping"),
        (lambda s: s.update(reward_models={"rllr": 3}), r"`reward_models` has names and outputs .* found 'rllr': 3"),
        (lambda s: s.update(reward_models={"a": "{run}/a.json"}), r"is `\{run\}/a\.json`, which no stage writes"),
        (lambda s: s.update(compare="policy"), r"`compare` has to be a list of pairs of rows, found 'policy'"),
        (lambda s: s.update(compare=None), r"`compare` has to be a list of pairs of rows, found None"),
        (lambda s: s.update(compare=["policy", "start"]), r"`compare` has pairs of rows, .*, found 'policy'"),
        (lambda s: s.update(compare=[["policy"]]), r"`compare` has pairs of rows, .*, found \['policy'\]"),
        (lambda s: s.update(compare=[["policy", 3]]), r"`compare` has pairs of rows, .*, found \['policy', 3\]"),
        (
            lambda s: s.update(compare=[["policy", "strat"]]),
            r"pipeline\.yaml: `compare` has no row 'strat'\. Did you mean 'start'\? The rows are start, policy\.",
        ),
        (lambda s: s.update(compare=[["warmup", "policy"]]), r"`compare` has no row 'warmup'"),  # the name of a stage
        (lambda s: s.update(compare=[["start", "start"]]), r"`compare` compares 'start' with itself"),
        (
            lambda s: s.update(compare=[["policy", "start"], ["start", "policy"]]),
            r"`compare` has the pair start, policy twice",
        ),
        (lambda s: s.update(audit=["{run}/a.json"]), r"`audit` has to be a text or a mapping, found \['\{run\}/a"),
        (lambda s: s.update(audit={"first": "{run}/a"}), r"`audit` has names and outputs of `audit\.py`, .* 'first'"),
        (lambda s: s.update(audit={"first": "{run}/a.json"}), r"is `\{run\}/a\.json`, which no stage writes"),
        (lambda s: s.update(audit={"first": "a.json"}), r"there is no file 'a\.json' to report"),
        (lambda s: s.update(reward_models={"first": "a.json"}), r"there is no file 'a\.json' to report"),
        (lambda s: s["stages"][2].update(name="warmup", choose=None), r"Two stages write to `\{run\}/warmup`"),
        (lambda s: s["stages"][2].update(evaluate="start"), r"two stages are evaluated under one name"),
        (lambda s: s["stages"][2].update(name="../policy"), r"Stage '\.\./policy': a name consists of"),
        (lambda s: s["stages"][2].update(name="results"), r"Stage 'results': a name"),
        (lambda s: s["stages"][0]["args"].update(output_dir="/tmp"), r"Stage 'task': `output_dir` is set by the pipe"),
        (lambda s: s["stages"][0].update(args=None), r"Stage 'task': `args` has to be a mapping"),
        (lambda s: s["stages"].reverse(), r"reads `\{run\}/warmup`, which no stage before it writes"),
        (lambda s: s["stages"][1]["args"].update(x=[{"y": "{run}/tasks"}]), r"Stage 'warmup' reads `\{run\}/tasks`"),
        (lambda s: s["stages"][2].update(choose={"a": [1], "b": [2]}), r"`choose` has one argument and its values"),
        (lambda s: s["stages"][2].update(choose={"a": []}), r"`choose` needs a list of numbers or strings for `a`"),
        (lambda s: s["evaluation"].pop("validation"), r"name the dataset as `evaluation: validation`"),
        (lambda s: s.pop("evaluation"), r"Stage 'warmup' is to be evaluated: name the dataset as `evaluation: test`"),
    ],
)
def test_a_mistake_in_the_file_is_named(write, change, message):
    with pytest.raises(PipelineError, match=message):
        load_pipeline(write(settings=changed(change)))


def test_a_file_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(PipelineError, match=r"There is no pipeline file '.*missing\.yaml'"):
        load_pipeline(tmp_path / "missing.yaml")


def test_the_command_line_replaces_folder_and_seeds(write):
    pipeline = load_pipeline(write(), output_dir="elsewhere", seeds=[7])
    assert (pipeline.output_dir, pipeline.seeds) == ("elsewhere", [7])


# --- Extending another file ------------------------------------------------------------------------------------------


def test_an_extending_file_says_only_what_differs(write):
    write()
    more = {"name": "second", "recipe": "sft", "args": {"dataset_name": "{run}/task/train"}}
    path = write(
        "more.yaml",
        {"extends": "pipeline.yaml", "seeds": [5], "stages": [more], "defaults": {"sft": {"max_steps": 2}}},
    )
    pipeline = load_pipeline(path)
    assert (pipeline.title, pipeline.seeds) == ("Small", [5])
    assert [stage.name for stage in pipeline.stages] == ["task", "warmup", "policy", "second"]
    assert pipeline.defaults == {"sft": {"seed": "{seed}", "max_steps": 2}, "evaluate": {"batch_size": 4}}


def test_pairs_of_an_extending_file_come_after_those_of_the_other(write):
    write(compare=[["policy", "start"]])
    second = {"name": "second", "recipe": "sft", "args": {"dataset_name": "{run}/task/train"}, "evaluate": "second"}
    settings = {"extends": "pipeline.yaml", "stages": [second]}
    assert load_pipeline(write("more.yaml", settings)).compare == [["policy", "start"]]
    settings["compare"] = [["second", "policy"]]
    assert load_pipeline(write("more.yaml", settings)).compare == [["policy", "start"], ["second", "policy"]]
    settings["compare"] = [["start", "policy"]]
    with pytest.raises(PipelineError, match=r"more\.yaml: `compare` has the pair start, policy twice"):
        load_pipeline(write("more.yaml", settings))


def test_what_an_extending_file_leaves_alone_keeps_its_keys(write):
    # so that both files share the finished stages of a seed
    first = plan_run(load_pipeline(write()), 0)
    more = {"name": "second", "recipe": "sft", "args": {"dataset_name": "{run}/task/train"}}
    second = plan_run(load_pipeline(write("more.yaml", {"extends": "pipeline.yaml", "stages": [more]})), 0)
    assert second[: len(first)] == first and len(second) == len(first) + 1


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"extends": "more.yaml"}, r"pipeline\.yaml|more\.yaml: `extends` leads back"),
        ({"sedes": [1]}, r"pipeline\.yaml: unknown key 'sedes'"),
    ],
)
def test_a_mistake_in_the_extended_file_names_that_file(write, base, message):
    write("pipeline.yaml", base)
    with pytest.raises(PipelineError, match=message):
        load_pipeline(write("more.yaml", {"extends": "pipeline.yaml"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(report=5), "`report` has to be a text, found 5"),
        (lambda s: s.update(output_dir=["a"]), "`output_dir` has to be a text"),
        (lambda s: s.update(extends=5), "`extends` has to be a text"),
        (lambda s: s.update(defaults=[]), "`defaults` has to be a mapping"),
        (lambda s: s["stages"][1].update(recipe=["task"]), "`recipe` has to be a text"),
        (lambda s: s["stages"][1].update(evaluate=["a"]), "`evaluate` has to be a text"),
        (lambda s: s["stages"][1].update(args="x"), "`args` has to be a mapping"),
        (lambda s: s["evaluation"].update(test=3), "`test` has to be a text"),
    ],
)
def test_a_value_of_another_kind_is_named(write, change, message):
    with pytest.raises(PipelineError, match=message):
        load_pipeline(write(settings=changed(change)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(title=None), "`title` has to be a text, found None"),
        (lambda s: s.update(output_dir=None), "`output_dir` has to be a text, found None"),
        (lambda s: s.update(report=None), "`report` has to be a text, found None"),
        (lambda s: s.update(report=""), "`report` has to be a file in `output_dir`, found ''"),
        (lambda s: s.update(report="a/.."), "`report` has to be a file in `output_dir`"),
        (lambda s: s.update(defaults=None), "`defaults` has to be a mapping, found None"),
        (lambda s: s["defaults"].update(sft=None), "`defaults` of 'sft' has to be a mapping, found None"),
        (lambda s: s["defaults"]["sft"].update({3: 4}), "all keys have to be texts"),
        (lambda s: s["defaults"].update(sft={3: 4}), "Stage 'warmup': a setting has a name, found 3"),
        (lambda s: s.update(seeds=None), "`seeds` has to be a list of at least one integer, found None"),
        (lambda s: s.update(seeds=0), "at least one integer, found 0"),
        (lambda s: s.update(seeds=[True]), "at least one integer"),
        (lambda s: s.update(seeds=[0.0]), "at least one integer"),
        (lambda s: s.update(seeds=[-1]), r"pipeline\.yaml: every number of `seeds` must be at least 0"),
        (lambda s: s.update(seeds=[2**32]), "every number of `seeds` must be at least 0 and at most 4,294,967,295"),
        (lambda s: s.update(stages=None), "`stages` has to be a list"),
        (lambda s: s.update(stages={"task": {}}), "`stages` has to be a list"),
        (lambda s: s["stages"].append(None), "stage 4: expected a mapping, found None"),
        (lambda s: s["stages"].append([{"name": "a"}]), "stage 4: expected a mapping"),
        (lambda s: s["stages"][1].update(name=None), "`name` has to be a text, found None"),
        (lambda s: s["stages"][1].update(recipe=None), "`recipe` has to be a text, found None"),
        (lambda s: s["stages"][1].update(args={3: 4}), "Stage 'warmup': a setting has a name, found 3"),
        (lambda s: s["stages"][1].update(name="w" * 201), "the name is too long for a folder"),
        (lambda s: s["stages"][1].update(name="w.json"), r"Stage 'w\.json' writes a file, which is no model"),
        (lambda s: s["stages"][2].update(choose=[]), "`choose` has one argument and its values, found \\[\\]"),
        (lambda s: s["stages"][2].update(choose={}), "`choose` has one argument and its values"),
        (lambda s: s["stages"][2].update(choose={3: [1, 2]}), "`choose` has the name of an argument, found 3"),
        (lambda s: s["stages"][2].update(choose={"a": None}), "`choose` needs a list of numbers or strings for `a`"),
        (lambda s: s["stages"][2].update(choose={"a": [[1], [2]]}), "`choose` needs a list of numbers or strings"),
        (lambda s: s["stages"][2].update(choose={"a": [1]}), "Stage 'policy': `choose` has only one value for `a`"),
        (lambda s: s["stages"][2].update(choose={"a": [1, 2, 1.0]}), "`choose` has a value of `a` twice"),
        (lambda s: s["evaluation"].update(test=None), "evaluation: `test` has to be a text, found None"),
        (lambda s: s.update(evaluation=[]), r"evaluation: expected a mapping, found \[\]"),
        (lambda s: s.update(scored="{run}/task/train"), "`scored` needs a `tokenizer`"),
    ],
)
def test_an_empty_or_doubled_or_wrongly_nested_value_is_named(write, change, message):
    with pytest.raises(PipelineError, match=message) as caught:
        load_pipeline(write(settings=changed(change)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "title: a\ntitle: b", "title: 2024-01-01", "title: &a [*a]", "[" * 900])
def test_a_file_that_holds_no_settings_is_named(tmp_path, content):
    (tmp_path / "broken.yaml").write_text(content)
    with pytest.raises(PipelineError, match=r"broken\.yaml: "):
        load_pipeline(tmp_path / "broken.yaml")


# Values of every kind that YAML has
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=5,
)
PLACES = [
    *((key,) for key in [*SETTINGS, "extends", "scored", "tokenizer", "audit", "reward_models", "compare", "report"]),
    *(("stages", 2, key) for key in ("name", "recipe", "args", "choose", "evaluate")),
    *(("evaluation", key) for key in ("test", "validation")),
    *(("reward_models", "rllr"), ("audit", "first")),
    *(("stages", 1), ("defaults", "sft"), ("defaults", "sft", "max_steps"), ("seeds", 0)),
    ("stages", 2, "choose", "learning_rate"),
]


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLACES), VALUES)
def test_any_value_anywhere_is_a_pipeline_or_answered_in_one_sentence(write, place, value):
    changed_settings = copy.deepcopy(SETTINGS)
    inner = changed_settings
    for key in place[:-1]:
        inner = inner.setdefault(key, {}) if isinstance(inner, dict) else inner[key]
    inner[place[-1]] = value
    try:
        pipeline = load_pipeline(write(settings=changed_settings))
        for seed in pipeline.seeds:
            plan_run(pipeline, seed)
    except PipelineError as error:
        assert str(error) and "\n" not in str(error)


@pytest.mark.parametrize("content", [b"stages: [", b"a:\n\t- b", b"\xff\xfe"])
def test_a_file_that_is_no_yaml_is_named(tmp_path, content):
    (tmp_path / "broken.yaml").write_bytes(content)
    with pytest.raises(PipelineError, match=r"broken\.yaml: not a YAML file"):
        load_pipeline(tmp_path / "broken.yaml")


def test_an_extended_file_that_does_not_exist_is_named_with_the_one_that_extends_it(write):
    with pytest.raises(PipelineError, match=r"no pipeline file '.*base\.yaml', which .*more\.yaml extends"):
        load_pipeline(write("more.yaml", {"extends": "base.yaml"}))


# --- Keys ------------------------------------------------------------------------------------------------------------


def keys(settings, seed=0):
    def plan(write):
        return {step.name: step.key for step in plan_run(load_pipeline(write(settings=settings)), seed)}

    return plan


@pytest.mark.parametrize(
    ("change", "others"),
    [
        (lambda s: s.update(title="Other", output_dir="elsewhere", seeds=[0, 5], report="x.json"), "nothing"),
        (lambda s: s.update(compare=[["policy", "start"]]), "nothing"),
        (lambda s: s["stages"][0]["args"].update(train_size=9), "everything"),
        (lambda s: s["stages"][1]["args"].update(max_steps=9), "everything but the task"),
        (lambda s: s["defaults"]["evaluate"].update(batch_size=9), "results"),
    ],
)
def test_a_key_changes_with_the_settings_of_its_stage_and_of_those_it_reads_from(write, change, others):
    before, after = keys(SETTINGS)(write), keys(changed(change))(write)
    expected = {
        "nothing": set(),
        "everything": set(before),
        "everything but the task": set(before) - {"task"},
        # the choice is made on results, and its test reads the link
        "results": {name for name in before if name.startswith("results/")} | {"policy"},
    }[others]
    assert {name for name in before if before[name] != after[name]} == expected


def test_paths_within_a_setting_are_read_from_as_those_alone(write):
    report = {"name": "report.html", "recipe": "report"}
    report["args"] = {"dataset_name": "{run}/task/train", "runs": ["start={run}/task,{run}/warmup"]}
    settings = changed(lambda s: s["stages"].append(report))
    before = keys(settings)(write)["report.html"]
    settings["stages"][1]["args"]["max_steps"] = 9
    assert keys(settings)(write)["report.html"] != before, "a report of the training before would stay"
    report["args"]["runs"] = ["start={run}/task,{run}/warmpu"]
    with pytest.raises(PipelineError, match=r"'report\.html' reads `\{run\}/warmpu`, which no stage before it writes"):
        keys(settings)(write)


def test_a_setting_without_effect_on_the_result_is_in_no_key(write):
    def plan(settings):
        steps = plan_run(load_pipeline(write(settings=settings)), 0, {"evaluate": {"batch_size"}})
        return {step.name: (step.key, step.settings.get("batch_size")) for step in steps if isinstance(step, Job)}

    before, after = plan(SETTINGS), plan(changed(lambda s: s["defaults"]["evaluate"].update(batch_size=9)))
    assert {name: key for name, (key, _) in before.items()} == {name: key for name, (key, _) in after.items()}
    assert {size for name, (_, size) in after.items() if name.startswith("results/")} == {9}, "it is used all the same"


def test_an_edited_task_file_changes_the_keys_of_its_stages(write, tmp_path):
    file = tmp_path / "mine.py"
    settings = changed(lambda s: s["stages"][1]["args"].update(task=f"{file}:TASK"))
    file.write_text("TASK = 1")
    before = keys(settings)(write)
    file.write_text("TASK = 2")
    after = keys(settings)(write)
    assert before["task"] == after["task"] and before["warmup"] != after["warmup"]


def test_seeds_have_keys_of_their_own(write):
    first, second = keys(SETTINGS)(write), keys(SETTINGS, seed=1)(write)
    assert not set(first.values()) & set(second.values())
