"""From a row to what the trainer learns from: tokens, rewards, weights and truncation."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.credit.preparation import PREPARED_COLUMNS, RewardSettings, prepare_row
from rlmec_trl.data.schema import DatasetError
from rlmec_trl.tasks.arithmetic import make_tokenizer
from rlmec_trl.trainers.rlmec_config import RLMECConfig


TOKENIZER = make_tokenizer()
EOS = TOKENIZER.eos_token_id
PAPER = RewardSettings(
    max_length=None,
    reward_baseline=0.5,
    positive_reward_range=(0.0, 0.5),
    negative_reward_range=(-0.1, 0.0),
    negative_credit="all",
    edited_weight=1.0,
    unedited_weight=0.5,
    correct_samples="keep",
    truncated_rewrites="drop",
    imitation_targets="hard",
)
PER_COMPLETION_TOKEN = ["completion_ids", "token_rewards", "old_logps"]
PER_IMITATED_TOKEN = ["imitation_ids", "imitation_weights", "imitation_topk_ids", "imitation_topk_logps"]


def ids(text):
    return TOKENIZER(text)["input_ids"]


def make_row(**columns):
    """An incorrect sample "5 + 3 = 9" with its rewrite "5 + 3 = 8", one edited token in six."""
    row = {
        "prompt": "Tom has 5 nuts, finds 3.",
        "completion": "5 + 3 = 9",
        "completion_ids": [*ids("5 + 3 = 9"), EOS],
        "correct": False,
        "rewrite": "5 + 3 = 8",
        "token_probs": [0.9, 0.8, 0.7, 0.6, 0.25, 0.45],
        "old_logps": [-0.1, -0.2, -0.3, -0.4, -0.5, -0.6],
    }
    return row | columns


def prepare(row, processing_class=TOKENIZER, **settings):
    return prepare_row(row, 0, processing_class, dataclasses.replace(PAPER, **settings))


def test_an_incorrect_sample_is_punished_at_its_error_and_its_rewrite_imitated():
    prepared = prepare(make_row())
    assert list(prepared) == PREPARED_COLUMNS
    assert prepared["prompt_ids"] == ids("Tom has 5 nuts, finds 3.")
    assert prepared["completion_ids"] == [*ids("5 + 3 = 9"), EOS]
    assert prepared["token_rewards"] == pytest.approx([0, 0, 0, 0, -0.1, -0.05])
    assert prepared["old_logps"] == [-0.1, -0.2, -0.3, -0.4, -0.5, -0.6]
    assert prepared["imitation_ids"] == [*ids("5 + 3 = 8"), EOS]
    assert prepared["imitation_weights"] == [0.5, 0.5, 0.5, 0.5, 1.0, 0.5]
    assert prepared["num_edited"] == 1
    assert prepared["imitation_topk_ids"] == prepared["imitation_topk_logps"] == []


def test_a_correct_sample_is_rewarded_and_imitated_unchanged():
    prepared = prepare(make_row(correct=True))
    assert prepared["token_rewards"] == pytest.approx([0.4, 0.3, 0.2, 0.1, 0, 0])
    assert prepared["imitation_ids"] == prepared["completion_ids"]
    assert prepared["imitation_weights"] == [0.5] * 6
    assert prepared["num_edited"] == 0


@pytest.mark.parametrize(("correct", "rewards"), [(False, [0, 0, 0, 0, -0.1, 0]), (True, [0.4, 0, 0.2, 0, 0, 0])])
def test_a_token_without_a_probability_has_no_reward(correct, rewards):
    row = make_row(correct=correct, token_probs=[0.9, None, 0.7, None, 0.25, None])
    assert prepare(row)["token_rewards"] == pytest.approx(rewards)
    # Bounds without 0 give every other token a reward
    row["token_probs"] = [None] * 6
    assert (
        prepare(row, positive_reward_range=(0.1, 0.5), negative_reward_range=(-0.2, -0.1))["token_rewards"] == [0] * 6
    )


def test_a_token_without_a_probability_is_not_flagged():
    row = make_row(correct=True, token_probs=[0.9, None, 0.7, None, 0.25, None])
    assert prepare(row, correct_samples="cut")["imitation_weights"] == [0.5, 0.5, 0.5, 0.5, 0.0, 0.0]
    rewards = prepare(row | {"correct": False}, negative_credit="first_error")["token_rewards"]
    assert rewards == pytest.approx([0, 0, 0, 0, -0.1, 0])


def test_a_nan_is_not_taken_for_a_token_without_a_probability():
    rewards = prepare(make_row(token_probs=[0.9, None, math.nan, 0.8, 0.8, 0.8]))["token_rewards"]
    assert [math.isnan(reward) for reward in rewards] == [False, False, True, False, False, False]


def test_a_correct_sample_is_imitated_up_to_its_first_flagged_token():
    prepared = prepare(make_row(correct=True), correct_samples="cut")
    assert prepared["imitation_ids"] == prepared["completion_ids"]
    assert prepared["imitation_weights"] == [0.5, 0.5, 0.5, 0.5, 0.0, 0.0]
    assert prepared["num_edited"] == 0


@pytest.mark.parametrize(
    ("token_probs", "num_kept"),
    [([0.9] * 6, 6), ([0.5] * 6, 6), ([0.4, *[0.9] * 5], 0), ([0.9, 0.9, 0.4, 0.9, 0.4, 0.9], 2)],
    ids=["none flagged", "at the baseline", "all", "first counts"],
)
def test_a_token_is_flagged_only_below_the_baseline(token_probs, num_kept):
    prepared = prepare(make_row(correct=True, token_probs=token_probs), correct_samples="cut")
    assert prepared["imitation_weights"] == [0.5] * num_kept + [0.0] * (6 - num_kept)


def test_the_cut_follows_the_configured_baseline():
    prepared = prepare(make_row(correct=True), correct_samples="cut", reward_baseline=0.65)
    assert prepared["imitation_weights"] == [0.5, 0.5, 0.5, 0.0, 0.0, 0.0]


def test_a_correct_sample_can_be_replaced_by_its_rewrite():
    prepared = prepare(make_row(correct=True), correct_samples="rewrite")
    assert prepared["token_rewards"] == pytest.approx([0.4, 0.3, 0.2, 0.1, 0, 0])
    assert prepared["imitation_ids"] == [*ids("5 + 3 = 8"), EOS]
    assert prepared["imitation_weights"] == [0.5, 0.5, 0.5, 0.5, 1.0, 0.5]
    assert prepared["num_edited"] == 1


@pytest.mark.parametrize("correct_samples", ["keep", "cut", "rewrite"])
def test_the_choice_for_correct_samples_does_not_affect_incorrect_ones(correct_samples):
    assert prepare(make_row(), correct_samples=correct_samples) == prepare(make_row())


@pytest.mark.parametrize("columns", [{"rewrite": None}, {"rewrite": None, "rewrite_ids": None}])
def test_without_a_verified_rewrite_an_incorrect_sample_is_not_imitated(columns):
    prepared = prepare(make_row(**columns))
    assert prepared["imitation_ids"] == prepared["imitation_weights"] == []
    assert prepared["num_edited"] == 0
    assert prepared["token_rewards"] == pytest.approx([0, 0, 0, 0, -0.1, -0.05])


def test_without_a_verified_rewrite_a_correct_sample_is_imitated_only_as_itself():
    assert prepare(make_row(correct=True, rewrite=None))["imitation_weights"] == [0.5] * 6
    assert prepare(make_row(correct=True, rewrite=None), correct_samples="rewrite")["imitation_ids"] == []


def test_rewrite_ids_take_precedence_over_the_text():
    rewrite_ids = [*ids("5 + 3 makes 8"), EOS]
    prepared = prepare(make_row(rewrite_ids=rewrite_ids))
    assert prepared["imitation_ids"] == rewrite_ids
    assert prepared["imitation_weights"] == [0.5, 0.5, 0.5, 1.0, 1.0, 0.5]
    assert prepared["num_edited"] == 2


def test_without_rewrite_ids_the_text_is_used():
    assert prepare(make_row(rewrite_ids=None))["imitation_ids"] == [*ids("5 + 3 = 8"), EOS]


def test_a_copy_of_the_sample_keeps_the_sampled_ids():
    # Sampled as "8" and "6" without the space that the tokenizer would put into the token
    sampled_ids = [ids("8")[0], ids("6")[0], EOS]
    columns = {"completion_ids": sampled_ids, "token_probs": [0.9] * 3, "old_logps": [-1.0] * 3}
    prepared = prepare(make_row(completion="8 6", rewrite="8 6", **columns))
    assert prepared["imitation_ids"] == sampled_ids
    assert prepared["imitation_weights"] == [0.5] * 3


def test_edited_and_unedited_weights_are_the_configured_ones():
    prepared = prepare(make_row(), edited_weight=2.0, unedited_weight=0.0)
    assert prepared["imitation_weights"] == [0.0, 0.0, 0.0, 0.0, 2.0, 0.0]
    assert prepare(make_row(correct=True), unedited_weight=0.3)["imitation_weights"] == [0.3] * 6


def test_first_error_punishes_only_the_first_error():
    prepared = prepare(make_row(token_probs=[0.9, 0.45, 0.9, 0.1, 0.1, 0.1]), negative_credit="first_error")
    assert prepared["token_rewards"] == pytest.approx([0, -0.05, 0, 0, 0, 0])


def test_first_error_does_not_change_a_correct_samples_rewards():
    row = make_row(correct=True)
    assert prepare(row, negative_credit="first_error") == prepare(row)


def test_reward_ranges_and_baseline_are_the_configured_ones():
    settings = {"reward_baseline": 0.6, "positive_reward_range": (-1.0, 0.15), "negative_reward_range": (-0.3, 0.2)}
    assert prepare(make_row(correct=True), **settings)["token_rewards"] == pytest.approx(
        [0.15, 0.15, 0.1, 0.0, -0.35, -0.15], abs=1e-6
    )
    assert prepare(make_row(), **settings)["token_rewards"] == pytest.approx(
        [0.2, 0.2, 0.1, 0.0, -0.3, -0.15], abs=1e-6
    )


def own_rewards_row(**columns):
    row = make_row(token_rewards=[1.5, -2.0, 0.0, -0.5, 0.25, 0.125], **columns)
    del row["token_probs"], row["correct"]
    return row


def test_own_token_rewards_are_used_unchanged():
    assert prepare(own_rewards_row())["token_rewards"] == [1.5, -2.0, 0.0, -0.5, 0.25, 0.125]


def test_own_token_rewards_take_precedence_over_probabilities():
    prepared = prepare(make_row(token_rewards=[0.0] * 6))
    assert prepared["token_rewards"] == [0.0] * 6


def test_without_own_rewards_the_probabilities_are_used():
    assert prepare(make_row(token_rewards=None)) == prepare(make_row())


def test_first_error_applies_to_own_token_rewards_too():
    prepared = prepare(own_rewards_row(), negative_credit="first_error")
    assert prepared["token_rewards"] == [1.5, -2.0, 0.0, 0.0, 0.25, 0.125]


def test_own_rewards_without_an_outcome_imitate_the_rewrite():
    prepared = prepare(own_rewards_row())
    assert prepared["imitation_ids"] == [*ids("5 + 3 = 8"), EOS]
    assert prepared["num_edited"] == 1


@pytest.mark.parametrize(
    "columns", [{"rewrite": "5 + 3 = 9"}, {"rewrite": None, "rewrite_ids": [*ids("5 + 3 = 9"), EOS]}]
)
def test_own_rewards_without_an_outcome_count_as_correct_if_the_rewrite_is_a_copy(columns):
    row = own_rewards_row(**columns)
    prepared = prepare(row)
    assert prepared["imitation_ids"] == prepared["completion_ids"]
    assert prepared["imitation_weights"] == [0.5] * 6
    flagged = prepare(row | {"token_probs": make_row()["token_probs"]}, correct_samples="cut")
    assert flagged["imitation_weights"] == [0.5, 0.5, 0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("columns", [{}, {"rewrite_ids": None}])
def test_own_rewards_without_outcome_and_rewrite_do_not_count_as_correct(columns):
    # Nothing tells that the sample is correct: imitating it could teach an error
    prepared = prepare(own_rewards_row(rewrite=None, **columns))
    assert prepared["imitation_ids"] == []
    assert prepared["token_rewards"] == [1.5, -2.0, 0.0, -0.5, 0.25, 0.125]


@pytest.mark.parametrize("old_logps", [None, "missing"])
def test_a_row_without_old_logps_is_prepared_without(old_logps):
    row = make_row(old_logps=None)
    if old_logps == "missing":
        del row["old_logps"]
    assert prepare(row)["old_logps"] == []


def test_messages_go_through_the_chat_template(chat_tokenizer):
    row = make_row(
        prompt=[{"role": "user", "content": "Tom has 5 nuts, finds 3."}],
        completion=[{"role": "assistant", "content": "5 + 3 = 9"}],
        rewrite=[{"role": "assistant", "content": "5 + 3 = 8"}],
    )
    prepared = prepare(row, chat_tokenizer)
    assert prepared["prompt_ids"] == [*ids("Tom has 5 nuts, finds 3."), *ids(" attempt")]
    assert prepared["length"] == len(prepared["prompt_ids"]) + len(prepared["completion_ids"])
    of_the_prompt = {"prompt_ids": None, "length": None}
    assert {**prepared, **of_the_prompt} == {**prepare(make_row()), **of_the_prompt}
    copied = row | {"rewrite": row["completion"], "correct": None}
    assert prepare(copied, chat_tokenizer)["imitation_ids"] == row["completion_ids"]


@pytest.mark.parametrize(
    ("template_kwargs", "text"),
    [({"enable_thinking": False}, "5 = attempt"), ({"enable_thinking": None}, "5 attempt"), (None, "5 attempt")],
)
def test_chat_template_kwargs_reach_the_prompt(template_kwargs, text, thinking_tokenizer):
    row = make_row(prompt=[{"role": "user", "content": "5"}], chat_template_kwargs=template_kwargs)
    assert TOKENIZER.decode(prepare(row, thinking_tokenizer)["prompt_ids"]) == text


def test_a_chat_template_leaves_a_text_prompt_alone(chat_tokenizer):
    assert prepare(make_row(), chat_tokenizer) == prepare(make_row())


def soft_row(**columns):
    rewrite_ids = [*ids("5 + 3 = 8"), EOS]
    return make_row(
        rewrite_ids=rewrite_ids,
        rewrite_topk_ids=[[token_id, 4] for token_id in rewrite_ids],
        rewrite_topk_logps=[[-0.1 * index, -3.0] for index in range(len(rewrite_ids))],
        **columns,
    )


def test_soft_targets_belong_to_the_rewrite_that_was_scored():
    row = soft_row()
    prepared = prepare(row, imitation_targets="soft")
    assert prepared["imitation_topk_ids"] == row["rewrite_topk_ids"]
    assert prepared["imitation_topk_logps"] == row["rewrite_topk_logps"]
    hard = prepare(row)
    assert hard["imitation_topk_ids"] == hard["imitation_topk_logps"] == []


@pytest.mark.parametrize("correct_samples", ["keep", "cut"])
def test_a_sample_imitated_as_itself_does_not_get_another_sequences_distribution(correct_samples):
    prepared = prepare(soft_row(correct=True), imitation_targets="soft", correct_samples=correct_samples)
    assert prepared["imitation_ids"] == prepared["completion_ids"]
    assert prepared["imitation_topk_ids"] == prepared["imitation_topk_logps"] == []


def test_a_sample_that_is_its_own_rewrite_keeps_the_distribution():
    row = soft_row(correct=True)
    row["rewrite_ids"] = list(row["completion_ids"])
    assert prepare(row, imitation_targets="soft")["imitation_topk_ids"] == row["rewrite_topk_ids"]


def test_a_row_without_soft_targets_has_hard_ones():
    row = soft_row() | {"rewrite_topk_ids": None, "rewrite_topk_logps": None}
    prepared = prepare(row, imitation_targets="soft")
    assert prepared["imitation_ids"] == row["rewrite_ids"]
    assert prepared["imitation_topk_ids"] == prepared["imitation_topk_logps"] == []


def attempt_row(**columns):
    columns = {"attempt_topk_ids": [[7, 4]] * 6, "attempt_topk_logps": [[-0.5, -1.0]] * 6} | columns
    return make_row(**columns)


@pytest.mark.parametrize(
    ("probs", "num_distilled"),
    [
        ([0.4, 0.8, 0.7, 0.6, 0.25, 0.45], 1),
        ([0.9, 0.8, 0.7, 0.6, 0.25, 0.45], 5),
        ([0.9, 0.8, 0.7, 0.6, 0.9, 0.45], 6),
        ([0.9, 0.8, 0.7, 0.5, 0.9, 0.9], 6),
        ([None, 0.8, None, 0.1, 0.9, 0.9], 4),
    ],
)
def test_an_attempt_is_distilled_up_to_its_first_flagged_token(probs, num_distilled):
    prepared = prepare(attempt_row(token_probs=probs), distill=True)
    assert prepared["attempt_topk_ids"] == [[7, 4]] * num_distilled
    assert prepared["attempt_topk_logps"] == [[-0.5, -1.0]] * num_distilled
    truncated = prepare(attempt_row(token_probs=probs), distill=True, max_length=PROMPT_LENGTH + 3)
    assert len(truncated["attempt_topk_ids"]) == len(truncated["attempt_topk_logps"]) == min(num_distilled, 3)


def test_without_distillation_no_distribution_on_the_attempt_is_kept():
    off, none = prepare(attempt_row()), prepare(attempt_row(attempt_topk_ids=None, attempt_topk_logps=None))
    assert off == none == prepare(make_row())
    assert off["attempt_topk_ids"] == off["attempt_topk_logps"] == []
    assert prepare(attempt_row(attempt_topk_ids=None, attempt_topk_logps=None), distill=True) == off


PROMPT_LENGTH = len(ids("Tom has 5 nuts, finds 3."))


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("room", [-3, 0, 1, 3, 5, 6, 100])
def test_every_list_is_truncated_at_the_same_token(room, correct):
    settings = {"imitation_targets": "soft", "correct_samples": "rewrite", "truncated_rewrites": "keep"}
    whole = prepare(soft_row(correct=correct), **settings)
    prepared = prepare(soft_row(correct=correct), max_length=PROMPT_LENGTH + room, **settings)
    kept = max(room, 0)
    for name in PER_COMPLETION_TOKEN + PER_IMITATED_TOKEN:
        assert len(whole[name]) == 6, name
        assert prepared[name] == whole[name][:kept], name
    assert prepared["prompt_ids"] == whole["prompt_ids"]
    assert prepared["num_edited"] == (1 if kept >= 5 else 0)


def test_edits_are_computed_before_truncation():
    # Compared with the truncated completion, the rewrite's end would look inserted
    row = make_row(rewrite="3 = 8", correct=False)
    whole = prepare(row)
    prepared = prepare(row, max_length=PROMPT_LENGTH + 2, truncated_rewrites="keep")
    assert prepared["imitation_weights"] == whole["imitation_weights"][:2]


@pytest.mark.parametrize("correct_samples", ["keep", "rewrite"])
@pytest.mark.parametrize("correct", [True, False])
def test_a_truncated_target_is_not_imitated_by_default(correct, correct_samples):
    row, settings = soft_row(correct=correct), {"correct_samples": correct_samples, "imitation_targets": "soft"}
    whole = prepare(row, **settings)
    fits = prepare(row, max_length=PROMPT_LENGTH + 6, **settings)
    assert fits == whole
    assert not fits["completion_truncated"] and not fits["imitation_truncated"]

    dropped = prepare(row, max_length=PROMPT_LENGTH + 5, **settings)
    kept = prepare(row, max_length=PROMPT_LENGTH + 5, truncated_rewrites="keep", **settings)
    for prepared, length in ((dropped, 0), (kept, 5)):
        assert prepared["completion_truncated"] and prepared["imitation_truncated"]
        # The attempt keeps the rewards of its remaining tokens
        for name in PER_COMPLETION_TOKEN:
            assert prepared[name] == whole[name][:5], name
        for name in PER_IMITATED_TOKEN:
            assert prepared[name] == whole[name][:length], name
        assert prepared["length"] == PROMPT_LENGTH + 5
    assert dropped["num_edited"] == 0


def test_truncated_tokens_without_a_weight_do_not_count():
    # Imitation ends before the fifth token, whose probability is below the baseline
    row = make_row(correct=True)
    prepared = prepare(row, correct_samples="cut", max_length=PROMPT_LENGTH + 4)
    assert prepared["completion_truncated"] and not prepared["imitation_truncated"]
    assert prepared["imitation_weights"] == [0.5] * 4
    assert prepare(row, correct_samples="cut", max_length=PROMPT_LENGTH + 3)["imitation_truncated"]


def test_a_short_rewrite_of_a_truncated_attempt_is_imitated():
    row = make_row(rewrite="3 = 8")
    prepared = prepare(row, max_length=PROMPT_LENGTH + 4)
    assert prepared["completion_truncated"] and not prepared["imitation_truncated"]
    assert prepared["imitation_ids"] == [*ids("3 = 8"), EOS]


TOKENS = st.lists(st.integers(3, 9), min_size=1, max_size=8)


@given(TOKENS, TOKENS, st.booleans(), st.sampled_from(["keep", "cut", "rewrite"]), st.integers(1, 40), st.data())
def test_lists_always_fit_their_tokens_and_the_length(
    completion_ids, rewrite_ids, correct, correct_samples, max_length, data
):
    probs = data.draw(st.lists(st.floats(0, 1), min_size=len(completion_ids), max_size=len(completion_ids)))
    row = make_row(
        completion_ids=completion_ids,
        rewrite_ids=rewrite_ids,
        token_probs=probs,
        old_logps=[-1.0] * len(probs),
        correct=correct,
        rewrite_topk_ids=[[token_id] for token_id in rewrite_ids],
        rewrite_topk_logps=[[0.0]] * len(rewrite_ids),
    )
    prepared = prepare(row, correct_samples=correct_samples, max_length=max_length, imitation_targets="soft")
    assert len({len(prepared[name]) for name in PER_COMPLETION_TOKEN}) == 1
    assert len(prepared["imitation_ids"]) == len(prepared["imitation_weights"])
    assert len(prepared["imitation_topk_ids"]) in (0, len(prepared["imitation_ids"]))
    assert len(prepared["imitation_topk_ids"]) == len(prepared["imitation_topk_logps"])
    room = max(max_length - PROMPT_LENGTH, 0)
    assert max(len(prepared["completion_ids"]), len(prepared["imitation_ids"])) <= room
    assert 0 <= prepared["num_edited"] <= len(prepared["imitation_ids"])


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(
        DatasetError, match="Row 0, column 'prompt': found '', .* gives no tokens. Give the prompt a text"
    ):
        prepare(make_row(prompt=""))


def test_preparing_does_not_modify_the_row():
    row, before = soft_row(), soft_row()
    prepare(row, max_length=PROMPT_LENGTH + 2, imitation_targets="soft", negative_credit="first_error")
    assert row == before


def test_the_settings_are_those_of_the_config():
    config = RLMECConfig("unused", use_cpu=True, bf16=False, max_length=None, report_to="none")
    assert RewardSettings.from_config(config) == PAPER
    changed = {
        "max_length": 77,
        "reward_baseline": 0.25,
        "positive_reward_range": [0.1, 0.2],
        "negative_reward_range": [-0.4, -0.3],
        "negative_credit": "first_error",
        "edited_weight": 3.0,
        "unedited_weight": 0.75,
        "correct_samples": "cut",
        "truncated_rewrites": "keep",
        "imitation_targets": "soft",
    }
    config = RLMECConfig("unused", use_cpu=True, bf16=False, report_to="none", attempt_coef=0.1, **changed)
    settings = dataclasses.asdict(RewardSettings.from_config(config))
    as_lists = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    assert as_lists == changed | {"distill": True}
    # The cache of the dataset is keyed by it
    hash(RewardSettings.from_config(config))
