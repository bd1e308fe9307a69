"""Greedy solving: what counts as correct, and that processes share the problems without losing one."""

import json

import pytest
from datasets import Dataset
from trl import ModelConfig

from rlmec_trl.data.errors import ConfigError
from rlmec_trl.data.tokens import encode_completion
from rlmec_trl.reports.accuracy import Accuracy
from rlmec_trl.stages import evaluate as solving
from rlmec_trl.stages.evaluate import (
    EvaluateConfig,
    Prediction,
    count_correct,
    describe_labels,
    describe_rationales,
    outcomes_of_rows,
    predict,
)
from rlmec_trl.stages.output import OutputError
from rlmec_trl.tasks.problems import ProblemConfig, load_problems
from rlmec_trl.tasks.task import Task, load_task


TASK = load_task("arithmetic")
PROBLEMS = Dataset.from_dict({"prompt": [f"problem {i}" for i in range(7)], "answer": [str(i) for i in range(7)]})


def solve(*args, **kwargs):
    return count_correct(predict(*args, **kwargs))


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
    shares = []
    monkeypatch.setattr(solving, "gather_object", lambda values: values)
    for index in range(num_processes):
        state = type("State", (), {"process_index": index, "num_processes": num_processes})
        monkeypatch.setattr(solving, "process_state", lambda state=state: state)
        shares.append(predict(None, tokenizer, PROBLEMS, TASK))
    assert sorted(prompt for prompts, _ in calls for prompt in prompts) == PROBLEMS["prompt"][:]
    # Gathered in the order of the processes, and returned in that of the rows
    monkeypatch.setattr(solving, "gather_object", lambda values: [one for share in shares for one in share])
    predictions = predict(None, tokenizer, PROBLEMS, TASK)
    assert [(one.row, one.answer) for one in predictions] == [(row, str(row)) for row in range(7)]
    assert count_correct(predictions) == Accuracy(5, 7)


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


# --- Labels ----------------------------------------------------------------------------------------------------------


STARS = Task("stars", labels=("1", "2", "3"))


def predictions_of(labels, answers):
    return [
        Prediction(row, "text", label, answer, label == answer)
        for row, (label, answer) in enumerate(zip(labels, answers, strict=True))
    ]


def test_the_label_of_each_row_is_read_beside_its_verdict(answer_with, tokenizer):
    problems = Dataset.from_dict({"prompt": ["a", "b", "c"], "answer": ["1", "2", "3"]})
    answer_with({"a": "1 ; The answer is 1", "b": "1 ; The answer is 3", "c": "1 ; The answer is 4"})
    task = Task("stars", labels=("1", "2", "3"))
    assert [(one.label, one.correct) for one in predict(None, tokenizer, problems, task)] == [
        ("1", True),
        ("3", False),
        (None, False),
    ]


def test_completions_without_a_label_are_counted_and_left_out_of_the_correlations():
    predictions = predictions_of(["1", None, "3", "2", None], ["1", "3", "3", "2", "1"])
    found = describe_labels(predictions, STARS)
    assert found == {"without_label": 2, "pearson": pytest.approx(1), "spearman": pytest.approx(1)}


def test_only_labels_that_are_numbers_have_correlations():
    moods = Task("mood", labels=("good", "bad"))
    assert describe_labels(predictions_of(["good", None], ["good", "bad"]), moods) == {"without_label": 1}
    assert describe_labels(predictions_of([None, None], ["1", "2"]), TASK) == {}


def test_a_correlation_that_is_undefined_is_none_and_can_be_written_as_json():
    found = describe_labels(predictions_of(["2", "2"], ["1", "2"]), STARS)
    assert (found["pearson"], found["spearman"]) == (None, None)


@pytest.fixture
def evaluated(tmp_path, policy, tokenizer, monkeypatch, answer_with):
    """Run the stage on three problems of `stsb`, in files."""
    pairs = [("A dog runs.", "A dog runs.", 5.0), ("A dog runs.", "A cat runs.", 2.5), ("A dog runs.", "No.", 0.2)]
    rows = [dict(zip(("sentence1", "sentence2", "label"), pair, strict=True)) for pair in pairs]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for part in (policy, tokenizer):
        part.save_pretrained(tmp_path / "policy")
    task = load_task("stsb")
    prompts = load_problems(ProblemConfig(str(tmp_path / "rows.jsonl")), task, tokenizer)["prompt"][:]
    stated = ["The answer is 4", "The answer is 3", "Who knows?"]
    monkeypatch.setattr(
        solving,
        "sample_completions",
        lambda model, processing_class, asked, **kwargs: [[stated[prompts.index(prompt)]] for prompt in asked],
    )
    monkeypatch.setattr(type(tokenizer), "decode", lambda self, text, **kwargs: text)

    def run(**settings):
        config = EvaluateConfig(task="stsb", **settings)
        dataset = ProblemConfig(str(tmp_path / "rows.jsonl"))
        return solving.run(config, dataset, ModelConfig(str(tmp_path / "policy"), dtype="float32"))

    return run


def test_the_result_of_numeric_labels_has_correlations_and_a_file_of_rows(evaluated, tmp_path, capsys):
    output, rows = tmp_path / "result.json", tmp_path / "rows" / "predictions.jsonl"
    for _ in range(2):  # an earlier result is replaced
        assert evaluated(output_file=str(output), predictions_file=str(rows)) == Accuracy(1, 3)
    result = json.loads(output.read_text())
    assert (result["correct"], result["total"], result["without_label"]) == (1, 3, 1)
    assert (result["pearson"], result["spearman"]) == (pytest.approx(1), pytest.approx(1))
    assert [json.loads(line) for line in rows.read_text().splitlines()] == [
        {"row": 0, "completion": "The answer is 4", "label": "4", "answer": "5", "correct": False, "rating": None},
        {"row": 1, "completion": "The answer is 3", "label": "3", "answer": "3", "correct": True, "rating": None},
        {"row": 2, "completion": "Who knows?", "label": None, "answer": "0", "correct": False, "rating": None},
    ]
    printed = capsys.readouterr().out
    assert "1 of 3 completions state no label" in printed
    assert "Correlation of the other 2: Pearson 1.000, Spearman 1.000" in printed


def test_a_predictions_file_that_is_something_else_is_kept(evaluated, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"row": 0, "completion": "x", "label": "1", "answer": "1", "correct": true, "mine": 1}\n')
    with pytest.raises(OutputError, match="mine.jsonl' exists and is not a result .* another `--predictions_file`"):
        evaluated(predictions_file=str(path))
    assert '"mine"' in path.read_text()


def test_one_file_cannot_hold_both_results():
    with pytest.raises(ConfigError, match="`output_file` and `predictions_file` are both 'a.json'"):
        EvaluateConfig(task="stsb", output_file="a.json", predictions_file="a.json")
    with pytest.raises(ConfigError, match="are both 'a.json'"):
        EvaluateConfig(task="stsb", output_file="a.json", predictions_file="./a.json")


# --- Outcomes of rows ------------------------------------------------------------------------------------------------


def test_the_outcome_of_each_row_is_kept_in_the_order_of_the_rows(evaluated, tmp_path):
    evaluated(output_file=str(tmp_path / "result.json"))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["outcomes"] == "010"
    evaluated(output_file=str(tmp_path / "again.json"))
    assert json.loads((tmp_path / "again.json").read_text())["problems"] == result["problems"]


def test_a_result_of_an_earlier_version_without_outcomes_is_replaced(evaluated, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"correct": 1, "total": 3, "mean": 1 / 3, "interval": [0.06, 0.79]}))
    evaluated(output_file=str(path))
    assert json.loads(path.read_text())["outcomes"] == "010"


def test_problems_are_the_same_with_another_chat_template_and_others_in_another_order():
    task = load_task("gsm8k")
    texts = [task.wording.policy.format(problem=f"What is {i} + 1?") for i in range(3)]
    predictions = [Prediction(row, "text", None, str(row + 1), row == 1) for row in range(3)]

    def problems_of(prompts, answers=("1", "2", "3")):
        rows = Dataset.from_dict({"prompt": prompts, "answer": list(answers)})
        return outcomes_of_rows(predictions, rows, task)["problems"]

    expected = problems_of(texts)
    chats = [[{"role": "system", "content": "Think."}, {"role": "user", "content": text}] for text in texts]
    assert problems_of(chats) == expected
    others = [problems_of(texts[::-1]), problems_of(texts, "124"), problems_of([*texts[:2], "What is 2 + 2?"])]
    assert len({expected, *others}) == 4


# --- Rationales ------------------------------------------------------------------------------------------------------


def test_perfect_rationales_are_counted_and_those_of_correct_answers(answer_with, tokenizer):
    texts = {
        "a": "1 ; The answer is 1",
        "b": "2 ; The answer is 1",
        "c": "1 ; The answer is 3",
        "d": "3 ; The answer is 1",
    }
    problems = Dataset.from_dict({"prompt": list(texts), "answer": ["1", "1", "1", "1"]})
    answer_with(texts)

    def rate(problem, response):
        return 2.0 if response.startswith("1 ;") else 0.5

    task = Task("stars", labels=("1", "2", "3"), rate=rate, perfect_rating=2.0)
    predictions = predict(None, tokenizer, problems, task)
    assert [(one.correct, one.rating) for one in predictions] == [(True, 2.0), (True, 0.5), (False, 2.0), (True, 0.5)]
    result = describe_rationales(predictions, task)
    assert result == {"rating": 1.25, "perfect": 2, "correct_and_perfect": 1}
    assert describe_rationales(predictions, STARS) == {}
    with pytest.raises(ConfigError, match="has a `perfect_rating` and no `rate`"):
        Task("stars", labels=("1", "2"), perfect_rating=2.0)
