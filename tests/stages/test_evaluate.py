"""Greedy solving: what counts as correct, and that processes share the problems without losing one."""

import pytest
from datasets import Dataset

from rlmec_trl.data.tokens import encode_completion
from rlmec_trl.reports.accuracy import Accuracy
from rlmec_trl.stages import evaluate as solving
from rlmec_trl.stages.evaluate import solve
from rlmec_trl.tasks.task import Task, load_task


TASK = load_task("arithmetic")
PROBLEMS = Dataset.from_dict({"prompt": [f"problem {i}" for i in range(7)], "answer": [str(i) for i in range(7)]})


@pytest.fixture
def answer_with(monkeypatch, tokenizer):
    """Let the policy solve each problem with a given text, or given ids; returns what sampling was called with."""

    def install(solutions):
        calls = []

        def sample(model, processing_class, prompts, **kwargs):
            calls.append((list(prompts), kwargs))
            texts = [solutions[prompt] for prompt in prompts]
            return [[encode_completion(tokenizer, text) if isinstance(text, str) else text] for text in texts]

        monkeypatch.setattr(solving, "sample_completions", sample)
        return calls

    return install


def solutions_with(num_correct):
    return {row["prompt"]: f"1 ; The answer is {i if i < num_correct else 99}" for i, row in enumerate(PROBLEMS)}


@pytest.mark.parametrize("num_correct", [0, 4, 7])
def test_correct_answers_are_counted(answer_with, tokenizer, num_correct):
    calls = answer_with(solutions_with(num_correct))
    assert solve(None, tokenizer, PROBLEMS, TASK, max_new_tokens=9, batch_size=3) == Accuracy(num_correct, 7)
    ((prompts, kwargs),) = calls
    assert prompts == PROBLEMS["prompt"][:]
    assert (kwargs["temperature"], kwargs["num_samples"]) == (0.0, 1)
    assert (kwargs["max_new_tokens"], kwargs["batch_size"]) == (9, 3)


def test_a_truncated_completion_counts_by_what_it_says(answer_with, tokenizer):
    solutions = solutions_with(0)
    solutions["problem 2"] = tokenizer("1 ; The answer is 2")["input_ids"]
    solutions["problem 3"] = tokenizer("1 ; The answer is")["input_ids"]
    answer_with(solutions)
    assert solve(None, tokenizer, PROBLEMS, TASK) == Accuracy(1, 7)


@pytest.mark.parametrize("num_processes", [2, 3, 10])
def test_processes_share_the_problems(answer_with, tokenizer, monkeypatch, num_processes):
    calls = answer_with(solutions_with(5))
    counts = []
    for index in range(num_processes):
        state = type("State", (), {"process_index": index, "num_processes": num_processes})
        monkeypatch.setattr(solving, "process_state", lambda state=state: state)
        monkeypatch.setattr(solving, "gather_object", lambda values: values)
        accuracy = solve(None, tokenizer, PROBLEMS, TASK)
        assert accuracy.total == 7, "of all problems, on every process"
        counts.append(accuracy.correct)
    assert sum(counts) == 5
    assert sorted(prompt for prompts, _ in calls for prompt in prompts) == PROBLEMS["prompt"][:]
    monkeypatch.setattr(solving, "gather_object", lambda values: counts)
    assert solve(None, tokenizer, PROBLEMS, TASK) == Accuracy(5, 7)


def test_a_policy_solves_greedily(policy, tokenizer, make_rows):
    problems = Dataset.from_list(make_rows(5)).select_columns(["prompt", "answer"])
    answers = []

    def check(completion, answer, problem):
        answers.append((completion, answer))
        return answer == problems[0]["answer"]

    task = Task("stub", check)
    first, second = (solve(policy, tokenizer, problems, task, max_new_tokens=6, batch_size=2) for _ in range(2))
    assert first == second == Accuracy(1, 5)
    assert answers[:5] == answers[5:], "the same completions each time"
    assert [answer for _, answer in answers[:5]] == problems["answer"][:]
    assert all(len(tokenizer(completion)["input_ids"]) <= 6 for completion, _ in answers)
