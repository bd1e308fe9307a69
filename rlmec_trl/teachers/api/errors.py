"""Errors of API teachers: for one row, or for all."""

from ...data.errors import UserError


class TeacherError(UserError, RuntimeError):
    """The teacher cannot be used, and every row would fail in the same way."""


class RequestFailedError(Exception):
    """
    A request got no answer. Other requests may still succeed.

    Args:
        reason (`str`):
            Why not.
        about_row (`bool`, *optional*, defaults to `False`):
            Whether the API rejects this particular request rather than failing itself.
    """

    def __init__(self, reason: str, about_row: bool = False):
        super().__init__(reason)
        self.about_row = about_row
