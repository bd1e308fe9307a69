"""
All stages of a task, one after another, in one process.

```bash
python recipes/pipeline.py --config recipes/arithmetic/pipeline.yaml
```

Each stage writes a data set or a model into `<output_dir>/seed-<seed>`. Started again, a finished stage is skipped
unless its configuration, or that of a stage it reads from, has changed; a stage that was cut off goes on where it was.
In the YAML, `{run}` stands for the run's folder and `{seed}` for its seed.
"""

import argparse
import hashlib
import importlib.util
import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from rich.console import Console
from transformers import AutoTokenizer

from rlmec_trl.data.loading import load_rows
from rlmec_trl.reports.tables import (
    accuracy_table,
    audit_table,
    pick_samples,
    pool_audits,
    show_sample,
    summarize_accuracy,
)


RECIPES = Path(__file__).parent
console = Console()


@dataclass
class Stage:
    """One stage: a recipe, its YAML file, and what this run sets otherwise."""

    name: str
    recipe: str
    config: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    # One argument and its candidates: each is run, and the one with the best accuracy on validation is kept.
    choose: dict[str, list] | None = None
    # Under which name the model stands in the table, where it is evaluated on the test split.
    evaluate: str | None = None


@dataclass
class Pipeline:
    """What the pipeline's YAML file holds."""

    output_dir: str
    seeds: list[int]
    stages: list[dict[str, Any]]
    # The `evaluate.py` stage for every model in the table: its file, and the data sets to choose and to report on.
    evaluation: dict[str, str]
    title: str
    scored: str | None = None
    tokenizer: str | None = None
    audit: str | None = None
    report: str = "report.json"


def load_recipe(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fill(value: Any, run: Path, seed: int) -> Any:
    """Put the run's folder and seed where a value of the YAML file names them."""
    if isinstance(value, dict):
        return {key: fill(item, run, seed) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, run, seed) for item in value]
    return value.replace("{run}", str(run)).replace("{seed}", str(seed)) if isinstance(value, str) else value


def command_line(config: str | None, args: dict[str, Any]) -> list[str]:
    words = ["--config", config] if config is not None else []
    for name, value in args.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(json.dumps(item) if isinstance(item, dict) else str(item) for item in values)]
    return words


class Run:
    """The stages of one seed, and what is known of them on disk."""

    def __init__(self, pipeline: Pipeline, seed: int, root: Path):
        self.pipeline, self.seed, self.root = pipeline, seed, root
        self.folder = Path(pipeline.output_dir, f"seed-{seed}")
        self.markers = self.folder / ".stages"
        self.markers.mkdir(parents=True, exist_ok=True)
        self.keys: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.chosen: dict[str, Any] = {}
        self.results: dict[str, dict[str, Any]] = {}

    def run_stage(self, stage: Stage) -> None:
        if stage.choose is None:
            self._run_recipe(stage.name, stage.recipe, stage.config, stage.args)
        else:
            self._run_choice(stage)
        if stage.evaluate:
            self.results[stage.evaluate] = self.evaluate(stage.name, "test")

    def evaluate(self, name: str, split: str) -> dict[str, Any]:
        """Accuracy of a stage's model on a split, `test` or `validation`."""
        output_file = self.folder / "results" / f"{name}-{split}.json"
        args = {
            "model_name_or_path": str(self.folder / name),
            "dataset_name": self.pipeline.evaluation[split],
            "output_file": str(output_file),
        }
        self._run_recipe(f"results/{name}-{split}.json", "evaluate", self.pipeline.evaluation["config"], args)
        return json.loads(output_file.read_text(encoding="utf-8"))

    def _run_choice(self, stage: Stage) -> None:
        """Run a stage with each candidate value, keep the one that does best on validation."""
        ((argument, candidates),) = stage.choose.items()
        accuracies = {}
        for candidate in candidates:
            name = f"{stage.name}-{argument}-{candidate}"
            args = {**stage.args, argument: candidate, "output_dir": str(self.folder / name)}
            self._run_recipe(name, stage.recipe, stage.config, args)
            accuracies[candidate] = self.evaluate(name, "validation")["mean"]
        best = max(candidates, key=accuracies.get)
        self.chosen[stage.name] = {"argument": argument, "value": best, "validation": accuracies}
        shown = ", ".join(f"{candidate}: {mean:.3f}" for candidate, mean in accuracies.items())
        console.print(f"{stage.name}: {argument} = {best} does best on validation ({shown})", highlight=False)
        link = self.folder / stage.name
        if link.is_dir() and not link.is_symlink():  # from a configuration without candidates
            shutil.rmtree(link)
        link.unlink(missing_ok=True)
        link.symlink_to(f"{stage.name}-{argument}-{best}")
        self.keys[stage.name] = self.keys[f"{stage.name}-{argument}-{best}"]

    def _run_recipe(self, name: str, recipe: str, config: str | None, args: dict[str, Any]) -> None:
        args = fill(args, self.folder, self.seed)
        config_path = None if config is None else str(self.root / config)
        key = self._key(name, recipe, config_path, args)
        self.keys[name] = key
        output, marker = self.folder / name, self.markers / f"{name.replace('/', '-')}.json"
        known = json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else {}
        if known.get("key") == key and known["finished"] and output.exists():
            self.seconds[name] = known["seconds"]
            console.print(f"[dim]{self.folder / name}: done before[/dim]", highlight=False)
            return
        if known.get("key") != key:
            # What another configuration left behind would be taken for this one's
            known = {"key": key, "finished": False, "seconds": 0.0}
            shutil.rmtree(output) if output.is_dir() and not output.is_symlink() else output.unlink(missing_ok=True)
        elif known["finished"]:  # its output is gone, so it starts anew
            known = {"key": key, "finished": False, "seconds": 0.0}
        marker.write_text(json.dumps(known), encoding="utf-8")

        console.rule(f"{name} (seed {self.seed})", align="left")
        start = time.perf_counter()
        module = load_recipe(recipe)
        module.main(*module.make_parser().parse_args_and_config(command_line(config_path, args)))
        known["seconds"] += time.perf_counter() - start
        known["finished"] = True
        marker.write_text(json.dumps(known), encoding="utf-8")
        self.seconds[name] = known["seconds"]

    def _key(self, name: str, recipe: str, config: str | None, args: dict[str, Any]) -> str:
        """A stage is the same while its recipe, its settings and the stages it reads from are."""
        settings = None if config is None else yaml.safe_load(Path(config).read_text(encoding="utf-8"))
        values = [str(value) for value in args.values()]
        read = {
            other: key
            for other, key in self.keys.items()
            if other != name
            and any(
                value == path or value.startswith(f"{path}/")
                for value in values
                for path in [str(self.folder / other)]
            )
        }
        return hashlib.sha256(json.dumps([recipe, settings, args, read], sort_keys=True).encode()).hexdigest()


def report(pipeline: Pipeline, runs: list[Run]) -> None:
    """Print the tables and two samples, and write all figures to a file."""
    accuracy = {name: summarize_accuracy([run.results[name] for run in runs]) for name in runs[0].results}
    result = {
        "accuracy": accuracy,
        "chosen": {f"seed-{run.seed}": run.chosen for run in runs},
        "seconds": {name: sum(run.seconds[name] for run in runs) for name in runs[0].seconds},
    }
    if pipeline.scored is not None:
        scored = load_rows(fill(pipeline.scored, runs[0].folder, runs[0].seed))
        tokenizer = AutoTokenizer.from_pretrained(fill(pipeline.tokenizer, runs[0].folder, runs[0].seed))
        for row in pick_samples(scored):
            console.print(show_sample(row, tokenizer))
    num_problems = next(iter(accuracy.values()))["n"]
    console.print(accuracy_table(accuracy, f"{pipeline.title}: test split, {num_problems} problems"))
    if pipeline.audit is not None:
        audits = [Path(fill(pipeline.audit, run.folder, run.seed)) for run in runs]
        result["grm_audit"] = pool_audits([json.loads(path.read_text(encoding="utf-8")) for path in audits])
        console.print(audit_table(result["grm_audit"], "Generative reward model, on problems it has not seen"))
    total = sum(result["seconds"].values())
    path = Path(pipeline.output_dir, pipeline.report)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    console.print(f"{total / 60:.1f} minutes of work; all figures in {path}", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="The pipeline's YAML file.")
    parser.add_argument("--output_dir", help="Folder of the runs, instead of the file's.")
    parser.add_argument("--seeds", type=int, nargs="+", help="Seeds to run, instead of the file's.")
    options = parser.parse_args()

    settings = yaml.safe_load(Path(options.config).read_text(encoding="utf-8"))
    overrides = {
        name: getattr(options, name) for name in ("output_dir", "seeds") if getattr(options, name) is not None
    }
    pipeline = Pipeline(**{**settings, **overrides})
    stages = [Stage(**stage) for stage in pipeline.stages]
    runs = [Run(pipeline, seed, Path(options.config).parent) for seed in pipeline.seeds]
    for run in runs:
        for stage in stages:
            run.run_stage(stage)
    report(pipeline, runs)


if __name__ == "__main__":
    main()
