"""A local model that justifies labels."""

from collections.abc import Sequence

from .local_model import LocalModel
from .rationales import NoRationale, Rationale
from .text_questions import justify_prompt, read_rationale


class ModelJustifier(LocalModel):
    """A local causal language model that justifies labels. It is made as a [`LocalModel`] is."""

    def __call__(self, problems: Sequence[str], labels: Sequence[str]) -> list[Rationale]:
        prompts = [justify_prompt(self.wording, *row) for row in zip(problems, labels, strict=True)]
        answers = self.ask(prompts, "Writing rationales")
        return [NoRationale("truncated") if text is None else read_rationale(False, text) for text in answers]
