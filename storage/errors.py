"""What can go wrong in the store, as one tree: catch `StorageError` for all of it."""


class StorageError(Exception):
    """Base of every error that storage raises; its message names the thing and what to do."""


class MissingArtifact(StorageError):
    """An artifact was asked for that has not been published."""


class MissingEmbedding(StorageError):
    """Items were asked for that no published shard holds. Never answered with zeros."""


class CorruptArtifact(StorageError):
    """Published bytes are not what their manifest or their format says."""
