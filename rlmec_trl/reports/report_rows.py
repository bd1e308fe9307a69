"""From scored rows to what the page of the report is drawn from."""

import json
import math
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..credit.alignment import edit_runs
from ..credit.preparation import RewardSettings, get_rewrite_ids, is_correct, token_rewards
from ..data.errors import DatasetError
from ..data.messages import is_conversational
from .packing import Quantized
from .token_pieces import Piece, TokenPieces


# Columns of a few different texts, by which the page filters
CATEGORIES = ("edit_outcome", "source")
# Log-probabilities under it are shown as it: nothing depends on how small such a probability is
LOWEST_LOGP = -64.0
# As the page numbers them
KINDS = ("insert", "delete", "replace")
# A text that stands for "shares the piece of the token before it"
_SHARED = 0


class PieceTable:
    """
    The distinct tokens of many sequences and their texts.

    A token nearly always has the same text. So a sequence is stored as numbers of tokens, each with its usual text,
    and those places are listed whose text is another one: those of characters that are divided among tokens, and the
    starts of texts, where tokenizers drop a space.
    """

    def __init__(self, processing_class: PreTrainedTokenizerBase):
        self.pieces_of = TokenPieces(processing_class)
        self.texts: dict[Piece | None, int] = {None: _SHARED}
        self.numbers: dict[int, int] = {}
        self.usual: list[int] = []

    def add(self, token_ids: Iterable[int]) -> list[int]:
        """The numbers of tokens, in the order in which they were first added."""
        numbers = []
        for token in token_ids:
            number = self.numbers.get(token)
            if number is None:
                number = self.numbers[token] = len(self.numbers)
                self.usual.append(-1)
            numbers.append(number)
        return numbers

    def unusual(self, token_ids: Sequence[int], numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Where a sequence has other texts than usual: place and number of the text."""
        for place, (number, piece) in enumerate(zip(numbers, self.pieces_of(token_ids), strict=True)):
            text = self.texts.get(piece)
            if text is None:
                text = self.texts[piece] = len(self.texts)
            if self.usual[number] != text:
                # The text at the start of a sequence is not the usual one of a token, and neither is a shared one
                if self.usual[number] < 0 and place > 0 and text != _SHARED and self._stands_alone(token_ids[place]):
                    self.usual[number] = text
                else:
                    yield place, text

    def _stands_alone(self, token: int) -> bool:
        return self.pieces_of.alone(token).kind != "bytes"

    def finish(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Texts and their kinds for the header, and the ids and usual texts of the tokens."""
        for token, number in self.numbers.items():
            if self.usual[number] < 0:
                self.usual[number] = self.texts.setdefault(self.pieces_of.alone(token), len(self.texts))
        texts = [Piece("") if piece is None else piece for piece in self.texts]
        header = {"texts": [piece.text for piece in texts], "kinds": [piece.kind for piece in texts]}
        return header, {"ids": np.array([*self.numbers], np.uint32), "usual": np.array(self.usual, np.uint32)}


class ModelColumns:
    """What one reward model says of the samples: probabilities, rewards, and its rewrites as edits of the samples."""

    def __init__(self, table: PieceTable):
        self.table = table
        self.probs, self.rewards = array("d"), array("d")
        self.is_rewritten = array("B")
        self.runs, self.num_runs, self.inserted = array("L"), array("L"), array("L")
        self.places, self.texts = array("L"), array("L")
        self.length = 0

    def add(self, row: dict[str, Any], rewrite_ids: list[int] | None, correct: bool, settings: RewardSettings) -> None:
        """Add a sample."""
        sample_ids = row["completion_ids"]
        probs = row.get("token_probs") or [None] * len(sample_ids)
        self.probs.extend(math.nan if prob is None else prob for prob in probs)
        self.rewards.extend(token_rewards(row, correct, settings))
        self._add_rewrite(sample_ids, rewrite_ids)

    def skip(self, num_tokens: int) -> None:
        """Add a sample that the reward model has not judged."""
        self.probs.extend([math.nan] * num_tokens)
        self.rewards.extend([math.nan] * num_tokens)
        self._add_rewrite([], None)

    def _add_rewrite(self, sample_ids: list[int], rewrite_ids: list[int] | None) -> None:
        self.is_rewritten.append(rewrite_ids is not None)
        if rewrite_ids is None or rewrite_ids == sample_ids:  # its tokens and texts are those of the sample
            self.num_runs.append(0)
            return
        runs = edit_runs(sample_ids, rewrite_ids)
        self.num_runs.append(len(runs))
        numbers, shift = self.table.add(rewrite_ids), 0
        for kind, start, source_length, target_length in runs:
            self.runs.extend((KINDS.index(kind), start, source_length, target_length))
            self.inserted.extend(numbers[start + shift : start + shift + target_length])
            shift += target_length - source_length
        for place, text in self.table.unusual(rewrite_ids, numbers):
            self.places.append(self.length + place)
            self.texts.append(text)
        self.length += len(rewrite_ids)

    def arrays(self, settings: RewardSettings) -> dict[str, np.ndarray | Quantized]:
        rewards = np.array(self.rewards)
        largest = float(np.nanmax(np.abs(rewards), initial=0)) or 1.0
        found = {name: np.array(getattr(self, name), np.uint32) for name in ("is_rewritten", "runs", "num_runs")}
        found |= {name: np.array(getattr(self, name), np.uint32) for name in ("inserted", "places", "texts")}
        found["probs"] = Quantized(np.array(self.probs), 0.0, 1.0, keep_below=settings.reward_baseline)
        found["rewards"] = Quantized(rewards, -largest, largest)
        return found


def report_columns(
    dataset: Dataset, processing_class: PreTrainedTokenizerBase, settings: RewardSettings, other: Dataset | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray | Quantized]]:
    """
    The header and the arrays of the page.

    Args:
        dataset ([`~datasets.Dataset`]):
            Scored rows, with the columns that the trainer needs (`check_dataset(dataset, "policy")`).
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        settings (`RewardSettings`):
            What makes rewards of probabilities, and the weights of the rewrites.
        other ([`~datasets.Dataset`], *optional*):
            The same samples, or some of them, scored by another reward model.

    Raises:
        [`~rlmec_trl.data.errors.DatasetError`]: If the two datasets have no sample in common.
    """
    table = PieceTable(processing_class)
    models = [ModelColumns(table)] + ([] if other is None else [ModelColumns(table)])
    of_other = {} if other is None else _by_sample(other)
    tokens, lengths, places, texts, logps = array("L"), array("L"), array("L"), array("L"), array("d")
    rows: dict[str, list[Any]] = {"prompt": [], "correct": []}
    names = [name for name in ("reference", "answer", *CATEGORIES) if name in dataset.column_names]
    rows |= {name: [] for name in names}
    num_shared = 0
    for row in dataset:
        sample_ids = row["completion_ids"]
        rows["prompt"].append(_messages(row["prompt"]))
        correct = is_correct(row)
        rows["correct"].append(correct)
        for name in names:
            rows[name].append(row[name] if row[name] is None else str(row[name]))
        numbers = table.add(sample_ids)
        for place, text in table.unusual(sample_ids, numbers):
            places.append(len(tokens) + place)
            texts.append(text)
        tokens.extend(numbers)
        lengths.append(len(sample_ids))
        logps.extend(row.get("old_logps") or [math.nan] * len(sample_ids))
        models[0].add(row, get_rewrite_ids(row, processing_class), correct, settings)
        if other is not None:
            found = of_other.get(_sample_key(row))
            if found:
                same = other[found.pop(0)]
                models[1].add(same, get_rewrite_ids(same, processing_class), correct, settings)
                num_shared += 1
            else:
                models[1].skip(len(sample_ids))
    if other is not None and num_shared == 0:
        raise DatasetError(
            "The two datasets have no sample in common: no row of one has the prompt and the completion ids of a row "
            "of the other. Score the same samples with both reward models."
        )
    header, arrays = table.finish()
    arrays |= {"tokens": np.array(tokens, np.uint32), "lengths": np.array(lengths, np.uint32)}
    arrays |= {"places": np.array(places, np.uint32), "texts": np.array(texts, np.uint32)}
    if not np.isnan(logps).all():
        arrays["logps"] = Quantized(np.array(logps), LOWEST_LOGP, 0.0)
    for number, model in enumerate(models):
        arrays |= {f"{name}_{number}": values for name, values in model.arrays(settings).items()}
    return {**header, "rows": rows}, arrays


def _messages(prompt: str | list[dict]) -> list[list[str]]:
    """Role and text of each message; a prompt that is a text has no role."""
    if not is_conversational(prompt):
        return [["", prompt]]
    texts = [(message["role"], message["content"]) for message in prompt]
    return [[role, text if isinstance(text, str) else json.dumps(text, default=str)] for role, text in texts]


def _sample_key(row: dict[str, Any]) -> tuple:
    return json.dumps(row["prompt"], sort_keys=True), tuple(row["completion_ids"])


def _by_sample(dataset: Dataset) -> dict[tuple, list[int]]:
    """Numbers of the rows of each sample: the policy may have written it twice."""
    found = defaultdict(list)
    for number, row in enumerate(dataset.select_columns(["prompt", "completion_ids"])):
        found[_sample_key(row)].append(number)
    return found
