"""What a stage raises on purpose, as one tree; each says by its exit code whether to try again."""


class StageError(Exception):
    """Base of what a stage raises on purpose. The message names the file or item and the remedy."""

    exit_code = 70


class BadInput(StageError):
    """The input is bad: trying again cannot help."""

    exit_code = 65


class TryAgain(StageError):
    """It may pass later: a disk that was full, a store out of reach, a GPU out of memory."""

    exit_code = 75


class WrongConfig(StageError):
    """The config or the environment is wrong."""

    exit_code = 78
