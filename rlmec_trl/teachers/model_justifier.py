"""A local model that justifies labels."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..tasks.wording import WORDING, Wording
from .local_model import ask_model
from .rationales import NoRationale, Rationale
from .text_questions import justify_prompt, read_rationale


class ModelJustifier:
    """
    A local causal language model that justifies labels.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any instruction-tuned causal language model.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer. If it has a chat template, each request is a user message.
        wording ([`~rlmec_trl.tasks.wording.Wording`], *optional*):
            Wording of the request.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of responses in a batch.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Maximum length of a response, in tokens.
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

    def __call__(self, problems: Sequence[str], labels: Sequence[str]) -> list[Rationale]:
        prompts = [justify_prompt(self.wording, *row) for row in zip(problems, labels, strict=True)]
        sizes = (self.max_new_tokens, self.batch_size)
        answers = ask_model(self.model, self.processing_class, prompts, *sizes, "Writing rationales")
        return [NoRationale("truncated") if text is None else read_rationale(False, text) for text in answers]
