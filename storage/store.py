"""A store: one place, by fsspec URL, where bytes are put whole and read back. Local disk, memory, S3."""

from __future__ import annotations  # a method is called `list`

import errno
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import fsspec

from storage.errors import StoreRefused

if TYPE_CHECKING:  # Arrow takes a third of a second to import, and `malmm status` reads no table
    import pyarrow as pa

fsspec.register_implementation("s3", "storage.s3.S3", clobber=True)  # a name: nothing is imported for it yet

READ_AHEAD = 1 << 23  # bytes that a remote file is read ahead; s3fs's own 50 MiB are much for a file in each thread


class Store:
    """Bytes under a URL. Names are relative, with "/" between parts.

    A write is whole or absent: on a local disk it goes beside and is renamed; object stores put atomically.
    Raises StoreUnreachable and StoreRefused, where the store is another machine's.
    """

    def __init__(self, url: str | Path):
        text = os.fspath(url)
        if re.match(r"\w+://[^/]*:.*@", text):  # it would be kept in requests, and told in every message
            raise StoreRefused("the store's URL holds a password: give credentials as docs/storage.md says")
        self.fs, self.root = fsspec.core.url_to_fs(text if "://" in text else os.path.abspath(text))
        self.root = self.root.rstrip("/")
        self.url = self.fs.unstrip_protocol(self.root)
        self.local = Path(self.root) if "file" in _protocols(self.fs) else None

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def path(self, name: str) -> str:
        """The file system's own path of `name`. Raises ValueError when it would leave the store."""
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"{name!r} leaves the store {self.url}")
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        return self.fs.exists(self.path(name))

    def read_bytes(self, name: str) -> bytes:
        return self.fs.cat_file(self.path(name))

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Read one Parquet file. `columns` reads only those."""
        import pyarrow.parquet as pq

        if self.local is not None:
            return pq.read_table(self.path(name), columns=columns, memory_map=True, partitioning=None)
        with self.fs.open(self.path(name), "rb") as file:
            return pq.read_table(file, columns=columns)

    def open(self, name: str) -> IO[bytes]:
        return self.fs.open(self.path(name), "rb", block_size=READ_AHEAD)

    def write_bytes(self, name: str, data: bytes) -> None:
        with self.create(name) as file:
            file.write(data)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write one Parquet file (zstd; the same table always gives the same bytes)."""
        import pyarrow.parquet as pq

        with self.create(name) as file:
            # Candidate answers repeat a hundred times each: a large dictionary page keeps them as integers.
            pq.write_table(table, file, compression="zstd", dictionary_pagesize_limit=1 << 26)

    @contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write that appears under `name` when the block ends, and not at all when it raises."""
        path = self.path(name)
        if self.local is None:
            with tempfile.NamedTemporaryFile() as beside:
                yield beside
                beside.flush()
                self.fs.put_file(beside.name, path)  # closing a file of fsspec's would publish half, were it cut short
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        beside = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(beside, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException as error:
            Path(beside).unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                error.filename = path  # which disk is full
            raise

    def list(self, folder: str) -> list[str]:
        """Names of the entries right below `folder`, sorted; none where it does not exist."""
        try:
            entries = self.fs.ls(self.path(folder), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        names = sorted(entry.rstrip("/").rsplit("/", 1)[1] for entry in entries)
        return [name for name in names if not name.endswith(".tmp")]

    def unfinished(self) -> list[str]:
        """Files that a killed write left beside the name they were to have; only a disk has such."""
        if self.local is None:
            return []
        return [name[len(self.root) + 1 :] for name in sorted(self.fs.find(self.root)) if name.endswith(".tmp")]

    def size(self, name: str) -> int:
        """Bytes of a file, or of all files below a folder."""
        return int(self.fs.du(self.path(name)))

    def delete(self, name: str) -> None:
        """Remove a file or a whole folder; nothing happens where there is none."""
        if self.exists(name):
            self.fs.rm(self.path(name), recursive=True)


def _protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
