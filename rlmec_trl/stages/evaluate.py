"""Let a policy solve problems greedily and count its right answers, on as many processes as there are."""

from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..generation.processes import process_state
from ..generation.sampling import sample_completions
from ..reports.accuracy import Accuracy
from ..tasks.task import Task


def solve(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    dataset: Dataset,
    task: Task,
    max_new_tokens: int = 512,
    batch_size: int = 16,
) -> Accuracy:
    """
    Accuracy of greedy decoding. A completion that `max_new_tokens` cut off counts by what it says until there.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        dataset ([`~datasets.Dataset`]):
            Problems: `prompt` and `answer`.
        task ([`~rlmec_trl.tasks.task.Task`]):
            How answers are checked.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Greatest length of a completion, in tokens.
        batch_size (`int`, *optional*, defaults to `16`):
            Completions generated at a time, on each process.
    """
    state = process_state()
    own = dataset.select(range(state.process_index, len(dataset), state.num_processes))
    completions = sample_completions(
        model,
        processing_class,
        own["prompt"],
        num_samples=1,
        temperature=0.0,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        desc="Evaluating",
    )
    texts = [processing_class.decode(ids, skip_special_tokens=True) for (ids,) in completions]
    correct = sum(task.check_answer(text, answer) for text, answer in zip(texts, own["answer"], strict=True))
    return Accuracy(sum(gather_object([correct])), len(dataset))
