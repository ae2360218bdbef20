"""Digests of outside files, remembered by (path, size, time, inode) so that a file is hashed once.

The memory is a convenience beside the store (a small SQLite file in the user's cache), never a source of
truth: delete it and everything is hashed again.
"""

import hashlib
import itertools
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

PathName = TypeVar("PathName", str, Path)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, inode INTEGER, sha256 TEXT)
  WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT, sha256 TEXT, value TEXT, PRIMARY KEY (name, sha256)) WITHOUT ROWID;
"""


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashed(opened: Callable[[PathName], IO[bytes]], names: Iterable[PathName]) -> Iterator[tuple[PathName, str]]:
    """(name, SHA-256 of its bytes), in order, in threads: hashlib works, and files are read, without Python's lock."""
    names, stopped = iter(names), threading.Event()

    def digest(name: PathName) -> str:
        found = hashlib.sha256()
        with opened(name) as file:
            while (block := file.read(1 << 20)) and not stopped.is_set():
                found.update(block)
        return found.hexdigest()

    cores = int(os.environ.get("MALMM_CPUS") or len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(cores, "hash") as pool:
        try:
            while some := list(itertools.islice(names, 1000)):
                yield from zip(some, pool.map(digest, some))
        finally:
            stopped.set()  # Ctrl-C does not wait for the end of a large file


class Digests:
    """Remembered digests. `location` defaults to $MALMM_CACHE/digests.sqlite, else ~/.cache/malmm/."""

    def __init__(self, location: Path | None = None):
        default = Path(os.environ.get("MALMM_CACHE") or Path.home() / ".cache" / "malmm")
        location = location or default / "digests.sqlite"
        location.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(location, timeout=60, check_same_thread=False)
        self._db.executescript("PRAGMA journal_mode=WAL;" + _SCHEMA)

    def file(self, path: Path) -> str:
        """SHA-256 of one file's bytes. Raises FileNotFoundError."""
        return self.files([path])[path]

    def files(
        self, paths: Iterable[PathName], progress: Callable[[int, int], None] | None = None
    ) -> dict[PathName, str]:
        """SHA-256 of many files; only those that changed since the last time are read."""
        paths = list(paths)
        names = {path: os.path.abspath(path) for path in paths}
        known = self._known(sorted(set(names.values())))
        digests: dict[PathName, str] = {}
        changed: dict[PathName, tuple[int, int, int]] = {}
        for path, name in names.items():
            stat = os.stat(path)
            identity = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
            remembered = known.get(name)
            if remembered is not None and remembered[:3] == identity:
                digests[path] = remembered[3]
            else:
                changed[path] = identity
        if progress is not None:
            progress(len(digests), len(names))
        for path, digest in hashed(_for_reading, changed):
            digests[path] = digest
            if progress is not None:
                progress(len(digests), len(names))
        fresh = [(names[path], *identity, digests[path]) for path, identity in changed.items()]
        if fresh:
            with self._lock, self._db:
                self._db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", fresh)
        return digests

    def folder(self, path: Path) -> str:
        """One digest of a folder: SHA-256 over the sorted names and digests of all regular files below it."""
        found = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
        return listing_digest((p.relative_to(path).as_posix(), digest) for p, digest in self.files(found).items())

    def fact(self, name: str, sha256: str, compute: Callable[[], Any]) -> Any:
        """A JSON value that follows from content `sha256` alone, computed once. `name` says which, with version."""
        with self._lock:
            row = self._db.execute("SELECT value FROM facts WHERE name=? AND sha256=?", (name, sha256)).fetchone()
        if row is not None:
            return json.loads(row[0])
        value = compute()
        with self._lock, self._db:
            self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", (name, sha256, json.dumps(value)))
        return value

    def _known(self, names: list[str]) -> dict[str, tuple[int, int, int, str]]:
        if not names:
            return {}
        with self._lock:
            if len(names) < 500:
                marks = ",".join("?" * len(names))
                rows = self._db.execute(f"SELECT * FROM files WHERE path IN ({marks})", names).fetchall()
            else:  # one scan of the neighbourhood beats thousands of look-ups
                rows = self._db.execute(
                    "SELECT * FROM files WHERE path BETWEEN ? AND ?", (names[0], names[-1])
                ).fetchall()
        return {row[0]: row[1:] for row in rows}


def listing_digest(entries: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of (name, digest) pairs in sorted order; lengths delimit, so that no two listings collide."""
    digest = hashlib.sha256()
    for name, value in sorted(entries):
        encoded = name.encode("utf-8", "surrogateescape")
        digest.update(f"{len(encoded)}:".encode() + encoded + f"={value}\n".encode())
    return digest.hexdigest()


def _for_reading(path: str | Path) -> IO[bytes]:
    return open(path, "rb")


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)
