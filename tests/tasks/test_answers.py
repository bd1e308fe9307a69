"""Which final answer a text states, and when two answers are equal."""

import asyncio
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.rewards import accuracy_reward

from rlmec_trl.tasks.answers import check_by_reward, check_choice, check_math, extract_answer


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("48 + 24 = 72\nThe answer is 72", "72"),
        ("the ANSWER is 72.", "72"),
        ("The answer is **72**.", "72"),
        ("**The answer is:** 72.", "72"),
        ("**The answer is 72.**", "72"),
        ("The final answer is $72$.", "72"),
        (r"The answer is \(72\).", "72"),
        ("The answer is $72.", "$72"),
        ("The answer is 3.5", "3.5"),
        ("The answer is -3", "-3"),
        ("The answer is a muscle. The bone moves", "a muscle. The bone moves"),
        ("The answer is 3\nNo, wait.\nThe answer is 4\nDone", "4"),
        ("First 5.\n#### 1,072", "1,072"),
        ("#### Step 2\nThe answer is 3\n#### Remarks", "3"),
        (r"Hence $x = \boxed{\frac{1}{\sqrt{2}}}$, which is real.", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{1} or rather \boxed{ 2 }", "2"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \mid x > 1 \right\}}", r"\left\{ x \mid x > 1 \right\}"),
        (r"The answer is $\boxed{18}$ years.", "18"),
        ("The answer is:\n\\[\n\\boxed{7}\n\\]", "7"),
        (r"\boxed{3} and then it breaks off \boxed{4", "3"),
        ("The answer is:\n\n**72**.\nDone", "72"),
        ("**The answer is:**\n72", "72"),
        ("The answer is:\n\\[\n72\n\\]", "72"),
        ("The answer is:\nThe answer is 5", "5"),
        ("Answer: 72", "72"),
        ("First 5.\n**Final Answer:** 72", "72"),
        ("The correct option is B", "B"),
        ("The correct choice is B.", "B"),
        ("The answer is 72\nAnswer:", "72"),
        ("He wrote the answer: 5", None),
        ("The answer is:\n \n", None),
        ("It is 72", None),
        ("The answer is", None),
        ("The answer is **", None),
        ("", None),
    ],
)
def test_the_last_stated_answer_is_found_bare(solution, answer):
    assert extract_answer(solution) == answer


@pytest.mark.parametrize(
    ("stated", "answer"),
    [
        ("72", "72"),
        ("72.0", "72"),
        ("$1,080", "1080"),
        ("1080", "1,080"),
        ("72 clips", "72"),
        ("$72$ clips because she sold 48 and 24", "72"),
        (r"12 \text{ cm}", "12"),
        ("18. Therefore she has 20 left", "18"),
        ("1/2", r"\frac{1}{2}"),
        (r"\dfrac12", "0.5"),
        ("1 1/2", r"\frac{3}{2}"),
        ("½", "0.5"),
        ("50%", r"50\%"),
        ("x = 5", "5"),
        ("3, 1 and 2", "1, 2, 3"),
        (r"2(x+1)", "2x + 2"),
        ("90°", r"90^\circ"),
        ("−3", "-3"),
        ("√2", r"\sqrt{2}"),
        (r"\text{Even}", "even"),
        (r"\text{(A)}", "A"),
        ("72", "48 / 2 = 24\n#### 72"),
        (r"\frac{1}{2}", r"Thus $x = \boxed{0.5}$."),
        (r"\begin{pmatrix} 0.5 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1/2 \\ 2 \end{pmatrix}"),
        (r"\overline{AB}", r"\overline{AB}"),
        (r"2\pi units", r"2\pi"),
        ("5 thousand", "5,000"),
        ("3.5 million dollars", "3500000"),
        ("5 hundred thousand", "500,000"),
        ("2 dozen eggs", "24"),
        ("5 million", "5 million dollars"),
        ("5 cm squared", "5"),
        ("5 times", "5"),
        ("5, not 6", "5"),
    ],
)
def test_equal_mathematics_is_equal_however_it_is_written(stated, answer):
    assert check_math(f"Some steps with 7 in them.\nThe answer is {stated}", answer)
    assert check_math(rf"So it is $\boxed{{{stated}}}$, as 7 shows.", answer)


@pytest.mark.parametrize(
    ("stated", "answer"),
    [
        ("71", "72"),
        ("3", "-3"),
        ("1 1/2", "1"),
        ("between 5 and 18", "18"),
        ("5 and 18", "18"),
        ("20. Not 18", "18"),
        ("(3,4]", "[3,4)"),
        ("(1,2)", "(2,1)"),
        ("listen", "silent"),
        (r"\frac{1}{", "1"),
        ("nothing", "0"),
        ("?", "5"),
        (r"\begin{pmatrix} 0 \\ 0 \\ 0 \end{pmatrix}", r"\begin{pmatrix} 2 & 0 \\ -3 & 5 \end{pmatrix}"),
        (r"\begin{pmatrix} 2 & 0 \\ -3 & 5 \end{pmatrix}", r"\begin{pmatrix} 0 \\ 0 \\ 0 \end{pmatrix}"),
        (r"\begin{pmatrix} 0 & 0 \end{pmatrix}", r"\begin{pmatrix} 0 \\ 0 \end{pmatrix}"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}"),
        # If a word were dropped together with what is around it, the rest would be the same
        (r"\overline{AB}", r"\overline{CD}"),
        (r"\triangle ABC", r"\triangle DEF"),
        (r"\operatorname{arcsin} 1", r"\operatorname{arccos} 1"),
        ("(5, six)", "(5, seven)"),
        ("5 + six", "5 + seven"),
        # A number that the next word changes
        ("5 thousand", "5"),
        ("5 hundred", "5"),
        ("5 dozen", "5"),
        ("3 million", "3"),
        (r"3 \text{ million}", "3"),
        ("1/2 million", "1/2"),
        ("5 squared", "5"),
        ("5 to 6", "5"),
        ("5 not 6", "5"),
        ("5 times 3", "5"),
    ],
)
def test_different_mathematics_is_not_equal(stated, answer):
    assert not check_math(f"Some steps with {answer} in them.\nThe answer is {stated}", answer)


def test_an_intermediate_number_is_not_the_answer():
    assert not check_math("48 / 2 = 24 clips in May. Then 48 + 24 = 72", "72")
    assert not check_math("Natalia sold 24", "24")


@pytest.mark.parametrize("completion", ["0.5", " $1/2$ ", r"\frac12"])
def test_a_completion_that_is_nothing_but_its_answer_counts(completion):
    assert check_math(completion, "1/2")


@pytest.mark.parametrize("completion", ["", "The answer is ", "((((", "\x00", "\ud800", "The answer is \\frac{" * 40])
def test_odd_texts_are_incorrect_not_errors(completion):
    assert not check_math(completion, "5")
    assert not check_choice(completion, "five")


@given(st.text(alphabet="0123456789+-*/^=.,()[]{}$\\ \nabx%!", max_size=20))
def test_no_text_makes_the_math_check_fail(text):
    # Powers and factorials of large numbers take their full time limit, which is not what is tested here
    text = text.replace("^", "+").replace("!", "?").replace("**", "*")
    assert check_math(f"The answer is {text}", "5") in (True, False)


def test_an_expression_that_is_too_large_is_not_evaluated():
    assert not check_math("The answer is " + "(" * 5000, "5")


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 20_000,
        "#### " + "1" * 100_000 + "x",
        "the answer is " * 10_000,
        "The answer is" + " " * 100_000 + "the answer is",
        "the answer is:\n" * 10_000,
        "#" * 100_000 + "answer:",
    ],
)
def test_the_answer_of_a_long_text_is_found_in_one_pass(text):
    assert extract_answer(text + "\nThe answer is 5") == "5"


def test_math_is_checked_in_threads_too():
    # The time limit uses a signal, which only the main thread may set
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(check_math, ["The answer is 1/2", "The answer is 1/3"], ["0.5", "0.5"]))
    assert verdicts == [True, False]


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("Cars race there.\nThe answer is race track", "Race track"),
        ("The answer is 'race  track'.", "race track"),
        ("The answer is “Race track”!", "race track"),
        ("The answer is **(race track)**", "race track"),
        ("The answer is race\u00a0track", "race track"),
        ("The answer is do algae use sunlight.", "Do algae use sunlight?"),
        ("The answer is ﬁsh", "fish"),
        ("Race track.", "race track"),
        ("The answer is U.S.", "U.S."),
        ("The answer is ?!", "?!"),
    ],
)
def test_an_option_is_recognized_in_any_format(completion, answer):
    assert check_choice(completion, answer)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("The answer is track", "race track"),
        ("It is the race track, I think", "race track"),
        ("The answer is race track\nThe answer is road", "race track"),
        ("The answer is -3", "3"),
        ("The answer is 50%", "50"),
        ("The answer is", "race track"),
    ],
)
def test_another_option_is_not_mistaken_for_the_correct_one(completion, answer):
    assert not check_choice(completion, answer)


# --- Reward functions ------------------------------------------------------------------------------------------------


def length_reward(prompts, completions, answer, **kwargs):
    """1 for the correct length, a half for one off, `None` for an empty completion."""
    assert prompts == [[{"role": "user", "content": "How long?"}]]
    lengths = [len(completion[-1]["content"]) for completion in completions]
    return [
        None if length == 0 else 1 - abs(length - int(expected)) / 2
        for length, expected in zip(lengths, answer, strict=True)
    ]


async def late_length_reward(**kwargs):
    await asyncio.sleep(0)
    return length_reward(**kwargs)


def ids_reward(completions, completion_ids, **kwargs):
    return [1.0 for _ in completion_ids]


def test_a_reward_function_of_trl_checks_answers():
    check_answer = check_by_reward(accuracy_reward)
    assert check_answer(r"Hence $x = \boxed{0.5}$.", r"\frac{1}{2}", "What is 1 / 2?") is True
    assert check_answer(r"Hence $x = \boxed{0.3}$.", r"\frac{1}{2}", "What is 1 / 2?") is False
    assert check_answer("Who knows?", r"\frac{1}{2}", "What is 1 / 2?") is False


@pytest.mark.parametrize("reward_func", [length_reward, late_length_reward])
def test_a_reward_is_compared_with_the_threshold(reward_func):
    lenient, strict = check_by_reward(reward_func), check_by_reward(reward_func, threshold=0.75)
    verdicts = {text: (lenient(text, "3", "How long?"), strict(text, "3", "How long?")) for text in ("abc", "ab", "a")}
    assert verdicts == {"abc": (True, True), "ab": (True, False), "a": (False, False)}


@pytest.mark.parametrize("reward_func", [length_reward, late_length_reward])
def test_a_reward_function_that_abstains_counts_as_incorrect(reward_func):
    assert check_by_reward(reward_func, threshold=-1.0)("", "3", "How long?") is False


def test_a_reward_that_is_not_a_number_counts_as_incorrect():
    assert check_by_reward(lambda **kwargs: [float("nan")], threshold=-1.0)("a", "3") is False


def test_an_asynchronous_reward_function_works_where_a_loop_is_running():
    async def notebook():
        return check_by_reward(late_length_reward)("abc", "3", "How long?")

    assert asyncio.run(notebook())


def test_the_correct_answer_is_in_both_columns_that_reward_functions_read():
    seen = {}
    check_by_reward(lambda **inputs: [seen.update(inputs) or 1.0])("c", "a", "p")
    assert (seen["answer"], seen["solution"]) == (["a"], ["a"])


def test_a_reward_function_that_reads_ids_needs_a_tokenizer(tokenizer):
    with pytest.raises(ValueError, match="'ids_reward' reads `completion_ids`: give .* the `processing_class`"):
        check_by_reward(ids_reward)
    ids = tokenizer("3 + 4", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]

    def same_ids(completion_ids, **kwargs):
        return [float(completion_ids == [ids])]

    check_answer = check_by_reward(same_ids, processing_class=tokenizer)
    assert check_answer("3 + 4", "7")
    assert not check_answer("4 + 3", "7")


def test_a_reward_function_that_returns_too_many_rewards_is_reported():
    with pytest.raises(ValueError, match="returned 2 rewards for one completion"):
        check_by_reward(lambda **kwargs: [1.0, 1.0])("a", "b")


def test_a_check_by_reward_can_be_pickled():
    assert pickle.loads(pickle.dumps(check_by_reward(length_reward)))("abc", "3", "How long?")
