"""AG News: the beginnings of news articles, and their topics."""

from .classification import classification_task


TASK = classification_task(
    "ag_news",
    labels=("World", "Sports", "Business", "Sci/Tech"),
    texts={"text": "Article"},
    question="What is the topic of this news article?",
    hub_id="fancyzhx/ag_news",
    splits=("train", "test"),
)
