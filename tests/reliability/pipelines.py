"""Pipeline files."""

from functools import partial

from rlmec_trl.stages.pipeline_file import load_pipeline
from tests.reliability.case import Case


SECTION = "Pipeline files"
GOOD = "title: Small\noutput_dir: runs\nseeds: [0]\nstages:\n- {name: task, recipe: task}\n"


def load(content, place):
    import importlib

    recipe = importlib.import_module("recipes.pipeline")
    pipeline = load_pipeline(place.file("pipeline.yaml", content))
    recipe.check_settings([recipe.Run(pipeline, seed) for seed in pipeline.seeds])
    return f"{len(pipeline.stages)} stage"


def refuse(name, content, error):
    return Case(name, partial(load, content), error)


CASES = [
    Case("a pipeline of one stage", partial(load, GOOD)),
    Case(
        "a file that is not there", lambda place: load_pipeline(place.path("none.yaml")), "There is no pipeline file"
    ),
    refuse("a file of 0 bytes", "", "mapping"),
    refuse("a list", "- 1\n", "mapping"),
    refuse("a file that is no YAML", "title: [\n", "not a YAML file .line 2, column 1"),
    refuse("an unknown key", GOOD + "titel: Small\n", "unknown key 'titel'"),
    refuse("no stages", GOOD.partition("stages")[0] + "stages: []\n", "`stages` is empty"),
    refuse("stages that are a mapping", GOOD.partition("stages")[0] + "stages: {name: task}\n", "has to be a list"),
    refuse("empty seeds", GOOD.replace("[0]", "[]"), "`seeds`"),
    refuse("seeds that are null", GOOD.replace("[0]", "null"), "`seeds`"),
    refuse("a seed that is a text", GOOD.replace("[0]", "[one]"), "`seeds`"),
    refuse("a seed that is 0.5", GOOD.replace("[0]", "[0.5]"), "`seeds`"),
    refuse("a seed twice", GOOD.replace("[0]", "[0, 0]"), "twice"),
    refuse("a title that is a number", GOOD.replace("Small", "5"), "`title` has to be a text"),
    refuse("a title that is null", GOOD.replace("Small", "null"), "`title`"),
    refuse(
        "a report above the folder", GOOD + "report: ../report.json\n", "`report` has to be a file in `output_dir`"
    ),
    refuse("a report that is a folder", GOOD + "report: ../../..\n", "`report` has to be a file in `output_dir`"),
    refuse("a report anywhere else", GOOD + "report: /tmp/report.json\n", "`report` has to be a file in `output_dir`"),
    refuse("an `output_dir` that is `.`", GOOD.replace("runs", "."), "is the working directory"),
    refuse("an `output_dir` that is `..`", GOOD.replace("runs", ".."), "is the working directory"),
    refuse("an `output_dir` that is empty", GOOD.replace("runs", "''"), "is the working directory"),
    refuse("an unknown recipe", GOOD.replace("recipe: task", "recipe: tusk"), "tusk"),
    refuse("a stage without a recipe", GOOD.replace(", recipe: task", ""), "recipe"),
    refuse("a stage that is a text", GOOD.replace("{name: task, recipe: task}", "task"), "mapping"),
    refuse("an unknown setting of a stage", GOOD.replace("recipe: task", "recipe: task, args: {sizes: 5}"), "sizes"),
    refuse("settings of a stage that are a list", GOOD.replace("recipe: task", "recipe: task, args: [5]"), "args"),
    refuse(
        "a setting that is a text instead of a number",
        GOOD.replace("recipe: task", "recipe: task, args: {train_size: many}"),
        "train_size",
    ),
    refuse(
        "a setting that is 2.5 instead of an integer",
        GOOD.replace("recipe: task", "recipe: task, args: {train_size: 2.5}"),
        "train_size",
    ),
    refuse(
        "a setting that is null", GOOD.replace("recipe: task", "recipe: task, args: {train_size: null}"), "train_size"
    ),
    refuse(
        "a setting out of its range",
        GOOD.replace("recipe: task", "recipe: task, args: {train_size: -1}"),
        "train_size",
    ),
    refuse(
        "a dataset that no stage writes",
        GOOD + "- {name: s, recipe: sft, args: {dataset_name: '{run}/none', model_name_or_path: x}}\n",
        "none",
    ),
    refuse("two stages of one name", GOOD + "- {name: task, recipe: task}\n", "task"),
    refuse("defaults of a recipe that is not there", GOOD + "defaults: {smaple: {}}\n", "smaple"),
    refuse("defaults that are a list", GOOD + "defaults: [1]\n", "defaults"),
    refuse("`extends` a file that is not there", "extends: none.yaml\n", "none.yaml"),
    refuse("`extends` itself", "extends: pipeline.yaml\n", "leads back"),
    refuse("`extends` that is a number", "extends: 5\n", "extends"),
]
