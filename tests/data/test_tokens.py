"""Sampled ids are kept as they are; what is tokenized again decodes to the text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from rlmec_trl.data.steps import split_steps
from rlmec_trl.data.tokens import as_prompt, encode_completion, encode_prompt, encode_rewrite, step_prefix_ids
from tests.small_tokenizers import (
    BOS,
    END,
    EOS,
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    word_tokenizer,
)


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<s>' + message['role'] + ':' + message['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}"
)
TEXTS = st.text(alphabet="347+= \nTheé😀", max_size=25)
SEPARATORS = st.sampled_from(["\n", " = ", "e"])


def adds_special_tokens(tokenizer, single):
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (BOS, EOS)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return tokenizer


BPE = byte_level_tokenizer()
BYTES = byte_fallback_tokenizer()
WORDS = word_tokenizer()


def decode(tokenizer, token_ids):
    return tokenizer.decode(token_ids, skip_special_tokens=True)


def sampled_ids(tokenizer, text, cuts):
    """Ids of a text in the pieces that the cuts make: a sampled text need not be tokenized as its tokenizer would."""
    cuts = sorted(cut % (len(text) + 1) for cut in cuts)
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return [token_id for piece in pieces for token_id in encode_completion(tokenizer, piece)[:-1]] + [
        tokenizer.eos_token_id
    ]


def test_the_trained_tokenizer_has_tokens_over_the_ends_of_steps():
    assert any("\n" in text[:-1] for text in map(BPE.decode, range(BPE.vocab_size)))


def test_a_chat_template_turns_the_prompt_into_a_users_message():
    assert as_prompt(byte_level_tokenizer(chat_template=CHAT_TEMPLATE), "hi") == [{"role": "user", "content": "hi"}]
    assert as_prompt(BPE, "hi") == "hi"


def test_messages_end_where_the_assistant_begins():
    tokenizer = byte_level_tokenizer(chat_template=CHAT_TEMPLATE)
    prompt_ids = encode_prompt(tokenizer, [{"role": "system", "content": "3"}, {"role": "user", "content": "4"}])
    assert all(isinstance(token_id, int) for token_id in prompt_ids)
    assert tokenizer.decode(prompt_ids) == "<s>system:3</s><s>user:4</s><s>assistant:"


THINKING = "{% if enable_thinking is defined %}<think:{{ enable_thinking }}>{% endif %}{{ messages[0]['content'] }}"


@pytest.mark.parametrize(
    ("template_kwargs", "text"),
    [
        ({"enable_thinking": False}, "<think:False>4"),
        # What Arrow makes of a row without the key, where other rows have it
        ({"enable_thinking": None}, "4"),
        ({}, "4"),
        (None, "4"),
    ],
)
def test_chat_template_kwargs_reach_the_template_and_keys_of_other_rows_do_not(template_kwargs, text):
    tokenizer = byte_level_tokenizer(chat_template=THINKING)
    prompt = [{"role": "user", "content": "4"}]
    assert tokenizer.decode(encode_prompt(tokenizer, prompt, template_kwargs)) == text
    assert tokenizer.decode(encode_prompt(tokenizer, "4", template_kwargs)) == "4"


def test_a_text_prompt_keeps_the_bos_that_the_tokenizer_adds():
    tokenizer = adds_special_tokens(byte_level_tokenizer(), f"{BOS} $A")
    assert tokenizer.decode(encode_prompt(tokenizer, "3 + 4")) == "<s>3 + 4"
    assert encode_prompt(tokenizer, "3 + 4") == tokenizer("3 + 4")["input_ids"]


def test_a_prompt_does_not_end_with_an_eos_that_the_tokenizer_added():
    tokenizer = adds_special_tokens(byte_level_tokenizer(), f"{BOS} $A {EOS}")
    assert tokenizer.decode(encode_prompt(tokenizer, "3 + 4")) == "<s>3 + 4"


def test_an_empty_prompt_keeps_a_bos_that_is_also_eos():
    tokenizer = adds_special_tokens(byte_level_tokenizer(), f"{EOS} $A")
    assert encode_prompt(tokenizer, "") == [tokenizer.eos_token_id]


def test_a_completion_has_eos_and_no_other_special_token():
    tokenizer = adds_special_tokens(byte_level_tokenizer(), f"{BOS} $A")
    assert tokenizer.decode(encode_completion(tokenizer, "3 + 4")) == "3 + 4</s>"


@pytest.mark.parametrize("tokenizer", [BPE, BYTES], ids=["bpe", "bytes"])
@given(text=TEXTS, cuts=st.lists(st.integers(0, 25), max_size=4), separator=SEPARATORS, data=st.data())
def test_a_step_prefix_is_the_longest_that_does_not_pass_the_steps(tokenizer, text, cuts, separator, data):
    completion_ids = sampled_ids(tokenizer, text, cuts)
    steps = split_steps(text, separator)
    num_steps = data.draw(st.integers(0, len(steps)))

    prefix_ids = step_prefix_ids(tokenizer, completion_ids, steps, num_steps)

    kept_text = "".join(steps[:num_steps])
    without_eos = completion_ids[:-1]
    fitting = [
        end for end in range(len(without_eos) + 1) if kept_text.startswith(decode(tokenizer, without_eos[:end]))
    ]
    assert prefix_ids == without_eos[: max(fitting)]


def test_a_token_over_the_end_of_a_step_is_left_out():
    text = "3 \nThe"
    completion_ids = encode_completion(BPE, text)
    tokens = [BPE.decode(token_id) for token_id in completion_ids]
    assert tokens == ["3", " \nThe", EOS]
    assert step_prefix_ids(BPE, completion_ids, split_steps(text, "\n"), 1) == completion_ids[:1]


@pytest.mark.parametrize("trailing", range(20))
def test_half_a_character_that_decodes_as_several_does_not_shorten_the_prefix(trailing):
    steps = ["😀😀", "a" * trailing]
    completion_ids = encode_completion(BYTES, "".join(steps))
    assert len(BYTES.decode(completion_ids[:7])) > len(steps[0])
    assert step_prefix_ids(BYTES, completion_ids, steps, 1) == completion_ids[:8]


@pytest.mark.parametrize("end", [EOS, END])
def test_no_end_of_turn_is_part_of_a_step(end):
    completion_ids = [*encode_completion(BPE, "3\n4")[:-1], BPE.convert_tokens_to_ids(end)]
    assert step_prefix_ids(BPE, completion_ids, ["3\n", "4"], 2) == completion_ids[:-1]


def test_all_steps_of_a_truncated_completion_are_all_its_ids():
    completion_ids = encode_completion(BPE, "3\n4")[:-1]
    assert step_prefix_ids(BPE, completion_ids, ["3\n", "4"], 2) == completion_ids


def test_words_that_decode_with_spaces_between_them_have_step_prefixes():
    tokenizer, text = WORDS, "3 + 4 = 7 ; 7 + 5 = 1 2 ; The answer is 1 2"
    completion_ids = encode_completion(tokenizer, text)
    steps = split_steps(text, " ; ")
    assert [len(step_prefix_ids(tokenizer, completion_ids, steps, count)) for count in range(4)] == [0, 6, 13, 18]


def test_minus_one_for_no_error_is_refused_as_a_number_of_steps():
    with pytest.raises(ValueError, match="num_steps"):
        step_prefix_ids(BPE, encode_completion(BPE, "3\n4"), ["3\n", "4"], -1)


@given(TEXTS, TEXTS, TEXTS, st.lists(st.integers(0, 25), max_size=4), SEPARATORS)
def test_a_rewrite_spells_its_text_and_keeps_the_ids_of_shared_steps(shared, old, new, cuts, separator):
    completion, rewrite = shared + old, shared + new
    completion_ids = sampled_ids(BPE, completion, cuts)

    rewrite_ids = encode_rewrite(BPE, rewrite, completion, completion_ids, separator)

    assert BPE.decode(rewrite_ids) == rewrite + EOS
    steps, rewritten_steps = split_steps(completion, separator), split_steps(rewrite, separator)
    pairs = list(zip(steps, rewritten_steps, strict=False))
    num_shared = next((count for count, (step, other) in enumerate(pairs) if step != other), len(pairs))
    kept_ids = step_prefix_ids(BPE, completion_ids, steps, num_shared)
    assert rewrite_ids[: len(kept_ids)] == kept_ids


def test_a_copy_gets_the_sampled_ids_however_they_were_tokenized():
    text = "3 + 4 = 7\n7"
    completion_ids = sampled_ids(BPE, text, range(len(text)))
    assert completion_ids != encode_completion(BPE, text)
    rewrite_ids = encode_rewrite(BPE, text, text, completion_ids, "\n")
    assert rewrite_ids == completion_ids
    assert rewrite_ids is not completion_ids


def test_an_edit_in_the_second_step_keeps_the_unusual_ids_of_the_first():
    completion, rewrite = "3 + 4 = 7\n7 + 5 = 11", "3 + 4 = 7\n7 + 5 = 12"
    completion_ids = sampled_ids(BPE, completion, range(len(completion)))
    rewrite_ids = encode_rewrite(BPE, rewrite, completion, completion_ids, "\n")
    assert rewrite_ids[:10] == completion_ids[:10]
    assert rewrite_ids[:10] != encode_completion(BPE, rewrite)[:10]


def test_a_rewrite_that_stops_earlier_ends_with_eos():
    completion_ids = encode_completion(BPE, "3\n4\n7")
    rewrite_ids = encode_rewrite(BPE, "3\n4\n", "3\n4\n7", completion_ids, "\n")
    assert BPE.decode(rewrite_ids) == "3\n4\n</s>"


def test_a_tokenizer_that_prepends_a_space_to_every_text_adds_none_in_the_middle():
    tokenizer = byte_level_tokenizer(add_prefix_space=True)
    completion, rewrite = " 3 + 4 = 7\n7 + 5 = 11", " 3 + 4 = 7\n7 + 5 = 12"
    completion_ids = encode_completion(tokenizer, completion)
    rewrite_ids = encode_rewrite(tokenizer, rewrite, completion, completion_ids, "\n")
    assert tokenizer.decode(rewrite_ids) == rewrite + EOS


def test_a_word_that_the_tokenizer_does_not_know_does_not_shift_the_shared_steps():
    tokenizer = WORDS
    completion, rewrite = "3 + 4 = 7 ; 7 + 5 = 1 1", "3 + 4 = 7 ; 7 plus 5 = 1 2"
    rewrite_ids = encode_rewrite(tokenizer, rewrite, completion, encode_completion(tokenizer, completion), " ; ")
    assert rewrite_ids == encode_completion(tokenizer, rewrite)
