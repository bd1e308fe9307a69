"""Whatever an editor says, only what passes verification is kept, and everything else is counted by its reason."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from rlmec_trl.data.arithmetic import WORDING
from rlmec_trl.data.prompts import WORDING as DEFAULT_WORDING
from rlmec_trl.data.prompts import locate_prompt, rewrite_prompt
from rlmec_trl.data.schema import check_dataset
from rlmec_trl.data.tasks import load_task
from rlmec_trl.editing.editors import (
    ArithmeticEditor,
    ModelEditor,
    edit_dataset,
    first_changed_step,
    judge_edit,
    load_editor,
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
        (WRONG, None, "no answer"),
        (RIGHT, None, "no answer"),
        (FLAWED, (1, WRONG), "wrong answer"),
        (FLAWED, (1, ""), "empty"),
    ],
)
def test_what_fails_verification_is_never_kept(completion, edit, outcome):
    assert judge(completion, edit) == (outcome, -1, None)


@pytest.mark.parametrize(
    ("completion", "edit", "expected"),
    [
        (WRONG, (1, RIGHT), ("rewritten", 1, RIGHT)),
        (WRONG, (0, RIGHT), ("rewritten", 0, RIGHT)),
        # Said to be without error and yet changed: the change itself shows where
        (WRONG, (-1, RIGHT), ("rewritten", 1, RIGHT)),
        (FLAWED, (1, RIGHT), ("rewritten", 1, RIGHT)),
        (RIGHT, (-1, RIGHT), ("unchanged", -1, RIGHT)),
        (RIGHT, (2, RIGHT), ("unchanged", -1, RIGHT)),
        # A right answer that no step of is called wrong stays word for word
        (RIGHT, (-1, RIGHT.replace("makes", "=")), ("unchanged", -1, RIGHT)),
        (RIGHT, (-1, "nonsense"), ("unchanged", -1, RIGHT)),
    ],
)
def test_what_passes_is_kept(completion, edit, expected):
    assert judge(completion, edit) == expected


def test_a_task_that_cannot_check_steps_checks_answers():
    task = load_task("math")
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
        # Something is missing at the end: the last step stands for it
        ("a\nb", "a\nb\nc", 1),
        ("a", "a\nb", 0),
    ],
)
@pytest.mark.parametrize("separator", ["\n", " ; "])
def test_the_first_changed_step(completion, rewrite, expected, separator):
    completion, rewrite = (text.replace("\n", separator) for text in (completion, rewrite))
    assert first_changed_step(completion, rewrite, separator) == expected


# --- A data set ------------------------------------------------------------------------------------------------------


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
    def editor(problems, references, completions):
        if calls is not None:
            calls.append((problems, references, completions))
        return [edits[completion] for completion in completions]

    return editor


def test_every_row_gets_its_edit_and_every_outcome_is_counted():
    attempts = [WRONG, RIGHT, FLAWED, *(WRONG.replace("59", str(number)) for number in range(50, 55))]
    answers = [(1, RIGHT), (-1, RIGHT), (1, RIGHT), (1, ""), (1, FLAWED), (1, "The answer is 1"), None, None]
    answers[-1] = (-1, attempts[-1])
    dataset = sampled(*attempts)
    edited, outcomes = edit_dataset(dataset, scripted_editor(dict(zip(attempts, answers, strict=True))), TASK)
    assert edited["rewrite"][:] == [RIGHT, RIGHT, RIGHT, None, None, None, None, None]
    assert edited["error_step"][:] == [1, -1, 1, -1, -1, -1, -1, -1]
    assert edited.remove_columns(["rewrite", "error_step"]).to_list() == dataset.to_list()
    assert outcomes == Counter(
        {"rewritten": 2, "unchanged": 1, "empty": 1, "wrong step": 1, "wrong answer": 1, "no answer": 1}
        | {"left wrong": 1}
    )


def test_right_answers_can_be_left_alone():
    calls = []
    edits = {WRONG: (1, RIGHT), FLAWED: (1, RIGHT)}
    dataset = sampled(FLAWED, WRONG, RIGHT)
    edited, outcomes = edit_dataset(dataset, scripted_editor(edits, calls), TASK, check_correct_samples=False)
    assert calls == [([PROBLEM], [REFERENCE], [WRONG])]
    assert edited["rewrite"][:] == [FLAWED, RIGHT, RIGHT]
    assert edited["error_step"][:] == [-1, 1, -1]
    assert outcomes == {"unchanged": 2, "rewritten": 1}


def test_messages_stay_messages_and_the_editor_sees_texts():
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
    editor = scripted_editor({WRONG: (1, RIGHT), RIGHT: (-1, RIGHT), "oh": None}, calls)
    edited, _ = edit_dataset(dataset, editor, TASK)
    assert calls == [([PROBLEM] * 3, [REFERENCE] * 3, [WRONG, RIGHT, "oh"])]
    assert edited["rewrite"][:] == [messages[1], messages[1], None]
    check_dataset(edited.select([0, 1]), "edits")


def test_the_editor_sees_the_problem_without_what_the_policy_is_told():
    calls = []
    task = load_task("math")
    dataset = sampled(WRONG, prompt=task.wording.policy.replace("{problem}", PROBLEM))
    edit_dataset(dataset, scripted_editor({WRONG: None}, calls), task)
    assert calls == [([PROBLEM], [REFERENCE], [WRONG])]


def test_editing_again_replaces_the_columns():
    dataset = sampled(WRONG, rewrite="old", error_step=7)
    edited, _ = edit_dataset(dataset, ArithmeticEditor(), TASK)
    assert edited.column_names[-2:] == ["rewrite", "error_step"]
    assert (edited[0]["rewrite"], edited[0]["error_step"]) == (RIGHT, 1)


def test_the_programmatic_editor_mends_everything(make_rows):
    dataset = Dataset.from_list(make_rows(60)).remove_columns(["rewrite", "error_step"])
    edited, outcomes = edit_dataset(dataset, ArithmeticEditor(), TASK)
    assert outcomes == {"rewritten": 40, "unchanged": 20}
    check_dataset(edited, "edits")
    assert all(all(TASK.check_steps(row["prompt"], row["rewrite"])) for row in edited)
    hidden = [row for row in edited if row["correct"] and row["error_step"] >= 0]
    assert len(hidden) == 20 and all(row["rewrite"] != row["completion"] for row in hidden)


# --- A model as the editor -------------------------------------------------------------------------------------------


class ScriptedModel:
    """Answers questions with given token ids, as `generate` would: after the prompt, padded, cut at the limit."""

    device = torch.device("cpu")
    training = False

    def __init__(self, tokenizer, answers, eos_token_id=None):
        self.tokenizer, self.answers = tokenizer, answers
        self.generation_config = SimpleNamespace(eos_token_id=eos_token_id)
        self.limits = {}

    def eval(self):
        return self

    def train(self, mode):
        return self

    def generate(self, input_ids, attention_mask, max_new_tokens, pad_token_id, **kwargs):
        rows = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            question = self.tokenizer.decode(ids[mask.bool()])
            self.limits[question] = max_new_tokens
            rows.append(self.answers[question][:max_new_tokens])
        width = max(map(len, rows))
        padded = torch.tensor([row + [pad_token_id] * (width - len(row)) for row in rows])
        return torch.cat([input_ids, padded], dim=1)


@pytest.fixture
def ask(tokenizer):
    """Have a model edit attempts, of which it is said what it answers (text, to which EOS is added, or token ids)."""

    def ask(attempts, rewrites, located, processing_class=tokenizer, end="", **kwargs):
        def to_ids(answer):
            if not isinstance(answer, str):
                return answer
            return [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]

        answers = {}
        for attempt, rewrite, step in zip(attempts, rewrites, located, strict=True):
            answers[rewrite_prompt(WORDING, PROBLEM, REFERENCE, attempt) + end] = to_ids(rewrite)
            answers[locate_prompt(WORDING, PROBLEM, REFERENCE, attempt) + end] = to_ids(step)
        model = ScriptedModel(tokenizer, answers)
        editor = ModelEditor(model, processing_class, WORDING, batch_size=2, **kwargs)
        return editor([PROBLEM] * len(attempts), [REFERENCE] * len(attempts), attempts), model

    return ask


def test_a_model_is_asked_both_questions_and_answers_in_order(ask):
    attempts = ["The answer is 5", WRONG, FLAWED, RIGHT]
    edits, model = ask(attempts, [RIGHT, RIGHT, " " + RIGHT, RIGHT], ["0", "1", "2", "none"])
    assert edits == [(0, RIGHT), (1, RIGHT), (2, RIGHT), (-1, RIGHT)]
    assert set(model.limits.values()) == {512, 16}


@pytest.mark.parametrize("answer", ["", "Tom has", "4", "7", " + "])
def test_where_locating_gives_nothing_usable_the_rewrite_tells(ask, answer):
    edits, _ = ask([WRONG], [RIGHT], [answer])
    assert edits == [(1, RIGHT)]


def test_a_locate_answer_that_was_cut_off_is_not_believed(ask, tokenizer):
    step_zero = tokenizer("0")["input_ids"]
    edits, _ = ask([WRONG], [RIGHT], [step_zero * 20])
    assert edits == [(1, RIGHT)]


def test_a_rewrite_that_was_cut_off_is_no_answer(ask, tokenizer):
    ids = [*tokenizer(RIGHT)["input_ids"], tokenizer.eos_token_id]
    for limit, expected in ((len(ids) - 1, None), (len(ids), (1, RIGHT)), (len(ids) + 1, (1, RIGHT))):
        edits, _ = ask([WRONG], [RIGHT], ["1"], max_new_tokens=limit)
        assert edits == [expected], limit
    assert ask([WRONG], [RIGHT], ["1"], max_new_tokens=3)[0] == [None]


def test_an_end_of_the_generation_config_counts_as_one(tokenizer):
    end = tokenizer("none")["input_ids"][0]
    answers = {
        rewrite_prompt(WORDING, PROBLEM, REFERENCE, WRONG): [*tokenizer(RIGHT)["input_ids"], end],
        locate_prompt(WORDING, PROBLEM, REFERENCE, WRONG): [*tokenizer("1")["input_ids"], tokenizer.eos_token_id],
    }
    editor = ModelEditor(ScriptedModel(tokenizer, answers, eos_token_id=[end]), tokenizer, WORDING)
    ((step, rewrite),) = editor([PROBLEM], [REFERENCE], [WRONG])
    assert (step, rewrite.removesuffix("none").strip()) == (1, RIGHT)


def test_a_chat_model_gets_its_questions_as_messages(ask, chat_tokenizer):
    edits, model = ask([WRONG], [RIGHT], ["1"], processing_class=chat_tokenizer, end=" attempt")
    assert edits == [(1, RIGHT)]
    assert all(question.endswith(": attempt") for question in model.limits)


def test_a_model_that_leaves_things_wrong_teaches_nothing(ask):
    attempts = [WRONG, FLAWED, RIGHT]

    def editor(problems, references, completions):
        assert completions == attempts
        return ask(attempts, attempts, ["none", "none", "none"])[0]

    edited, outcomes = edit_dataset(sampled(*attempts), editor, TASK)
    assert outcomes == {"left wrong": 1, "unchanged": 2}
    assert edited["rewrite"][:] == [None, FLAWED, RIGHT]


def test_an_untrained_model_is_an_editor_that_is_never_believed(policy, tokenizer, make_rows):
    dataset = Dataset.from_list(make_rows(6)).remove_columns(["rewrite", "error_step"])
    editor = ModelEditor(policy, tokenizer, WORDING, batch_size=4, max_new_tokens=8)
    edited, outcomes = edit_dataset(dataset, editor, TASK)
    assert sum(outcomes.values()) == 6 and "rewritten" not in outcomes
    assert not any(
        rewrite for rewrite, correct in zip(edited["rewrite"], edited["correct"], strict=True) if not correct
    )


# --- By name ---------------------------------------------------------------------------------------------------------


def test_only_a_model_is_loaded(tokenizer):
    def load_model(name):
        assert name == "some/model"
        return "model", tokenizer

    editor = load_editor("some/model", load_model, batch_size=3)
    assert (editor.model, editor.processing_class, editor.batch_size) == ("model", tokenizer, 3)
    assert editor.wording == DEFAULT_WORDING
    assert isinstance(load_editor("arithmetic", load_model, batch_size=3), ArithmeticEditor)
