"""What to show for each token of a sequence, so that the pieces in a row are the text."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase


# What a decoder writes for bytes that are no character
_REPLACEMENT = "\ufffd"
# A character has at most four bytes, but its last token may begin the next character, and so on
_LONGEST_RUN = 16


class Piece(NamedTuple):
    """
    What is shown for a token.

    Args:
        text (`str`):
            The text.
        kind (`str`):
            `"text"`, `"special"` for a special token or an id that the tokenizer does not know, or `"bytes"` for bytes
            that are no character, which `text` spells as `<0xE2><0x98>`.
    """

    text: str
    kind: str = "text"


class TokenPieces:
    """
    Cut the text of token ids into the pieces of its tokens.

    A tokenizer does not decode a token alone as it decodes it in a sequence: spaces are lost at the start of a text,
    and bytes of a character that is divided among tokens are no text at all. So a token is decoded after the one
    before it, and tokens that only together are characters share one piece.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer of the ids.
    """

    def __init__(self, processing_class: PreTrainedTokenizerBase):
        self.processing_class = processing_class
        added = processing_class.added_tokens_decoder
        self._special = set(processing_class.all_special_ids) | {id for id, token in added.items() if token.special}
        self._added = added.keys()
        self._whole: dict[int, bool] = {}
        self._pieces: dict[tuple[tuple[int, ...], tuple[int, ...]], Piece] = {}
        self._is_text_run: dict[tuple[int, ...], bool] = {}

    def __call__(self, token_ids: Sequence[int]) -> list[Piece | None]:
        """
        The pieces of a sequence.

        Args:
            token_ids (`Sequence[int]`):
                Token ids.

        Returns:
            `list[Piece | None]`: One entry for each token, `None` for a token that shares the piece before it.
        """
        pieces: list[Piece | None] = []
        before: tuple[int, ...] = ()  # the tokens of the piece before
        while len(pieces) < len(token_ids):
            run = self._run(token_ids, len(pieces))
            piece = self._pieces.get((before, run))
            if piece is None:
                piece = self._pieces[before, run] = self._piece(before, run)
            pieces.append(piece)
            pieces += [None] * (len(run) - 1)
            before = run
        return pieces

    def alone(self, token: int) -> Piece:
        """The piece of a token without others, which are bytes where it is no whole characters."""
        return self._piece((), (token,))

    def _piece(self, before: tuple[int, ...], run: tuple[int, ...]) -> Piece:
        token = run[0]
        if token in self._special:
            return Piece(self._decode(run), "special")
        if len(run) == 1 and not self._is_whole(token):
            values = self._bytes(token)
            return Piece(_REPLACEMENT if values is None else "".join(f"<0x{byte:02X}>" for byte in values), "bytes")
        text = self._after(before, run)
        if not text and self.processing_class.convert_ids_to_tokens(token) is None:
            return Piece(f"<{token}>", "special")
        return Piece(text)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self.processing_class.decode(
            list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _after(self, before: tuple[int, ...], run: tuple[int, ...]) -> str:
        text, both = self._decode(before), self._decode(before + run)
        # Some decoders write a whole character as bytes if the one before it is none
        if before and both.startswith(text) and _REPLACEMENT not in both[len(text) :]:
            return both[len(text) :]
        return self._decode(run)

    def _is_whole(self, token: int) -> bool:
        if token not in self._whole:
            whole = token in self._special or _REPLACEMENT not in self._decode([token])
            if not whole and (values := self._bytes(token)) is not None:
                whole = _is_text(values)  # the replacement character itself
            self._whole[token] = whole
        return self._whole[token]

    def _run(self, token_ids: Sequence[int], start: int) -> tuple[int, ...]:
        """The shortest run of tokens from `start` on that is text, or one token if there is none."""
        alone = (token_ids[start],)
        if self._is_whole(token_ids[start]):
            return alone
        for end in range(start + 2, min(start + _LONGEST_RUN, len(token_ids)) + 1):
            if self._is_whole(token_ids[end - 1]):
                return alone
            run = tuple(token_ids[start:end])
            if run not in self._is_text_run:
                values = [self._bytes(token) for token in run]
                # The replacement character may be text, too
                is_spelled = None not in values and _is_text(b"".join(values))
                self._is_text_run[run] = is_spelled or _REPLACEMENT not in self._decode(run)
            if self._is_text_run[run]:
                return run
        return alone

    def _bytes(self, token: int) -> bytes | None:
        """The bytes of a token that is spelled by them, in either way that tokenizers do it."""
        spelled = self.processing_class.convert_ids_to_tokens(token)
        if spelled is None or token in self._added:
            return None
        if len(spelled) == 6 and spelled.startswith("<0x") and spelled.endswith(">"):
            return bytes([int(spelled[3:5], 16)])
        if all(char in self._byte_of for char in spelled):
            return bytes(self._byte_of[char] for char in spelled)
        return None

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        """The alphabet of byte-level tokenizers: printable bytes stand for themselves, others are from 256 on."""
        printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)}
        others = (byte for byte in range(256) if byte not in printable)
        return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def token_texts(pieces_of: TokenPieces, token_ids: Sequence[int]) -> list[str]:
    """The text of each token, which is empty for one that shares the piece before it."""
    return ["" if piece is None else piece.text for piece in pieces_of(token_ids)]


def _is_text(values: bytes) -> bool:
    try:
        values.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
