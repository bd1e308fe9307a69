"""A local model as the teacher gets two prompts per attempt, and a truncated answer is not used."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from rlmec_trl.tasks.arithmetic import WORDING
from rlmec_trl.tasks.task import load_task
from rlmec_trl.tasks.wording import locate_prompt, rewrite_prompt
from rlmec_trl.teachers.editors import NoEdit, edit_dataset
from rlmec_trl.teachers.model_editor import ModelEditor


PROBLEM = "Tom has 59 nuts, loses 16, finds 23, buys 20."
REFERENCE = "59 - 16 + 23 + 20 = 86"
RIGHT = "59 - 16 is 43 ; 43 + 23 = 66 ; 66 + 20 makes 86 ; The answer is 86"
WRONG = "59 - 16 is 43 ; 43 + 23 = 67 ; 67 + 20 makes 87 ; The answer is 87"
# Two mistakes that cancel
FLAWED = "59 - 16 is 43 ; 43 + 23 = 67 ; 67 + 20 makes 86 ; The answer is 86"
TASK = load_task("arithmetic")


class ScriptedModel:
    """Answers prompts with given token ids, as `generate` would: after the prompt, padded, cut at the limit."""

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
    """Have a model with given answers (text, to which EOS is added, or token ids) edit attempts."""

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


def test_a_model_gets_both_prompts_and_answers_in_order(ask):
    attempts = ["The answer is 5", WRONG, FLAWED, RIGHT]
    edits, model = ask(attempts, [RIGHT, RIGHT, " " + RIGHT, RIGHT], ["0", "1", "2", "none"])
    assert edits == [(0, RIGHT), (1, RIGHT), (2, RIGHT), (-1, RIGHT)]
    assert set(model.limits.values()) == {512, 16}


@pytest.mark.parametrize("answer", ["", "Tom has", "4", "7", " + "])
def test_without_a_usable_locate_answer_the_rewrite_shows_the_step(ask, answer):
    edits, _ = ask([WRONG], [RIGHT], [answer])
    assert edits == [(1, RIGHT)]


def test_a_truncated_locate_answer_is_not_used(ask, tokenizer):
    step_zero = tokenizer("0")["input_ids"]
    edits, _ = ask([WRONG], [RIGHT], [step_zero * 20])
    assert edits == [(1, RIGHT)]


def test_a_truncated_rewrite_is_no_edit(ask, tokenizer):
    ids = [*tokenizer(RIGHT)["input_ids"], tokenizer.eos_token_id]
    for limit, expected in ((len(ids) - 1, NoEdit("truncated")), (len(ids), (1, RIGHT)), (len(ids) + 1, (1, RIGHT))):
        edits, _ = ask([WRONG], [RIGHT], ["1"], max_new_tokens=limit)
        assert edits == [expected], limit
    assert ask([WRONG], [RIGHT], ["1"], max_new_tokens=3)[0] == [NoEdit("truncated")]


def test_an_eos_token_of_the_generation_config_ends_a_rewrite(tokenizer):
    end = tokenizer("none")["input_ids"][0]
    answers = {
        rewrite_prompt(WORDING, PROBLEM, REFERENCE, WRONG): [*tokenizer(RIGHT)["input_ids"], end],
        locate_prompt(WORDING, PROBLEM, REFERENCE, WRONG): [*tokenizer("1")["input_ids"], tokenizer.eos_token_id],
    }
    editor = ModelEditor(ScriptedModel(tokenizer, answers, eos_token_id=[end]), tokenizer, WORDING)
    ((step, rewrite),) = editor([PROBLEM], [REFERENCE], [WRONG])
    assert (step, rewrite.removesuffix("none").strip()) == (1, RIGHT)


def test_a_chat_model_gets_its_prompts_as_messages(ask, chat_tokenizer):
    edits, model = ask([WRONG], [RIGHT], ["1"], processing_class=chat_tokenizer, end=" attempt")
    assert edits == [(1, RIGHT)]
    assert all(question.endswith(": attempt") for question in model.limits)


def test_attempts_that_a_model_leaves_incorrect_are_not_trained_on(ask):
    attempts = [WRONG, FLAWED, RIGHT]
    dataset = Dataset.from_dict(
        {
            "prompt": [PROBLEM] * 3,
            "reference": [REFERENCE] * 3,
            "answer": ["86"] * 3,
            "completion": attempts,
            "correct": [False, True, True],
        }
    )

    def editor(problems, references, completions, usable):
        assert completions == attempts
        return ask(attempts, attempts, ["none", "none", "none"])[0]

    edited, outcomes = edit_dataset(dataset, editor, TASK)
    assert outcomes == {"left wrong": 2, "unchanged": 1}
    assert edited["rewrite"][:] == [None, None, RIGHT]


def test_no_rewrite_of_an_untrained_model_passes(policy, tokenizer, make_rows):
    dataset = Dataset.from_list(make_rows(6)).remove_columns(["rewrite", "error_step"])
    editor = ModelEditor(policy, tokenizer, WORDING, batch_size=4, max_new_tokens=8)
    edited, outcomes = edit_dataset(dataset, editor, TASK)
    assert sum(outcomes.values()) == 6 and "rewritten" not in outcomes
    assert not any(
        rewrite for rewrite, correct in zip(edited["rewrite"], edited["correct"], strict=True) if not correct
    )
