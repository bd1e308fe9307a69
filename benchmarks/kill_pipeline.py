"""
Kill a pipeline at random moments, and compare what it leaves with an undisturbed run.

```bash
python benchmarks/kill_pipeline.py --config small.yaml --work_dir /tmp/kills --kills 30
```

Each run is ended by SIGKILL at a random moment after its first line of output, until the number of kills is reached. A
pipeline that finishes before is started again in a new folder, and the last run in a folder is never killed. Datasets
are compared row by row, models bit by bit, and results without their times.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

from datasets import load_from_disk


RECIPE = Path(__file__).parents[1] / "recipes" / "pipeline.py"


def start(config: Path, output_dir: Path) -> subprocess.Popen:
    command = [sys.executable, str(RECIPE), "--config", str(config), "--output_dir", str(output_dir)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(RECIPE.parents[1])},
    )


def run_until_killed(config: Path, output_dir: Path, delay: float | None) -> tuple[bool, str]:
    """Whether the pipeline finished, and its output. It is killed `delay` seconds after its first line."""
    process = start(config, output_dir)
    lines = [process.stdout.readline()]
    timer = threading.Timer(delay, process.kill) if delay is not None else None
    if timer:
        timer.start()
    lines += list(process.stdout)
    status = process.wait()
    if timer:
        timer.cancel()
    if status not in (0, -9):
        sys.exit(f"The pipeline ended with status {status}:\n{''.join(lines)[-5000:]}")
    return status == 0, "".join(lines)


def contents(output_dir: Path) -> dict[str, object]:
    """What must be the same: rows of datasets, weights of models, results without times."""
    found = {}
    for path in sorted(output_dir.rglob("*")):
        name = path.relative_to(output_dir).as_posix()
        if "checkpoint-" in name or path.is_symlink() or ".stages" in name:
            continue
        if path.name == "dataset_info.json":
            found[name] = load_from_disk(str(path.parent)).to_list()
        elif path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        elif "results" in path.parts and path.suffix == ".json":
            result = json.loads(path.read_text(encoding="utf-8"))
            found[name] = {key: value for key, value in result.items() if "second" not in key}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="A small pipeline.")
    parser.add_argument("--work_dir", type=Path, required=True, help="Folder of all runs.")
    parser.add_argument("--kills", type=int, default=30, help="Number of kills.")
    parser.add_argument("--longest", type=float, default=20.0, help="Longest time until a kill, in seconds.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the moments.")
    options = parser.parse_args()
    rng = random.Random(options.seed)

    run_until_killed(options.config, options.work_dir / "whole", None)
    expected = contents(options.work_dir / "whole")
    kills, rounds = 0, 0
    while kills < options.kills:
        rounds += 1
        output_dir, finished, kills_here = options.work_dir / f"killed-{rounds}", False, 0
        while not finished and kills < options.kills:
            finished, output = run_until_killed(options.config, output_dir, rng.uniform(0, options.longest))
            kills += not finished
            kills_here += not finished
            last = [line for line in output.splitlines() if "──" in line][-1:]
            print(f"{'finished' if finished else f'kill {kills}'}: {' '.join(last)}", flush=True)
        if not finished:
            run_until_killed(options.config, output_dir, None)
        found = contents(output_dir)
        different = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
        if different:
            sys.exit(f"{output_dir}: differs from the undisturbed run in {', '.join(sorted(different))}")
        print(f"{output_dir}: the same {len(found)} results after {kills_here} kills", flush=True)


if __name__ == "__main__":
    main()
