"""The sample stage from Python: what is saved, what is checked before any work, what is not done twice."""

import dataclasses

import pytest
from datasets import ClassLabel, Dataset, Features, load_from_disk
from trl import ModelConfig

from rlmec_trl.data.schema import check_dataset
from rlmec_trl.stages import sample
from rlmec_trl.stages.output import OutputError
from rlmec_trl.stages.sample import SampleConfig
from rlmec_trl.tasks import arithmetic
from rlmec_trl.tasks.problems import ProblemConfig


@pytest.fixture
def folder(tmp_path, make_policy, tokenizer):
    for part in (make_policy(), tokenizer):
        part.save_pretrained(tmp_path / "policy")
    problems = arithmetic.make_arithmetic(warmup=0, train=6, validation=0, test=0)["train"]
    level = ClassLabel(names=["easy", "hard"])
    features = Features({**problems.features, "level": level})
    Dataset.from_list([{**row, "level": 1} for row in problems], features=features).save_to_disk(tmp_path / "problems")
    return tmp_path


@pytest.fixture
def run(folder):
    def run(problems="problems", **kwargs):
        config = SampleConfig(
            output_dir=str(folder / "samples"), task="arithmetic", temperature=1.0, top_p=1.0, max_new_tokens=64
        )
        config = dataclasses.replace(config, **kwargs)
        return sample.run(config, ProblemConfig(str(folder / problems)), ModelConfig(str(folder / "policy")))

    return run


def test_samples_have_the_columns_of_the_contract_and_those_of_their_problems(run, tokenizer):
    samples = run(shard_size=2)
    check_dataset(samples, "samples", tokenizer.eos_token_id)
    assert samples.features["level"] == ClassLabel(names=["easy", "hard"])
    assert 0 < len(samples) < 6 * 5, "some of an untrained policy's completions do not end"


def test_a_shard_in_which_no_completion_ends_is_joined_with_the_others(run, folder, monkeypatch):
    sample_completions = sample.sample_completions
    shards = []

    def truncate_the_first(*args, **kwargs):
        shards.append(None)
        completions = sample_completions(*args, **kwargs)
        return [[[] for _ in ids] for ids in completions] if len(shards) == 1 else completions

    monkeypatch.setattr(sample, "sample_completions", truncate_the_first)
    samples = run(shard_size=2)
    assert len(shards) == 3
    assert set(samples["prompt"]).isdisjoint(load_from_disk(folder / "problems")["prompt"][:2])


def test_arguments_of_the_chat_template_reach_the_policy_and_stay_in_the_rows(run, folder, monkeypatch):
    kwargs = [{"enable_thinking": index % 2 == 0} for index in range(6)]
    problems = load_from_disk(folder / "problems").add_column("chat_template_kwargs", kwargs)
    problems.save_to_disk(folder / "thinking")
    given = []
    sample_completions = sample.sample_completions

    def record(*args, **settings):
        given.extend(settings["chat_template_kwargs"])
        return sample_completions(*args, **settings)

    monkeypatch.setattr(sample, "sample_completions", record)
    samples = run("thinking", shard_size=2)
    assert given == kwargs
    expected = dict(zip(problems["prompt"], kwargs, strict=True))
    assert samples["chat_template_kwargs"][:] == [expected[prompt] for prompt in samples["prompt"]]


def test_a_finished_result_needs_no_model_and_depends_on_no_batch_size(run, monkeypatch):
    samples = run(shard_size=2)
    monkeypatch.setattr(sample, "load_model", None)
    assert run(shard_size=5, batch_size=1).to_list() == samples.to_list()


def test_another_seed_is_another_result(run):
    assert run(seed=0).to_list() != run(seed=1).to_list()


def test_a_folder_of_the_users_is_refused_before_a_model_is_loaded(run, folder, monkeypatch):
    (folder / "samples").mkdir()
    (folder / "samples" / "thesis.tex").write_text("mine")
    monkeypatch.setattr(sample, "load_model", None)
    with pytest.raises(OutputError, match="thesis.tex"):
        run()


def test_completions_that_never_end_are_reported(run):
    with pytest.raises(ValueError, match="No completion reached EOS: all were truncated at 1 tokens"):
        run(max_new_tokens=1, num_samples=1, seed=3)
