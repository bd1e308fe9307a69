"""Where the outcome's advantage goes, against loops written out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.credit.token_credit import first_flagged, token_advantages


NAN = math.nan
VALUES = torch.tensor([[0.2, -0.1, NAN, -0.4], [0.3, 0.1, 0.2, 0.9], [-0.2, NAN, 0.1, 5.0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0]], dtype=torch.bool)


def test_place_blames_the_first_flagged_token_and_praises_what_stands_before_it():
    placed = token_advantages(torch.tensor([-1.0, -2.0, -3.0]), VALUES, MASK, "place")
    assert placed.tolist() == [[0, -1, 0, 0], [-2, -2, -2, -2], [-3, 0, 0, 0]]
    placed = token_advantages(torch.tensor([1.0, 2.0, 3.0]), VALUES, MASK, "place")
    assert placed.tolist() == [[1, 0, 0, 0], [2, 2, 2, 2], [0, 0, 0, 0]]


def test_add_is_the_sum_and_no_opinion_is_zero():
    added = token_advantages(torch.tensor([1.0, 0.0, -1.0]), VALUES, MASK, "add")
    expected = [[1.2, 0.9, 1, 0.6], [0.3, 0.1, 0.2, 0], [-1.2, -1, -0.9, -1]]
    torch.testing.assert_close(added, torch.tensor(expected))


def test_outcome_gives_every_token_the_same():
    spread = token_advantages(torch.tensor([1.0, 0.0, -1.0]), VALUES, MASK, "outcome")
    assert spread.tolist() == [[1.0] * 4, [0.0] * 4, [-1.0] * 4]


def test_values_outside_the_mask_do_not_flag():
    values = torch.tensor([[0.1, -9.0, 0.2]])
    mask = torch.tensor([[True, False, True]])
    assert not first_flagged(values, mask).any()
    placed = token_advantages(torch.tensor([-1.0]), values, mask, "place")
    assert placed.tolist() == [[-1.0, -1.0, -1.0]]


def test_an_unknown_credit_is_an_error():
    with pytest.raises(ValueError, match="token_credit"):
        token_advantages(torch.ones(1), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), "sum")


@st.composite
def batches(draw):
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    value = st.one_of(st.just(NAN), st.floats(-3, 3, width=32))
    values = draw(st.lists(st.lists(value, min_size=width, max_size=width), min_size=rows, max_size=rows))
    mask = draw(st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=rows, max_size=rows))
    advantages = draw(st.lists(st.floats(-2, 2, width=32), min_size=rows, max_size=rows))
    return torch.tensor(advantages), torch.tensor(values), torch.tensor(mask)


@given(batches())
def test_scaled_weights_are_one_on_average_and_follow_the_sign(batch):
    advantages, values, mask = batch
    scaled = token_advantages(advantages, values, mask, "scale")
    assert torch.isfinite(scaled).all()
    for row in range(len(values)):
        kept = mask[row]
        if not kept.any():
            assert (scaled[row] == 0).all()
            continue
        torch.testing.assert_close(scaled[row][kept].mean(), advantages[row], atol=1e-5, rtol=1e-5)
        # The higher its value, the more a token gets, of praise as well as of what is not blame
        order = values[row][kept].nan_to_num(nan=0.0).argsort(stable=True)
        ordered = scaled[row][kept][order]
        assert (ordered.diff() >= -1e-5).all()


@given(batches())
def test_place_against_a_loop(batch):
    advantages, values, mask = batch
    placed = token_advantages(advantages, values, mask, "place")
    for row, advantage in enumerate(advantages.tolist()):
        flagged = [t for t in range(values.size(1)) if mask[row, t] and values[row, t] < 0]
        for token in range(values.size(1)):
            if not flagged:
                expected = advantage
            elif advantage < 0:
                expected = advantage if token == flagged[0] else 0.0
            else:
                expected = advantage if token < flagged[0] else 0.0
            assert placed[row, token].item() == pytest.approx(expected)
