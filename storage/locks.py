"""One writer at a time: who would make an artifact that another process is making waits for it instead."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from storage.store import Store

UNKNOWN = (errno.ENOLCK, errno.EOPNOTSUPP)  # what a file system without locks answers


@contextlib.contextmanager
def alone(store: Store, name: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of `name` in a store. While another process has it, calls `waiting` and waits.

    The lock is the kernel's (flock): it ends with its process, whatever ends that, and holds between machines where
    their file system says so. Object stores have none: there two writers are not kept apart.
    """
    if store.local is None:
        yield
        return
    path = Path(store.path(f"{name}.lock"))
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _locked(path, waiting)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _locked(path: Path, waiting: Callable[[], None]) -> int:
    """A descriptor of the file at `path`, locked where its file system knows locks."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        with contextlib.suppress(PermissionError):  # another's, who has done the same
            os.fchmod(file, 0o666)  # who is killed leaves it, and the next may be another user
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in UNKNOWN:
                raise
        if _is_at(file, path):
            return file
        os.close(file)  # who held the lock before took the file away: others lock the one that came after it


def _is_at(file: int, path: Path) -> bool:
    """Whether `path` still names this file."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False
