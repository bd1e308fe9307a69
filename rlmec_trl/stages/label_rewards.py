"""
The rewards of RLLR (https://huggingface.co/papers/2405.19763) in the shape of TRL's reward functions, for
[`~trl.RLOOTrainer`], [`~trl.GRPOTrainer`] and [`OnlineRLMECTrainer`].

Each function scores the prompt's ids and `completion_ids`, not the text of the completion: TRL decodes it without EOS,
with which reward models are trained.
"""

import math
from collections.abc import Callable, Sequence
from functools import wraps
from statistics import median

from accelerate.utils import gather_object
from transformers import TrainerState

from ..data.errors import ConfigError
from ..data.messages import message_text
from ..generation.reward_models import SequenceRewardModel
from ..tasks.task import Task


RewardFunc = Callable[..., list[float]]

_EPSILON = 1e-7
_MOMENTS = ("count", "mean", "squares")
# In the form in which `TrainerState` keeps the state of callbacks
_NO_MOMENTS = {"args": {}, "attributes": {"count": 0, "mean": 0.0, "squares": 0.0}}


def rlhf_reward(quality: SequenceRewardModel) -> RewardFunc:
    """
    Reward function `rlhf`: r_q, the score of a reward model trained on rationale-sensitive pairs.

    Args:
        quality ([`~rlmec_trl.generation.reward_models.SequenceRewardModel`]):
            The reward model.
    """

    def rlhf(prompts, completions, completion_ids, chat_template_kwargs=None, **kwargs) -> list[float]:
        return quality.score(prompts, completion_ids, chat_template_kwargs)

    return rlhf


def rllr_reward(label: SequenceRewardModel) -> RewardFunc:
    """
    Reward function `rllr`: r_l, the score of a reward model trained on label-sensitive pairs.

    Args:
        label ([`~rlmec_trl.generation.reward_models.SequenceRewardModel`]):
            The reward model.
    """

    def rllr(prompts, completions, completion_ids, chat_template_kwargs=None, **kwargs) -> list[float]:
        return label.score(prompts, completion_ids, chat_template_kwargs)

    return rllr


def rllr_mixed_reward(label: SequenceRewardModel, quality: SequenceRewardModel, cap: float) -> RewardFunc:
    """
    Reward function `rllr_mixed`: min(r_l, cap) + r_q. A response whose label score has reached the cap gains only
    through its rationale.

    It logs the means of both scores, as `rllr_mixed/label` and `rllr_mixed/quality`, and the fraction of the
    completions whose label score is capped, as `rllr_mixed/capped`.

    Args:
        label ([`~rlmec_trl.generation.reward_models.SequenceRewardModel`]):
            Reward model trained on label-sensitive pairs.
        quality ([`~rlmec_trl.generation.reward_models.SequenceRewardModel`]):
            Reward model trained on rationale-sensitive pairs. It may be the same object, trained on both kinds.
        cap (`float`):
            Largest label score that counts, `inf` for no cap. The pairwise loss leaves the origin of the scores free,
            so that a cap belongs to one reward model. [`median_cap`] finds it.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If `cap` is not a number.
    """
    if isinstance(cap, bool) or not isinstance(cap, int | float) or math.isnan(cap) or cap == -math.inf:
        raise ConfigError(f"`cap` must be a number over -inf, got {cap!r}.")

    def rllr_mixed(
        prompts, completions, completion_ids, chat_template_kwargs=None, log_metric=None, **kwargs
    ) -> list[float]:
        label_scores = label.score(prompts, completion_ids, chat_template_kwargs)
        same = quality is label
        quality_scores = label_scores if same else quality.score(prompts, completion_ids, chat_template_kwargs)
        if log_metric is not None and label_scores:
            num_scores = len(label_scores)
            log_metric("rllr_mixed/label", sum(label_scores) / num_scores)
            log_metric("rllr_mixed/quality", sum(quality_scores) / num_scores)
            log_metric("rllr_mixed/capped", sum(score > cap for score in label_scores) / num_scores)
        return [min(r_l, cap) + r_q for r_l, r_q in zip(label_scores, quality_scores, strict=True)]

    return rllr_mixed


def median_cap(
    label: SequenceRewardModel,
    prompts: Sequence[str | list[dict]],
    completion_ids: Sequence[list[int]],
    correct: Sequence[bool],
    chat_template_kwargs: Sequence[dict | None] | None = None,
) -> float:
    """
    The cap of the label score from validation: its median over correct responses.

    Args:
        label ([`~rlmec_trl.generation.reward_models.SequenceRewardModel`]):
            Reward model trained on label-sensitive pairs.
        prompts, completion_ids (`Sequence`):
            Responses of the policy to problems that the reward model has not seen, as `recipes/sample.py` writes them.
        correct (`Sequence[bool]`):
            Whether each response has the correct label.
        chat_template_kwargs (`Sequence[dict | None]`, *optional*):
            Arguments of the chat template for each prompt.

    Raises:
        [`~rlmec_trl.data.errors.ConfigError`]: If no response is correct.
    """
    if chat_template_kwargs is None:
        chat_template_kwargs = [None] * len(prompts)
    rows = zip(prompts, completion_ids, chat_template_kwargs, correct, strict=True)
    columns = list(zip(*(row[:3] for row in rows if row[3]), strict=True))
    if not columns:
        raise ConfigError(
            f"None of the {len(prompts)} validation responses is correct, so they give no cap. Sample more of them, "
            "or set the cap to a number."
        )
    return median(label.score(*columns))


def floored_without_label(reward_func: RewardFunc, task: Task) -> RewardFunc:
    """
    A reward function that gives a completion without a label the smallest reward of its batch.

    Reward models are trained on responses that state one, and their scores of others mean nothing. A policy finds
    those that they overrate.

    It logs the fraction of these completions, as `without_label` below the name of the function.

    Args:
        reward_func (`Callable`):
            A reward function whose result has no `None`, such as that of [`rllr_mixed_reward`].
        task ([`~rlmec_trl.tasks.task.Task`]):
            Task with labels, which reads them.
    """

    @wraps(reward_func)
    def floored(prompts, completions, completion_ids, log_metric=None, **kwargs) -> list[float]:
        rewards = reward_func(prompts, completions, completion_ids, log_metric=log_metric, **kwargs)
        problems = map(task.raw_problem, prompts)
        labels = [
            task.stated_label(message_text(completion), problem)
            for completion, problem in zip(completions, problems, strict=True)
        ]
        if log_metric is not None and labels:
            log_metric(f"{reward_func.__name__}/without_label", labels.count(None) / len(labels))
        floor = min(rewards, default=0.0)
        return [floor if label is None else reward for label, reward in zip(labels, rewards, strict=True)]

    return floored


def running_normalized(reward_func: RewardFunc) -> RewardFunc:
    """
    A reward function with its rewards shifted and scaled by the mean and the standard deviation of all rewards that it
    has given so far, the current ones included, on all processes.

    The advantages of RLOO and GRPO subtract a mean already; this brings the rewards to one scale where `beta` weighs
    them against the KL divergence. Rewards of evaluations count too, as TRL does not tell them from others. The sums
    are in the trainer's state, which checkpoints hold, so that a resumed training continues with them.

    Args:
        reward_func (`Callable`):
            A reward function whose result has no `None`, such as that of [`rllr_mixed_reward`].
    """
    name = reward_func.__name__
    key = f"running_normalized({name})"

    @wraps(reward_func)
    def normalized(
        prompts, completions, completion_ids, trainer_state: TrainerState | None = None, **kwargs
    ) -> list[float]:
        nonlocal own_moments
        rewards = reward_func(prompts, completions, completion_ids, trainer_state=trainer_state, **kwargs)
        stored = own_moments if trainer_state is None else trainer_state.stateful_callbacks.get(key, _NO_MOMENTS)
        moments = tuple(stored["attributes"][part] for part in _MOMENTS)
        for batch in gather_object([_moments(rewards)]):
            moments = _merge(moments, batch)
        stored = {"args": {}, "attributes": dict(zip(_MOMENTS, moments, strict=True))}
        if trainer_state is None:
            own_moments = stored
        else:
            trainer_state.stateful_callbacks[key] = stored
        count, mean, squares = moments
        deviation = math.sqrt(squares / max(count - 1, 1))
        return [(reward - mean) / (deviation + _EPSILON) for reward in rewards]

    own_moments = _NO_MOMENTS
    return normalized


def _moments(values: Sequence[float]) -> tuple[int, float, float]:
    """Number, mean, and sum of the squared differences from the mean."""
    mean = sum(values) / max(len(values), 1)
    return len(values), mean, sum((value - mean) ** 2 for value in values)


def _merge(first: tuple[int, float, float], second: tuple[int, float, float]) -> tuple[int, float, float]:
    count = first[0] + second[0]
    if count == 0:
        return first
    difference = second[1] - first[1]
    mean = first[1] + difference * second[0] / count
    return count, mean, first[2] + second[2] + difference**2 * first[0] * second[0] / count
