"""A batch holds every trained token once, with its own reward and weight."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.trainers.collator import DataCollatorForRLMEC


PAD = 0
COUNTS = [
    "num_active",
    "num_completion_tokens",
    "num_weighted",
    "num_edited",
    "num_imitated",
    "num_distilled",
    "reward_sum",
]


def make_row(prompt_ids=(5, 6), completion_ids=(7, 8, 1), imitation_ids=(7, 9, 1), **columns):
    """A row whose attempt and rewrite differ in one token, unless the columns say otherwise."""
    row = {
        "prompt_ids": list(prompt_ids),
        "completion_ids": list(completion_ids),
        "token_rewards": [0.0, -0.1, 0.25][: len(completion_ids)],
        "old_logps": [-0.5, -1.5, -2.5][: len(completion_ids)],
        "imitation_ids": list(imitation_ids),
        "imitation_weights": [0.5, 1.0, 0.5][: len(imitation_ids)],
        "num_edited": 1,
        "imitation_topk_ids": [],
        "imitation_topk_logps": [],
        "attempt_topk_ids": [],
        "attempt_topk_logps": [],
    }
    return row | columns


def collate(rows, **options):
    return DataCollatorForRLMEC(pad_token_id=PAD, **options)(rows)


def test_a_row_gives_its_attempt_and_its_rewrite():
    batch = collate([make_row()])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 1], [5, 6, 7, 9, 1]]
    assert batch["attention_mask"].tolist() == [[1] * 5] * 2
    assert batch["labels"].tolist() == [[-100, -100, 7, 8, 1], [-100, -100, 7, 9, 1]]
    torch.testing.assert_close(batch["token_rewards"], torch.tensor([[0, 0, 0, -0.1, 0.25], [0.0] * 5]))
    torch.testing.assert_close(batch["imitation_weights"], torch.tensor([[0.0] * 5, [0, 0, 0.5, 1, 0.5]]))
    torch.testing.assert_close(batch["old_logps"], torch.tensor([[0, 0, -0.5, -1.5, -2.5], [0.0] * 5]))
    assert batch["policy_mask"].tolist() == [[False, False, True, True, True], [False] * 5]


def test_an_attempt_that_is_its_own_rewrite_goes_through_the_model_once():
    batch = collate([make_row(imitation_ids=(7, 8, 1))])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 1]]
    torch.testing.assert_close(batch["token_rewards"], torch.tensor([[0, 0, 0, -0.1, 0.25]]))
    torch.testing.assert_close(batch["imitation_weights"], torch.tensor([[0, 0, 0.5, 1, 0.5]]))
    torch.testing.assert_close(batch["old_logps"], torch.tensor([[0, 0, -0.5, -1.5, -2.5]]))
    assert batch["policy_mask"].tolist() == [[False, False, True, True, True]]


def test_the_same_tokens_split_elsewhere_are_not_the_same_sequence():
    # Attempt and rewrite share a row's prompt, so only whole sequences can be equal; a longer rewrite never is
    batch = collate([make_row(imitation_ids=(7, 8), imitation_weights=[0.5, 0.5])])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 1], [5, 6, 7, 8, PAD]]


@pytest.mark.parametrize(
    ("options", "sequence"), [({"policy": False}, [5, 6, 7, 9, 1]), ({"imitation": False}, [5, 6, 7, 8, 1])]
)
def test_a_term_that_is_off_adds_no_sequence(options, sequence):
    batch = collate([make_row()], **options)
    assert batch["input_ids"].tolist() == [sequence]
    if options == {"policy": False}:
        assert not batch["token_rewards"].any() and not batch["policy_mask"].any()
        assert batch["num_active"].tolist() == [0] and batch["num_weighted"].tolist() == [3]
    else:
        assert not batch["imitation_weights"].any()
        assert batch["num_active"].tolist() == [2] and batch["num_weighted"].tolist() == [0]


@pytest.mark.parametrize(
    ("columns", "sequence"),
    [
        ({"token_rewards": [0.0, 0.0, 0.0]}, [5, 6, 7, 9, 1]),
        ({"imitation_ids": [], "imitation_weights": [], "num_edited": 0}, [5, 6, 7, 8, 1]),
        ({"imitation_weights": [0.0, 0.0, 0.0]}, [5, 6, 7, 8, 1]),
    ],
    ids=["no reward", "no rewrite", "no weight"],
)
def test_a_sequence_without_a_trained_token_is_not_in_the_batch(columns, sequence):
    assert collate([make_row(**columns)])["input_ids"].tolist() == [sequence]


def test_a_copy_without_reward_keeps_its_weights_and_is_not_an_attempt():
    batch = collate([make_row(imitation_ids=(7, 8, 1), token_rewards=[0.0, 0.0, 0.0])])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 1]]
    torch.testing.assert_close(batch["imitation_weights"], torch.tensor([[0, 0, 0.5, 1, 0.5]]))
    assert not batch["policy_mask"].any()


def test_counts_are_per_row_not_per_sequence():
    rows = [
        make_row(),
        make_row(imitation_ids=(7, 8, 1), num_edited=0),
        make_row(token_rewards=[0.0, 0.0, 0.0], imitation_ids=(), imitation_weights=[], num_edited=0),
        make_row(completion_ids=(7,), token_rewards=[0.5], imitation_weights=[0.0, 1.0, 0.0]),
    ]
    batch = collate(rows)
    assert {name: batch[name].tolist() for name in COUNTS if name != "reward_sum"} == {
        "num_active": [2, 2, 0, 1],
        "num_completion_tokens": [3, 3, 3, 1],
        "num_weighted": [3, 3, 0, 1],
        "num_edited": [1, 0, 0, 1],
        "num_imitated": [3, 3, 0, 3],
        "num_distilled": [0, 0, 0, 0],
    }
    torch.testing.assert_close(batch["reward_sum"], torch.tensor([0.15, 0.15, 0.0, 0.5]))


def test_the_first_tensor_has_one_entry_per_row():
    # `Trainer` takes the batch size from it, and with it the weight of an evaluation batch's loss
    batch = collate([make_row(), make_row(), make_row()])
    assert len(next(iter(batch.values()))) == 3
    assert len(batch["input_ids"]) == 6


def test_each_sequence_knows_its_row():
    rows = [
        make_row(),
        make_row(imitation_ids=(7, 8, 1), num_edited=0),
        make_row(token_rewards=[0.0, 0.0, 0.0], imitation_ids=(), imitation_weights=[], num_edited=0),
        make_row(),
    ]
    assert collate(rows)["sequence_rows"].tolist() == [0, 0, 1, 3, 3]


def test_dtypes_are_those_that_the_losses_expect():
    batch = collate([make_row()], soft_targets=True)
    for name in [*COUNTS, "token_rewards", "imitation_weights", "old_logps", "target_logps"]:
        assert batch[name].dtype == torch.float32, name
    for name in ("input_ids", "attention_mask", "labels", "target_ids"):
        assert batch[name].dtype == torch.int64, name
    assert batch["policy_mask"].dtype == torch.bool


def test_padding_is_on_the_right_and_is_not_trained_on():
    short = make_row(prompt_ids=(5,), completion_ids=(7,), imitation_ids=(9,))
    short |= {"token_rewards": [0.3], "old_logps": [-1.0], "imitation_weights": [1.0]}
    batch = collate([make_row(), short])
    assert batch["input_ids"][2:].tolist() == [[5, 7, PAD, PAD, PAD], [5, 9, PAD, PAD, PAD]]
    padding = batch["attention_mask"] == 0
    assert padding[2:].tolist() == [[False, False, True, True, True]] * 2
    assert (batch["labels"][padding] == -100).all()
    for name in ("token_rewards", "imitation_weights", "old_logps", "policy_mask"):
        assert not batch[name][padding].any(), name


@pytest.mark.parametrize(("multiple", "length"), [(4, 8), (5, 5), (64, 64)])
def test_sequences_are_padded_to_a_multiple(multiple, length):
    batch = collate([make_row()], pad_to_multiple_of=multiple, soft_targets=True)
    per_token = ["input_ids", "attention_mask", "labels", "token_rewards", "imitation_weights", "policy_mask"]
    per_token += ["old_logps", "target_ids", "target_logps"]
    assert {name: batch[name].shape[1] for name in per_token} == dict.fromkeys(per_token, length)


@pytest.mark.parametrize("old_logps", [[], None])
def test_rows_without_old_logps_give_none(old_logps):
    # Zeros instead would mean a probability of one, not "unknown"
    assert "old_logps" not in collate([make_row(old_logps=old_logps)])


@pytest.mark.parametrize("prompt_ids", [[5, 6], [5]])
@pytest.mark.parametrize("options", [{}, {"soft_targets": True}, {"pad_to_multiple_of": 8}])
def test_a_batch_without_a_trained_token_has_one_sequence_without_labels(prompt_ids, options):
    # Every process must take part in each forward pass
    row = make_row(prompt_ids, token_rewards=[0.0] * 3, imitation_ids=(), imitation_weights=[], num_edited=0)
    batch = collate([row, row], **options)
    assert batch["sequence_rows"].tolist() == [0]
    assert batch["input_ids"].shape[0] == 1 and batch["input_ids"].shape[1] >= 2
    assert batch["attention_mask"].any()
    assert (batch["labels"] == -100).all()
    assert not batch["token_rewards"].any() and not batch["imitation_weights"].any()
    assert not batch["policy_mask"].any()
    assert batch["num_completion_tokens"].tolist() == [3, 3]
    assert batch["num_active"].tolist() == batch["num_weighted"].tolist() == [0, 0]


def soft_row(topk_ids, topk_logps, **columns):
    return make_row(imitation_topk_ids=topk_ids, imitation_topk_logps=topk_logps, **columns)


def test_soft_targets_are_at_the_tokens_of_the_rewrite():
    topk_ids = [[7, 3], [9, 8], [1, 4]]
    topk_logps = [[-0.1, -3.0], [-0.5, -1.0], [-0.2, -2.0]]
    batch = collate([soft_row(topk_ids, topk_logps)], soft_targets=True)
    attempt, rewrite = batch["target_ids"]
    assert rewrite[2:].tolist() == topk_ids
    torch.testing.assert_close(batch["target_logps"][1, 2:], torch.tensor(topk_logps))
    # The attempt is not imitated; its placeholders must still be valid token ids
    assert (attempt >= 0).all() and (rewrite >= 0).all()


def test_a_sequence_without_a_distribution_has_its_own_tokens_as_target():
    with_topk = soft_row([[7, 3], [9, 8], [1, 4]], [[-0.1, -3.0]] * 3)
    batch = collate([with_topk, make_row(imitation_ids=(7, 8, 1))], soft_targets=True)
    probs = batch["target_logps"][2, 2:].softmax(dim=-1)
    assert batch["target_ids"][2, 2:, 0].tolist() == [7, 8, 1]
    assert probs.tolist() == [[1.0, 0.0]] * 3


def test_soft_targets_of_a_batch_without_any_distribution_are_hard():
    batch = collate([make_row()], soft_targets=True)
    assert batch["target_ids"].shape == (2, 5, 1)
    assert batch["target_ids"][1, 2:].tolist() == [[7], [9], [1]]
    assert (batch["target_logps"] == 0).all()


def test_a_merged_sequence_keeps_its_distribution():
    row = soft_row([[7, 3], [8, 9], [1, 4]], [[-0.5, -1.0]] * 3, imitation_ids=(7, 8, 1))
    batch = collate([row], soft_targets=True)
    assert batch["target_ids"][0, 2:].tolist() == [[7, 3], [8, 9], [1, 4]]
    torch.testing.assert_close(batch["target_logps"][0, 2:], torch.tensor([[-0.5, -1.0]] * 3))


@pytest.mark.parametrize("narrow", [1, 2])
def test_rows_scored_with_different_k_fit_in_one_batch(narrow):
    wide_row = soft_row([[7, 3, 2], [9, 8, 2], [1, 4, 2]], [[-0.5, -1.0, -4.0]] * 3)
    narrow_row = soft_row([[7, 3][:narrow]] * 3, [[-0.5, -1.0][:narrow]] * 3)
    batch = collate([wide_row, narrow_row], policy=False, soft_targets=True)
    assert batch["target_ids"].shape == (2, 5, 3)
    assert batch["target_ids"][1, 2:, :narrow].tolist() == [[7, 3][:narrow]] * 3
    probs = batch["target_logps"][1, 2:].softmax(dim=-1)
    torch.testing.assert_close(probs[:, :narrow], torch.tensor([[-0.5, -1.0][:narrow]] * 3).softmax(dim=-1))
    assert (probs[:, narrow:] == 0).all()


def test_without_soft_targets_the_batch_has_none():
    batch = collate([soft_row([[7, 3]] * 3, [[-0.1, -3.0]] * 3)])
    assert "target_ids" not in batch and "target_logps" not in batch


ATTEMPT = {"attempt_topk_ids": [[7, 3], [8, 4]], "attempt_topk_logps": [[-0.1, -3.0], [-0.5, -1.0]]}


@pytest.mark.parametrize("options", [{}, {"soft_targets": True}, {"policy": False}, {"imitation": False}])
def test_a_batch_without_distillation_does_not_change_with_the_columns(options):
    batch, expected = (collate([make_row(**columns), make_row()], **options) for columns in (ATTEMPT, {}))
    assert list(batch) == list(expected)
    assert all(torch.equal(batch[name], expected[name]) for name in batch)


@pytest.mark.parametrize("options", [{}, {"soft_targets": True}, {"policy": False}])
def test_distillation_without_a_distribution_only_adds_its_own_tensors(options):
    batch, expected = (collate([make_row()] * 2, distill=distill, **options) for distill in (True, False))
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    assert set(batch) - set(expected) == {"attempt_mask", "attempt_target_ids", "attempt_target_logps"}
    assert not batch["attempt_mask"].any()
    assert batch["attempt_target_ids"].shape == (*batch["input_ids"].shape, 1)


@pytest.mark.parametrize("rewards", [[0.0, -0.1, 0.25], [0.0] * 3])
def test_a_distilled_attempt_is_in_the_batch_with_or_without_rewards(rewards):
    batch = collate([make_row(**ATTEMPT, token_rewards=rewards)], distill=True)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 1], [5, 6, 7, 9, 1]]
    assert batch["attempt_mask"].tolist() == [[False, False, True, True, False], [False] * 5]
    assert batch["attempt_target_ids"][0, 2:4].tolist() == ATTEMPT["attempt_topk_ids"]
    torch.testing.assert_close(batch["attempt_target_logps"][0, 2:4], torch.tensor(ATTEMPT["attempt_topk_logps"]))
    assert batch["num_distilled"].tolist() == [2]
    assert batch["policy_mask"].any().item() == any(rewards)
    assert batch["sequence_rows"].tolist() == [0, 0]


def test_a_distilled_attempt_is_in_the_batch_without_the_other_terms():
    batch = collate([make_row(**ATTEMPT)], policy=False, imitation=False, distill=True)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 1]]
    assert not batch["policy_mask"].any() and not batch["imitation_weights"].any()


def test_a_sequence_may_have_a_distribution_as_target_and_another_as_attempt():
    row = soft_row([[7, 3], [8, 9], [1, 4]], [[-0.5, -1.0]] * 3, imitation_ids=(7, 8, 1), **ATTEMPT)
    batch = collate([row], soft_targets=True, distill=True)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 1]]
    assert batch["target_ids"][0, 2:].tolist() == [[7, 3], [8, 9], [1, 4]]
    assert batch["attempt_target_ids"][0, 2:4].tolist() == [[7, 3], [8, 4]]
    assert batch["policy_mask"].any()


TOKENS = st.lists(st.integers(1, 3), max_size=4)


@st.composite
def drawn_rows(draw):
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        completion_ids, imitation_ids = draw(TOKENS), draw(TOKENS)
        rewards = st.lists(st.sampled_from([0.0, -0.1, 0.5]), min_size=len(completion_ids))
        weights = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(imitation_ids))
        rows.append(
            make_row(
                prompt_ids=draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)),
                completion_ids=completion_ids,
                imitation_ids=imitation_ids,
                token_rewards=draw(rewards)[: len(completion_ids)],
                old_logps=[],
                imitation_weights=draw(weights)[: len(imitation_ids)],
                num_edited=0,
            )
        )
    return rows


@given(drawn_rows(), st.booleans(), st.booleans())
def test_no_reward_or_weight_is_lost_duplicated_or_moved(rows, policy, imitation):
    batch = collate(rows, policy=policy, imitation=imitation)

    def trained_tokens(name):
        """What is trained on: each value, with the tokens up to and including its own."""
        return sorted(
            (batch["input_ids"][i, : j + 1].tolist(), round(batch[name][i, j].item(), 5))
            for i, j in batch[name].nonzero().tolist()
        )

    def expected_tokens(ids_name, values_name):
        return sorted(
            (row["prompt_ids"] + row[ids_name][: index + 1], value)
            for row in rows
            for index, value in enumerate(row[values_name])
            if value != 0
        )

    rewarded = expected_tokens("completion_ids", "token_rewards") if policy else []
    weighted = expected_tokens("imitation_ids", "imitation_weights") if imitation else []
    assert trained_tokens("token_rewards") == rewarded
    assert trained_tokens("imitation_weights") == weighted
    assert batch["num_active"].sum() == len(rewarded)
    assert batch["num_weighted"].sum() == len(weighted)
    # Each of them has a label, and those with a reward are in the policy term's mask
    assert (batch["labels"][batch["token_rewards"] != 0] != -100).all()
    assert (batch["labels"][batch["imitation_weights"] != 0] != -100).all()
    assert batch["policy_mask"][batch["token_rewards"] != 0].all()
    assert math.isclose(batch["reward_sum"].sum().item(), sum(sum(row["token_rewards"]) for row in rows), abs_tol=1e-5)
