"""
The built-in task with labels: short reviews whose verdict is that of most of their clauses.

A problem is a review of seven clauses, "Review : the cast is never truly rich , the plot is great , ... . Verdict :".
A clause is positive or negative by its word, which a negation turns around, and the verdict is the majority, four or
five of seven. A response quotes two clauses and states a verdict, "the plot is great and the music is fresh , so
positive".

The other side has at least two clauses too, so a rationale without any flaw exists for the wrong verdict as well, and
nothing in it tells that the verdict is wrong: negations, lengths and positions are distributed alike. A reward model
that learns how rationales read learns nothing about verdicts. Reviews of the warm-up have hardly any negation, so a
policy trained on them overlooks those of the others.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from ..data.schema import DatasetError
from .small_models import make_policy as make_small_policy
from .small_models import make_word_tokenizer
from .task import Task
from .wording import WORDING


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


LABELS = ("negative", "positive")
ASPECTS = ("cast", "plot", "music", "script", "sound", "humor", "pace", "style")
WORDS = {
    "negative": ("dull", "flat", "weak", "cold", "clumsy", "stale", "timid", "slow", "rough", "empty"),
    "positive": ("great", "rich", "sharp", "warm", "clever", "fresh", "bold", "lively", "smooth", "moving"),
}
ADVERBS = ("truly", "really", "simply", "quite", "rather")
NEGATION = "never"
# An unseen word, an aspect that the review does not have, one clause twice, a clause of the other side
CORRUPTIONS = ("word", "aspect", "repeated", "side")

NUM_CLAUSES = 7
NUM_QUOTES = 2
PERFECT_QUALITY = 3.0
ADVERB_RATE = 0.5
# How often a clause is negated, and how often the verdict is as close as four to three (otherwise five to two)
WARMUP_NEGATION_RATE, NEGATION_RATE = 0.02, 0.3
WARMUP_CLOSE_RATE, CLOSE_RATE = 0.25, 0.75
WARMUP_CORRUPTION_RATE = 0.4

_ALL_WORDS = "|".join(word for words in WORDS.values() for word in words)
_CLAUSE = re.compile(rf"the ({'|'.join(ASPECTS)}) is ({NEGATION} )?(?:({'|'.join(ADVERBS)}) )?({_ALL_WORDS})")
_REVIEW = re.compile(r"Review : (.+) \. Verdict :")
_RESPONSE = re.compile(rf"(.+) and (.+) , so (?:{'|'.join(LABELS)})")
_VERDICT = re.compile(rf"\bso ({'|'.join(LABELS)})\b")


@dataclass(frozen=True)
class Clause:
    """
    A clause of a review, such as "the cast is never truly rich".

    Args:
        aspect (`str`):
            What it is about, one of `ASPECTS`.
        word (`str`):
            What it says, one of `WORDS`.
        negated (`bool`, *optional*, defaults to `False`):
            Whether it says the contrary.
        adverb (`str`, *optional*):
            One of `ADVERBS`, without a meaning.
    """

    aspect: str
    word: str
    negated: bool = False
    adverb: str | None = None

    def __str__(self) -> str:
        negation = NEGATION if self.negated else None
        return " ".join(filter(None, ["the", self.aspect, "is", negation, self.adverb, self.word]))

    @property
    def label(self) -> str:
        """The verdict that the clause speaks for."""
        return LABELS[(self.word in WORDS["positive"]) != self.negated]


class Checks(NamedTuple):
    """
    What is right about a response.

    Args:
        form (`bool`):
            Whether it is two clauses and a verdict, and nothing else.
        label (`bool`):
            Whether its verdict is that of the review.
        grounded (`int`):
            How many of the two clauses stand in the review.
        distinct (`bool`):
            Whether they are about two aspects.
        consistent (`int`):
            How many of them speak for the verdict of the response.
    """

    form: bool
    label: bool
    grounded: int
    distinct: bool
    consistent: int

    @property
    def quality(self) -> float:
        """
        Quality of the rationale, from 0 to 3: `form * (grounded / 2 + distinct + consistent / 2)`. It is blind to
        whether the verdict is correct.
        """
        return self.form * (self.grounded / NUM_QUOTES + self.distinct + self.consistent / NUM_QUOTES)

    @property
    def perfect(self) -> bool:
        """Whether the rationale has no flaw, whatever the verdict."""
        return self.quality == PERFECT_QUALITY


# --- Problems and responses ------------------------------------------------------------------------------------------


def make_verdicts(
    seed: int = 0,
    warmup: int = 1500,
    train: int = 4000,
    validation: int = 500,
    test: int = 1000,
    pairs: int = 1000,
) -> DatasetDict:
    """
    Make the splits of the task. No review occurs twice, across all splits, and each split has as many positive as
    negative ones.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Seed of the reviews. The global random state is neither read nor changed.
        warmup (`int`, *optional*, defaults to `1500`):
            Number of easy reviews with responses: correct verdicts, two fifths of the rationales with a flaw.
        train (`int`, *optional*, defaults to `4000`):
            Number of harder reviews for all stages after the warm-up.
        validation (`int`, *optional*, defaults to `500`):
            Number of reviews, like those of `train`, to choose settings on.
        test (`int`, *optional*, defaults to `1000`):
            Number of reviews, like those of `train`, for the results that are reported.
        pairs (`int`, *optional*, defaults to `1000`):
            Number of pairs of each kind, on reviews like those of `train`, to measure reward models on.

    Returns:
        `DatasetDict`: `"warmup"` with columns `prompt` and `completion`; `"train"`, `"validation"` and `"test"` with
        columns `prompt` and `answer`; `"label_pairs"` and `"rationale_pairs"` with the columns of
        [`make_label_pairs`].
    """
    from datasets import Dataset, DatasetDict

    rng = random.Random(seed)
    seen = set()

    def draw_unseen(label, negation_rate, close_rate):
        review = draw_review(rng, label, negation_rate, close_rate)
        while review in seen:
            review = draw_review(rng, label, negation_rate, close_rate)
        seen.add(review)
        return review

    def warmup_row(label):
        review = draw_unseen(label, WARMUP_NEGATION_RATE, WARMUP_CLOSE_RATE)
        quotes = draw_quotes(rng, review, label)
        if rng.random() < WARMUP_CORRUPTION_RATE:
            quotes = corrupt(rng, review, quotes, rng.choice(CORRUPTIONS))
        return {"prompt": write_review(review), "completion": write_response(quotes, label)}

    def task_row(label):
        return {"prompt": write_review(draw_unseen(label, NEGATION_RATE, CLOSE_RATE)), "answer": label}

    def draw_labels(size):
        labels = [LABELS[index % 2] for index in range(size)]
        rng.shuffle(labels)
        return labels

    splits = {"warmup": Dataset.from_list([warmup_row(label) for label in draw_labels(warmup)])}
    for name, size in (("train", train), ("validation", validation), ("test", test)):
        splits[name] = Dataset.from_list([task_row(label) for label in draw_labels(size)])
    for name, make_pairs in (("label_pairs", make_label_pairs), ("rationale_pairs", make_rationale_pairs)):
        problems = Dataset.from_list([task_row(label) for label in draw_labels(pairs)])
        splits[name] = make_pairs(problems, seed=rng.getrandbits(32))
    return DatasetDict(splits)


def draw_review(rng: random.Random, label: str, negation_rate: float, close_rate: float) -> tuple[Clause, ...]:
    """
    Draw the clauses of a review with the verdict `label`, each negated with probability `negation_rate`. The majority
    is four with probability `close_rate`, and otherwise five.
    """
    majority = 4 if rng.random() < close_rate else 5
    sides = [label] * majority + [_other(label)] * (NUM_CLAUSES - majority)
    rng.shuffle(sides)
    review = []
    for aspect, side in zip(rng.sample(ASPECTS, NUM_CLAUSES), sides, strict=True):
        negated = rng.random() < negation_rate
        adverb = rng.choice(ADVERBS) if rng.random() < ADVERB_RATE else None
        review.append(Clause(aspect, rng.choice(WORDS[_other(side) if negated else side]), negated, adverb))
    return tuple(review)


def draw_quotes(rng: random.Random, review: Sequence[Clause], label: str) -> tuple[Clause, ...]:
    """Draw a rationale without a flaw: two clauses that speak for `label`, in the order of the review."""
    side = [clause for clause in review if clause.label == label]
    return tuple(side[index] for index in sorted(rng.sample(range(len(side)), NUM_QUOTES)))


def write_review(review: Sequence[Clause]) -> str:
    """The prompt of a review."""
    return f"Review : {' , '.join(map(str, review))} . Verdict :"


def read_review(prompt: str) -> tuple[Clause, ...]:
    """
    The clauses of a review.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If the prompt is not one of this task.
    """
    match = _REVIEW.fullmatch(prompt.strip())
    review = [_read_clause(text) for text in match[1].split(" , ")] if match else []
    if len(review) != NUM_CLAUSES or None in review:
        raise DatasetError(f"Not a problem of the verdicts task: {prompt!r}. Name the task of these rows.")
    return tuple(review)


def review_label(review: Sequence[Clause]) -> str:
    """The verdict of a review: the label of most of its clauses."""
    labels = [clause.label for clause in review]
    return max(LABELS, key=labels.count)


def write_response(quotes: Sequence[Clause], label: str) -> str:
    """A response: the clauses of its rationale, and its verdict."""
    return f"{' and '.join(map(str, quotes))} , so {label}"


def justify(problem: str, label: str, seed: int = 0) -> str:
    """A response with the verdict `label`, correct or not, and a rationale without a flaw; the same at each call."""
    rng = random.Random(f"{seed} {label} {problem}")
    return write_response(draw_quotes(rng, read_review(problem), label), label)


def _read_clause(text):
    match = _CLAUSE.fullmatch(text)
    return match and Clause(match[1], match[4], match[2] is not None, match[3])


def _other(label):
    return LABELS[1 - LABELS.index(label)]


# --- Checking a response ---------------------------------------------------------------------------------------------


def read_label(response: str) -> str | None:
    """
    The verdict that a response ends with, or all there is of a response without a rationale; `None` if there is none,
    or another one before it.
    """
    if response.strip() in LABELS:
        return response.strip()
    stated = list(_VERDICT.finditer(response))
    if not stated or response[stated[-1].end() :].strip():
        return None
    return stated[-1][1] if len({match[1] for match in stated}) == 1 else None


def check_response(problem: str, response: str) -> Checks:
    """
    Check a response in every respect.

    Args:
        problem (`str`):
            The review, as in the prompt.
        response (`str`):
            Text of the response.

    Raises:
        [`~rlmec_trl.data.schema.DatasetError`]: If the problem is not one of this task.
    """
    review = read_review(problem)
    label = read_label(response)
    match = _RESPONSE.fullmatch(response.strip())
    quotes = [_read_clause(text) for text in match.groups()] if match else [None]
    if None in quotes:
        return Checks(False, label == review_label(review), 0, False, 0)
    return Checks(
        form=True,
        label=label == review_label(review),
        grounded=sum(quote in review for quote in quotes),
        distinct=len({quote.aspect for quote in quotes}) == NUM_QUOTES,
        consistent=sum(quote.label == label for quote in quotes),
    )


def rationale_quality(problem: str, response: str) -> float:
    """Quality of a response's rationale, from 0 to 3, blind to whether its verdict is correct ([`Checks`])."""
    return check_response(problem, response).quality


# --- Pairs for reward models -----------------------------------------------------------------------------------------


def corrupt(
    rng: random.Random, review: Sequence[Clause], quotes: Sequence[Clause], corruption: str
) -> tuple[Clause, ...]:
    """
    Put a flaw into a rationale without one.

    Args:
        rng (`random.Random`):
            Decides where, and with what.
        review (`Sequence[Clause]`):
            The review.
        quotes (`Sequence[Clause]`):
            The rationale.
        corruption (`str`):
            One of `CORRUPTIONS`: `"word"` takes a word of the same polarity that the review does not have, `"aspect"`
            the aspect that the review does not have, `"repeated"` quotes one clause twice, `"side"` quotes a clause
            that speaks for the other verdict.
    """
    place = rng.randrange(NUM_QUOTES)
    quote, kept = quotes[place], quotes[1 - place]
    if corruption == "side":
        flawed = rng.choice([clause for clause in review if clause.label != quote.label])
        # In the order of the review, like any rationale
        return tuple(clause for clause in review if clause in (kept, flawed))
    if corruption == "repeated":
        flawed = kept
    elif corruption == "aspect":
        flawed = replace(quote, aspect=rng.choice(_unused(ASPECTS, [clause.aspect for clause in review])))
    else:
        words = next(words for words in WORDS.values() if quote.word in words)
        flawed = replace(quote, word=rng.choice(_unused(words, [clause.word for clause in review])))
    return (flawed, kept) if place == 0 else (kept, flawed)


def make_label_pairs(problems: Dataset, seed: int = 0) -> Dataset:
    """
    Make label-sensitive pairs: the correct verdict over the wrong one, each with a rationale without a flaw.

    Args:
        problems ([`~datasets.Dataset`]):
            Problems of this task: `prompt`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the rationales.

    Returns:
        [`~datasets.Dataset`]: One pair for each problem, with the columns `prompt`, `chosen`, `rejected`, `kind`
        (`"label"`), `chosen_label`, `rejected_label` and `answer`.
    """
    rng = random.Random(seed)

    def pair(review, index):
        answer = review_label(review)
        return [(draw_quotes(rng, review, label), label) for label in (answer, _other(answer))]

    return _make_pairs(problems, "label", pair)


def make_rationale_pairs(problems: Dataset, seed: int = 0) -> Dataset:
    """
    Make rationale-sensitive pairs: a rationale without a flaw over the same one with a flaw. Both have the same
    verdict, which is correct in half of the pairs. Each of `CORRUPTIONS` is equally frequent.

    Args:
        problems ([`~datasets.Dataset`]):
            Problems of this task: `prompt`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the rationales and flaws.

    Returns:
        [`~datasets.Dataset`]: As [`make_label_pairs`], with `"rationale"` as `kind`.
    """
    rng = random.Random(seed)

    def pair(review, index):
        number, is_wrong = divmod(index, 2)
        label = review_label(review)
        label = _other(label) if is_wrong else label
        quotes = draw_quotes(rng, review, label)
        return [(quotes, label), (corrupt(rng, review, quotes, CORRUPTIONS[number % len(CORRUPTIONS)]), label)]

    return _make_pairs(problems, "rationale", pair)


def _make_pairs(problems, kind, pair):
    from datasets import Dataset

    rows = []
    for index, prompt in enumerate(problems["prompt"]):
        review = read_review(prompt)
        (chosen, chosen_label), (rejected, rejected_label) = pair(review, index)
        rows.append(
            {
                "prompt": prompt,
                "chosen": write_response(chosen, chosen_label),
                "rejected": write_response(rejected, rejected_label),
                "kind": kind,
                "chosen_label": chosen_label,
                "rejected_label": rejected_label,
                "answer": review_label(review),
            }
        )
    return Dataset.from_list(rows)


def _unused(values, used):
    return [value for value in values if value not in used]


# --- The tokenizer, and the task -------------------------------------------------------------------------------------


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make the word-level tokenizer of the task. A token includes the space before it, as in the arithmetic task."""
    words = [word for side in WORDS.values() for word in side]
    texts = [f" {word}" for word in (*ASPECTS, *words, *ADVERBS, *LABELS)]
    # A response begins without a space, and may be a verdict alone
    return make_word_tokenizer(["Review : the is , . Verdict :", f" {NEGATION} and so", "the", *LABELS, *texts])


def make_policy(
    tokenizer: PreTrainedTokenizerFast, seed: int = 0, hidden_size: int = 128, num_hidden_layers: int = 3
) -> LlamaForCausalLM:
    """
    Make an untrained policy, as [`~rlmec_trl.tasks.small_models.make_policy`], whose weights have the standard
    deviation `hidden_size ** -0.5`. At the default of Llama, a model this narrow hardly attends to anything, and does
    not learn to quote.
    """
    return make_small_policy(tokenizer, seed, hidden_size, num_hidden_layers, initializer_range=hidden_size**-0.5)


TASK = Task(
    "verdicts",
    wording=replace(WORDING, policy="{problem}"),
    labels=LABELS,
    read_label=read_label,
    justifier=justify,
    rate=rationale_quality,
    perfect_rating=PERFECT_QUALITY,
)
