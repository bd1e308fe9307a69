"""A task's checks in the shape of TRL's reward functions."""

from dataclasses import replace

import pytest

from rlmec_trl.stages.outcomes import outcome_reward, rewrite_verifier
from rlmec_trl.tasks.task import Task, load_task
from rlmec_trl.tasks.wording import WORDING


@pytest.mark.parametrize("conversational", [False, True])
def test_the_reward_checks_the_answer_to_the_raw_problem(conversational):
    checked = []

    def check_answer(completion, answer, problem):
        checked.append((completion, answer, problem))
        return completion == answer

    task = Task("small", check_answer, replace(WORDING, policy="Solve this: {problem}"))
    texts = {"user": ["Solve this: 1 + 1"] * 2, "assistant": ["2", "3"]}
    if conversational:
        texts = {role: [[{"role": role, "content": text}] for text in column] for role, column in texts.items()}
    reward = outcome_reward(task)
    assert reward(prompts=texts["user"], completions=texts["assistant"], answer=["2", "2"]) == [1.0, 0.0]
    assert checked == [("2", "2", "1 + 1"), ("3", "2", "1 + 1")]


def test_a_rewrite_with_a_correct_answer_and_a_wrong_step_is_not_imitated():
    task = load_task("arithmetic")
    prompt = "Tom has 59 nuts, loses 16, finds 23, buys 20."
    good = "59 - 16 is 43 ; 43 + 23 = 66 ; 66 + 20 makes 86 ; The answer is 86"
    wrong_step = good.replace("= 66 ; 66", "= 56 ; 66")
    rewrites = [good, wrong_step, good.replace("86", "76")]
    verify = rewrite_verifier(task)
    assert verify(prompts=[prompt] * 3, completions=rewrites, answer=["86"] * 3, other=[0] * 3) == [True, False, False]
