"""The pieces of tokens are the text, however a tokenizer divides characters and treats spaces."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmec_trl.reports.token_pieces import Piece, TokenPieces
from tests.small_tokenizers import EOS, byte_fallback_tokenizer, byte_level_tokenizer, unigram_tokenizer


BYTE_LEVEL, FALLBACK = byte_level_tokenizer(), byte_fallback_tokenizer()
UNIGRAM = unigram_tokenizer(["the answer is 12", "3 + 4 = 7"])


def texts(tokenizer, ids):
    return [None if piece is None else piece.text for piece in TokenPieces(tokenizer)(ids)]


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, UNIGRAM], ids=["bytes", "unigram"])
@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12))
def test_the_pieces_of_a_text_are_the_text(tokenizer, text):
    ids = ids_of(tokenizer, text)
    pieces = TokenPieces(tokenizer)(ids)
    assert len(pieces) == len(ids)
    assert "".join(piece.text for piece in pieces if piece is not None) == tokenizer.decode(ids)


@pytest.mark.parametrize("text", ["😀", "é 😀 ok", "日本語", "👩‍👧", "مرحبا"])
@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, FALLBACK], ids=["bytes", "fallback"])
def test_a_character_that_is_divided_among_tokens_is_whole(tokenizer, text):
    text = text if tokenizer is BYTE_LEVEL else text.replace(" ", "")
    ids = ids_of(tokenizer, text)
    shown = texts(tokenizer, ids)
    assert None in shown and "\ufffd" not in "".join(filter(None, shown))
    assert "".join(filter(None, shown)) == text
    assert [piece.kind for piece in TokenPieces(tokenizer)(ids) if piece] == ["text"] * sum(map(bool, shown))


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, FALLBACK], ids=["bytes", "fallback"])
def test_bytes_that_are_no_character_are_spelled(tokenizer):
    ids = ids_of(tokenizer, "ok日")
    if tokenizer is FALLBACK:
        ids = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "日".encode()]
    pieces = TokenPieces(tokenizer)(ids[:-1])
    assert pieces[-1] == Piece("<0x97>", "bytes") and pieces[-2] == Piece("<0xE6>", "bytes")


def test_a_token_that_begins_a_character_in_one_place_may_be_bytes_in_another():
    ids = ids_of(BYTE_LEVEL, "日")
    assert texts(BYTE_LEVEL, [*ids[:1], *ids]) == ["<0xE6>", "日", None, None]


def test_a_replacement_character_and_what_looks_like_a_byte_are_text():
    pieces = TokenPieces(BYTE_LEVEL)(ids_of(BYTE_LEVEL, "a\ufffd<0xE2>"))
    assert "".join(piece.text for piece in pieces if piece).endswith("<0xE2>")
    assert all(piece.kind == "text" for piece in pieces[-6:])


def test_special_tokens_and_ids_that_the_tokenizer_does_not_know():
    pieces = TokenPieces(BYTE_LEVEL)([BYTE_LEVEL.eos_token_id, 99_999])
    assert pieces == [Piece(EOS, "special"), Piece("<99999>", "special")]


def test_a_space_before_a_token_is_kept(tokenizer):
    # each of these tokens alone, and the first of a text, has none
    assert texts(UNIGRAM, ids_of(UNIGRAM, "the the"))[-1] == " the"
    assert texts(tokenizer, tokenizer("10 + 85")["input_ids"]) == ["1", "0", " +", " 8", "5"]
