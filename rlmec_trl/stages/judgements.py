"""Which scores of a reward model should be low, where a task can check the steps of the samples."""

from bisect import bisect_left
from itertools import accumulate

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..data.messages import message_text
from ..data.steps import split_steps
from ..data.tokens import decode_completion, encode_completion
from ..reports.chart_data import Judgements
from ..tasks.task import Task
from ..teachers.editors import NoEdit
from .audit import first_wrong_token


def judge_scores(dataset: Dataset, task: Task, processing_class: PreTrainedTokenizerBase) -> Judgements | None:
    """
    Find out which of a reward model's probabilities belong to correct tokens, and which to incorrect ones.

    Where the task has an editor, the first token that its minimum edit changes is incorrect, and those before it are
    correct. Where it can only check steps, a step has the lowest probability of its tokens. What follows the first
    incorrect token or step of a sample is not judged.

    Args:
        dataset ([`~datasets.Dataset`]):
            Scored rows: `prompt`, `completion`, `completion_ids`, `token_probs`, and `reference` for an editor.
        task ([`~rlmec_trl.tasks.task.Task`]):
            The task.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.

    Returns:
        [`~rlmec_trl.reports.chart_data.Judgements`] or `None`: `None` if the task can check neither, or the rows have
        no probabilities.
    """
    names = set(dataset.column_names)
    if not {"prompt", "completion", "completion_ids", "token_probs"} <= names:
        return None
    dataset = dataset.with_format(None)
    problems = [task.raw_problem(prompt) for prompt in dataset["prompt"]]
    completions = [message_text(completion) for completion in dataset["completion"]]
    samples = list(zip(dataset["completion_ids"][:], dataset["token_probs"][:], strict=True))
    if task.editor is not None and "reference" in names:
        edits = task.editor(problems, dataset["reference"][:], completions)
        judged = _judge_tokens(completions, samples, edits, processing_class)
        unit = "tokens"
    elif task.check_steps is not None:
        separator = task.wording.step_separator
        verdicts = [task.check_steps(*texts) for texts in zip(problems, completions, strict=True)]
        judged = _judge_steps(completions, samples, verdicts, separator, processing_class)
        unit = "steps"
    else:
        return None
    probs, correct = zip(*judged, strict=True) if judged else ((), ())
    return Judgements(unit, np.array(probs, dtype=np.float64), np.array(correct, dtype=bool))


def _judge_tokens(completions, samples, edits, processing_class) -> list[tuple[float | None, bool]]:
    judged = []
    for completion, (ids, probs), edit in zip(completions, samples, edits, strict=True):
        if isinstance(edit, NoEdit) or probs is None:
            continue
        _, rewrite = edit
        # Most rewrites are copies, and tokenizing takes most of the time
        rewrite_ids = ids if rewrite == completion else encode_completion(processing_class, rewrite)
        first_wrong = first_wrong_token(completion, ids, rewrite, rewrite_ids)
        judged += [(prob, True) for prob in probs[:first_wrong]]
        if first_wrong is not None:
            judged.append((probs[first_wrong], False))
    return judged


def _judge_steps(completions, samples, verdicts, separator, processing_class) -> list[tuple[float | None, bool]]:
    judged = []
    for completion, (ids, probs), verdict in zip(completions, samples, verdicts, strict=True):
        step_ends = list(accumulate(map(len, split_steps(completion, separator))))
        lowest: list[float | None] = [None] * len(step_ends)
        for position, prob in enumerate(probs if step_ends and probs else ()):
            if prob is None:
                continue
            # A token belongs to the step of its last character, and EOS to the last step
            end = len(decode_completion(processing_class, ids[: position + 1]))
            step = min(bisect_left(step_ends, end), len(step_ends) - 1)
            lowest[step] = prob if lowest[step] is None else min(lowest[step], prob)
        for prob, is_correct in zip(lowest, verdict, strict=False):
            judged.append((prob, is_correct))
            if not is_correct:
                break
    return judged
