import itertools
import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.data.schema import DatasetError
from rlmec_trl.tasks.verdicts import (
    ADVERBS,
    ASPECTS,
    CORRUPTIONS,
    LABELS,
    TASK,
    WORDS,
    Checks,
    Clause,
    check_response,
    corrupt,
    draw_quotes,
    draw_review,
    justify,
    make_label_pairs,
    make_policy,
    make_rationale_pairs,
    make_tokenizer,
    make_verdicts,
    rationale_quality,
    read_label,
    read_review,
    review_label,
    write_response,
    write_review,
)


# Four of seven are positive
REVIEW = (
    "Review : the cast is never truly rich , the plot is great , the music is never dull , the script is cold , "
    "the sound is quite fresh , the humor is warm , the pace is never moving . Verdict :"
)
# Sizes with which every test is fast
SIZES = {"warmup": 300, "train": 200, "validation": 20, "test": 100, "pairs": 80}
seeds = st.integers(0, 2**32)
labels = st.sampled_from(LABELS)


@pytest.fixture(scope="module")
def dataset():
    return make_verdicts(seed=0, **SIZES)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def drawn(number, negation_rate=0.3, close_rate=0.75, seed=0):
    """Reviews with a random verdict, and the generator that drew them."""
    rng = random.Random(seed)
    for _ in range(number):
        label = rng.choice(LABELS)
        yield rng, draw_review(rng, label, negation_rate, close_rate), label


class TestDataset:
    def test_columns_and_sizes(self, dataset):
        pair = ["prompt", "chosen", "rejected", "kind", "chosen_label", "rejected_label", "answer"]
        columns = {"warmup": ["prompt", "completion"], "label_pairs": pair, "rationale_pairs": pair}
        sizes = SIZES | {"label_pairs": SIZES["pairs"], "rationale_pairs": SIZES["pairs"]}
        assert dataset.num_rows == {name: size for name, size in sizes.items() if name != "pairs"}
        for name, split in dataset.items():
            assert split.column_names == columns.get(name, ["prompt", "answer"]), name

    def test_default_sizes(self):
        import inspect

        defaults = {name: value.default for name, value in inspect.signature(make_verdicts).parameters.items()}
        assert defaults == {
            "seed": 0,
            "warmup": 1500,
            "train": 4000,
            "validation": 500,
            "test": 1000,
            "pairs": 1000,
        }

    def test_no_problem_occurs_twice(self, dataset):
        prompts = [prompt for split in dataset.values() for prompt in split["prompt"]]
        assert len(set(prompts)) == len(prompts)

    def test_answers_are_the_majority_and_balanced(self, dataset):
        for name in ("train", "validation", "test"):
            assert Counter(dataset[name]["answer"]) == dict.fromkeys(LABELS, SIZES[name] // 2)
            for row in dataset[name]:
                assert row["answer"] == review_label(read_review(row["prompt"]))

    def test_the_warmup_has_correct_verdicts_and_flawed_rationales(self, dataset):
        checks = [check_response(row["prompt"], row["completion"]) for row in dataset["warmup"]]
        assert all(check.form and check.label for check in checks)
        assert sum(check.perfect for check in checks) / len(checks) == pytest.approx(0.6, abs=0.09)

    def test_the_seed_determines_everything(self):
        sizes = {"warmup": 10, "train": 10, "validation": 4, "test": 4, "pairs": 8}
        state = random.getstate()
        first, second, other = (make_verdicts(seed=seed, **sizes) for seed in (1, 1, 2))
        assert random.getstate() == state
        for name in first:
            assert first[name].to_list() == second[name].to_list()
            assert first[name].to_list() != other[name].to_list()


class TestReviews:
    @given(seeds, labels, st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.75, 1.0]))
    def test_a_review_has_the_verdict_and_the_margin_that_were_drawn(self, seed, label, negation_rate, close_rate):
        review = draw_review(random.Random(seed), label, negation_rate, close_rate)
        assert len({clause.aspect for clause in review}) == 7
        votes = [clause.label for clause in review].count(label)
        assert votes in (4, 5) and review_label(review) == label
        assert close_rate == 0.75 or votes == (4 if close_rate else 5)
        assert negation_rate == 0.3 or all(clause.negated == bool(negation_rate) for clause in review)
        assert read_review(write_review(review)) == review

    def test_rates_of_negations_adverbs_and_close_verdicts(self):
        reviews = [review for _, review, _ in drawn(3000)]
        clauses = [clause for review in reviews for clause in review]
        assert sum(clause.negated for clause in clauses) / len(clauses) == pytest.approx(0.3, abs=0.015)
        assert sum(clause.adverb is not None for clause in clauses) / len(clauses) == pytest.approx(0.5, abs=0.015)
        close = [sum(clause.label == review_label(review) for clause in review) == 4 for review in reviews]
        assert sum(close) / len(close) == pytest.approx(0.75, abs=0.035)
        for words in WORDS.values():
            counts = Counter(clause.word for clause in clauses if clause.word in words)
            assert min(counts.values()) / sum(counts.values()) > 0.08

    def test_a_policy_that_overlooks_negations_is_right_in_three_of_five(self):
        """
        The share of reviews whose verdict the words alone have: of `m` clauses for it, `a` are not negated, and of the
        others `b` are, and `a + b` is the majority. The generator agrees.
        """

        def chance(number, rate, count):
            return math.comb(number, count) * rate**count * (1 - rate) ** (number - count)

        def blind_accuracy(negation_rate, close_rate):
            return sum(
                weight * chance(majority, 1 - negation_rate, a) * chance(7 - majority, negation_rate, b)
                for majority, weight in ((4, close_rate), (5, 1 - close_rate))
                for a, b in itertools.product(range(majority + 1), range(8 - majority))
                if a + b >= 4
            )

        assert blind_accuracy(0.3, 0.75) == pytest.approx(0.6017, abs=1e-4)
        assert blind_accuracy(0.02, 0.25) == pytest.approx(0.9789, abs=1e-4)
        right = [
            sum(clause.word in WORDS[label] for clause in review) >= 4 for _, review, label in drawn(4000, seed=1)
        ]
        assert sum(right) / len(right) == pytest.approx(0.6017, abs=0.035)

    @pytest.mark.parametrize(
        "prompt",
        ["", "What is 2 + 2?", REVIEW.replace("cast", "food"), REVIEW.replace(" , the plot is great", "")],
    )
    def test_other_text_is_refused(self, prompt):
        with pytest.raises(DatasetError, match="Not a problem of the verdicts task"):
            read_review(prompt)

    @pytest.mark.parametrize(
        ("clause", "text", "label"),
        [
            (Clause("cast", "rich"), "the cast is rich", "positive"),
            (Clause("cast", "rich", True), "the cast is never rich", "negative"),
            (Clause("plot", "dull", True, "truly"), "the plot is never truly dull", "positive"),
            (Clause("plot", "dull", False, "quite"), "the plot is quite dull", "negative"),
        ],
    )
    def test_clauses(self, clause, text, label):
        assert (str(clause), clause.label) == (text, label)


class TestRationales:
    @given(seeds, labels)
    def test_either_verdict_has_a_rationale_without_a_flaw(self, seed, label):
        rng = random.Random(seed)
        review = draw_review(rng, label, 0.3, 0.75)
        for stated in LABELS:
            response = justify(write_review(review), stated, seed)
            checks = check_response(write_review(review), response)
            assert checks == Checks(True, stated == label, 2, True, 2)
            assert checks.perfect and checks.quality == 3
            assert read_label(response) == stated
            assert response == justify(write_review(review), stated, seed)

    def test_nothing_but_the_verdict_tells_a_correct_response_from_a_wrong_one(self):
        """Negations, lengths and positions of the quotes are equally frequent, as is each word of either kind."""
        features = {True: Counter(), False: Counter()}
        number = 6000
        for rng, review, label in drawn(number):
            for correct in (True, False):
                stated = label if correct else LABELS[1 - LABELS.index(label)]
                quotes = draw_quotes(rng, review, stated)
                places = tuple(review.index(quote) for quote in quotes)
                assert places == tuple(sorted(places))
                features[correct].update(
                    [
                        ("negations", sum(quote.negated for quote in quotes)),
                        ("adverbs", sum(quote.adverb is not None for quote in quotes)),
                        ("length", len(write_response(quotes, stated).split())),
                        ("first", places[0]),
                        ("second", places[1]),
                        ("aspect", quotes[0].aspect),
                        ("verdict", stated),
                        *(("word", quote.word) for quote in quotes),
                    ]
                )
        for feature in features[True] | features[False]:
            # Four standard deviations of the difference, at the most
            assert abs(features[True][feature] - features[False][feature]) < 4 * math.sqrt(number / 2), feature

    @pytest.mark.parametrize("corruption", CORRUPTIONS)
    @given(seeds, labels, labels)
    def test_a_flaw_is_the_one_that_was_asked_for(self, corruption, seed, label, stated):
        rng = random.Random(seed)
        review = draw_review(rng, label, 0.3, 0.75)
        quotes = corrupt(rng, review, draw_quotes(rng, review, stated), corruption)
        checks = check_response(write_review(review), write_response(quotes, stated))
        grounded, distinct, consistent = {
            "word": (1, True, 2),
            "aspect": (1, True, 2),
            "repeated": (2, False, 2),
            "side": (2, True, 1),
        }[corruption]
        assert checks == Checks(True, stated == label, grounded, distinct, consistent)
        assert not checks.perfect
        if corruption == "side":
            places = [review.index(quote) for quote in quotes]
            assert places == sorted(places), "an order that no other rationale has would give it away"

    @pytest.mark.parametrize(
        ("response", "checks", "quality"),
        [
            ("the plot is great and the humor is warm , so positive", Checks(True, True, 2, True, 2), 3),
            ("the humor is warm and the plot is great , so positive", Checks(True, True, 2, True, 2), 3),
            ("the script is cold and the pace is never moving , so negative", Checks(True, False, 2, True, 2), 3),
            # The negation is overlooked, once in the quote and once in its meaning
            ("the cast is truly rich and the plot is great , so positive", Checks(True, True, 1, True, 2), 2.5),
            ("the music is never dull and the script is cold , so negative", Checks(True, False, 2, True, 1), 2.5),
            ("the plot is great and the plot is great , so positive", Checks(True, True, 2, False, 2), 2),
            ("the style is flat and the cast is dull , so positive", Checks(True, True, 0, True, 0), 1),
            # No response of the form
            ("the plot is great , so positive", Checks(False, True, 0, False, 0), 0),
            (
                "the plot is great and the humor is warm and the sound is quite fresh , so positive",
                Checks(False, True, 0, False, 0),
                0,
            ),
            ("the plot is great and the humor is warm", Checks(False, False, 0, False, 0), 0),
            (
                "the plot is great and the humor is warm , so positive , so negative",
                Checks(False, False, 0, False, 0),
                0,
            ),
            ("", Checks(False, False, 0, False, 0), 0),
        ],
    )
    def test_cases(self, response, checks, quality):
        assert check_response(REVIEW, response) == checks
        assert rationale_quality(REVIEW, response) == quality

    @given(seeds, st.text(alphabet="the cast plot is and so , positive", max_size=40))
    def test_quality_is_between_0_and_3_and_blind_to_the_correct_verdict(self, seed, text):
        rng = random.Random(seed)
        review = draw_review(rng, "positive", 0.3, 0.75)
        # The same review with its other clauses in the majority: what is said of the quoted ones stays the same
        quotes = draw_quotes(rng, review, "positive")
        for response in (text, write_response(quotes, "positive"), write_response(quotes, "negative")):
            assert 0 <= rationale_quality(write_review(review), response) <= 3
        turned = [
            clause if clause in quotes or clause.label == "negative" else replace(clause, negated=not clause.negated)
            for clause in review
        ]
        assert review_label(turned) == "negative"
        for stated in LABELS:
            response = write_response(quotes, stated)
            assert rationale_quality(write_review(turned), response) == rationale_quality(
                write_review(review), response
            )


class TestPairs:
    def test_label_pairs_have_clean_rationales_for_both_verdicts(self, dataset):
        for row in make_label_pairs(dataset["train"], seed=3):
            chosen, rejected = (check_response(row["prompt"], row[name]) for name in ("chosen", "rejected"))
            assert chosen.perfect and rejected.perfect and chosen.label and not rejected.label
            assert (read_label(row["chosen"]), read_label(row["rejected"])) == (
                row["chosen_label"],
                row["rejected_label"],
            )
            assert row["chosen_label"] == row["answer"] != row["rejected_label"]
            assert row["kind"] == "label"

    def test_rationale_pairs_have_the_same_verdict_and_one_flaw(self, dataset):
        pairs = make_rationale_pairs(dataset["train"], seed=3)
        lost, correct = Counter(), Counter()
        for row in pairs:
            chosen, rejected = (check_response(row["prompt"], row[name]) for name in ("chosen", "rejected"))
            assert chosen.perfect and rejected.form and not rejected.perfect
            assert row["chosen_label"] == row["rejected_label"] == read_label(row["chosen"])
            assert read_label(row["rejected"]) == row["chosen_label"] and row["kind"] == "rationale"
            flaw = (rejected.grounded, rejected.distinct, rejected.consistent)
            lost[flaw] += 1
            correct[row["chosen_label"] == row["answer"], flaw] += 1
        # "word" and "aspect" both leave one quote that does not stand in the review
        assert lost == {(1, True, 2): 100, (2, False, 2): 50, (2, True, 1): 50}
        assert {count / lost[flaw] for (_, flaw), count in correct.items()} == {0.5}, (
            "correct in half, whatever the flaw"
        )

    def test_pairs_are_of_the_prompts_that_are_given_and_follow_the_seed(self, dataset):
        for make_pairs in (make_label_pairs, make_rationale_pairs):
            first, second, other = (make_pairs(dataset["test"], seed=seed) for seed in (1, 1, 2))
            assert first["prompt"][:] == dataset["test"]["prompt"][:]
            assert first["answer"][:] == dataset["test"]["answer"][:]
            assert first.to_list() == second.to_list() != other.to_list()

    def test_held_out_pairs_are_pairs_of_their_kind(self, dataset):
        assert set(dataset["label_pairs"]["kind"]) == {"label"}
        assert set(dataset["rationale_pairs"]["kind"]) == {"rationale"}


class TestTask:
    @pytest.mark.parametrize(
        ("response", "label"),
        [
            ("the plot is great and the humor is warm , so positive", "positive"),
            ("no matter , so negative ", "negative"),
            ("so positive , so positive", "positive"),
            ("so negative , so positive", None),
            ("so positive !", None),
            ("also positive", None),
            ("positive", "positive"),
            ("The positive", None),
            ("", None),
        ],
    )
    def test_the_verdict_of_a_response(self, response, label):
        assert TASK.stated_label(response) == label
        assert [one for one in LABELS if TASK.is_correct(response, one, REVIEW)] == ([label] if label else [])

    def test_the_prompt_is_the_problem(self):
        assert TASK.raw_problem(REVIEW) == REVIEW


def test_the_recipe_writes_the_task_and_the_stages_read_it(tmp_path):
    from trl import ModelConfig

    from recipes.task import TaskArguments, main
    from rlmec_trl.data.loading import load_rows
    from rlmec_trl.stages import evaluate, sample
    from rlmec_trl.tasks.problems import ProblemConfig

    sizes = {f"{name}_size": size for name, size in SIZES.items()} | {"hidden_size": 16, "num_hidden_layers": 1}
    main(TaskArguments(output_dir=str(tmp_path / "task"), task="verdicts", **sizes))
    assert len(load_rows(str(tmp_path / "task" / "rationale_pairs"))) == SIZES["pairs"]
    model = ModelConfig(str(tmp_path / "task" / "policy"), dtype="float32")
    config = evaluate.EvaluateConfig("verdicts", predictions_file=str(tmp_path / "rows.jsonl"), max_new_tokens=3)
    problems = ProblemConfig(str(tmp_path / "task" / "test"), max_rows=5)
    accuracy = evaluate.run(config, problems, model)
    assert accuracy.total == len(load_rows(str(tmp_path / "rows.jsonl"))) == 5
    config = sample.SampleConfig(str(tmp_path / "samples"), "verdicts", num_samples=20, max_new_tokens=8)
    samples = sample.run(config, problems, model)
    assert {"prompt", "answer", "completion_ids", "correct"} <= set(samples.column_names), "without references"


class TestTokenizer:
    def test_prompts_have_39_to_53_tokens_and_responses_a_dozen(self, dataset, tokenizer):
        for split in dataset.values():
            lengths = [len(ids) for ids in tokenizer(split["prompt"][:])["input_ids"]]
            assert 39 <= min(lengths) and max(lengths) <= 53
        responses = tokenizer(dataset["warmup"]["completion"][:])["input_ids"]
        assert {len(ids) for ids in responses} <= set(range(12, 17))

    def test_texts_are_lossless_alone_and_after_a_prompt(self, dataset, tokenizer):
        texts = [text for split in dataset.values() for column in split.column_names[:3] for text in split[column]]
        texts = [text for text in texts if " " in text]
        texts += [row["prompt"] + row["completion"] for row in dataset["warmup"]]
        ids = tokenizer(texts)["input_ids"]
        assert all(tokenizer.unk_token_id not in row for row in ids)
        assert tokenizer.batch_decode(ids) == texts

    def test_a_prompt_and_its_completion_are_the_same_ids_apart_and_together(self, dataset, tokenizer):
        row = dataset["warmup"][0]
        apart = tokenizer(row["prompt"])["input_ids"] + tokenizer(row["completion"])["input_ids"]
        assert tokenizer(row["prompt"] + row["completion"])["input_ids"] == apart

    def test_every_token_is_used(self, dataset, tokenizer):
        texts = [*dataset["train"]["prompt"], *dataset["warmup"]["completion"], *LABELS]
        ids = tokenizer(texts)["input_ids"]
        special = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
        assert {token for row in ids for token in row} | special == set(range(len(tokenizer)))
        assert len(tokenizer) == 3 + 8 + 20 + len(ADVERBS) + 2 * len(LABELS) + 11 == 51
        assert len(ASPECTS) == 8

    def test_the_policy_is_that_of_the_arithmetic_task(self, tokenizer):
        policy = make_policy(tokenizer)
        assert policy.num_parameters() == pytest.approx(645_000, rel=0.02)
        assert policy.config.vocab_size == len(tokenizer)
