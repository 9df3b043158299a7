"""What can go wrong by a user's hand: every message names the argument, its value and the remedy."""


class ScddError(Exception):
    """Base of every error that scdd raises on purpose; the command line prints it as one line."""


class InputError(ScddError, ValueError):
    """An argument or the content of an atlas that cannot be used as it is."""


class DataFileError(ScddError, OSError):
    """A file that cannot be read or written: missing, truncated, corrupt, read-only."""
