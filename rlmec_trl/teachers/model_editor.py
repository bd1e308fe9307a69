"""A local model as the teacher."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.steps import first_changed_step, split_steps
from ..tasks.wording import WORDING, Wording, locate_prompt, parse_locate, rewrite_prompt
from .editors import Edit, NoEdit, Usable
from .local_model import ask_model


class ModelEditor:
    """
    A local causal language model as the teacher. It gets one prompt for the first incorrect step and one for the
    corrected attempt.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any instruction-tuned causal language model.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer. If it has a chat template, each prompt is a user message.
        wording ([`~rlmec_trl.tasks.wording.Wording`], *optional*):
            Wording of the two prompts.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of attempts in a batch.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Maximum length of a rewrite, in tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processing_class: PreTrainedTokenizerBase,
        wording: Wording = WORDING,
        batch_size: int = 16,
        max_new_tokens: int = 512,
    ):
        self.model = model
        self.processing_class = processing_class
        self.wording = wording
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens

    def __call__(
        self,
        problems: Sequence[str],
        references: Sequence[str],
        completions: Sequence[str],
        usable: Usable | None = None,
    ) -> list[Edit]:
        rows = list(zip(problems, references, completions, strict=True))
        rewrites = self._ask([rewrite_prompt(self.wording, *row) for row in rows], self.max_new_tokens, "Rewriting")
        answers = self._ask([locate_prompt(self.wording, *row) for row in rows], 16, "Locating errors")
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

    def _ask(self, prompts: list[str], max_new_tokens: int, desc: str) -> list[str | None]:
        return ask_model(self.model, self.processing_class, prompts, max_new_tokens, self.batch_size, desc)
