"""The edit stage: who the teacher is, what is checked before any work, and what is saved."""

import pytest
from datasets import ClassLabel, Dataset, Features, load_from_disk
from trl import ModelConfig

from rlmec_trl.data.schema import DatasetError, check_dataset
from rlmec_trl.generation.server import ServerConfig
from rlmec_trl.stages import edit
from rlmec_trl.stages.edit import EditConfig
from rlmec_trl.stages.output import OutputError
from rlmec_trl.tasks.arithmetic import edit as edit_arithmetic
from rlmec_trl.teachers.api.config import TeacherConfig
from tests.fake_openai import FakeServer


SAMPLE_COLUMNS = ["prompt", "reference", "answer", "completion", "completion_ids", "correct"]


@pytest.fixture
def folder(tmp_path, make_rows):
    rows = [{name: row[name] for name in SAMPLE_COLUMNS} for row in make_rows(9)]
    Dataset.from_list(rows).save_to_disk(tmp_path / "samples")
    return tmp_path


def run(folder, *configs, teacher="task", **kwargs):
    config = EditConfig(
        dataset_name=str(folder / "samples"), output_dir=str(folder / "edits"), task="arithmetic", teacher=teacher
    )
    for name, value in kwargs.items():
        setattr(config, name, value)
    return edit.run(config, *configs)


def test_the_tasks_own_editor(folder):
    edits = run(folder, shard_size=4)
    check_dataset(edits, "edits")
    samples = load_from_disk(folder / "samples")
    expected = edit_arithmetic(samples["prompt"][:], samples["reference"][:], samples["completion"][:])
    assert list(zip(edits["error_step"], edits["rewrite"], strict=True)) == expected
    assert load_from_disk(folder / "edits").to_list() == edits.to_list()


def test_the_references_as_the_teacher(folder, monkeypatch, capsys):
    samples = load_from_disk(folder / "samples")
    # A reference without values is counted, and its row is not edited
    references = ["no values", *samples["reference"][1:]]
    samples.remove_columns("reference").add_column("reference", references).save_to_disk(folder / "some")
    edits = run(folder, dataset_name=str(folder / "some"), teacher="reference", shard_size=4)
    assert (edits[0]["edit_outcome"], edits[0]["rewrite"]) == ("no values in the reference", None)
    assert set(edits["edit_outcome"][1:]) == {"rewritten", "unchanged"}
    assert "no values in the reference: 1" in capsys.readouterr().out
    monkeypatch.setattr(edit, "edit_dataset", None)
    again = run(folder, dataset_name=str(folder / "some"), teacher="reference", shard_size=4)
    assert again.to_list() == edits.to_list()


def test_samples_without_references_are_refused_before_any_work(folder):
    load_from_disk(folder / "samples").remove_columns("reference").save_to_disk(folder / "bare")
    with pytest.raises(DatasetError, match="`?reference`?"):
        run(folder, dataset_name=str(folder / "bare"), teacher="reference")
    assert not (folder / "edits").exists()


def test_columns_of_the_rewrites_that_are_replaced_are_dropped(folder):
    """Trainers read `rewrite_ids` instead of `rewrite`, and would imitate the earlier one."""
    samples = load_from_disk(folder / "samples")
    names = ("rewrite_ids", "rewrite_index", "rewrite_topk_ids", "rewrite_topk_logps")
    scored = samples.add_column("token_probs", [[0.5] * len(ids) for ids in samples["completion_ids"]])
    for name in names:
        scored = scored.add_column(name, [0] * len(samples))
    scored.save_to_disk(folder / "scored")
    edits = run(folder, dataset_name=str(folder / "scored"))
    assert "token_probs" in edits.column_names
    assert not set(names) & set(edits.column_names)


def test_an_editor_from_a_file(folder):
    (folder / "mine.py").write_text(
        "def edit(problems, references, completions):\n    return [(0, references[0])] + [(0, 'x')] * 8\n"
    )
    edits = run(folder, teacher=f"{folder / 'mine.py'}:edit")
    assert set(edits["edit_outcome"]) == {"rewritten", "wrong answer"}
    # Another version of it is another teacher
    (folder / "mine.py").write_text(
        "def edit(problems, references, completions):\n    return [(0, references[0])] + [(0, '')] * 8\n"
    )
    assert set(run(folder, teacher=f"{folder / 'mine.py'}:edit")["edit_outcome"]) == {"rewritten", "empty"}


def test_the_rows_of_the_first_problems(folder):
    samples = load_from_disk(folder / "samples")
    twice = samples.select([0, 1, 2, 0, 3, 1])
    twice.save_to_disk(folder / "twice")
    edits = run(folder, dataset_name=str(folder / "twice"), max_problems=2)
    assert edits["completion"][:] == twice.select([0, 1, 3, 5])["completion"][:]


def test_column_types_survive(folder):
    samples = load_from_disk(folder / "samples")
    features = Features({**samples.features, "level": ClassLabel(names=["easy", "hard"])})
    rows = [{**row, "level": 1} for row in samples]
    Dataset.from_list(rows, features=features).save_to_disk(folder / "typed")
    edits = run(folder, dataset_name=str(folder / "typed"), shard_size=2)
    assert {name: edits.features[name] for name in features} == dict(features)


def test_lowering_the_batch_size_keeps_what_is_finished(folder, monkeypatch):
    edits = run(folder, shard_size=4)
    monkeypatch.setattr(edit, "edit_dataset", None)
    assert run(folder, shard_size=3, batch_size=1, max_rows=9).to_list() == edits.to_list()


@pytest.mark.parametrize(
    ("kwargs", "configs", "message"),
    [
        ({"task": "math"}, (), "Task 'math' has no editor"),
        ({"dry_run": True}, (), "`--dry_run` need `--provider server`"),
        ({"teacher": "nowhere.py:edit"}, (), "no file 'nowhere.py'"),
        ({"teacher": "a/model"}, (None, None, ModelConfig(model_revision="v2")), "`--teacher_revision`"),
        ({"teacher": "a/model"}, (None, None, ModelConfig("a/policy")), "are the policy's"),
        ({"provider": "server", "teacher": "m", "journal_dir": "{}/edits/journal"}, (), "lies in `--output_dir`"),
    ],
    ids=["no editor", "dry run", "no file", "revision", "policy", "journal"],
)
def test_settings_that_cannot_be_meant_are_refused_before_any_work(folder, kwargs, configs, message):
    before = sorted(path.name for path in folder.iterdir())
    kwargs = {name: value.format(folder) if isinstance(value, str) else value for name, value in kwargs.items()}
    with pytest.raises(ValueError, match=message):
        run(folder, *configs, **kwargs)
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.fixture
def server(tokenizer):
    with FakeServer(tokenizer, lambda prompt_ids, body: [1]) as server:
        yield server


def test_a_folder_of_the_users_is_refused_before_a_teacher_is_paid(folder, server):
    (folder / "edits").mkdir()
    (folder / "edits" / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match="thesis.tex"):
        run(folder, TeacherConfig(), ServerConfig(server.url), provider="server", teacher="m")
    assert not server.exchanges
    assert [path.name for path in (folder / "edits").iterdir()] == ["thesis.tex"]


def test_a_dry_run_requests_and_writes_nothing_but_its_journal(folder, server):
    assert run(folder, TeacherConfig(), ServerConfig(server.url), provider="server", teacher="m", dry_run=True) is None
    assert sorted(path.name for path in folder.iterdir()) == ["edits-journal", "samples"]
    assert not [exchange for exchange in server.exchanges if "messages" in exchange.body]
