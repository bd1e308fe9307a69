"""Problems whose answer is a number or an expression."""

from .answers import check_math
from .task import Task


TASK = Task("math", check_math)
