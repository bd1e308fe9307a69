"""Errors that a user has to fix."""


class UserError(Exception):
    """
    Something that only the user can fix: an input, a setting, a folder. The message says in one sentence what was
    found, where (row, column, file or setting), and what to do. Recipes print it without a traceback.
    """


class ConfigError(UserError, ValueError):
    """An invalid setting, or an invalid combination of settings."""


class DatasetError(UserError, ValueError):
    """A dataset that a stage cannot use. The message names the row, the column, the value, and the fix."""


class ModelError(UserError, ValueError):
    """A model or tokenizer cannot be loaded. The message has its path and what is wrong there."""
