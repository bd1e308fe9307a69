"""
Run recipes again and again, in processes that a test kills.

Each line on the standard input is a run: a JSON list of the recipe's name, the working directory, a file for all that
the run prints, the words of its command line, a signal, and a pattern or null. The run gets the signal as soon as a
file in the working directory matches the pattern. The worker prints its exit code, negative for a signal. Runs are
forks of a process that has imported everything, so that a kill interrupts the work and not the imports.

python tests/kill_worker.py
"""

import gc
import json
import os
import runpy
import sys
import time
import traceback
from pathlib import Path


RECIPES = Path(__file__).parents[1] / "recipes"


def run(recipe, folder, output_file, words):
    """A recipe as a script, with its standard streams in a file."""
    with open(output_file, "w", encoding="utf-8", buffering=1) as output:
        os.chdir(folder)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        sys.argv = [f"{recipe}.py", *words]
        try:
            runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="__main__")
        except SystemExit as stop:
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
            return 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
    return 0


if __name__ == "__main__":
    for recipe in ("rlmec", "sft", "train_grm", "sample", "edit", "score", "evaluate"):
        runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="imported")
    gc.freeze()  # a training collects garbage several times
    for line in sys.stdin:
        *job, number, pattern = json.loads(line)
        process = os.fork()
        if process == 0:
            os._exit(run(*job))
        status = 0, 0
        while status[0] == 0:
            if pattern is not None and any(Path(job[1]).glob(pattern)):
                os.kill(process, number)  # an ended one has its id until it is waited for
                pattern = None
            status = os.waitpid(process, os.WNOHANG)
            time.sleep(0.001)
        print(os.waitstatus_to_exitcode(status[1]), flush=True)
