"""
Run all stages of a pipeline, one after another, in one process.

```bash
python recipes/pipeline.py --config recipes/arithmetic/pipeline.yaml
```

Each stage writes a dataset or a model to `<output_dir>/seed-<seed>/<stage>`. Re-running the command skips finished
stages and resumes an interrupted one. A stage runs again when its settings, or those of a stage it reads from, change.

Nothing is deleted that the pipeline did not write: before any work, it refuses outputs that are not its own. To run a
stage on its own, pass its settings to its recipe: `--config <output_dir>/seed-<seed>/.stages/<stage>.yaml`.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from transformers import AutoTokenizer

from rlmec_trl.data.errors import ConfigError, UserError
from rlmec_trl.data.loading import load_rows
from rlmec_trl.reports.comparisons import ComparisonError, compare, has_outcomes, read_outcomes
from rlmec_trl.reports.costs import costs_table
from rlmec_trl.reports.tables import (
    AUDIT_LABELS,
    accuracy_table,
    audit_table,
    comparison_table,
    pool_audits,
    reward_model_table,
    summarize_accuracy,
)
from rlmec_trl.reports.token_views import pick_samples, show_sample
from rlmec_trl.stages.costs import ModelCosts, job_costs, model_costs, report_costs
from rlmec_trl.stages.ledger import Ledger
from rlmec_trl.stages.output import is_result_file, write_atomically
from rlmec_trl.stages.pipeline import Job, Pipeline, PipelineError, fill_run, plan_run, result_name
from rlmec_trl.stages.pipeline_file import load_pipeline
from rlmec_trl.stages.publishing import PUBLISHING
from rlmec_trl.stages.settings import did_you_mean, make_configs, parse_settings


RECIPES = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.py")) if path.stem != "pipeline"}
console = Console()


def load_recipe(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES[name])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def say(text: str, style: str | None = None) -> None:
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


class Run:
    """The stages of one seed."""

    def __init__(self, pipeline: Pipeline, seed: int, not_in_key: dict[str, set[str]] | None = None):
        self.pipeline, self.seed = pipeline, seed
        self.folder = Path(pipeline.output_dir, f"seed-{seed}")
        self.steps = plan_run(pipeline, seed, not_in_key)
        self.ledger = Ledger(self.folder, say)
        self.chosen: dict[str, Any] = {}

    def run(self) -> None:
        for step in self.steps:
            if not isinstance(step, Job):
                chosen = self.chosen[step.name] = self.ledger.choose(step)
                shown = ", ".join(f"{value}: {mean:.3f}" for value, mean in chosen["validation"].items())
                say(f"{step.name}: {step.argument} = {chosen['value']} does best on validation ({shown})")
            elif self.ledger.is_finished(step) and not self.ledger.lacks_publishing(step):
                say(f"{self.folder / step.name}: already finished", style="dim")
            else:
                console.rule(f"{step.name} (seed {self.seed})", align="left")
                recipe = load_recipe(step.recipe)
                self.ledger.run(
                    step,
                    lambda config, recipe=recipe: recipe.main(
                        *parse_settings(recipe.make_parser(), ["--config", str(config)])
                    ),
                )

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """For each row of the table, the accuracy on the test split."""
        return {row: self.ledger.result(result_name(name, "test")) for row, name in self.models.items()}

    @property
    def models(self) -> dict[str, str]:
        """For each row of the table, the name of its stage."""
        return {stage.evaluate: stage.name for stage in self.pipeline.stages if stage.evaluate is not None}

    @property
    def costs(self) -> ModelCosts:
        """What the rows of the table have cost."""
        chosen = {name: choice["value"] for name, choice in self.chosen.items()}
        return model_costs(
            self.models,
            self.steps,
            chosen,
            lambda job: job_costs(job, self.folder) | {"seconds": self.ledger.seconds(job.name)},
        )

    def result_file(self, row: str) -> Path:
        """Where the accuracy of a row of the table is."""
        return self.folder / result_name(self.models[row], "test")

    @property
    def seconds(self) -> dict[str, float]:
        return {step.name: self.ledger.seconds(step.name) for step in self.steps if isinstance(step, Job)}


def settings_without_effect(pipeline: Pipeline) -> dict[str, set[str]]:
    """For each recipe, the settings that do not change its result according to `key_parts`."""
    found = {}
    for recipe in {stage.recipe for stage in pipeline.stages} | {"evaluate"}:
        if recipe in RECIPES:  # `check_settings` refuses others
            configs = load_recipe(recipe).make_parser().dataclass_types
            parts = [part for config in configs for part in getattr(config, "key_parts", {}).items()]
            found[recipe] = PUBLISHING | {name for name, kind in parts if kind == "none"}
    return found


def check_settings(runs: list[Run]) -> None:
    """
    Check the settings of every stage as its recipe will.

    Raises:
        [`PipelineError`]: If a recipe does not exist, or a stage gives its recipe a setting that it does not have or
            that cannot have its value, or leaves out one that it needs.
    """
    for recipe in runs[0].pipeline.defaults:
        if recipe not in RECIPES:
            raise PipelineError(f"`defaults`: no recipe {recipe!r}. Choose one of {', '.join(RECIPES)}.")
    modules = {}
    for folder, step in ((run.folder, step) for run in runs for step in run.steps if isinstance(step, Job)):
        if step.recipe not in RECIPES:
            raise PipelineError(f"Stage {step.name!r}: no recipe {step.recipe!r}. Choose one of {', '.join(RECIPES)}.")
        if step.recipe not in modules:
            modules[step.recipe] = load_recipe(step.recipe)
        parser = modules[step.recipe].make_parser()
        known = {action.dest: action.required for action in parser._actions if action.dest != "help"}
        for name in step.settings.keys() - known.keys():
            hint = did_you_mean(name, known)
            raise PipelineError(f"Stage {step.name!r}: the recipe {step.recipe!r} has no setting {name!r}.{hint}")
        missing = [name for name, needed in known.items() if needed and name not in step.settings]
        if missing:
            raise PipelineError(f"Stage {step.name!r}: the recipe {step.recipe!r} needs {', '.join(missing)}.")
        try:
            make_configs(parser, fill_run(step.settings, folder))
        except ConfigError as error:
            raise PipelineError(f"Stage {step.name!r}: {error}") from None


def check_outputs(pipeline: Pipeline, runs: list[Run]) -> None:
    """
    Raises:
        [`PipelineError`]: If a stage or the report would touch what this pipeline did not write.
    """
    refusals = [refusal for run in runs for refusal in run.ledger.refusals(run.steps)]
    path = Path(pipeline.output_dir, pipeline.report)
    if path.exists() and not is_result_file(path, ("accuracy", "chosen", "seconds")):
        refusals.append(f"{path}: it exists, and is not a report of this pipeline.")
    if refusals:
        listed = "\n".join(f"- {refusal}" for refusal in refusals)
        raise PipelineError(
            f"These outputs cannot be replaced:\n{listed}\nNothing was changed. Move them away, or choose another "
            "`--output_dir`."
        )


def compare_rows(pipeline: Pipeline, runs: list[Run]) -> list[dict[str, Any]]:
    """
    Compare the pairs of rows that the file names. Results of earlier versions do not have the outcome of each problem:
    of a pair with such results, the files are returned as `missing`, and named to the user.
    """
    files = {row: [run.result_file(row) for run in runs] for pair in pipeline.compare for row in pair}
    old = {
        row: [str(file) for file in files[row] if not has_outcomes(json.loads(file.read_text(encoding="utf-8")))]
        for row in files
    }
    if any(old.values()):
        say(
            f"No comparison with {', '.join(row for row in old if old[row])}: an earlier version wrote these results, "
            "without the outcome of each problem. Delete them and run the pipeline again to evaluate these models "
            f"again: {', '.join(file for of_row in old.values() for file in of_row)}"
        )
    compared = []
    for first, second in pipeline.compare:
        missing = [*old[first], *old[second]]
        if not missing:
            try:
                figures = compare(*([read_outcomes(file) for file in files[row]] for row in (first, second)))
            except ComparisonError as error:  # the other figures are worth reporting all the same
                say(f"No comparison of {first} with {second}: {error}")
                missing = [str(file) for row in (first, second) for file in files[row]]
        compared.append({"rows": [first, second], **({"missing": missing} if missing else figures)})
    return compared


def pooled_audit(file: str, runs: list[Run]) -> dict[str, Any]:
    paths = [Path(fill_run(file, run.folder)) for run in runs]
    for path in paths:
        if not is_result_file(path, AUDIT_LABELS):
            raise PipelineError(f"`audit`: {path} is not an output of `audit.py`.")
    return pool_audits([json.loads(path.read_text(encoding="utf-8")) for path in paths])


def report(pipeline: Pipeline, runs: list[Run]) -> None:
    """Print the tables and two samples, and write all figures to a file."""
    results = [run.results for run in runs]
    accuracy = {name: summarize_accuracy([result[name] for result in results]) for name in results[0]}
    seconds = [run.seconds for run in runs]
    result = {
        "accuracy": accuracy,
        "chosen": {f"seed-{run.seed}": run.chosen for run in runs},
        "seconds": {name: sum(of_run[name] for of_run in seconds) for name in seconds[0]},
    }
    if pipeline.scored is not None:
        scored = load_rows(fill_run(pipeline.scored, runs[0].folder))
        tokenizer = AutoTokenizer.from_pretrained(fill_run(pipeline.tokenizer, runs[0].folder))
        for row in pick_samples(scored):
            console.print(show_sample(row, tokenizer))
    if accuracy:
        num_problems = next(iter(accuracy.values()))["n"]
        console.print(accuracy_table(accuracy, f"{pipeline.title}: test split, {num_problems} problems"))
        result["costs"], result["shared_costs"] = report_costs([run.costs for run in runs])
        console.print(costs_table(result["costs"], result["shared_costs"]["stages"], len(runs)))
    if pipeline.compare:
        result["comparisons"] = compare_rows(pipeline, runs)
        compared = [comparison for comparison in result["comparisons"] if "missing" not in comparison]
        if compared:
            console.print(comparison_table(compared, f"Paired comparisons, {compared[0]['total']} problems"))
    if pipeline.audit is not None:
        title = "Generative reward model, on unseen problems"
        if isinstance(pipeline.audit, dict):
            result["grm_audit"] = {name: pooled_audit(file, runs) for name, file in pipeline.audit.items()}
            for name, audit in result["grm_audit"].items():
                console.print(audit_table(audit, f"{title}: {name}"))
        else:
            result["grm_audit"] = pooled_audit(pipeline.audit, runs)
            console.print(audit_table(result["grm_audit"], title))
    if pipeline.reward_models:
        result["reward_models"] = {}
        for name, file in pipeline.reward_models.items():
            found = [json.loads(Path(fill_run(file, run.folder)).read_text(encoding="utf-8"))["pairs"] for run in runs]
            result["reward_models"][name] = {
                kind: summarize_accuracy([one[kind] for one in found]) for kind in found[0]
            }
        console.print(reward_model_table(result["reward_models"], "Reward models, on pairs of unseen problems"))
    path = Path(pipeline.output_dir, pipeline.report)
    write_atomically(path, json.dumps(result, indent=2) + "\n")
    say(f"{sum(result['seconds'].values()) / 60:.1f} minutes of work; all figures in {path}")
    for page in (run.folder / step.name for run in runs for step in run.steps if step.name.endswith(".html")):
        say(f"To see the samples token by token, open {page} in a browser")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="The pipeline's YAML file.")
    parser.add_argument("--output_dir", help="Folder of the runs, instead of the file's.")
    parser.add_argument("--seeds", type=int, nargs="+", help="Seeds to run, instead of the file's.")
    options = parser.parse_args()
    try:
        pipeline = load_pipeline(options.config, options.output_dir, options.seeds)
        not_in_key = settings_without_effect(pipeline)
        runs = [Run(pipeline, seed, not_in_key) for seed in pipeline.seeds]
        check_settings(runs)
        try:
            Path(pipeline.output_dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PipelineError(f"`output_dir` {pipeline.output_dir!r} is no folder ({error.strerror}).") from None
        with FileLock(Path(pipeline.output_dir, ".pipeline.lock"), timeout=0):
            check_outputs(pipeline, runs)
            for run in runs:
                run.run()
            report(pipeline, runs)
    except Timeout:
        sys.exit(
            f"Another pipeline is running in {pipeline.output_dir}. Wait for it, or choose another `--output_dir`."
        )
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
