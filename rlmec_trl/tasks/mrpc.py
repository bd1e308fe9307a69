"""MRPC: pairs of sentences from the news, and whether they mean the same. All splits have answers."""

from .classification import classification_task


TASK = classification_task(
    "mrpc",
    labels=("not equivalent", "equivalent"),
    texts={"sentence1": "Sentence 1", "sentence2": "Sentence 2"},
    question="Do the two sentences have the same meaning?",
    hub_id="nyu-mll/glue",
    hub_configs=("mrpc",),
)
