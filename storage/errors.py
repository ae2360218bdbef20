"""What can go wrong in the store, as one tree: catch `StorageError` for all of it."""


class StorageError(Exception):
    """Base of every error that storage raises; its message names the thing and what to do.

    `exit_code`: as a stage's (stages/errors.py): 65 bad input, 75 may pass later, 78 wrong config.
    """

    exit_code = 65


class MissingArtifact(StorageError):
    """An artifact was asked for that has not been published."""


class MissingEmbedding(StorageError):
    """Items were asked for that no published shard holds. Never answered with zeros."""


class CorruptArtifact(StorageError):
    """Published bytes are not what their manifest or their format says."""


class StoreUnreachable(StorageError):
    """The store gives no answer, or says that it is too busy."""

    exit_code = 75


class StoreRefused(StorageError):
    """The store is not there, or does not let us in: URL or credentials are wrong."""

    exit_code = 78
