"""STS-B: pairs of sentences, and how similar they are: a score from 0 to 5, rounded to a label."""

from .classification import classification_task, read_number


TASK = classification_task(
    "stsb",
    labels=("0", "1", "2", "3", "4", "5"),
    texts={"sentence1": "Sentence 1", "sentence2": "Sentence 2"},
    question="How similar are the two sentences in meaning, from 0 (unrelated) to 5 (the same)?",
    read_label=read_number,
    hub_id="nyu-mll/glue",
    hub_configs=("stsb",),
    splits=("train", "validation"),
)
