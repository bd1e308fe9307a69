"""A reward model with another tokenizer than the policy's, from scoring to a training step."""

import math

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import ModelConfig

from rlmec_trl import GenerativeRewardModel, GRMConfig, GRMTrainer, RLMECConfig, RLMECTrainer
from rlmec_trl.data.schema import check_dataset
from rlmec_trl.data.tokens import encode_completion
from rlmec_trl.generation.server import ServerConfig, TokenServer
from rlmec_trl.grm import generative_reward_model
from rlmec_trl.grm.generative_reward_model import TokenizerMismatchError
from rlmec_trl.grm.prompts import save_wording
from rlmec_trl.stages import score
from rlmec_trl.stages.score import ScoreConfig, score_dataset
from rlmec_trl.tasks.arithmetic import WORDING, make_tokenizer
from rlmec_trl.tasks.task import load_task
from rlmec_trl.tasks.wording import locate_prompt, rewrite_prompt
from tests.fake_openai import FakeServer, score_as, speak_as
from tests.small_tokenizers import number_tokenizer


TASK = load_task("arithmetic")
SAMPLE_COLUMNS = ["prompt", "reference", "answer", "completion", "completion_ids", "correct"]
QUESTIONS = ("prompt", "reference", "completion")


@pytest.fixture
def rows(make_rows):
    """Correct, incorrect and flawed samples alternately, with the edits that a teacher would write."""
    return make_rows(6)


@pytest.fixture
def other(rows):
    """A tokenizer with whole numbers, where the policy's has digits."""
    asked = [
        ask(WORDING, *(row[name] for name in QUESTIONS)) for row in rows for ask in (locate_prompt, rewrite_prompt)
    ]
    return number_tokenizer([*asked, *(row["rewrite"] for row in rows)])


@pytest.fixture
def reward_model(other):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(other),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=other.eos_token_id,
        pad_token_id=other.pad_token_id,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def grm(reward_model, other, tokenizer):
    return GenerativeRewardModel(
        reward_model,
        other,
        WORDING,
        batch_size=4,
        max_new_tokens=40,
        show_progress=False,
        policy_processing_class=tokenizer,
    )


def samples(rows):
    return Dataset.from_list([{name: row[name] for name in SAMPLE_COLUMNS} for row in rows])


def columns(rows, *names):
    return [[row[name] for row in rows] for name in names or (*QUESTIONS, "completion_ids")]


@pytest.fixture
def write_with(monkeypatch, other):
    """Let the reward model write given texts, cut off or with EOS, whatever part of them is there already."""

    def install(rows, rewrites, end=True):
        contexts = [other(rewrite_prompt(WORDING, *(row[name] for name in QUESTIONS)))["input_ids"] for row in rows]
        kept = {}

        def generate(model, processing_class, prompt_ids, *args, **kwargs):
            assert processing_class is other
            generated = []
            for ids in prompt_ids:
                index = next(i for i, context in enumerate(contexts) if ids[: len(context)] == context)
                kept[index] = other.decode(ids[len(contexts[index]) :])
                target = encode_completion(other, rewrites[index])
                generated.append(target[len(ids) - len(contexts[index]) : None if end else -1])
            return generated

        monkeypatch.setattr(generative_reward_model, "generate_ids", generate)
        return kept

    return install


def test_the_two_tokenizers_have_different_tokens_of_the_same_text(rows, other, tokenizer):
    ids, own_ids = rows[0]["completion_ids"], encode_completion(other, rows[0]["completion"])
    assert other.unk_token_id not in own_ids
    assert len(own_ids) < len(ids)
    assert tokenizer.decode(ids[:-1]) == other.decode(own_ids[:-1]) == rows[0]["completion"]


def test_a_probability_is_that_of_the_tokens_that_begin_there(grm, rows, other, tokenizer):
    """Against a softmax over the reward model's own tokens, one row at a time."""
    scores = grm.score(*columns(rows))
    for row, probs in zip(rows, scores, strict=True):
        context = other(rewrite_prompt(WORDING, *(row[name] for name in QUESTIONS)))["input_ids"]
        own_ids = encode_completion(other, row["completion"])
        with torch.no_grad():
            logits = grm.model(torch.tensor([context + own_ids])).logits[0, len(context) - 1 : -1]
        logps = logits.log_softmax(-1)[range(len(own_ids)), own_ids].tolist()
        token_at = [i for i, token in enumerate(row["completion_ids"][:-1]) for _ in tokenizer.decode([token])]
        expected, position = [None] * len(probs), 0
        for token, logp in zip(own_ids[:-1], logps[:-1], strict=True):
            place = token_at[position]
            expected[place] = (expected[place] or 0.0) + logp
            position += len(other.decode([token]))
        expected[-1] = logps[-1]
        assert None in expected
        assert [prob is None for prob in probs] == [logp is None for logp in expected]
        given = [(prob, math.exp(logp)) for prob, logp in zip(probs, expected, strict=True) if prob is not None]
        for prob, value in given:
            assert prob == pytest.approx(value, rel=1e-3)


def test_a_server_scores_and_rewrites_in_its_own_tokens(grm, rows, other, tokenizer):
    with FakeServer(other, speak_as(grm.model, other), score_as(grm.model)) as server:
        served = GenerativeRewardModel(
            None,
            other,
            WORDING,
            max_new_tokens=8,
            show_progress=False,
            server=TokenServer(ServerConfig(server.url), other, {other.eos_token_id}),
            policy_processing_class=tokenizer,
        )
        scores, expected = served.score(*columns(rows)), grm.score(*columns(rows))
        grm.max_new_tokens = 8
        steps = [index % 3 for index in range(len(rows))]
        assert served.rewrite_ids(*columns(rows), steps) == grm.rewrite_ids(*columns(rows), steps)
    assert any(None in row for row in scores)
    for row, others in zip(scores, expected, strict=True):
        assert [prob is None for prob in row] == [prob is None for prob in others]
        given = [prob for prob in row if prob is not None]
        assert given == pytest.approx([prob for prob in others if prob is not None], abs=1e-5)


def test_with_one_vocabulary_nothing_changes(make_policy, tokenizer, rows):
    model = make_policy(sharpness=20.0, mixing=20.0)
    one, two = (
        GenerativeRewardModel(model, tokenizer, WORDING, max_new_tokens=8, show_progress=False, **kwargs)
        for kwargs in ({}, {"policy_processing_class": make_tokenizer()})
    )
    assert one.score(*columns(rows)) == two.score(*columns(rows))
    assert one.rewrite_ids(*columns(rows), [0] * 6) == two.rewrite_ids(*columns(rows), [0] * 6)
    assert one.rewrite_topk(*columns(rows), 2) == two.rewrite_topk(*columns(rows), 2)
    assert one.attempt_topk(*columns(rows), 2) == two.attempt_topk(*columns(rows), 2)


def test_rewrites_are_ids_of_the_policy_and_keep_the_sampled_ones(grm, rows, write_with, tokenizer):
    for row in rows:
        row["completion_ids"] = encode_completion(tokenizer, row["completion"])
    kept = write_with(rows, [row["rewrite"] for row in rows])
    error_steps = [row["error_step"] for row in rows]
    rewrites = grm.rewrite_ids(*columns(rows), error_steps)
    for index, (row, ids) in enumerate(zip(rows, rewrites, strict=True)):
        assert ids == encode_completion(tokenizer, row["rewrite"])
        if row["error_step"] == -1:
            assert ids == row["completion_ids"]
            assert index not in kept
        else:
            assert row["completion"].startswith(kept[index])
            assert kept[index].count(";") == row["error_step"]
    assert grm.rewrite(*columns(rows), error_steps) == [row["rewrite"] for row in rows]


@pytest.mark.parametrize("end", [True, False])
def test_a_rewrite_that_is_cut_off_has_no_eos_and_is_not_kept(grm, rows, write_with, tokenizer, monkeypatch, end):
    write_with(rows, [row["rewrite"] for row in rows], end)
    rewrites = grm.rewrite_ids(*columns(rows), [0] * len(rows))
    assert [tokenizer.decode(ids) for ids in rewrites] == [row["rewrite"] + "<eos>" * end for row in rows]
    monkeypatch.setattr(grm, "locate", lambda *args: [0] * len(rows))
    scored = score_dataset(samples(rows), grm, TASK)
    assert scored["rewrite"][:] == [row["rewrite"] if end else None for row in rows]


def test_the_step_of_the_first_flagged_token_is_found_by_the_policys_tokens(grm, tokenizer):
    text = "59 - 16 is 43 ; 43 + 23 = 67 ; The answer is 67"
    ids = encode_completion(tokenizer, text)
    probs = [None] * len(ids)
    assert grm.flagged_steps([text], [ids], [probs]) == [-1]
    assert grm.flagged_steps([text], [ids], [[*probs[:3], 0.9, *probs[4:17], 0.1, *probs[18:]]]) == [1]


@pytest.mark.parametrize("name", ["rewrite_topk", "attempt_topk"])
def test_distributions_are_refused(name, grm, rows):
    message = f"`{name}` stores the reward model's distribution over its own tokens"
    with pytest.raises(TokenizerMismatchError, match=message):
        getattr(grm, name)(*columns(rows), 2)
    grm.score = None  # before any work
    with pytest.raises(TokenizerMismatchError, match=message):
        score_dataset(samples(rows), grm, TASK, **{name: 2})


@pytest.mark.parametrize("method", ["score", "rewrite", "rewrite_ids"])
def test_ids_that_are_not_the_policys_are_refused(method, grm, rows, other):
    rows[1]["completion_ids"] = encode_completion(other, rows[1]["completion"])[:3]
    with pytest.raises(TokenizerMismatchError, match=r"Row 1: `completion_ids` decode to .* the policy's tokenizer"):
        getattr(grm, method)(*columns(rows))


def test_ids_that_the_reward_model_does_not_have_are_named(grm, rows, other):
    other.add_tokens([" answer is"])
    with pytest.raises(TokenizerMismatchError, match=f"gives the id {len(other) - 1}, and the model has .* ids"):
        grm.score(*columns(rows))


def test_completions_without_text_are_scored(grm, rows, tokenizer):
    row = rows[0]
    inputs = [row["prompt"]] * 2, [row["reference"]] * 2, ["", ""], [[tokenizer.eos_token_id], []]
    (eos_prob,), nothing = grm.score(*inputs)
    assert 0 < eos_prob < 1
    assert nothing == []
    assert grm.score(*(column[1:] for column in inputs)) == [[]]


def test_a_reward_model_is_trained_on_texts_where_the_ids_are_another_tokenizers(
    tmp_path, rows, reward_model, other, tokenizer, caplog
):
    """Also where the policy has ids that the reward model does not have."""

    def examples(edits):
        args = GRMConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
        dataset = Dataset.from_list(edits)
        trainer = GRMTrainer(reward_model, args, train_dataset=dataset, processing_class=other, wording=WORDING)
        return trainer.train_dataset["input_ids"][:]

    texts = [{name: value for name, value in row.items() if name != "completion_ids"} for row in rows]
    assert not caplog.records
    assert examples(rows) == examples(texts)
    assert "The `completion_ids` of the train dataset come from another tokenizer" in caplog.text
    for row in rows:
        row["completion_ids"] = [token + len(other) for token in row["completion_ids"]]
    assert examples(rows) == examples(texts)
    caplog.clear()
    own = [row | {"completion_ids": encode_completion(other, row["completion"])} for row in rows]
    assert examples(own) == examples(texts)
    assert not caplog.records


@pytest.mark.parametrize("locate_by", ["question", "probability"])
def test_the_policy_trains_on_what_another_tokenizers_model_scored(
    tmp_path, rows, grm, other, tokenizer, policy, locate_by, capsys
):
    policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    grm.model.save_pretrained(tmp_path / "grm")
    other.save_pretrained(tmp_path / "grm")
    save_wording(WORDING, tmp_path / "grm")
    config = ScoreConfig(
        grm=str(tmp_path / "grm"), task="arithmetic", locate_by=locate_by, rewrite_max_new_tokens=4, shard_size=2
    )
    scored = score.run(config, samples(rows), tmp_path / "scored", ModelConfig(str(tmp_path / "policy")))
    assert "different tokenizers" in capsys.readouterr().out
    check_dataset(scored, "scores", tokenizer.eos_token_id)
    for row, probs in zip(scored, grm.score(*columns(rows)), strict=True):
        assert None in row["token_probs"]
        assert len(row["token_probs"]) == len(row["old_logps"]) == len(row["completion_ids"])
        assert [prob is None for prob in row["token_probs"]] == [prob is None for prob in probs]
        assert row["rewrite_ids"] is None or tokenizer.decode(row["rewrite_ids"][:-1]) == row["rewrite"]

    args = RLMECConfig(
        str(tmp_path / "trained"),
        max_steps=1,
        per_device_train_batch_size=6,
        correct_samples="cut",
        report_to="none",
        use_cpu=True,
        bf16=False,
        logging_steps=1,
    )
    trainer = RLMECTrainer(policy, args, train_dataset=scored, processing_class=tokenizer)
    trainer.train()
    (log,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert math.isfinite(log["loss"])
    assert log["token_reward/active_fraction"] > 0
