"""An option is recognized however it is named, and never two at once."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmec_trl.tasks.answers import check_choice
from rlmec_trl.tasks.labels import check_label
from rlmec_trl.tasks.options import Options, read_options, write_options


CAPITALS = "Which is the capital of France?\nOptions:\nLondon\nParis\nRome"
LABELED = "Which is the capital of France?\nOptions:\nA) London\nB) Paris\nC) Rome"


def problem(*options):
    return "\n".join(["Which one?", "Options:", *options])


# --- Reading and writing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ["London", "Paris", "Rome"],
        ["A) London", "B) Paris", "C) Rome"],
        ["(A) London", "(B) Paris", "(C) Rome"],
        ["a. London", "b. Paris", "c. Rome"],
        ["A: London", "B: Paris", "C: Rome"],
        [" [a]  London ", "", "Answer with a letter."],
        ["London\r", "Paris\r", "Rome\r"],
    ],
)
def test_options_are_read_with_letters_whether_they_are_labeled_or_not(lines):
    options = read_options(problem(*lines))
    assert options.texts[0] == "London"
    assert options.labels == tuple("abc"[: len(options.texts)])


def test_options_may_be_numbered():
    options = read_options(problem("1. London", "2. Paris"))
    assert options == Options(("London", "Paris"), ("1", "2"))
    assert check_choice("The answer is 2", "Paris", problem("1. London", "2. Paris"))
    assert not check_choice("The answer is B", "Paris", problem("1. London", "2. Paris"))


@pytest.mark.parametrize("lines", [["A. Smith", "C. Jones"], ["A) x", "y"], ["2) x", "3) y"], ["I. x", "J. y"]])
def test_what_is_not_labeled_in_order_is_no_label(lines):
    assert read_options(problem(*lines)).texts == tuple(lines)


@pytest.mark.parametrize("text", ["", "Which one?", "Options: A) x B) y", "Options:", "Options:\n\n \n"])
def test_a_problem_without_a_list_of_options_has_none(text):
    assert read_options(text) is None


def test_the_last_list_counts_and_ends_at_a_blank_line():
    text = "Stock options:\nfew\n\nWhat is listed?\n\nOPTIONS:\n\nA) one\nB) two\n\nAnswer with one letter."
    assert read_options(text).texts == ("one", "two")


OPTION = st.text(alphabet="abAB1 .()$%é", max_size=8)


@given(st.lists(OPTION, min_size=1, max_size=26))
def test_written_options_are_read_back(options):
    written = [" ".join(option.split()) for option in options]
    letters = tuple(string.ascii_lowercase[: len(options)])
    assert read_options(write_options("Which one?", options)) == Options(tuple(written), letters)


def test_more_options_than_letters_are_refused():
    with pytest.raises(ValueError, match="can have 26 options, found 27"):
        write_options("Which one?", ["x"] * 27)


# --- Naming one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [CAPITALS, LABELED], ids=["bare", "labeled"])
@pytest.mark.parametrize(
    "stated",
    [
        "Paris",
        "PARIS.",
        "B",
        "b",
        "(b)",
        "B)",
        "B.",
        "[B]",
        "**B**",
        "option B",
        "Option (b).",
        "choice b",
        "B) Paris",
        "(B) paris.",
        "B. Paris",
        "B: Paris",
        "B - Paris",
        "**B)** Paris",
        "**(B) Paris**",
        "option B: Paris",
        "Option B (Paris)",
        "Paris (B)",
        "paris [b].",
        "Paris, option B",
        "'Paris' (option B)",
        "B, Paris",
        "the option B",
        "B because it is a large city",
        "(B), because a king lived there" + " for years" * 20,
        "Paris because it is large",
        "$B$",
        r"\text{B}",
        r"$\boxed{\text{(B) Paris}}$",
    ],
)
def test_every_usual_way_to_name_an_option_is_accepted(text, stated):
    completion = f"France has a capital.\nThe answer is {stated}"
    assert check_choice(completion, "Paris", text)
    assert check_choice(completion, "B", text), "an answer may be given by its label"
    for other in ("London", "Rome"):
        assert not check_choice(completion, other, text)


@pytest.mark.parametrize(
    "stated",
    [
        "A or B",
        "A, B",
        "B or Paris",
        "London or Paris",
        "A) Paris",
        "Paris (A)",
        "B) London",
        "option A: Paris",
        "Paris, option A",
        "B) Paris or C) Rome",
        "(A) (B)",
        "A) London B) Paris",
        "D",
        "D) Paris",
        "not B",
        "B?A",
        "Paris London",
        "E) Berlin",
        "A, Paris",
        "A or B because both are large",
        "B because Rome is too small",
        "B because C is too small",
        "B because (a) is too small",
        "B because option a is too small",
        "B) Paris\nC) Rome",
        "2",
    ],
)
def test_two_options_or_none_are_incorrect(stated):
    for text in (CAPITALS, LABELED):
        for answer in ("London", "Paris", "Rome"):
            assert not check_choice(f"The answer is {stated}", answer, text)


@pytest.mark.parametrize(
    "completion",
    [
        "Answer: B",
        "**Answer:** (B) Paris",
        "The correct option is B",
        "The correct choice is B.",
        "The answer is:\nB",
        "The answer is B) Paris\nParis is large.",
    ],
)
def test_an_option_may_be_stated_in_other_words(completion):
    assert [check_choice(completion, option, CAPITALS) for option in ("London", "Paris", "Rome")] == [
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(
    "completion", ["Answer: A, B", "The correct option is A or B", "The answer is:\nA) London\nB) Paris"]
)
def test_two_options_in_other_words_are_incorrect(completion):
    assert not any(check_choice(completion, option, CAPITALS) for option in ("London", "Paris", "Rome"))


def test_a_unicode_minus_is_a_minus():
    text = problem("1/2", "-1/2")
    assert check_choice("The answer is −1/2", "-1/2", text)
    assert not check_choice("The answer is −1/2", "1/2", text)


WRITINGS = [
    "{text}",
    "{text}.",
    "{upper}",
    "'{text}'",
    "**{text}**",
    "{letter}",
    "({letter})",
    "{letter})",
    "{letter}.",
    "option {letter}",
    "Option ({small}).",
    "{letter}) {text}",
    "({small}) {text}",
    "{letter}. {text}",
    "**{letter})** {text}",
    "option {letter}: {text}",
    "{text} ({letter})",
    "{upper} (option {small}).",
]
# Two letters or more: an option that is itself a letter is what the examples below are about
WORDS = st.text(alphabet="abcdef é-'", min_size=1, max_size=10).filter(lambda text: sum(map(str.isalpha, text)) > 1)
OPTION_LISTS = st.lists(WORDS.map(str.strip), min_size=2, max_size=6, unique_by=str.casefold)


@given(OPTION_LISTS, st.data(), st.sampled_from(WRITINGS), st.booleans())
def test_whatever_names_one_option_names_no_other(options, data, writing, labeled):
    text = write_options("Which?", options) if labeled else problem(*options)
    index = data.draw(st.integers(0, len(options) - 1))
    letter = string.ascii_uppercase[index]
    stated = writing.format(text=options[index], upper=options[index].upper(), letter=letter, small=letter.lower())
    correct = [check_choice(f"So.\nThe answer is {stated}", option, text) for option in options]
    listed = read_options(text).texts
    # Punctuation around options is not told apart where neither is written exactly
    if len({option.strip("-' ") for option in listed}) == len(listed):
        assert correct == [position == index for position in range(len(options))]
    else:
        assert sum(correct) <= 1


@given(OPTION_LISTS, st.data(), st.sampled_from(["{a} or {b}", "{a}) {other}", "{other} ({a})", "({a}) ({b})"]))
def test_two_options_at_once_name_none(options, data, writing):
    first, second = data.draw(st.permutations(range(len(options))))[:2]
    letters = string.ascii_uppercase
    stated = writing.format(a=letters[first], b=letters[second], other=options[second])
    text = write_options("Which?", options)
    assert not any(check_choice(f"The answer is {stated}", option, text) for option in options)


@given(st.text(max_size=40), OPTION_LISTS)
def test_no_text_makes_the_check_fail(text, options):
    listed = write_options("Which?", options)
    for completion in (text, f"The answer is {text}"):
        assert sum(check_choice(completion, option, listed) for option in options) <= 1


# --- Options that are hard to tell apart -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "answer", "accepted", "refused"),
    [
        # A letter that is one option's text and another one's label means the text; "(B)" and "option B" the label
        (["C", "A", "B"], "B", ["B", "b.", "(C)", "option C", "C) B"], ["A", "C", "(B)", "option B", "B) B"]),
        (["4", "2", "1"], "2", ["2", "B", "B) 2", "(b)"], ["1", "A", "B) 1", "4", "C"]),
        # Options that differ in case or punctuation alone
        (["us", "US"], "US", ["US", "US.", "B", "B) US"], ["us", "A", "Us", "A) US"]),
        (["plants", "plants."], "Plants.", ["plants.", "B", "B) plants."], ["plants", "A", "A) plants"]),
        (["(x)", "x"], "x", ["x", "B", "**x**"], ["(x)", "A"]),
        (["$3", "3", "-3", "3%"], "3", ["3", "3.", "B", "$3$"], ["$3", "-3", "3%", "A"]),
        # The same text twice: either label
        (["cat", "dog", "cat"], "cat", ["cat", "A", "C", "C) cat"], ["dog", "B", "B) cat"]),
        (["(0,1)", "[0,1]"], "[0,1]", ["[0,1]", "B"], ["(0,1)", "A"]),
        (["?!", "..."], "...", ["...", "B"], ["?!", "A"]),
        (["A or B", "both", "neither"], "A or B", ["A or B", "A", "A) A or B"], ["B", "both"]),
        (["Paris (France)", "Paris (Texas)"], "Paris (France)", ["Paris (France)", "A"], ["Paris (Texas)", "Paris"]),
    ],
)
def test_options_that_look_alike_are_distinguished(options, answer, accepted, refused):
    for text in (problem(*options), write_options("Which?", options)):
        assert check_choice(f"The answer is {answer}", answer, text), "a reference states the answer as it is"
        verdicts = {stated: check_choice(f"The answer is {stated}", answer, text) for stated in accepted + refused}
        assert verdicts == dict.fromkeys(accepted, True) | dict.fromkeys(refused, False)


@pytest.mark.parametrize("text", ["", "Which is the capital of France?"])
def test_without_a_list_only_the_text_is_an_answer(text):
    assert check_choice("The answer is Paris.", "paris", text)
    assert check_choice("The answer is (B)", "B", text)
    assert not check_choice("The answer is B", "Paris", text)
    assert not check_choice("The answer is A) Paris", "Paris", text), "which option A is cannot be known"


def test_an_answer_that_is_no_option_is_compared_as_text():
    assert check_choice("The answer is Berlin", "Berlin", CAPITALS)
    assert not check_choice("The answer is B", "Berlin", CAPITALS)


def test_a_completion_that_is_nothing_but_its_option_counts():
    assert check_choice(" (B) Paris\n", "Paris", CAPITALS)
    assert not check_choice("It is Paris, option B or so", "Paris", CAPITALS)
    assert not check_choice("(A) is London\n(B) Paris", "Paris", CAPITALS)


# --- Fixed labels ----------------------------------------------------------------------------------------------------


LABELS = ("entailment", "neutral", "not entailment")


@pytest.mark.parametrize(
    ("stated", "correct"),
    [
        ("entailment", True),
        ("**Entailment**.", True),
        ("not entailment", False),
        ("neutral", False),
        ("A", False),
        ("entailment or neutral", False),
        ("contradiction", False),
    ],
)
def test_a_label_is_accepted_in_any_case_and_markup(stated, correct):
    assert check_label(f"The answer is {stated}", "entailment", "Does it follow?", labels=LABELS) is correct


def test_labels_that_a_problem_lists_have_letters():
    text = write_options("Does it follow?", LABELS)
    assert check_label("The answer is (C)", "not entailment", text, labels=LABELS)
    assert not check_label("The answer is (A)", "not entailment", text, labels=LABELS)


def test_an_answer_that_is_no_label_accepts_nothing():
    assert not check_label("The answer is maybe", "maybe", labels=LABELS)
