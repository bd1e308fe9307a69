"""The rewards of RLLR against worked-out cases, with one reward model and with two, and inside TRL's trainers."""

import json
import math
import statistics

import pytest
import torch
from datasets import Dataset
from transformers import TrainerState
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from rlmec_trl.data.errors import ConfigError
from rlmec_trl.generation.reward_models import SequenceRewardModel
from rlmec_trl.stages.label_rewards import (
    floored_without_label,
    median_cap,
    rlhf_reward,
    rllr_mixed_reward,
    rllr_reward,
    running_normalized,
)
from rlmec_trl.tasks.task import Task


class Scores:
    """A reward model that gives known scores, by the first id of a completion."""

    def __init__(self, *scores):
        self.scores, self.calls = scores, []

    def score(self, prompts, completion_ids, chat_template_kwargs=None):
        self.calls.append(chat_template_kwargs)
        assert len(prompts) == len(completion_ids)
        return [self.scores[ids[0]] for ids in completion_ids]


BATCH = {"prompts": ["p"] * 4, "completions": ["c"] * 4, "completion_ids": [[0], [1], [2], [3]]}
LABEL, QUALITY = (-1.0, 0.5, 2.0, 7.0), (0.25, -3.0, 10.0, 0.0)


def test_each_function_gives_its_scores_under_its_name():
    for make, scores, name in ((rlhf_reward, QUALITY, "rlhf"), (rllr_reward, LABEL, "rllr")):
        function = make(Scores(*scores))
        assert function.__name__ == name
        assert function(**BATCH, answer=["a"] * 4, trainer_state=None) == list(scores)


def test_the_label_score_is_capped_and_the_rationales_is_not():
    logged = {}
    function = rllr_mixed_reward(Scores(*LABEL), Scores(*QUALITY), cap=2.0)
    assert function(**BATCH, log_metric=logged.__setitem__) == [-0.75, -2.5, 12.0, 2.0]
    assert function.__name__ == "rllr_mixed"
    assert logged == {"rllr_mixed/label": 2.125, "rllr_mixed/quality": 1.8125, "rllr_mixed/capped": 0.25}
    assert rllr_mixed_reward(Scores(*LABEL), Scores(*QUALITY), cap=math.inf)(**BATCH)[3] == 7.0


def test_one_reward_model_of_both_kinds_scores_once():
    both = Scores(*LABEL)
    assert rllr_mixed_reward(both, both, cap=1)(**BATCH) == [-2.0, 1.0, 3.0, 8.0]
    assert len(both.calls) == 1


def test_arguments_of_the_chat_template_reach_every_reward_model():
    kwargs = [{"enable_thinking": False}] * 4
    label, quality = Scores(*LABEL), Scores(*QUALITY)
    for function in (rllr_mixed_reward(label, quality, 1.0), rllr_reward(label), rlhf_reward(quality)):
        function(**BATCH, chat_template_kwargs=kwargs)
    assert label.calls == quality.calls == [kwargs, kwargs]


@pytest.mark.parametrize("cap", [None, math.nan, -math.inf, "2", True])
def test_a_cap_that_is_no_number_is_refused(cap):
    with pytest.raises(ConfigError, match="`cap` must be a number"):
        rllr_mixed_reward(Scores(), Scores(), cap)


def test_the_median_cap_is_that_of_the_correct_responses():
    columns = (BATCH["prompts"], BATCH["completion_ids"])
    assert median_cap(Scores(*LABEL), *columns, [True, True, False, True]) == 0.5
    assert median_cap(Scores(*LABEL), *columns, [False, True, True, False], [{}] * 4) == 1.25
    with pytest.raises(ConfigError, match="None of the 4 validation responses is correct"):
        median_cap(Scores(*LABEL), *columns, [False] * 4)


def test_a_completion_without_a_label_gets_the_smallest_reward_of_its_batch():
    task, logged = Task("mine", labels=("good", "bad")), {}
    function = floored_without_label(rllr_reward(Scores(*LABEL)), task)
    assert function.__name__ == "rllr"
    texts = ["The answer is good", "The answer is bad", "I like it", "The answer is bad\nThe answer is good"]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    users = [[{"role": "user", "content": "p"}]] * 4
    for batch in (BATCH | {"completions": texts}, BATCH | {"completions": messages, "prompts": users}):
        assert function(**batch, log_metric=logged.__setitem__) == [-1.0, 0.5, -1.0, -1.0]
    assert logged == {"rllr/without_label": 0.5}
    assert function([], [], []) == []


# --- Running normalization -------------------------------------------------------------------------------------------


def normalized_by_hand(batches):
    """Every batch by the mean and the deviation of all values up to its end."""
    seen, found = [], []
    for batch in batches:
        seen += batch
        deviation = statistics.stdev(seen) if len(seen) > 1 else 0.0
        found.append([(value - statistics.mean(seen)) / (deviation + 1e-7) for value in batch])
    return found


def call(function, ids, **kwargs):
    return function(["p"] * len(ids), ["c"] * len(ids), [[index] for index in ids], **kwargs)


@pytest.mark.parametrize("state", [None, TrainerState()])
def test_rewards_are_normalized_by_all_that_were_given_so_far(state):
    function = running_normalized(rllr_reward(Scores(*LABEL)))
    assert function.__name__ == "rllr"
    batches = [[0], [1, 2], [3, 3, 0]]
    found = [call(function, ids, trainer_state=state) for ids in batches]
    expected = normalized_by_hand([[LABEL[index] for index in ids] for ids in batches])
    for batch, reference in zip(found, expected, strict=True):
        assert batch == pytest.approx(reference)
    assert call(function, [], trainer_state=state) == []


def test_a_resumed_training_continues_with_the_moments_of_its_checkpoint_and_a_new_one_starts_anew(tmp_path):
    straight, interrupted = (running_normalized(rllr_reward(Scores(*LABEL))) for _ in range(2))
    state = TrainerState()
    expected = [call(straight, ids, trainer_state=state) for ids in ([0, 1], [2, 3])]
    first, path = TrainerState(), str(tmp_path / "trainer_state.json")
    assert call(interrupted, [0, 1], trainer_state=first) == expected[0]
    first.save_to_json(path)
    again = running_normalized(rllr_reward(Scores(*LABEL)))
    assert call(again, [2, 3], trainer_state=TrainerState.load_from_json(path)) == expected[1]
    assert call(again, [0, 1], trainer_state=TrainerState()) == expected[0]
    assert json.loads((tmp_path / "trainer_state.json").read_text())["stateful_callbacks"].keys() == {
        "running_normalized(rllr)"
    }


def test_two_processes_normalize_by_the_rewards_of_both(run_on_two, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import json, sys\n"
        "from rlmec_trl.generation.processes import end_processes, process_state\n"
        "from rlmec_trl.stages.label_rewards import running_normalized\n"
        "index = process_state().process_index\n"
        "given = iter([[1.0, 5.0], [2.0]] if index else [[0.0, 4.0], [9.0]])\n"
        "function = running_normalized(lambda *args, **kwargs: next(given))\n"
        "found = [function([], [], []) for _ in range(2)]\n"
        "open(f'{sys.argv[1]}/{index}.json', 'w').write(json.dumps(found))\n"
        "end_processes()\n"
    )
    run_on_two(worker, tmp_path)
    found = [json.loads((tmp_path / f"{index}.json").read_text()) for index in range(2)]
    expected = normalized_by_hand([[0.0, 4.0, 1.0, 5.0], [9.0, 2.0]])
    for step in range(2):
        assert found[0][step] + found[1][step] == pytest.approx(expected[step])


# --- In the trainers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("trainer_class", "config_class"), [(RLOOTrainer, RLOOConfig), (GRPOTrainer, GRPOConfig)])
def test_trl_trains_with_them_and_logs_them_under_their_names(
    trainer_class, config_class, make_policy, make_reward_model, make_pairs, tokenizer, tmp_path
):
    label, quality = (SequenceRewardModel(make_reward_model(seed), tokenizer) for seed in (0, 1))
    seen = []

    def spy(prompts, completion_ids, **kwargs):
        seen.extend(zip(prompts, completion_ids, strict=True))
        return [0.0] * len(prompts)

    args = config_class(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, num_generations=2, max_completion_length=4,
        bf16=False, use_cpu=True, report_to="none", gradient_checkpointing=False, save_strategy="no",
        logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    functions = [rlhf_reward(quality), rllr_reward(label), running_normalized(rllr_mixed_reward(label, quality, 0.1))]
    rows = Dataset.from_list([{"prompt": pair["prompt"]} for pair in make_pairs(4)])
    make_policy().save_pretrained(tmp_path / "policy")  # RLOO loads its reference by name
    trainer = trainer_class(str(tmp_path / "policy"), [*functions, spy], args, rows, processing_class=tokenizer)
    trainer.train()
    log = trainer.state.log_history[0]
    prompts, completion_ids = zip(*seen, strict=True)
    scores = {name: model.score(prompts, completion_ids) for name, model in (("rlhf", quality), ("rllr", label))}
    for name, expected in scores.items():
        assert log[f"rewards/{name}/mean"] == pytest.approx(torch.tensor(expected).mean().item(), rel=1e-4, abs=1e-6)
    assert log["rewards/rllr_mixed/mean"] == pytest.approx(0.0, abs=1e-5)
    assert log["rllr_mixed/label"] == pytest.approx(log["rewards/rllr/mean"], rel=1e-4, abs=1e-6)
