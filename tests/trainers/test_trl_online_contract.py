"""
The private parts of `GRPOTrainer` that `OnlineRLMECTrainer` overrides or reads, and the helpers it takes from TRL, one
test each, so that a new release fails here with the name of what has changed.
"""

import asyncio
import copy
import functools
import inspect
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.distributed import DistributedBackend
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer.callbacks import SyncRefModelCallback
from trl.trainer.utils import (
    add_fused_lm_head,
    get_callable_name,
    is_async_callable,
    shuffle_sequence_dict,
    shutdown_event_loop_in_daemon,
    split_tensor_dict,
    start_event_loop_in_daemon,
    use_adapter,
)

from rlmec_trl import OnlineRLMECTrainer


PROMPTS = ["Tom has 1 2 nuts.", "Tom has 3 4 nuts, loses 5."]


def parameters(function):
    return list(inspect.signature(function).parameters)


def alternate(completions, **kwargs):
    """An outcome that differs within every group."""
    return [float(index % 2) for index in range(len(completions))]


@pytest.fixture
def make_trainer(make_policy, tokenizer, tmp_path):
    def make(trainer_class=GRPOTrainer, reward_funcs=alternate, rollout_func=None, **settings):
        config = {
            "per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 6, "max_steps": 1,
            "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True, "bf16": False,
            "disable_tqdm": True,
        }  # fmt: skip
        return trainer_class(
            make_policy(),
            reward_funcs,
            GRPOConfig(str(tmp_path), **config | settings),
            Dataset.from_dict({"prompt": PROMPTS * 4, "answer": ["12", "29"] * 4}),
            processing_class=copy.deepcopy(tokenizer),
            rollout_func=rollout_func,
        )

    return make


def generate(trainer):
    """A batch of two groups of two."""
    trainer.model.train()
    return trainer._generate_and_score_completions([{"prompt": PROMPTS[index // 2]} for index in range(4)])


# --- What is overridden ----------------------------------------------------------------------------------------------


def test_our_constructor_takes_what_grpo_trainer_takes_in_its_order():
    """... and more by name, which help() shows too."""
    theirs = inspect.signature(GRPOTrainer.__init__).parameters
    shown = inspect.signature(OnlineRLMECTrainer.__init__).parameters
    ours = ["token_reward_funcs", "grm", "replay_dataset", "rewrite_verifier"]
    assert list(shown) == [*theirs, *ours] and list(theirs)[:4] == ["self", "model", "reward_funcs", "args"]
    for name, parameter in theirs.items():
        assert shown[name].default == (None if name == "reward_funcs" else parameter.default), name
    # These are looked at before `GRPOTrainer` is
    assert {"environment_factory", "tools", "rollout_func", "train_dataset"} <= theirs.keys()


def test_what_is_overridden_takes_what_ours_takes():
    names = ["_calculate_rewards", "_generate_and_score_completions", "_compute_loss", "_save"]
    for name in [*names, "_save_optimizer_and_scheduler", "_load_optimizer_and_scheduler"]:
        assert parameters(getattr(OnlineRLMECTrainer, name)) == parameters(getattr(GRPOTrainer, name)), name


def test_calculate_rewards_gets_the_completions_of_this_process_and_returns_the_rewards_of_all(
    make_trainer, monkeypatch
):
    """A row for each completion of all processes in their order, a column for each function."""
    calls = []

    class Spy(GRPOTrainer):
        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            calls.append((inputs, prompts, completions, completion_ids_list, rewards))
            return rewards

    def given(completions, answer, log_extra, log_metric, trainer_state, **kwargs):
        assert "prompts" in kwargs and "completion_ids" in kwargs
        return [None if index == 1 else float(value) for index, value in enumerate(answer)]

    trainer = make_trainer(Spy, [alternate, given])
    trainer.train()
    ((inputs, prompts, completions, completion_ids, rewards),) = calls
    assert [row["prompt"] for row in inputs] == prompts and len(completions) == len(completion_ids) == 4
    texts = trainer._tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    assert texts == completions and all(type(token) is int for ids in completion_ids for token in ids)
    assert rewards.shape == (4, 2) and rewards[:, 0].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert rewards[1, 1].isnan() and rewards[0, 1] == float(inputs[0]["answer"])

    # As if there were a second process: its rewards come after those of the first
    gather = "trl.trainer.grpo_trainer.gather"
    monkeypatch.setattr(gather, lambda local: torch.cat([local, local + 1]))
    both = GRPOTrainer._calculate_rewards(trainer, inputs, prompts, completions, completion_ids)
    assert both.shape == (8, 2) and both[4:, 0].tolist() == [1.0, 2.0, 1.0, 2.0]


def test_generate_and_score_completions_returns_the_masks_and_advantages_that_we_read(make_trainer):
    output = generate(make_trainer())
    assert output["prompt_ids"].shape == output["prompt_mask"].shape
    assert output["completion_ids"].shape == output["completion_mask"].shape
    assert len(output["prompt_ids"]) == len(output["completion_ids"]) == 4
    assert output["advantages"].shape == (4,) and output["advantages"].dtype == torch.float32
    signs = output["advantages"].sign().tolist()
    assert signs == [-1.0, 1.0, -1.0, 1.0], "the rows are in the order of the inputs"
    assert output["prompt_mask"][:, -1].all(), "prompts are padded on the left"
    assert output["completion_mask"][:, 0].all(), "completions are padded on the right"
    assert output["num_items_in_batch"].shape == () and "tool_mask" not in output


def test_the_tool_mask_tells_the_tokens_of_tools(make_trainer):
    def rollout(prompts, trainer):
        lengths = range(2, 2 + len(prompts))
        return {
            "prompt_ids": [[4, 5]] * len(prompts),
            "completion_ids": [[6] * length for length in lengths],
            "logprobs": [[-1.0] * length for length in lengths],
            "env_mask": [[0] + [1] * (length - 1) for length in lengths],
        }

    output = generate(make_trainer(rollout_func=rollout))
    assert output["tool_mask"].shape == output["completion_mask"].shape
    assert not output["tool_mask"][:, 0].any() and output["tool_mask"][3].tolist() == [0, 1, 1, 1, 1]


def test_lists_and_counts_that_we_add_to_a_batch_stay_with_their_completions():
    batch = {
        "prompt_ids": torch.arange(6)[:, None],
        "imitation": [[{"row": index}] for index in range(6)],
        "teacher_states": torch.arange(6.0)[:, None, None].expand(6, 2, 3),
        "num_weighted_in_batch": torch.tensor(7.0),
    }
    parts = split_tensor_dict(shuffle_sequence_dict(batch), 3)
    assert len(parts) == 3
    seen = []
    for part in parts:
        rows = part["prompt_ids"][:, 0].tolist()
        assert [examples[0]["row"] for examples in part["imitation"]] == rows
        assert part["teacher_states"][:, 0, 0].tolist() == rows
        assert part["num_weighted_in_batch"] == 7.0 and part["num_weighted_in_batch"].shape == ()
        seen += rows
    assert sorted(seen) == list(range(6))


def test_what_we_add_to_a_batch_reaches_the_loss(make_trainer):
    seen = []

    class Spy(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            return output | {"imitation": output["completion_ids"].tolist(), "count": torch.tensor(4.0)}

        def _compute_loss(self, model, inputs):
            seen.append(inputs)
            return super()._compute_loss(model, inputs)

    make_trainer(Spy, per_device_train_batch_size=2, gradient_accumulation_steps=2).train()
    assert len(seen) == 2
    for inputs in seen:
        assert inputs["imitation"] == inputs["completion_ids"].tolist() and inputs["count"] == 4.0


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "vespo"])
def test_compute_loss_takes_an_advantage_for_each_token(loss_type, make_trainer):
    """The same for all tokens, it is that of the completion; where it is zero, nothing is learned."""
    trainer = make_trainer(loss_type=loss_type)
    trainer.current_gradient_accumulation_steps = 1
    inputs = generate(trainer)
    spread = inputs["advantages"].unsqueeze(-1).expand(inputs["completion_ids"].shape)
    first = torch.zeros_like(spread)
    first[:, 0] = 1.0

    def gradient(advantages):
        trainer.model.zero_grad()
        trainer._compute_loss(trainer.model, inputs | {"advantages": advantages}).backward()
        return trainer.model.get_input_embeddings().weight.grad.clone()

    whole = gradient(inputs["advantages"])
    assert whole.abs().max() > 0
    torch.testing.assert_close(gradient(spread.contiguous()), whole)
    assert gradient(torch.zeros_like(spread)).abs().max() == 0
    placed = gradient(spread * first)
    assert placed.abs().max() > 0 and not torch.allclose(placed, whole)


def test_a_batch_of_completions_is_shared_out_as_we_share_out_our_counts(make_trainer):
    """`num_items_in_batch` of a generation batch, times accumulation steps, by steps per generation."""
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    trainer = make_trainer(loss_type="dapo", **settings)
    seen, compute = [], trainer._compute_loss

    def record(model, inputs):
        seen.append((trainer.current_gradient_accumulation_steps, inputs["num_items_in_batch"].item()))
        return compute(model, inputs)

    trainer._compute_loss = record
    trainer.train()
    assert trainer.args.steps_per_generation == 4
    assert [steps for steps, _ in seen] == [2, 2]
    inputs = trainer._buffered_inputs
    assert len(inputs) == 4
    total = sum(int(part["completion_mask"].sum()) for part in inputs)
    assert [count for _, count in seen] == [total, total]
    trainer.current_gradient_accumulation_steps = 2
    ones = inputs[0] | {"advantages": torch.ones(1), "old_per_token_logps": None}
    loss = compute(trainer.model.train(), ones).item()
    assert loss == pytest.approx(-int(inputs[0]["completion_mask"].sum()) / (total * 2 / 4))


# --- What is read ----------------------------------------------------------------------------------------------------


def test_attributes_of_grpo_that_we_read(make_trainer):
    trainer = make_trainer(temperature=0.7)
    assert trainer.eos_token_ids == [trainer._tokenizer.eos_token_id]
    assert trainer.temperature == 0.7 and trainer.max_completion_length == 6
    assert trainer._is_vlm is False and trainer.is_fsdp_enabled is False and trainer.environments is None
    assert trainer.beta == 0.0 and trainer.aux_loss_enabled is False and trainer._entropy_bonus_enabled is False
    assert trainer.reward_funcs == [alternate]
    assert set(trainer._metrics) == {"train", "eval"}
    assert trainer.args.ref_model_sync_steps and trainer.args.ref_model_mixup_alpha


def test_what_is_logged_of_completions_stands_in_the_table_and_metrics_are_averaged(make_trainer, tmp_path):
    class Spy(GRPOTrainer):
        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            self._log_completion_extra("ours", [[float(len(ids))] for ids in completion_ids_list])
            self._log_metric("scalar", 3.0)
            # NaN is no value
            self._metrics["train"]["ours/mean"] += [1.0, float("nan"), 3.0]
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            # The table is written at the end of a step, so this is not too late
            self._logs["extra"]["later"].extend(range(4))
            return output

    trainer = make_trainer(Spy, log_completions=True)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["ours/mean"] == 2.0 and log["scalar"] == 3.0
    (path,) = tmp_path.rglob("*.parquet")
    table = pd.read_parquet(path)
    assert [len(value) for value in table["ours"]] == [1] * 4 and table["later"].tolist() == [0, 1, 2, 3]


def test_grpo_prints_no_table_of_no_completions_and_keeps_what_it_logs(make_trainer, capsys):
    class Spy(GRPOTrainer):
        def log(self, logs, start_time=None):
            self.num_completions_to_print = 0
            super().log(logs, start_time)

    trainer = make_trainer(Spy, log_completions=True)
    trainer.train()
    assert "Prompt" not in capsys.readouterr().out
    logged = trainer._logs
    columns = [logged["prompt"], logged["completion"], logged["rewards"]["alternate"], logged["advantages"]]
    assert [len(column) for column in columns] == [4] * 4 and dict(logged["extra"]) == {}


@pytest.mark.parametrize("entropy_coef", [0.0, 0.1])
def test_trl_logs_the_policy_loss_only_with_an_entropy_bonus(entropy_coef, make_trainer):
    """Without it, we log the metric of this name."""
    trainer = make_trainer(entropy_coef=entropy_coef)
    trainer.train()
    assert trainer._entropy_bonus_enabled == ("policy_loss" in trainer.state.log_history[0]) == (entropy_coef > 0)


def test_the_fused_lm_head_of_grpo_divides_logits_by_the_temperature(policy, make_trainer):
    ids = torch.arange(3, 9).reshape(1, 6)
    logits = policy(ids).logits[:, :-1].detach()
    expected = (logits / 0.5).log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    add_fused_lm_head(policy, temperature=0.5)
    torch.testing.assert_close(policy(ids, labels=ids, fused_lm_head=True).log_probs, expected)
    # `GRPOTrainer` adds it, with its own
    model = make_trainer(temperature=0.5).model
    torch.testing.assert_close(model(ids, labels=ids, fused_lm_head=True).log_probs, expected)


def test_use_adapter_switches_and_switches_back_with_what_is_trained(policy):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(policy, lora)
    model.add_adapter("grm", lora)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    ids = torch.arange(3, 9).reshape(1, 6)
    before = model(ids).logits
    with pytest.raises(RuntimeError), use_adapter(model, "grm"):
        assert model.active_adapter == "grm" and not torch.allclose(model(ids).logits, before)
        raise RuntimeError("also where the model fails")
    assert model.active_adapter == "default" and torch.equal(model(ids).logits, before)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained


def test_functions_are_named_and_awaited_as_reward_functions_are():
    async def judge():
        return 3

    class Judge:
        async def __call__(self):
            return 3

    assert get_callable_name(judge) == get_callable_name(functools.partial(judge)) == "judge"
    assert get_callable_name(Judge()) == "Judge"
    assert all(map(is_async_callable, [judge, functools.partial(judge), Judge()]))
    assert not is_async_callable(alternate)
    thread, loop, ready = start_event_loop_in_daemon(name="test")
    assert ready.wait(30) and thread.daemon
    assert asyncio.run_coroutine_threadsafe(judge(), loop).result(30) == 3
    shutdown_event_loop_in_daemon(thread, loop)
    thread.join(30)
    assert not thread.is_alive()


def test_the_callback_that_syncs_a_reference_model_moves_any_model(make_policy):
    assert parameters(SyncRefModelCallback.__init__) == ["self", "ref_model", "accelerator"]
    policy, other = make_policy(sharpness=2.0), make_policy()
    before = other.get_input_embeddings().weight.detach().clone()
    callback = SyncRefModelCallback(ref_model=other, accelerator=SimpleNamespace(unwrap_model=lambda model: model))
    args = SimpleNamespace(ref_model_sync_steps=2, ref_model_mixup_alpha=0.25)
    AcceleratorState(cpu=True)  # which it asks for DeepSpeed
    for step, share in ((1, 0.0), (2, 0.25)):
        callback.on_step_end(args, SimpleNamespace(global_step=step), None, model=policy)
        moved = before + share * (policy.get_input_embeddings().weight - before)
        torch.testing.assert_close(other.get_input_embeddings().weight, moved)


def test_save_goes_through_save_pretrained_of_the_model_which_takes_the_adapters_to_save(make_trainer, tmp_path):
    from peft import PeftModel

    trainer, folders = make_trainer(), []
    trainer.model.save_pretrained = lambda folder, state_dict, is_main_process: folders.append(folder)
    trainer._save(str(tmp_path))
    assert folders == [str(tmp_path)]
    assert "selected_adapters" in parameters(PeftModel.save_pretrained)


def test_vllm_is_sent_modules_of_all_adapters_and_none_that_is_wrapped_for_them(policy):
    from peft import LoraConfig, get_peft_model

    lora = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(policy, LoraConfig(**lora))
    model.add_adapter("grm", LoraConfig(**lora, modules_to_save=["lm_head"]))
    generation = VLLMGeneration.__new__(VLLMGeneration)
    generation.model = model
    generation._dist = DistributedBackend(SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=None)))
    names = [name for name, _ in generation._iter_named_params()]
    assert "lm_head.modules_to_save.grm.weight" in names and "lm_head.weight" not in names
    assert not any("lora" in name for name in names)


def test_liger_kernels_replace_layers_and_not_the_forward_of_the_model(make_trainer):
    with pytest.warns(FutureWarning, match="use_liger_kernel"):
        trainer = make_trainer(use_liger_kernel=True)
    assert trainer.args.liger_kernel_config == {"fused_linear_cross_entropy": False}
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match="fused_linear_cross_entropy"):
        make_trainer(use_liger_kernel=True, liger_kernel_config={"fused_linear_cross_entropy": True})
