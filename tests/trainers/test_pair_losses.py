"""The pairwise losses against a loop over tokens, values and gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.trainers.pair_losses import divergent_pair_loss, last_token_pair_loss, last_values


def naive_loss(chosen_values, rejected_values, chosen_ids, rejected_ids, temperature=1.0, margin=0.0):
    """One pair, without padding: lists of ids, and values as lists of float32 scalars."""
    length = max(len(chosen_ids), len(rejected_ids))
    start = length - 1
    for position in range(length):
        if chosen_ids[position : position + 1] != rejected_ids[position : position + 1]:
            start = position
            break
    terms = []
    for position in range(start, length):
        chosen = chosen_values[min(position, len(chosen_ids) - 1)]
        rejected = rejected_values[min(position, len(rejected_ids) - 1)]
        terms.append(torch.log1p(torch.exp(-(chosen - rejected - margin) / temperature)))
    return sum(terms) / len(terms)


def padded(rows, width, fill, side="right"):
    """Rows of scalars as one tensor, and its mask."""
    tensor, mask = torch.full((len(rows), width), fill), torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        tensor[index, where] = torch.tensor(row, dtype=tensor.dtype)
        mask[index, where] = True
    return tensor, mask


def batch(pairs, width, side="right", dtype=torch.float32, fill=math.nan):
    """Pairs of (ids, values) for both sides as the arguments of the loss; the values need gradients."""
    arguments = {}
    for place, name in enumerate(("chosen", "rejected")):
        ids, mask = padded([pair[place][0] for pair in pairs], width, 0, side)
        values, _ = padded([pair[place][1] for pair in pairs], width, fill, side)
        values = values.to(dtype).requires_grad_()
        arguments |= {f"{name}_values": values, f"{name}_ids": ids, f"{name}_mask": mask}
    return arguments


PAIRS = {
    "the same length": ([5, 6, 7, 8, 1], [5, 6, 9, 9, 1]),
    "the chosen one longer": ([5, 6, 7, 8, 9, 1], [5, 6, 8, 1]),
    "the rejected one longer": ([5, 6, 1], [5, 6, 7, 7, 7, 1]),
    "identical": ([5, 6, 7, 1], [5, 6, 7, 1]),
    "different at the first token": ([5, 6, 1], [6, 6, 1]),
    "the chosen one a prefix": ([5, 6], [5, 6, 7, 1]),
    "the rejected one a prefix": ([5, 6, 7, 1], [5]),
    "different at the last token only": ([5, 6, 7], [5, 6, 8]),
    "one token each": ([5], [6]),
    "the ids of the padding among the real ones": ([5, 0, 0, 1], [5, 0]),
}


def with_values(ids, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple((row, torch.randn(len(row), generator=generator).tolist()) for row in ids)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("with_margin", [False, True])
def test_loss_and_gradients_are_those_of_a_loop(side, temperature, with_margin):
    pairs = [with_values(ids, seed) for seed, ids in enumerate(PAIRS.values())]
    margins = [0.3 * index * with_margin for index in range(len(pairs))]
    arguments = batch(pairs, width=9, side=side)
    margin = torch.tensor(margins) if with_margin else None
    losses = divergent_pair_loss(**arguments, temperature=temperature, margin=margin)
    weights = torch.arange(1.0, len(pairs) + 1)
    (losses * weights).sum().backward()
    for index, (chosen, rejected) in enumerate(pairs):
        values = [torch.tensor(each[1], requires_grad=True) for each in (chosen, rejected)]
        expected = naive_loss(*values, chosen[0], rejected[0], temperature, margins[index])
        torch.testing.assert_close(losses[index], expected)
        (expected * weights[index]).backward()
        for name, value in zip(("chosen", "rejected"), values, strict=True):
            mask = arguments[f"{name}_mask"][index]
            gradient = arguments[f"{name}_values"].grad[index]
            torch.testing.assert_close(gradient[mask], value.grad)
            assert not gradient[~mask].any(), "padding has no gradient, although its values are NaN"


def test_two_pairs_worked_out_by_hand():
    arguments = batch([(([5, 6, 7], [9.0, 2.0, 3.0]), ([5, 8], [-9.0, 1.0]))], width=4)
    # Position 1: 2 - 1; position 2: 3 - 1, the value at which the rejected one ends
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 2
    assert divergent_pair_loss(**arguments).tolist() == pytest.approx([expected])


def test_identical_sequences_have_the_loss_of_a_coin_and_no_gradient():
    ids, values = [5, 6, 7, 1], [0.3, -1.0, 2.0, 0.5]
    arguments = batch([((ids, values), (ids, values))], width=6)
    loss = divergent_pair_loss(**arguments)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([math.log(2)])
    both = arguments["chosen_values"].grad + arguments["rejected_values"].grad
    assert both.abs().max() < 1e-7 and not arguments["chosen_values"].grad[0, :3].any()


def test_the_switch_reads_the_values_at_padding_tokens_past_the_shorter_sequence_and_no_others():
    chosen, rejected = with_values(PAIRS["the chosen one longer"])
    arguments = batch([(chosen, rejected)], width=9, fill=7.0)
    released = divergent_pair_loss(**arguments, use_pad_values=True)
    values = torch.tensor([*rejected[1], 7.0, 7.0])
    expected = naive_loss(torch.tensor(chosen[1]), values, chosen[0], [*rejected[0], 0, 0])
    torch.testing.assert_close(released[0], expected)
    assert released.item() != pytest.approx(divergent_pair_loss(**arguments).item(), abs=1e-2)
    released.sum().backward()
    gradient = arguments["rejected_values"].grad[0]
    assert gradient[4:6].all() and not gradient[6:].any()


def test_a_padding_id_among_the_real_ones_is_no_padding():
    """The padding token of many tokenizers is EOS: the mask decides."""
    ids = [5, 6, 0], [5, 7, 0]
    arguments = batch([with_values(ids)], width=5)
    values = [torch.tensor(each[1]) for each in with_values(ids)]
    torch.testing.assert_close(divergent_pair_loss(**arguments)[0], naive_loss(*values, *ids))


def test_last_values_are_those_of_the_last_real_token_on_either_side_of_the_padding():
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]], dtype=torch.bfloat16)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0]], dtype=torch.bool)
    found = last_values(values, mask)
    assert found.dtype == torch.float32 and found.tolist() == [2.0, 6.0, 7.0]


def test_the_last_token_loss_by_hand():
    chosen, rejected = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    losses = last_token_pair_loss(chosen, rejected, temperature=2.0, margin=torch.tensor([0.0, 1.0]))
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-0.5)), math.log1p(math.exp(1.5))])


# --- Properties ------------------------------------------------------------------------------------------------------

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)
ANY_PAIRS = st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=4)


@given(ANY_PAIRS, st.integers(0, 3))
def test_swapped_sequences_have_the_loss_of_the_opposite_preference(ids, seed):
    """-log sigmoid(x) and -log sigmoid(-x) differ by x, the mean difference of the compared values."""
    arguments = batch([with_values(each, seed) for each in ids], width=6)
    swapped = {
        name.replace("chosen", "*").replace("rejected", "chosen").replace("*", "rejected"): value
        for name, value in arguments.items()
    }
    negated = {name: -value if name.endswith("values") else value for name, value in arguments.items()}
    torch.testing.assert_close(divergent_pair_loss(**swapped), divergent_pair_loss(**negated))


@given(ANY_PAIRS, st.integers(0, 3), st.integers(0, 5), st.sampled_from(["left", "right"]))
def test_padding_changes_nothing(ids, seed, more, side):
    pairs = [with_values(each, seed) for each in ids]
    short = divergent_pair_loss(**batch(pairs, width=6))
    torch.testing.assert_close(divergent_pair_loss(**batch(pairs, width=6 + more, side=side)), short)


@given(ANY_PAIRS, st.integers(0, 3))
def test_bfloat16_values_are_computed_with_in_float32(ids, seed):
    arguments = batch([with_values(each, seed) for each in ids], width=6, dtype=torch.bfloat16, fill=0.0)
    losses = divergent_pair_loss(**arguments)
    whole = {name: value.float() if name.endswith("values") else value for name, value in arguments.items()}
    assert losses.dtype == torch.float32
    assert torch.equal(losses, divergent_pair_loss(**whole))
