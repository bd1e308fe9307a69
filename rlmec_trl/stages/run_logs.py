"""Reads what trainings have logged, and what was measured of them, for the charts of a report."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data.errors import ConfigError
from ..reports.accuracy import Accuracy, read_accuracy
from ..reports.run_charts import RunLog
from .checkpoints import checkpoints, read_record, read_state
from .costs import num_generated, output_costs


def read_runs(runs: Mapping[str, str | Path | Sequence[str | Path]]) -> dict[str, RunLog]:
    """
    Read the logs of several runs.

    Args:
        runs (`Mapping[str, str | Path | Sequence]`):
            For each name, the output folder of a training, or a list of what belongs to a run, in its order: folders
            of datasets and of trainings, and results of `evaluate.py`. The logs are those of the last training; the
            completions that the stages before it have generated are added to its own.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If a path does not exist, or none of a run's folders has logs.
    """
    return {
        name: _read_run(name, [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)])
        for name, paths in runs.items()
    }


def _read_run(name: str, paths: Sequence[Path]) -> RunLog:
    states, results, before = [], {}, []
    for path in paths:
        if not path.exists():
            raise ConfigError(f"There is no file or folder {str(path)!r}, which run '{name}' names. Correct the path.")
        if path.is_file():
            accuracy = read_accuracy(path)
            if accuracy is None:
                raise ConfigError(f"{str(path)!r}, which run '{name}' names, is not a result of `evaluate.py`.")
            results[path.stem] = accuracy
            continue
        state = _last_state(path)
        if state is None:
            before.append(output_costs(path)["completions"])
        else:
            states.append(state)
            results |= _results_of(path)
    if not states:
        raise ConfigError(
            f"Run '{name}' has no `trainer_state.json` in {', '.join(repr(str(path)) for path in paths)} or its "
            "checkpoints. Name the output folder of a training."
        )
    *earlier, state = states
    before += [_num_completions(each, each["global_step"]) for each in earlier]
    start = None if None in before else sum(before)

    def completions_at(step: int) -> int | None:
        own = _num_completions(state, step)
        return None if start is None or own is None else start + own

    logs = _logs_of(state)
    done = [completions_at(log.get("step", 0)) for log in logs]
    return RunLog(logs, done, results, completions_at(state["global_step"]))


def _last_state(folder: Path) -> dict | None:
    """State of a finished training, or at its last checkpoint. `None` if the folder has no such file."""
    folders = [folder, *(path for _, path in sorted(checkpoints(folder), reverse=True))]
    return next((state for state in map(read_state, folders) if state is not None), None)


def _logs_of(state: dict) -> list[dict]:
    """What a training has logged. Another program's file may have something else under this name."""
    logs = state.get("log_history")
    return [log for log in logs if isinstance(log, dict)] if isinstance(logs, list) else []


def _num_completions(state: dict, num_steps: int) -> int | None:
    """Completions that a training has generated after so many steps, `None` if its settings are not recorded."""
    settings = (read_record(state) or {}).get("settings")
    if settings is not None:
        return num_generated(settings, num_steps)
    # TRL's online trainers log lengths of their completions
    return None if any("completions/mean_length" in log for log in _logs_of(state)) else 0


def _results_of(folder: Path) -> dict[str, Accuracy]:
    """Evaluations in the output folder of a training, and the test of a pipeline, which has a folder for them."""
    of_pipeline = folder.parent / "results" / f"{folder.name}-test.json"
    found = {path.stem: read_accuracy(path) for path in sorted(folder.glob("*.json"))}
    found["test"] = read_accuracy(of_pipeline) or found.get("test")
    return {name: accuracy for name, accuracy in found.items() if accuracy is not None}
