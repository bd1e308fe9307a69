"""
Run scripts in forks of a process that has imported what they need, so that no test waits for imports, and a kill
interrupts the work.

Each line on the standard input is a job, a JSON object:

- `script`, `words`, `folder`: the script, the words of its command line, and its working directory;
- `environments`: the variables of each process that runs it;
- `stdout`, `stderr`: files that the processes write to;
- `seconds`: how long they may take;
- `kill`, `when`: a signal, and a pattern or null. The first process gets the signal as soon as a file in its working
  directory matches the pattern.

The worker prints the ids of the processes and, when all have ended, their exit codes, negative for a signal. If one
of several fails, the others are killed, because they may wait for it forever.

python tests/script_worker.py
"""

import gc
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path


RECIPES = Path(__file__).parents[1] / "recipes"


def become(job, environment):
    """Make this process, a fork, the one that runs the script."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(job["folder"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.path[0] = str(Path(job["script"]).parent)
    sys.argv = [job["script"], *job["words"]]


def watch(processes, job):
    """The exit codes of the processes, which are killed as the job says."""
    codes = {}
    pattern = job["when"]
    end = time.monotonic() + job["seconds"]
    while len(codes) < len(processes):
        if pattern is not None and any(Path(job["folder"]).glob(pattern)):
            os.kill(processes[0], job["kill"])  # one that has ended keeps its id until it is waited for
            pattern = None
        for process in processes:
            if process not in codes and (status := os.waitpid(process, os.WNOHANG))[0]:
                codes[process] = os.waitstatus_to_exitcode(status[1])
                if codes[process]:
                    end = 0
        if time.monotonic() > end:
            for process in set(processes) - codes.keys():
                os.kill(process, signal.SIGKILL)
        time.sleep(0.001)
    return [codes[process] for process in processes]


def main():
    trainings = ("rlmec", "sft", "train_grm", "train_label_reward", "dpo", "grpo", "rloo")
    for recipe in (*trainings, "sample", "edit", "score", "evaluate", "audit", "pipeline", "rationales", "pairs"):
        runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="imported")
    gc.freeze()  # a training collects garbage several times
    for line in sys.stdin:
        job = json.loads(line)
        processes = []
        for environment in job["environments"]:
            process = os.fork()
            if process == 0:
                become(job, environment)
                return job["script"]
            processes.append(process)
        print(json.dumps(processes), flush=True)
        print(json.dumps(watch(processes, job)), flush=True)


if __name__ == "__main__":
    # In a fork, the script is the last thing that is done, so that the process ends as any other
    if (script := main()) is not None:
        runpy.run_path(script, run_name="__main__")
