"""A pipeline touches only what it wrote; what is finished is skipped, what was interrupted is resumed."""

import json
import os
from dataclasses import replace
from functools import partial

import pytest
import yaml
from datasets import Dataset, load_from_disk

from rlmec_trl.stages.ledger import Ledger
from rlmec_trl.stages.output import claim, publish, save_rows, write_atomically
from rlmec_trl.stages.pipeline import Choice, Job, PipelineError


JOB = Job("policy", "sft", {"max_steps": 5, "output_dir": "{run}/policy"}, "key-1")
CHANGED = replace(JOB, key="key-2")


@pytest.fixture
def ledger(tmp_path):
    said = []
    ledger = Ledger(tmp_path / "seed-0", said.append)
    ledger.folder.mkdir()
    ledger.said = said
    return ledger


def writes(ledger, *names, job=JOB, fail=False):
    """A recipe that writes files into the job's folder."""

    def call(config):
        for name in names:
            path = ledger.folder / job.name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"by {job.key}")
        if fail:
            raise KeyboardInterrupt

    return call


def content(ledger):
    """Every file in the run's folder but the markers."""
    paths = sorted(path for path in ledger.folder.rglob("*") if path.is_file() and ".stages" not in path.parts)
    return {path.relative_to(ledger.folder).as_posix(): path.read_text() for path in paths}


def interrupt(ledger, *names, job=JOB):
    with pytest.raises(KeyboardInterrupt):
        ledger.run(job, writes(ledger, *names, job=job, fail=True))


def assert_refused(ledger, step, message):
    before = content(ledger)
    (refusal,) = ledger.refusals([step])
    assert str(ledger.folder / step.name) in refusal and message in refusal
    if isinstance(step, Job):
        with pytest.raises(PipelineError):
            ledger.run(step, lambda config: pytest.fail("the recipe was called"))
    assert content(ledger) == before, "nothing was touched"


# --- Jobs ------------------------------------------------------------------------------------------------------------


def test_a_recipe_gets_its_settings_with_the_folder_filled_in(ledger):
    seen = []
    ledger.run(JOB, lambda config: seen.append(yaml.safe_load(config.read_text())) or writes(ledger, "model")(config))
    assert seen == [{"max_steps": 5, "output_dir": str(ledger.folder / "policy")}]


def test_a_finished_job_is_known_until_its_key_changes_or_its_output_is_gone(ledger):
    assert not ledger.is_finished(JOB)
    ledger.run(JOB, writes(ledger, "model"))
    assert ledger.is_finished(JOB) and not ledger.is_finished(CHANGED)
    (ledger.folder / "policy" / "model").unlink()
    (ledger.folder / "policy").rmdir()
    assert not ledger.is_finished(JOB) and ledger.refusals([JOB]) == []


def test_a_finished_dataset_with_a_truncated_file_is_made_again(ledger):
    """The stage itself names the file, and moves what is left aside."""

    def save(config):
        with claim(ledger.folder / "policy") as work_dir:
            publish(partial(save_rows, Dataset.from_dict({"x": [1, 2]})), ledger.folder / "policy", "key", work_dir)

    ledger.run(JOB, save)
    assert ledger.is_finished(JOB)
    (arrow_file,) = (ledger.folder / "policy").glob("*.arrow")
    arrow_file.write_bytes(arrow_file.read_bytes()[:-1])
    assert not ledger.is_finished(JOB) and ledger.refusals([JOB]) == []
    ledger.run(JOB, save)
    assert ledger.is_finished(JOB)


def test_a_run_folder_may_move(ledger, tmp_path):
    ledger.run(JOB, writes(ledger, "model"))
    ledger.folder.rename(tmp_path / "elsewhere")
    assert Ledger(tmp_path / "elsewhere").is_finished(JOB)


def test_an_output_without_a_marker_is_refused(ledger):
    (ledger.folder / "policy").mkdir()
    (ledger.folder / "policy" / "thesis.tex").write_text("years of work")
    assert_refused(ledger, JOB, "without a record")


def test_a_file_in_the_place_of_an_output_is_refused(ledger):
    (ledger.folder / "policy").write_text("years of work")
    assert_refused(ledger, JOB, "without a record")


def test_a_marker_that_does_not_list_files_does_not_count(ledger):
    # of earlier releases, which deleted whatever an old marker stood for
    ledger.run(JOB, writes(ledger, "model"))
    marker = ledger.folder / ".stages" / "policy.json"
    marker.write_text(json.dumps({"key": "key-1", "finished": True, "seconds": 1.0}))
    assert_refused(ledger, JOB, "without a record")


def test_an_outdated_output_is_replaced(ledger):
    ledger.run(JOB, writes(ledger, "model", "checkpoint-5/state"))
    ledger.run(CHANGED, writes(ledger, "model", job=CHANGED))
    assert content(ledger) == {"policy/model": "by key-2"}
    assert ledger.said == []


@pytest.mark.parametrize("name", ["thesis.tex", "checkpoint-5/notes.txt"])
def test_an_outdated_output_with_a_foreign_file_is_refused(ledger, name):
    ledger.run(JOB, writes(ledger, "model", "checkpoint-5/state"))
    (ledger.folder / "policy" / name).write_text("years of work")
    assert ledger.is_finished(JOB), "with the same settings, it is in nobody's way"
    assert_refused(ledger, CHANGED, name)


def test_what_datasets_caches_in_an_output_is_not_foreign(ledger):
    ledger.run(JOB, lambda config: Dataset.from_dict({"x": [1, 2, 3]}).save_to_disk(ledger.folder / "policy"))
    loaded = load_from_disk(ledger.folder / "policy")
    loaded.map(lambda row: {"y": row["x"]})
    loaded.map(lambda row: {"z": row["x"]}, num_proc=2)
    assert len(list((ledger.folder / "policy").glob("cache-*"))) == 3
    assert ledger.refusals([CHANGED]) == []
    ledger.run(CHANGED, writes(ledger, "model", job=CHANGED))
    assert content(ledger) == {"policy/model": "by key-2"}


def test_an_outdated_output_that_was_moved_and_linked_is_refused(ledger, tmp_path):
    ledger.run(JOB, writes(ledger, "model"))
    (ledger.folder / "policy").rename(tmp_path / "large-disk")
    (ledger.folder / "policy").symlink_to(tmp_path / "large-disk")
    assert ledger.is_finished(JOB)
    assert_refused(ledger, CHANGED, "large-disk")


def test_a_link_to_a_folder_inside_an_outdated_output_is_foreign(ledger, tmp_path):
    ledger.run(JOB, writes(ledger, "model"))
    (tmp_path / "data").mkdir()
    (ledger.folder / "policy" / "data").symlink_to(tmp_path / "data")
    assert_refused(ledger, CHANGED, "data")


def test_a_finished_job_is_called_again_to_be_published_and_only_once(ledger):
    ledger.run(JOB, writes(ledger, "model"))
    before = content(ledger), ledger.seconds("policy")
    published = replace(JOB, settings={**JOB.settings, "push_to_hub": True, "hub_model_id": "me/policy"})
    assert ledger.is_finished(published) and ledger.lacks_publishing(published) and not ledger.lacks_publishing(JOB)
    seen = []
    ledger.run(published, lambda config: seen.append(yaml.safe_load(config.read_text())))
    assert seen[0]["push_to_hub"] is True
    assert (content(ledger), ledger.seconds("policy")) == before
    assert not ledger.lacks_publishing(published)
    elsewhere = replace(JOB, settings={**published.settings, "hub_model_id": "me/other"})
    assert ledger.lacks_publishing(elsewhere)
    assert not ledger.refusals([replace(published, key="key-2")])  # its files are still known


def test_a_job_that_is_published_at_once_is_not_called_again(ledger):
    published = replace(JOB, settings={**JOB.settings, "push_to_hub": True})
    ledger.run(published, writes(ledger, "model"))
    assert ledger.is_finished(published) and not ledger.lacks_publishing(published)


def test_many_foreign_files_are_counted(ledger):
    ledger.run(JOB, writes(ledger, "model"))
    for index in range(5):
        (ledger.folder / "policy" / f"note-{index}").write_text("mine")
    assert_refused(ledger, CHANGED, "note-0, note-1, note-2 and 2 more")


def test_an_interrupted_job_resumes(ledger):
    interrupt(ledger, "checkpoint-5")
    assert not ledger.is_finished(JOB)
    first = json.loads((ledger.folder / ".stages" / "policy.json").read_text())
    ledger.run(JOB, writes(ledger, "model"))
    assert content(ledger) == {"policy/checkpoint-5": "by key-1", "policy/model": "by key-1"}
    assert ledger.is_finished(JOB) and first["finished"] is False


def test_what_an_interrupted_job_with_other_settings_left_is_renamed(ledger):
    for number in (1, 2):
        interrupt(ledger, "checkpoint-5")
        ledger.run(CHANGED, writes(ledger, "model", job=CHANGED))
        assert content(ledger)[f"policy.interrupted-{number}/checkpoint-5"] == "by key-1"
        assert content(ledger)["policy/model"] == "by key-2"
        assert f"renamed to {ledger.folder / f'policy.interrupted-{number}'}" in ledger.said[-1]


def test_the_outdated_output_of_a_resumed_job_is_renamed(ledger):
    # A file that was put there between the two calls cannot be told from those of the first
    interrupt(ledger, "checkpoint-5")
    (ledger.folder / "policy" / "thesis.tex").write_text("years of work")
    ledger.run(JOB, writes(ledger, "model"))
    ledger.run(CHANGED, writes(ledger, "model", job=CHANGED))
    assert content(ledger)["policy.interrupted-1/thesis.tex"] == "years of work"
    assert content(ledger)["policy/model"] == "by key-2"


def test_hidden_folders_beside_an_output_are_left_to_its_stage(ledger):
    shards = ledger.folder / ".policy-0123" / "00000"
    shards.parent.mkdir()
    shards.write_text("half of the work")
    interrupt(ledger)
    ledger.run(JOB, writes(ledger, "model"))
    ledger.run(CHANGED, writes(ledger, "model", job=CHANGED))
    assert shards.read_text() == "half of the work"


def test_a_recipe_that_writes_nothing_is_not_finished(ledger):
    with pytest.raises(PipelineError, match="ended without writing it"):
        ledger.run(JOB, lambda config: None)
    assert not ledger.is_finished(JOB)


def test_a_result_file_is_replaced(ledger):
    job = Job("results/policy-test.json", "evaluate", {}, "key-1")
    for key in ("key-1", "key-2"):
        ledger.run(
            replace(job, key=key), lambda config, key=key: (ledger.folder / job.name).write_text(json.dumps(key))
        )
        assert ledger.result(job.name) == key


def test_seconds_of_all_calls_are_added_up(ledger, monkeypatch):
    clock = iter([0.0, 10.0, 20.0, 25.0])
    monkeypatch.setattr("rlmec_trl.stages.ledger.time.perf_counter", lambda: next(clock))
    interrupt(ledger, "checkpoint-5")
    ledger.run(JOB, writes(ledger, "model"))
    assert ledger.seconds("policy") == 15.0


# --- Choices ---------------------------------------------------------------------------------------------------------


CHOICE = Choice("best", "rate", {1: ("best-rate-1", "result-1.json"), 2: ("best-rate-2", "result-2.json")}, "key-1")


@pytest.fixture
def candidates(ledger):
    def score(*means):
        for value, mean in zip((1, 2), means, strict=True):
            (ledger.folder / f"best-rate-{value}").mkdir(exist_ok=True)
            (ledger.folder / f"result-{value}.json").write_text(json.dumps({"mean": mean}))

    return score


def test_the_best_candidate_is_linked_and_of_equals_the_first(ledger, candidates):
    candidates(0.5, 0.75)
    assert ledger.choose(CHOICE) == {"argument": "rate", "value": 2, "validation": {1: 0.5, 2: 0.75}}
    assert os.readlink(ledger.folder / "best") == "best-rate-2"
    candidates(0.75, 0.75)
    assert ledger.refusals([CHOICE]) == []
    assert ledger.choose(replace(CHOICE, key="key-2"))["value"] == 1
    assert os.readlink(ledger.folder / "best") == "best-rate-1"


@pytest.mark.parametrize("before", ["nothing", "our link"])
def test_a_folder_in_the_place_of_the_link_is_refused(ledger, candidates, before):
    candidates(0.5, 0.75)
    if before == "our link":
        ledger.choose(CHOICE)
        (ledger.folder / "best").unlink()
    (ledger.folder / "best").mkdir()
    (ledger.folder / "best" / "thesis.tex").write_text("years of work")
    assert_refused(ledger, CHOICE, "thesis.tex" if before == "our link" else "without a record")
    with pytest.raises(PipelineError):
        ledger.choose(CHOICE)
    assert (ledger.folder / "best" / "thesis.tex").read_text() == "years of work"


def test_a_link_to_somewhere_else_is_refused(ledger, candidates, tmp_path):
    candidates(0.5, 0.75)
    ledger.choose(CHOICE)
    (ledger.folder / "best").unlink()
    (ledger.folder / "best").symlink_to(tmp_path)
    assert_refused(ledger, CHOICE, str(tmp_path))


def test_a_stage_that_gets_candidates_replaces_its_folder_by_a_link_and_back(ledger, candidates):
    candidates(0.5, 0.75)
    job = replace(JOB, name="best", key="key-of-a-job")
    ledger.run(job, writes(ledger, "model", job=job))
    ledger.choose(CHOICE)
    assert (ledger.folder / "best").is_symlink()
    ledger.run(job, writes(ledger, "model", job=job))
    assert not (ledger.folder / "best").is_symlink() and (ledger.folder / "best-rate-2").is_dir()


# --- Markers ---------------------------------------------------------------------------------------------------------


def test_a_marker_keeps_its_old_content_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "marker.json"
    write_atomically(path, "old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text() == "old"


@pytest.mark.parametrize("moment", ["_clear", "_write_marker", "symlink"])
def test_an_interrupted_choice_is_not_taken_for_foreign(ledger, candidates, monkeypatch, moment):
    candidates(0.5, 0.75)
    ledger.choose(CHOICE)
    candidates(0.75, 0.5)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*(("pathlib.Path.symlink_to", stop) if moment == "symlink" else (ledger, moment, stop)))
        with pytest.raises(KeyboardInterrupt):
            ledger.choose(CHOICE)
    assert ledger.refusals([CHOICE]) == []
    assert ledger.choose(CHOICE)["value"] == 1
