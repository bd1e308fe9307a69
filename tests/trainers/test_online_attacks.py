"""Unusual models, datasets and functions: online training handles them, or refuses them in one clear message."""

import copy
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import TrainerCallback
from trl import GRPOTrainer

from rlmec_trl import OnlineRLMECConfig, OnlineRLMECTrainer
from rlmec_trl.data.errors import ConfigError, DatasetError
from rlmec_trl.grm.generative_reward_model import GenerativeRewardModel
from rlmec_trl.grm.prompts import save_wording
from rlmec_trl.tasks.wording import WORDING


def reward_length(completions, **kwargs):
    return [float(len(completion) % 3 == 0) for completion in completions]


def passes(completions, **kwargs):
    return [True] * len(completions)


@pytest.fixture(scope="module")
def problems():
    from rlmec_trl.tasks.arithmetic import make_arithmetic

    return make_arithmetic(seed=0, warmup=0, train=8, validation=0, test=0)["train"]


@pytest.fixture
def make_grm(make_policy, tokenizer):
    def make(model=None, **settings):
        model = model or make_policy(sharpness=8, mixing=8)
        return GenerativeRewardModel(model, tokenizer, max_new_tokens=8, show_progress=False, **settings)

    return make


@pytest.fixture
def make_trainer(make_policy, tokenizer, problems, tmp_path):
    def make(model=None, reward_funcs=reward_length, problems=problems, config=None, **arguments):
        settings = {
            "output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 4, "num_generations": 2,
            "max_completion_length": 8, "max_steps": 1, "learning_rate": 1e-2, "logging_steps": 1,
            "save_strategy": "no", "report_to": [], "use_cpu": True, "bf16": False, "disable_tqdm": True,
            "rewrite_samples": "all",
        }  # fmt: skip
        arguments.setdefault("rewrite_verifier", passes)
        return OnlineRLMECTrainer(
            make_policy() if model is None else model,
            reward_funcs,
            OnlineRLMECConfig(**settings | (config or {})),
            problems,
            processing_class=copy.deepcopy(tokenizer),
            **arguments,
        )

    return make


def with_references(problems, references):
    return problems.remove_columns("reference").add_column("reference", references)


# --- Functions ---


def test_several_functions_may_be_a_tuple_and_must_be_callable(make_trainer):
    def ones(completion_ids, **kwargs):
        return [[1.0] * len(ids) for ids in completion_ids]

    def twos(completion_ids, **kwargs):
        return [[2.0] * len(ids) for ids in completion_ids]

    assert make_trainer(token_reward_funcs=(ones, twos)).token_reward_funcs == [ones, twos]
    with pytest.raises(ConfigError, match="`token_reward_funcs` must be functions, got 'ones'"):
        make_trainer(token_reward_funcs="ones")


def test_a_reward_function_that_changes_its_arguments_does_not_change_what_is_judged(make_trainer, make_grm):
    def changes(prompts, completions, completion_ids, **kwargs):
        for ids in completion_ids:
            ids.reverse()
        completions[:] = ["changed"] * len(completions)
        prompts[:] = ["changed"] * len(prompts)
        return [0.0, 1.0] * (len(completions) // 2)

    trainer = make_trainer(reward_funcs=changes, grm=make_grm())
    seen, judge = [], trainer._judge

    def record(inputs, prompts, completions, completion_ids, outcome):
        seen.append((prompts, completions, completion_ids))
        return judge(inputs, prompts, completions, completion_ids, outcome)

    trainer._judge = record
    trainer.train()
    ((prompts, completions, completion_ids),) = seen
    assert len(completions) == 4 and "changed" not in prompts
    assert completions == trainer._tokenizer.batch_decode(completion_ids, skip_special_tokens=True)


def test_the_reward_model_reads_what_the_policy_wrote_not_what_trl_parsed_of_it(
    make_trainer, make_grm, tokenizer, problems
):
    """The content of a message may leave out a reasoning part, or be None beside a call of a tool."""
    trainer = make_trainer(grm=make_grm())
    ids = tokenizer("59 - 16 is 43")["input_ids"]
    samples = ([problems[0]] * 2, [problems[0]["prompt"]] * 2)
    parsed = [[{"role": "assistant", "content": text}] for text in ("43", None)]
    credit = trainer._judge(*samples, parsed, [ids] * 2, [0.0, 1.0])
    plain = trainer._judge(*samples, ["59 - 16 is 43"] * 2, [ids] * 2, [0.0, 1.0])
    assert credit.values == plain.values and not math.isnan(credit.values[0][0])


@pytest.mark.parametrize("returned", [None, True, (passed for passed in [True] * 4), [True]])
def test_what_a_verifier_returns_must_be_a_list_with_a_value_for_each_rewrite(returned, make_trainer, make_grm):
    trainer = make_trainer(grm=make_grm(), rewrite_verifier=lambda **kwargs: returned)
    columns = {"prompts": ["a"] * 4, "completions": ["b"] * 4, "completion_ids": [[5]] * 4, "columns": {}}
    with pytest.raises(ConfigError, match="for 4 rewrites. It must return a list with one value for each"):
        trainer._check_rewrites(**columns)


# --- Datasets ---


def test_blank_references_are_none(make_trainer, make_grm, problems):
    trainer = make_trainer(problems=with_references(problems, ["", " \n"] * 4), grm=make_grm())
    trainer.train()
    assert trainer.state.log_history[0]["token_reward/grm/mean"] is None


def test_a_reference_that_is_no_text_is_named(make_trainer, make_grm, problems):
    trainer = make_trainer(problems=with_references(problems, list(range(8))), grm=make_grm())
    with pytest.raises(DatasetError, match=r"`reference` must be a text, or None where there is none, got \d \(int\)"):
        trainer.train()


def test_a_batch_without_a_reference_trains_beside_a_wider_reward_model(make_trainer, make_grm, tokenizer, problems):
    from rlmec_trl.tasks import arithmetic

    wide = arithmetic.make_policy(tokenizer, hidden_size=32, num_hidden_layers=1)
    trainer = make_trainer(
        problems=with_references(problems, [None] * 8), grm=make_grm(wide), config={"attempt_coef": 0.5}
    )
    trainer.train()
    assert trainer.state.log_history[0]["attempt_loss"] == 0.0


@pytest.mark.parametrize(
    ("dataset", "config", "said"),
    [
        ([{"prompt": "a"}], {}, "Dataset.from_list"),
        (IterableDataset.from_generator(lambda: iter([{"prompt": "a"}])), {}, "is a stream"),
        (Dataset.from_dict({"prompt": []}), {}, "has no rows"),
        (Dataset.from_dict({"prompt": ["a"]}), {"imitation_coef": 0.0}, "`imitation_coef` is 0, so no row"),
        (Dataset.from_dict({"prompt": ["a"]}), {"replay_fraction": 0.0}, "`replay_fraction` is 0, so no row"),
    ],
)
def test_a_replay_dataset_that_cannot_be_used_is_refused(dataset, config, said, make_trainer):
    with pytest.raises((ConfigError, DatasetError), match=said):
        make_trainer(replay_dataset=dataset, config=config)


def test_an_empty_attempt_whose_end_is_flagged_is_rewritten(make_grm, tokenizer):
    grm = make_grm()
    ids = [[tokenizer.eos_token_id]] * 2
    assert grm.flagged_steps(["", ""], ids, [[0.1], [0.9]]) == [0, -1]
    rewrites = grm.rewrite_ids(["Tom has 12 nuts."], ["12"], [""], ids[:1], [0])
    assert rewrites[0] != ids[0]


# --- Settings ---


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"token_credit": "place", "top_entropy_quantile": 0.2}, "`top_entropy_quantile` trains only on"),
        ({"edited_weight": 0.0, "unedited_weight": 0.0}, "nothing would be imitated"),
        ({"grm_init_kwargs": {"revision": "main"}}, "Set the field `grm_revision`"),
        ({"grm_init_kwargs": {"trust_remote_code": True}}, "Set the field `trust_remote_code`"),
        ({"grm_init_kwargs": "bfloat16"}, "must be a dictionary, on the command line"),
    ],
)
def test_settings_that_cannot_work_are_refused(config, said, make_trainer, make_grm):
    with pytest.raises(ConfigError, match=said):
        make_trainer(config=config, grm=make_grm())


def test_the_chat_template_arguments_of_the_config_reach_the_reward_model(
    make_trainer, make_policy, thinking_tokenizer, problems
):
    grm = GenerativeRewardModel(make_policy(), thinking_tokenizer, show_progress=False)
    trainer = make_trainer(grm=grm, config={"chat_template_kwargs": {"enable_thinking": False}})
    given, score = [], grm.score

    def record(*arguments):
        given.extend(arguments[-1])
        return score(*arguments)

    grm.score = record
    row = problems[0]
    rows = [row, row | {"chat_template_kwargs": {"enable_thinking": True}}, row | {"chat_template_kwargs": None}]
    trainer._judge(rows, [row["prompt"]] * 3, [""] * 3, [[thinking_tokenizer.eos_token_id]] * 3, [0.0] * 3)
    assert [kwargs["enable_thinking"] for kwargs in given] == [False, True, False]


# --- Reward models ---


@pytest.mark.parametrize("grm", [5, torch.nn.Linear(1, 1)])
def test_what_is_no_reward_model_is_refused(grm, make_trainer):
    with pytest.raises(ConfigError, match="`grm` must be a path, a name on the Hub, or a `GenerativeRewardModel`"):
        make_trainer(grm=grm)


def test_a_reward_model_that_is_the_policy_itself_is_refused_because_it_would_be_frozen(
    make_trainer, make_grm, make_policy
):
    policy = make_policy()
    with pytest.raises(ConfigError, match="is the policy's own"):
        make_trainer(policy, grm=make_grm(policy))
    assert all(parameter.requires_grad for parameter in policy.parameters())


def test_completions_with_ids_that_only_a_padded_vocabulary_has_are_not_judged(
    make_trainer, make_grm, make_policy, tokenizer, problems
):
    policy = make_policy()
    policy.resize_token_embeddings(len(tokenizer) + 4)
    trainer = make_trainer(policy, grm=make_grm(), config={"attempt_coef": 0.5})
    rows, prompts = [problems[0]] * 2, [problems[0]["prompt"]] * 2
    ids = [[5, len(tokenizer) + 1, 6], [5, 6, 7]]
    credit = trainer._judge(rows, prompts, tokenizer.batch_decode(ids), ids, [0.0, 1.0])
    assert all(map(math.isnan, credit.values[0])) and not any(map(math.isnan, credit.values[1]))


def test_rewrites_with_ids_that_the_policy_lacks_are_not_imitated(make_trainer, make_grm, tokenizer, problems):
    trainer = make_trainer(grm=make_grm())
    eos = tokenizer.eos_token_id
    rewrites = [[5, len(tokenizer) + 1, eos], [5, 6, eos]]
    verified = trainer._verified([problems[0]] * 2, problems["prompt"][:2], rewrites, [[5, eos]] * 2)
    assert verified == [None, rewrites[1]]


# --- A reward model that follows the policy ---


def test_sync_needs_the_weights_of_the_policys_architecture(make_trainer, make_grm, make_policy):
    with pytest.raises(ConfigError, match="`sync_grm` needs a reward model of the policy's architecture"):
        make_trainer(grm=make_grm(make_policy(num_hidden_layers=2)), config={"sync_grm": True})


class StopAt(TrainerCallback):
    """Ends a training as a kill after a checkpoint would."""

    def on_save(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def test_a_reward_model_that_follows_the_policy_is_resumed_too(make_trainer, make_grm, tmp_path):
    from rlmec_trl.stages.checkpoints import WRITTEN, check_complete

    def make(name, **settings):
        config = {
            "output_dir": str(tmp_path / name), "token_credit": "none", "imitation_coef": 0.0, "attempt_coef": 1.0,
            "sync_grm": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5, "max_steps": 2,
            "save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant",
        }  # fmt: skip
        return make_trainer(grm=make_grm(), config=config | settings)

    straight = make("straight", save_strategy="no")
    straight.train()
    killed = make("killed")
    killed.add_callback(StopAt())
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    checkpoint = tmp_path / "killed" / "checkpoint-1"
    check_complete(checkpoint)
    assert all(WRITTEN.fullmatch(path.name) for path in checkpoint.iterdir()), "the checkpoint would not be deleted"
    resumed = make("killed")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for mine, other in ((resumed.model, straight.model), (resumed.grm.model, straight.grm.model)):
        for parameter, expected in zip(mine.parameters(), other.parameters(), strict=True):
            assert torch.equal(parameter, expected)

    (checkpoint / "synced_grm.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no synced_grm.safetensors"):
        make("killed").train(resume_from_checkpoint=str(checkpoint))


# --- Adapters ---


LORA = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


@pytest.fixture
def base(tmp_path, make_policy, tokenizer):
    folder = str(tmp_path / "base")
    make_policy(sharpness=4).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def save_adapter(base, tmp_path, make_policy, tokenizer):
    """Save a reward model, or another model, as an adapter of the base model."""

    def save(name, **settings):
        adapted = get_peft_model(make_policy(sharpness=4), LoraConfig(**LORA | settings, init_lora_weights=False))
        adapted.peft_config["default"].base_model_name_or_path = base
        folder = str(tmp_path / name)
        adapted.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        save_wording(WORDING, folder)
        return folder

    return save


def adapted_policy(make_policy, base, adapter_name="default"):
    model = get_peft_model(make_policy(sharpness=4), LoraConfig(**LORA), adapter_name=adapter_name)
    model.peft_config[adapter_name].base_model_name_or_path = base
    return model


def test_an_adapter_by_path_is_refused_as_the_policy(save_adapter, make_trainer):
    with pytest.raises(ConfigError, match="is an adapter of"):
        make_trainer(save_adapter("policy"))


@pytest.mark.parametrize("policy_adapter", ["default", "student"])
def test_the_adapters_of_policy_and_reward_model_may_have_any_name(
    policy_adapter, base, save_adapter, make_trainer, make_policy, make_grm
):
    """It used to be noticed at the first checkpoint, which failed."""
    model = adapted_policy(make_policy, base, policy_adapter)
    model.load_adapter(save_adapter("grm"), adapter_name="judge", is_trainable=True)
    trainer = make_trainer(
        model,
        grm=make_grm(model, adapter_name="judge"),
        config={"attempt_coef": 0.5, "beta": 0.1 if policy_adapter == "default" else 0.0, "save_strategy": "steps"},
    )
    judge = {name: parameter.clone() for name, parameter in model.named_parameters() if ".judge." in name}
    trainer.train()
    optimized = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if ".judge." in name:
            assert torch.equal(parameter, judge[name]) and parameter.grad is None and id(parameter) not in optimized
        assert parameter.requires_grad == (f".{policy_adapter}." in name), name
    checkpoint = Path(trainer.args.output_dir, "checkpoint-1")
    assert not list(checkpoint.rglob("judge")) and "judge" in model.peft_config


def test_a_saved_policy_loads_without_the_adapter_of_the_reward_model(
    base, save_adapter, make_trainer, make_policy, tmp_path
):
    trainer = make_trainer(base, grm=save_adapter("grm"), peft_config=LoraConfig(**LORA))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = PeftModel.from_pretrained(make_policy(sharpness=4), str(tmp_path / "saved"))
    assert list(loaded.peft_config) == ["default"]
    ids = torch.tensor([[5, 6, 7]])
    logits = trainer.model(ids).logits
    torch.testing.assert_close(loaded(ids).logits, logits)
    torch.testing.assert_close(trainer.model.merge_and_unload()(ids).logits, logits)


def test_a_policy_adapter_with_another_name_shares_the_base_model(base, save_adapter, make_trainer, make_policy):
    trainer = make_trainer(adapted_policy(make_policy, base, "student"), grm=save_adapter("grm"))
    assert trainer.grm.model is trainer.model


def test_the_base_model_is_not_shared_where_that_would_ignore_a_setting(base, save_adapter, make_trainer, make_policy):
    folder = save_adapter("grm")
    trainer = make_trainer(
        base, grm=folder, peft_config=LoraConfig(**LORA), config={"grm_init_kwargs": {"dtype": "bfloat16"}}
    )
    assert trainer.grm.model is not trainer.model and trainer.grm.model.dtype == torch.bfloat16
    policy = adapted_policy(make_policy, base)
    policy.peft_config["default"].revision = "v2"  # the reward model was trained on another one
    assert make_trainer(policy, grm=folder).grm.model is not policy


@pytest.mark.parametrize(
    ("name", "said"), [("nobody", "no adapter 'nobody'.*'default'"), ("default", "which is the policy's own")]
)
def test_an_adapter_that_cannot_be_the_reward_model_is_refused(name, said, base, make_trainer, make_policy, make_grm):
    model = adapted_policy(make_policy, base)
    with pytest.raises(ConfigError, match=said):
        make_trainer(model, grm=make_grm(model, adapter_name=name))


def test_an_adapter_of_another_model_is_no_part_of_the_policy(base, make_trainer, make_policy, make_grm):
    other = adapted_policy(make_policy, base)
    trainer = make_trainer(grm=make_grm(other, adapter_name="default"), config={"save_strategy": "steps"})
    trainer.train()
    assert all(parameter.grad is None for parameter in other.parameters())
    assert Path(trainer.args.output_dir, "checkpoint-1", "model.safetensors").is_file()


@pytest.mark.parametrize("own_head", [True, False])
def test_each_adapter_is_distilled_with_its_own_head(own_head, base, save_adapter, make_trainer):
    """`modules_to_save` gives an adapter a head of its own, which is not the active one while the policy learns."""
    own, plain = {"modules_to_save": ["lm_head"]}, {}
    trainer = make_trainer(
        base,
        grm=save_adapter("grm", **(own if own_head else plain)),
        peft_config=LoraConfig(**LORA, **(plain if own_head else own)),
        config={"token_credit": "none", "imitation_coef": 0.0, "attempt_coef": 1.0, "reward_baseline": 0.0},
    )
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lm_head.modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter))
    seen, compute = [], OnlineRLMECTrainer._attempt_loss

    def record(self, model, inputs, mode):
        loss = compute(self, model, inputs, mode)
        seen.append((inputs, loss.item()))
        return loss

    row = trainer.train_dataset[0]
    recorded, score = [], trainer.grm.score_with_states

    def record_score(*arguments):
        recorded.append(arguments)
        return score(*arguments)

    trainer.grm.score_with_states = record_score
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnlineRLMECTrainer, "_attempt_loss", record)
        trainer.model.train()
        inputs = GRPOTrainer._prepare_inputs(trainer, [row] * 4)
        trainer._step, trainer.current_gradient_accumulation_steps = 0, 1
        loss = trainer._compute_loss(trainer.model, inputs).item()

    prompts, references, completions, completion_ids = recorded[0][:4]
    total, count = 0.0, 0
    top_ids, top_logps = trainer.grm.attempt_topk(prompts, references, completions, completion_ids, k=60)
    for prompt, ids, all_ids, all_logps in zip(prompts, completion_ids, top_ids, top_logps, strict=True):
        prompt_ids = trainer._tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            logits = trainer.model(torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1]
        logps = logits.log_softmax(dim=-1)
        targets = torch.zeros_like(logps).scatter(-1, torch.tensor(all_ids), torch.tensor(all_logps))
        total += (logps.exp() * (logps - targets)).sum().item()
        count += len(ids)
    assert loss == pytest.approx(total / count, rel=1e-4)
