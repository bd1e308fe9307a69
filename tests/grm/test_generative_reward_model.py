"""Inference with the reward model: its probabilities against a naive full softmax, and what a rewrite may change."""

import copy

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlmec_trl import GenerativeRewardModel
from rlmec_trl.data.errors import ConfigError
from rlmec_trl.data.tokens import encode_prompt, step_prefix_ids
from rlmec_trl.generation.server import ServerConfig, TokenServer
from rlmec_trl.grm import generative_reward_model
from rlmec_trl.grm.generative_reward_model import TokenizerMismatchError
from rlmec_trl.grm.prompts import save_wording
from rlmec_trl.tasks.arithmetic import WORDING
from rlmec_trl.tasks.wording import WORDING as DEFAULT_WORDING
from rlmec_trl.tasks.wording import locate_answer, locate_prompt, rewrite_prompt
from tests.fake_openai import KINDS, FakeServer, memorize, score_as, speak_as


@pytest.fixture
def model(make_policy):
    return make_policy(sharpness=20.0, mixing=20.0, num_hidden_layers=2)


@pytest.fixture
def make_reward_model(model, tokenizer):
    def make(**kwargs):
        defaults = {"wording": WORDING, "show_progress": False, "max_new_tokens": 12}
        return GenerativeRewardModel(model, tokenizer, **(defaults | kwargs))

    return make


def columns(rows, *names):
    return [[row[name] for row in rows] for name in names or ("prompt", "reference", "completion", "completion_ids")]


def context_of(row):
    return rewrite_prompt(WORDING, row["prompt"], row["reference"], row["completion"])


def naive_distribution(model, tokenizer, row, ids):
    """Log-probabilities over the vocabulary at every token of `ids`, in the context of the rewriting prompt."""
    context = tokenizer(context_of(row))["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([context + ids])).logits[0]
    return logits[len(context) - 1 : -1].float().log_softmax(-1)


# --- Scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 7, 32])
def test_scores_are_the_probabilities_of_a_full_softmax_in_the_order_given(
    batch_size, make_reward_model, model, make_rows, tokenizer
):
    rows = make_rows(7)
    # Odd lengths, down to EOS alone
    for index in (2, 5):
        rows[index]["completion_ids"] = rows[index]["completion_ids"][: 3 * index]
        rows[index]["completion"] = tokenizer.decode(rows[index]["completion_ids"])
    rows.append(rows[0] | {"completion": "", "completion_ids": [tokenizer.eos_token_id]})
    scores = make_reward_model(batch_size=batch_size).score(*columns(rows))

    values = []
    for row, probs in zip(rows, scores, strict=True):
        ids = row["completion_ids"]
        expected = naive_distribution(model, tokenizer, row, ids).exp()[range(len(ids)), ids]
        torch.testing.assert_close(torch.tensor(probs), expected, rtol=1e-4, atol=1e-6)
        values += probs
    assert torch.tensor(values).log().std() > 1, "probabilities differ enough to tell a shift"


def test_a_score_depends_on_problem_reference_and_the_whole_attempt(make_reward_model, make_rows):
    row, other = make_rows(2)
    reward_model = make_reward_model()
    (score,) = reward_model.score(*columns([row]))
    for name in ("prompt", "reference"):
        assert reward_model.score(*columns([row | {name: other[name]}]))[0] != score
    # The prompt contains the attempt, so that even its first token is scored given the last one
    changed = [*row["completion_ids"][:-2], row["completion_ids"][0], row["completion_ids"][-1]]
    text = reward_model.processing_class.decode(changed, skip_special_tokens=True)
    assert reward_model.score(*columns([row | {"completion": text, "completion_ids": changed}]))[0][0] != score[0]


def test_a_certain_model_does_not_give_probabilities_above_one(make_policy, make_rows, tokenizer):
    """Because of rounding. The schema of the dataset refuses them."""
    model = make_policy(sharpness=2000.0)
    rows = make_rows(8)
    scores = GenerativeRewardModel(model, tokenizer, WORDING, show_progress=False).score(*columns(rows))
    values = [prob for row in scores for prob in row]
    assert min(values) < 1e-6 and all(0.0 <= prob <= 1.0 for prob in values)


def test_a_bfloat16_model_is_scored_in_float32(make_policy, make_rows, tokenizer):
    rows = make_rows(5)
    model = make_policy(sharpness=20.0, mixing=20.0).to(torch.bfloat16)
    scores = GenerativeRewardModel(model, tokenizer, WORDING, show_progress=False, batch_size=1).score(*columns(rows))
    for row, probs in zip(rows, scores, strict=True):
        context = tokenizer(context_of(row))["input_ids"]
        with torch.no_grad():
            hidden_states = model.model(torch.tensor([context + row["completion_ids"]])).last_hidden_state[0]
        logits = hidden_states[len(context) - 1 : -1].float() @ model.lm_head.weight.float().T
        expected = logits.softmax(-1)[range(len(probs)), row["completion_ids"]]
        torch.testing.assert_close(torch.tensor(probs), expected, rtol=1e-4, atol=1e-6)


def test_messages_score_like_their_texts(make_reward_model, make_rows):
    rows = make_rows(3)
    as_messages = [
        row
        | {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        }
        for row in rows
    ]
    reward_model = make_reward_model()
    assert reward_model.score(*columns(as_messages)) == reward_model.score(*columns(rows))


def test_chat_template_kwargs_reach_every_question(model, make_rows, thinking_tokenizer, monkeypatch):
    rows = make_rows(3)
    template_kwargs = [{"enable_thinking": False}, None, {"enable_thinking": True}]
    asked = []

    def encode_question(*args):
        encoded = encode_prompt(*args)
        asked.append(thinking_tokenizer.decode(encoded))
        return encoded

    monkeypatch.setattr("rlmec_trl.grm.prompts.encode_prompt", encode_question)
    grm = GenerativeRewardModel(model, thinking_tokenizer, WORDING, show_progress=False, max_new_tokens=3)
    prompts, references, completions, completion_ids = columns(rows)
    question, attempts = (prompts, references, completions), (prompts, references, completions, completion_ids)
    for task, call in (
        ("locate", lambda **kwargs: grm.locate(*question, **kwargs)),
        ("rewrite", lambda **kwargs: grm.score(*attempts, **kwargs)),
        ("rewrite", lambda **kwargs: grm.rewrite(*attempts, [0, 0, 0], **kwargs)),
        ("rewrite", lambda **kwargs: grm.rewrite_ids(*attempts, [0, 0, 0], **kwargs)),
        ("rewrite", lambda **kwargs: grm.rewrite_topk(*attempts, k=2, **kwargs)),
        ("rewrite", lambda **kwargs: grm.attempt_topk(*attempts, k=2, **kwargs)),
    ):
        asked.clear()
        call(chat_template_kwargs=template_kwargs)
        assert [text.partition(f" {task} :")[2] for text in asked] == [" = attempt", " attempt", " makes attempt"]
    # Each keeps its own where only some attempts are rewritten; an error step that is not given is asked for
    asked.clear()
    grm.rewrite_ids(*attempts, [-1, -1, 0], chat_template_kwargs=template_kwargs)
    assert [text.partition(" rewrite :")[2] for text in asked] == [" makes attempt"]
    asked.clear()
    grm.rewrite_ids(*attempts, chat_template_kwargs=template_kwargs)
    assert [text.partition(" locate :")[2] for text in asked[:3]] == [" = attempt", " attempt", " makes attempt"]


def test_no_rows_give_no_results(make_reward_model):
    reward_model = make_reward_model()
    assert reward_model.score([], [], [], []) == []
    assert reward_model.locate([], [], []) == []
    assert reward_model.rewrite_ids([], [], [], []) == []
    assert reward_model.rewrite([], [], [], []) == []
    assert reward_model.rewrite_topk([], [], [], [], k=3) == ([], [])
    assert reward_model.attempt_topk([], [], [], [], k=3) == ([], [])


@pytest.mark.parametrize("method", ["score", "rewrite", "rewrite_ids"])
def test_ids_of_another_tokenizer_are_refused(method, make_reward_model, make_rows):
    rows = make_rows(3)
    rows[1]["completion_ids"] = [token_id + 1 for token_id in rows[1]["completion_ids"]]
    with pytest.raises(TokenizerMismatchError, match=r"Row 1: `completion_ids` decode to .* the policy's tokenizer"):
        getattr(make_reward_model(), method)(*columns(rows))


# --- Locating --------------------------------------------------------------------------------------------------------


@pytest.fixture
def answer_with(monkeypatch):
    """Let the model answer with given texts, and return its prompts."""
    asked = []

    def install(texts, tokenizer):
        def generate(model, processing_class, prompt_ids, *args, **kwargs):
            asked.extend(tokenizer.decode(ids) for ids in prompt_ids)
            return [
                tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for text in texts
            ]

        monkeypatch.setattr(generative_reward_model, "generate_ids", generate)
        return asked

    return install


def test_locate_reads_step_numbers_and_anything_else_as_no_error(make_reward_model, make_rows, tokenizer, answer_with):
    answers = ["0", "2", "none", "3", "4", "5", "Tom finds", "", "1 2", "-"]
    row = make_rows(1)[0]
    assert row["completion"].count(" ; ") == 3, "steps 0 to 3"
    asked = answer_with(answers, tokenizer)
    located = make_reward_model().locate(*columns([row] * len(answers), "prompt", "reference", "completion"))
    assert located == [0, 2, -1, 3, 4, -1, -1, -1, -1, -1], "4 is the step that would come next"
    assert asked[0] == locate_prompt(WORDING, row["prompt"], row["reference"], row["completion"])


def test_an_untrained_model_locates_nothing_outside_the_attempt(make_reward_model, make_rows):
    rows = make_rows(9)
    located = make_reward_model(batch_size=4).locate(*columns(rows, "prompt", "reference", "completion"))
    assert len(located) == 9
    assert all(-1 <= step < 4 for step in located)


# --- Rewriting -------------------------------------------------------------------------------------------------------


def test_a_rewrite_keeps_the_located_prefix_and_continues_it(make_reward_model, model, make_rows, tokenizer):
    rows = make_rows(6)
    error_steps = [-1, 0, 1, 2, 3, -1]
    reward_model = make_reward_model(batch_size=4, max_new_tokens=7)
    rewrites = reward_model.rewrite_ids(*columns(rows), error_steps=error_steps)
    for row, error_step, rewrite in zip(rows, error_steps, rewrites, strict=True):
        if error_step == -1:
            assert rewrite == row["completion_ids"]
            continue
        steps = row["completion"].split(" ; ")
        kept_text = "".join(f"{step} ; " for step in steps[:error_step])
        prefix = step_prefix_ids(tokenizer, row["completion_ids"], [f"{step} ; " for step in steps], error_step)
        # The space after the separator belongs to the next token
        assert tokenizer.decode(prefix) == kept_text.removesuffix(" ")
        assert rewrite[: len(prefix)] == row["completion_ids"][: len(prefix)]
        ids = tokenizer(context_of(row))["input_ids"] + prefix
        for token in rewrite[len(prefix) :]:  # greedy, in the context of the rewriting prompt
            with torch.no_grad():
                assert model(torch.tensor([ids])).logits[0, -1].argmax() == token
            ids.append(token)
        assert len(rewrite) - len(prefix) == 7 or rewrite[-1] == tokenizer.eos_token_id
    assert reward_model.rewrite(*columns(rows), error_steps=error_steps) == tokenizer.batch_decode(
        rewrites, skip_special_tokens=True
    )


def test_rewrites_do_not_share_lists_with_the_samples(make_reward_model, make_rows):
    rows = make_rows(2)
    rewrites = make_reward_model().rewrite_ids(*columns(rows), error_steps=[-1, -1])
    rewrites[0].append(0)
    assert rewrites[0] != rows[0]["completion_ids"]


def test_without_error_steps_it_locates_first(make_reward_model, make_rows, monkeypatch):
    rows = make_rows(4)
    reward_model = make_reward_model()
    monkeypatch.setattr(reward_model, "locate", lambda *args: [1, -1, -1, 0])
    expected = reward_model.rewrite_ids(*columns(rows), error_steps=[1, -1, -1, 0])
    assert reward_model.rewrite_ids(*columns(rows)) == expected


def test_generation_arguments_reach_the_rewriting(make_reward_model, make_rows):
    rows = make_rows(1) * 5
    torch.manual_seed(0)
    reward_model = make_reward_model(generation_kwargs={"do_sample": True, "temperature": 5.0})
    assert len({tuple(ids) for ids in reward_model.rewrite_ids(*columns(rows), error_steps=[0] * 5)}) > 1


def test_sampled_rewrites_have_the_temperature_and_the_random_numbers_of_their_seed(make_reward_model, make_rows):
    reward_model, inputs = make_reward_model(), columns(make_rows(4))

    def rewrite(**sampling):
        return reward_model.rewrite_ids(*inputs, error_steps=[0] * 4, **sampling)

    state = torch.get_rng_state()
    hot = rewrite(temperature=50.0, seed=1)
    assert rewrite(temperature=50.0, seed=1) == hot
    assert torch.equal(torch.get_rng_state(), state)
    assert rewrite(temperature=50.0, seed=2) != hot
    assert rewrite(temperature=1e-3, seed=1) == rewrite(seed=1) == rewrite() != hot, "cold enough is greedy"


def test_the_kept_prefix_has_the_sampled_ids_not_those_of_its_text():
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    vocabulary = {token: index for index, token in enumerate(["<eos>", "<pad>", *characters, "12"])}
    backend = Tokenizer(models.BPE(vocabulary, merges=[("1", "2")]))
    backend.decoder = decoders.Fuse()
    letters = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")
    config = LlamaConfig(
        vocab_size=len(letters),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=letters.eos_token_id,
        pad_token_id=letters.pad_token_id,
        bos_token_id=None,
    )
    reward_model = GenerativeRewardModel(LlamaForCausalLM(config), letters, show_progress=False, max_new_tokens=3)
    assert reward_model.wording == DEFAULT_WORDING
    text = "3 + 9 = 12\n12 + 1 = 13\nThe answer is 13"
    sampled_ids = [*letters.convert_tokens_to_ids(list(text)), letters.eos_token_id]
    first_step = len("3 + 9 = 12\n")
    assert sampled_ids[:first_step] != letters("3 + 9 = 12\n")["input_ids"]
    (rewrite,) = reward_model.rewrite_ids(["3 + 9 + 1"], ["13"], [text], [sampled_ids], error_steps=[1])
    assert rewrite[:first_step] == sampled_ids[:first_step]
    assert len(rewrite) <= first_step + 3
    (probs,) = reward_model.score(["3 + 9 + 1"], ["13"], [text], [sampled_ids])
    assert len(probs) == len(sampled_ids)


# --- The distribution on a rewrite -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_topk_is_the_top_of_a_full_softmax(batch_size, make_reward_model, model, make_rows, tokenizer):
    rows = make_rows(7)
    rewrite_ids = [tokenizer(row["rewrite"])["input_ids"][: 5 * index + 1] for index, row in enumerate(rows)]
    reward_model = make_reward_model(batch_size=batch_size)
    ids, logps = reward_model.rewrite_topk(*columns(rows, "prompt", "reference", "completion"), rewrite_ids, k=4)
    for index, row in enumerate(rows):
        expected = naive_distribution(model, tokenizer, row, rewrite_ids[index]).topk(4)
        assert len(ids[index]) == len(rewrite_ids[index])
        assert ids[index] == expected.indices.tolist()
        torch.testing.assert_close(torch.tensor(logps[index]), expected.values, rtol=1e-4, atol=1e-5)


def test_topk_with_the_whole_vocabulary_sums_to_one_and_holds_the_score(make_reward_model, make_rows, tokenizer):
    rows = make_rows(2)
    reward_model = make_reward_model()
    inputs = columns(rows, "prompt", "reference", "completion")
    ids, logps = reward_model.attempt_topk(*inputs, columns(rows, "completion_ids")[0], k=len(tokenizer))
    scores = reward_model.score(*columns(rows))
    for index, row in enumerate(rows):
        probs = torch.tensor(logps[index]).exp()
        torch.testing.assert_close(probs.sum(-1), torch.ones(len(probs)))
        for position, token in enumerate(row["completion_ids"]):
            place = ids[index][position].index(token)
            assert probs[position, place].item() == pytest.approx(scores[index][position], rel=1e-4, abs=1e-7)


# --- With a server of the same model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tokenizer, make_rows):
    """A reward model that is overfitted to a few rows, and a copy for the server."""
    from rlmec_trl.tasks.arithmetic import make_policy

    questions = []
    for row in make_rows(9):
        parts = row["prompt"], row["reference"], row["completion"]
        questions.append((locate_prompt(WORDING, *parts), locate_answer(WORDING, row["error_step"])))
        questions.append((rewrite_prompt(WORDING, *parts), row["rewrite"]))
    model = memorize(make_policy(tokenizer, hidden_size=32, num_hidden_layers=2), tokenizer, questions)
    return model, copy.deepcopy(model)


@pytest.fixture
def here_and_there(trained, tokenizer):
    """The reward model alone, and with a server."""

    def make(server, **kwargs):
        settings = {"wording": WORDING, "show_progress": False, "max_new_tokens": 40, **kwargs}
        token_server = TokenServer(ServerConfig(server.url), tokenizer, {tokenizer.eos_token_id})
        return (
            GenerativeRewardModel(trained[0], tokenizer, **settings),
            GenerativeRewardModel(trained[0], tokenizer, **settings, server=token_server),
        )

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_locates_and_rewrites_like_the_model_here(kind, here_and_there, trained, make_rows, tokenizer):
    rows = make_rows(9)
    texts = columns(rows, "prompt", "reference", "completion")
    with FakeServer(tokenizer, speak_as(trained[1], tokenizer), kind=kind) as server:
        here, there = here_and_there(server)
        located = there.locate(*texts)
        assert located == here.locate(*texts)
        rewrites = there.rewrite_ids(*columns(rows))
        assert rewrites == here.rewrite_ids(*columns(rows))
        # A rewrite from another step than the learned one
        steps = [2, 0, -1, 1, 3, 2, 1, 0, -1]
        assert there.rewrite(*columns(rows), error_steps=steps) == here.rewrite(*columns(rows), error_steps=steps)
        assert all(exchange.body["temperature"] == 0 for exchange in server.exchanges)
    assert not there.server.left_out
    assert len(set(located)) > 2
    assert sum(rewrite != row["completion_ids"] for rewrite, row in zip(rewrites, rows, strict=True)) > 2


def test_probabilities_are_computed_by_the_model_in_this_process(here_and_there, trained, make_rows, tokenizer):
    rows = make_rows(3)
    with FakeServer(tokenizer, speak_as(trained[1], tokenizer)) as server:
        here, there = here_and_there(server)
        assert there.score(*columns(rows)) == here.score(*columns(rows))
        inputs = columns(rows, "prompt", "reference", "completion", "completion_ids")
        assert there.rewrite_topk(*inputs, k=3) == here.rewrite_topk(*inputs, k=3)
        assert not server.exchanges


def test_a_refused_request_counts_as_correct_or_ends_the_rewrite(here_and_there, trained, make_rows, tokenizer):
    rows = make_rows(9)
    index = next(index for index, row in enumerate(rows) if row["error_step"] >= 0)
    parts = [rows[index][name] for name in ("prompt", "reference", "completion")]
    refused = [tokenizer(locate_prompt(WORDING, *parts))["input_ids"]]
    with FakeServer(tokenizer, speak_as(trained[1], tokenizer)) as server:
        server.refuse = lambda body: any(body["prompt"][: len(ids)] == ids for ids in refused) and "seed" in body
        here, there = here_and_there(server)
        expected = here.locate(*columns(rows, "prompt", "reference", "completion"))
        located = there.locate(*columns(rows, "prompt", "reference", "completion"))
        assert expected[index] >= 0
        assert located == [*expected[:index], -1, *expected[index + 1 :]]
        refused[0] = tokenizer(rewrite_prompt(WORDING, *parts))["input_ids"]
        (rewrite,) = there.rewrite_ids(*columns([rows[index]]), error_steps=[1])
    steps = [f"{step} ; " for step in rows[index]["completion"].split(" ; ")]
    assert rewrite == step_prefix_ids(tokenizer, rows[index]["completion_ids"], steps, 1)
    assert there.server.left_out == {"refused by the server": 2}


# --- Wholly behind a server ------------------------------------------------------------------------------------------


@pytest.fixture
def served(trained, tokenizer, tmp_path):
    """The reward model here, and one of which only tokenizer, configuration and wording are here."""
    folder = tmp_path / "grm"
    tokenizer.save_pretrained(folder)
    trained[0].config.save_pretrained(folder)
    save_wording(WORDING, folder)
    assert not list(folder.glob("*.safetensors"))

    def make(server):
        settings = {"show_progress": False, "max_new_tokens": 40}
        return (
            GenerativeRewardModel(trained[0], tokenizer, WORDING, **settings),
            GenerativeRewardModel.from_server(str(folder), ServerConfig(server.url), **settings),
        )

    return make


def test_without_weights_here_a_server_judges_like_the_model(served, trained, make_rows, tokenizer):
    rows = make_rows(9)
    texts = columns(rows, "prompt", "reference", "completion")
    with FakeServer(tokenizer, speak_as(trained[1], tokenizer), score_as(trained[1])) as server:
        here, there = served(server)
        assert there.model is None
        assert there.wording == WORDING
        assert there.eos_token_ids == here.eos_token_ids
        scores, expected = there.score(*columns(rows)), here.score(*columns(rows))
        assert there.locate(*texts) == here.locate(*texts)
        assert there.rewrite_ids(*columns(rows)) == here.rewrite_ids(*columns(rows))
    for row, others in zip(scores, expected, strict=True):
        assert row == pytest.approx(others, abs=1e-5)
    assert len({round(prob, 2) for row in scores for prob in row}) > 10


@pytest.mark.parametrize("method", ["score_with_states", "rewrite_topk", "attempt_topk"])
def test_what_needs_weights_is_refused_without_a_request(method, served, make_rows, tokenizer):
    with FakeServer(tokenizer) as server:
        _, there = served(server)
        arguments = () if method == "score_with_states" else (3,)
        with pytest.raises(ConfigError, match="computed from its weights"):
            getattr(there, method)(*columns(make_rows(1)), *arguments)
        assert not server.exchanges


def test_neither_model_nor_server_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="needs a `server`"):
        GenerativeRewardModel(None, tokenizer)


# --- The model is not changed ----------------------------------------------------------------------------------------


def test_the_models_mode_is_restored_and_no_gradient_is_kept(make_reward_model, model, make_rows):
    rows = make_rows(2)
    modes, grads = [], []

    def watch(module, args, output):
        modes.append(module.training)
        grads.append(torch.is_grad_enabled())

    model.model.layers[0].register_forward_hook(watch)
    reward_model = make_reward_model()
    model.train()
    reward_model.score(*columns(rows))
    reward_model.rewrite_ids(*columns(rows), error_steps=[0, 1])
    reward_model.locate(*columns(rows, "prompt", "reference", "completion"))
    reward_model.rewrite_topk(*columns(rows, "prompt", "reference", "completion"), [[5], [6]], k=2)
    assert modes and not any(modes) and not any(grads)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
