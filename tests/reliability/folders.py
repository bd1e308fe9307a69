"""Output folders."""

import os
from functools import partial
from pathlib import Path

from datasets import load_from_disk

from rlmec_trl.stages.output import claim
from tests.reliability.case import Case


SECTION = "Output folders"


def edit(place, output_dir=None, **settings):
    samples = place.saved("samples", place.samples().to_list())
    edited = place.edit(samples, **settings | ({} if output_dir is None else {"output_dir": output_dir}))
    assert len(edited) == 3
    return f"{len(edited)} rows"


def a_file(place):
    edit(place, place.file("edits", "mine"))


def in_a_file(place):
    edit(place, place.file("folder", "mine") + "/edits")


def a_users_folder(place):
    place.file("edits/thesis.tex", "mine")
    edit(place)


def an_added_file(place):
    edit(place)
    place.file("edits/thesis.tex", "mine")
    edit(place, check_correct_samples=False)


def a_link_to_a_folder(place):
    Path(place.path("elsewhere")).mkdir()
    Path(place.path("edits")).symlink_to(place.path("elsewhere"))
    edit(place)
    assert len(load_from_disk(place.path("elsewhere"))) == 3 and Path(place.path("edits")).is_symlink()
    return "the rows are in the folder behind it"


def a_broken_link(place):
    Path(place.path("edits")).symlink_to(place.path("nowhere"))
    edit(place)
    return "the folder behind it is made"


def in_the_working_directory(name):
    def run(place):
        before, inside = os.getcwd(), place.folder / "a" / "b"
        inside.mkdir(parents=True)
        os.chdir(inside)
        try:
            edit(place, name)
        finally:
            os.chdir(before)

    return run


def its_input(place):
    place.edit(place.saved("edits", place.samples().to_list()))


def another_run(place):
    with claim(place.path("edits")):
        edit(place)


def again(place):
    edit(place)
    before = Path(place.path("edits/rlmec_trl.json")).stat().st_mtime_ns
    edit(place)
    assert Path(place.path("edits/rlmec_trl.json")).stat().st_mtime_ns == before
    return "the finished result is kept"


def a_truncated_result(place):
    edit(place)
    (data,) = Path(place.path("edits")).glob("*.arrow")
    data.write_bytes(data.read_bytes()[:-100])
    edit(place)
    return "it is recomputed"


def damaged_shard(change):
    def run(place):
        shards = []

        def stop(problems, references, completions):
            shards.append(None)
            if len(shards) == 3:
                raise KeyboardInterrupt
            return [(-1, completion) for completion in completions]

        from rlmec_trl.stages.runner import map_shards
        from rlmec_trl.tasks.task import load_task
        from rlmec_trl.teachers.editors import edit_dataset

        def edit_shard(shard, index, editor=stop):
            return edit_dataset(shard, editor, load_task("arithmetic"))[0]

        try:
            map_shards(place.samples(), edit_shard, place.path("edits"), {}, shard_size=1)
        except KeyboardInterrupt:
            first = min(Path(place.path(".edits.rlmec_trl")).glob("*.shards/0*"))
            change(next(first.glob("*.arrow")))
        keep = partial(edit_shard, editor=lambda p, r, c: [(-1, completion) for completion in c])
        edited = map_shards(place.samples(), keep, place.path("edits"), {}, shard_size=1)
        assert len(edited) == 3
        return "that shard is recomputed"

    return run


def a_journal_inside(place):
    edit(place, provider="server", journal_dir=place.path("edits/journal"))


CASES = [
    Case("`output_dir` is a file", a_file, "is a file, not a folder"),
    Case("`output_dir` is inside a file", in_a_file, "cannot be written: Not a directory"),
    Case("`output_dir` has a file of yours", a_users_folder, "thesis.tex"),
    Case("a file of yours was added to the result", an_added_file, "thesis.tex"),
    Case("`output_dir` is a link to a folder", a_link_to_a_folder),
    Case("`output_dir` is a link to nothing", a_broken_link),
    Case("`output_dir` is `.`", in_the_working_directory("."), "the working directory"),
    Case("`output_dir` is `..`", in_the_working_directory(".."), "a folder around it"),
    Case("`output_dir` is empty", lambda place: edit(place, ""), "the working directory"),
    Case("`output_dir` has the rows to work on", its_input, "rows to work on were loaded from"),
    Case(
        "`output_dir` is `dataset_name` of a finished run",
        lambda place: (edit(place), place.edit(place.path("edits")))[0],
        "loaded from|is missing",
    ),
    Case("another run is writing", another_run, "Another run is writing"),
    Case("the same command again", again),
    Case("the finished result is truncated", a_truncated_result),
    Case("a finished shard is truncated", damaged_shard(lambda data: data.write_bytes(data.read_bytes()[:-100]))),
    Case("a finished shard is empty", damaged_shard(lambda data: data.write_bytes(b""))),
    Case("a finished shard lacks its file", damaged_shard(lambda data: data.unlink())),
    Case("the journal is inside `output_dir`", a_journal_inside, "lies in `--output_dir`"),
]
