"""
The private parts of TRL and Transformers that the trainers rely on, one test each, so that a new release fails here
with the name of what has changed rather than in a user's training run.
"""

import inspect
import json
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import constants as fsdp_constants
from datasets import Dataset
from transformers import Trainer, TrainerCallback
from transformers import trainer as trainer_module
from transformers.trainer_callback import ExportableState
from transformers.trainer_jit_checkpoint import CheckpointManager
from transformers.trainer_pt_utils import find_batch_size
from transformers.training_args import ParallelMode
from trl import DPOTrainer, GRPOTrainer, RewardTrainer, SFTConfig, SFTTrainer
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

from rlmec_trl import GRMConfig, GRMTrainer, RLMECConfig, RLMECTrainer


OFF_LINE = {
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "disable_tqdm": True,
}


def parameters(function):
    return list(inspect.signature(function).parameters)


@pytest.fixture
def make_sft_trainer(policy, tokenizer, tmp_path):
    def make(trainer_class=SFTTrainer, num_eval_rows=None, **config):
        rows = [{"prompt": "Tom has 1 2 nuts.", "completion": f" The answer is {index}"} for index in range(8)]
        return trainer_class(
            model=policy,
            args=SFTConfig(**({"output_dir": str(tmp_path), "max_steps": 2} | OFF_LINE | config)),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=None if num_eval_rows is None else Dataset.from_list(rows[:num_eval_rows]),
            processing_class=tokenizer,
        )

    return make


def test_the_trainers_of_trl_have_one_base_class():
    assert all(issubclass(each, _BaseTrainer) for each in (SFTTrainer, GRPOTrainer, DPOTrainer, RewardTrainer))
    assert not issubclass(Trainer, _BaseTrainer)


@pytest.mark.parametrize("name", ["SFTTrainer", "RLMECTrainer", "GRMTrainer"])
def test_prepare_dataset_takes_what_we_override(name):
    trainer_class = {"SFTTrainer": SFTTrainer, "RLMECTrainer": RLMECTrainer, "GRMTrainer": GRMTrainer}[name]
    assert parameters(trainer_class._prepare_dataset) == [
        "self",
        "dataset",
        "processing_class",
        "args",
        "packing",
        "formatting_func",
        "dataset_name",
    ]


def test_prepare_dataset_is_called_for_every_set_and_in_evaluate(make_sft_trainer):
    calls = []

    class Spy(SFTTrainer):
        def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
            calls.append((dataset_name, args.seed))
            return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)

    trainer = make_sft_trainer(Spy)
    trainer.evaluate(Dataset.from_list([{"prompt": "Tom", "completion": " has"}]))
    assert calls == [("train", 42), ("eval", 42)]


def test_prepare_dataset_keeps_ready_labels(make_sft_trainer, tokenizer):
    """`GRMTrainer` passes `input_ids` and `labels` on and relies on both being truncated to `max_length`."""
    trainer = make_sft_trainer(max_length=5)
    ready = Dataset.from_dict({"input_ids": [list(range(3, 11))], "labels": [[-100, -100, *range(5, 11)]]})
    prepared = trainer._prepare_dataset(ready, tokenizer, trainer.args, False, None, "train")
    assert prepared["input_ids"][0] == [3, 4, 5, 6, 7]
    assert prepared["labels"][0] == [-100, -100, 5, 6, 7]


def test_set_signature_columns_if_needed_decides_what_the_collator_sees(make_sft_trainer):
    assert parameters(SFTTrainer._set_signature_columns_if_needed) == ["self"]

    class Spy(SFTTrainer):
        def _set_signature_columns_if_needed(self):
            if self._signature_columns is None:
                self._signature_columns = ["labels"]

    trainer = make_sft_trainer(Spy)
    seen = []

    def collate(examples):
        seen.extend(examples)
        return {"labels": torch.zeros(len(examples))}

    trainer.data_collator = collate
    next(iter(trainer.get_train_dataloader()))
    assert {name for example in seen for name in example} == {"labels"}


@pytest.mark.parametrize("trainer_class", [SFTTrainer, RLMECTrainer, GRMTrainer])
def test_get_batch_samples_prediction_step_evaluation_loop_and_load_from_checkpoint_take_what_we_override(
    trainer_class,
):
    assert parameters(trainer_class.get_batch_samples) == ["self", "epoch_iterator", "num_batches", "device"]
    assert parameters(trainer_class._load_from_checkpoint) == ["self", "resume_from_checkpoint", "model"]
    step = ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"]
    assert parameters(trainer_class.prediction_step) == step
    loop = ["self", "dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"]
    assert parameters(trainer_class.evaluation_loop) == loop


def test_the_active_dataloader_is_the_one_whose_batch_is_collected_or_evaluated(make_sft_trainer):
    """... and it knows which batch is its last. Rows that fill up a batch are told from it."""
    seen = []

    class Spy(SFTTrainer):
        def note(self, kind, batch):
            dataloader = self.accelerator.gradient_state.active_dataloader
            seen.append((kind, len(dataloader.dataset), dataloader.end_of_dataloader))
            return batch

        def get_batch_samples(self, epoch_iterator, num_batches, device):
            noting = map(lambda batch: self.note("train", batch), epoch_iterator)
            return super().get_batch_samples(noting, num_batches, device)

        def prediction_step(self, model, inputs, *others, **kwargs):
            return super().prediction_step(model, self.note("eval", inputs), *others, **kwargs)

    config = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "per_device_eval_batch_size": 1}
    trainer = make_sft_trainer(Spy, num_eval_rows=2, eval_strategy="steps", eval_steps=1, **config)
    trainer.train()
    evaluated = [("eval", 2, False), ("eval", 2, True)]
    first = [("train", 8, False)] * 3
    assert seen == first + evaluated + [("train", 8, True)] + evaluated


def test_get_num_items_in_batch_is_called_once_an_optimizer_step(make_sft_trainer):
    assert parameters(Trainer._get_num_items_in_batch) == ["self", "batch_samples", "device"]
    calls, given = [], []

    class Spy(SFTTrainer):
        def _get_num_items_in_batch(self, batch_samples, device):
            result = torch.tensor([3.0, 5.0])  # ours has a count for each term
            calls.append((len(batch_samples), result))
            return result

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            given.append(num_items_in_batch)
            return super().compute_loss(model, inputs, num_items_in_batch=torch.tensor(1))

    trainer = make_sft_trainer(Spy, per_device_train_batch_size=1, gradient_accumulation_steps=3)
    trainer.train()
    assert [num_batches for num_batches, _ in calls] == [3, 3]
    # Every micro-batch of a step gets the same object
    assert [id(value) for value in given] == [id(result) for _, result in calls for _ in range(3)]


@pytest.mark.parametrize(("is_scaled", "share"), [(True, 1.0), (False, 0.25)])
def test_loss_is_scaled_for_ga_keeps_the_loss_from_being_divided(is_scaled, share, make_sft_trainer):
    class Spy(SFTTrainer):
        loss_is_scaled_for_ga = is_scaled

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return sum(parameter.sum() for parameter in model.parameters()) * 0.0 + 8.0

    trainer = make_sft_trainer(Spy, gradient_accumulation_steps=4)
    trainer.current_gradient_accumulation_steps = 4
    loss = trainer.training_step(trainer.model, {"labels": torch.zeros(1)}, num_items_in_batch=torch.tensor(2.0))
    assert loss.item() == 8.0 * share


def test_accelerate_does_not_divide_the_loss_again(make_sft_trainer):
    """Under Transformers 5.2 to 5.5.0 it did, and the gradients were too small by the accumulation steps."""
    assert make_sft_trainer(gradient_accumulation_steps=4).accelerator.gradient_accumulation_steps == 1


def test_attributes_that_the_loss_and_the_log_read(make_sft_trainer, tokenizer):
    trainer = make_sft_trainer()
    assert set(trainer._metrics) == {"train", "eval"}
    assert trainer._total_train_tokens == 0
    assert trainer.get_tp_size() == 1
    assert trainer._tokenizer is tokenizer
    assert trainer.aux_loss_enabled is False
    assert trainer.router_aux_loss_coef == 0.0
    assert trainer.accelerator.num_processes == 1
    assert trainer._signature_columns is None


def test_log_averages_metrics_and_prefixes_those_of_an_evaluation(make_sft_trainer):
    trainer = make_sft_trainer()
    trainer.model.eval()
    trainer._metrics["eval"]["kl"] = [1.0, 3.0]
    logs = {}
    trainer.log(logs)
    assert logs["eval_kl"] == 2.0
    assert not trainer._metrics["eval"]


def test_prediction_step_asks_for_outputs_only_where_there_are_metrics(make_sft_trainer):
    asked = []

    class Spy(SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            asked.append(return_outputs)
            return torch.tensor(1.0)

    trainer = make_sft_trainer(Spy)
    trainer.evaluate(trainer.train_dataset)
    assert asked and not any(asked)


def test_the_fused_output_has_the_fields_we_read():
    fields = set(inspect.signature(FusedCausalLMOutput).parameters)
    assert fields >= {"log_probs", "entropy", "is_top1", "label_mask", "aux_loss"}


def test_add_fused_lm_head_takes_fused_lm_head_and_scores_the_next_token(policy):
    assert set(parameters(add_fused_lm_head)) >= {"model", "cast_lm_head_to_fp32", "outputs"}
    input_ids = torch.arange(6).reshape(1, 6)
    labels = input_ids.clone()
    labels[:, :3] = -100
    expected = policy(input_ids).logits[:, :-1].log_softmax(-1).gather(-1, input_ids[:, 1:, None])[..., 0]
    add_fused_lm_head(policy, outputs=("log_probs", "entropy", "is_top1"))
    outputs = policy(input_ids=input_ids, labels=labels, fused_lm_head=True)
    assert outputs.log_probs.shape == outputs.entropy.shape == outputs.is_top1.shape == (1, 5)
    assert outputs.label_mask.tolist() == [[False, False, True, True, True]]
    torch.testing.assert_close(outputs.log_probs, expected * outputs.label_mask)
    # Without the argument the model is unchanged: it generates and returns logits
    assert policy(input_ids).logits.shape == (1, 6, policy.config.vocab_size)


def test_add_fused_lm_head_calls_the_base_model_so_that_a_hook_sees_its_hidden_states(policy):
    """`add_soft_target_head` takes the hidden states from there."""
    add_fused_lm_head(policy)
    captured = []
    policy.base_model.register_forward_hook(lambda module, args, outputs: captured.append(outputs.last_hidden_state))
    policy(input_ids=torch.arange(6).reshape(1, 6), labels=torch.arange(6).reshape(1, 6), fused_lm_head=True)
    assert [tuple(states.shape) for states in captured] == [(1, 6, policy.config.hidden_size)]


@pytest.mark.parametrize("loss_type", ["rlmec", "ppo"])
def test_sft_trainer_refuses_our_loss_types(loss_type, make_sft_trainer):
    """While it does, `RLMECTrainer` has to replace its own by "nll" during `SFTTrainer.__init__`."""
    with pytest.raises(ValueError, match="Invalid `loss_type`"):
        make_sft_trainer(loss_type=loss_type)
    make_sft_trainer(loss_type="nll")


def test_our_constructors_take_what_sft_trainer_takes_in_its_order():
    assert parameters(RLMECTrainer.__init__) == parameters(SFTTrainer.__init__)
    assert parameters(GRMTrainer.__init__) == [*parameters(SFTTrainer.__init__), "wording"]
    for name, parameter in inspect.signature(SFTTrainer.__init__).parameters.items():
        for trainer_class in (RLMECTrainer, GRMTrainer):
            assert inspect.signature(trainer_class.__init__).parameters[name].default == parameter.default, name


def test_our_constructors_pass_arguments_on_by_position_and_by_name(policy, tokenizer, tmp_path, make_rows):
    rows = Dataset.from_list(make_rows(4))
    for trainer_class, config_class in ((RLMECTrainer, RLMECConfig), (GRMTrainer, GRMConfig)):
        args = config_class(str(tmp_path), **OFF_LINE)
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
        trainer = trainer_class(policy, args, None, rows, rows, tokenizer, None, None, None, (optimizer, None))
        assert trainer.processing_class is tokenizer
        assert trainer.optimizer is optimizer
        assert len(trainer.eval_dataset) == len(trainer.train_dataset)
        with pytest.raises(TypeError, match="unexpected keyword argument 'tokenizer'"):
            trainer_class(policy, args, train_dataset=rows, tokenizer=tokenizer)


def test_our_constructors_refuse_by_position_what_they_refuse_by_name(policy, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="does not support `compute_loss_func`"):
        RLMECTrainer(policy, RLMECConfig(str(tmp_path), **OFF_LINE), None, None, None, tokenizer, print)


def test_other_overrides_take_what_they_override_takes():
    for name in ("compute_loss", "log"):
        assert parameters(getattr(RLMECTrainer, name)) == parameters(getattr(SFTTrainer, name)), name
    assert parameters(RLMECTrainer._get_num_items_in_batch) == parameters(Trainer._get_num_items_in_batch)


def test_save_takes_a_directory_and_a_state_dict_and_is_what_saves(make_sft_trainer, tmp_path):
    assert parameters(Trainer._save) == ["self", "output_dir", "state_dict"]
    assert parameters(GRMTrainer._save) == parameters(Trainer._save)
    calls = []

    class Spy(SFTTrainer):
        def _save(self, output_dir=None, state_dict=None):
            calls.append(output_dir)
            super()._save(output_dir, state_dict)

    trainer = make_sft_trainer(Spy, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model()
    assert calls == [str(tmp_path / "checkpoint-1"), str(tmp_path)]


def test_get_tp_size_reads_the_model(make_sft_trainer, policy):
    """Older releases of Transformers leave out accelerate's setting, which `RLMECTrainer` looks at itself."""
    assert policy.tp_size is None  # what `RLMECTrainer` reads before it loads or builds anything
    trainer = make_sft_trainer()
    assert trainer.get_tp_size() == 1
    trainer.model._tp_size = 2
    assert trainer.get_tp_size() == 2


def test_find_batch_size_takes_the_first_tensor_of_a_batch():
    """Our batches have fewer or more sequences than rows, and evaluation losses are weighted by rows."""
    assert find_batch_size({"num_active": torch.zeros(3), "input_ids": torch.zeros(5, 7)}) == 3


def test_the_model_card_is_made_of_the_class_attributes_we_set():
    for name in ("_tag_names", "_name", "_paper"):
        assert name in vars(SFTTrainer) or any(name in vars(base) for base in SFTTrainer.__mro__), name
    assert set(RLMECTrainer._paper) == {"title", "id", "citation"}


def test_a_checkpoint_is_pushed_by_one_method_and_the_push_is_waited_for(make_sft_trainer):
    for kind in (SFTTrainer, GRPOTrainer, DPOTrainer, RewardTrainer):
        assert kind._push_from_checkpoint is Trainer._push_from_checkpoint
    assert parameters(Trainer._push_from_checkpoint) == ["self", "checkpoint_folder"]
    trainer = make_sft_trainer(save_strategy="steps", save_steps=1)
    pushed, waited = [], []
    trainer.args.push_to_hub = True  # after the repository would have been created
    trainer._push_from_checkpoint = pushed.append
    trainer.train()
    assert [path.rpartition("/")[2] for path in pushed] == ["checkpoint-1", "checkpoint-2"]
    trainer.push_in_progress = SimpleNamespace(is_done=lambda: False, wait_until_done=lambda: waited.append(1))
    trainer._finish_current_push()
    assert waited == [1] and trainer.hub_model_id is None and callable(trainer.init_hf_repo)


def test_the_config_of_sft_trainer_has_the_options_we_refuse(tmp_path):
    config = RLMECConfig(str(tmp_path), **OFF_LINE)
    for name in (
        "packing",
        "eval_packing",
        "padding_free",
        "assistant_only_loss",
        "completion_only_loss",
        "label_smoothing_factor",
        "truncation_mode",
        "dataset_kwargs",
    ):
        assert hasattr(config, name), name


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_get_grad_norm_is_called_between_the_backward_passes_and_the_step_of_the_optimizer(
    max_grad_norm, make_sft_trainer
):
    """There, `TrainerChecks` stops a step that is not finite; `training_step` gives it the step's batches."""
    calls = []

    class Spy(SFTTrainer):
        def get_batch_samples(self, epoch_iterator, num_batches, device):
            batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
            calls.append(("batches", [batch["input_ids"].tolist() for batch in batches]))
            return batches, num_items

        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            assert loss.shape == ()
            calls.append(("loss", inputs["input_ids"].tolist()))
            return loss

        def _get_grad_norm(self, model, grad_norm=None):
            grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
            calls.append(("norm", float(grad_norm)))
            return grad_norm

    trainer = make_sft_trainer(
        Spy, max_grad_norm=max_grad_norm, gradient_accumulation_steps=2, per_device_train_batch_size=2
    )
    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(lambda *args: calls.append(("step", None)))
    trainer.train()
    assert [name for name, _ in calls] == ["batches", "loss", "loss", "norm", "step"] * 2
    batches, first, second, norm, _ = (value for _, value in calls[:5])
    assert batches == [first, second]
    assert norm > 0
    for trainer_class in (RLMECTrainer, GRMTrainer):
        assert parameters(trainer_class._get_grad_norm) == parameters(Trainer._get_grad_norm)
        assert parameters(trainer_class.training_step) == parameters(Trainer.training_step)


def test_prediction_step_returns_the_loss_first(make_sft_trainer):
    trainer = make_sft_trainer()
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    loss, logits, labels = trainer.prediction_step(trainer.model, batch, True)
    assert loss.shape == () and logits is None and labels is None


def test_the_handler_of_callbacks_knows_the_data_loaders(make_sft_trainer):
    """From their datasets, `GRMTrainer` names the rows of a batch."""
    trainer = make_sft_trainer()
    trainer.train()
    trainer.evaluate(trainer.train_dataset)
    for loader in (trainer.callback_handler.train_dataloader, trainer.callback_handler.eval_dataloader):
        assert len(loader.dataset) == 8


# --- Checkpoints, which `rlmec_trl.stages` reads and adds to ---------------------------------------------------------


def test_a_checkpoint_has_the_files_that_complete_ones_are_told_by(make_sft_trainer, tmp_path):
    """`stages/checkpoints.py` looks for these names; the main process writes `trainer_state.json` last."""
    make_sft_trainer(max_steps=1, save_strategy="steps", save_steps=1).train()
    folder = tmp_path / "checkpoint-1"
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: (folder / name).stat().st_mtime_ns)
    needed = {"model.safetensors", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert needed < set(names) and names[-1] == "trainer_state.json"
    assert (trainer_module.TRAINER_STATE_NAME, trainer_module.OPTIMIZER_NAME_BIN) == (names[-1], "optimizer.bin")
    assert (fsdp_constants.FSDP_MODEL_NAME, fsdp_constants.OPTIMIZER_NAME) == ("pytorch_model_fsdp", "optimizer")


def test_each_of_several_processes_saves_its_random_numbers_under_its_index(tmp_path):
    """`stages/checkpoints.py` counts these files."""
    args = SimpleNamespace(world_size=2, process_index=1, parallel_mode=ParallelMode.DISTRIBUTED)
    Trainer._save_rng_state(SimpleNamespace(args=args), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["rng_state_1.pth"]


def test_a_just_in_time_checkpoint_is_marked_while_it_is_written(make_sft_trainer, tmp_path, monkeypatch):
    """`stages/checkpoints.py` looks for the mark."""
    trainer = make_sft_trainer()
    seen = []
    folder = tmp_path / "checkpoint-0"
    monkeypatch.setattr(trainer, "_save_checkpoint", lambda *args, **kwargs: seen.extend(folder.iterdir()))
    CheckpointManager(trainer).execute_jit_checkpoint()
    assert [path.name for path in seen] == ["checkpoint-is-incomplete.txt"]
    assert not list(folder.iterdir())


def test_a_callback_can_write_to_the_state_of_a_checkpoint_and_end_a_training_before_its_first_step(
    make_sft_trainer, tmp_path
):
    """`stages/resuming.py` adds a callback at the beginning of the training, and may raise there."""

    class Record(TrainerCallback, ExportableState):
        def state(self):
            return {"args": {}, "attributes": {"loss": trainer._tr_loss.item()}}

    class Add(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            assert state.max_steps == 2 and trainer._globalstep_last_logged == state.global_step
            assert trainer._tr_loss.item() == trainer._total_loss_scalar == 0.0
            if state.global_step == 2:
                raise KeyboardInterrupt
            trainer.add_callback(Record())
            state.stateful_callbacks["Record"] = {}

    settings = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 5}
    trainer = make_sft_trainer(**settings)
    trainer.add_callback(Add())
    trainer.train()
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["Record"]["attributes"]["loss"] > 0
    trainer = make_sft_trainer(**settings)
    trainer.add_callback(Add())
    with pytest.raises(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.stateful_callbacks["Record"]["attributes"]["loss"] > 0


def test_methods_that_load_and_save_outside_of_training(make_sft_trainer):
    assert parameters(Trainer._load_rng_state) == ["self", "checkpoint"]
    assert parameters(Trainer.set_initial_training_values) == ["self", "args", "dataloader"]
    assert parameters(Trainer._load_best_model) == ["self"]
    assert parameters(Trainer._save_checkpoint) == ["self", "model", "trial"]
    assert parameters(Trainer._load_from_checkpoint)[:2] == ["self", "resume_from_checkpoint"]
    assert parameters(Trainer.save_model) == ["self", "output_dir", "_internal_call"]
    assert {"train", "eval"} == set(make_sft_trainer()._metrics)
