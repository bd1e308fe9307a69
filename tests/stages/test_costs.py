"""What stages and models have cost, against counts that are made by hand, and after interruptions."""

import copy
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk
from transformers import TrainerCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    ModelConfig,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

from rlmec_trl import GRMConfig, GRMTrainer, OnlineRLMECConfig, OnlineRLMECTrainer, RLMECConfig, RLMECTrainer
from rlmec_trl.generation.server import ServerConfig
from rlmec_trl.grm.generative_reward_model import GenerativeRewardModel
from rlmec_trl.grm.prompts import save_wording
from rlmec_trl.stages import edit, runner, sample, score, training
from rlmec_trl.stages.costs import (
    COSTS,
    ModelCosts,
    add_costs,
    job_costs,
    model_costs,
    num_generated,
    output_costs,
    report_costs,
)
from rlmec_trl.stages.pipeline import Choice, Job, plan_run
from rlmec_trl.stages.pipeline_file import load_pipeline
from rlmec_trl.stages.training import train_and_save
from rlmec_trl.tasks import arithmetic
from rlmec_trl.tasks.problems import ProblemConfig
from rlmec_trl.teachers.api.config import TeacherConfig
from tests.fake_openai import FakeServer


ROOT = Path(__file__).parents[2]
NONE = dict.fromkeys(COSTS, 0)
SAMPLE_COLUMNS = ["prompt", "reference", "answer", "completion", "completion_ids", "correct"]


class Killed(Exception):
    """In place of a kill."""


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


def train(trainer, kill_at=None):
    """Train, or be killed at a step."""
    if kill_at is None:
        return train_and_save(trainer)
    trainer.callback_handler.callbacks.insert(0, KillAt(kill_at))
    with pytest.raises(Killed):
        train_and_save(trainer)


# --- Trainings -------------------------------------------------------------------------------------------------------


def settings_of(folder, **settings):
    return {
        "output_dir": str(folder), "bf16": False, "use_cpu": True, "report_to": "none", "disable_tqdm": True,
        "gradient_checkpointing": False, "per_device_train_batch_size": 2, "save_steps": 2, "logging_steps": 4,
        **settings,
    }  # fmt: skip


@pytest.fixture
def make_offline(tmp_path, make_policy, make_rows, tokenizer):
    """Make trainers of two epochs over six rows. The last step, 6, is not logged."""

    def make(kind, name="run", **settings):
        classes = {
            "sft": (SFTTrainer, SFTConfig),
            "rlmec": (RLMECTrainer, RLMECConfig),
            "grm": (GRMTrainer, GRMConfig),
        }
        trainer_class, config_class = classes[kind]
        rows = make_rows(6)
        if kind == "sft":
            rows = [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows]
        if kind == "grm":
            settings |= {"locate_fraction": 0.0}
        return trainer_class(
            make_policy(),
            config_class(**settings_of(tmp_path / name, num_train_epochs=2, **settings)),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            **({"wording": arithmetic.WORDING} if kind == "grm" else {}),
        )

    return make


def test_sft_costs_its_prompts_and_completions_in_every_epoch(make_offline, make_rows, tokenizer, tmp_path):
    train(make_offline("sft"))
    # A completion ends with EOS
    lengths = [len(tokenizer(row["prompt"])["input_ids"]) + len(row["completion_ids"]) for row in make_rows(6)]
    assert output_costs(tmp_path / "run") == NONE | {"policy_tokens": 2 * sum(lengths)}


def test_dpo_costs_both_completions_of_a_pair_each_with_its_prompt(make_policy, make_rows, tokenizer, tmp_path):
    rows = make_rows(4, kinds=("wrong",))
    pairs = [{"prompt": row["prompt"], "chosen": row["rewrite"], "rejected": row["completion"]} for row in rows]
    make_policy().save_pretrained(tmp_path / "policy")  # for the reference model
    tokenizer.save_pretrained(tmp_path / "policy")
    config = DPOConfig(**settings_of(tmp_path / "run", max_steps=2))
    train(DPOTrainer(str(tmp_path / "policy"), args=config, train_dataset=Dataset.from_list(pairs)))

    def length(text):
        return len(tokenizer(text)["input_ids"])

    lengths = [
        2 * length(pair["prompt"]) + length(pair["chosen"]) + length(pair["rejected"]) + 2  # and EOS
        for pair in pairs
    ]
    assert output_costs(tmp_path / "run") == NONE | {"policy_tokens": sum(lengths)}


def test_training_a_reward_model_costs_no_policy_tokens(make_offline, tmp_path):
    trainer = make_offline("grm")
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    train(trainer)
    assert output_costs(tmp_path / "run") == NONE | {"grm_tokens_trained": 2 * sum(lengths)}


@pytest.mark.parametrize("kind", ["sft", "rlmec", "grm"])
def test_a_training_that_is_interrupted_costs_what_a_straight_one_does(kind, make_offline, tmp_path, monkeypatch):
    train(make_offline(kind, "straight"))
    train(make_offline(kind), kill_at=3)  # after the checkpoint of step 2
    with monkeypatch.context() as patch, pytest.raises(Killed):  # after the last checkpoint, before the model is saved

        def kill(*args):
            raise Killed

        patch.setattr(training, "_save", kill)
        train(make_offline(kind))
    assert not (tmp_path / "run" / "trainer_state.json").exists()
    train(make_offline(kind))
    straight = output_costs(tmp_path / "straight")
    assert sum(straight.values()) > 0
    assert output_costs(tmp_path / "run") == straight


@pytest.fixture
def problems():
    return arithmetic.make_arithmetic(seed=0, warmup=0, train=5, validation=0, test=0)["train"]


# Two steps for each pass over a generation batch, and two passes: the second batch is used for one step
SEVERAL = {"max_steps": 5, "steps_per_generation": 2, "num_iterations": 2}


@pytest.mark.parametrize(
    ("trainer_class", "settings", "num_passes"),
    [
        (GRPOTrainer, {"max_steps": 3}, 1),
        (GRPOTrainer, SEVERAL, 2),
        (GRPOTrainer, {"max_steps": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, 1),
        (GRPOTrainer, {"max_steps": 1, "eval_strategy": "steps", "per_device_eval_batch_size": 2}, 1),
        (RLOOTrainer, SEVERAL, 2),
    ],
    ids=["one batch a step", "several steps and passes a batch", "accumulation", "evaluation", "rloo"],
)
def test_grpo_and_rloo_cost_their_completions_and_the_tokens_of_each_pass_over_them(
    trainer_class, settings, num_passes, make_policy, tokenizer, problems, tmp_path
):
    seen = []

    def reward(prompts, completion_ids, trainer_state, **kwargs):
        if trainer.model.training:
            seen.extend(zip(prompts, completion_ids, strict=True))
        return [float(len(ids)) for ids in completion_ids]

    shared = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 6, "beta": 0.0}
    config_class = GRPOConfig if trainer_class is GRPOTrainer else RLOOConfig
    trainer = trainer_class(
        make_policy(),
        reward,
        config_class(**settings_of(tmp_path / "run", **(shared | settings))),
        train_dataset=problems,
        eval_dataset=problems.select([0]),
        processing_class=copy.deepcopy(tokenizer),
    )
    train(trainer)
    num_tokens = sum(len(tokenizer(prompt)["input_ids"]) + len(ids) for prompt, ids in seen)
    expected = NONE | {"completions": len(seen), "policy_tokens": num_passes * num_tokens}
    assert output_costs(tmp_path / "run") == expected


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    # 7 rows, 3 prompts a generation batch: two batches of 3 micro-batches an epoch, of which 2 make a step
    [(1, 6), (2, 12), (3, 12), (4, 18), (6, 24), (7, 30)],
)
def test_the_last_step_of_an_epoch_takes_what_is_left_of_it(num_steps, expected):
    settings = {
        "generation_batch_size": 6, "num_generations": 2, "steps_per_generation": 3, "num_iterations": 1,
        "gradient_accumulation_steps": 2, "number of rows": 7,
    }  # fmt: skip
    assert num_generated(settings, num_steps) == expected
    assert num_generated({}, num_steps) == 0


class Recorder(GenerativeRewardModel):
    """Notes what it scores and writes."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scored, self.written = [], []

    def score(self, prompts, references, completions, completion_ids, *args):
        self.scored += completion_ids
        return super().score(prompts, references, completions, completion_ids, *args)

    def score_with_states(self, prompts, references, completions, completion_ids, *args):
        self.scored += completion_ids
        return super().score_with_states(prompts, references, completions, completion_ids, *args)

    def _generate(self, *args, **kwargs):
        generated = super()._generate(*args, **kwargs)
        self.written += generated
        return generated

    def rewrite_ids(self, *args):
        return [[*ids[:-1], self.processing_class.eos_token_id] for ids in super().rewrite_ids(*args)]


@pytest.fixture
def make_online(make_policy, tokenizer, problems, tmp_path):
    def make(name="run", **settings):
        seen, rewrites = [], []

        def reward(prompts, completion_ids, **kwargs):
            seen.extend(zip(prompts, completion_ids, strict=True))
            return [float(len(ids) % 2) for ids in completion_ids]

        def verify(prompts, completion_ids, **kwargs):
            passed = [len(ids) % 2 == 0 for ids in completion_ids]
            rows = zip(prompts, completion_ids, passed, strict=True)
            rewrites.extend((prompt, ids) for prompt, ids, kept in rows if kept)
            return passed

        grm = Recorder(make_policy(sharpness=8, mixing=8), tokenizer, max_new_tokens=8, show_progress=False)
        config = settings_of(tmp_path / name, num_generations=2, max_completion_length=6, max_steps=4, **settings)
        config |= {"per_device_train_batch_size": 4, "rewrite_samples": "all"}
        trainer = OnlineRLMECTrainer(
            make_policy(), reward, OnlineRLMECConfig(**config), problems, processing_class=copy.deepcopy(tokenizer),
            grm=grm, rewrite_verifier=verify,
        )  # fmt: skip
        trainer.seen, trainer.rewrites = seen, rewrites
        return trainer

    return make


@pytest.mark.parametrize(
    ("settings", "num_passes"),
    [
        ({"token_credit": "place", "attempt_coef": 0.5}, 2),  # the policy term's and the distillation's
        ({"token_credit": "none"}, 0),  # rewrites alone
    ],
)
def test_online_training_costs_all_that_policy_and_reward_model_read_and_write(
    settings, num_passes, make_online, tokenizer, tmp_path
):
    trainer = make_online(**settings)
    train(trainer)

    def num_tokens(rows):
        return sum(len(tokenizer(prompt)["input_ids"]) + len(ids) for prompt, ids in rows)

    assert len(trainer.seen) == 16 and trainer.rewrites and trainer.grm.written
    assert output_costs(tmp_path / "run") == NONE | {
        "policy_tokens": num_passes * num_tokens(trainer.seen) + num_tokens(trainer.rewrites),
        "completions": 16,
        "grm_tokens_scored": sum(map(len, trainer.grm.scored)),
        "grm_tokens_generated": sum(map(len, trainer.grm.written)),
    }


def test_online_training_that_is_interrupted_costs_what_a_straight_one_does(make_online, tmp_path):
    train(make_online("straight"))
    train(make_online(), kill_at=3)
    train(make_online())
    costs = output_costs(tmp_path / "run")
    assert costs == output_costs(tmp_path / "straight")
    assert costs["policy_tokens"] > 0 and costs["grm_tokens_scored"] > 0


def test_an_online_training_that_an_earlier_version_began_has_no_counts_rather_than_wrong_ones(make_online, tmp_path):
    train(make_online(), kill_at=3)
    path = tmp_path / "run" / "checkpoint-2" / "trainer_state.json"
    state = json.loads(path.read_text())
    del state["stateful_callbacks"]["TrainingRecord"]["attributes"]["token_counts"]
    path.write_text(json.dumps(state))
    train(make_online())
    unknown = dict.fromkeys(["policy_tokens", "grm_tokens_scored", "grm_tokens_generated"])
    assert output_costs(tmp_path / "run") == NONE | unknown | {"completions": 16}


# --- Datasets --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, make_policy, make_rows, tokenizer):
    for name, sharpness in (("policy", 1.0), ("grm", 20.0)):
        for part in (make_policy(sharpness=sharpness), tokenizer):
            part.save_pretrained(tmp_path / name)
    save_wording(arithmetic.WORDING, tmp_path / "grm")
    arithmetic.make_arithmetic(warmup=0, train=6, validation=0, test=0)["train"].save_to_disk(tmp_path / "problems")
    rows = [{name: row[name] for name in SAMPLE_COLUMNS} for row in make_rows(9)]
    Dataset.from_list(rows).save_to_disk(tmp_path / "samples")
    return tmp_path


def run_sample(folder, name="sampled"):
    config = sample.SampleConfig(
        str(folder / name), "arithmetic", num_samples=3, temperature=1.0, max_new_tokens=40, shard_size=2
    )
    return sample.run(config, ProblemConfig(str(folder / "problems")), ModelConfig(str(folder / "policy")))


def run_score(folder, name="scored", **settings):
    settings = {"rewrite_max_new_tokens": 5, "shard_size": 4} | settings
    config = score.ScoreConfig(grm=str(folder / "grm"), task="arithmetic", **settings)
    rows = load_from_disk(folder / "samples")
    return score.run(config, rows, folder / name, ModelConfig(str(folder / "policy")))


def run_edit(folder, name="edits", teacher="task", configs=(), **settings):
    settings = {"shard_size": 4} | settings
    config = edit.EditConfig(str(folder / "samples"), str(folder / name), "arithmetic", teacher, **settings)
    return edit.run(config, *configs)


def test_sampling_costs_all_completions_also_those_that_do_not_end(folder):
    assert len(run_sample(folder)) < 18
    assert output_costs(folder / "sampled") == NONE | {"completions": 18}


@pytest.mark.parametrize(("checks_correct", "expected"), [(True, 9), (False, 3)])
def test_editing_costs_the_rows_that_the_teacher_is_asked_for(checks_correct, expected, folder):
    run_edit(folder, check_correct_samples=checks_correct)
    assert output_costs(folder / "edits") == NONE | {"teacher_edits": expected}


def test_an_api_teacher_costs_its_answers_also_those_that_are_of_no_use(folder, tokenizer):
    asked = Counter()
    rows = {row["completion"]: row for row in load_from_disk(folder / "samples")}

    def chat(body):
        text = body["messages"][-1]["content"]
        row = next(row for completion, row in rows.items() if completion in text)
        asked[row["completion"]] += 1
        if asked[row["completion"]] == 1 and not row["correct"]:
            return "nonsense", "stop"
        edited = arithmetic.edit([row["prompt"]], [row["reference"]], [row["completion"]])
        return json.dumps({"error_step": edited[0][0], "rewrite": edited[0][1]}), "stop"

    with FakeServer(tokenizer, chat=chat) as server:
        for _ in range(2):  # the second run finds all answers in the journal
            configs = (TeacherConfig(max_attempts=2), ServerConfig(server.url))
            run_edit(folder, teacher="policy", provider="server", configs=configs)
            assert output_costs(folder / "edits") == NONE | {"teacher_edits": asked.total()}
    assert asked.total() > 9, "some were asked again"


@pytest.mark.parametrize(("locate_by", "num_rewrites"), [("probability", 1), ("question", 1), ("probability", 3)])
def test_scoring_costs_the_tokens_that_are_scored_and_written_in_every_rewrite(
    locate_by, num_rewrites, folder, monkeypatch
):
    written = []
    generate = GenerativeRewardModel._generate

    def note(*args, **kwargs):
        written.extend(generate(*args, **kwargs))
        return written[-len(args[1]) :] if args[1] else []

    monkeypatch.setattr(GenerativeRewardModel, "_generate", note)
    scored = run_score(folder, locate_by=locate_by, num_rewrites=num_rewrites, attempt_topk=2)
    num_scored = sum(map(len, scored["token_probs"]))  # and their distributions, in another pass
    costs = NONE | {"grm_tokens_scored": 2 * num_scored, "grm_tokens_generated": sum(map(len, written))}
    assert output_costs(folder / "scored") == costs and costs["grm_tokens_generated"] > 0


@pytest.mark.parametrize("run", [run_sample, run_score, run_edit])
def test_a_dataset_whose_making_is_interrupted_costs_what_a_straight_one_does(run, folder, monkeypatch):
    run(folder, "straight")
    save = runner.save_rows
    num_saved = Counter()

    def save_or_die(*args):
        num_saved["shards"] += 1
        if num_saved["shards"] == 2:
            raise Killed
        save(*args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(runner, "save_rows", save_or_die)
        run(folder, "interrupted")
    run(folder, "interrupted")
    straight = output_costs(folder / "straight")
    assert output_costs(folder / "interrupted") == straight and sum(straight.values()) > 0


def test_shards_of_an_earlier_version_make_the_costs_unknown(folder, monkeypatch):
    save = runner.save_rows

    def save_or_die(rows, path):
        save(rows, path)
        if path.name.startswith("000000004"):
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(runner, "save_rows", save_or_die)
        run_edit(folder)
    (mark,) = folder.glob(".edits.rlmec_trl/*.shards/000000000-000000004/rlmec_trl.json")
    content = json.loads(mark.read_text())
    assert content.pop("costs") == {"teacher_edits": 4}
    mark.write_text(json.dumps(content))
    run_edit(folder)
    assert output_costs(folder / "edits")["teacher_edits"] is None


# --- Earlier versions ------------------------------------------------------------------------------------------------


def test_what_an_earlier_version_did_not_record_is_unknown_and_what_it_logged_is_read(make_offline, folder):
    run_edit(folder)
    mark = json.loads((folder / "edits" / "rlmec_trl.json").read_text())
    del mark["costs"]
    (folder / "edits" / "rlmec_trl.json").write_text(json.dumps(mark))
    unknown = dict.fromkeys(["completions", "teacher_edits", "grm_tokens_scored", "grm_tokens_generated"])
    assert output_costs(folder / "edits") == NONE | unknown
    assert output_costs(folder / "problems") == NONE | unknown, "no mark at all"

    train(make_offline("sft", logging_steps=3))
    path = folder / "run" / "trainer_state.json"
    costs, state = output_costs(folder / "run"), json.loads(path.read_text())
    del state["stateful_callbacks"]["TrainingRecord"]["attributes"]["num_tokens"]
    path.write_text(json.dumps(state))
    assert output_costs(folder / "run") == costs, "the last step is logged"
    state["log_history"] = [log for log in state["log_history"] if log["step"] < 6]
    path.write_text(json.dumps(state))
    assert output_costs(folder / "run") == NONE | {"policy_tokens": None}
    del state["stateful_callbacks"]
    path.write_text(json.dumps(state))
    assert output_costs(folder / "run") == dict.fromkeys(COSTS)
    path.unlink()
    assert output_costs(folder / "run") == dict.fromkeys(COSTS), "a model without the state of its training"


def test_files_cost_nothing_but_the_answers_of_evaluations(tmp_path):
    (tmp_path / "audit.json").write_text(json.dumps({"auc": 0.5}))
    (tmp_path / "test.json").write_text(json.dumps({"correct": 3, "total": 7}))
    assert output_costs(tmp_path / "audit.json") == NONE
    assert output_costs(tmp_path / "test.json") == NONE | {"completions": 7}


@pytest.mark.parametrize("value", ["5", -5, 1.5, float("nan"), True, [1], 10**400], ids=str)
def test_what_somebody_wrote_in_place_of_a_number_is_unknown_and_does_not_stop_the_report(value, tmp_path):
    costs = {"completions": value, "teacher_edits": 3, "dollars": 7}
    (tmp_path / "rlmec_trl.json").write_text(json.dumps({"key": "", "files": {}, "costs": costs}))
    assert output_costs(tmp_path) == NONE | {"completions": None, "teacher_edits": 3}
    (tmp_path / "test.json").write_text(json.dumps({"total": value}))
    assert output_costs(tmp_path / "test.json") == NONE | {"completions": None}


def test_samples_that_the_policys_stage_scores_itself_are_among_its_costs(make_offline, folder):
    train(make_offline("sft"))
    run_score(folder, "run-scored")
    alone, scored = output_costs(folder / "run"), output_costs(folder / "run-scored")
    assert job_costs(Job("run", "rlmec", {"grm": "x"}, "key"), folder) == add_costs([alone, scored])
    assert job_costs(Job("run", "rlmec", {}, "key"), folder) == alone


# --- What a model depends on -----------------------------------------------------------------------------------------


def costs_of_compare(chosen, **changes):
    """Each step of the demo and of GRPO costs one second, and has a bit of `policy_tokens` of its own."""
    demo, compared = (
        load_pipeline(ROOT / "recipes" / "arithmetic" / f"{name}.yaml") for name in ("pipeline", "compare")
    )
    grpo = [stage for stage in compared.stages if stage.name == "grpo"]
    pipeline = replace(compared, stages=[*demo.stages, *grpo])
    steps = plan_run(pipeline, 0)
    bits = {step.name: 1 << index for index, step in enumerate(steps)}
    models = {stage.evaluate: stage.name for stage in pipeline.stages if stage.evaluate is not None}

    def cost_of(job):
        return NONE | {"policy_tokens": bits[job.name], "seconds": 1} | changes.get(job.name, {})

    found = model_costs(models, steps, chosen, cost_of)

    def names(costs):
        return [name for name, bit in bits.items() if costs["policy_tokens"] & bit]

    return found, names


CHOSEN = {"rewrite_all": 0.1, "grpo": 5.0e-5}


def test_a_model_costs_the_stages_that_it_depends_on_and_no_others():
    found, names = costs_of_compare(CHOSEN)
    rewriting = ["samples", "edits", "grm", "scored"]
    assert {model: names(costs) for model, costs in found.models.items()} == {
        "start": [],
        "continued_sft": ["continued_sft"],
        "reference_sft": ["reference_sft"],
        "rft": ["samples", "rft"],
        "imitation_only": [*rewriting, "imitation_only"],
        "rlmec_paper": [*rewriting, "rlmec_paper"],
        "rewrite_all": [*rewriting, "rewrite_all-policy_coef-0.1"],
        "grpo": ["grpo-learning_rate-5e-05"],
    }
    assert found.shared_stages == names(found.shared) == ["task", "warmup"]
    assert found.models["rewrite_all"]["seconds"] == 5 and found.models["start"]["seconds"] == 0


def test_a_search_costs_the_other_candidates_and_the_evaluations_of_all():
    found, names = costs_of_compare(CHOSEN)
    assert {model: names(costs) for model, costs in found.search.items()} == {
        "rewrite_all": [
            "rewrite_all-policy_coef-0.0",
            "results/rewrite_all-policy_coef-0.0-validation.json",
            "results/rewrite_all-policy_coef-0.1-validation.json",
        ],
        "grpo": [
            "grpo-learning_rate-2.5e-05",
            "results/grpo-learning_rate-2.5e-05-validation.json",
            "results/grpo-learning_rate-5e-05-validation.json",
            "grpo-learning_rate-0.0001",
            "results/grpo-learning_rate-0.0001-validation.json",
        ],
    }


def test_an_unknown_figure_is_unknown_in_the_models_that_depend_on_it_alone():
    found, _ = costs_of_compare(CHOSEN, edits={"teacher_edits": None})
    unknown = [model for model, costs in found.models.items() if costs["teacher_edits"] is None]
    assert unknown == ["imitation_only", "rlmec_paper", "rewrite_all"]


def test_a_choice_that_all_models_share_is_in_none_of_them_and_a_single_model_shares_nothing():
    steps = [
        Job("a-1", "sft", {}, ""), Job("results/a-1", "evaluate", {}, "", ("a-1",)),
        Job("a-2", "sft", {}, ""), Job("results/a-2", "evaluate", {}, "", ("a-2",)),
        Choice("a", "lr", {1: ("a-1", "results/a-1"), 2: ("a-2", "results/a-2")}, ""),
        Job("b", "sft", {}, "", ("a",)),
    ]  # fmt: skip

    def cost_of(job):
        return NONE | {"seconds": 1}

    found = model_costs({"start": "a", "b": "b"}, steps, {"a": 2}, cost_of)
    assert [costs["seconds"] for costs in found.models.values()] == [0, 1] and found.search == {}
    assert found.shared_stages == ["a-1", "results/a-1", "a-2", "results/a-2"]
    alone = model_costs({"b": "b"}, steps, {"a": 2}, cost_of)
    assert (alone.models["b"]["seconds"], alone.search["b"]["seconds"]) == (2, 3)
    assert alone.shared_stages == [] and alone.shared["seconds"] == 0


def test_costs_of_several_seeds_are_added_up():
    def run(tokens, edits, seconds, shared):
        one = {"policy_tokens": tokens, "teacher_edits": edits, "seconds": seconds}
        return ModelCosts({"a": one}, {"a": one}, {"seconds": 1.0}, shared)

    costs, shared = report_costs([run(10, 3, 1.5, ["task", "x-1"]), run(5, None, 2.0, ["task", "x-2"])])
    total = {"policy_tokens": 15, "teacher_edits": None, "seconds": 3.5}
    assert costs == {"a": total | {"search": total}}
    assert shared == {"stages": ["task", "x-1", "x-2"], "seconds": 2.0}
