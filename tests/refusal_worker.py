"""
Trainings that are refused on two processes: both end, and neither waits for the other.

accelerate launch tests/on_two.py tests/refusal_worker.py FOLDER
"""

import sys
from pathlib import Path

from transformers import TrainingArguments

from rlmec_trl.data.errors import UserError
from rlmec_trl.generation.processes import end_processes
from rlmec_trl.stages.training import training_run


def how_it_ends(output_dir, **settings):
    args = TrainingArguments(output_dir=str(output_dir), use_cpu=True, report_to="none", **settings)
    try:
        with training_run(args):
            return args.process_index, "began"
    except UserError as error:
        return args.process_index, type(error).__name__
    except SystemExit as stop:
        return args.process_index, stop.code


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    ends = [
        how_it_ends(folder / "run", resume_from_checkpoint="nowhere"),
        how_it_ends(folder / "run", resume_from_checkpoint="true"),
        how_it_ends(folder / "of others"),
        how_it_ends("."),
        how_it_ends(folder / "run"),
    ]
    index = ends[0][0]
    (folder / f"ends-{index}.txt").write_text("\n".join(str(end) for _, end in ends), encoding="utf-8")
    end_processes()
