"""Questions with options."""

from .answers import check_choice
from .task import Task


TASK = Task("choice", check_choice)
