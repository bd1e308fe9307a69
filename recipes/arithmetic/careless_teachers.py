"""
Teachers that are wrong now and then, for the sweep: how much does the reward model need minimum edits?

Wrong numbers never get into the training set: the edit stage verifies answers and steps. What it cannot see is an edit
that is correct and not minimal. So a careless teacher gives up the attempt's words for a share of the attempts that it
corrects: it writes the solution anew with connectives of its own, and says that the first step was incorrect.
"""

import random

from rlmec_trl.tasks.arithmetic import CONNECTIVES, TASK, read_problem, write_solution


def _edit_carelessly(share, problems, references, completions):
    edits = TASK.editor(problems, references, completions)
    for index, (problem, completion) in enumerate(zip(problems, completions, strict=True)):
        # Seeded by the row, so that the edits do not depend on the order or the shards
        rng = random.Random(f"{problem}\n{completion}")
        if edits[index][0] >= 0 and rng.random() < share:
            numbers = read_problem(problem)
            edits[index] = (0, write_solution(numbers, [rng.choice(CONNECTIVES) for _ in numbers[1:]]))
    return edits


def careless_10(problems, references, completions):
    """The task's editor; a tenth of its corrections are written anew."""
    return _edit_carelessly(0.1, problems, references, completions)


def careless_30(problems, references, completions):
    """The task's editor; three tenths of its corrections are written anew."""
    return _edit_carelessly(0.3, problems, references, completions)
