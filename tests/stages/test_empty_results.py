"""A run that yields nothing ends with an error that says why, and does not replace what an earlier one yielded."""

import re

import pytest
from datasets import Dataset
from trl import ModelConfig

from rlmec_trl.generation.server import ServerConfig, ServerError
from rlmec_trl.grm.prompts import save_wording
from rlmec_trl.stages import edit, evaluate, sample, score
from rlmec_trl.stages.audit import AuditConfig
from rlmec_trl.stages.audit import run as run_audit
from rlmec_trl.stages.edit import EditConfig
from rlmec_trl.stages.evaluate import EvaluateConfig
from rlmec_trl.stages.output import OutputError, claim, claim_file
from rlmec_trl.stages.runner import EmptyResultError
from rlmec_trl.stages.sample import SampleConfig
from rlmec_trl.stages.score import ScoreConfig
from rlmec_trl.tasks import arithmetic
from rlmec_trl.tasks.problems import ProblemConfig
from rlmec_trl.teachers.api.config import TeacherConfig
from rlmec_trl.teachers.api.errors import TeacherError
from rlmec_trl.teachers.api.journal import Journal, JournalInUseError
from tests.fake_openai import FakeServer, speak_as, teach


COLUMNS = ["prompt", "reference", "answer", "completion", "completion_ids", "correct"]
REFUSAL = "I know the prompt and will not answer."


@pytest.fixture
def folder(tmp_path, make_policy, make_rows, tokenizer):
    for name in ("policy", "grm"):
        make_policy(sharpness=10.0).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    save_wording(arithmetic.WORDING, tmp_path / "grm")
    problems = arithmetic.make_arithmetic(warmup=0, train=6, validation=0, test=0)["train"]
    problems.save_to_disk(tmp_path / "problems")
    Dataset.from_list([{name: row[name] for name in COLUMNS} for row in make_rows(9)]).save_to_disk(tmp_path / "rows")
    return tmp_path


@pytest.fixture
def run(folder):
    """Run a stage, with an address if it is to use a server."""

    def run(stage, url=None, **kwargs):
        server = ServerConfig(url, max_retries=0)
        policy = ModelConfig(str(folder / "policy"))
        if stage == "sample":
            defaults = {"task": "arithmetic", "temperature": 1.0, "max_new_tokens": 64, "num_samples": 1}
            config = SampleConfig(str(folder / stage), **(defaults | kwargs))
            return sample.run(config, ProblemConfig(str(folder / "problems")), policy, server)
        if stage == "edit":
            defaults = {"teacher": "policy", "provider": "server"} if url else {"teacher": "task"}
            config = EditConfig(str(folder / "rows"), str(folder / stage), "arithmetic", **(defaults | kwargs))
            return edit.run(config, TeacherConfig(max_attempts=1), server)
        config = ScoreConfig(str(folder / "grm"), task="arithmetic", rewrite_max_new_tokens=30, **kwargs)
        return score.run(config, Dataset.load_from_disk(folder / "rows"), folder / stage, policy, server)

    return run


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuse(body):
    is_trial = body.get("max_tokens") == 1 and "seed" not in body
    return "" if is_trial else REFUSAL


@pytest.mark.parametrize("stage", ["sample", "edit", "score"])
def test_a_server_that_answers_nothing_costs_no_earlier_result(stage, folder, run, tokenizer, policy):
    run(stage)
    before = contents(folder / stage)
    with FakeServer(tokenizer, speak_as(policy, tokenizer), chat=teach, refuse=refuse) as server:
        for _ in range(2):
            with pytest.raises(EmptyResultError, match=re.escape(REFUSAL)) as error:
                run(stage, server.url)
            assert f"{folder / stage}" in str(error.value)
            assert re.search(r"refused by the server: \d|status 400: 9", str(error.value)), "counts by outcome"
            assert contents(folder / stage) == before
            assert not list(folder.glob(f".{stage}*"))
        # Nothing of the failure is kept: the same command asks again, and replaces the result
        server.refuse = None
        run(stage, server.url)
    assert contents(folder / stage) != before


@pytest.mark.parametrize("stage", ["sample", "edit", "score"])
def test_a_server_that_is_pinned_to_another_model_is_told(stage, folder, run, tokenizer):
    run(stage)
    before = contents(folder / stage)
    with FakeServer(tokenizer, refuse=lambda body: "This server is pinned to 'other'.") as server:
        with pytest.raises((ServerError, EmptyResultError), match="pinned to 'other'"):
            run(stage, server.url)
    with FakeServer(tokenizer, models=("other", "another")) as server:
        with pytest.raises((ServerError, TeacherError), match="other, another|does not exist"):
            run(stage, server.url)
    assert contents(folder / stage) == before


def test_a_server_with_another_vocabulary_is_no_policy(run, tokenizer):
    with FakeServer(tokenizer, lambda prompt_ids, body: [len(tokenizer) + 5, tokenizer.eos_token_id]) as server:
        with pytest.raises(EmptyResultError, match="ids cannot be recovered exactly: 6"):
            run("sample", server.url)


def test_completions_that_are_all_cut_off_cost_no_earlier_result(folder, run, monkeypatch):
    run("sample")
    before = contents(folder / "sample")
    with pytest.raises(EmptyResultError, match=r"truncated at 1 tokens, or empty \(6 completions\)"):
        run("sample", max_new_tokens=1, seed=3)
    assert contents(folder / "sample") == before
    assert not list(folder.glob(".sample*"))


@pytest.mark.parametrize("check_correct_samples", [True, False])
def test_a_local_teacher_without_a_verified_rewrite_costs_no_earlier_result(folder, run, check_correct_samples):
    """Samples that are correct and kept unasked are no work of the teacher."""
    run("edit")
    before = contents(folder / "edit")
    (folder / "mine.py").write_text(
        "from rlmec_trl.teachers.editors import NoEdit\n"
        "def edit(problems, references, completions):\n    return [NoEdit('asleep')] * len(problems)\n"
    )
    with pytest.raises(EmptyResultError, match=r"no verified rewrite of any of \d samples \(asleep: \d\)"):
        run("edit", teacher=f"{folder / 'mine.py'}:edit", check_correct_samples=check_correct_samples)
    assert contents(folder / "edit") == before


def test_what_a_teacher_answered_stays_in_the_journal_though_no_rewrite_is_verified(folder, run, tokenizer):
    with FakeServer(
        tokenizer, chat=lambda body: ('{"error_step": 0, "rewrite": "The answer is 1"}', "stop")
    ) as server:
        for _ in range(2):
            with pytest.raises(EmptyResultError, match="wrong answer: .*edit-journal"):
                run("edit", server.url)
        assert len(server.asked("/v1/chat/completions")) == 9, "each once"
    assert not (folder / "edit").exists()


def test_scores_without_a_verified_rewrite_are_a_result(run, caplog):
    with caplog.at_level("WARNING"):
        scored = run("score", rewrite_correct=True, locate_by="probability")
    assert scored.data["rewrite"].null_count == len(scored) == 9
    assert all(scored["token_probs"])
    assert "No sample has a verified rewrite" in caplog.text


def test_more_candidates_than_the_vocabulary_has_are_refused_before_a_model_is_loaded(run, monkeypatch, tokenizer):
    monkeypatch.setattr(score, "load_model", None)
    with pytest.raises(ValueError, match=f"`rewrite_topk` is 10000, .* vocabulary has only {len(tokenizer)} tokens"):
        run("score", rewrite_topk=10_000)


# --- Two runs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["sample", "edit", "score"])
@pytest.mark.parametrize("kwargs", [{}, {"shard_size": 2}], ids=["same", "other"])
def test_a_second_run_of_a_stage_is_told_of_the_first(stage, kwargs, folder, run):
    with claim(folder / stage):
        with pytest.raises(OutputError, match="Another run is writing to"):
            run(stage, **kwargs)
    run(stage, **kwargs)


def test_a_second_run_with_an_api_teacher_is_told_of_the_first(folder, run, tokenizer):
    with FakeServer(tokenizer, chat=teach) as server:
        with claim(folder / "edit"):
            with pytest.raises(OutputError, match="Another run is writing to"):
                run("edit", server.url)
        with Journal(folder / "edit-journal"):
            with pytest.raises(JournalInUseError, match="Another run is writing to the journal"):
                run("edit", server.url)
        assert not server.asked("/v1/chat/completions")
    (folder / "file").write_text("mine")
    with pytest.raises(ValueError, match="journal '.*file' cannot be written"):
        Journal(folder / "file")


# --- Nothing to measure ----------------------------------------------------------------------------------------------


def evaluate_on(folder, name):
    config = EvaluateConfig("arithmetic", str(folder / "result.json"), max_new_tokens=2)
    return evaluate.run(config, ProblemConfig(str(folder / name)), ModelConfig(str(folder / "policy")))


def test_an_evaluation_without_problems_writes_no_result(folder):
    Dataset.load_from_disk(folder / "problems").select([]).save_to_disk(folder / "empty", num_shards=1)
    with pytest.raises(ValueError, match="empty"):
        evaluate_on(folder, "empty")
    assert not (folder / "result.json").exists()


def test_two_evaluations_do_not_write_the_same_file(folder):
    with claim_file(folder / "result.json", []):
        with pytest.raises(OutputError, match="Another run will write '.*result.json'"):
            evaluate_on(folder, "problems")
    assert evaluate_on(folder, "problems").total == 6
    assert not list(folder.glob(".result*"))


def audit_of(folder, scored, seen):
    return run_audit(
        AuditConfig(str(scored), str(seen), str(folder / "policy"), "arithmetic", str(folder / "audit.json"))
    )


def test_an_audit_without_samples_writes_no_result(folder, run):
    run("score", locate_by="probability")
    with pytest.raises(ValueError, match="There is nothing to audit: .*score' has 9 samples, and the problems of all"):
        audit_of(folder, folder / "score", folder / "rows")
    assert not (folder / "audit.json").exists()


def test_what_an_audit_cannot_measure_is_null_in_its_file(folder, run):
    """NaN is no JSON: other programs cannot read it."""
    run("score", locate_by="probability")
    rows = Dataset.load_from_disk(folder / "rows").select([0])
    rows.map(lambda row: {"prompt": "another problem"}).save_to_disk(folder / "seen")
    audit_of(folder, folder / "score", folder / "seen")
    text = (folder / "audit.json").read_text(encoding="utf-8")
    assert '"edits_made_over_needed": null' in text and "NaN" not in text
