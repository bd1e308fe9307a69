"""
Edit the samples in a folder, or justify its labels, with a teacher at Anthropic, again and again, in processes that a
test kills.

Each line on the standard input starts a run: a JSON list of the work (`"edit"` or `"justify"`), the folder, the
server's address, and whether to use batches. The worker prints the run's process id and, when it has ended, its exit
code. Runs are forks of a process that has imported everything, so that a kill interrupts the work and not the imports.

python tests/survival_worker.py
"""

import json
import os
import sys
import traceback
from pathlib import Path

import anthropic  # noqa: F401  (the teacher would import it in each run)
from datasets import load_from_disk

from rlmec_trl.generation.server import ServerConfig
from rlmec_trl.tasks.task import load_task
from rlmec_trl.teachers.anthropic_teacher import AnthropicTeacher
from rlmec_trl.teachers.api.config import TeacherConfig
from rlmec_trl.teachers.api.journal import Journal
from rlmec_trl.teachers.journaled_editor import JournaledEditor, edit_through_journal
from rlmec_trl.teachers.journaled_justifier import JournaledJustifier, justify_through_journal


CONCURRENCY = 4


def edit(folder, base_url, use_batches):
    """One run, from the samples to the edited samples."""
    task = load_task("arithmetic")
    config = TeacherConfig(use_batches=use_batches, questions_per_batch=10, poll_seconds=0.01)
    server_config = ServerConfig(base_url=base_url, concurrency=CONCURRENCY)
    with Journal(Path(folder) / "journal") as journal:
        editor = JournaledEditor(AnthropicTeacher("claude-test", journal, config, server_config), task.wording)
        edited, _ = edit_through_journal(load_from_disk(f"{folder}/samples"), editor, task)
    edited.save_to_disk(f"{folder}/edited")


def justify(folder, base_url, use_batches):
    """One run, from the labels in a folder to rationales."""
    task = load_task("verdicts")
    config = TeacherConfig(use_batches=use_batches, questions_per_batch=10, poll_seconds=0.01)
    server_config = ServerConfig(base_url=base_url, concurrency=CONCURRENCY)
    with Journal(Path(folder) / "journal") as journal:
        teacher = AnthropicTeacher("claude-test", journal, config, server_config)
        labels = load_from_disk(f"{folder}/labels")
        justified, _ = justify_through_journal(labels, JournaledJustifier(teacher, task.wording), task)
    justified.save_to_disk(f"{folder}/rationales")


if __name__ == "__main__":
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            exit_code = 1
            try:
                work, *arguments = json.loads(line)
                {"edit": edit, "justify": justify}[work](*arguments)
                exit_code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                # Skips the exit handlers of the parent process
                os._exit(exit_code)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
