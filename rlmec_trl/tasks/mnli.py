"""MNLI: a premise and a hypothesis, and whether the first entails or contradicts the second."""

from .classification import classification_task


TASK = classification_task(
    "mnli",
    labels=("entailment", "neutral", "contradiction"),
    texts={"premise": "Premise", "hypothesis": "Hypothesis"},
    question="Does the premise entail the hypothesis, contradict it, or neither (neutral)?",
    hub_id="nyu-mll/glue",
    hub_configs=("mnli",),
    splits=("train", "validation_matched", "validation_mismatched"),
)
