"""QQP: pairs of questions from Quora, and whether they ask the same."""

from .classification import classification_task


TASK = classification_task(
    "qqp",
    labels=("not duplicate", "duplicate"),
    texts={"question1": "Question 1", "question2": "Question 2"},
    question="Do the two questions ask the same, so that an answer to one would answer the other?",
    hub_id="nyu-mll/glue",
    hub_configs=("qqp",),
    splits=("train", "validation"),
)
