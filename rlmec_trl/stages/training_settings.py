"""What the result of a training depends on: a finished or interrupted one is continued only with the same."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from transformers import PreTrainedConfig, Trainer
from transformers.trainer_utils import has_length
from transformers.utils.quantization_config import QuantizationConfigMixin

from .contents import named_model, rows_hash


# Arguments that change only speed, memory, what is logged and saved, and where to. All others are compared, those of
# later releases of the libraries too. The number of epochs is in the number of steps.
NO_EFFECT = frozenset(
    """
    num_train_epochs output_dir model_init_kwargs trust_remote_code stop_on_nonfinite

    activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs
    activation_offloading torch_compile torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config
    use_cache torch_empty_cache_steps pad_to_multiple_of full_determinism use_cpu fsdp fsdp_config
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout
    dataset_num_proc dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
    dataloader_prefetch_factor dataloader_multiprocessing_context local_rank debug skip_memory_metrics
    do_train do_eval do_predict resume_from_checkpoint restore_callback_states_from_checkpoint ignore_data_skip
    auto_find_batch_size

    grm_batch_size

    logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter log_level
    log_level_replica include_num_input_tokens_seen disable_tqdm report_to run_name project trackio_space_id
    trackio_bucket_id trackio_static_space_id log_completions log_multimodal num_completions_to_print
    log_unique_prompts log_completions_hub_repo

    save_only_model save_on_each_node save_total_limit enable_jit_checkpoint push_to_hub hub_token hub_private_repo
    hub_model_id hub_strategy hub_always_push hub_revision

    ds3_gather_for_generation cache_implementation vllm_mode vllm_enable_sleep_mode vllm_server_base_url
    vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization
    vllm_tensor_parallel_size use_transformers_continuous_batching transformers_continuous_batching_config
    """.split()
)
# These do not either, unless the evaluations decide which weights are kept, or the learning rate
EVALUATION = frozenset(
    """
    eval_strategy eval_steps eval_delay eval_on_start eval_accumulation_steps eval_do_concat_batches
    eval_use_gather_object eval_packing per_device_eval_batch_size prediction_loss_only include_for_metrics
    batch_eval_metrics bf16_full_eval fp16_full_eval num_generations_eval save_strategy save_steps
    metric_for_best_model greater_is_better
    """.split()
)
# A checkpoint of one cannot be continued as another
FIXED = ("trainer", "model", "adapter", "quantization", "optim", "optim_args", "optim_target_modules", "sharding")
# Loading arguments of a model that change only speed, memory and where its files are, or are compared by themselves
_LOADING = frozenset(
    """
    attn_implementation device_map max_memory offload_folder offload_buffers offload_state_dict use_cache
    low_cpu_mem_usage cache_dir local_files_only force_download proxies token use_auth_token trust_remote_code
    revision quantization_config
    """.split()
)
# Names of what may not get into a file that is pushed to the Hub. A `pad_token` may
_SECRET = re.compile(r"(.*(api|access|auth|bearer|hub|hf|private|secret)_?)?(key|token)|.*(password|secret).*", re.I)
# Their product is the number of rows of a step
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps", "number of processes")
# Parts of an adapter's configuration that say where it comes from
_ADAPTER = ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping", "runtime_config")
_NONE = (None, {}, [])

# Configurations with all their fields, of which each release of a library has others
_LIBRARY_CONFIG = re.compile(r"adapter\.[^.]+|quantization|accelerator_config")


def training_settings(trainer: Trainer, depends_on: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    What the result of a training depends on, except the number of its steps, which is known when it begins.

    Args:
        trainer ([`~transformers.Trainer`]):
            A TRL trainer that has not begun to train.
        depends_on (`dict`, *optional*):
            What the trainer does not know: JSON values.

    Returns:
        `dict`: JSON values by name.
    """
    args = trainer.args
    steered = args.load_best_model_at_end or args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
    without_effect = NO_EFFECT if steered else NO_EFFECT | EVALUATION
    loading = args.model_init_kwargs or {}
    model = trainer.accelerator.unwrap_model(trainer.model)
    base = model.get_base_model() if is_peft_model(model) else model
    adapters = model.peft_config if is_peft_model(model) else {}
    quantization = getattr(base.config, "quantization_config", None)
    settings = {
        "trainer": type(trainer).__name__,
        "model": _model(base.config, loading.get("revision") or "main"),
        "model_init_kwargs": {name: value for name, value in loading.items() if name not in _LOADING},
        "adapter": {name: _without(config.to_dict(), _ADAPTER) for name, config in adapters.items()},
        "quantization": quantization.to_dict() if isinstance(quantization, QuantizationConfigMixin) else quantization,
        "sharding": _sharding(trainer),
        "number of processes": args.world_size,
        "number of rows": len(trainer.train_dataset) if has_length(trainer.train_dataset) else None,
        "training rows": rows_by_name(trainer.train_dataset),
        "depends on": depends_on or {},
    }
    if steered and args.eval_strategy != "no":
        settings["evaluation rows"] = rows_by_name(trainer.eval_dataset)
    names = {field.name for field in dataclasses.fields(args) if field.init} - without_effect - {"max_steps"}
    if args.device.type == "cpu":
        names.discard("tf32")
    settings |= {name: getattr(args, name) for name in sorted(names)}
    return json.loads(json.dumps(_plain(settings)))


def changed_settings(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """
    The settings that differ, by name, with both values. What an earlier version of this package has not recorded is
    not compared.
    """
    changed = {}
    for name in now:
        if name not in before or before[name] == now[name]:
            continue
        if name == "model":
            if difference := _different_model(before[name], now[name]):
                changed[name] = difference
        elif name.endswith(" rows") and name != "number of rows":
            if None not in (before[name], now[name]):  # of a stream
                changed[name] = f"other {name}"
        elif differences := _differences(name, before[name], now[name]):
            changed[name] = ", ".join(differences)
    if "number of rows" in changed:
        changed.pop("training rows", None)
    return changed


def same_batch(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a step has as many rows, however they are divided."""
    return math.prod(before.get(name, now[name]) for name in BATCH) == math.prod(now[name] for name in BATCH)


def fixed_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What has changed and cannot change between a checkpoint and the training that continues it."""
    changed = changed_settings(before, now)
    if "model" in changed and not now["adapter"]:
        # All weights are in the checkpoint, and a commit may change only a model card
        commits = f"{now['model']['name']}@"
        if all((settings["model"]["content"] or "").startswith(commits) for settings in (before, now)):
            changed.pop("model")
    return [changed[name] for name in FIXED if name in changed]


def _differences(name: str, before: Any, now: Any) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if _LIBRARY_CONFIG.fullmatch(name):
            keys = [key for key in keys if key in before and key in now]
        return [each for key in keys for each in _differences(f"{name}.{key}", before.get(key), now.get(key))]
    return [] if before in _NONE and now in _NONE else [f"{name} {_short(before)} -> {_short(now)}"]


def _short(value: Any) -> str:
    text = "none" if value in _NONE else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _model(config: PreTrainedConfig, revision: str) -> dict[str, str | None]:
    """The name of the model that training starts from, and what tells its content from another's."""
    name = config._name_or_path
    if not name:  # made in Python
        return {"name": None, "content": None}
    return named_model(name, revision)


def _different_model(before: dict[str, str | None], now: dict[str, str | None]) -> str | None:
    unknown = None in (before["content"], now["content"])
    if (before["name"] == now["name"]) if unknown else (before["content"] == now["content"]):
        return None
    if before["name"] == now["name"]:
        name, at, commit = before["content"].rpartition("@")
        hint = f" on the Hub (`--model_revision {commit}` is the one before)" if at and name == now["name"] else ""
        return f"the model {now['name']} has changed{hint}"
    return f"model {before['name']} -> {now['name']}"


def rows_by_name(dataset: Any) -> Any:
    """What tells the rows of a dataset, or of several by name, from others. `None` for a stream."""
    if isinstance(dataset, Mapping):
        return {name: rows_by_name(part) for name, part in dataset.items()}
    return rows_hash(dataset) if isinstance(dataset, Dataset) else None


def _sharding(trainer: Trainer) -> str | None:
    """How a checkpoint is laid out. ZeRO's cannot be loaded by another number of processes."""
    if trainer.is_deepspeed_enabled:
        stage = trainer.accelerator.state.deepspeed_plugin.zero_stage
        return f"ZeRO-{stage} on {trainer.args.world_size} processes"
    return "FSDP" if trainer.is_fsdp_enabled else None


def _without(config: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


def _plain(value: Any) -> Any:
    """A value as JSON has it. Of what JSON has no form for, the name of its type."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if not _SECRET.fullmatch(str(key))}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (torch.dtype, Path)):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return type(value).__name__
