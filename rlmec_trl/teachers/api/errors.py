"""What can go wrong with a teacher behind an API: for one row, or for all of them."""


class TeacherError(RuntimeError):
    """The teacher cannot be used, and every row would fail in the same way."""


class RequestFailedError(Exception):
    """
    A request got no answer. Others may.

    Args:
        reason (`str`):
            Why not.
        about_row (`bool`, *optional*, defaults to `False`):
            Whether the API rejects this very request, and is not itself in trouble.
    """

    def __init__(self, reason: str, about_row: bool = False):
        super().__init__(reason)
        self.about_row = about_row
