"""Errors that end a job with a one-line message. This module imports nothing, so command lines can catch them early."""


class ConfigError(Exception):
    """Raised for an invalid setting; the message has the key, the value and what is allowed. Exit status 2."""


class StepFailed(RuntimeError):
    """Raised when a step cannot finish; the message has the cause and whether to run it again. Exit status 1."""


class ItemsFailed(StepFailed):
    """Raised when items of a step have no result; the message names them."""


class MissingArtifact(Exception):
    """Raised when a required artifact does not exist or is not finished; the message says how to make it."""


class StorageError(OSError):
    """Raised when storage cannot be written, or an S3 request fails after all retries; the message has the URI."""
