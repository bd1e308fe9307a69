"""A local model as the teacher."""

from collections.abc import Sequence

from ..data.steps import first_changed_step, split_steps
from ..tasks.wording import locate_prompt, parse_locate, rewrite_prompt
from .editors import Edit, NoEdit, Usable
from .local_model import LocalModel


class ModelEditor(LocalModel):
    """
    A local causal language model as the teacher. It gets one question for the first incorrect step and one for the
    corrected attempt. It is made as a [`LocalModel`] is.
    """

    def __call__(
        self,
        problems: Sequence[str],
        references: Sequence[str],
        completions: Sequence[str],
        usable: Usable | None = None,
    ) -> list[Edit]:
        rows = list(zip(problems, references, completions, strict=True))
        rewrites = self.ask([rewrite_prompt(self.wording, *row) for row in rows], "Rewriting")
        answers = self.ask([locate_prompt(self.wording, *row) for row in rows], "Locating errors", max_new_tokens=16)
        edits = []
        for completion, rewrite, answer in zip(completions, rewrites, answers, strict=True):
            if rewrite is None:
                edits.append(NoEdit("truncated"))
                continue
            located = None if answer is None else parse_locate(self.wording, answer)
            if located is None or located >= len(split_steps(completion, self.wording.step_separator)):
                # The answer is unusable, but the rewrite itself shows where the attempt was first changed
                located = first_changed_step(completion, rewrite, self.wording.step_separator)
            edits.append((located, rewrite))
        return edits
