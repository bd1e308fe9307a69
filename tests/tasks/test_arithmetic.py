import random
import re
from itertools import accumulate

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rlmec_trl.data.steps import split_steps
from rlmec_trl.tasks.arithmetic import (
    CONNECTIVES,
    WORDING,
    check_answer,
    check_steps,
    draw_numbers,
    make_arithmetic,
    make_policy,
    make_tokenizer,
    needs_carry,
    read_problem,
    rewrite_minimally,
    write_problem,
    write_reference,
    write_solution,
)
from rlmec_trl.tasks.task import load_task
from rlmec_trl.tasks.wording import locate_answer, locate_prompt, policy_prompt, rewrite_prompt


PROBLEM = "Tom has 59 nuts, loses 16, finds 23, buys 20."
REFERENCE = "59 - 16 + 23 + 20 = 86"
SOLUTION = "59 - 16 is 43 ; 43 + 23 = 66 ; 66 + 20 makes 86 ; The answer is 86"


@st.composite
def solved_problems(draw):
    """A problem, its reference and a correct solution."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    numbers = draw_numbers(rng, draw(st.sampled_from([0.0, 0.5, 1.0])))
    connectives = draw(st.lists(st.sampled_from(CONNECTIVES), min_size=3, max_size=3))
    return write_problem(rng, numbers), write_reference(numbers), write_solution(numbers, connectives)


@st.composite
def attempts(draw):
    """A problem, its reference and an attempt made of correct, incorrect, strange, missing and repeated steps."""
    problem, reference, solution = draw(solved_problems())
    number = st.integers(0, 120).map(str)
    wrong_step = st.tuples(number, st.sampled_from("+-"), number, st.sampled_from(CONNECTIVES), number).map(" ".join)
    wrong_answer = number.map("The answer is {}".format)
    text = st.text(alphabet="0123456789 +-=;is Theanswr\n", max_size=25)
    step = st.one_of(st.sampled_from(solution.split(" ; ")), wrong_step, wrong_answer, text)
    right = draw(st.integers(0, 4))
    return problem, reference, " ; ".join(solution.split(" ; ")[:right] + draw(st.lists(step, max_size=5)))


@pytest.fixture(scope="module")
def dataset():
    return make_arithmetic(seed=0)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


class TestDataset:
    def test_columns_and_sizes(self, dataset):
        assert dataset.num_rows == {"warmup": 1500, "train": 4000, "validation": 500, "test": 1000}
        assert dataset["warmup"].column_names == ["prompt", "completion"]
        for name in ("train", "validation", "test"):
            assert dataset[name].column_names == ["prompt", "reference", "answer"]

    def test_no_problem_occurs_twice(self, dataset):
        problems = [read_problem(prompt) for split in dataset.values() for prompt in split["prompt"]]
        assert len(set(problems)) == len(problems)

    def test_solutions_are_correct(self, dataset):
        for row in dataset["warmup"]:
            assert check_steps(row["prompt"], row["completion"]) == [True] * 4
        for row in dataset["train"]:
            left, right = row["reference"].split(" = ")
            assert str(eval(left)) == right == row["answer"]

    def test_numbers_stay_in_range(self, dataset):
        for split in dataset.values():
            for prompt in split["prompt"]:
                value, *operands = read_problem(prompt)
                assert len(operands) == 3 and all(11 <= abs(operand) <= 99 for operand in operands)
                assert all(10 <= result <= 99 for result in accumulate([value, *operands]))

    @pytest.mark.parametrize(("name", "rate"), [("warmup", 0.08), ("train", 0.5), ("test", 0.5)])
    def test_rate_of_carries(self, dataset, name, rate):
        carries = []
        for prompt in dataset[name]["prompt"]:
            value, *operands = read_problem(prompt)
            for operand in operands:
                carries.append(needs_carry(value, operand))
                value += operand
        # From some values no step of the drawn kind stays in range, hence the width.
        assert sum(carries) / len(carries) == pytest.approx(rate, abs=0.05)

    def test_connectives_are_equally_frequent(self, dataset):
        words = re.findall(r"\d (=|is|makes) \d", " ".join(dataset["warmup"]["completion"]))
        assert len(words) == 3 * 1500
        for connective in CONNECTIVES:
            assert words.count(connective) / len(words) == pytest.approx(1 / 3, abs=0.03)

    def test_the_seed_determines_everything(self):
        sizes = {"warmup": 20, "train": 20, "validation": 5, "test": 5}
        state = random.getstate()
        first, second, other = (make_arithmetic(seed=seed, **sizes) for seed in (1, 1, 2))
        assert random.getstate() == state
        for name in sizes:
            assert first[name].to_list() == second[name].to_list()
            assert first[name].to_list() != other[name].to_list()


@pytest.mark.parametrize(
    ("value", "operand", "expected"),
    [(59, -16, False), (43, 23, False), (47, 23, True), (45, 25, True), (45, -16, True), (45, -15, False)],
)
def test_needs_carry(value, operand, expected):
    assert needs_carry(value, operand) == expected


class TestReadProblem:
    def test_signs_follow_the_verbs(self):
        assert read_problem(PROBLEM) == (59, -16, 23, 20)

    @pytest.mark.parametrize("problem", ["", "What is 2 + 2?", "Tom has 59 nuts, paints 16."])
    def test_other_text_is_refused(self, problem):
        with pytest.raises(ValueError, match="problem"):
            read_problem(problem)


class TestCheckAnswer:
    @pytest.mark.parametrize(
        ("completion", "expected"),
        [
            (SOLUTION, True),
            ("The answer is 86", True),
            ("The answer is 85 ; The answer is 86", True),
            ("The answer is 86 ; The answer is 85", False),
            ("The answer is 865", False),
            ("The answer is 8", False),
            ("66 + 20 = 86", False),
            ("59 - 16 + 23 + 20 = 86", True),
            ("59 - 16 + 23 + 20 = 85", False),
            ("59 - 16 is 43 ; 43 + 23 + 20 + 0 = 86", False),
            ("", False),
        ],
    )
    def test_cases(self, completion, expected):
        assert check_answer(completion, "86") is expected


class TestCheckSteps:
    @pytest.mark.parametrize(
        ("completion", "expected"),
        [
            (SOLUTION, [True, True, True, True]),
            # Two incorrect steps that cancel: the answer is correct, the first two steps are not.
            ("59 - 16 is 42 ; 42 + 23 = 66 ; 66 + 20 makes 86 ; The answer is 86", [False, False, True, True]),
            # A step that follows correctly from an incorrect one is incorrect.
            ("59 - 16 is 42 ; 42 + 23 = 65 ; 65 + 20 makes 85 ; The answer is 85", [False] * 4),
            # Swapped operands and other connectives are not the policy's style.
            ("16 - 59 is 43 ; 23 + 43 = 66 ; 66 + 20 gives 86 ; The answer is 86", [False, False, False, True]),
            # Cut off: the steps that are there count.
            ("59 - 16 is 43 ; 43 + 23 = 66", [True, True, False, False]),
            ("59 - 16 is 43 ; 43 + 23 = 66 ;", [True, True, False, False]),
            ("59 - 16 is 43 ; 43 + 23 = 66 ; ", [True, True, False, False]),
            ("59 - 16 is 43 ; 43 + 23 = 6", [True, False, False, False]),
            # Too many steps.
            (SOLUTION + " ; The answer is 86", [True, True, True, True, False]),
            (SOLUTION + " ; ", [True, True, True, False]),
            ("59 - 16 is 43 ; " + SOLUTION, [True, False, False, False, False]),
            ("The answer is 86", [False] * 4),
            ("", [False] * 4),
        ],
    )
    def test_cases(self, completion, expected):
        assert check_steps(PROBLEM, completion) == expected


class TestRewriteMinimally:
    @pytest.mark.parametrize(
        ("completion", "error_step", "rewrite"),
        [
            (SOLUTION, -1, SOLUTION),
            # The consequences are carried through and every step keeps its connective.
            ("59 - 16 is 43 ; 43 + 23 = 56 ; 56 + 20 makes 76 ; The answer is 76", 1, SOLUTION),
            ("59 - 16 is 43 ; 43 + 23 = 66 ; 66 + 20 makes 86 ; The answer is 68", 3, SOLUTION),
            ("59 - 16 is 42 ; 42 + 23 = 66 ; 66 + 20 makes 86 ; The answer is 86", 0, SOLUTION),
            # An incorrect operand or sign is corrected in place.
            ("59 - 16 is 43 ; 43 - 32 = 11 ; 11 + 20 makes 31 ; The answer is 31", 1, SOLUTION),
            # A missing step is added with "=", the others keep their connectives.
            ("59 - 16 is 43 ; 43 + 20 makes 63 ; The answer is 63", 1, SOLUTION),
            ("59 - 16 is 43 ; 43 + 23 = 66 ; 66 + 20 makes 86", 3, SOLUTION),
            ("59 - 16 is 43", 1, "59 - 16 is 43 ; 43 + 23 = 66 ; 66 + 20 = 86 ; The answer is 86"),
            ("", 0, "59 - 16 = 43 ; 43 + 23 = 66 ; 66 + 20 = 86 ; The answer is 86"),
            # A superfluous step is dropped.
            ("59 - 16 is 43 ; 59 - 16 makes 43 ; 43 + 23 = 66 ; 66 + 20 makes 86 ; The answer is 86", 1, SOLUTION),
            (SOLUTION + " ; The answer is 86", 4, SOLUTION),
            (SOLUTION + " ; ", 3, SOLUTION),
        ],
    )
    def test_cases(self, completion, error_step, rewrite):
        assert rewrite_minimally(PROBLEM, REFERENCE, completion) == (error_step, rewrite)

    @given(solved_problems())
    def test_a_correct_attempt_is_returned_unchanged(self, case):
        problem, reference, solution = case
        assert rewrite_minimally(problem, reference, solution) == (-1, solution)

    @given(attempts())
    def test_a_rewrite_is_correct_and_changes_the_first_incorrect_step(self, case):
        problem, reference, attempt = case
        error_step, rewrite = rewrite_minimally(problem, reference, attempt)
        verdicts = check_steps(problem, attempt)
        assert check_steps(problem, rewrite) == [True] * 4
        assert check_answer(rewrite, reference.split(" = ")[1])
        assert error_step == (-1 if all(verdicts) else verdicts.index(False))
        assert (error_step == -1) == (rewrite == attempt)

    @given(attempts())
    def test_steps_before_the_error_are_kept(self, case):
        problem, reference, attempt = case
        error_step, rewrite = rewrite_minimally(problem, reference, attempt)
        assume(error_step > 0)
        # The separator alone may be added (the attempt stopped too early) or dropped (it went on for too long).
        kept = "".join(split_steps(attempt, " ; ")[:error_step])
        assert rewrite.startswith(re.sub(r" ; $", "", kept).removesuffix(" ;"))

    @given(solved_problems(), st.integers(0, 3), st.integers(1, 99))
    def test_one_incorrect_number_is_found_and_corrected(self, case, index, offset):
        problem, reference, solution = case
        steps = solution.split(" ; ")
        words = steps[index].split(" ")
        words[-1] = str((int(words[-1]) + offset) % 100)
        steps[index] = " ".join(words)
        assert rewrite_minimally(problem, reference, " ; ".join(steps)) == (index, solution)

    @given(solved_problems(), st.integers(0, 2), st.integers(-30, 30).filter(bool))
    def test_an_error_carried_through_is_corrected_with_the_same_connectives(self, case, index, error):
        problem, reference, solution = case
        steps = [step.split(" ") for step in solution.split(" ; ")]
        for i, step in enumerate(steps):
            if index < i < 3:
                step[0] = str(int(step[0]) + error)
            if i >= index:
                step[-1] = str(int(step[-1]) + error)
        attempt = " ; ".join(" ".join(step) for step in steps)
        assert rewrite_minimally(problem, reference, attempt) == (index, solution)


class TestTokenizer:
    def test_tokens_are_digits_words_and_signs_with_their_space(self, tokenizer):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer("59 - 16 is 43 ; The answer is 86")["input_ids"])
        assert tokens == ["5", "9", " -", " 1", "6", " is", " 4", "3", " ;", " The", " answer", " is", " 8", "6"]

    @given(st.data())
    def test_wording_is_lossless(self, tokenizer, data):
        problem, reference, solution = data.draw(solved_problems())
        texts = [problem, reference, solution, policy_prompt(WORDING, problem)]
        texts += [prompt(WORDING, problem, reference, solution) for prompt in (locate_prompt, rewrite_prompt)]
        texts += [locate_answer(WORDING, index) for index in range(-1, 10)]
        # A completion that directly follows its prompt.
        texts.append(rewrite_prompt(WORDING, problem, reference, solution) + " " + solution)
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text

    def test_no_word_is_missing(self, dataset, tokenizer):
        texts = [text for split in dataset.values() for column in split.column_names for text in split[column]]
        ids = tokenizer(texts)["input_ids"]
        assert all(tokenizer.unk_token_id not in row for row in ids)
        assert tokenizer.batch_decode(ids) == texts

    def test_every_token_is_used(self, dataset, tokenizer):
        texts = []
        for row in dataset["train"].select(range(500)):
            for prompt in (locate_prompt, rewrite_prompt):
                texts.append(prompt(WORDING, row["prompt"], row["reference"], SOLUTION))
        texts += list(dataset["warmup"]["completion"]) + [locate_answer(WORDING, index) for index in range(-1, 10)]
        texts.append(" 0")  # starts no number of the task, but may start one that a policy samples
        used = {token for ids in tokenizer(texts)["input_ids"] for token in ids}
        special = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
        assert used | special == set(range(len(tokenizer)))

    def test_save_and_load(self, tokenizer, tmp_path):
        from transformers import AutoTokenizer

        tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert (loaded.pad_token, loaded.eos_token, loaded.unk_token) == ("<pad>", "<eos>", "<unk>")
        assert loaded.bos_token is None
        for text in (PROBLEM, REFERENCE, SOLUTION):
            ids = loaded(text)["input_ids"]
            assert ids == tokenizer(text)["input_ids"]
            assert loaded.decode(ids) == text


class TestPolicy:
    def test_size_and_special_tokens(self, tokenizer):
        policy = make_policy(tokenizer)
        assert policy.num_parameters() == pytest.approx(645_000, rel=0.02)
        assert policy.get_output_embeddings().weight is policy.get_input_embeddings().weight
        assert {str(parameter.dtype) for parameter in policy.parameters()} == {"torch.float32"}
        for config in (policy.config, policy.generation_config):
            assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
            assert config.bos_token_id is None

    def test_the_seed_determines_the_weights(self, tokenizer):
        import torch

        state = torch.get_rng_state()
        first, second, other = (
            make_policy(tokenizer, seed=seed, hidden_size=16, num_hidden_layers=1).model.embed_tokens.weight
            for seed in (1, 1, 2)
        )
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(first, second)
        assert not torch.equal(first, other)

    def test_save_load_and_generate(self, tokenizer, tmp_path):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        policy = make_policy(tokenizer, hidden_size=16, num_hidden_layers=1)
        policy.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        inputs = AutoTokenizer.from_pretrained(tmp_path)(PROBLEM, return_tensors="pt")
        with torch.no_grad():
            torch.testing.assert_close(loaded(**inputs).logits, policy(**inputs).logits)
        assert loaded.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


def test_tasks_by_name():
    task = load_task("arithmetic")
    assert task.wording is WORDING
    assert task.check_answer(SOLUTION, "86")
    assert task.check_steps(PROBLEM, SOLUTION) == [True] * 4
    # Rewrites are verified by what they state, also in a task that could do more
    assert task.check_steps(PROBLEM, "1 + 1 = 2 ; 85 + 1 = 86 ; The answer is 86") == [True] * 3
    assert task.check_steps(PROBLEM, SOLUTION.replace("43", "44", 1))[0] is False
    assert load_task("math").check_steps(PROBLEM, "1 + 1 = 3\nThe answer is 3") == [False, True]
    assert load_task("choice").check_steps is None
    assert load_task("math").check_answer("The answer is 0.5", "1/2")
    assert load_task("choice").check_answer("The answer is (b).", "B")
    with pytest.raises(ValueError, match="Choose one of arithmetic, ecqa, "):
        load_task("arithmatic")
