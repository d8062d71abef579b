"""Errors that a user can cause: the command line prints them as one line and exits with code 2."""


class UserError(ValueError):
    """One line that says what is wrong, where, and how to fix it."""


class MediaError(UserError):
    """A media file that cannot be read as its declared kind; the message starts with its path."""


class DataError(UserError):
    """A conversation or a data file that cannot be used; the message starts with `file:line`."""


class ConfigError(UserError):
    """A configuration value that is unknown or not supported; the message names the key."""


class Preempted(Exception):
    """The run was interrupted from outside; the same command resumes it from its last checkpoint."""
