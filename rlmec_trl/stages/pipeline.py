"""
A pipeline, and the steps that it stands for.

Everything is known before the first step runs: the name of each step, what it reads, its settings and its key. So a
mistake in the last stage is found before the first one starts.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.errors import UserError
from ..data.shipped import find_file


# What a YAML file writes for the folder of a run, and for its seed
RUN, SEED = "{run}", "{seed}"

_NAME = re.compile(r"\w[\w.-]*")
_PATH = re.compile(rf"(?:^|[=,]){re.escape(RUN)}/([^,]*)")
# Bytes, so that the files next to an output can have longer names than it
_LONGEST_NAME = 200
# Stages whose names end like this write a file
_FILES = (".json", ".html")
_NOT_IN_NAME = re.compile(r"[^\w.+-]")


class PipelineError(UserError, ValueError):
    """A pipeline that cannot run: a mistake in its file, or files in its folder that it must not touch."""


@dataclass(frozen=True)
class Stage:
    """
    One stage of a pipeline. It writes to the entry of the run's folder that has its name.

    Args:
        name (`str`):
            Name of the stage and of its output: a folder, or a file where it ends in `.json` or `.html`.
        recipe (`str`):
            Recipe that runs it, without `.py`.
        args (`dict`, *optional*):
            Settings of the recipe, on top of the pipeline's `defaults` for it.
        choose (`dict[str, list]`, *optional*):
            One argument and its candidate values, two or more. Each is run; the one with the best accuracy on
            validation is kept.
        evaluate (`str`, *optional*):
            Row of the model in the table of accuracies. By default the stage is not evaluated.
    """

    name: str
    recipe: str
    args: dict[str, Any] = field(default_factory=dict)
    choose: dict[str, list] | None = None
    evaluate: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """
    Datasets to evaluate models on. Settings of the evaluation are the pipeline's `defaults` for `evaluate`.

    Args:
        test (`str`):
            Dataset of the table.
        validation (`str`, *optional*):
            Dataset that `choose` decides on.
    """

    test: str
    validation: str | None = None


@dataclass(frozen=True)
class Pipeline:
    """
    What a pipeline's YAML file holds. Where it names paths, `{run}` stands for the run's folder; in the settings of
    recipes, `{seed}` stands for the run's seed.

    Args:
        title (`str`):
            Title of the table.
        output_dir (`str`):
            Folder of the runs, one for each seed.
        seeds (`list[int]`):
            Seeds to run.
        stages (`list[Stage]`):
            Stages, in the order in which they run.
        defaults (`dict[str, dict]`, *optional*):
            For each recipe, settings that its stages share.
        evaluation ([`Evaluation`], *optional*):
            Datasets to evaluate on.
        scored, tokenizer (`str`, *optional*):
            Scored samples of which the report shows two, and the tokenizer to show them with.
        audit (`str` or `dict[str, str]`, *optional*):
            Output of `audit.py` for the report, or several by the names of their tables.
        reward_models (`dict[str, str]`, *optional*):
            For each row of the report's table of reward models, an output of `evaluate_pairs.py`.
        compare (`list[list[str]]`, *optional*):
            Pairs of rows of the table of accuracies that the report compares, problem by problem.
        report (`str`, *optional*, defaults to `"report.json"`):
            File in `output_dir` that all figures are written to.
    """

    title: str
    output_dir: str
    seeds: list[int]
    stages: list[Stage]
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    scored: str | None = None
    tokenizer: str | None = None
    audit: str | dict[str, str] | None = None
    reward_models: dict[str, str] = field(default_factory=dict)
    compare: list[list[str]] = field(default_factory=list)
    report: str = "report.json"


@dataclass(frozen=True)
class Job:
    """
    One call of a recipe.

    Args:
        name (`str`):
            Path of the output inside the run's folder.
        recipe (`str`):
            Recipe to call.
        settings (`dict`):
            Its settings, with `{run}` for the run's folder.
        key (`str`):
            Hash of the recipe, its settings and the keys of the steps that it reads from. The path of the run's folder
            is not part of it.
        reads (`tuple[str, ...]`, *optional*):
            Names of the steps that it reads from.
    """

    name: str
    recipe: str
    settings: dict[str, Any]
    key: str
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """
    A link to the best of several jobs.

    Args:
        name (`str`):
            Path of the link inside the run's folder.
        argument (`str`):
            Argument that the jobs differ in.
        candidates (`dict[Any, tuple[str, str]]`):
            For each of its values, the names of the job and of its result on validation.
        key (`str`):
            Hash of the keys of these results.
    """

    name: str
    argument: str
    candidates: dict[Any, tuple[str, str]]
    key: str


def plan_run(
    pipeline: Pipeline, seed: int, not_in_key: Mapping[str, Collection[str]] | None = None
) -> list[Job | Choice]:
    """
    The steps of one seed, in the order in which they run.

    Args:
        pipeline ([`Pipeline`]):
            The pipeline.
        seed (`int`):
            The seed.
        not_in_key (`Mapping[str, Collection[str]]`, *optional*):
            For each recipe, settings that do not change its result, such as batch sizes.

    Raises:
        [`PipelineError`]: If two steps have the same output, or one reads what no step before it writes.
    """
    steps: dict[str, Job | Choice] = {}

    def add_job(name: str, recipe: str, args: dict[str, Any]) -> Job:
        output = "output_file" if name.endswith(_FILES) else "output_dir"
        for taken in {"output_file", "output_dir"} & args.keys():
            raise PipelineError(f"Stage {name!r}: `{taken}` is set by the pipeline, to `{RUN}/{name}`.")
        settings = {**pipeline.defaults.get(recipe, {}), **args, output: f"{RUN}/{name}"}
        for setting in settings:
            if not isinstance(setting, str):
                raise PipelineError(f"Stage {name!r}: a setting has a name, found {setting!r}.")
        settings = {key: _fill_seed(value, seed) for key, value in settings.items()}
        read = {}
        for path in paths_in({**settings, output: None}):
            source = source_of(path, steps)
            if source is None:
                raise PipelineError(f"Stage {name!r} reads `{RUN}/{path}`, which no stage before it writes.")
            read[source] = steps[source].key
        left_out = (not_in_key or {}).get(recipe, ())
        in_key = {name: _with_content(value) for name, value in settings.items() if name not in left_out}
        return add(Job(name, recipe, settings, _hash([recipe, in_key, read]), tuple(read)))

    def add_evaluation(name: str, split: str) -> Job:
        dataset = None if pipeline.evaluation is None else getattr(pipeline.evaluation, split)
        if dataset is None:
            raise PipelineError(f"Stage {name!r} is to be evaluated: name the dataset as `evaluation: {split}`.")
        args = {"model_name_or_path": f"{RUN}/{name}", "dataset_name": dataset}
        return add_job(result_name(name, split), "evaluate", args)

    def add(step: Job | Choice) -> Job | Choice:
        if len(os.fsencode(step.name)) > _LONGEST_NAME:
            raise PipelineError(f"Stage {step.name!r}: the name is too long for a folder. Give it a shorter one.")
        if step.name in steps:
            raise PipelineError(f"Two stages write to `{RUN}/{step.name}`: give each stage its own name.")
        steps[step.name] = step
        return step

    for stage in pipeline.stages:
        if not (isinstance(stage.name, str) and _NAME.fullmatch(stage.name)) or stage.name == "results":
            raise PipelineError(
                f"Stage {stage.name!r}: a name consists of letters, digits, '_', '-' and '.', begins with none of the "
                "last two, and is not 'results', the folder of all evaluations."
            )
        if stage.name.endswith(_FILES) and (stage.evaluate is not None or stage.choose is not None):
            raise PipelineError(f"Stage {stage.name!r} writes a file, which is no model to evaluate.")
        if not isinstance(stage.args, dict):
            raise PipelineError(f"Stage {stage.name!r}: `args` has to be a mapping, found {stage.args!r}.")
        if stage.choose is None:
            add_job(stage.name, stage.recipe, stage.args)
        else:
            argument, values = _read_choice(stage)
            candidates, results = {}, {}
            for value in values:
                name = f"{stage.name}-{argument}-{_NOT_IN_NAME.sub('_', str(value))}"
                add_job(name, stage.recipe, {**stage.args, argument: value})
                result = add_evaluation(name, "validation")
                candidates[value], results[str(value)] = (name, result.name), result.key
            add(Choice(stage.name, argument, candidates, _hash([argument, results])))
        if stage.evaluate is not None:
            add_evaluation(stage.name, "test")
    return list(steps.values())


def result_name(stage: str, split: str) -> str:
    """Where a run's folder has the accuracy of a stage's model on a split, `"test"` or `"validation"`."""
    return f"results/{stage}-{split}.json"


def fill_run(value: Any, run: str | os.PathLike) -> Any:
    """Put the run's folder in the place of `{run}`."""
    return _replace(value, lambda text: text.replace(RUN, str(run)))


def _fill_seed(value: Any, seed: int) -> Any:
    return _replace(value, lambda text: seed if text == SEED else text.replace(SEED, str(seed)))


def _replace(value: Any, function: Callable[[str], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _replace(item, function) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace(item, function) for item in value]
    return function(value) if isinstance(value, str) else value


def paths_in(value: Any) -> list[str]:
    """Paths inside the run's folder that a setting names: alone, or several as `name={run}/a,{run}/b`."""
    if isinstance(value, (dict, list)):
        return [path for item in (value.values() if isinstance(value, dict) else value) for path in paths_in(item)]
    return _PATH.findall(value) if isinstance(value, str) else []


def source_of(path: str, steps: Iterable[str]) -> str | None:
    """The step whose output has a path of the run's folder."""
    return next((name for name in steps if path == name or path.startswith(f"{name}/")), None)


def _read_choice(stage: Stage) -> tuple[str, list]:
    if not (isinstance(stage.choose, dict) and len(stage.choose) == 1):
        raise PipelineError(f"Stage {stage.name!r}: `choose` has one argument and its values, found {stage.choose!r}.")
    ((argument, values),) = stage.choose.items()
    if not isinstance(argument, str):
        raise PipelineError(f"Stage {stage.name!r}: `choose` has the name of an argument, found {argument!r}.")
    if not (isinstance(values, list) and values and all(isinstance(value, (str, int, float)) for value in values)):
        raise PipelineError(
            f"Stage {stage.name!r}: `choose` needs a list of numbers or strings for `{argument}`, found {values!r}."
        )
    if len(values) == 1:
        raise PipelineError(f"Stage {stage.name!r}: `choose` has only one value for `{argument}`. Move it to `args`.")
    if len(set(values)) < len(values):
        raise PipelineError(f"Stage {stage.name!r}: `choose` has a value of `{argument}` twice: {values!r}.")
    return argument, values


def _with_content(value: Any) -> Any:
    """A setting and, where it names an object in a Python file (`path/to/file.py:NAME`), the content of that file."""
    file = find_file(value.rpartition(":")[0]) if isinstance(value, str) else ""
    if not file.endswith(".py") or not Path(file).expanduser().is_file():
        return value
    return [value, hashlib.sha256(Path(file).expanduser().read_bytes()).hexdigest()]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
