"""The wrong label that a policy is most likely to state, counted in its own samples."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable

from datasets import Dataset

from ..data.messages import message_text, without_empty_fields
from ..tasks.task import Task


def problem_key(row: dict) -> str:
    """What two rows of the same problem have in common: the prompt and the answer."""
    return json.dumps([without_empty_fields(row["prompt"]), row["answer"]], sort_keys=True)


class StatedLabels:
    """
    The labels that the samples of a policy state.

    Args:
        samples (`Iterable[Dataset]`):
            Datasets with `prompt`, `answer` and `completion`.
        task ([`~rlmec_trl.tasks.task.Task`]):
            How labels are read.
    """

    def __init__(self, samples: Iterable[Dataset], task: Task):
        self.task = task
        self._of_problem: dict[str, Counter[str]] = defaultdict(Counter)
        self._of_answer: dict[str, Counter[str]] = defaultdict(Counter)
        for dataset in samples:
            for row in dataset.select_columns(["prompt", "answer", "completion"]):
                self._count(row)

    def _count(self, row: dict) -> None:
        label = self.task.stated_label(message_text(row["completion"]), self.task.raw_problem(row["prompt"]))
        if label is not None and label != row["answer"]:
            self._of_problem[problem_key(row)][label] += 1
            self._of_answer[row["answer"]][label] += 1

    def most_confusable(self, row: dict) -> str | None:
        """
        The wrong label that the samples of a problem state most often; where they state none, the samples of all
        problems with its answer. `None` if these state none either. Of labels that are stated as often, the first.
        """
        for counts in (self._of_problem.get(problem_key(row)), self._of_answer.get(row["answer"])):
            if counts:
                return max(self.task.labels, key=lambda label: counts[label])
        return None
