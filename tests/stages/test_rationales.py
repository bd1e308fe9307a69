"""The rationales stage: which labels are justified, by whom, what is saved, and that nothing is done twice."""

import json
import signal
from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk
from trl import ModelConfig

from rlmec_trl.data.schema import DatasetError
from rlmec_trl.generation.server import ServerConfig
from rlmec_trl.stages import rationales
from rlmec_trl.stages.output import OutputError
from rlmec_trl.stages.rationales import RationalesConfig
from rlmec_trl.stages.runner import EmptyResultError
from rlmec_trl.tasks import verdicts
from rlmec_trl.tasks.problems import ProblemConfig
from rlmec_trl.teachers.api.config import TeacherConfig
from tests.fake_openai import FakeServer


RECIPE = Path(__file__).parents[2] / "recipes" / "rationales.py"
LABELS = ("World", "Sports", "Business", "Sci/Tech")
# Writes down which labels it was asked for, and may stop a run in its middle
TEACHER = """
from pathlib import Path

HERE = Path(__file__).parent

def justify(problems, labels):
    if (HERE / "broken").exists() and "text 4" in problems[0]:
        raise OSError("no connection")
    with open(HERE / "asked", "a") as file:
        file.writelines(f"{label}\\n" for label in labels)
    (HERE / f"shard {problems[0][:6]}").touch()
    return [f"It says so: {problem}\\nThe answer is {label}" for problem, label in zip(problems, labels)]
"""


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def problem(index, answer=None, **more):
    return {"prompt": f"text {index}", "answer": answer or LABELS[index % 4], "source": "news", **more}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_rows(tmp_path / "problems.jsonl", [problem(index) for index in range(6)])
    (tmp_path / "mine.py").write_text(TEACHER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*configs, name="problems.jsonl", problems=None, **settings):
    settings = {"output_dir": "out", "task": "ag_news", "teacher": "mine.py:justify", "shard_size": 4} | settings
    return rationales.run(RationalesConfig(**settings), problems or ProblemConfig(name), *configs)


def asked():
    path = Path("asked")
    return path.read_text().split("\n")[:-1] if path.exists() else []


# --- Which labels ----------------------------------------------------------------------------------------------------


def test_gold_labels_are_data_for_fine_tuning(folder):
    found = run()
    assert found["label"][:] == found["answer"][:]
    assert found["correct"][:] == [True] * 6
    assert found["source"][:] == ["news"] * 6
    assert found[1]["completion"] == "It says so: text 1\nThe answer is Sports"
    assert load_from_disk("out").to_list() == found.to_list()


def test_wrong_labels_are_all_others_and_never_correct(folder):
    found = run(labels="wrong")
    by_prompt = {prompt: set() for prompt in found["prompt"]}
    for row in found:
        by_prompt[row["prompt"]].add(row["label"])
        assert row["label"] != row["answer"] and not row["correct"] and row["completion"].endswith(row["label"])
    assert [len(labels) for labels in by_prompt.values()] == [3] * 6


def test_all_labels_begin_with_the_correct_one(folder):
    found = run(labels="all", max_problems=2)
    assert len(found) == 8
    assert [row["label"] == row["answer"] for row in found] == [True, False, False, False] * 2


def sample(index, label, answer=None):
    return problem(index, answer, completion=f"So.\nThe answer is {label}", completion_ids=[1, 2], correct=True)


def test_the_confusable_label_is_what_the_policys_samples_state_most_often(folder):
    samples = [sample(0, label) for label in ("Business", "World", "Sports", "World", "Sports")]
    samples += [sample(1, label) for label in ("Sports", "Sports", "neither")]  # no wrong label: as for its answer
    samples += [sample(5, "Business"), sample(5, "World"), sample(5, "Business")]
    samples += [sample(2, "Business")]  # no wrong label for its answer at all
    write_rows(folder / "samples.jsonl", samples)
    found = run(labels="confusable", name="samples.jsonl")
    assert {row["prompt"]: row["label"] for row in found} == {
        "text 0": "Sports",
        "text 1": "Business",
        "text 5": "Business",
    }
    assert "completion_ids" not in found.column_names, "what is about a sample is not about a rationale"


def test_confusable_labels_need_samples(folder):
    with pytest.raises(DatasetError, match="Column 'completion' is missing"):
        run(labels="confusable")
    write_rows(folder / "samples.jsonl", [sample(0, "World")])
    with pytest.raises(EmptyResultError, match="the samples state no wrong label"):
        run(labels="confusable", name="samples.jsonl")


def test_a_task_of_one_label_has_no_wrong_one_to_justify(folder):
    (folder / "task.py").write_text("from rlmec_trl.tasks.task import Task\nTASK = Task('one', labels=('World',))\n")
    write_rows(folder / "world.jsonl", [problem(0)])
    with pytest.raises(EmptyResultError, match="task 'one' has no label but the answer.* Choose `--labels gold`"):
        run(name="world.jsonl", task="task.py:TASK", labels="wrong")


def test_samples_of_a_problem_are_one_problem(folder):
    write_rows(folder / "samples.jsonl", [sample(0, "World"), sample(0, "Sports"), sample(1, "Sports")])
    assert run(name="samples.jsonl")["prompt"][:] == ["text 0", "text 1"]


# --- Who writes, and what is saved -----------------------------------------------------------------------------------


def test_messages_get_messages(folder):
    prompts = [[{"role": "user", "content": f"text {index}"}] for index in range(3)]
    write_rows(folder / "chats.jsonl", [{"prompt": prompt, "answer": "World"} for prompt in prompts])
    found = run(name="chats.jsonl", labels="all", max_problems=1)
    assert found[1]["completion"] == [{"role": "assistant", "content": "It says so: text 0\nThe answer is Sports"}]


def test_raw_problems_get_the_prompts_of_the_policy(folder, chat_tokenizer):
    write_rows(folder / "raw.jsonl", [{"text": "A match.", "label": 1}])
    with pytest.raises(ValueError, match="Name the policy with `--policy`"):
        run(name="raw.jsonl")
    chat_tokenizer.save_pretrained(folder / "policy")
    (row,) = run(name="raw.jsonl", policy="policy")
    assert row["prompt"][0]["role"] == "user" and "A match." in row["prompt"][0]["content"]
    assert (row["answer"], row["label"]) == ("Sports", "Sports")


def test_the_built_in_task_justifies_every_verdict_without_a_flaw(tmp_path):
    splits = verdicts.make_verdicts(0, warmup=2, train=20, validation=2, test=2, pairs=2)
    splits["train"].save_to_disk(tmp_path / "train")
    config = RationalesConfig(str(tmp_path / "out"), "verdicts", "task", labels="all")
    found = rationales.run(config, ProblemConfig(str(tmp_path / "train")))
    assert found["rationale_outcome"][:] == ["accepted"] * 40
    checks = [verdicts.check_response(row["prompt"], row["completion"]) for row in found]
    assert all(check.perfect for check in checks)
    assert [check.label for check in checks] == found["correct"][:]


def test_a_run_resumes_where_its_teacher_failed_and_asks_for_nothing_twice(folder):
    (folder / "broken").touch()
    with pytest.raises(ValueError, match="no connection"):
        run()
    assert asked() == ["World", "Sports", "Business", "Sci/Tech"]
    (folder / "broken").unlink()
    found = run()
    assert asked() == found["label"][:]
    run()
    assert len(asked()) == 6, "a finished run asks for nothing"
    # Another version of the teacher is another teacher
    (folder / "mine.py").write_text(TEACHER.replace("It says so", "Look"))
    assert run()[0]["completion"].startswith("Look")
    assert len(asked()) == 12


def test_a_result_without_a_rationale_is_refused_and_the_earlier_one_stays(folder):
    before = run().to_list()
    (folder / "mine.py").write_text(
        "def justify(problems, labels):\n    return ['The answer is World'] * len(labels)\n"
    )
    with pytest.raises(
        EmptyResultError, match=r"of any of 6 labels \(wrong label: 4, no rationale: 2\)\. Nothing was"
    ):
        run()
    assert load_from_disk("out").to_list() == before


@pytest.mark.parametrize(
    ("settings", "configs", "message"),
    [
        ({"task": "gsm8k"}, (), "Task 'gsm8k' has no labels"),
        ({"teacher": "task"}, (), "Task 'ag_news' has no writer of rationales"),
        ({"dry_run": True}, (), "`--dry_run` need `--provider server`"),
        ({"teacher": "nowhere.py:justify"}, (), "no file 'nowhere.py'"),
        ({"teacher": "a/model"}, (None, None, ModelConfig("a/policy")), "the policy with `--policy`"),
        ({"provider": "server", "teacher": "m", "journal_dir": "out/journal"}, (), "lies in `--output_dir`"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_before_any_work(folder, settings, configs, message):
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(ValueError, match=message):
        run(*configs, **settings)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_rows_whose_answer_is_no_label_are_refused(folder):
    write_rows(folder / "odd.jsonl", [problem(0), problem(1, answer="Weather")])
    with pytest.raises(DatasetError, match="Row 1, column 'answer': found 'Weather', which is none of the labels"):
        run(name="odd.jsonl")
    assert asked() == []


# --- API teachers ----------------------------------------------------------------------------------------------------


def test_an_api_teacher_answers_each_label_once_whatever_is_justified_later(folder, tokenizer):
    def chat(body):
        label = body["messages"][-1]["content"].split("<label>\n")[1].split("\n")[0]
        return json.dumps({"response": f"It says so.\nThe answer is {label}"}), "stop"

    with FakeServer(tokenizer, chat=chat) as server:
        api = (TeacherConfig(), ServerConfig(server.url))
        assert run(*api, provider="server", teacher="policy", dry_run=True) is None
        assert not server.exchanges and not (folder / "out").exists()
        gold = run(*api, provider="server", teacher="policy")
        assert len(server.exchanges) == 6
        found = run(*api, provider="server", teacher="policy", labels="all")
        assert len(server.exchanges) == 24
    assert found.filter(lambda row: row["correct"]).to_list() == gold.to_list()


def test_a_folder_of_the_users_is_refused_before_a_teacher_is_paid(folder, tokenizer):
    (folder / "out").mkdir()
    (folder / "out" / "thesis.tex").write_text("mine")
    with FakeServer(tokenizer, chat=lambda body: ("", "stop")) as server:
        with pytest.raises(OutputError, match="thesis.tex"):
            run(TeacherConfig(), ServerConfig(server.url), provider="server", teacher="policy")
        assert not server.exchanges


# --- The recipe ------------------------------------------------------------------------------------------------------

WORDS = ["--task", "ag_news", "--dataset_name", "problems.jsonl", "--labels", "all", "--output_dir", "out"]
WORDS += ["--teacher", "mine.py:justify", "--shard_size", "4"]


def test_the_recipe_resumes_after_a_kill(folder, scripts):
    killed = scripts.run(RECIPE, *WORDS, cwd=folder, kill=signal.SIGKILL, when="shard text 2")
    assert killed.exit_code == -signal.SIGKILL and not (folder / "out").exists()
    finished = scripts.run(RECIPE, *WORDS, cwd=folder)
    assert finished.exit_code == 0, finished.stderr[-3000:]
    assert "24 of 24 labels have a verified rationale" in finished.stdout
    assert max(Counter(asked()).values()) <= 6 + 2, "at most one shard, with each label once, was asked for again"
    found = load_from_disk(folder / "out").to_list()
    assert found == run(labels="all", output_dir="alone").to_list()


def test_two_processes_give_the_result_of_one(folder, run_on_two):
    run_on_two(RECIPE, *WORDS, cwd=folder)
    assert len(asked()) == 24
    assert load_from_disk(folder / "out").to_list() == run(labels="all", output_dir="alone").to_list()


def test_the_recipe_reports_what_the_user_has_to_fix(folder, scripts):
    finished = scripts.run(RECIPE, *WORDS, "--task", "gsm8k", cwd=folder)
    assert finished.exit_code == 1 and "Traceback" not in finished.stderr
    assert "ConfigError: Task 'gsm8k' has no labels." in finished.stderr


def test_gold_rationales_are_read_for_fine_tuning(folder):
    from rlmec_trl.data.imitation import prompt_completion_rows

    (folder / "mine.py").write_text(TEACHER.replace('{label}" for', "{label}\" if label == 'World' else '' for"))
    rows = prompt_completion_rows(run(labels="all"), only_correct=True)
    assert rows["prompt"][:] == ["text 0", "text 4"]
    assert isinstance(rows, Dataset)
