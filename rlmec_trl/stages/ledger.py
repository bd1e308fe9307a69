"""The records of a pipeline: which outputs are finished, and which files it wrote."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from ..data.marks import find_damage, list_files
from .output import a_few, is_cache, write_atomically
from .pipeline import Choice, Job, PipelineError, fill_run
from .publishing import PUBLISHING


class Ledger:
    """
    The outputs of one seed, and a marker for each, in the hidden folder `.stages` next to them.

    A marker has the key of the step, whether it is finished, its seconds, and the files that it left. They decide what
    happens to an output:

    | the output | what happens to it |
    |---|---|
    | has no marker | refused: the pipeline did not write it |
    | has the same key, finished | kept, the step is skipped (a dataset with truncated files: the step runs again) |
    | has the same key, not finished | kept, the step resumes |
    | has another key, and a file that is not in its marker | refused |
    | has another key, written by one call of the step | replaced |
    | has another key, written by a step that was interrupted | renamed, since it may contain files of others |

    [`refusals`] finds what would be refused, before any work.

    Args:
        folder (`str` or `os.PathLike`):
            The run's folder.
        report (`Callable[[str], None]`, *optional*, defaults to `print`):
            Gets a line for each output that is renamed.
    """

    def __init__(self, folder: str | os.PathLike, report: Callable[[str], None] = print):
        self.folder = Path(folder)
        self.report = report

    def refusals(self, steps: Iterable[Job | Choice]) -> list[str]:
        """A sentence for each output that the steps would have to touch and must not."""
        found = []
        for step in steps:
            try:
                self._state(step)
            except PipelineError as error:
                found.append(str(error))
        return found

    def is_finished(self, job: Job) -> bool:
        """Whether the job's output is there, made with the same settings from the same steps."""
        return self._state(job) == "finished"

    def lacks_publishing(self, job: Job) -> bool:
        """Whether a finished output is to be published, and was not, or elsewhere."""
        wanted = _publishing(job)
        return bool(wanted.get("push_to_hub")) and self._read_marker(job.name).get("published") != wanted

    def seconds(self, name: str) -> float:
        """Seconds that a step took, over all calls until it was finished."""
        return self._read_marker(name)["seconds"]

    def run(self, job: Job, call: Callable[[Path], Any]) -> None:
        """
        Run a job that is not finished, or resume it. The recipe of a finished one only publishes the output.

        Args:
            job ([`Job`]):
                The job.
            call (`Callable[[Path], Any]`):
                Runs the job's recipe with the YAML file that it is given.

        Raises:
            [`PipelineError`]: If the output is not ours to touch, or the recipe left none.
        """
        state, output = self._state(job), self.folder / job.name
        marker = self._read_marker(job.name)
        if state == "finished":
            self._call(job, call)
            self._write_marker(job.name, marker | {"published": _publishing(job)})
            return
        if marker is None or marker["key"] != job.key or marker["finished"]:
            marker = {"key": job.key, "finished": False, "seconds": 0.0, "resumed": False, "files": {}}
        marker["resumed"] |= state == "unfinished"
        self._clear(job.name, state)
        self._write_marker(job.name, marker)
        output.parent.mkdir(parents=True, exist_ok=True)

        start = time.perf_counter()
        try:
            self._call(job, call)
        finally:
            marker["seconds"] += time.perf_counter() - start
            self._write_marker(job.name, marker)
        if not os.path.lexists(output):
            raise PipelineError(f"{output}: the recipe `{job.recipe}` ended without writing it.")
        done = {"finished": True, "files": _left_by(output), "published": _publishing(job)}
        self._write_marker(job.name, marker | done)

    def _call(self, job: Job, call: Callable[[Path], Any]) -> None:
        settings = self._path(job.name, ".yaml")
        settings.write_text(yaml.safe_dump(fill_run(job.settings, self.folder), sort_keys=False), encoding="utf-8")
        call(settings)

    def choose(self, choice: Choice) -> dict[str, Any]:
        """
        Link the candidate that does best on validation; of equals, the first.

        Returns:
            `dict`: `argument`, the chosen `value`, and `validation`, the accuracy of each value.
        """
        accuracies = {value: self.result(result)["mean"] for value, (_, result) in choice.candidates.items()}
        best = max(accuracies, key=accuracies.get)
        target, link = choice.candidates[best][0], self.folder / choice.name
        state = self._state(choice)
        files = {_link_to(target): 0}
        marker = {"key": choice.key, "finished": True, "seconds": 0.0, "resumed": False, "files": files}
        if state != "absent" and _left_by(link) == files:
            self._write_marker(choice.name, marker)
        else:
            self._clear(choice.name, state)
            # The marker first: a link without one would be refused
            self._write_marker(choice.name, marker)
            link.symlink_to(target)
        return {"argument": choice.argument, "value": best, "validation": accuracies}

    def result(self, name: str) -> dict[str, Any]:
        """What a step wrote to its JSON file."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def _state(self, step: Job | Choice) -> str:
        """One of absent, finished, unfinished, outdated and abandoned (outdated, and it was interrupted)."""
        output = self.folder / step.name
        if not os.path.lexists(output):
            return "absent"
        marker = self._read_marker(step.name)
        if marker is None:
            raise PipelineError(
                f"{output}: it exists, without a record that this pipeline wrote it (earlier versions kept none)."
            )
        if marker["key"] == step.key and isinstance(step, Job):
            return "finished" if marker["finished"] and not find_damage(output) else "unfinished"
        if not marker["finished"]:
            return "abandoned"
        left = marker["files"]
        foreign = [name for name, size in _left_by(output).items() if left.get(name) != size and not is_cache(name)]
        if foreign:
            raise PipelineError(
                f"{output}: its settings have changed, so it would be replaced, but it holds what the stage did not "
                f"write: {a_few(foreign)}."
            )
        return "abandoned" if marker["resumed"] else "outdated"

    def _clear(self, name: str, state: str) -> None:
        """Make room for a step whose output is of other settings."""
        output = self.folder / name
        if state == "outdated":
            if output.is_dir() and not output.is_symlink():
                shutil.rmtree(output)
            else:
                output.unlink()
        elif state == "abandoned":
            aside = next(path for path in map(self._aside(name), range(1, 10_000)) if not os.path.lexists(path))
            output.rename(aside)
            self.report(f"{output}: left by an interrupted stage with other settings, renamed to {aside}")

    def _aside(self, name: str) -> Callable[[int], Path]:
        return lambda number: self.folder / f"{name}.interrupted-{number}"

    def _path(self, name: str, suffix: str) -> Path:
        path = self.folder / ".stages" / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _read_marker(self, name: str) -> dict[str, Any] | None:
        try:
            marker = json.loads((self.folder / ".stages" / f"{name}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        # Markers of earlier releases do not list files, so they do not say what is ours
        return marker if isinstance(marker, dict) and isinstance(marker.get("files"), dict) else None

    def _write_marker(self, name: str, marker: dict[str, Any]) -> None:
        write_atomically(self._path(name, ".json"), json.dumps(marker))


def _publishing(job: Job) -> dict[str, Any]:
    """The settings of a job that say whether and where it is published."""
    return {name: value for name, value in job.settings.items() if name in PUBLISHING}


def _left_by(output: Path) -> dict[str, int]:
    """Sizes of the files that a step left, by their paths in its folder: `.` for a file, a link by where it leads."""
    if output.is_symlink():
        return {_link_to(os.readlink(output)): 0}
    return list_files(output) if output.is_dir() else {".": output.stat().st_size}


def _link_to(target: str) -> str:
    return f"-> {target}"
