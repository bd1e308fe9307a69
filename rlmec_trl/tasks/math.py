"""
MATH: competition problems with worked solutions, the answer in a LaTeX box. The task also reads your own rows
with `problem`, `solution` and, optionally, `answer`.
"""

from .answers import check_math
from .steps import check_stated_steps
from .task import Task


SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)

TASK = Task(
    "math",
    check_math,
    hub_id="EleutherAI/hendrycks_math",
    hub_configs=SUBJECTS,
    splits=("train", "test"),
    check_steps=check_stated_steps,
)
