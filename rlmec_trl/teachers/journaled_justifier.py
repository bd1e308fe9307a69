"""An API teacher that justifies labels."""

from collections import Counter
from collections.abc import Sequence

from datasets import Dataset

from ..tasks.task import Task
from ..tasks.wording import WORDING, Wording
from .api.journaled_teacher import JournaledTeacher, answer_together
from .api.questions import Question
from .rationales import NoRationale, Rationale, Usable, justifier_inputs, justify_dataset
from .text_questions import make_rationale_question, read_rationale


class JournaledJustifier:
    """
    An API teacher that justifies labels: it is asked until a response passes verification.

    Args:
        teacher ([`~rlmec_trl.teachers.api.journaled_teacher.JournaledTeacher`]):
            The teacher.
        wording ([`~rlmec_trl.tasks.wording.Wording`], *optional*):
            Wording of the task.
    """

    def __init__(self, teacher: JournaledTeacher, wording: Wording = WORDING):
        self.teacher = teacher
        self.wording = wording

    def __call__(
        self, problems: Sequence[str], labels: Sequence[str], usable: Usable | None = None
    ) -> list[Rationale]:
        def read(index: int, text: str) -> Rationale:
            return read_rationale(self.teacher.config.structured_output, text)

        usable = usable or (lambda index, response: not isinstance(response, NoRationale))
        return self.teacher.answer(self.questions(problems, labels), read, usable, NoRationale)

    def questions(self, problems: Sequence[str], labels: Sequence[str]) -> list[Question]:
        """The request for each row. Equal rows have the same key, and are requested once."""
        return self.teacher.make_questions(make_rationale_question, self.wording, problems, labels)


def justify_through_journal(dataset: Dataset, justifier: JournaledJustifier, task: Task) -> tuple[Dataset, Counter]:
    """[`~rlmec_trl.teachers.rationales.justify_dataset`] with an API teacher, on all processes of the run."""

    def justify(indices: Sequence[int]) -> tuple[Dataset, Counter]:
        return justify_dataset(dataset.select(indices), justifier, task)

    return answer_together(justifier.teacher, justifier.questions(*justifier_inputs(dataset, task)), justify)
