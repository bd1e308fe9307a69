"""Movie reviews: sentences from Rotten Tomatoes, and their sentiment."""

from .classification import classification_task


TASK = classification_task(
    "movie_reviews",
    labels=("negative", "positive"),  # `neg` and `pos` in the dataset
    texts={"text": "Review"},
    question="What is the sentiment of this movie review?",
    hub_id="cornell-movie-review-data/rotten_tomatoes",
)
