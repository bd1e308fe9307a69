"""Every figure of the audit against cases small enough to count by hand."""

import importlib
import math

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.data.tokens import encode_completion
from rlmec_trl.reports.accuracy import Accuracy
from rlmec_trl.stages.audit import AuditConfig, area_under_curve, audit_grm, first_wrong_token, run
from rlmec_trl.tasks.arithmetic import edit as edit_arithmetic
from rlmec_trl.tasks.task import load_task


PROBLEM = "Tom has 59 nuts, loses 16, finds 23, buys 20."
CORRECT = "59 - 16 is 43 ; 43 + 23 = 66 ; 66 + 20 makes 86 ; The answer is 86"
INCORRECT = "59 - 16 is 43 ; 43 + 23 = 67 ; 67 + 20 makes 87 ; The answer is 87"
FLAWED = "59 - 16 is 43 ; 43 + 23 = 67 ; 67 + 20 makes 86 ; The answer is 86"
SHORT = "59 - 16 is 43 ; 43 + 23 = 66 ; 66 + 20 makes 86"
# Steps have 9 tokens with their separator: the first incorrect one of INCORRECT and FLAWED is the 7 of "67"
FIRST_INCORRECT = 9 + 7
TASK = load_task("arithmetic")


@pytest.fixture
def audit(tokenizer):
    def audit(*cases, **kwargs):
        """Audit samples given as `(completion, token_probs, rewrite)`; a `dict` of probabilities is .9 elsewhere."""
        rows = []
        for completion, probs, rewrite in cases:
            ids = encode_completion(tokenizer, completion)
            if isinstance(probs, dict):
                probs = [probs.get(position, 0.9) for position in range(len(ids))]
            rows.append(
                {
                    "prompt": PROBLEM,
                    "reference": "59 - 16 + 23 + 20 = 86",
                    "completion": completion,
                    "completion_ids": ids,
                    "correct": TASK.check_answer(completion, "86"),
                    "token_probs": probs,
                    "rewrite": rewrite,
                    "rewrite_ids": None if rewrite is None else encode_completion(tokenizer, rewrite),
                }
            )
        return audit_grm(Dataset.from_list(rows), TASK, edit_arithmetic, tokenizer, **kwargs)

    return audit


# --- Tokens ----------------------------------------------------------------------------------------------------------


def test_the_first_incorrect_token_is_where_the_rewrite_departs(tokenizer):
    def position(completion, rewrite):
        ids = [encode_completion(tokenizer, text) for text in (completion, rewrite)]
        return first_wrong_token(completion, ids[0], rewrite, ids[1])

    assert position(INCORRECT, CORRECT) == FIRST_INCORRECT
    assert position(CORRECT, CORRECT) is None
    assert position(SHORT, CORRECT) == len(tokenizer(SHORT)["input_ids"]), "an EOS that came too early"
    assert position(CORRECT, SHORT) == len(tokenizer(SHORT)["input_ids"]), "the first token that should not be there"


def test_flagged_and_kept_tokens(audit):
    result = audit(
        (INCORRECT, {FIRST_INCORRECT: 0.1, 0: 0.2, FIRST_INCORRECT + 1: 0.0}, CORRECT),
        (INCORRECT, {FIRST_INCORRECT: 0.8, FIRST_INCORRECT - 1: 0.5}, CORRECT),
        (FLAWED, {FIRST_INCORRECT: 0.5}, CORRECT),
        (CORRECT, {3: 0.3, -1: 0.1}, CORRECT),
    )
    assert result.first_wrong_flagged == Accuracy(1, 3)
    # What follows the first incorrect token does not count; a correct sample is clean up to its EOS
    length = 3 * 9 + 5 + 1
    assert result.clean_kept == Accuracy(3 * FIRST_INCORRECT + length - 3, 3 * FIRST_INCORRECT + length)


def test_tokens_without_a_probability_are_neither_kept_nor_flagged(audit):
    result = audit(
        (INCORRECT, {FIRST_INCORRECT: None, 0: None, 1: 0.2}, CORRECT),
        (FLAWED, {position: None for position in range(33)}, CORRECT),
        (INCORRECT, {FIRST_INCORRECT: 0.1}, CORRECT),
    )
    assert result.first_wrong_flagged == Accuracy(1, 3)
    assert result.clean_kept == Accuracy(2 * FIRST_INCORRECT - 2, 2 * FIRST_INCORRECT - 1)
    assert result.flawed_flagged == Accuracy(0, 1)
    assert result.auc == 1.0


def test_the_threshold_is_a_parameter(audit):
    case = (INCORRECT, {FIRST_INCORRECT: 0.1, 0: 0.2}, CORRECT)
    result = audit(case, threshold=0.1)
    assert (result.first_wrong_flagged, result.clean_kept) == (
        Accuracy(0, 1),
        Accuracy(FIRST_INCORRECT, FIRST_INCORRECT),
    )
    assert audit(case, threshold=0.15).first_wrong_flagged == Accuracy(1, 1)
    assert audit((FLAWED, {FIRST_INCORRECT: 0.1}, CORRECT), threshold=0.1).flawed_flagged == Accuracy(0, 1)


def test_the_curve_compares_first_incorrect_with_clean_tokens(audit):
    # 16 clean tokens: 0.3 and 0.5 among fourteen at 0.9; the incorrect token's 0.5 is under 14 and ties with one
    result = audit((INCORRECT, {FIRST_INCORRECT: 0.5, 0: 0.3, 1: 0.5}, CORRECT))
    assert result.auc == pytest.approx((14 + 0.5) / 16)
    assert math.isnan(audit((CORRECT, {}, CORRECT)).auc)


PROBS = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1), min_size=1, max_size=30)


@given(PROBS, PROBS)
def test_area_under_curve_is_a_count_of_pairs(negatives, positives):
    wins = sum((low < high) + (low == high) / 2 for low in negatives for high in positives)
    assert area_under_curve(negatives, positives) == pytest.approx(wins / (len(negatives) * len(positives)))


def test_area_under_curve_needs_both_kinds():
    assert math.isnan(area_under_curve([], [0.5]))
    assert math.isnan(area_under_curve([0.5], []))


# --- Samples ---------------------------------------------------------------------------------------------------------


def test_rewritten_counts_incorrect_answers_whose_rewrite_has_every_step_correct(audit):
    result = audit(
        (INCORRECT, {}, CORRECT),
        (INCORRECT, {}, CORRECT.replace("makes", "=")),  # not minimal, but correct
        (INCORRECT, {}, FLAWED),
        (INCORRECT, {}, None),
        (FLAWED, {}, CORRECT),
        (CORRECT, {}, CORRECT),
    )
    assert result.wrong_rewritten == Accuracy(2, 4)


def test_flawed_counts_correct_answers_with_an_incorrect_step(audit):
    result = audit(
        (FLAWED, {FIRST_INCORRECT: 0.4}, CORRECT),
        (FLAWED, {-1: 0.4}, CORRECT),  # positions are from the start: nothing is flagged
        (FLAWED, {30: 0.1}, None),  # anywhere
        (INCORRECT, {FIRST_INCORRECT: 0.1}, CORRECT),
        (CORRECT, {0: 0.1}, CORRECT),
    )
    assert result.flawed_flagged == Accuracy(2, 3)


@pytest.mark.parametrize(
    ("completion", "rewrite", "is_located"),
    [
        (INCORRECT, CORRECT, True),
        (INCORRECT, CORRECT.replace("makes", "="), True),  # later changes do not count
        (INCORRECT, CORRECT.replace("is 43", "= 43"), False),  # too early
        (INCORRECT, FLAWED, False),  # too late
        (INCORRECT, INCORRECT, False),
        (INCORRECT, None, False),
        (CORRECT, CORRECT, True),
        (CORRECT, CORRECT.replace("makes", "="), False),
        (CORRECT, None, False),
        (FLAWED, CORRECT, True),
        (FLAWED, FLAWED, False),
        (SHORT, CORRECT, True),  # the missing answer is added
        (SHORT, CORRECT.replace("is 43", "= 43"), False),
    ],
)
def test_located_counts_rewrites_that_begin_at_the_first_incorrect_step(audit, completion, rewrite, is_located):
    assert audit((completion, {}, rewrite)).error_located == Accuracy(is_located, 1)


def test_edits_are_compared_with_those_of_the_teacher(audit):
    # Three digits are incorrect in INCORRECT (67, 67, 87 and again 87 make four), one in two places in FLAWED
    assert audit((INCORRECT, {}, CORRECT)).edits_made_over_needed == 1
    result = audit(
        (INCORRECT, {}, CORRECT.replace("is 43", "= 43")),  # 5 for 4
        (FLAWED, {}, CORRECT),  # 2 for 2
        (INCORRECT, {}, FLAWED),  # not correct: not counted
        (CORRECT, {}, CORRECT.replace("makes", "=")),  # 1 for 0
        (CORRECT, {}, None),
    )
    assert result.edits_made_over_needed == pytest.approx(8 / 6)
    assert math.isnan(audit((CORRECT, {}, CORRECT)).edits_made_over_needed)


# --- As a whole ------------------------------------------------------------------------------------------------------


def test_messages_are_audited_like_their_texts(audit, tokenizer, make_rows):
    rows = make_rows(12)
    for row in rows:
        row["rewrite_ids"] = encode_completion(tokenizer, row["rewrite"])
    as_messages = [
        row
        | {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
            "rewrite": [{"role": "assistant", "content": row["rewrite"]}],
        }
        for row in rows
    ]
    results = [audit_grm(Dataset.from_list(data), TASK, edit_arithmetic, tokenizer) for data in (rows, as_messages)]
    assert results[0] == results[1]
    # The rewrites are the teacher's own
    assert results[0].wrong_rewritten == Accuracy(4, 4)
    assert results[0].error_located == Accuracy(12, 12)
    assert results[0].edits_made_over_needed == 1


def test_verified_rewrites_with_an_incorrect_step_are_counted(audit):
    # Every equation holds and the answer is correct, but these are not the steps of the problem
    elsewhere = "1 + 1 = 2 ; 85 + 1 = 86 ; The answer is 86"
    assert all(TASK.check_steps(PROBLEM, elsewhere))
    result = audit((INCORRECT, {}, elsewhere), (INCORRECT, {}, CORRECT), (INCORRECT, {}, None), (CORRECT, {}, CORRECT))
    assert result.verified_flawed == Accuracy(1, 3)
    assert result.wrong_rewritten == Accuracy(1, 3)


def test_a_task_without_an_editor_cannot_be_audited():
    config = AuditConfig(dataset_name="scored", seen_dataset_name="edits", tokenizer="policy", task="math")
    with pytest.raises(ValueError, match="needs a task with an editor; 'math' has none"):
        run(config)


def test_the_recipe_prints_a_table_and_what_could_not_be_measured_as_a_dash(audit, capsys):
    found = audit((CORRECT, {}, CORRECT))
    assert math.isnan(found.auc)
    importlib.import_module("recipes.audit").show(found)
    printed = capsys.readouterr().out
    assert "Generative reward model, on unseen problems" in printed and "0 of 0" in printed
    assert "nan" not in printed.lower()
