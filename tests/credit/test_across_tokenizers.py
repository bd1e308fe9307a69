"""Log-probabilities and rewrites across tokenizers: every token counts once, where it begins in the text."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from rlmec_trl.credit.across_tokenizers import (
    _decoded_ends,
    carry_over,
    token_spans,
    translate_completion,
    translate_rewrite,
)
from rlmec_trl.data.steps import split_steps
from rlmec_trl.data.tokens import decode_completion, encode_completion, step_prefix_ids
from tests.small_tokenizers import (
    BOS,
    END,
    EOS,
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    unigram_tokenizer,
    word_tokenizer,
)


FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"  # three emoji, joined into one
TEXTS = [
    "3 + 4 = 7\n7 + 5 = 12\nThe answer is 12",
    " leading  and   trailing spaces ",
    "caf\u00e9, cafe\u0301, \u0928\u093f",  # composed, combining, a vowel sign
    f"{FAMILY} = \U0001f600\U0001f600",
    "\u05e9\u05dc\u05d5\u05dd = \u0633\u0644\u0627\u0645 7",  # right to left
    "\u7b54\u3048\u306f12\u3067\u3059",
    "don 't stop . Now",
    "",
]


def composing_tokenizer():
    """Composes what it encodes, as Qwen's does: it cannot spell a combining accent."""
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def cleaning_tokenizer():
    """WordPiece, whose decoder removes the spaces before punctuation and contractions."""
    pieces = [
        BOS,
        EOS,
        END,
        "<unk>",
        *"0123456789+=.,'",
        "don",
        "t",
        "stop",
        "Now",
        "The",
        "answer",
        "is",
        "##op",
        "st",
    ]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        unk_token="<unk>",
        clean_up_tokenization_spaces=True,
    )


BPE = byte_level_tokenizer()
BYTES = byte_fallback_tokenizer()
TOKENIZERS = {
    "byte-level": BPE,
    "other byte-level": byte_level_tokenizer(TEXTS * 20),
    "bytes": BYTES,
    "sentencepiece": unigram_tokenizer(TEXTS),
    "words": word_tokenizer(),
    "composing": composing_tokenizer(),
    "cleaning": cleaning_tokenizer(),
    "slow": ByT5Tokenizer(extra_ids=0),
}
# Those that spell every text
EXACT = ["byte-level", "other byte-level", "bytes"]


def ids_of(tokenizer):
    """Whatever a policy may sample: halves of characters, special tokens in the middle, with EOS or cut off."""
    return st.lists(st.integers(0, len(tokenizer) - 1), max_size=30)


@st.composite
def sampled(draw, names=tuple(TOKENIZERS)):
    """A tokenizer, and ids of it: of a text, or any."""
    tokenizer = TOKENIZERS[draw(st.sampled_from(names))]
    text = st.sampled_from(TEXTS) | st.text(alphabet=" \n34=The\u00e9\u0301\U0001f600\u200d\u05e9\ufffd", max_size=15)
    ids = draw(ids_of(tokenizer) | text.map(lambda text: encode_completion(tokenizer, text)))
    return tokenizer, ids[: draw(st.integers(0, 40))]


def owners(source, target):
    """For each target token the source tokens that it got."""
    numbers = [1 << index for index in range(len(source.starts))]
    carried = carry_over(numbers, source, target)
    assert None not in [value for value in carried if value == 0]
    return [[index for index in range(len(numbers)) if (value or 0) >> index & 1] for value in carried]


# --- Properties ------------------------------------------------------------------------------------------------------


@given(sampled(), st.data())
def test_the_same_tokens_keep_their_values(sample, data):
    tokenizer, ids = sample
    values = data.draw(st.lists(st.floats(-50, 0), min_size=len(ids), max_size=len(ids)))
    spans = token_spans(tokenizer, ids)
    assert carry_over(values, spans, spans) == values


@settings(max_examples=300)
@given(sampled(), st.sampled_from(sorted(TOKENIZERS)))
def test_every_token_counts_once_in_order_and_sums_are_preserved(sample, name):
    tokenizer, ids = sample
    other = TOKENIZERS[name]
    other_ids = translate_completion(tokenizer, other, ids)
    target = token_spans(tokenizer, ids)
    has_eos = target.has_eos
    source = token_spans(other, other_ids, has_eos)
    got = owners(source, target)
    assert len(got) == len(ids)
    if len(ids) > has_eos:  # otherwise there is no text, and what another tokenizer puts before it counts nowhere
        assert [index for indices in got for index in indices] == list(range(len(other_ids)))
    assert not has_eos or got[-1] == [len(other_ids) - 1]
    values = [-float(index + 1) for index in range(len(other_ids))]
    carried = carry_over(values, source, target)
    assert [value is None for value in carried] == [not indices for indices in got]
    assert [value or 0.0 for value in carried] == [sum(values[index] for index in indices) for indices in got]


@given(sampled())
def test_spans_are_in_order_and_inside_the_text(sample):
    tokenizer, ids = sample
    spans = token_spans(tokenizer, ids)
    assert spans.text == decode_completion(tokenizer, ids)
    assert len(spans.starts) == len(ids)
    assert [0, *spans.starts, len(spans.text)] == sorted([0, *spans.starts, len(spans.text)])


@given(sampled())
def test_decoding_only_the_last_tokens_finds_the_same_places(sample):
    tokenizer, ids = sample
    text = decode_completion(tokenizer, ids)
    ends = _decoded_ends(tokenizer, ids, text, from_start=False)
    # Broken characters may decode otherwise with others before them
    if ids and ends[-1] == (len(text), False) and "\ufffd" not in text:
        assert ends == _decoded_ends(tokenizer, ids, text, from_start=True)


@given(st.text(alphabet="347+= \nThe", max_size=25), st.lists(st.integers(0, 25), max_size=4), st.sampled_from(EXACT))
def test_a_token_counts_where_its_first_character_is(text, cuts, name):
    """Checked by hand, character by character, where no token is part of a character."""
    ends = [*sorted({cut for cut in cuts if cut < len(text)}), len(text)]
    pieces = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    ids = [token for piece in pieces for token in encode_completion(BPE, piece)[:-1]]
    other = TOKENIZERS[name]
    other_ids = translate_completion(BPE, other, ids)
    token_of_character = [index for index, token in enumerate(ids) for _ in BPE.decode([token])]
    expected, position = [[] for _ in ids], 0
    for index, token in enumerate(other_ids):
        expected[token_of_character[position]].append(index)
        position += len(other.decode([token]))
    assert owners(token_spans(other, other_ids), token_spans(BPE, ids)) == expected


# --- Cases -----------------------------------------------------------------------------------------------------------


def starts(tokenizer, text):
    return token_spans(tokenizer, encode_completion(tokenizer, text)).starts


def test_tokens_that_share_a_character_have_equal_parts_of_it():
    assert starts(BYTES, "7\U0001f6004") == [0, 1, *(1 + Fraction(part, 4) for part in (1, 2, 3)), 2, 3]
    # A run of bytes that ends within a character decodes as broken from its first byte on
    assert starts(BYTES, "\u00e9\U0001f600") == [0, Fraction(1, 2), *(1 + Fraction(part, 4) for part in range(4)), 2]


def test_a_family_of_emoji_counts_by_its_people():
    ids = encode_completion(BPE, FAMILY)
    other_ids = encode_completion(BYTES, FAMILY)
    spans = token_spans(BPE, ids), token_spans(BYTES, other_ids)
    people = [1 << position for position in range(len(other_ids))]
    carried = carry_over(people, spans[1], spans[0])
    # 18 bytes, and EOS: no token of the one begins in another character of the other
    by_character = {}
    for start, value in zip(spans[0].starts, carried, strict=True):
        by_character[int(start)] = by_character.get(int(start), 0) + (value or 0)
    expected = {}
    for start, value in zip(spans[1].starts, people, strict=True):
        expected[int(start)] = expected.get(int(start), 0) + value
    assert by_character == expected
    assert sorted(expected) == [0, 1, 2, 3, 4, 5]


def test_a_token_in_which_no_other_begins_has_no_opinion():
    ids = [BPE.convert_tokens_to_ids(token) for token in ("1", "2", "\u0120", "=")]
    source = token_spans(WHOLE, encode_completion(WHOLE, "12 =")[:-1])
    assert source.starts == [0, 2]
    assert carry_over([-1.0, -2.0], source, token_spans(BPE, ids)) == [-1.0, None, -2.0, None]


def whole_number_tokenizer():
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, EOS: 1, "12": 2, " =": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" =", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, unk_token="<unk>")


WHOLE = whole_number_tokenizer()


def test_a_leading_space_that_another_tokenizer_drops_is_part_of_the_first_word():
    other = TOKENIZERS["sentencepiece"]
    ids = encode_completion(BPE, " 3 + 4")
    other_ids = encode_completion(other, " 3 + 4")
    assert owners(token_spans(other, other_ids), token_spans(BPE, ids))[-1] == [len(other_ids) - 1]
    assert other.decode(encode_completion(other, "3 + 4")[:-1]) == "3 + 4"
    got = owners(token_spans(other, encode_completion(other, "3 + 4")), token_spans(BPE, ids))
    assert [index for indices in got for index in indices] == list(range(4))


def test_an_accent_that_another_tokenizer_composes_belongs_to_its_letter():
    text = "cafe\u0301 7"
    ids = [token for character in text for token in encode_completion(BYTES, character)[:-1]]
    other = TOKENIZERS["composing"]
    other_ids = translate_completion(BYTES, other, ids)
    assert other.decode(other_ids) == "caf\u00e9 7"
    got = owners(token_spans(other, other_ids), token_spans(BYTES, ids))
    assert got[-1] == [len(other_ids) - 1], "the last token is the same again"
    assert [index for indices in got for index in indices] == list(range(len(other_ids)))


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_eos_counts_for_eos_and_for_nothing_else(name):
    tokenizer = TOKENIZERS[name]
    for text in ("7", ""):
        with_eos = encode_completion(BPE, text)
        other_ids = encode_completion(tokenizer, text)
        with_end = token_spans(tokenizer, other_ids)
        assert with_end.has_eos
        without_end = token_spans(tokenizer, other_ids[:-1])
        values = [-1.0] * (len(other_ids) - 1)
        assert carry_over([*values, -7.0], with_end, token_spans(BPE, with_eos))[-1] == -7.0
        assert -7.0 not in carry_over([*values, -7.0], with_end, token_spans(BPE, with_eos[:-1]))
        assert carry_over(values, without_end, token_spans(BPE, with_eos))[-1] is None


def test_the_sampled_end_of_turn_is_an_eos_and_an_unknown_word_is_not():
    ids = encode_completion(BPE, "7")
    end = token_spans(BPE, [*ids[:-1], BPE.convert_tokens_to_ids(END)])
    assert carry_over([-1.0, -2.0], token_spans(BPE, ids), end) == [-1.0, -2.0]
    words = TOKENIZERS["words"]
    assert not token_spans(words, [words.convert_tokens_to_ids("7"), words.unk_token_id]).has_eos


def test_an_end_that_the_tokenizer_has_no_name_for_is_an_eos():
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.add_special_tokens(["<turn>"])
    ids = [*encode_completion(tokenizer, "7")[:-1], tokenizer.convert_tokens_to_ids("<turn>")]
    assert ids[-1] not in tokenizer.all_special_ids
    assert token_spans(tokenizer, ids).has_eos


def test_special_tokens_in_the_middle_have_no_opinion():
    ids = [*encode_completion(BPE, "3 +")[:-1], BPE.convert_tokens_to_ids(END), *encode_completion(BPE, " 4")]
    other_ids = translate_completion(BPE, BYTES, ids)
    assert BYTES.decode(other_ids) == "3 + 4" + EOS
    carried = carry_over([-1.0] * len(other_ids), token_spans(BYTES, other_ids), token_spans(BPE, ids))
    special = ids.index(BPE.convert_tokens_to_ids(END))
    assert [index for index, value in enumerate(carried) if value is None] == [special]


def test_a_completion_that_ends_within_a_character_is_judged_up_to_it():
    ids = encode_completion(BPE, "7\U0001f9ea")[:3]
    assert decode_completion(BPE, ids) == "7\ufffd"
    other_ids = translate_completion(BPE, BYTES, ids)
    assert owners(token_spans(BYTES, other_ids), token_spans(BPE, ids)) == [[0], [1, 2, 3], []]


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_nothing_at_all_has_no_tokens(name):
    nothing = token_spans(TOKENIZERS[name], [])
    assert (nothing.text, nothing.starts, nothing.has_eos) == ("", [], False)
    assert carry_over([], nothing, nothing) == []


def test_values_that_are_not_one_for_each_token_are_refused():
    spans = token_spans(BPE, encode_completion(BPE, "7"))
    with pytest.raises(ValueError, match="1 values for 2 source tokens"):
        carry_over([0.0], spans, spans)


def test_long_completions_are_not_decoded_from_their_start_for_every_token():
    ids = encode_completion(BPE, "3 + 4 = 7\nThe \U0001f600 " * 100)
    lengths = []

    class Counting:
        unk_token_id, all_special_ids = None, BPE.all_special_ids

        def decode(self, token_ids, **kwargs):
            lengths.append(len(token_ids))
            return BPE.decode(token_ids, **kwargs)

    assert token_spans(Counting(), ids) == token_spans(BPE, ids)
    assert sum(lengths) < 20 * len(ids)


def test_a_decoder_that_looks_far_back_is_read_from_the_start():
    class Shouting:
        """Writes everything after an exclamation mark in capitals."""

        unk_token_id, all_special_ids = None, BPE.all_special_ids

        def decode(self, token_ids, **kwargs):
            head, mark, rest = BPE.decode(token_ids, **kwargs).partition("=")
            return head + mark + rest.upper()

    ids = encode_completion(BPE, "3 = The The The")
    assert token_spans(Shouting(), ids).starts == token_spans(BPE, ids).starts


# --- Rewrites --------------------------------------------------------------------------------------------------------


def rewritten(tokenizer, other, completion_ids, num_kept, rewrite, is_complete=True):
    """A rewrite that another tokenizer's model writes after the steps it keeps, in ids of the first tokenizer."""
    own_ids = translate_completion(tokenizer, other, completion_ids)
    kept_ids = step_prefix_ids(other, own_ids, split_steps(decode_completion(other, own_ids), "\n"), num_kept)
    new_ids = encode_completion(other, rewrite)[len(kept_ids) :]
    assert decode_completion(other, [*kept_ids, *new_ids]).strip() == rewrite.strip()
    if not is_complete:
        new_ids = new_ids[:-1]
    return translate_rewrite(other, tokenizer, kept_ids, new_ids, is_complete, completion_ids, "\n")


@pytest.mark.parametrize("name", EXACT)
def test_a_rewrite_keeps_the_sampled_ids_of_the_steps_it_keeps(name):
    text = "3 + 4 = 7\n7 + 5 = 11\nThe answer is 11"
    ids = [token for character in text for token in encode_completion(BPE, character)[:-1]] + [BPE.eos_token_id]
    rewrite = "3 + 4 = 7\n7 + 5 = 12\nThe answer is 12"
    rewrite_ids = rewritten(BPE, TOKENIZERS[name], ids, 1, rewrite)
    assert BPE.decode(rewrite_ids) == rewrite + EOS
    assert rewrite_ids[:10] == ids[:10]


def test_a_rewrite_has_eos_only_if_it_was_written_to_its_end():
    ids = encode_completion(BPE, "3 + 4 = 8")
    for completion_ids in (ids, ids[:-1], [*ids[:-1], BPE.convert_tokens_to_ids(END)]):
        for new in ("3 + 4 = 7", "3 + 4 = 8"):
            whole = rewritten(BPE, BYTES, completion_ids, 0, new)
            assert decode_completion(BPE, whole) == new
            assert token_spans(BPE, whole).has_eos
            cut = rewritten(BPE, BYTES, completion_ids, 0, new, is_complete=False)
            assert cut == whole[:-1]


def test_a_rewrite_keeps_a_leading_space_that_its_tokenizer_cannot_spell():
    other = unigram_tokenizer(["3 + 4 = 7\n7 The"])
    other.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Strip(), normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    completion, rewrite = " 3 + 4 = 7\n7 = 4", " 3 + 4 = 7\n4 = 4"
    ids = [token for character in completion for token in encode_completion(BPE, character)[:-1]]
    assert other.decode(translate_completion(BPE, other, ids)) == completion[1:]
    for num_kept in (0, 1):
        rewrite_ids = rewritten(BPE, other, ids, num_kept, rewrite)
        assert BPE.decode(rewrite_ids) == rewrite + EOS
        assert rewrite_ids[:11] == ids[:11]
