"""Which folders a training may begin in, and what it removes there."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from transformers import Trainer, TrainingArguments

from rlmec_trl.data.errors import ConfigError, UserError
from rlmec_trl.stages import output
from rlmec_trl.stages.checkpoints import RECORD, STATE
from rlmec_trl.stages.output import LOCK, OutputError, hold
from rlmec_trl.stages.run_folder import MARK, Start, begin, check_folder, find_start, make_room, take_over
from rlmec_trl.stages.training import training_run
from tests.stages.test_checkpoints import write_checkpoint, write_state


def arguments(output_dir, **settings):
    return TrainingArguments(output_dir=str(output_dir), use_cpu=True, report_to="none", **settings)


def start(folder, report=print, **settings):
    return find_start(arguments(folder, **settings), report)


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- Where a training may begin --------------------------------------------------------------------------------------


REPLACED = """
    README.md config.json trainer_state.json training_args.bin model.safetensors model-00001-of-00002.safetensors
    pytorch_model.bin adapter_config.json generation_config.json tokenizer.json tokenizer.model vocab.txt vocab.json
    merges.txt chat_template.jinja additional_chat_templates/x.jinja eval_results.json all_results.json modeling_x.py
    grm_wording.json completions/mine.txt checkpoint-6/notes.txt checkpoint-7
    """.split()


@pytest.mark.parametrize("name", REPLACED)
def test_a_folder_with_files_that_training_would_replace_is_refused_before_any_work(name, tmp_path):
    path = tmp_path / "project" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"mine": true}')
    message = rf"project' holds files that training would replace.*\({re.escape(name.split('/')[0])}\)"
    with pytest.raises(OutputError, match=message):
        with training_run(arguments(tmp_path / "project")):
            raise AssertionError("the work of the run")
    assert tree(tmp_path) == {f"project/{name}": b'{"mine": true}'}


@pytest.mark.parametrize("path", [".", "", "..", "/", "here/.."])
def test_the_working_directory_and_the_folders_around_it_are_refused(path, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    args = arguments("elsewhere")
    args.output_dir = path
    with pytest.raises(OutputError, match=rf"^'{path}' is the working directory, or a folder around it"):
        with training_run(args):
            raise AssertionError("the work of the run")
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    "name", ["train.log", "4711.out", ".hydra/config.yaml", "config.yaml", ".gitkeep", "src/main.py"]
)
def test_files_that_training_does_not_write_may_be_in_its_folder(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    begin(tmp_path, start(tmp_path))
    assert set(tree(tmp_path)) == {name, MARK} and path.read_text() == "mine"


def test_the_last_checkpoint_of_others_is_named_with_its_path(tmp_path):
    for step in (9, 10, 2):
        write_checkpoint(tmp_path / f"checkpoint-{step}")
    with pytest.raises(OutputError, match=f"To continue from '{tmp_path / 'checkpoint-10'}', name it"):
        check_folder(tmp_path)


def test_a_folder_that_a_trainer_makes_when_it_is_created_does_not_count_as_files_of_others(tmp_path):
    (tmp_path / "out" / "completions").mkdir(parents=True)  # as GRPO's does with `log_completions`
    check_folder(tmp_path / "out")
    (tmp_path / "out" / "completions" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="completions"):
        check_folder(tmp_path / "out")


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("model_only", [True, False])
def test_a_checkpoint_is_not_taken_for_a_finished_training(model_only, copied, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint-4", num_processes=1)
    state = json.loads((checkpoint / STATE).read_text()) | {"max_steps": 9}
    (checkpoint / STATE).write_text(json.dumps(state))
    (checkpoint / MARK).write_text(json.dumps({"run": "first"}))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth") if model_only else ():
        (checkpoint / name).unlink()
    if copied:
        checkpoint = checkpoint.rename(tmp_path / "copy")
    with pytest.raises(OutputError, match="is a checkpoint, not the output folder of a training"):
        start(checkpoint)


def test_a_folder_that_is_missing_or_empty_or_ours_is_accepted(tmp_path):
    check_folder(tmp_path / "missing")
    check_folder(tmp_path)
    begin(tmp_path, start(tmp_path))
    (tmp_path / "notes.txt").write_text("added later")
    check_folder(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "added later"


@pytest.mark.parametrize("place", [".", "checkpoint-4"])
def test_a_training_of_an_earlier_version_is_accepted_by_its_record(place, tmp_path):
    (tmp_path / place).mkdir(exist_ok=True)
    write_state(tmp_path / place, num_processes=1)
    (tmp_path / "README.md").write_text("a model card")
    check_folder(tmp_path)
    write_state(tmp_path / place)
    with pytest.raises(OutputError):
        check_folder(tmp_path)


def test_a_link_to_a_folder_that_is_missing_leads_to_a_new_one(tmp_path):
    (tmp_path / "link").symlink_to("there/run")
    args = arguments(tmp_path / "link")
    with training_run(args):
        os.makedirs(args.output_dir, exist_ok=True)  # as `Trainer` does
    assert (tmp_path / "there" / "run").is_dir()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resume_from_checkpoint": "nowhere"}, "'nowhere' is not a folder"),
        ({"resume_from_checkpoint": "true"}, "has no complete checkpoint"),
    ],
)
def test_a_checkpoint_to_resume_from_is_looked_for_before_any_work(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message), training_run(arguments(tmp_path / "run", **settings)):
        raise AssertionError("the work of the run")


def test_a_training_is_refused_on_all_processes_together(run_on_two, tmp_path):
    (tmp_path / "of others").mkdir()
    (tmp_path / "of others" / "README.md").write_text("mine")
    run_on_two(Path(__file__).parents[1] / "refusal_worker.py", tmp_path, cwd=tmp_path)
    ends = [(tmp_path / f"ends-{index}.txt").read_text().splitlines() for index in (0, 1)]
    assert ends[0] == ["ConfigError", "ConfigError", "OutputError", "OutputError", "began"]
    assert ends[1] == ["1", "1", "1", "1", "began"]


def test_files_that_begin_with_an_underscore_are_not_pushed(tmp_path, monkeypatch):
    """Of the output folder, `Trainer` pushes all but these and the checkpoints."""
    ignored = []
    trainer = Trainer.__new__(Trainer)
    trainer.args = arguments(tmp_path, hub_model_id="me/model")
    trainer.hub_model_id = "me/model"
    trainer.model = trainer.state = trainer.control = None
    for name in ("save_model", "create_model_card", "_finish_current_push"):
        monkeypatch.setattr(Trainer, name, lambda self, *args, **kwargs: None)
    monkeypatch.setattr(Trainer, "is_world_process_zero", lambda self: True)
    trainer.callback_handler = type("Handler", (), {"on_push_begin": lambda *args: None})()
    source = Trainer.push_to_hub.__globals__
    upload = lambda **kwargs: ignored.extend(kwargs["ignore_patterns"])  # noqa: E731
    if "hf_api" in source:
        monkeypatch.setitem(source, "hf_api", lambda: type("Api", (), {"upload_folder": staticmethod(upload)}))
    else:
        monkeypatch.setitem(source, "upload_folder", upload)
    trainer.push_to_hub()
    assert "_*" in ignored and MARK.startswith("_") and LOCK.startswith("_")


# --- The lock --------------------------------------------------------------------------------------------------------


def test_the_lock_is_in_the_folder_where_nothing_can_be_written_beside_it(tmp_path, monkeypatch):
    folder = tmp_path / "mounted" / "run"
    folder.mkdir(parents=True)
    # The user who runs the tests may be allowed to write everywhere
    monkeypatch.setattr(output.os, "access", lambda path, mode: Path(path) != folder.parent)
    with hold(folder):
        assert os.listdir(folder.parent) == ["run"] and os.listdir(folder) == [LOCK]
        check_folder(folder)  # the lock of a killed run is nobody's file
        with pytest.raises(OutputError, match="Another run is writing"), hold(folder):
            raise AssertionError("the work of the second run")
    assert os.listdir(folder) == []


# --- Which checkpoints are of the training ---------------------------------------------------------------------------


def checkpoint_of(folder, step, run):
    path = write_checkpoint(folder / f"checkpoint-{step}", num_processes=1)
    (path / MARK).write_text(json.dumps({"run": run}))
    return path


def test_the_last_complete_checkpoint_is_taken_and_the_others_are_reported_and_kept(tmp_path):
    first = start(tmp_path)
    begin(tmp_path, first)
    for step in (2, 10, 9, 11):
        checkpoint_of(tmp_path, step, first.run)
    (tmp_path / "checkpoint-10" / STATE).unlink()
    (tmp_path / "checkpoint-11" / "optimizer.pt").write_bytes(b"")
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-12").write_text("a file")
    lines = []
    assert start(tmp_path, lines.append).checkpoint == tmp_path / "checkpoint-9"
    assert len(lines) == 2
    assert "checkpoint-11" in lines[0] and "optimizer.pt" in lines[0]
    assert "checkpoint-10" in lines[1] and STATE in lines[1]
    assert len(list(tmp_path.iterdir())) == 7
    assert start(tmp_path / "nowhere").checkpoint is None


def test_a_training_that_was_started_over_does_not_resume_from_what_it_replaces(tmp_path):
    first = start(tmp_path)
    begin(tmp_path, first)
    checkpoint_of(tmp_path, 8, first.run)
    assert start(tmp_path) == Start(tmp_path / "checkpoint-8", 0, first.run)
    second = start(tmp_path, resume_from_checkpoint="false")
    begin(tmp_path, second)
    assert start(tmp_path).checkpoint == tmp_path / "checkpoint-8", "it has not saved anything yet"
    take_over(tmp_path, second)
    lines = []
    assert start(tmp_path, lines.append) == second, "killed before its first checkpoint"
    assert len(lines) == 1 and "checkpoint-8" in lines[0] and "started over" in lines[0]
    checkpoint_of(tmp_path, 3, second.run)
    assert start(tmp_path).checkpoint == tmp_path / "checkpoint-3"


def test_a_finished_model_is_not_finished_once_its_training_is_started_over(tmp_path):
    begin(tmp_path, start(tmp_path))
    write_checkpoint(tmp_path / "model")
    for name in ("model.safetensors", "config.json", STATE):
        shutil.move(tmp_path / "model" / name, tmp_path)
    assert start(tmp_path).num_done == 4
    again = start(tmp_path, resume_from_checkpoint="false")
    begin(tmp_path, again)
    assert start(tmp_path).num_done == 4, "it has not saved anything yet"
    make_room(tmp_path, 1, again)
    assert start(tmp_path).num_done == 0


def test_a_run_from_a_named_checkpoint_gives_up_later_ones_when_it_saves_its_first(tmp_path):
    first = start(tmp_path)
    begin(tmp_path, first)
    for step in (500, 1000):
        checkpoint_of(tmp_path, step, first.run)
    named = start(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-500"))
    begin(tmp_path, named)
    assert start(tmp_path).checkpoint == tmp_path / "checkpoint-1000", "killed before that"
    make_room(tmp_path, 600, named)
    assert start(tmp_path) == Start(tmp_path / "checkpoint-500", 0, named.run), "killed while it is written"
    write_checkpoint(tmp_path / "600", num_processes=1)
    for path in (tmp_path / "600").iterdir():
        path.rename(tmp_path / "checkpoint-600" / path.name)
    assert start(tmp_path).checkpoint == tmp_path / "checkpoint-600"


def test_a_named_checkpoint_of_another_folder_keeps_its_mark(tmp_path):
    checkpoint = checkpoint_of(tmp_path / "first", 5, "first")
    take_over(tmp_path, start(tmp_path / "second", resume_from_checkpoint=str(checkpoint)))
    assert json.loads((checkpoint / MARK).read_text()) == {"run": "first"}


def test_a_command_that_names_a_checkpoint_continues_its_own_later_ones(tmp_path):
    named = checkpoint_of(tmp_path / "first", 2, "first")
    settings = {"resume_from_checkpoint": str(named)}
    first = start(tmp_path / "second", **settings)
    begin(tmp_path / "second", first)
    assert start(tmp_path / "second", **settings) == first, "killed before its first checkpoint"
    own = checkpoint_of(tmp_path / "second", 5, first.run)
    shutil.rmtree(named)  # no longer needed
    assert start(tmp_path / "second", **settings) == Start(own, 0, first.run, first.origin)
    other = checkpoint_of(tmp_path / "third", 1, "third")
    again = start(tmp_path / "second", resume_from_checkpoint=str(other))
    assert again.checkpoint == other and again.run != first.run


def test_a_training_without_the_named_checkpoint_is_another_run(tmp_path):
    named = start(tmp_path / "second", resume_from_checkpoint=str(checkpoint_of(tmp_path / "first", 2, "first")))
    begin(tmp_path / "second", named)
    plain = start(tmp_path / "second")
    assert plain.checkpoint is None and plain.run != named.run


def test_a_checkpoint_that_is_not_of_the_training_is_not_continued(tmp_path):
    first = start(tmp_path)
    begin(tmp_path, first)
    write_checkpoint(tmp_path / "checkpoint-9")  # of another program, copied there
    lines = []
    assert start(tmp_path, lines.append) == first
    assert len(lines) == 1 and "checkpoint-9': it is not of this training" in lines[0]


@pytest.mark.parametrize("again", [None, "false"])
def test_checkpoints_of_an_earlier_version_are_those_of_one_run(again, tmp_path):
    for step in (3, 6):
        write_checkpoint(tmp_path / f"checkpoint-{step}", num_processes=1)
    begin(tmp_path, start(tmp_path, resume_from_checkpoint=again))
    assert start(tmp_path).checkpoint == tmp_path / "checkpoint-6", "nothing has been saved yet"
    assert len({(tmp_path / name / MARK).read_text() for name in (".", "checkpoint-3", "checkpoint-6")}) == 1


def test_checkpoints_that_were_copied_to_a_new_folder_keep_their_run(tmp_path):
    checkpoint_of(tmp_path, 3, "first")
    assert start(tmp_path).run == "first"


# --- Room for a checkpoint -------------------------------------------------------------------------------------------


def room(folder, step=6):
    make_room(folder, step, Start(None, 0, "this"))


def test_what_a_killed_run_of_ours_left_is_deleted(tmp_path):
    room(tmp_path)
    (tmp_path / "checkpoint-6" / "model.safetensors").write_bytes(b"cut off")
    (tmp_path / "checkpoint-6" / "adapter" / "adapter_config.json").parent.mkdir()
    (tmp_path / "checkpoint-6" / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "checkpoint-6" / "additional_chat_templates").mkdir()
    for name in ("tokenization_x.py", "modeling_x.py", "configuration_x.py", "video_preprocessor_config.json"):
        (tmp_path / "checkpoint-6" / name).write_text("")
    room(tmp_path)
    assert set(tree(tmp_path)) == {MARK, f"checkpoint-6/{MARK}"}


@pytest.mark.parametrize(
    "kind", ["weights of others", "notes in ours", "folder in ours", "link", "link to nothing", "file"]
)
def test_what_no_run_of_ours_wrote_is_renamed(kind, tmp_path):
    path, elsewhere = tmp_path / "checkpoint-6", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / MARK).write_text("{}")
    (elsewhere / "model.safetensors").write_bytes(b"weeks of work")
    if kind == "weights of others":
        path.mkdir()
        (path / "model.safetensors").write_bytes(b"weeks of work")
        (path / STATE).write_text(json.dumps({"global_step": 6, "stateful_callbacks": {"TrainerControl": {}}}))
    elif kind == "notes in ours":
        room(tmp_path)
        (path / "model_notes.txt").write_text("mine")
    elif kind == "folder in ours":
        room(tmp_path)
        (path / "tokenizer_experiments").mkdir()
        (path / "tokenizer_experiments" / "tokenizer.json").write_text("mine")
    elif kind == "another run":
        checkpoint_of(tmp_path, 6, "before it was started over")
    elif kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to("elsewhere" if kind == "link" else "nowhere")
    before = os.readlink(path) if path.is_symlink() else tree(path) if path.is_dir() else path.read_bytes()
    for number in (1, 2):
        room(tmp_path)
        aside = tmp_path / "_checkpoint-6.replaced-1"
        after = os.readlink(aside) if aside.is_symlink() else tree(aside) if aside.is_dir() else aside.read_bytes()
        assert after == before, number
    assert set(tree(path)) == {MARK} and not path.is_symlink()
    assert (elsewhere / "model.safetensors").read_bytes() == b"weeks of work"


def test_a_limit_of_checkpoints_deletes_nothing_but_what_the_run_wrote(tmp_path):
    for step, run in ((1, "this"), (2, "this"), (3, "before"), (9, "before")):
        checkpoint_of(tmp_path, step, run)
    write_checkpoint(tmp_path / "checkpoint-4", num_processes=1)
    (tmp_path / "checkpoint-2" / "my_eval").mkdir()
    (tmp_path / "checkpoint-2" / "my_eval" / "notes.txt").write_text("mine")
    (tmp_path / "checkpoint-9" / STATE).unlink()  # never finished
    for name in ("checkpoint-1-good", "checkpoint-notes-7"):
        (tmp_path / name).mkdir()
    make_room(tmp_path, 5, Start(None, 0, "this"), limited=True)
    renamed = ("checkpoint-1-good", "checkpoint-2", "checkpoint-3", "checkpoint-4", "checkpoint-notes-7")
    assert {path.name for path in tmp_path.glob("*checkpoint*")} == {
        "checkpoint-1",
        "checkpoint-5",
        *(f"_{name}.replaced-1" for name in renamed),
    }
    assert (tmp_path / "_checkpoint-2.replaced-1" / "my_eval" / "notes.txt").exists()


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="cannot be written"):
        room(tmp_path / "run")


def test_a_checkpoint_of_an_earlier_version_is_renamed_by_another_run(tmp_path):
    (tmp_path / "checkpoint-6").mkdir()
    state = {"global_step": 6, "stateful_callbacks": {RECORD: {"attributes": {"num_processes": 1}}}}
    (tmp_path / "checkpoint-6" / STATE).write_text(json.dumps(state))
    room(tmp_path)
    assert set(tree(tmp_path)) == {MARK, f"checkpoint-6/{MARK}", f"_checkpoint-6.replaced-1/{STATE}"}
