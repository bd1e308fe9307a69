"""Scripts that tests run in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple


ROOT = Path(__file__).parents[1]
SECONDS = 600


class Finished(NamedTuple):
    """The exit code of a script, negative for a signal, and what it printed."""

    exit_code: int
    stdout: str
    stderr: str


class Scripts:
    """Runs of scripts, one at a time, in forks of `script_worker.py`, which has imported everything."""

    def __init__(self, folder):
        self._folder = folder
        self._num_jobs = 0
        command = [sys.executable, str(ROOT / "tests" / "script_worker.py")]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._worker = subprocess.Popen(command, **pipes, text=True, env=environment)

    def stop(self):
        self._worker.stdin.close()
        self._worker.wait()
        self._worker.stdout.close()

    def start(self, script, *words, cwd, environments=({},), kill=None, when=None):
        """
        Start a script, in as many processes as there are `environments`, variables on top of those of this process.
        The first one gets the signal `kill` as soon as a file in its folder matches `when`. Returns the ids of the
        processes.
        """
        self._num_jobs += 1
        self._output = [self._folder / f"{self._num_jobs}.{name}" for name in ("stdout", "stderr")]
        for path in self._output:
            path.touch()
        job = {
            "script": str(script),
            "words": list(map(str, words)),
            "folder": str(cwd),
            "environments": [dict(os.environ) | {"PYTHONPATH": str(ROOT)} | changes for changes in environments],
            "stdout": str(self._output[0]),
            "stderr": str(self._output[1]),
            "seconds": SECONDS,
            "kill": kill,
            "when": when,
        }
        self._worker.stdin.write(json.dumps(job) + "\n")
        self._worker.stdin.flush()
        return json.loads(self._worker.stdout.readline())

    def wait(self):
        """Wait until all processes of the script have ended."""
        codes = json.loads(self._worker.stdout.readline())
        stdout, stderr = (path.read_text(encoding="utf-8") for path in self._output)
        return Finished(next((code for code in codes if code), 0), stdout, stderr)

    def run(self, script, *words, **kwargs):
        """Start a script and wait for its end."""
        self.start(script, *words, **kwargs)
        return self.wait()
