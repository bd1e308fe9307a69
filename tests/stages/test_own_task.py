"""A user-defined task, checker and teacher, in a file outside the package, through every recipe."""

import json
from pathlib import Path

import pytest
from datasets import load_from_disk

from rlmec_trl.tasks.arithmetic import make_policy, make_tokenizer


ROOT = Path(__file__).parents[2]

# The policy is untrained and says anything, so this task asks for little: an odd or even number of digits.
TASK_FILE = '''
from rlmec_trl.tasks.answers import check_by_reward
from rlmec_trl.tasks.task import Task
from rlmec_trl.tasks.wording import Wording


def parity(completions, answer, **kwargs):
    """A reward function of TRL's kind."""
    digits = [sum(map(str.isdigit, completion[0]["content"])) for completion in completions]
    return [float(count % 2 == int(number) % 2) for count, number in zip(digits, answer)]


def check_steps(problem, completion):
    return [step != " makes" for step in completion.split(" ;")]


def read_row(row):
    return {"problem": row["story"], "reference": row["worked"], "answer": str(row["result"])}


def teacher(problems, references, completions):
    return [(0, reference) for reference in references]


WORDING = Wording(
    policy="{problem}",
    locate="{problem} reference {reference} attempt {attempt} locate :",
    rewrite="{problem} reference {reference} attempt {attempt} rewrite :",
    step_separator=" ;",
)
TASK = Task("digits", check_by_reward(parity), WORDING, read_row=read_row, check_steps=check_steps)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory, scripts):
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "mine.py").write_text(TASK_FILE, encoding="utf-8")
    rows = [
        {
            "story": f"Tom has {number} nuts.",
            "worked": f"{number} + {number}" + number % 2 * " + 1",
            "result": number,
            "level": "easy",
        }
        for number in range(10, 30)
    ]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tokenizer = make_tokenizer()
    policy = make_policy(tokenizer, hidden_size=16, num_hidden_layers=1)
    for part in (policy, tokenizer):
        part.save_pretrained(folder / "policy")

    def run(recipe, **settings):
        words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
        finished = scripts.run(ROOT / "recipes" / f"{recipe}.py", *words, cwd=folder)
        assert finished.exit_code == 0, finished.stdout[-1000:] + finished.stderr[-3000:]

    run("sample", task="mine.py:TASK", dataset_name="problems.jsonl", model_name_or_path="policy",
        output_dir="samples", temperature=1.0, top_p=1.0, max_new_tokens=64, num_samples=2)  # fmt: skip
    run("edit", task="mine:TASK", dataset_name="samples", output_dir="edits", teacher="mine:teacher")
    run("train_grm", task="mine.py:TASK", dataset_name="edits", model_name_or_path="policy", output_dir="grm",
        max_steps=1, per_device_train_batch_size=2, use_cpu=True, bf16=False, report_to="none")  # fmt: skip
    run("score", task="mine.py:TASK", dataset_name="samples", model_name_or_path="policy", grm="grm",
        output_dir="scored", locate_by="question", rewrite_max_new_tokens=8)  # fmt: skip
    run("evaluate", task="mine.py:TASK", dataset_name="problems.jsonl", model_name_or_path="policy",
        output_file="result.json", max_new_tokens=8)  # fmt: skip
    return folder


def has_parity(text, answer):
    return sum(map(str.isdigit, text)) % 2 == int(answer) % 2


def test_samples_are_read_and_checked_by_the_task(folder):
    samples = load_from_disk(folder / "samples")
    assert samples["correct"][:] == [has_parity(row["completion"], row["answer"]) for row in samples]
    assert 0 < sum(samples["correct"]) < len(samples)
    assert samples[0]["prompt"].startswith("Tom has 1") and samples[0]["reference"] == "10 + 10"
    assert set(samples["level"]) == {"easy"}, "columns that the task does not know are kept"


def test_edits_are_the_teachers_own(folder):
    edits = load_from_disk(folder / "edits")
    assert edits["rewrite"][:] == edits["reference"][:]
    assert set(edits["edit_outcome"]) == {"rewritten"}


def test_the_reward_model_keeps_the_tasks_wording(folder):
    wording = json.loads((folder / "grm" / "grm_wording.json").read_text(encoding="utf-8"))
    assert (wording["policy"], wording["step_separator"]) == ("{problem}", " ;")


def test_rewrites_are_verified_by_the_tasks_own_checks(folder):
    scored = load_from_disk(folder / "scored")
    verified = [row for row in scored if row["rewrite"] is not None]
    assert 0 < len(verified) < len(scored)
    for row in verified:
        assert has_parity(row["rewrite"], row["answer"])


def test_the_policy_is_evaluated_by_the_task(folder):
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["total"] == 20
    assert 0 < result["correct"] < 20
