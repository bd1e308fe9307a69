"""
Which checkpoints of a training run are complete, so that training may resume from them.

[`~transformers.Trainer`] writes a checkpoint file by file, under its final name. A process that is killed
while it writes leaves a folder that looks like a checkpoint but cannot be resumed from.
"""

import json
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..data.errors import ConfigError
from ..data.marks import read_object
from .output import a_few


# The names that `Trainer`, accelerate's FSDP and DeepSpeed write
STATE = "trainer_state.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_MODELS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_FSDP_MODEL, _OPTIMIZER = "pytorch_model_fsdp", "optimizer"
_SMALL = 1 << 24  # bytes of a file that is read to find damage
# Exists while `enable_jit_checkpoint` of Transformers is writing
_UNFINISHED = "checkpoint-is-incomplete.txt"
# Under this name a run of ours records itself among the callbacks in `trainer_state.json`
RECORD = "TrainingRecord"
# What tells a reader which model a folder has: weights or an adapter, and the wording of a GRM
_MODEL_FILES = r"""
    model(-\d+-of-\d+)?\.safetensors | pytorch_model(-\d+-of-\d+|_fsdp)?\.bin | model\.safetensors\.index\.json
    | pytorch_model\.bin\.index\.json | adapter_model\.(safetensors|bin) | adapter_config\.json | grm_wording\.json
    """
MODEL_FILES = re.compile(_MODEL_FILES, re.VERBOSE)
# Whole paths of what `Trainer`, tokenizers, PEFT and our trainers write into a checkpoint. A file with another name is
# somebody else's.
WRITTEN = re.compile(
    _MODEL_FILES
    + r"""
    | (optimizer|scheduler|scaler|rng_state(_\d+)?)\.(pt|pth|bin) | training_args\.bin | trainer_state\.json
    | tokenizer(_config)?\.json | (tokenizer|spiece|sentencepiece(\.bpe)?)\.model | (vocab|merges)\.txt | vocab\.json
    | special_tokens_map\.json | added_tokens\.json | chat_template\.(jinja|json)
    | additional_chat_templates/[^/]+\.jinja | (generation_|quantization_)?config\.json
    | (tokenization|configuration|modeling)_\w+\.py | ((video_)?pre)?processor_config\.json
    | global_step\d+/\w+_states\.pt | latest | zero_to_fp32\.py
    | (pytorch_model_fsdp|optimizer)_\d+/(\.metadata|__\d+_\d+\.distcp)
    | README\.md | checkpoint-is-incomplete\.txt | synced_grm\.safetensors | entropy_ctrl_state\.json
    | [^/]+/(adapter_model\.(safetensors|bin)|adapter_config\.json|README\.md)
    """,
    re.VERBOSE,
)


def check_complete(path: Path) -> None:
    """
    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If a folder is not a complete checkpoint.
    """
    if not path.is_dir():
        raise ConfigError(
            f"`resume_from_checkpoint`: {str(path)!r} is not a folder. Name a checkpoint, or leave it out."
        )
    missing = missing_from(path)
    if missing:
        raise ConfigError(
            f"`resume_from_checkpoint`: {str(path)!r} is not a complete checkpoint. Missing or cut off: "
            f"{a_few(missing)}. Name another one, or leave it out to resume from the last complete one."
        )


def is_checkpoint_name(name: str) -> bool:
    return _CHECKPOINT.fullmatch(name) is not None


def checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """Steps and folders of all checkpoints in an output folder."""
    found = [(_CHECKPOINT.fullmatch(path.name), path) for path in output_dir.glob("checkpoint-*") if path.is_dir()]
    return [(int(match[1]), path) for match, path in found if match]


def missing_from(checkpoint: Path) -> list[str]:
    """What a checkpoint lacks to be resumed from, and which files were cut off. Empty where it is complete."""
    state = read_state(checkpoint)
    missing = _broken(checkpoint, checkpoint.rglob("*"))
    if (checkpoint / _UNFINISHED).exists():
        missing.append(f"all that {_UNFINISHED} stands for")
    # Written last by the main process
    if state is None and STATE not in missing:
        missing.append(STATE)
    if not (checkpoint / "training_args.bin").is_file():
        missing.append("training_args.bin")
    if (checkpoint / "latest").is_file():
        missing += _missing_from_deepspeed(checkpoint)
    else:
        missing += missing_weights(checkpoint)
        if not any((checkpoint / name).is_file() for name in ("optimizer.pt", "optimizer.bin")) and not (
            _sharded(checkpoint, _OPTIMIZER)
        ):
            missing.append("optimizer.pt")
        if not (checkpoint / "scheduler.pt").is_file():
            missing.append("scheduler.pt")
    return sorted({*missing, *_missing_rng_states(checkpoint, state)})


def is_model_only(checkpoint: Path) -> bool:
    """Whether a checkpoint was written with `save_only_model`: to its end, but without an optimizer."""
    parts = ("optimizer*", "scheduler.pt", "rng_state*.pth", "latest")
    return read_state(checkpoint) is not None and not any(any(checkpoint.glob(part)) for part in parts)


def missing_weights(folder: Path) -> list[str]:
    """Which weights of a model or an adapter a folder lacks, cut off ones included."""
    missing = _broken(folder, (path for path in folder.iterdir() if path.suffix in (".safetensors", ".json")))
    for name in (name for name in _MODELS if name.endswith(".index.json")):
        if (folder / name).is_file() and name not in missing:
            shards = set(json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values())
            missing += [name for name in shards if not (folder / name).is_file()]
    # An adapter that is not the default one has its own folder, as each checkpoint has
    adapters = [path.parent for path in (*folder.glob("adapter_config.json"), *folder.glob("*/adapter_config.json"))]
    adapters = [path for path in adapters if path == folder or not is_checkpoint_name(path.name)]
    for adapter in adapters:
        if not any((adapter / name).is_file() for name in _ADAPTERS):
            missing.append((adapter / _ADAPTERS[0]).relative_to(folder).as_posix())
    has_model = any((folder / name).is_file() for name in (*_MODELS, f"{_FSDP_MODEL}.bin"))
    if not (has_model or adapters or _sharded(folder, _FSDP_MODEL)):
        missing.append("the weights")
    return missing


def read_state(folder: Path) -> dict | None:
    """The trainer's state in a folder, `None` where it has none that can be read."""
    state = read_object(folder / STATE)
    return state if state is not None and isinstance(state.get("global_step"), int) else None


def best_checkpoint(state: dict, checkpoint: Path) -> Path | None:
    """The best checkpoint of a training that is at another one, whose folder may have been moved or copied since."""
    beside = checkpoint.parent / f"checkpoint-{state.get('best_global_step')}"
    recorded = Path(state.get("best_model_checkpoint") or beside)
    return beside if beside.is_dir() else recorded if recorded.is_dir() else None


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint or a copy of one, rather than the output folder of a training."""
    state = read_state(folder)
    if state is None:
        return False
    before_the_end = "epochs" not in (read_record(state) or {}) and state["global_step"] < (
        state.get("max_steps") or 0
    )
    return before_the_end or any(folder.glob("rng_state*.pth"))


def read_record(state: dict) -> dict | None:
    """What a run of ours has recorded in the trainer's state, `None` where another program wrote it."""
    callbacks = state.get("stateful_callbacks")
    record = callbacks.get(RECORD) if isinstance(callbacks, dict) else None
    return record.get("attributes") if isinstance(record, dict) else None


def _missing_rng_states(checkpoint: Path, state: dict | None) -> list[str]:
    record = read_record(state) if state else None
    if record is None:
        # The number of processes is not recorded: check that there is no gap
        found = list(checkpoint.glob("rng_state_*.pth"))
        nodes = [[f"rng_state_{index}.pth" for index in range(len(found))] or ["rng_state.pth"]]
    elif record.get("num_processes", 1) == 1:  # a finished model has none
        nodes = [["rng_state.pth"]]
    else:
        names = [f"rng_state_{index}.pth" for index in range(record["num_processes"])]
        size = record.get("num_local_processes", len(names))
        nodes = [names[start : start + size] for start in range(0, len(names), size)]
    missing = [[name for name in node if not (checkpoint / name).is_file()] for node in nodes]
    # Without a shared disk, the processes of another node have written none of theirs here
    own, *others = missing
    return own + [name for node, lost in zip(nodes[1:], others, strict=True) if lost != node for name in lost]


def _missing_from_deepspeed(checkpoint: Path) -> list[str]:
    # DeepSpeed names the folder in `latest` once all processes have written to it
    folder = checkpoint / (checkpoint / "latest").read_text(encoding="utf-8").strip()
    if folder == checkpoint or not folder.is_dir():
        return ["the folder that `latest` names"]
    parts = {"model_states": "*model_states.pt", "optim_states": "*optim_states.pt"}
    return [f"{folder.name}/{name}" for name, pattern in parts.items() if not any(folder.glob(pattern))]


def _sharded(folder: Path, prefix: str) -> bool:
    """Whether FSDP has saved something in shards. Their index, `.metadata`, is written when all shards are there."""
    return any((path / ".metadata").is_file() and any(path.glob("*.distcp")) for path in folder.glob(f"{prefix}_*"))


def _broken(folder: Path, paths: Iterable[Path]) -> list[str]:
    """Names of damaged files. Formats that do not show whether they are complete are not checked."""
    checks = {".json": _is_json, ".safetensors": _is_safetensors, ".pt": _is_zip, ".pth": _is_zip, ".bin": _is_zip}
    written = [path for path in paths if path.is_file() and WRITTEN.fullmatch(path.relative_to(folder).as_posix())]
    return [path.name for path in written if not checks.get(path.suffix, lambda path: True)(path)]


def _is_json(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return not path.name.endswith(".index.json") or (
        isinstance(content, dict) and isinstance(content.get("weight_map"), dict)
    )


def _is_zip(path: Path) -> bool:
    # What `torch.save` writes, whose table of contents stands at the end. Only small files are read: checkpoints are
    # looked at before each training.
    try:
        with zipfile.ZipFile(path) as file:
            small = path.stat().st_size <= _SMALL and torch.serialization.get_crc32_options()
            return not small or file.testzip() is None
    except zipfile.BadZipFile:
        return False


def _is_safetensors(path: Path) -> bool:
    # Opening reads the header, and compares the size of the file with it
    try:
        with safe_open(path, framework="pt"):
            return True
    except SafetensorError:
        return False
