"""Sampling completions from a policy."""

from collections import Counter

import pytest
import torch

from rlmec_trl.data.tokens import encode_prompt
from rlmec_trl.generation.inference import generate_ids
from rlmec_trl.generation.sampling import sample_completions


PROMPTS = ["Tom has 5 9 nuts.", "Ann has 1 0 figs, finds 1 1.", "Eva"]


@pytest.fixture
def model(make_policy):
    return make_policy(sharpness=10.0)


def sample(model, tokenizer, prompts=PROMPTS, **kwargs):
    return sample_completions(model, tokenizer, prompts, **({"max_new_tokens": 6, "desc": None} | kwargs))


def test_every_prompt_gets_its_number_of_completions(model, tokenizer):
    completions = sample(model, tokenizer, num_samples=4, temperature=1.0, batch_size=5)
    assert [len(samples) for samples in completions] == [4, 4, 4]
    assert all(1 <= len(ids) <= 6 for samples in completions for ids in samples)
    assert any(first != second for first, second, *_ in completions), "they are sampled one by one"


def test_the_seed_decides_and_the_callers_random_numbers_are_left_alone(model, tokenizer):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = sample(model, tokenizer, temperature=1.0, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert sample(model, tokenizer, temperature=1.0, seed=1) == first
    assert sample(model, tokenizer, temperature=1.0, seed=2) != first


def test_temperature_zero_is_greedy(model, tokenizer):
    greedy = generate_ids(model, tokenizer, [encode_prompt(tokenizer, prompt) for prompt in PROMPTS], 6)
    assert sample(model, tokenizer, num_samples=2, temperature=0.0) == [[ids, ids] for ids in greedy]


def test_samples_follow_the_policys_own_distribution(model, tokenizer):
    """At temperature 1, and without the `top_k` that a generation config may hold."""
    model.generation_config.top_k = 2
    num_samples = 4000
    (samples,) = sample(
        model,
        tokenizer,
        ["Eva"],
        num_samples=num_samples,
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=1,
        batch_size=4000,
    )
    counts = Counter(ids[0] for ids in samples)
    with torch.no_grad():
        probs = model(torch.tensor([encode_prompt(tokenizer, "Eva")])).logits[0, -1].softmax(-1)
    found = torch.tensor([counts[token] / num_samples for token in range(len(probs))])
    assert (found - probs).abs().sum() < 0.1
    assert len(counts) > 30


def test_temperature_and_top_p_narrow_the_distribution(model, tokenizer):
    def num_distinct(**kwargs):
        (samples,) = sample(model, tokenizer, ["Eva"], num_samples=300, max_new_tokens=1, batch_size=300, **kwargs)
        return len({ids[0] for ids in samples})

    wide = num_distinct(temperature=1.0, top_p=1.0)
    assert num_distinct(temperature=0.1, top_p=1.0) < wide
    assert num_distinct(temperature=1.0, top_p=0.2) < wide


def test_messages_are_sampled_through_the_chat_template(model, chat_tokenizer):
    as_messages = sample(model, chat_tokenizer, [[{"role": "user", "content": PROMPTS[0]}]], temperature=0.0)
    # The template of this tokenizer ends a prompt in " attempt"
    assert as_messages == sample(model, chat_tokenizer, [f"{PROMPTS[0]} attempt"], temperature=0.0)


def test_a_model_in_training_comes_back_in_training(model, tokenizer):
    model.train()
    sample(model, tokenizer, ["Eva"], temperature=1.0)
    assert model.training
