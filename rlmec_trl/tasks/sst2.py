"""SST-2: phrases and sentences from movie reviews, and their sentiment."""

from .classification import classification_task


TASK = classification_task(
    "sst2",
    labels=("negative", "positive"),
    texts={"sentence": "Sentence"},
    question="What is the sentiment of this sentence from a movie review?",
    hub_id="nyu-mll/glue",
    hub_configs=("sst2",),
    splits=("train", "validation"),
)
