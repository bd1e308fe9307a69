"""What the columns of the stages hold, in words, for dataset cards. Descriptions in docs/data.md begin with these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from datasets.features.features import FeatureType


MEANINGS = {
    "prompt": "prompt of the policy",
    "chat_template_kwargs": "further arguments of the chat template, as in TRL",
    "tools": "tools of the chat template, as in TRL",
    "reference": "a correct worked solution, in any style",
    "answer": "the final answer",
    "completion": "what the policy generated",
    "completion_ids": "its token ids as sampled, with EOS",
    "correct": "whether the answer checker accepts it",
    "rewrite": "the minimally edited sample; it passed the answer check and, where the task has one, the step check; "
    "`None` if not verified",
    "error_step": "index of the first incorrect step from 0, -1 where there is none",
    "label": "the label that `completion` was asked to justify, correct or not",
    "rationale_outcome": "`accepted`, or why `completion` is `None`",
    "chosen": "the better and the worse response to `prompt`, as in TRL's preference format",
    "rejected": "the better and the worse response to `prompt`, as in TRL's preference format",
    "kind": "what they differ in: `label`, or `rationale` where both state the same label",
    "chosen_label": "the label that each states",
    "rejected_label": "the label that each states",
    "edit_outcome": "result of the teacher's edit",
    "rewrite_ids": "token ids of `rewrite`",
    "rewrite_index": "which of the rewrites passed: 0 for the greedy one, `None` if none did",
    "token_probs": "probability of each completion token under the reward model; `None` for no opinion",
    "token_rewards": "your own reward for each completion token",
    "old_logps": "natural log-probability of each completion token under the sampler, at temperature 1",
    "rewrite_topk_ids": "k candidates for each token of `rewrite_ids`",
    "rewrite_topk_logps": "their log-probabilities, at temperature 1",
    "attempt_topk_ids": "k candidates for each token of `completion_ids`",
    "attempt_topk_logps": "their log-probabilities, at temperature 1",
}
_NAMES = {"string": "text", "large_string": "text", "bool": "bool", "null": "nothing"}


def type_name(feature: FeatureType) -> str:
    """
    The type of a column in words.

    Example:

    ```python
    >>> type_name(List(Value("int64"))), type_name(List({"role": Value("string"), "content": Value("string")}))
    ('list of int', 'messages')
    ```
    """
    inner: Any = getattr(feature, "feature", None)
    if inner is not None:
        return "messages" if _is_message(inner) else f"list of {type_name(inner)}"
    if isinstance(feature, dict):
        return "dict"
    dtype = str(getattr(feature, "dtype", type(feature).__name__))
    if hasattr(feature, "names"):  # a `ClassLabel`
        return f"one of {', '.join(feature.names)}"
    return _NAMES.get(dtype, dtype.rstrip("0123456789"))


def _is_message(feature: Any) -> bool:
    return isinstance(feature, dict) and {"role", "content"} <= feature.keys()
