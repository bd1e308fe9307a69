"""Base class of local models as teachers."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.tokens import as_prompt, encode_prompt
from ..generation.inference import eos_token_ids, generate_ids
from ..tasks.wording import WORDING, Wording


class LocalModel:
    """
    A causal language model in this process, which is asked questions.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any instruction-tuned causal language model.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer. If it has a chat template, each question is a user message.
        wording ([`~rlmec_trl.tasks.wording.Wording`], *optional*):
            Wording of the questions.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of questions in a batch.
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

    def ask(self, prompts: Sequence[str], desc: str, max_new_tokens: int | None = None) -> list[str | None]:
        """
        The greedy answers to questions; `None` for those truncated.

        Args:
            prompts (`Sequence[str]`):
                The questions.
            desc (`str`):
                Description of the progress bar.
            max_new_tokens (`int`, *optional*):
                Maximum length of an answer, in tokens, if another than that of a response.
        """
        processing_class = self.processing_class
        prompt_ids = [encode_prompt(processing_class, as_prompt(processing_class, prompt)) for prompt in prompts]
        limit = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        answers = generate_ids(self.model, processing_class, prompt_ids, limit, self.batch_size, desc)
        ends = eos_token_ids(self.model.generation_config, processing_class)
        return [
            processing_class.decode(ids, skip_special_tokens=True).strip() if ids[-1] in ends else None
            for ids in answers
        ]
