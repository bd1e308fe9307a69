"""An API teacher as an editor."""

from collections import Counter
from collections.abc import Sequence

from datasets import Dataset

from ..tasks.task import Task
from ..tasks.wording import WORDING, Wording
from .api.budget import Estimate
from .api.journaled_teacher import JournaledTeacher, answer_together
from .api.questions import Question
from .edit_questions import make_edit_question, read_edit
from .editors import Edit, NoEdit, Usable, edit_dataset, editor_inputs


class JournaledEditor:
    """
    An API teacher as an editor: it is asked until an edit passes verification.

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
        self,
        problems: Sequence[str],
        references: Sequence[str],
        completions: Sequence[str],
        usable: Usable | None = None,
    ) -> list[Edit]:
        def read(index: int, text: str) -> Edit:
            return read_edit(self.wording, self.teacher.config.structured_output, completions[index], text)

        usable = usable or (lambda index, edit: not isinstance(edit, NoEdit))
        return self.teacher.answer(self.questions(problems, references, completions), read, usable, NoEdit)

    def questions(
        self, problems: Sequence[str], references: Sequence[str], completions: Sequence[str]
    ) -> list[Question]:
        """The request for each attempt. Equal rows have the same key, and are requested once."""
        return self.teacher.make_questions(make_edit_question, self.wording, problems, references, completions)

    def estimate(self, problems: Sequence[str], references: Sequence[str], completions: Sequence[str]) -> Estimate:
        """
        Estimate what the rows without an answer will cost. A rewrite is expected to be as long as its attempt.

        Raises:
            [`~rlmec_trl.teachers.api.errors.TeacherError`]: If the teacher cannot be reached.
        """
        return self.teacher.estimate(self.questions(problems, references, completions))


def edit_through_journal(
    dataset: Dataset, editor: JournaledEditor, task: Task, check_correct_samples: bool = True
) -> tuple[Dataset, Counter]:
    """[`~rlmec_trl.teachers.editors.edit_dataset`] with an API teacher, on all processes of the run."""

    def edit(indices: Sequence[int]) -> tuple[Dataset, Counter]:
        return edit_dataset(dataset.select(indices), editor, task, check_correct_samples)

    return answer_together(editor.teacher, editor.questions(*editor_inputs(dataset, task)), edit)
