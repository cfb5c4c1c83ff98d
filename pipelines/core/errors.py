"""The errors that end a job in one line. Importing them loads nothing, so a command line can catch them early."""


class ConfigError(Exception):
    """A bad setting; the message names the key, the value and what is allowed. Exit status 2."""


class StepFailed(RuntimeError):
    """A step that came to no end; the message says why, and whether to run it again. Exit status 1."""


class ItemsFailed(StepFailed):
    """Some items of a step have no result; the message names them."""


class MissingArtifact(Exception):
    """No finished artifact exists where one is needed; the message says which and how to make it."""


class StorageError(OSError):
    """S3 refused, or still failed at the last attempt; the message has the URI and S3's reason."""
