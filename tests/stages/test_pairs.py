"""The pairs stage: which responses make a pair, what is counted, and that nothing is done twice."""

import json
import random
import signal
from collections import Counter
from pathlib import Path

import pytest
from datasets import load_from_disk
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.data.schema import DatasetError
from rlmec_trl.generation.server import ServerConfig
from rlmec_trl.stages import pairs, rationales
from rlmec_trl.stages.output import OutputError
from rlmec_trl.stages.pairing import Responses, label_pairs, rationale_pairs
from rlmec_trl.stages.pairs import PairsConfig
from rlmec_trl.stages.runner import EmptyResultError
from rlmec_trl.tasks import verdicts
from rlmec_trl.tasks.problems import ProblemConfig
from rlmec_trl.teachers.api.config import TeacherConfig
from rlmec_trl.teachers.raters import NoRating
from tests.fake_openai import FakeServer


RECIPE = Path(__file__).parents[2] / "recipes" / "pairs.py"
COLUMNS = ["prompt", "chosen", "rejected", "kind", "chosen_label", "rejected_label", "answer"]
# The longer, the better; writes down what it was asked for, and may stop a run in its middle
RATER = """
from pathlib import Path

HERE = Path(__file__).parent

def rate(problems, responses):
    if (HERE / "broken").exists() and "text 4" in problems:
        raise OSError("no connection")
    with open(HERE / "asked", "a") as file:
        file.writelines(f"{problem}\\n" for problem in problems)
    if problems:
        (HERE / f"shard {problems[0]}").touch()
    return [len(response) for response in responses]
"""


# --- Which responses make a pair -------------------------------------------------------------------------------------

RESPONSES = Responses(["a1", "b1", "a2", "c1", "b2"], ["a", "b", "a", "c", "b"])


def test_label_pairs_are_the_correct_label_over_each_wrong_one():
    found, outcome = label_pairs(RESPONSES, "a", ["b", "c"], None, random.Random(0))
    assert sorted(found) == [(0, 1), (0, 3), (0, 4), (2, 1), (2, 3), (2, 4)] and outcome == "paired"
    assert {RESPONSES.labels[wrong] for _, wrong in label_pairs(RESPONSES, "a", ["c"], None, random.Random(0))[0]} == {
        "c"
    }


def test_wrong_labels_take_turns():
    many = Responses([str(index) for index in range(12)], ["a"] * 2 + ["b"] * 9 + ["c"])
    for seed in range(5):
        found, _ = label_pairs(many, "a", ["b", "c"], 4, random.Random(seed))
        assert Counter(many.labels[rejected] for _, rejected in found) == {"b": 2, "c": 2}


@pytest.mark.parametrize(
    ("answer", "wrong", "outcome"),
    [
        ("d", ["a", "b"], "no correct response"),
        ("a", ["d"], "no response with a wrong label"),
        ("a", [], "no response with a wrong label"),
    ],
)
def test_a_problem_without_a_label_pair_says_why(answer, wrong, outcome):
    assert label_pairs(RESPONSES, answer, wrong, None, random.Random(0)) == ([], outcome)


def test_rationale_pairs_have_one_label_and_no_ties():
    ratings = [1.0, 3.0, 2.0, None, 3.0]
    assert rationale_pairs(RESPONSES, ratings, None, random.Random(0)) == ([(2, 0)], "paired")


@pytest.mark.parametrize(
    ("ratings", "outcome"),
    [
        ([1.0, 2.0, 1.0, None, 2.0], "ties"),
        ([1.0, NoRating("refusal"), NoRating("refusal"), None, 2.0], "no two rated responses with the same label"),
    ],
)
def test_a_problem_without_a_rationale_pair_says_why(ratings, outcome):
    assert rationale_pairs(RESPONSES, ratings, None, random.Random(0)) == ([], outcome)
    alone = Responses(["a1", "b1"], ["a", "b"])
    assert rationale_pairs(alone, [None, None], None, random.Random(0))[1] == "no two responses with the same label"


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=8), st.integers(1, 5), st.integers(0, 9)
)
def test_pairs_are_what_they_say_whatever_the_responses(drawn, max_pairs, seed):
    responses = Responses([str(index) for index in range(len(drawn))], [label for label, _ in drawn])
    ratings = [float(rating) for _, rating in drawn]
    by_label, _ = label_pairs(responses, "a", ["b", "c"], max_pairs, random.Random(seed))
    by_rating, _ = rationale_pairs(responses, ratings, max_pairs, random.Random(seed))
    for found in (by_label, by_rating):
        assert len(set(found)) == len(found) <= max_pairs
    assert all(drawn[chosen][0] == "a" != drawn[rejected][0] for chosen, rejected in by_label)
    assert all(
        drawn[chosen][0] == drawn[rejected][0] and drawn[chosen][1] > drawn[rejected][1]
        for chosen, rejected in by_rating
    )
    assert label_pairs(responses, "a", ["b", "c"], max_pairs, random.Random(seed))[0] == by_label


# --- The stage -------------------------------------------------------------------------------------------------------


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sample(index, words, label, answer="positive", **more):
    return {"prompt": f"text {index}", "answer": answer, "completion": f"{words}\nThe answer is {label}", **more}


def rationale(index, label, answer="positive", outcome="accepted"):
    row = sample(index, "A reason.", label, answer) | {"label": label, "rationale_outcome": outcome}
    return row | ({} if outcome == "accepted" else {"completion": None})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    rows = [rationale(index, label) for index in range(6) for label in ("positive", "negative")]
    write_rows(tmp_path / "rationales.jsonl", rows)
    words = [("Good.", "positive"), ("Very good.", "positive"), ("Dull.", "negative"), ("Hm.", "neither")]
    write_rows(tmp_path / "samples.jsonl", [sample(index, *each) for index in range(6) for each in words])
    (tmp_path / "mine.py").write_text(RATER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*configs, names=("rationales.jsonl",), **settings):
    settings = {"output_dir": "out", "task": "sst2", "shard_size": 4} | settings
    return pairs.run(PairsConfig(dataset_names=list(names), **settings), *configs)


def asked():
    path = Path("asked")
    return path.read_text().split("\n")[:-1] if path.exists() else []


def test_rationales_become_label_pairs_in_trls_format(folder, capsys):
    found = run()
    assert found.column_names == COLUMNS and len(found) == 6
    assert found[0] == {
        "prompt": "text 0",
        "chosen": "A reason.\nThe answer is positive",
        "rejected": "A reason.\nThe answer is negative",
        "kind": "label",
        "chosen_label": "positive",
        "rejected_label": "negative",
        "answer": "positive",
    }
    assert load_from_disk("out").to_list() == found.to_list()
    printed = capsys.readouterr().out
    assert "6 label pairs of 6 problems (now for label pairs: paired: 6; responses left out: none)." in printed


def test_everything_that_makes_no_pair_is_counted(folder, capsys):
    more = [rationale(0, "positive"), rationale(7, "positive", outcome="wrong label"), rationale(8, "negative")]
    write_rows(folder / "more.jsonl", more)
    run(names=("rationales.jsonl", "samples.jsonl", "more.jsonl"), kind="both", rater="mine.py:rate")
    printed = capsys.readouterr().out
    assert "24 label pairs and 24 rationale pairs of 7 problems (" in printed
    assert "now for label pairs: paired: 6, no correct response: 1;" in printed
    assert "now for rationale pairs: paired: 6, no two responses with the same label: 1;" in printed
    assert "responses left out: no label: 6, wrong label: 1, duplicate: 1" in printed


def test_rationale_pairs_are_ranked_by_a_function_of_the_users(folder):
    found = run(names=("rationales.jsonl", "samples.jsonl"), kind="rationale", rater="mine.py:rate", max_pairs=None)
    assert set(found["kind"]) == {"rationale"} and found["chosen_label"][:] == found["rejected_label"][:]
    assert all(len(row["chosen"]) > len(row["rejected"]) for row in found)
    # Three positive responses of different lengths, and two negative ones
    assert Counter(found["prompt"]) == {f"text {index}": 4 for index in range(6)}
    assert Counter(found["chosen_label"]) == {"positive": 18, "negative": 6}


def test_the_confusable_label_is_the_policys(folder):
    labels = ("World", "Sports", "Business", "Sci/Tech")
    write_rows(folder / "news.jsonl", [rationale(0, label, "World") for label in labels])
    stated = ["Business", "World", "Sports", "Business"]
    write_rows(folder / "policy.jsonl", [sample(0, f"Sample {n}.", label, "World") for n, label in enumerate(stated)])
    settings = {"task": "ag_news", "max_pairs": None}
    assert set(run(names=["news.jsonl"], **settings)["rejected_label"]) == {"Sports", "Business", "Sci/Tech"}
    found = run(names=["news.jsonl", "policy.jsonl"], rejected_labels="confusable", **settings)
    assert set(found["rejected_label"]) == {"Business"} and len(found) == 6
    with pytest.raises(ValueError, match="counts the labels in samples of the policy"):
        run(names=["news.jsonl"], rejected_labels="confusable", **settings)


def test_messages_become_messages(folder):
    rows = [rationale(0, label) for label in ("positive", "negative")]
    for row in rows:
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
        row["completion"] = [{"role": "assistant", "content": row["completion"]}]
        row["chat_template_kwargs"] = {"enable_thinking": False}
    write_rows(folder / "chats.jsonl", rows)
    (pair,) = run(names=["chats.jsonl"])
    assert pair["prompt"] == [{"role": "user", "content": "text 0"}]
    assert pair["rejected"] == [{"role": "assistant", "content": "A reason.\nThe answer is negative"}]
    assert pair["chat_template_kwargs"] == {"enable_thinking": False}
    with pytest.raises(DatasetError, match="Some prompts of 'rationales.jsonl', 'chats.jsonl' are strings"):
        run(names=["rationales.jsonl", "chats.jsonl"])


def test_messages_are_the_same_problem_whatever_the_order_of_their_fields_and_keep_all_of_them(folder):
    def chat(row, **message):
        completion = [{"role": "assistant", "content": row["completion"]}]
        return row | {"prompt": [message], "completion": completion}

    positive, negative = (rationale(0, label) for label in ("positive", "negative"))
    write_rows(folder / "one.jsonl", [chat(positive, role="user", content="text 0", name="Ann")])
    write_rows(folder / "two.jsonl", [chat(negative, name="Ann", tool=None, content="text 0", role="user")])
    (pair,) = run(names=["one.jsonl", "two.jsonl"])
    assert pair["prompt"] == [{"role": "user", "content": "text 0", "name": "Ann"}]
    samples = [chat(sample(0, words, "negative"), role="user", content="text 0", name="Ann") for words in ("A.", "B.")]
    write_rows(folder / "three.jsonl", samples)
    samples = [chat(sample(0, "C.", "negative"), content="text 0", role="user", name="Ann")]
    write_rows(folder / "four.jsonl", samples)
    assert len(run(names=["one.jsonl", "three.jsonl", "four.jsonl"], rejected_labels="confusable")) == 3


def test_the_choice_is_seeded_and_does_not_depend_on_shards_or_other_problems(folder):
    settings = {"names": ("rationales.jsonl", "samples.jsonl"), "max_pairs": 1}
    found = run(**settings).to_list()
    assert run(**settings, shard_size=1, output_dir="shards").to_list() == found
    assert run(**settings, max_problems=2, output_dir="few").to_list() == found[:2]
    assert run(**settings, seed=1, output_dir="other").to_list() != found


def test_the_built_in_tasks_own_check_prefers_clean_rationales(tmp_path):
    task = verdicts.make_verdicts(0, warmup=2, train=12, validation=2, test=2, pairs=2)["train"]
    task.save_to_disk(tmp_path / "train")
    config = rationales.RationalesConfig(str(tmp_path / "rationales"), "verdicts", "task", labels="all")
    clean = rationales.run(config, ProblemConfig(str(tmp_path / "train")))
    rng = random.Random(0)
    flawed = []
    for row in clean:
        review = verdicts.read_review(row["prompt"])
        quotes = verdicts.corrupt(rng, review, verdicts.draw_quotes(rng, review, row["label"]), "repeated")
        completion = verdicts.write_response(quotes, row["label"])
        flawed.append({"prompt": row["prompt"], "answer": row["answer"], "completion": completion})
    write_rows(tmp_path / "samples.jsonl", flawed)
    names = [str(tmp_path / "rationales"), str(tmp_path / "samples.jsonl")]
    found = pairs.run(PairsConfig(names, str(tmp_path / "out"), "verdicts", kind="rationale", rater="task"))
    assert len(found) == 24 and Counter(found["chosen_label"]) == {"positive": 12, "negative": 12}
    assert all(verdicts.check_response(row["prompt"], row["chosen"]).perfect for row in found)
    assert not any(verdicts.check_response(row["prompt"], row["rejected"]).perfect for row in found)


# --- Resuming and refusing -------------------------------------------------------------------------------------------

BOTH = {"names": ("rationales.jsonl", "samples.jsonl"), "kind": "rationale", "rater": "mine.py:rate"}


def test_a_run_resumes_where_its_rater_failed_and_rates_nothing_twice(folder):
    (folder / "broken").touch()
    with pytest.raises(ValueError, match="The rater `rate` failed on .*no connection"):
        run(**BOTH)
    first = asked()
    (folder / "broken").unlink()
    found = run(**BOTH)
    run(**BOTH)
    assert len(first) == 20 and Counter(asked()) == {f"text {index}": 5 for index in range(6)}
    (folder / "mine.py").write_text(RATER.replace("len(response)", "-len(response)"))
    assert run(**BOTH)["chosen"][:] != found["chosen"][:], "another version of the rater is another rater"


def test_a_result_without_a_pair_is_refused_and_the_earlier_one_stays(folder):
    before = run().to_list()
    write_rows(folder / "gold.jsonl", [rationale(0, "positive"), rationale(1, "negative", outcome="refusal")])
    with pytest.raises(
        EmptyResultError, match=r"no label pair in the responses to 1 problems .*left out: refusal: 1\)"
    ):
        run(names=["gold.jsonl"])
    write_rows(folder / "none.jsonl", [rationale(1, "negative", outcome="refusal")] * 2)
    with pytest.raises(EmptyResultError, match="the responses to 0 problems"):
        run(names=["none.jsonl"])
    assert load_from_disk("out").to_list() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "rationale"}, "need a rater"),
        ({"rater": "task"}, "are for rationale-sensitive pairs"),
        ({"kind": "both", "rater": "task"}, "Task 'sst2' does not rate rationales"),
        ({"kind": "both", "rater": "Qwen/Qwen2.5-7B"}, "There is no rater 'Qwen/Qwen2.5-7B'.*`--provider`"),
        ({"names": ()}, "`dataset_names` is empty"),
        ({"task": "gsm8k"}, "Task 'gsm8k' has no labels"),
        ({"dry_run": True}, "`--dry_run` need"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_before_any_work(folder, settings, message):
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(ValueError, match=message):
        run(**settings)
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (sample(0, "Good.", "positive", answer="fine"), "column 'answer': found 'fine'. It must be one of the labels"),
        (rationale(0, "fine"), "column 'label': found 'fine'. It must be one of the labels"),
        (sample(0, "", "positive") | {"completion": " "}, "column 'completion': found an empty text"),
        (sample(0, "", "positive") | {"rationale_outcome": None}, "column 'rationale_outcome': found None. `rat"),
        (
            sample(0, "", "positive") | {"completion": [{"role": "assistant", "content": "Good."}] * 2},
            "column 'completion': found 2 messages. A response is one message",
        ),
    ],
)
def test_invalid_rows_are_refused_with_their_number(folder, row, message):
    write_rows(folder / "odd.jsonl", [row] * 2)
    with pytest.raises(DatasetError, match=rf"Row 0, {message}.* \(In 'odd.jsonl'.\)"):
        run(names=["rationales.jsonl", "odd.jsonl"])


def test_rationales_without_their_labels_are_refused(folder):
    row = rationale(0, "positive")
    del row["label"]
    write_rows(folder / "odd.jsonl", [row])
    with pytest.raises(DatasetError, match="Column 'label' is missing: `rationales.py` writes it"):
        run(names=["odd.jsonl"])


@pytest.mark.parametrize("rating", ["10**400", "'7'", "float('nan')", "True"])
def test_a_rating_that_is_no_finite_number_is_refused(folder, rating):
    (folder / "mine.py").write_text(f"def rate(problems, responses):\n    return [{rating} for _ in responses]\n")
    with pytest.raises(ValueError, match="The rater `rate` returned .* for the response .* a finite number, or None"):
        run(**BOTH)


def test_a_rater_without_a_file_is_refused(folder):
    with pytest.raises(ValueError, match="'builtins:zip' is of a module that is no file"):
        run(**BOTH | {"rater": "builtins:zip"})


def test_the_rows_to_pair_are_not_replaced(folder):
    run()
    with pytest.raises((OutputError, DatasetError)):
        run(names=["out"])


# --- A teacher as the judge ------------------------------------------------------------------------------------------


def judge(body):
    response = body["messages"][-1]["content"].split("<response>\n")[1]
    if response.startswith("Dull"):
        return "", "content_filter"
    return json.dumps({"rating": 9 if response.startswith("Very") else 4}), "stop"


def test_a_teacher_rates_each_response_once_and_ties_make_no_pair(folder, tokenizer, capsys):
    settings = BOTH | {"rater": "policy", "provider": "server"}
    with FakeServer(tokenizer, chat=judge) as server:
        api = (TeacherConfig(max_attempts=1), ServerConfig(server.url))
        assert run(*api, **settings, dry_run=True) is None and not server.exchanges
        found = run(*api, **settings)
        assert len(server.exchanges) == 30
        assert run(*api, **settings).to_list() == found.to_list()
        assert len(server.exchanges) == 30
    assert len(found) == 12 and all(text.startswith("Very good.") for text in found["chosen"])
    printed = capsys.readouterr().out
    assert "now for rationale pairs: paired: 6" in printed and "responses without a rating: refusal: " in printed


# --- The recipe ------------------------------------------------------------------------------------------------------

WORDS = ["--task", "sst2", "--dataset_names", "rationales.jsonl", "samples.jsonl", "--output_dir", "out"]
WORDS += ["--kind", "both", "--rater", "mine.py:rate", "--shard_size", "2"]


def test_the_recipe_resumes_after_a_kill(folder, scripts):
    killed = scripts.run(RECIPE, *WORDS, cwd=folder, kill=signal.SIGKILL, when="shard text 2")
    assert killed.exit_code == -signal.SIGKILL and not (folder / "out").exists()
    finished = scripts.run(RECIPE, *WORDS, cwd=folder)
    assert finished.exit_code == 0, finished.stderr[-3000:]
    assert "24 label pairs and 24 rationale pairs of 6 problems" in finished.stdout
    assert Counter(asked())["text 0"] == 5, "the first shard was not rated again"
    names = ("rationales.jsonl", "samples.jsonl")
    assert (
        load_from_disk("out").to_list()
        == run(names=names, kind="both", rater="mine.py:rate", output_dir="b").to_list()
    )


def test_two_processes_give_the_result_of_one(folder, run_on_two):
    run_on_two(RECIPE, *WORDS, cwd=folder)
    names = ("rationales.jsonl", "samples.jsonl")
    assert (
        load_from_disk("out").to_list()
        == run(names=names, kind="both", rater="mine.py:rate", output_dir="b").to_list()
    )
