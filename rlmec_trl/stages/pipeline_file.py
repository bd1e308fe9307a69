"""A pipeline's YAML file, read strictly: a key that pipelines do not have is an error that names the file."""

import os
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..data.checks import check_setting
from ..data.errors import ConfigError, did_you_mean
from .pipeline import RUN, Evaluation, Pipeline, PipelineError, Stage, paths_in, plan_run, source_of
from .settings import read_yaml


# Keys, of whatever part of a file, whose values are texts or mappings
_TEXTS = (
    *("title", "output_dir", "report", "scored", "tokenizer", "extends"),
    *("name", "recipe", "evaluate", "test", "validation"),
)
_MAPPINGS = ("defaults", "reward_models")


def load_pipeline(path: str | os.PathLike, output_dir: str | None = None, seeds: list[int] | None = None) -> Pipeline:
    """
    Read a pipeline's YAML file.

    With `extends`, the file says only what differs from another one (a path relative to its own folder): its `stages`
    and the pairs of its `compare` come after those of the other, its `defaults` are merged into the other's recipe by
    recipe, and every other key replaces the other's.

    Args:
        path (`str` or `os.PathLike`):
            The file.
        output_dir (`str`, *optional*):
            Replaces the file's.
        seeds (`list[int]`, *optional*):
            Replaces the file's.

    Raises:
        [`PipelineError`]: If the file has a key that pipelines do not have, lacks one that they need, or has a value
            that makes no sense.
    """
    settings = _read(Path(path), ())
    settings |= {name: value for name, value in (("output_dir", output_dir), ("seeds", seeds)) if value is not None}
    _check_keys(settings, Pipeline, f"{path}", complete=True)
    pipeline = Pipeline(**settings)
    seeds = pipeline.seeds
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)):
        raise PipelineError(f"{path}: `seeds` has to be a list of at least one integer, found {seeds!r}.")
    try:
        check_setting(Pipeline, "seeds", seeds)
    except ConfigError as error:
        raise PipelineError(f"{path}: {error}") from None
    if len(set(seeds)) < len(seeds):
        raise PipelineError(f"{path}: `seeds` has a seed twice: {seeds}.")
    if not pipeline.stages:
        raise PipelineError(f"{path}: `stages` is empty.")
    rows = [stage.evaluate for stage in pipeline.stages if stage.evaluate is not None]
    if len(set(rows)) < len(rows):
        raise PipelineError(f"{path}: two stages are evaluated under one name; the rows are {', '.join(rows)}.")
    _check_compared(pipeline.compare, rows, f"{path}")
    report = Path(pipeline.report)
    if report.name == "" or report.is_absolute() or ".." in report.parts:
        raise PipelineError(f"{path}: `report` has to be a file in `output_dir`, found {pipeline.report!r}.")
    if Path(pipeline.output_dir).resolve() in (Path.cwd(), *Path.cwd().parents):
        raise PipelineError(
            f"{path}: `output_dir` {pipeline.output_dir!r} is the working directory, or a folder around it. Choose "
            "another one."
        )
    audits = pipeline.audit
    if not (audits is None or isinstance(audits, (str, dict))):
        raise PipelineError(f"{path}: `audit` has to be a text or a mapping, found {audits!r}.")
    _check_files(f"{path}: `reward_models`", pipeline.reward_models, "evaluate_pairs.py", "label.json")
    if isinstance(audits, dict):
        _check_files(f"{path}: `audit`", audits, "audit.py", "audit.json")
    written = {step.name for step in plan_run(pipeline, seeds[0])}
    for name in ("scored", "tokenizer", "audit", "reward_models"):
        for read in paths_in(getattr(pipeline, name)):
            if source_of(read, written) is None:
                raise PipelineError(f"{path}: `{name}` is `{RUN}/{read}`, which no stage writes.")
    audited = audits.values() if isinstance(audits, dict) else [audits] if audits is not None else []
    for file in (*audited, *pipeline.reward_models.values()):
        # Not only after all stages have run
        if not paths_in(file) and not Path(file).is_file():
            raise PipelineError(
                f"{path}: there is no file {file!r} to report. Outputs of stages begin with `{RUN}/`, such as "
                f"`{RUN}/audit.json`."
            )
    if pipeline.scored is not None and pipeline.tokenizer is None:
        raise PipelineError(f"{path}: `scored` needs a `tokenizer` to show its samples with.")
    return pipeline


def _check_files(where: str, files: dict[Any, Any], recipe: str, example: str) -> None:
    for name, file in files.items():
        if not (isinstance(name, str) and isinstance(file, str) and file.endswith(".json")):
            raise PipelineError(
                f"{where} has names and outputs of `{recipe}`, such as `{RUN}/{example}`, found {name!r}: {file!r}."
            )


def _read(path: Path, extended_by: tuple[Path, ...]) -> dict[str, Any]:
    """The file's settings on top of those that it extends. Keys are checked here, where the file is known."""
    if path.resolve() in extended_by:
        raise PipelineError(f"{path}: `extends` leads back to a file that extends this one.")
    if not path.is_file():
        by = f", which {extended_by[-1]} extends" if extended_by else ""
        raise PipelineError(f"There is no pipeline file {str(path)!r}{by}.")
    try:
        settings = read_yaml(path)
    except ConfigError as error:
        raise PipelineError(str(error)) from None
    _check_keys(settings, Pipeline, str(path), others=["extends"])
    if "stages" in settings:
        if not isinstance(settings["stages"], list):
            raise PipelineError(f"{path}: `stages` has to be a list.")
        settings["stages"] = [
            _make(Stage, stage, f"{path}, stage {index}") for index, stage in enumerate(settings["stages"], 1)
        ]
    if settings.get("evaluation") is not None:
        settings["evaluation"] = _make(Evaluation, settings["evaluation"], f"{path}, evaluation")
    if not isinstance(settings.get("compare", []), list):
        raise PipelineError(f"{path}: `compare` has to be a list of pairs of rows, found {settings['compare']!r}.")
    for recipe, defaults in settings.get("defaults", {}).items():
        if not isinstance(defaults, dict):
            raise PipelineError(f"{path}: `defaults` of {recipe!r} has to be a mapping, found {defaults!r}.")
    base = settings.pop("extends", None)
    if base is None:
        return settings
    base = _read(path.parent / base, (*extended_by, path.resolve()))
    defaults = base.get("defaults", {})
    for recipe, shared in settings.get("defaults", {}).items():
        defaults = {**defaults, recipe: {**defaults.get(recipe, {}), **shared}}
    stages = [*base.get("stages", []), *settings.get("stages", [])]
    compared = [*base.get("compare", []), *settings.get("compare", [])]
    return {**base, **settings, "defaults": defaults, "stages": stages, "compare": compared}


def _check_compared(pairs: list[Any], rows: list[str], where: str) -> None:
    """The pairs of `compare` are of two rows of the table, and each is there once, in whatever order."""
    known = f"The rows are {', '.join(rows)}." if rows else "No stage has `evaluate`."
    seen = set()
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(row, str) for row in pair)):
            raise PipelineError(f"{where}: `compare` has pairs of rows, such as [rlmec, sft], found {pair!r}.")
        for row in pair:
            if row not in rows:
                raise PipelineError(f"{where}: `compare` has no row {row!r}.{did_you_mean(row, rows)} {known}")
        if len(set(pair)) < 2:
            raise PipelineError(f"{where}: `compare` compares {pair[0]!r} with itself.")
        if frozenset(pair) in seen:
            raise PipelineError(f"{where}: `compare` has the pair {', '.join(pair)} twice.")
        seen.add(frozenset(pair))


def _make(kind: type, settings: Any, where: str) -> Any:
    name = f" ({settings['name']})" if isinstance(settings, dict) and "name" in settings else ""
    _check_keys(settings, kind, where + name, complete=True)
    return kind(**settings)


def _check_keys(settings: Any, kind: type, where: str, others: list[str] | tuple = (), complete: bool = False) -> None:
    if not isinstance(settings, dict):
        raise PipelineError(f"{where}: expected a mapping, found {settings!r}.")
    known = [*others, *(field.name for field in fields(kind))]
    unknown = [repr(key) for key in settings if key not in known]
    if unknown:
        raise PipelineError(f"{where}: unknown key {', '.join(unknown)}. Known keys: {', '.join(known)}.")
    needed = [field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING]
    missing = [repr(key) for key in needed if key not in settings]
    if complete and missing:
        raise PipelineError(f"{where}: missing key {', '.join(missing)}.")
    hints = {"extends": str | None, **get_type_hints(kind)}
    for key, value in settings.items():
        may_be_null = type(None) in get_args(hints[key])
        is_fine = (may_be_null and value is None) or isinstance(value, dict if key in _MAPPINGS else str)
        if key in (*_TEXTS, *_MAPPINGS) and not is_fine:
            expected = "a mapping" if key in _MAPPINGS else "a text"
            raise PipelineError(f"{where}: `{key}` has to be {expected}, found {value!r}.")
