"""A task's checks in the shape of TRL's reward functions."""

from collections.abc import Callable

from ..data.messages import message_text
from ..tasks.task import Task
from ..teachers.editors import verify_rewrite


def outcome_reward(task: Task) -> Callable[..., list[float]]:
    """
    Reward function that gives 1 to a correct answer, and 0 to an incorrect one. The dataset needs the column `answer`.
    """

    def outcome(prompts, completions, answer, **kwargs) -> list[float]:
        return [
            float(task.is_correct(message_text(completion), correct, task.raw_problem(prompt)))
            for prompt, completion, correct in zip(prompts, completions, answer, strict=True)
        ]

    return outcome


def rewrite_verifier(task: Task) -> Callable[..., list[bool]]:
    """
    Function that decides which rewrites [`~rlmec_trl.OnlineRLMECTrainer`] imitates: those with a correct answer, and
    with correct steps where the task can check them. The dataset needs the column `answer`.
    """

    def verify(prompts, completions, answer, **kwargs) -> list[bool]:
        return [
            verify_rewrite(task, task.raw_problem(prompt), correct, message_text(completion)) is None
            for prompt, completion, correct in zip(prompts, completions, answer, strict=True)
        ]

    return verify
