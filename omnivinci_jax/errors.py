"""The errors that a user can cause: the command line prints them as one line and exits with code 2."""


class UserError(ValueError):
    """One line that says what is wrong, where, and what to do about it."""


class MediaError(UserError):
    """A media file that cannot be read as what it was given for; the message starts with its path."""


class DataError(UserError):
    """A conversation or a data file that cannot be used; the message starts with `file:line`."""


class ConfigError(UserError):
    """A configuration value that is unknown or not supported; the message names the key."""


class Preempted(Exception):
    """Something that is no fault of the run ended it: the same command goes on from its last save."""
