"""App reviews: what users wrote about an Android app, and the stars that they gave. The dataset has one split."""

from .classification import classification_task, read_number


TASK = classification_task(
    "app_reviews",
    labels=("1", "2", "3", "4", "5"),
    texts={"review": "Review"},
    question="How many stars did the author of this review give to the app, from 1 (worst) to 5 (best)?",
    read_label=read_number,
    column="star",
    hub_id="sealuzh/app_reviews",
    splits=("train",),
)
