"""What a library says of a setting is one message; a mistake of ours keeps its traceback."""

import errno
import importlib
import json
import sys
import types
from functools import partial

import pytest
import torch
from datasets import Dataset
from transformers.utils import is_liger_kernel_available
from trl import SFTConfig, SFTTrainer

from rlmec_trl.data.errors import ConfigError, DatasetError
from rlmec_trl.stages.refusals import check_training_settings, refused_settings


@pytest.fixture
def module_of(monkeypatch):
    """Functions whose code says that it is of a module."""

    def module_of(name, source):
        module = types.ModuleType(name)
        exec(source, module.__dict__)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return module_of


LIBRARY = "def build(call=None, error=None):\n    if call is not None:\n        call()\n    raise error\n"
OURS = "def prepare(call):\n    call()\n\ndef fail(error):\n    raise error\n\nclass Trainer:\n"
OURS += "    def __init__(self, call):\n        call()\n"


@pytest.mark.parametrize("kind", [ValueError, ImportError, OSError, TypeError, KeyError, RuntimeError])
def test_a_refusal_of_a_library_is_quoted_with_its_place(module_of, kind):
    library = module_of("trl.trainer.mock", LIBRARY)
    with pytest.raises(ConfigError) as caught, refused_settings():
        library.build(error=kind("`x` must\nbe y."))
    assert str(caught.value) == (
        f"Training cannot start with these settings: `x` must be y ({kind.__name__} in trl.trainer.mock.build)."
    )
    assert isinstance(caught.value.__cause__, kind)  # for those who use Python


@pytest.mark.parametrize("name", ["mypkg.rewards", "rewards"])
def test_an_error_of_the_users_own_code_keeps_its_traceback(module_of, name):
    library, users = module_of("trl.mock", LIBRARY), module_of(name, OURS)
    for call in (
        partial(users.fail, ValueError("no <answer> tag")),
        # What this code calls has no setting of the training either
        partial(users.prepare, partial(library.build, error=ValueError("no <answer> tag"))),
        partial(users.prepare, partial(json.loads, "{")),
    ):
        with pytest.raises(ValueError) as caught, refused_settings():
            library.build(call)
        assert not isinstance(caught.value, ConfigError)


def test_a_refusal_below_the_standard_library_is_one(module_of):
    library = module_of("trl.mock", LIBRARY)
    with pytest.raises(ConfigError, match="JSONDecodeError in trl.mock.build"), refused_settings():
        library.build(partial(json.loads, "{"))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.EMFILE, "Too many open files"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("DataLoader worker (pid 3) is killed by signal: Bus error."),
        torch.AcceleratorError("an illegal memory access"),
        torch.distributed.DistBackendError("NCCL error: unhandled system error"),
        torch.OutOfMemoryError("bad"),
    ],
    ids=str,
)
def test_a_failure_of_the_machine_is_not_called_a_setting(module_of, error):
    library = module_of("trl.mock", LIBRARY)
    with pytest.raises(type(error)) as caught, refused_settings():
        library.build(error=error)
    assert caught.value is error


def test_what_is_below_a_library_counts_as_its_own(module_of):
    library, below = module_of("transformers.mock", LIBRARY), module_of("torch.mock", LIBRARY)
    with pytest.raises(ConfigError, match=r"bad \(ValueError in transformers.mock.build\)"), refused_settings():
        library.build(partial(below.build, error=ValueError("bad")))


def test_a_constructor_of_ours_may_hand_the_settings_on(module_of):
    library, ours = module_of("trl.mock", LIBRARY), module_of("rlmec_trl.mock", OURS)
    with pytest.raises(ConfigError, match="bad"), refused_settings():
        library.build(partial(ours.Trainer, partial(library.build, error=ValueError("bad"))))


@pytest.mark.parametrize("name", ["rlmec_trl.mock", "recipes.mock", "__main__"])
def test_a_mistake_of_ours_keeps_its_traceback(module_of, monkeypatch, name):
    library, ours = module_of("trl.mock", LIBRARY), module_of(name, OURS)
    mistakes = [
        partial(ours.fail, ValueError("ours")),
        partial(library.build, partial(ours.fail, ValueError("ours"))),
        # What our code passes to a library may be the mistake
        partial(library.build, partial(ours.prepare, partial(library.build, error=ValueError("ours")))),
        partial(library.build, partial(ours.Trainer, partial(ours.fail, ValueError("ours")))),
        partial(ours.Trainer, unknown=1),
    ]
    for mistake in mistakes:
        with pytest.raises((ValueError, TypeError)) as caught, refused_settings():
            mistake()
        assert not isinstance(caught.value, ConfigError)


@pytest.mark.parametrize("error", [ZeroDivisionError(), AttributeError("x"), IndexError(1), KeyboardInterrupt()])
def test_what_no_library_refuses_a_setting_with_keeps_its_traceback(module_of, error):
    library = module_of("trl.mock", LIBRARY)
    with pytest.raises(type(error)), refused_settings():
        library.build(error=error)


def test_a_user_error_passes_as_it_is(module_of):
    library, ours = module_of("trl.mock", LIBRARY), module_of("rlmec_trl.mock", OURS)
    with pytest.raises(DatasetError, match="^Row 3 is empty.$"), refused_settings():
        library.build(partial(ours.fail, DatasetError("Row 3 is empty.")))


class FakeTrainer:
    def __init__(self, eval_dataset=None):
        self.eval_dataset = eval_dataset

    def add_callback(self, callback):
        self.callback = callback

    def remove_callback(self, callback):
        assert callback is self.callback
        self.callback = None


@pytest.mark.parametrize(
    ("steps", "error", "is_refusal"),
    [
        ([], TypeError("bad"), True),
        (["begin"], ValueError("bad"), True),  # GRPO reads some of its settings in the first step
        (["begin"], RuntimeError("device"), False),
        (["begin", "end"], ValueError("bad"), False),
        (["begin", "end", "begin"], ValueError("bad"), False),
    ],
)
def test_only_the_beginning_of_a_training_counts(module_of, steps, error, is_refusal):
    library, trainer = module_of("trl.mock", LIBRARY), FakeTrainer()
    with pytest.raises(ConfigError if is_refusal else type(error)) as caught, refused_settings(trainer):
        for step in steps:
            getattr(trainer.callback, f"on_step_{step}")(None, None, None)
        library.build(error=error)
    assert isinstance(caught.value, ConfigError) == is_refusal
    assert trainer.callback is None


@pytest.mark.parametrize("name", ["accuracy", "eval_accuracy", "epoch"])
def test_a_metric_that_no_evaluation_gives_is_named(tmp_path, name):
    trainer = FakeTrainer()
    metrics = {"eval_loss": 1.0, "eval_runtime": 1.0, "epoch": 1.0}
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", metric_for_best_model="loss")
    with refused_settings(trainer):
        for known in (None, "loss", "eval_loss"):
            args.metric_for_best_model = known
            trainer.callback.on_evaluate(args, None, None, metrics)
        args.metric_for_best_model = name
        with pytest.raises(ConfigError, match=f"is '{name}', which the evaluation does not give: loss, runtime."):
            trainer.callback.on_evaluate(args, None, None, metrics)


@pytest.mark.parametrize("name", ["b_loss", "a_loss", "b_b_loss", "loss"])
def test_a_metric_of_one_of_several_evaluation_sets_is_known(tmp_path, policy, tokenizer, make_rows, name):
    rows = Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in make_rows(2)])
    args = config(tmp_path, metric_for_best_model=name)
    sets = {"b": rows, "a": rows, "b_b": rows}
    trainer = SFTTrainer(policy, args, train_dataset=rows, eval_dataset=sets, processing_class=tokenizer)
    trainer.callback_handler.callbacks.clear()
    with refused_settings(trainer):
        trainer.evaluate(rows, metric_key_prefix="own")
        if name == "loss":
            with pytest.raises(ConfigError, match="is 'loss', which the evaluation does not give: a_loss, .*, b_loss"):
                trainer.evaluate()
        else:
            trainer.evaluate()
            trainer.evaluate()


def config(tmp_path, **settings):
    return SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **settings)


def test_settings_that_can_work_pass(tmp_path, chat_tokenizer):
    check_training_settings(config(tmp_path))
    check_training_settings(config(tmp_path, eval_strategy="epoch", eval_on_start=True), "rows")
    chat_tokenizer.save_pretrained(tmp_path / "model")
    check_training_settings(config(tmp_path, chat_template_path=str(tmp_path / "model")))
    check_training_settings(config(tmp_path, do_eval=True))  # without a strategy, nothing is evaluated


@pytest.mark.parametrize("recipe", ["sft", "grpo", "rlmec", "train_grm", "train_label_reward"])
def test_an_evaluation_without_rows_is_refused_before_anything_is_loaded(recipe, tmp_path):
    from rlmec_trl.stages.settings import parse_settings

    module = importlib.import_module(f"recipes.{recipe}")
    words = "--dataset_name none.jsonl --model_name_or_path none --use_cpu --bf16 false --report_to none".split()
    words += ["--output_dir", str(tmp_path / "out"), "--eval_strategy", "epoch"]
    words += ["--task", "arithmetic"] if recipe in ("grpo", "train_grm") else []
    with pytest.raises(ConfigError, match="`eval_strategy` is set, and there is no dataset to evaluate on"):
        module.main(*parse_settings(module.make_parser(), words))
    assert not (tmp_path / "out").exists()


def test_arguments_that_no_checkpointing_takes_are_refused_before_the_first_step(tmp_path):
    """There, the loss of our trainer calls the model, and an error could be ours."""
    known = {"use_reentrant": False, "preserve_rng_state": True, "determinism_check": "none", "every_n_layers": 2}
    check_training_settings(config(tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs=known))
    unknown = {"use_reentrant": True, "foo": 1}
    check_training_settings(config(tmp_path, gradient_checkpointing=False, gradient_checkpointing_kwargs=unknown))
    args = config(tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs=unknown)
    with pytest.raises(ConfigError, match="`gradient_checkpointing_kwargs` has no argument 'foo'"):
        check_training_settings(args)


@pytest.mark.skipif(is_liger_kernel_available(), reason="is refused only where the package is missing")
def test_liger_kernels_that_are_not_installed_are_named(tmp_path, policy, tokenizer, make_rows):
    from rlmec_trl.stages.training import train_and_save

    rows = Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in make_rows(2)])
    args = config(tmp_path, use_liger_kernel=True, max_steps=1)
    trainer = SFTTrainer(policy, args, train_dataset=rows, processing_class=tokenizer)
    with pytest.raises(ConfigError, match="`use_liger_kernel`.*pip install liger-kernel"):
        train_and_save(trainer)
