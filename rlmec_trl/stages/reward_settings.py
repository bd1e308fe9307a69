"""The reward of RLLR as recipes set it: which one, from which reward models, with which cap."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from accelerate.utils import broadcast_object_list
from trl import ModelConfig

from ..credit.paper import RLLR_PAPER
from ..data.checks import check_config
from ..data.errors import ConfigError, errors_of_dataset
from ..data.loading import load_rows
from ..data.messages import template_kwargs
from ..data.schema import check_dataset
from ..data.tokens import same_vocabulary
from ..generation.loading import load_tokenizer
from ..generation.processes import process_state
from ..generation.reward_models import SequenceRewardModel
from ..tasks.task import load_task
from .contents import named_model, rows_hash
from .keys import task_key
from .label_rewards import (
    floored_without_label,
    median_cap,
    rlhf_reward,
    rllr_mixed_reward,
    rllr_reward,
    running_normalized,
)
from .model_cards import About
from .rationales import check_labels


@dataclass
class LabelSensitiveRewardConfig:
    r"""
    Settings of the reward of RLLR.

    Parameters:
        reward (`str`, *optional*, defaults to `"rllr_mixed"`):
            The score of the quality reward model (`"rlhf"`), that of the label reward model (`"rllr"`), or the sum of
            both, with the label's capped (`"rllr_mixed"`).
        label_reward_model (`str`, *optional*):
            Path or Hub name of the reward model trained on label-sensitive pairs, or of an adapter.
        label_reward_model_revision (`str`, *optional*, defaults to `"main"`):
            Its revision on the Hub.
        quality_reward_model (`str`, *optional*):
            Path or Hub name of the one trained on rationale-sensitive pairs. Two adapters of one base model share its
            weights. For `"rllr_mixed"`, it may be the label reward model itself, trained on both kinds of pairs.
        quality_reward_model_revision (`str`, *optional*, defaults to `"main"`):
            Its revision on the Hub.
        label_cap (`float`, *optional*):
            Largest label score that counts. It does not transfer from one reward model to another. If unset, it is the
            median label score of the correct responses in `cap_dataset_name`.
        cap_dataset_name (`str`, *optional*):
            Responses of the policy to validation problems, as the sample stage writes them.
        task (`str`, *optional*):
            Task with labels: a built-in one, `package.module:NAME` or `path/to/file.py:NAME`. If set, a completion
            that states none of its labels gets the smallest reward of its batch, as reward models have not learned to
            score those.
        normalize_reward (`bool`, *optional*, defaults to `False`):
            Whether rewards are shifted and scaled by the mean and the standard deviation of all rewards so far, after
            mixing, as in the code that was released with the paper.
        reward_batch_size (`int`, *optional*, defaults to `16`):
            Number of completions that a reward model scores at a time. It does not change the scores.
    """

    reward: str = field(
        default="rllr_mixed",
        metadata={
            "help": "The score of the quality reward model (`rlhf`), that of the label reward model (`rllr`), or the "
            "sum of both, with the label's capped (`rllr_mixed`).",
            "choices": ["rlhf", "rllr", "rllr_mixed"],
        },
    )
    label_reward_model: str | None = field(
        default=None,
        metadata={"help": "Path or Hub name of the reward model, or adapter, trained on label-sensitive pairs."},
    )
    label_reward_model_revision: str = field(
        default="main", metadata={"help": "Revision of the label reward model on the Hub."}
    )
    quality_reward_model: str | None = field(
        default=None,
        metadata={"help": "Path or Hub name of the reward model, or adapter, trained on rationale-sensitive pairs."},
    )
    quality_reward_model_revision: str = field(
        default="main", metadata={"help": "Revision of the quality reward model on the Hub."}
    )
    label_cap: float | None = field(
        default=None,
        metadata={
            "help": "Largest label score that counts. If unset, the median label score of the correct responses in "
            "`cap_dataset_name`."
        },
    )
    cap_dataset_name: str | None = field(
        default=None,
        metadata={"help": "Responses of the policy to validation problems, as `sample.py` writes them."},
    )
    task: str | None = field(
        default=None,
        metadata={
            "help": "Task with labels: a built-in one, `package.module:NAME` or `path/to/file.py:NAME`. If set, a "
            "completion that states none of its labels gets the smallest reward of its batch, as reward models have "
            "not learned to score those."
        },
    )
    normalize_reward: bool = field(
        default=False,
        metadata={
            "help": "Whether rewards are shifted and scaled by the mean and the standard deviation of all rewards so "
            "far, as in the code that was released with the paper."
        },
    )
    reward_batch_size: int = field(
        default=16, metadata={"help": "Number of completions that a reward model scores at a time."}
    )

    def __post_init__(self):
        check_config(self)
        needed = {
            "label_reward_model": self.reward in ("rllr", "rllr_mixed"),
            "quality_reward_model": self.reward in ("rlhf", "rllr_mixed"),
        }
        for name, is_needed in needed.items():
            if is_needed and getattr(self, name) is None:
                raise ConfigError(f"`--reward {self.reward}` needs `--{name}`: the output of `train_label_reward.py`.")
        if self.reward == "rllr_mixed" and (self.label_cap is None) == (self.cap_dataset_name is None):
            raise ConfigError(
                "`--reward rllr_mixed` needs either a number as `--label_cap`, or responses to validation problems "
                "(`sample.py`) as `--cap_dataset_name`."
            )


_USED = {
    "rlhf": ("quality_reward_model",),
    "rllr": ("label_reward_model",),
    "rllr_mixed": ("label_reward_model", "quality_reward_model"),
}


def about_reward(config: LabelSensitiveRewardConfig) -> About:
    """What the card of a model that was trained with a reward says of it."""
    models = {name.replace("_", " "): getattr(config, name) for name in _USED[config.reward]}
    return About(config.task, reward_models=models, paper=RLLR_PAPER if config.reward != "rlhf" else None)


def load_reward(
    config: LabelSensitiveRewardConfig, model_args: ModelConfig, trust_remote_code: bool = False
) -> tuple[Callable[..., list[float]], dict[str, Any]]:
    """
    Load the reward models, and make the reward function of them.

    Args:
        config ([`LabelSensitiveRewardConfig`]):
            The reward.
        model_args ([`~trl.ModelConfig`]):
            The policy, whose tokenizer the reward models must share, and the dtype of all models.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that the models' repositories ship.

    Returns:
        `tuple[Callable, dict[str, Any]]`: A reward function for TRL's trainers, and what a training with it depends
        on, for [`~rlmec_trl.stages.training.train_and_save`].

    Raises:
        [`~rlmec_trl.data.errors.ModelError`]: If a reward model cannot be loaded, or is none.
        [`~rlmec_trl.data.errors.ConfigError`]: If a reward model has another tokenizer than the policy, or no response
            in `cap_dataset_name` is correct.
        [`~rlmec_trl.data.schema.DatasetError`]: If a row of `cap_dataset_name` is invalid.
    """
    depends_on: dict[str, Any] = {"reward": config.reward, "normalized": config.normalize_reward}
    tokenizer = load_tokenizer(model_args, trust_remote_code)
    models: dict[str, SequenceRewardModel] = {}
    loaded: dict[tuple[str, str], SequenceRewardModel] = {}  # by path or name, and revision
    for name in _USED[config.reward]:
        source = path, revision = getattr(config, name), getattr(config, f"{name}_revision")
        if source not in loaded:
            loaded[source] = SequenceRewardModel.from_pretrained(
                path,
                revision,
                trust_remote_code,
                beside=next(iter(loaded.values()), None),
                model_init_kwargs={"dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation},
                batch_size=config.reward_batch_size,
            )
        models[name] = loaded[source]
        own = models[name].processing_class
        if not same_vocabulary(own, tokenizer) or own.chat_template != tokenizer.chat_template:
            raise ConfigError(
                f"The {name.replace('_', ' ')} {path!r} has another tokenizer or chat template than the policy "
                f"{model_args.model_name_or_path!r}. Train reward models from the policy's own model."
            )
        depends_on[name.replace("_", " ")] = named_model(path, revision)
    if config.reward == "rlhf":
        reward_func = rlhf_reward(models["quality_reward_model"])
    elif config.reward == "rllr":
        reward_func = rllr_reward(models["label_reward_model"])
    else:
        cap = depends_on["label cap"] = config.label_cap
        if cap is None:
            cap, depends_on["label cap"] = _find_cap(models["label_reward_model"], config.cap_dataset_name)
        reward_func = rllr_mixed_reward(models["label_reward_model"], models["quality_reward_model"], cap)
    if config.task is not None:
        task = load_task(config.task)
        check_labels(task)
        reward_func = floored_without_label(reward_func, task)
        depends_on["task"] = task_key(task, config.task)["labels"]
    return running_normalized(reward_func) if config.normalize_reward else reward_func, depends_on


def _find_cap(label: SequenceRewardModel, dataset_name: str) -> tuple[float, str]:
    """The cap that validation gives, and the hash of its rows."""
    rows = load_rows(dataset_name)
    with errors_of_dataset(dataset_name):
        check_dataset(rows, "validation", vocab_size=label.vocab_size)
    columns = (rows[name][:] for name in ("prompt", "completion_ids", "correct"))
    cap = median_cap(label, *columns, chat_template_kwargs=template_kwargs(rows))
    state = process_state()
    if state.num_processes > 1:
        # One number for all processes, whose devices may round differently
        (cap,) = broadcast_object_list([cap])
    state.print(f"The label score is capped at {cap:.3f}, its median over {sum(rows['correct'])} correct responses.")
    names = ("prompt", "completion_ids", "correct", "chat_template_kwargs")
    return cap, rows_hash(rows.select_columns([name for name in names if name in rows.column_names]))
