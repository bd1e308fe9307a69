"""Whatever an editor returns, only what passes verification is kept, and the rest is counted by its reason."""

from collections import Counter
from dataclasses import replace

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value, load_from_disk
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.data.schema import check_dataset
from rlmec_trl.data.steps import first_changed_step
from rlmec_trl.tasks.arithmetic import edit as edit_arithmetic
from rlmec_trl.tasks.task import load_task
from rlmec_trl.tasks.wording import policy_prompt
from rlmec_trl.teachers.editors import (
    EditorError,
    NoEdit,
    edit_dataset,
    editor_inputs,
    judge_edit,
    load_editor,
    mean_edit_distance,
    verify_rewrite,
)


PROBLEM = "Tom has 59 nuts, loses 16, finds 23, buys 20."
REFERENCE = "59 - 16 + 23 + 20 = 86"
RIGHT = "59 - 16 is 43 ; 43 + 23 = 66 ; 66 + 20 makes 86 ; The answer is 86"
WRONG = "59 - 16 is 43 ; 43 + 23 = 67 ; 67 + 20 makes 87 ; The answer is 87"
# Two mistakes that cancel
FLAWED = "59 - 16 is 43 ; 43 + 23 = 67 ; 67 + 20 makes 86 ; The answer is 86"
TASK = load_task("arithmetic")


def judge(completion, edit, task=TASK):
    return judge_edit(task, PROBLEM, "86", completion, completion in (RIGHT, FLAWED), edit)


# --- Verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "edit", "outcome"),
    [
        (WRONG, (1, RIGHT.replace("The answer is 86", "The answer is 85")), "wrong answer"),
        (WRONG, (1, FLAWED), "wrong step"),
        (WRONG, (1, ""), "empty"),
        (WRONG, (1, " \n"), "empty"),
        (WRONG, (-1, WRONG), "left wrong"),
        (WRONG, (1, WRONG), "left wrong"),
        (WRONG, (-1, FLAWED), "wrong step"),
        (WRONG, NoEdit("refusal"), "refusal"),
        # Without an edit, the steps of an attempt with a correct answer are not assumed to be correct either
        (RIGHT, NoEdit("truncated"), "truncated"),
        (FLAWED, (1, WRONG), "wrong answer"),
        # A correct answer does not excuse an incorrect step
        (FLAWED, (-1, FLAWED), "left wrong"),
        (FLAWED, (1, FLAWED), "left wrong"),
        (FLAWED, (-1, RIGHT), "left wrong"),
        (FLAWED, (1, ""), "empty"),
        # The attempt has steps 0 to 3; 4 stands for one that is missing
        (WRONG, (5, RIGHT), "malformed"),
        (WRONG, (400, RIGHT), "malformed"),
        (WRONG, (-2, RIGHT), "malformed"),
        (RIGHT, (5, RIGHT), "malformed"),
        ("", (1, RIGHT), "malformed"),
    ],
)
def test_what_fails_verification_is_never_kept(completion, edit, outcome):
    assert judge(completion, edit) == (outcome, -1, None)


@pytest.mark.parametrize(
    ("completion", "edit", "expected"),
    [
        (WRONG, (1, RIGHT), ("rewritten", 1, RIGHT)),
        (WRONG, (0, RIGHT), ("rewritten", 0, RIGHT)),
        # No step is called incorrect, but one is changed: the change shows which
        (WRONG, (-1, RIGHT), ("rewritten", 1, RIGHT)),
        (FLAWED, (1, RIGHT), ("rewritten", 1, RIGHT)),
        # A step is missing at the end
        ("59 - 16 is 43 ; 43 + 23 = 66 ; 66 + 20 makes 86", (3, RIGHT), ("rewritten", 3, RIGHT)),
        (RIGHT, (-1, RIGHT), ("unchanged", -1, RIGHT)),
        (RIGHT, (2, RIGHT), ("unchanged", -1, RIGHT)),
        # An attempt with a correct answer stays word for word if no step of it is called incorrect
        (RIGHT, (-1, RIGHT.replace("makes", "=")), ("unchanged", -1, RIGHT)),
        (RIGHT, (-1, "nonsense"), ("unchanged", -1, RIGHT)),
    ],
)
def test_what_passes_is_kept(completion, edit, expected):
    assert judge(completion, edit) == expected


def test_a_task_that_cannot_check_steps_checks_answers():
    task = replace(TASK, check_steps=None)
    assert judge(FLAWED, (-1, FLAWED), task) == ("unchanged", -1, FLAWED)
    task = replace(load_task("math"), check_steps=None)
    rewrite = "59 - 16 = 44\n44 + 23 + 20 = 86\nThe answer is 86"
    assert verify_rewrite(task, PROBLEM, "86", rewrite) is None
    assert verify_rewrite(task, PROBLEM, "85", rewrite) == "wrong answer"
    assert judge_edit(task, PROBLEM, "86", "59 - 16 = 44\nThe answer is 87", False, (0, rewrite)) == (
        "rewritten",
        0,
        rewrite,
    )


@pytest.mark.parametrize(
    ("completion", "rewrite", "expected"),
    [
        ("a\nb\nc", "a\nb\nc", -1),
        ("a\nb\nc", "x\nb\nc", 0),
        ("a\nb\nc", "a\nx\nc", 1),
        ("a\nb\nc", "a\nb", 2),
        ("a\nb\nc", "a\nb\nx\nc", 2),
        # Something is missing at the end: the last step is returned
        ("a\nb", "a\nb\nc", 1),
        ("a", "a\nb", 0),
    ],
)
@pytest.mark.parametrize("separator", ["\n", " ; "])
def test_the_first_changed_step(completion, rewrite, expected, separator):
    completion, rewrite = (text.replace("\n", separator) for text in (completion, rewrite))
    assert first_changed_step(completion, rewrite, separator) == expected


# --- Datasets --------------------------------------------------------------------------------------------------------


def sampled(*completions, **columns):
    rows = [
        {
            "prompt": PROBLEM,
            "reference": REFERENCE,
            "answer": "86",
            "completion": completion,
            "correct": TASK.check_answer(completion, "86"),
        }
        for completion in completions
    ]
    return Dataset.from_list([row | columns for row in rows])


def scripted_editor(edits, calls=None):
    def editor(problems, references, completions, usable):
        if calls is not None:
            calls.append((problems, references, completions))
        return [edits[completion] for completion in completions]

    return editor


def test_every_row_gets_its_edit_and_every_outcome_is_counted():
    attempts = [WRONG, RIGHT, FLAWED, *(WRONG.replace("59", str(number)) for number in range(50, 55))]
    answers = [(1, RIGHT), (-1, RIGHT), (1, RIGHT), (1, ""), (1, FLAWED), (1, "The answer is 1"), NoEdit("refusal")]
    answers.append((-1, attempts[-1]))
    dataset = sampled(*attempts)
    edited, outcomes = edit_dataset(dataset, scripted_editor(dict(zip(attempts, answers, strict=True))), TASK)
    assert edited["rewrite"][:] == [RIGHT, RIGHT, RIGHT, None, None, None, None, None]
    assert edited["error_step"][:] == [1, -1, 1, -1, -1, -1, -1, -1]
    assert edited.remove_columns(["rewrite", "error_step", "edit_outcome"]).to_list() == dataset.to_list()
    by_row = ["rewritten", "unchanged", "rewritten", "empty", "wrong step", "wrong answer", "refusal", "left wrong"]
    assert edited["edit_outcome"][:] == by_row
    assert outcomes == Counter(by_row)


def test_samples_with_a_correct_answer_can_be_left_out():
    calls = []
    edits = {WRONG: (1, RIGHT), FLAWED: (1, RIGHT)}
    dataset = sampled(FLAWED, WRONG, RIGHT)
    edited, outcomes = edit_dataset(dataset, scripted_editor(edits, calls), TASK, check_correct_samples=False)
    assert calls == [([PROBLEM], [REFERENCE], [WRONG])]
    # The task's own check of steps needs no editor
    assert edited["rewrite"][:] == [None, RIGHT, RIGHT]
    assert edited["error_step"][:] == [-1, 1, -1]
    assert edited["edit_outcome"][:] == ["left wrong", "rewritten", "unchanged"]
    assert outcomes == {"left wrong": 1, "rewritten": 1, "unchanged": 1}


def test_messages_stay_messages_and_the_editor_gets_text():
    calls = []
    messages = [[{"role": "assistant", "content": text}] for text in (WRONG, RIGHT, "oh")]
    dataset = Dataset.from_dict(
        {
            "prompt": [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROBLEM}]] * 3,
            "reference": [REFERENCE] * 3,
            "answer": ["86"] * 3,
            "completion": messages,
            "correct": [False, True, False],
        }
    )
    editor = scripted_editor({WRONG: (1, RIGHT), RIGHT: (-1, RIGHT), "oh": NoEdit("refusal")}, calls)
    edited, _ = edit_dataset(dataset, editor, TASK)
    assert calls == [([PROBLEM] * 3, [REFERENCE] * 3, [WRONG, RIGHT, "oh"])]
    assert edited["rewrite"][:] == [messages[1], messages[1], None]
    check_dataset(edited.select([0, 1]), "edits")


def test_the_editor_gets_the_problem_without_the_prompt_template():
    calls = []
    task = load_task("math")
    dataset = sampled(WRONG, prompt=task.wording.policy.replace("{problem}", PROBLEM))
    edit_dataset(dataset, scripted_editor({WRONG: NoEdit("refusal")}, calls), task)
    assert calls == [([PROBLEM], [REFERENCE], [WRONG])]


def as_messages(dataset):
    def convert(row):
        return {"completion": [{"role": "assistant", "content": row["completion"]}]}

    return dataset.map(convert, features=Features({**dataset.features, "completion": MESSAGES}))


MESSAGES = List({"role": Value("string"), "content": Value("string")})


@pytest.mark.parametrize("conversational", [False, True], ids=["text", "messages"])
@pytest.mark.parametrize("edit", [NoEdit("refusal"), (1, RIGHT)], ids=["no rewrite", "rewrites"])
def test_shards_without_any_rewrite_have_the_types_of_the_others(edit, conversational, tmp_path):
    dataset = sampled(WRONG, FLAWED)
    dataset = as_messages(dataset) if conversational else dataset
    edited, _ = edit_dataset(dataset, lambda *_: [edit] * 2, TASK)
    assert edited.features["rewrite"] == dataset.features["completion"]
    assert edited.features["rewrite"] == (MESSAGES if conversational else Value("string"))
    assert edited.features["error_step"] == Value("int64")
    assert edited.features["edit_outcome"] == Value("string")
    edited.save_to_disk(tmp_path / "shard")
    assert load_from_disk(tmp_path / "shard").features == edited.features


def test_types_and_unknown_columns_survive():
    dataset = sampled(WRONG, RIGHT, FLAWED)
    columns = {
        "subject": ([1, 0, 1], ClassLabel(names=["algebra", "arithmetic"])),
        "embedding": ([[0.5, 1.0]] * 3, List(Value("float32"), length=2)),
        "level": ([1, None, 3], Value("int8")),
        "source": ([None] * 3, Value("string")),
        "chat_template_kwargs": ([{"enable_thinking": False}] * 3, {"enable_thinking": Value("bool")}),
    }
    for name, (values, feature) in columns.items():
        dataset = dataset.add_column(name, values, feature=feature)
    edited, _ = edit_dataset(dataset.select([2, 0]), edit_arithmetic, TASK)
    assert {name: edited.features[name] for name in dataset.features} == dataset.features
    assert edited.select_columns(dataset.column_names).to_list() == [dataset[2], dataset[0]]


def test_editing_again_replaces_the_columns():
    dataset = sampled(WRONG, rewrite="old", error_step=7, edit_outcome="refusal")
    edited, _ = edit_dataset(dataset, edit_arithmetic, TASK)
    assert edited.column_names[-3:] == ["rewrite", "error_step", "edit_outcome"]
    assert [edited[0][name] for name in edited.column_names[-3:]] == [RIGHT, 1, "rewritten"]


def test_the_programmatic_editor_corrects_everything(make_rows):
    dataset = Dataset.from_list(make_rows(60)).remove_columns(["rewrite", "error_step"])
    edited, outcomes = edit_dataset(dataset, edit_arithmetic, TASK)
    assert outcomes == {"rewritten": 40, "unchanged": 20}
    check_dataset(edited, "edits")
    assert all(all(TASK.check_steps(row["prompt"], row["rewrite"])) for row in edited)
    hidden = [row for row in edited if row["correct"] and row["error_step"] >= 0]
    assert len(hidden) == 20 and all(row["rewrite"] != row["completion"] for row in hidden)


@given(error_step=st.integers(-5, 9))
def test_no_step_is_trained_on_that_the_attempt_does_not_have(error_step):
    _, rewrite = edit_arithmetic([PROBLEM], [REFERENCE], [WRONG])[0]
    outcome, kept_step, kept = judge(WRONG, (error_step, rewrite))
    assert (kept is None) == (outcome == "malformed") == (not -1 <= error_step <= 4)
    assert kept is None or 0 <= kept_step <= 4


# --- What an editor can ask ------------------------------------------------------------------------------------------


EDITS = [
    (1, RIGHT),
    (-1, RIGHT),
    (-1, WRONG),
    (1, WRONG),
    (1, FLAWED),
    (0, ""),
    (3, "The answer is 86"),
    NoEdit("refusal"),
    NoEdit("malformed"),
]


@pytest.mark.parametrize("check_correct_samples", [True, False])
def test_usable_is_true_for_exactly_the_edits_that_are_kept(check_correct_samples):
    attempts = [RIGHT, WRONG, FLAWED, "59 - 16 is 43"]
    dataset = sampled(*attempts)
    for edit in EDITS:
        told = {}

        def editor(problems, references, completions, usable, edit=edit, told=told):
            told.update({completion: usable(index, edit) for index, completion in enumerate(completions)})
            return [edit] * len(completions)

        edited, _ = edit_dataset(dataset, editor, TASK, check_correct_samples)
        # Indices refer to the rows that the editor got, not to those of the dataset
        assert list(told) == (attempts if check_correct_samples else [WRONG, attempts[3]])
        kept = {row["completion"]: row["rewrite"] is not None for row in edited if row["completion"] in told}
        assert told == kept, edit


def test_usable_depends_on_the_row():
    dataset = sampled(RIGHT, WRONG)
    seen = []

    def editor(problems, references, completions, usable):
        seen.extend(usable(index, (-1, completion)) for index, completion in enumerate(completions))
        return [(-1, completion) for completion in completions]

    edit_dataset(dataset, editor, TASK)
    assert seen == [True, False]


def test_an_editor_can_try_again_until_an_edit_is_usable():
    tries = {RIGHT: [(-1, RIGHT)], WRONG: [NoEdit("malformed"), (1, FLAWED), (1, RIGHT)], FLAWED: [(2, WRONG)] * 2}

    def editor(problems, references, completions, usable):
        edits = []
        for index, completion in enumerate(completions):
            edits.append(next((edit for edit in tries[completion] if usable(index, edit)), tries[completion][-1]))
        return edits

    edited, outcomes = edit_dataset(sampled(WRONG, FLAWED, RIGHT), editor, TASK)
    assert edited["rewrite"][:] == [RIGHT, None, RIGHT]
    assert edited["edit_outcome"][:] == ["rewritten", "wrong answer", "unchanged"]


def test_an_editor_gets_problems_references_and_attempts_as_plain_text():
    task = load_task("math")
    prompt = policy_prompt(task.wording, "What is {1 + 1}?")
    plain = Dataset.from_dict(
        {"prompt": [prompt, "other"], "reference": ["2", "3"], "completion": ["The answer is 2", "no"]}
    )
    messages = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": text}] for text in plain["prompt"]],
            "reference": ["2", "3"],
            "completion": [[{"role": "assistant", "content": text}] for text in plain["completion"]],
        }
    )
    expected = (["What is {1 + 1}?", "other"], ["2", "3"], ["The answer is 2", "no"])
    assert editor_inputs(plain, task) == editor_inputs(messages, task) == expected
    assert [type(column) for column in editor_inputs(plain, task)] == [list] * 3


# --- User-defined editors --------------------------------------------------------------------------------------------


class TeacherOfOnesOwn:
    def __init__(self, edits):
        self.edits = edits

    def __call__(self, problems, references, completions):
        return self.edits


@pytest.mark.parametrize(
    "edits", [None, "none", {0: (1, RIGHT)}, iter([(1, RIGHT)] * 2)], ids=lambda x: type(x).__name__
)
def test_an_editor_that_returns_no_list_is_named(edits):
    with pytest.raises(EditorError, match=r"The editor `TeacherOfOnesOwn` returned a `\w+`; it must return a list"):
        edit_dataset(sampled(WRONG, RIGHT), TeacherOfOnesOwn(edits), TASK)


@pytest.mark.parametrize("edits", [[], [(1, RIGHT)], [(1, RIGHT)] * 3])
def test_an_editor_that_leaves_out_a_row_or_adds_one_is_an_error(edits):
    with pytest.raises(EditorError, match=rf"`TeacherOfOnesOwn` returned {len(edits)} edits for 2 attempts; .*NoEdit"):
        edit_dataset(sampled(WRONG, RIGHT), TeacherOfOnesOwn(edits), TASK)


@pytest.mark.parametrize(
    "edit",
    [
        None,
        RIGHT,
        (1,),
        (1, RIGHT, "because"),
        [1, RIGHT],
        ("1", RIGHT),
        (1.0, RIGHT),
        (True, RIGHT),
        (None, RIGHT),
        (1, None),
        (1, ["59"]),
        (1, "59 \ud83d"),
        NoEdit(None),
        NoEdit(" "),
        NoEdit("rewritten"),
        (RIGHT, 1),
        "x" * 10_000,
    ],
    ids=lambda edit: repr(edit)[:30],
)
@pytest.mark.parametrize("asks", [False, True])
def test_an_edit_of_another_form_is_an_error_that_names_the_editor_and_the_row(edit, asks):
    def my_editor(problems, references, completions, usable):
        edits = [(1, RIGHT), edit]
        if asks:
            usable(1, edit)
        return edits

    with pytest.raises(EditorError, match=r"my_editor` returned .* for row 1003; an edit is a tuple of") as caught:
        # Of four rows, the editor is given the incorrect ones; these are rows 1000 to 1003 of the whole dataset
        edit_dataset(sampled(RIGHT, WRONG, RIGHT, WRONG), my_editor, TASK, check_correct_samples=False, first_row=1000)
    assert len(str(caught.value)) < 400


def with_three(problems, references, completions):
    return [(1, RIGHT) for _ in completions]


def with_keyword(problems, references, completions, *, usable):
    return [(1, RIGHT) if usable(0, (1, RIGHT)) else NoEdit("not usable") for _ in completions]


def with_any_keyword(problems, references, completions, **settings):
    return with_keyword(problems, references, completions, **settings)


def with_other_parameters(problems, references, completions, temperature=0.7):
    assert temperature == 0.7, "what is not called `usable` keeps its default"
    return [(1, RIGHT) for _ in completions]


class WithCall:
    def __call__(self, problems, references, completions):
        return with_three(problems, references, completions)

    def method(self, problems, references, completions, usable):
        return with_keyword(problems, references, completions, usable=usable)


@pytest.mark.parametrize(
    "editor",
    [with_three, with_keyword, with_any_keyword, with_other_parameters, WithCall(), WithCall().method],
    ids=lambda editor: getattr(editor, "__name__", "object"),
)
def test_an_editor_is_a_function_or_an_object_and_need_not_know_usable(editor):
    edited, outcomes = edit_dataset(sampled(WRONG), editor, TASK)
    assert edited["rewrite"][:] == [RIGHT] and outcomes == {"rewritten": 1}


def test_an_editor_is_not_called_without_attempts():
    def editor(problems, references, completions):
        raise AssertionError("there is nothing to edit")

    edited, _ = edit_dataset(sampled(RIGHT), editor, TASK, check_correct_samples=False)
    assert edited["rewrite"][:] == [RIGHT]


def test_an_error_inside_an_editor_is_named_with_its_line_and_stays_the_cause():
    def editor(problems, references, completions):
        raise TypeError("unsupported operand")

    with pytest.raises(
        EditorError, match=r"failed on 1 attempts: TypeError: unsupported.*test_editors.py, line"
    ) as error:
        edit_dataset(sampled(WRONG), editor, TASK)
    assert isinstance(error.value.__cause__, TypeError)


def test_an_editor_is_loaded_by_its_path_and_what_cannot_be_called_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def correct(problems, references, completions):\n"
        "    return [(0, reference) for reference in references]\n"
        "SETTINGS = {}\n"
    )
    editor = load_editor(f"{tmp_path}/mine.py:correct")
    assert editor(["1 + 1"], ["2"], ["3"]) == [(0, "2")]
    assert load_editor("rlmec_trl.tasks.arithmetic:edit") is edit_arithmetic
    with pytest.raises(ValueError, match=r"mine.py:SETTINGS' is a `dict`, not an editor. .*`__call__`"):
        load_editor(f"{tmp_path}/mine.py:SETTINGS")


# --- How much a rewrite changes --------------------------------------------------------------------------------------


def edited_rows(*rows):
    names = ("completion", "rewrite", "edit_outcome")
    return Dataset.from_list([dict(zip(names, row, strict=True)) for row in rows])


def test_the_distance_counts_changed_words_of_rewritten_attempts_alone():
    edited = edited_rows(
        # One word replaced, one added, one removed
        ("a b c d", "a x c d e", "rewritten"),
        ("a b c d", "b c d", "rewritten"),
        ("a b", "a b", "unchanged"),
        ("a b c", None, "wrong answer"),
    )
    assert mean_edit_distance(edited) == 1.5


def test_the_distance_is_the_same_for_messages():
    def message(text):
        return [{"role": "assistant", "content": text}]

    edited = edited_rows((message("a b c"), message("a\n c d"), "rewritten"), (message("a"), None, "refusal"))
    assert mean_edit_distance(edited) == 2


def test_there_is_no_distance_without_rewrites():
    assert mean_edit_distance(edited_rows(("a", "a", "unchanged"), ("b", None, "refusal"))) is None
