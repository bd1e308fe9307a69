"""The evaluation of a reward model on pairs of responses: how often the better one has the higher score."""

import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import ClassVar

from accelerate.utils import gather_object
from datasets import Dataset
from trl import ModelConfig

from ..data.checks import check_config
from ..data.errors import ConfigError, errors_of_dataset
from ..data.loading import load_rows
from ..data.messages import message_text, template_kwargs
from ..data.row_checks import PAIR_KINDS
from ..data.schema import check_dataset
from ..data.tokens import encode_completion
from ..generation.processes import process_state
from ..generation.reward_models import SequenceRewardModel
from ..reports.accuracy import Accuracy
from .output import claim_file, write_atomically
from .summary import print_summary, timed


@dataclass
class EvaluatePairsConfig:
    r"""
    Settings of the evaluation of a reward model.

    Parameters:
        dataset_names (`list[str]`):
            Pairs, as the pairs stage writes them, or several such datasets.
        output_file (`str`, *optional*):
            JSON file to write the result to.
        dataset_split (`str`, *optional*, defaults to `"train"`):
            Split of datasets on the Hub.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of responses that are scored at a time.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that the model's repository ships.
    """

    dataset_names: list[str] = field(metadata={"help": "Pairs, as `pairs.py` writes them, or several such datasets."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file to write the result to."})
    dataset_split: str = field(default="train", metadata={"help": "Split of datasets on the Hub."})
    batch_size: int = field(default=16, metadata={"help": "Number of responses that are scored at a time."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Whether to run Python code that the model's repository ships."}
    )

    # How each field enters the key of a result (see `stages/keys.py`)
    key_parts: ClassVar[dict[str, str]] = {
        "dataset_names": "content",
        "output_file": "none",
        "dataset_split": "content",
        "batch_size": "none",
        "trust_remote_code": "none",
    }

    def __post_init__(self):
        check_config(self)
        if not self.dataset_names:
            raise ConfigError("`dataset_names` is empty: name pairs of responses, as `pairs.py` writes them.")


@timed
def run(config: EvaluatePairsConfig, model_args: ModelConfig) -> dict[str, Accuracy]:
    """
    Evaluate a reward model on pairs. It scores them as in reinforcement learning: prompt and response are encoded
    apart, the response ends with EOS, and the score is the value at its last token. The processes share the pairs.

    Args:
        config ([`EvaluatePairsConfig`]):
            The pairs.
        model_args ([`~trl.ModelConfig`]):
            The reward model, or an adapter.

    Returns:
        `dict[str, Accuracy]`: For each kind of pair (`"label"`, `"rationale"`; `"all"` where pairs have no `kind`),
        how many have a higher score for `chosen` than for `rejected`.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If the reward model is to be quantized.
        [`~rlmec_trl.data.errors.ModelError`]: If the reward model cannot be loaded, or is none.
        [`~rlmec_trl.data.schema.DatasetError`]: If a pair is invalid.
        [`~rlmec_trl.stages.output.OutputError`]: If `output_file` is a file of something else.
    """
    if model_args.load_in_4bit or model_args.load_in_8bit:
        raise ConfigError("Reward models are not quantized: leave `--load_in_4bit` and `--load_in_8bit` out.")
    state = process_state()
    with claim_file(config.output_file, ("pairs",)) if state.is_main_process else nullcontext():
        datasets = []
        for name in config.dataset_names:
            datasets.append(load_rows(name, config.dataset_split))
            with errors_of_dataset(name):
                check_dataset(datasets[-1], "preference")
        reward_model = SequenceRewardModel.from_pretrained(
            model_args.model_name_or_path,
            model_args.model_revision,
            config.trust_remote_code,
            model_init_kwargs={"dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation},
            batch_size=config.batch_size,
        )
        counts: dict[str, list[bool]] = {}
        for dataset in datasets:
            kinds = dataset["kind"][:] if "kind" in dataset.column_names else ["all"] * len(dataset)
            own = range(state.process_index, len(dataset), state.num_processes)
            better = prefers_chosen(reward_model, dataset.select(own))
            for kind, correct in gather_object([(kinds[row], one) for row, one in zip(own, better, strict=True)]):
                counts.setdefault(kind, []).append(correct)
        result = {
            kind: Accuracy(sum(counts[kind]), len(counts[kind])) for kind in (*PAIR_KINDS, "all") if kind in counts
        }
        if config.output_file is not None and state.is_main_process:
            values = {
                kind: {**asdict(accuracy), "mean": accuracy.mean, "interval": list(accuracy.interval)}
                for kind, accuracy in result.items()
            }
            write_atomically(config.output_file, json.dumps({"pairs": values}, indent=2) + "\n")
        print_summary(f"{model_args.model_name_or_path}: {_describe(result)}.", config.output_file)
    return result


def _describe(result: dict[str, Accuracy]) -> str:
    return ", ".join(
        f"{kind} pairs {accuracy.mean:.3f} ({accuracy.correct:,} of {accuracy.total:,} correct, 95% interval "
        f"{accuracy.interval[0]:.3f} to {accuracy.interval[1]:.3f})"
        for kind, accuracy in result.items()
    )


def prefers_chosen(reward_model: SequenceRewardModel, pairs: Dataset) -> list[bool]:
    """
    Whether a reward model gives the better response of each pair the higher score.

    Args:
        reward_model ([`~rlmec_trl.generation.reward_models.SequenceRewardModel`]):
            The reward model.
        pairs ([`~datasets.Dataset`]):
            `prompt`, `chosen` and `rejected`.
    """
    tokenizer = reward_model.processing_class
    scores = []
    for side in ("chosen", "rejected"):
        ids = [encode_completion(tokenizer, message_text(response)) for response in pairs[side]]
        scores.append(reward_model.score(pairs["prompt"][:], ids, template_kwargs(pairs)))
    return [chosen > rejected for chosen, rejected in zip(*scores, strict=True)]
