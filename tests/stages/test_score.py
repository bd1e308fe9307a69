"""The score stage: what it adds to a row, which rewrites it keeps, and where it lets them begin."""

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from rlmec_trl import GenerativeRewardModel
from rlmec_trl.data.errors import ConfigError
from rlmec_trl.data.schema import DatasetError, check_dataset
from rlmec_trl.data.tokens import encode_completion
from rlmec_trl.generation.server import ServerConfig, TokenServer
from rlmec_trl.grm import generative_reward_model
from rlmec_trl.grm.generative_reward_model import TokenizerMismatchError
from rlmec_trl.grm.prompts import save_wording
from rlmec_trl.stages import score
from rlmec_trl.stages.output import OutputError
from rlmec_trl.stages.score import ScoreConfig, score_dataset
from rlmec_trl.tasks.arithmetic import WORDING, make_tokenizer
from rlmec_trl.tasks.task import load_task
from rlmec_trl.tasks.wording import locate_answer, locate_prompt, rewrite_prompt
from tests.fake_openai import KINDS, FakeServer, score_as, speak_as


TASK = load_task("arithmetic")
SAMPLE_COLUMNS = ["prompt", "reference", "answer", "completion", "completion_ids", "correct"]


@pytest.fixture
def grm(make_policy, tokenizer):
    model = make_policy(sharpness=20.0, mixing=20.0, num_hidden_layers=2)
    return GenerativeRewardModel(model, tokenizer, WORDING, batch_size=4, max_new_tokens=40, show_progress=False)


@pytest.fixture
def rows(make_rows):
    """Correct, incorrect and flawed samples alternately, with the edits that a teacher would write."""
    return make_rows(9)


def samples(rows):
    return Dataset.from_list([{name: row[name] for name in SAMPLE_COLUMNS} for row in rows])


@pytest.fixture
def rewrite_with(monkeypatch, tokenizer, grm):
    """Let the reward model write given texts or ids, whatever part of them is there already; returns the prefixes."""

    def install(rows, rewrites):
        contexts = [rewrite_prompt(WORDING, row["prompt"], row["reference"], row["completion"]) for row in rows]
        targets = dict(zip(contexts, rewrites, strict=True))
        prefixes = {}

        def generate(model, processing_class, prompt_ids, *args, **kwargs):
            generated = []
            for ids in prompt_ids:
                text = tokenizer.decode(ids)
                context = next(context for context in contexts if text.startswith(context))
                target = targets[context]
                if isinstance(target, str):
                    target = encode_completion(tokenizer, target)
                prefix = ids[len(tokenizer(context)["input_ids"]) :]
                prefixes[contexts.index(context)] = prefix
                generated.append(target[len(prefix) :])
            return generated

        monkeypatch.setattr(generative_reward_model, "generate_ids", generate)
        monkeypatch.setattr(grm, "locate", lambda *args: [row["error_step"] for row in rows])
        return prefixes

    return install


# --- Columns ---------------------------------------------------------------------------------------------------------


def test_columns_and_shapes(grm, rows, rewrite_with, make_policy, tokenizer):
    rewrite_with(rows, [row["rewrite"] for row in rows])
    policy = make_policy(sharpness=10.0)
    dataset = samples(rows)
    scored = score_dataset(dataset, grm, TASK, policy, rewrite_topk=5, attempt_topk=2)
    new = ["token_probs", "rewrite", "rewrite_ids", "old_logps", "rewrite_topk_ids", "rewrite_topk_logps"]
    new += ["attempt_topk_ids", "attempt_topk_logps"]
    assert scored.column_names == [*SAMPLE_COLUMNS, *new]
    assert scored.select_columns(SAMPLE_COLUMNS).to_list() == dataset.to_list()
    check_dataset(scored, "scores", tokenizer.eos_token_id)
    check_dataset(scored, "policy", tokenizer.eos_token_id)
    for row, expected in zip(scored, rows, strict=True):
        assert row["rewrite"] == expected["rewrite"]
        assert row["rewrite_ids"] == encode_completion(tokenizer, expected["rewrite"])
        assert len(row["token_probs"]) == len(row["old_logps"]) == len(row["completion_ids"])
        assert [len(ids) for ids in row["rewrite_topk_ids"]] == [5] * len(row["rewrite_ids"])
        assert [len(logps) for logps in row["rewrite_topk_logps"]] == [5] * len(row["rewrite_ids"])
        assert [len(ids) for ids in row["attempt_topk_ids"]] == [2] * len(row["completion_ids"])
        assert [len(logps) for logps in row["attempt_topk_logps"]] == [2] * len(row["completion_ids"])


def test_probabilities_and_topk_are_the_reward_models_own(grm, rows, rewrite_with):
    rewrite_with(rows, [row["rewrite"] for row in rows])
    scored = score_dataset(samples(rows), grm, TASK, rewrite_topk=3, attempt_topk=4)
    inputs = [[row[name] for row in rows] for name in ("prompt", "reference", "completion", "completion_ids")]
    assert scored["token_probs"][:] == grm.score(*inputs)
    topk_ids, topk_logps = grm.rewrite_topk(*inputs[:3], scored["rewrite_ids"][:], 3)
    assert scored["rewrite_topk_ids"][:] == topk_ids
    assert scored["rewrite_topk_logps"][:] == topk_logps
    topk_ids, topk_logps = grm.attempt_topk(*inputs, 4)
    assert scored["attempt_topk_ids"][:] == topk_ids
    assert scored["attempt_topk_logps"][:] == topk_logps


def test_old_logps_are_those_of_a_naive_softmax(grm, rows, rewrite_with, make_policy, tokenizer):
    rewrite_with(rows, [row["rewrite"] for row in rows])
    policy = make_policy(sharpness=10.0, mixing=10.0)
    scored = score_dataset(samples(rows), grm, TASK, policy)
    for row in scored:
        prompt_ids, ids = tokenizer(row["prompt"])["input_ids"], row["completion_ids"]
        with torch.no_grad():
            logits = policy(torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1]
        expected = logits.log_softmax(-1)[range(len(ids)), ids]
        torch.testing.assert_close(torch.tensor(row["old_logps"]), expected, rtol=1e-4, atol=1e-4)


def test_without_policy_and_topk_those_columns_are_left_out(grm, rows, rewrite_with):
    rewrite_with(rows, [row["rewrite"] for row in rows])
    scored = score_dataset(samples(rows), grm, TASK)
    assert scored.column_names == [*SAMPLE_COLUMNS, "token_probs", "rewrite", "rewrite_ids"]


def test_scoring_again_replaces_the_columns(grm, rows, rewrite_with):
    rewrite_with(rows, [row["rewrite"] for row in rows])
    once = score_dataset(samples(rows), grm, TASK)
    assert score_dataset(once, grm, TASK).to_list() == once.to_list()


def test_arguments_of_the_chat_template_reach_policy_and_reward_model(grm, rows, policy, thinking_tokenizer):
    """As messages, whose template writes them into the prompt: other arguments give other probabilities."""
    grm.processing_class = thinking_tokenizer
    as_messages = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]

    def score_with(value, **kwargs):
        dataset = samples(as_messages).add_column("chat_template_kwargs", [{"enable_thinking": value}] * len(rows))
        return score_dataset(dataset, grm, TASK, policy, rewrite_topk=2, **kwargs)

    thinking, silent = score_with(True), score_with(False)
    for name in ("token_probs", "old_logps"):
        assert all(first != second for first, second in zip(thinking[name], silent[name], strict=True)), name
    with_rewrite = [index for index, ids in enumerate(thinking["rewrite_ids"]) if ids == silent[index]["rewrite_ids"]]
    assert any(thinking[index]["rewrite_topk_logps"] != silent[index]["rewrite_topk_logps"] for index in with_rewrite)
    assert thinking["chat_template_kwargs"][:] == [{"enable_thinking": True}] * len(rows)


def test_messages_stay_messages(grm, rows, rewrite_with):
    rewrite_with(rows, [*[row["rewrite"] for row in rows[:-1]], "The answer is 1"])
    as_messages = [
        row
        | {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        }
        for row in rows
    ]
    # The task's tokenizer has no chat template, which the policy's log-probabilities alone would need
    scored = score_dataset(samples(as_messages), grm, TASK)
    expected = [[{"role": "assistant", "content": row["rewrite"]}] for row in rows]
    assert scored["rewrite"][:] == [*expected[:-1], None]
    check_dataset(scored.add_column("old_logps", scored["token_probs"][:]), "scores")


# --- Verified rewrites only ------------------------------------------------------------------------------------------


def test_a_rewrite_with_an_incorrect_answer_or_without_eos_is_left_out(grm, rows, rewrite_with, tokenizer):
    rewrites = [row["rewrite"] for row in rows]
    rewrites[1] = "The answer is 1"
    rewrites[2] = encode_completion(tokenizer, rewrites[2])[:-1]  # truncated before EOS, though the answer is there
    rewrites[4] = rows[4]["completion"]
    # An equation that does not hold before a correct answer
    head, answer = rewrites[5].rsplit(" ; ", 1)
    rewrites[5] = f"{head}0 ; {answer}"
    # Steps that hold, but are not those of the problem: only an oracle could tell
    head, answer = rewrites[7].rsplit(" ; ", 1)
    result = int(rows[7]["answer"])
    rewrites[7] = f"{head} ; {result - 1} + 1 = {result} ; {answer}"
    rewrite_with(rows, rewrites)
    scored = score_dataset(samples(rows), grm, TASK, rewrite_topk=2)
    missing = [index for index, rewrite in enumerate(scored["rewrite"]) if rewrite is None]
    assert missing == [1, 2, 4, 5]
    assert scored[7]["rewrite"] == rewrites[7]
    for name in ("rewrite_ids", "rewrite_topk_ids", "rewrite_topk_logps"):
        assert [index for index, value in enumerate(scored[name]) if value is None] == missing
    assert all(len(row["token_probs"]) == len(row["completion_ids"]) for row in scored), "scored nevertheless"


def kept_as_they_are(rows):
    """The rewrites of samples that are left alone: none for incorrect ones, nor for those with an incorrect step."""
    return [row["completion"] if row["error_step"] == -1 else None for row in rows]


def test_samples_that_are_found_correct_keep_only_what_passes_the_checks(grm, rows, rewrite_with):
    rewrite_with(rows, [row["rewrite"] for row in rows])
    grm.locate = lambda *args: [-1] * len(rows)
    scored = score_dataset(samples(rows), grm, TASK)
    assert scored["rewrite"][:] == kept_as_they_are(rows)
    assert {row["correct"] for row, rewrite in zip(rows, scored["rewrite"], strict=True) if rewrite is None} == {
        True,
        False,
    }


def test_correct_samples_can_be_kept(grm, rows, rewrite_with):
    prefixes = rewrite_with(rows, [row["rewrite"] for row in rows])
    scored = score_dataset(samples(rows), grm, TASK, rewrite_correct=False)
    kept = kept_as_they_are(rows)
    for row, expected, own in zip(scored, rows, kept, strict=True):
        assert row["rewrite"] == (own if expected["correct"] else expected["rewrite"])
        assert own is None or row["rewrite_ids"] == expected["completion_ids"]
    assert set(prefixes) == {index for index, row in enumerate(rows) if not row["correct"]}, (
        "nothing else is generated"
    )


# --- Several rewrites ------------------------------------------------------------------------------------------------


@pytest.fixture
def ask_unsure(monkeypatch, tokenizer, rows):
    """
    Let reward models rewrite the first three samples, and the others only by chance, where they sample. What is asked
    for is recorded: the row, the temperature (`None` for greedy decoding), and the number of tokens that are kept.
    """
    contexts = [rewrite_prompt(WORDING, row["prompt"], row["reference"], row["completion"]) for row in rows]
    asked = []

    def generate(model, processing_class, prompt_ids, *args, **kwargs):
        generated = []
        for ids in prompt_ids:
            text = tokenizer.decode(ids)
            index = next(index for index, context in enumerate(contexts) if text.startswith(context))
            num_kept = len(ids) - len(tokenizer(contexts[index])["input_ids"])
            asked.append((index, kwargs.get("temperature"), num_kept))
            succeeds = torch.rand(()) < 0.4 if kwargs.get("do_sample") else index < 3
            target = rows[index]["rewrite"] if succeeds else "The answer is 1"
            generated.append(encode_completion(tokenizer, target)[num_kept:])
        return generated

    monkeypatch.setattr(generative_reward_model, "generate_ids", generate)
    return asked


@pytest.fixture
def unsure(ask_unsure, monkeypatch, grm, rows):
    monkeypatch.setattr(grm, "locate", lambda *args: [row["error_step"] for row in rows])
    return grm


def test_sampled_rewrites_replace_those_that_fail_and_no_others(unsure, ask_unsure, rows):
    greedy = score_dataset(samples(rows), unsure, TASK)
    assert greedy.column_names == [*SAMPLE_COLUMNS, "token_probs", "rewrite", "rewrite_ids"]
    assert all(temperature is None for _, temperature, _ in ask_unsure)
    assert max(num_kept for _, _, num_kept in ask_unsure) > 0
    failed = [index for index, rewrite in enumerate(greedy["rewrite"]) if rewrite is None]
    assert failed == [4, 5, 7, 8]

    ask_unsure.clear()
    scored = score_dataset(samples(rows), unsure, TASK, num_rewrites=30, rewrite_temperature=0.7, rewrite_topk=2)
    assert scored["rewrite"][:] == [row["rewrite"] for row in rows]
    assert [len(ids) for ids in scored["rewrite_topk_ids"]] == [len(ids) for ids in scored["rewrite_ids"]]
    for index, row in enumerate(greedy):
        assert index in failed or scored[index]["rewrite_ids"] == row["rewrite_ids"]
    numbers = scored["rewrite_index"][:]
    assert [index for index, number in enumerate(numbers) if number > 0] == failed and max(numbers) > 1
    sampled = [asked for asked in ask_unsure if asked[1] is not None]
    assert [sum(index == row for row, _, _ in sampled) for index in range(9)] == numbers, (
        "until one passes, not longer"
    )
    assert {(temperature, num_kept) for _, temperature, num_kept in sampled} == {(0.7, 0)}, "from the first step on"


def test_a_rewrite_that_never_passes_has_no_number(unsure, rows, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *args: torch.ones(()))
    scored = score_dataset(samples(rows), unsure, TASK, num_rewrites=3)
    expected = [None if index in (4, 5, 7, 8) else 0 for index in range(9)]
    assert scored["rewrite_index"][:] == expected
    assert [rewrite is None for rewrite in scored["rewrite"]] == [number is None for number in expected]


def test_sampled_rewrites_depend_on_their_seed_alone(unsure, rows):
    def numbers(seed):
        return score_dataset(samples(rows), unsure, TASK, num_rewrites=30, seed=seed)["rewrite_index"][:]

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = numbers(0)
    assert torch.equal(torch.get_rng_state(), state), "the random numbers of the caller are its own"
    torch.manual_seed(2)
    assert numbers(0) == first
    assert any(numbers(seed) != first for seed in (1, 2, 3))


def test_correct_samples_that_are_kept_are_not_rewritten_by_chance_either(unsure, ask_unsure, rows):
    score_dataset(samples(rows), unsure, TASK, rewrite_correct=False, num_rewrites=30)
    assert {index for index, _, _ in ask_unsure} == {1, 4, 7}


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_samples_rewrites_too(kind, rows, judge, connect, tokenizer):
    wrong = encode_completion(tokenizer, "The answer is 1")
    temperatures = []

    def complete(prompt_ids, body):
        told = judge(prompt_ids, body)
        is_rewrite = judge.asked[-1][1]
        if is_rewrite and "seed" in body:  # not when the server is asked what it can do
            temperatures.append(body["temperature"])
        return wrong if is_rewrite and body["temperature"] == 0 else told

    with FakeServer(tokenizer, complete, kind=kind) as server:
        scored = score_dataset(samples(rows), connect(server), TASK, num_rewrites=3, rewrite_temperature=0.5)
    assert scored["rewrite"][:] == [row["rewrite"] for row in rows]
    assert scored["rewrite_index"][:] == [0 if row["error_step"] == -1 else 1 for row in rows]
    assert sorted(temperatures) == [0] * 6 + [0.5] * 6


def test_columns_of_an_earlier_rewrite_are_not_left_beside_the_new_one(unsure, rows):
    first = score_dataset(samples(rows), unsure, TASK, rewrite_topk=2, attempt_topk=2, num_rewrites=2)
    first = first.add_column("error_step", [0] * 9).add_column("edit_outcome", ["rewritten"] * 9)
    again = score_dataset(first, unsure, TASK)
    assert again.column_names == [*SAMPLE_COLUMNS, "token_probs", "rewrite", "rewrite_ids"]


# --- Where a rewrite begins ------------------------------------------------------------------------------------------

TEXT = "59 - 16 is 43 ; 43 + 23 = 67 ; The answer is 67"
# The space of a separator's end belongs to the token after it, which belongs to the next step
STEP_OF_TOKEN = [0] * 9 + [1] * 9 + [2] * 6


def flagged(tokenizer, grm, *positions, text=TEXT, threshold=0.5, below=0.4):
    ids = encode_completion(tokenizer, text)
    probs = [below if position in positions else 0.9 for position in range(len(ids))]
    (step,) = grm.flagged_steps([text], [ids], [probs], threshold=threshold)
    return step


def test_the_step_of_every_token(tokenizer, grm):
    ids = encode_completion(tokenizer, TEXT)
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert len(ids) == len(STEP_OF_TOKEN)
    assert (tokens[8], tokens[9], tokens[-1]) == (" ;", " 4", "<eos>")
    assert [flagged(tokenizer, grm, position) for position in range(len(ids))] == STEP_OF_TOKEN


def test_the_first_flagged_token_counts(tokenizer, grm):
    assert flagged(tokenizer, grm, 20, 9, 17) == 1
    assert flagged(tokenizer, grm) == -1
    assert flagged(tokenizer, grm, 3, below=0.5) == -1, "flagged is under the threshold"
    assert flagged(tokenizer, grm, 3, below=0.5, threshold=0.6) == 0


def test_an_attempt_that_ends_with_a_separator(tokenizer, grm):
    text = "59 - 16 is 43 ; 43 + 23 = 67 ;"
    assert flagged(tokenizer, grm, 17, text=text) == 1
    assert flagged(tokenizer, grm, 18, text=text) == 1, "EOS has no step of its own"


def test_flagged_steps_of_messages_in_the_order_given(tokenizer, grm):
    ids = encode_completion(tokenizer, TEXT)
    probs = [[0.9] * 10 + [0.1] + [0.9] * 13, [0.9] * 24, [0.1] * 24]
    messages = [[{"role": "assistant", "content": TEXT}]] * 3
    assert grm.flagged_steps(messages, [ids] * 3, probs) == [1, -1, 0]


@pytest.mark.parametrize("rewrite_correct", [True, False])
def test_rewriting_begins_at_the_first_flagged_token(grm, rows, rewrite_with, monkeypatch, tokenizer, rewrite_correct):
    prefixes = rewrite_with(rows, [row["rewrite"] for row in rows])
    grm.locate = None  # not asked
    probs = [[0.9] * len(row["completion_ids"]) for row in rows]
    flagged_steps = {1: 0, 2: 1, 4: 2, 5: 0}
    for index, step in flagged_steps.items():
        kept = " ; ".join(rows[index]["completion"].split(" ; ")[:step])
        start = len(tokenizer(kept + " ;")["input_ids"]) if step else 0
        probs[index][start + 1] = 0.1
        expected_prefix = rows[index]["completion_ids"][:start]
        flagged_steps[index] = expected_prefix
    monkeypatch.setattr(grm, "score", lambda *args: probs)
    scored = score_dataset(samples(rows), grm, TASK, locate_by="probability", rewrite_correct=rewrite_correct)
    expected = {i: prefix for i, prefix in flagged_steps.items() if rewrite_correct or not rows[i]["correct"]}
    assert prefixes == expected
    assert scored["token_probs"][:] == probs
    # Right and unflagged: left as it is. Wrong and unflagged: nothing to imitate
    assert (scored[0]["rewrite"], scored[7]["rewrite"]) == (rows[0]["completion"], None)


def test_an_unknown_way_to_locate_is_refused(grm, rows):
    with pytest.raises(ValueError, match="`locate_by` must be 'question' or 'probability', got 'guess'"):
        score_dataset(samples(rows), grm, TASK, locate_by="guess")


# --- Rewrites from a server ------------------------------------------------------------------------------------------


def locating(row):
    return locate_prompt(WORDING, row["prompt"], row["reference"], row["completion"])


def rewriting(row):
    return rewrite_prompt(WORDING, row["prompt"], row["reference"], row["completion"])


@pytest.fixture
def judge(rows, tokenizer):
    """`complete` of a reward model without mistakes. It records each request's row, and if it is for a rewrite."""
    questions = {}
    for index, row in enumerate(rows):
        questions[locating(row)] = index, locate_answer(WORDING, row["error_step"])
        questions[rewriting(row)] = index, row["rewrite"]

    def complete(prompt_ids, body):
        text = tokenizer.decode(prompt_ids)
        question = next(question for question in questions if text.startswith(question))
        index, said = questions[question]
        rest = encode_completion(tokenizer, said)[len(prompt_ids) - len(tokenizer(question)["input_ids"]) :]
        complete.asked.append((index, question.endswith("rewrite :")))
        return rest

    complete.asked = []
    return complete


@pytest.fixture
def connect(grm):
    def connect(server):
        ends = {grm.processing_class.eos_token_id}
        grm.server = TokenServer(ServerConfig(server.url), grm.processing_class, ends)
        return grm

    return connect


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("locate_by", ["question", "probability"])
def test_rewrites_from_a_server_are_kept_where_they_are_verified(kind, locate_by, rows, judge, connect, tokenizer):
    with FakeServer(tokenizer, judge, kind=kind) as server:
        scored = score_dataset(samples(rows), connect(server), TASK, locate_by=locate_by, rewrite_topk=2)
    check_dataset(scored.add_column("old_logps", scored["token_probs"][:]), "scores", tokenizer.eos_token_id)
    assert all(is_rewrite for _, is_rewrite in judge.asked) == (locate_by == "probability")
    if locate_by == "question":
        assert scored["rewrite"][:] == [row["rewrite"] for row in rows]
        assert scored["rewrite_ids"][:] == [encode_completion(tokenizer, row["rewrite"]) for row in rows]


def test_a_row_that_the_server_refuses_has_no_rewrite_and_costs_no_other(rows, judge, connect, tokenizer):
    first, second = [row for row in rows if not row["correct"]][:2]
    # The first is to be rewritten from the start, so that nothing at all is left of it
    refused = [tokenizer(question(row))["input_ids"] for row, question in ((first, rewriting), (second, locating))]

    def refuse(body):
        return "seed" in body and any(body["prompt"][: len(ids)] == ids for ids in refused)

    def complete(prompt_ids, body):
        if prompt_ids == tokenizer(locating(first))["input_ids"]:
            return encode_completion(tokenizer, "0")
        return judge(prompt_ids, body)

    with FakeServer(tokenizer, complete, refuse=refuse) as server:
        grm = connect(server)
        scored = score_dataset(samples(rows), grm, TASK, rewrite_topk=2)
    expected = [None if row is first or row is second else row["rewrite"] for row in rows]
    assert scored["rewrite"][:] == expected
    assert [ids is None for ids in scored["rewrite_ids"]] == [rewrite is None for rewrite in expected]
    assert all(len(row["token_probs"]) == len(row["completion_ids"]) for row in scored), "scored nevertheless"
    assert grm.server.left_out == {"refused by the server": 2}


def test_a_server_that_refuses_every_row_keeps_the_correct_samples(rows, judge, connect, tokenizer):
    with FakeServer(tokenizer, judge, refuse=lambda body: "seed" in body) as server:
        scored = score_dataset(samples(rows), connect(server), TASK, rewrite_topk=2)
    assert scored["rewrite"][:] == kept_as_they_are(rows)


# --- To disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, make_policy, tokenizer):
    for name, sharpness in (("policy", 10.0), ("grm", 20.0)):
        make_policy(sharpness=sharpness, mixing=sharpness).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    save_wording(WORDING, tmp_path / "grm")
    return tmp_path


def settings(folder, **kwargs):
    defaults = {"grm": str(folder / "grm"), "task": "arithmetic", "score_batch_size": 4, "rewrite_max_new_tokens": 6}
    return ScoreConfig(**(defaults | kwargs)), ModelConfig(model_name_or_path=str(folder / "policy"))


def score_to(output_dir, rows, config, model_args, **kwargs):
    return score.run(config, samples(rows), output_dir, model_args, **kwargs)


def test_scores_on_disk_do_not_depend_on_the_shards(folder, rows, tokenizer):
    config, model_args = settings(folder, shard_size=2, rewrite_topk=3, attempt_topk=2, locate_by="probability")
    scored = score.run(config, samples(rows), folder / "scored", model_args)
    # An untrained reward model corrects nothing: some shards have no rewrite at all
    assert scored[1]["rewrite"] is None
    check_dataset(scored, "scores", tokenizer.eos_token_id)

    grm = GenerativeRewardModel.from_pretrained(str(folder / "grm"), max_new_tokens=6, show_progress=False)
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy")
    expected = score_dataset(samples(rows), grm, TASK, policy, "probability", rewrite_topk=3, attempt_topk=2)
    assert scored.column_names == expected.column_names
    for row, other in zip(scored, expected, strict=True):
        assert row["rewrite_ids"] == other["rewrite_ids"]
        assert row["attempt_topk_ids"] == other["attempt_topk_ids"]
        for name in ("token_probs", "old_logps"):
            assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6)


def test_a_reward_model_has_to_be_named(folder, rows):
    config, model_args = settings(folder, grm=None)
    with pytest.raises(ValueError, match="`--grm`"):
        score.run(config, samples(rows), folder / "scored", model_args)


@pytest.mark.parametrize("name", ["rewrite_topk", "attempt_topk"])
def test_topk_over_the_vocabulary_is_refused_before_work_begins(name, folder, rows, tokenizer):
    with pytest.raises(ValueError, match=f"`{name}` is 1000, but the vocabulary has only {len(tokenizer)} tokens"):
        score_to(folder / "scored", rows, *settings(folder, **{name: 1000}))
    assert not (folder / "scored").exists()


@pytest.mark.parametrize("name", ["rewrite_topk", "attempt_topk"])
def test_topk_of_a_reward_model_with_another_tokenizer_is_refused_before_work_begins(name, folder, rows, tokenizer):
    other = make_tokenizer()
    other.add_tokens(["<new>"])
    other.save_pretrained(folder / "grm")
    message = rf"`{name}` .* \({len(tokenizer)} tokens\) .* \({len(other)}\) differ, first at '<new>'"
    with pytest.raises(TokenizerMismatchError, match=message):
        score_to(folder / "scored", rows, *settings(folder, **{name: 2}))
    assert not (folder / "scored").exists()


def test_one_vocabulary_in_two_tokenizers_is_one_tokenizer(make_policy, tokenizer):
    grm = GenerativeRewardModel(make_policy(), tokenizer, WORDING, policy_processing_class=make_tokenizer())
    assert grm.shares_tokenizer
    assert grm.policy_processing_class is tokenizer


def test_truncated_samples_are_refused(folder, rows):
    rows[3]["completion_ids"] = rows[3]["completion_ids"][:-1]
    with pytest.raises(DatasetError, match="Row 3, column 'completion_ids': .* not with EOS"):
        score_to(folder / "scored", rows, *settings(folder))


def test_a_server_with_the_reward_model_writes_the_rewrites_of_the_score_stage(folder, rows, judge, tokenizer):
    config, model_args = settings(folder, shard_size=4, rewrite_max_new_tokens=40)
    incorrect = next(row for row in rows if not row["correct"])
    refused = tokenizer(rewriting(incorrect))["input_ids"]
    with FakeServer(tokenizer, judge) as server:
        server.refuse = lambda body: body["prompt"][: len(refused)] == refused
        scored = score.run(config, samples(rows), folder / "scored", model_args, ServerConfig(server.url))
        num_asked = len(server.exchanges)
        assert num_asked
        again = score.run(config, samples(rows), folder / "scored", model_args, ServerConfig(server.url))
        assert len(server.exchanges) == num_asked, "what is finished is loaded"
    assert again.to_list() == scored.to_list()
    check_dataset(scored, "scores", tokenizer.eos_token_id)
    assert scored["rewrite"][:] == [None if row is incorrect else row["rewrite"] for row in rows]
    # Without a server the same model says something else: probabilities are its own, rewrites are not
    alone = score.run(config, samples(rows), folder / "alone", model_args)
    assert alone["token_probs"][:] == scored["token_probs"][:]
    assert alone["rewrite"][:] != scored["rewrite"][:]


def test_a_server_can_score_so_that_no_weights_of_the_reward_model_are_loaded(folder, rows, tokenizer, monkeypatch):
    config, model_args = settings(folder)
    expected = score.run(config, samples(rows), folder / "scored", model_args)
    grm, load_model, loaded = AutoModelForCausalLM.from_pretrained(folder / "grm").eval(), score.load_model, []

    def load(args, *others):
        loaded.append(args.model_name_or_path)
        return load_model(args, *others)

    monkeypatch.setattr(score, "load_model", load)
    with FakeServer(tokenizer, speak_as(grm, tokenizer), score_as(grm)) as server:
        config.grm_on_server = True
        scored = score.run(config, samples(rows), folder / "scored", model_args, ServerConfig(server.url))
        assert [exchange for exchange in server.exchanges if "echo" in exchange.body], "not taken from the first run"
    assert loaded == [str(folder / "policy")]
    assert scored["rewrite_ids"][:] == expected["rewrite_ids"][:]
    for row, other in zip(scored, expected, strict=True):
        assert row["token_probs"] == pytest.approx(other["token_probs"], abs=1e-5)


@pytest.mark.parametrize(
    "changes, base_url, message",
    [
        ({}, None, "needs a server: pass its address as `--base_url`"),
        ({"rewrite_topk": 2}, "http://localhost:9/v1", "computed from the reward model's weights"),
        ({"attempt_topk": 2}, "http://localhost:9/v1", "computed from the reward model's weights"),
    ],
)
def test_what_a_server_cannot_score_is_refused_before_work_begins(changes, base_url, message, folder, rows):
    config, model_args = settings(folder, grm_on_server=True, **changes)
    with pytest.raises(ConfigError, match=message):
        score_to(folder / "scored", rows, config, model_args, server_config=ServerConfig(base_url))
    assert not (folder / "scored").exists()


def test_a_finished_result_needs_no_model(folder, rows, monkeypatch):
    config, model_args = settings(folder)
    scored = score_to(folder / "scored", rows, config, model_args)
    monkeypatch.setattr(score, "load_model", None)
    config.score_batch_size, config.shard_size = 1, 2
    assert score_to(folder / "scored", rows, config, model_args).to_list() == scored.to_list()


def test_revision_and_quantization_of_the_policy_are_not_those_of_the_reward_model(folder, rows, monkeypatch):
    config, model_args = settings(folder, grm_revision="v2")
    model_args.model_revision, model_args.dtype = "v1", "float64"
    model_args.load_in_4bit = model_args.use_peft = True
    loaded = []

    def load(model_args, trust_remote_code):
        loaded.append((model_args, trust_remote_code))
        raise KeyboardInterrupt

    monkeypatch.setattr(score, "load_model", load)
    with pytest.raises(KeyboardInterrupt):
        score_to(folder / "scored", rows, config, model_args, trust_remote_code=True)
    ((policy_args, trusted),) = loaded
    assert policy_args is model_args and trusted
    grm_args = config.grm_model_args(model_args)
    assert (grm_args.model_name_or_path, grm_args.model_revision) == (str(folder / "grm"), "v2")
    assert (grm_args.load_in_4bit, grm_args.use_peft, grm_args.dtype) == (False, False, "float64")
    config.grm_dtype, config.grm_load_in_8bit = "bfloat16", True
    assert config.grm_model_args(model_args).dtype == "bfloat16"
    assert config.grm_model_args(model_args).load_in_8bit


def test_column_types_and_unknown_columns_survive(folder, rows):
    more = {"level": ClassLabel(names=["easy", "hard"]), "score": Value("float16")}
    features = Features({**samples(rows).features, **more})
    dataset = Dataset.from_list(
        [{**row, "level": index % 2, "score": 0.5} for index, row in enumerate(samples(rows))], features=features
    )
    config, model_args = settings(folder, shard_size=4)
    scored = score.run(config, dataset, folder / "scored", model_args)
    assert {name: scored.features[name] for name in features} == dict(features)
    assert scored.select_columns(dataset.column_names).to_list() == dataset.to_list()


def test_a_folder_of_the_users_is_refused_before_a_model_is_loaded(folder, rows, monkeypatch):
    (folder / "scored").mkdir()
    (folder / "scored" / "thesis.tex").write_text("mine")
    monkeypatch.setattr(score, "load_model", None)
    with pytest.raises(OutputError, match="thesis.tex"):
        score_to(folder / "scored", rows, *settings(folder))


def test_a_resumed_run_with_sampled_rewrites_gives_what_an_uninterrupted_one_does(
    folder, rows, ask_unsure, monkeypatch, capsys
):
    config, model_args = settings(folder, num_rewrites=4, shard_size=3, locate_by="probability")
    whole = score_to(folder / "whole", rows, config, model_args)
    numbers = whole["rewrite_index"][:]
    assert {0, None} < set(numbers)
    num_sampled = sum(number is not None and number > 0 for number in numbers)
    assert f"have a verified rewrite, {num_sampled} of them a sampled one. Saved" in capsys.readouterr().out

    score_rows, num_shards = score.score_dataset, []

    def interrupted(*args):
        num_shards.append(1)
        if len(num_shards) == 2:
            raise KeyboardInterrupt
        return score_rows(*args)

    monkeypatch.setattr(score, "score_dataset", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score_to(folder / "resumed", rows, config, model_args)
    resumed = score_to(folder / "resumed", rows, config, model_args)
    assert len(num_shards) == 4, "the first shard was kept"
    assert resumed.to_list() == whole.to_list()


def test_results_without_sampled_rewrites_keep_their_key(folder, rows, monkeypatch):
    keys = []

    def note(dataset, function, output_dir, settings, *args, **kwargs):
        keys.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(score, "map_shards", note)
    names = {"num_rewrites", "rewrite_temperature", "rewrite_seed"}
    others = ({}, {"rewrite_temperature": 0.5, "rewrite_seed": 3}, {"num_rewrites": 2})
    for changes in (*others, {"num_rewrites": 2, "rewrite_seed": 3}, {"num_rewrites": 2, "rewrite_temperature": 0.5}):
        with pytest.raises(KeyboardInterrupt):
            score_to(folder / "scored", rows, *settings(folder, **changes))
    assert keys[0] == keys[1] and not names & keys[0].keys(), "as before there were such settings"
    assert len({str(key) for key in keys}) == 4


@pytest.mark.parametrize("changes", [{"num_rewrites": 0}, {"rewrite_temperature": 0.0}, {"rewrite_seed": -1}])
def test_rewrites_that_cannot_be_tried_are_refused(changes):
    (name,) = changes
    with pytest.raises(ConfigError, match=f"`{name}` must be"):
        ScoreConfig(**changes)
