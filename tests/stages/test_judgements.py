"""Which scores should be low, against samples whose errors are known."""

import math

import pytest
from datasets import Dataset

from rlmec_trl.data.tokens import encode_completion
from rlmec_trl.stages.judgements import judge_scores
from rlmec_trl.tasks.steps import check_stated_steps
from rlmec_trl.tasks.task import Task, load_task


PROBLEM = "Tom has 59 nuts, loses 16, finds 23, buys 20."
CORRECT = "59 - 16 is 43 ; 43 + 23 = 66 ; 66 + 20 makes 86 ; The answer is 86"
INCORRECT = "59 - 16 is 43 ; 43 + 23 = 67 ; 67 + 20 makes 87 ; The answer is 87"
FIRST_INCORRECT = 9 + 7  # a step has 9 tokens with its separator


def scored(tokenizer, *cases, **columns):
    rows = []
    for completion, probs in cases:
        ids = encode_completion(tokenizer, completion)
        probs = None if probs is None else [probs.get(position, 0.9) for position in range(len(ids))]
        row = {"prompt": PROBLEM, "reference": "59 - 16 + 23 + 20 = 86", "completion": completion}
        rows.append(row | {"completion_ids": ids, "token_probs": probs})
    return Dataset.from_list(rows)


def test_tokens_are_judged_up_to_the_first_incorrect_one(tokenizer):
    dataset = scored(tokenizer, (INCORRECT, {FIRST_INCORRECT: 0.1, 0: None}), (CORRECT, {}), (INCORRECT, None))
    judged = judge_scores(dataset, load_task("arithmetic"), tokenizer)
    length = len(dataset[1]["completion_ids"])
    assert judged.unit == "tokens"
    assert judged.correct.tolist() == [True] * FIRST_INCORRECT + [False] + [True] * length
    assert math.isnan(judged.probs[0]) and judged.probs[FIRST_INCORRECT] == pytest.approx(0.1)


def test_steps_have_the_lowest_probability_of_their_tokens(tokenizer):
    def check(problem, completion):
        return check_stated_steps(problem, completion, " ; ")

    wording = load_task("arithmetic").wording
    task = Task("own", check_answer=lambda *_: True, check_steps=check, wording=wording)
    dataset = scored(tokenizer, (INCORRECT, {FIRST_INCORRECT: 0.1, 3: 0.7, FIRST_INCORRECT + 3: 0.0}))
    judged = judge_scores(dataset, task, tokenizer)
    assert judged.unit == "steps"
    assert judged.probs.tolist() == pytest.approx([0.7, 0.1])
    assert judged.correct.tolist() == [True, False]


def test_a_task_that_checks_no_steps_judges_nothing(tokenizer):
    task = Task("own", check_answer=lambda *_: True)
    assert judge_scores(scored(tokenizer, (CORRECT, {})), task, tokenizer) is None
    dataset = scored(tokenizer, (CORRECT, {})).remove_columns("token_probs")
    assert judge_scores(dataset, load_task("arithmetic"), tokenizer) is None
