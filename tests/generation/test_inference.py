"""Batched generation and log-probabilities, compared with one sequence at a time."""

import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from rlmec_trl.generation.inference import (
    completion_logps,
    eos_token_ids,
    evaluation_mode,
    generate_ids,
    length_batches,
)


@pytest.fixture
def model(make_policy):
    return make_policy(sharpness=20.0, mixing=20.0, num_hidden_layers=2)


def random_ids(rng, low, high, smallest=1, largest=17):
    return [rng.randrange(low, high) for _ in range(rng.randint(smallest, largest))]


def naive_greedy(model, prompt_ids, max_new_tokens, ends):
    ids = list(prompt_ids)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
        if ids[-1] in ends:
            break
    return ids[len(prompt_ids) :]


def naive_logps(model, prompt_ids, completion_ids):
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids + completion_ids])).logits[0]
    logps = logits[len(prompt_ids) - 1 : -1].float().log_softmax(-1)
    return logps.gather(-1, torch.tensor(completion_ids)[:, None])[:, 0]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
def test_length_batches_hold_every_index_once_the_longest_first(batch_size):
    lengths = [random.Random(0).randint(1, 30) for _ in range(17)]
    batches = list(length_batches(lengths, batch_size))
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(17))
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert list(length_batches([], batch_size)) == []


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_greedy_generation_matches_that_of_each_prompt_alone_in_the_given_order(batch_size, model, tokenizer):
    rng = random.Random(1)
    prompts = [random_ids(rng, 3, len(tokenizer)) for _ in range(8)]
    completions = generate_ids(model, tokenizer, prompts, max_new_tokens=9, batch_size=batch_size)
    expected = [naive_greedy(model, prompt, 9, {tokenizer.eos_token_id}) for prompt in prompts]
    assert completions == expected
    assert len({tuple(completion) for completion in expected}) > 4, "different prompts, different completions"


def test_a_completion_ends_with_its_first_eos_unless_it_was_truncated(model, tokenizer):
    rng = random.Random(2)
    prompts = [random_ids(rng, 3, len(tokenizer)) for _ in range(12)]
    greedy = generate_ids(model, tokenizer, prompts, max_new_tokens=6)
    assert all(len(completion) == 6 for completion in greedy), "no prompt stops by itself"
    # From now on, the third token of the first completion is an EOS
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, greedy[0][2]]
    ended = generate_ids(model, tokenizer, prompts, max_new_tokens=6)
    assert ended[0] == greedy[0][:3]
    for before, after in zip(greedy, ended, strict=True):
        end = before.index(greedy[0][2]) + 1 if greedy[0][2] in before else 6
        assert after == before[:end]
    assert {len(completion) for completion in ended} >= {3, 6}


@pytest.mark.parametrize(
    ("configured", "expected"), [(None, {1}), (5, {1, 5}), ([5, 1], {1, 5}), ([5, 7], {1, 5, 7})], ids=str
)
def test_eos_ids_are_those_of_the_tokenizer_and_the_generation_config(configured, expected, model, tokenizer):
    assert tokenizer.eos_token_id == 1
    model.generation_config.eos_token_id = configured
    assert eos_token_ids(model.generation_config, tokenizer) == expected


def test_without_arguments_decoding_is_greedy_whatever_the_generation_config(model, tokenizer):
    prompts = [[5, 6, 7], [8, 9]]
    expected = generate_ids(model, tokenizer, prompts, max_new_tokens=8)
    model.generation_config.update(do_sample=True, temperature=5.0, top_p=0.9, top_k=40, repetition_penalty=9.0)
    assert generate_ids(model, tokenizer, prompts, max_new_tokens=8) == expected


def test_generation_arguments_are_passed_on(model, tokenizer):
    prompts = [[5, 6, 7]] * 6
    torch.manual_seed(0)
    sampled = generate_ids(model, tokenizer, prompts, max_new_tokens=8, do_sample=True, temperature=3.0)
    assert len({tuple(completion) for completion in sampled}) > 1


def test_no_prompts_give_no_completions(model, tokenizer):
    assert generate_ids(model, tokenizer, [], max_new_tokens=8) == []
    assert completion_logps(model, tokenizer, [], []) == []


def test_a_tokenizer_without_pad_token_generates_the_same(model, tokenizer, chat_tokenizer):
    import copy

    bare = copy.deepcopy(chat_tokenizer)
    bare.pad_token = None
    prompts = [[5, 6, 7], [8, 9], [10]]
    assert generate_ids(model, bare, prompts, 5) == generate_ids(model, tokenizer, prompts, 5)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 16])
def test_log_probabilities_match_a_full_softmax_in_the_given_order(batch_size, model, tokenizer):
    rng = random.Random(3)
    prompts = [random_ids(rng, 3, len(tokenizer)) for _ in range(11)]
    completions = [[*random_ids(rng, 3, len(tokenizer), 0, 30), tokenizer.eos_token_id] for _ in range(11)]
    expected = [naive_logps(model, *pair) for pair in zip(prompts, completions, strict=True)]
    found = completion_logps(model, tokenizer, prompts, completions, batch_size)
    assert [len(row) for row in found] == [len(ids) for ids in completions]
    for row, values in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(row), values, rtol=1e-5, atol=1e-5)
    assert torch.cat(expected).std() > 1, "probabilities differ enough to tell a shift"


def test_a_padding_id_in_a_completion_is_a_token_like_any_other(model, tokenizer):
    """The attention mask tells what is padding, not the id."""
    prompts, completions = [[5, 6, 7], [8] * 9], [[tokenizer.pad_token_id, 9, tokenizer.eos_token_id], [9, 1]]
    expected = [naive_logps(model, *pair) for pair in zip(prompts, completions, strict=True)]
    for row, values in zip(completion_logps(model, tokenizer, prompts, completions), expected, strict=True):
        torch.testing.assert_close(torch.tensor(row), values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("was_training", [True, False])
def test_the_models_mode_is_restored_and_no_gradient_is_kept(was_training, model, tokenizer):
    modes, grads = [], []

    def watch(module, args, output):
        modes.append(module.training)
        grads.append(torch.is_grad_enabled())

    model.model.layers[0].register_forward_hook(watch)
    model.train(was_training)
    generate_ids(model, tokenizer, [[5, 6]], max_new_tokens=2)
    completion_logps(model, tokenizer, [[5, 6]], [[7, 1]])
    assert modes and not any(modes) and not any(grads)
    assert model.training == was_training
    assert all(module.training == was_training for module in model.modules())
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        1 / 0  # noqa: B018
    assert model.training == was_training
    assert torch.is_grad_enabled()


def test_a_plain_model_has_its_own_forward_again_afterwards(policy, tokenizer):
    assert "forward" not in vars(policy)
    completion_logps(policy, tokenizer, [[5, 6]], [[7, 1]])
    assert "forward" not in vars(policy)
    add_fused_lm_head(policy, outputs=("log_probs", "entropy"))
    own = policy.forward
    completion_logps(policy, tokenizer, [[5, 6]], [[7, 1]])
    assert policy.forward == own


def test_an_adapter_gives_the_log_probabilities_of_its_base_model(policy, tokenizer):
    expected = completion_logps(policy, tokenizer, [[5, 6]], [[7, 1]])
    adapted = get_peft_model(policy, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert completion_logps(adapted, tokenizer, [[5, 6]], [[7, 1]]) == expected
