"""Artifacts: what one stage run made. Immutable, named by their key, there when manifest.json is there."""

from __future__ import annotations  # a method is called `list`

import datetime
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from storage.digests import hashed
from storage.errors import CorruptArtifact, MissingArtifact
from storage.keys import key_of
from storage.ledger import Ledger
from storage.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = ("samples", "frames", "features", "checkpoint", "report")
MANIFEST, LEDGER_FILE, PARTIAL = "manifest.json", "ledger.parquet", "partial"


class _Folder:
    """Named files of one folder of a store."""

    def __init__(self, store: Store, folder: str):
        self.store, self.folder = store, folder

    def exists(self, name: str) -> bool:
        return self.store.exists(f"{self.folder}/{name}")

    def list(self) -> list[str]:
        return self.store.list(self.folder)

    def read_bytes(self, name: str) -> bytes:
        return self.store.read_bytes(f"{self.folder}/{name}")

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        return self.store.read_table(f"{self.folder}/{name}", columns)

    def open(self, name: str) -> IO[bytes]:
        return self.store.open(f"{self.folder}/{name}")


class _WritableFolder(_Folder):
    def write_bytes(self, name: str, data: bytes) -> None:
        with self.create(name) as file:
            file.write(data)

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode())

    def write_table(self, name: str, table: pa.Table) -> None:
        self.store.write_table(f"{self.folder}/{name}", table)

    def delete(self, name: str) -> None:
        self.store.delete(f"{self.folder}/{name}")

    @contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write; it appears when the block ends without an exception."""
        with self.store.create(f"{self.folder}/{name}") as file:
            yield file


class Artifact(_Folder):
    """A published artifact, to read. Raises MissingArtifact when there is none under this key."""

    def __init__(self, store: Store, kind: str, key: str):
        super().__init__(store, folder_of(kind, key))
        self.kind, self.key = kind, key
        try:
            self.manifest: dict[str, Any] = self.read_json(MANIFEST)
        except FileNotFoundError:
            raise MissingArtifact(f"no {kind} artifact {key} in {store.url}: run the stage that makes it") from None
        except ValueError as error:
            raise CorruptArtifact(
                f"{store.url}/{self.folder}/{MANIFEST} is not JSON ({error}): delete the folder and run the stage again"
            ) from None

    @property
    def content(self) -> str:
        """What its data files hold, as one digest: a retry of failed items changes it under the same key."""
        return key_of(self.manifest["files"])

    def ledger(self) -> pa.Table:
        return self.read_table(LEDGER_FILE)

    def verify(self) -> None:
        """Hash every data file against the manifest. Raises CorruptArtifact naming the first that differs."""
        recorded = {name: about["sha256"] for name, about in self.manifest["files"].items()}
        for name in recorded:
            if not self.exists(name):
                raise CorruptArtifact(f"{self.store.url}/{self.folder}/{name} is gone: run the stage with --force")
        for name, found in hashed(self.open, recorded):
            if found != recorded[name]:
                raise CorruptArtifact(
                    f"{self.store.url}/{self.folder}/{name} has SHA-256 {found}, its manifest "
                    f"says {recorded[name]}: run the stage with --force"
                )


class Draft(_WritableFolder):
    """An artifact in the making. Readers see nothing of it until `publish`, which writes the manifest last.

    `partial` holds work in progress: it survives a kill, so that the next run takes up what was finished,
    and goes when the artifact is published.
    """

    def __init__(self, store: Store, kind: str, key: str):
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is no kind of artifact; kinds: {', '.join(KINDS)}")
        super().__init__(store, folder_of(kind, key))
        self.kind, self.key = kind, key
        self.partial = _WritableFolder(store, f"{self.folder}/{PARTIAL}")

    def publish(self, ledger: Ledger, about: dict[str, Any]) -> Artifact:
        """Write ledger.parquet, then manifest.json: from here on the artifact exists."""
        names = [name for name in self.list() if name not in (MANIFEST, LEDGER_FILE, PARTIAL)]
        files = {
            name: {"bytes": self.store.size(f"{self.folder}/{name}"), "sha256": digest}
            for name, digest in hashed(self.open, names)
        }
        self.write_table(LEDGER_FILE, ledger.table())
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        self.write_json(
            MANIFEST,
            about | {"kind": self.kind, "key": self.key, "created": created, "counts": ledger.counts(), "files": files},
        )
        self.store.delete(f"{self.folder}/{PARTIAL}")
        return Artifact(self.store, self.kind, self.key)

    def reopen(self) -> None:
        """Make a published artifact a draft again, to try its failed items once more; its files stay.

        The ledger is kept first, so that a kill in between leaves the artifact or the draft.
        """
        self.partial.write_table(LEDGER_FILE, self.read_table(LEDGER_FILE))
        self.store.delete(f"{self.folder}/{MANIFEST}")

    def discard(self) -> None:
        """Take the artifact and its work in progress away; its manifest goes first, so no reader sees half."""
        self.store.delete(f"{self.folder}/{MANIFEST}")
        self.store.delete(self.folder)


def folder_of(kind: str, key: str) -> str:
    """Where an artifact lies in its store."""
    return f"artifacts/{kind}/{key}"


def is_published(store: Store, kind: str, key: str) -> bool:
    """Whether the artifact exists: its manifest does."""
    return store.exists(f"{folder_of(kind, key)}/{MANIFEST}")


def is_current(store: Store, kind: str, key: str) -> bool:
    """Whether the artifact exists, and its inputs hold what they held when it was made.

    They differ where failed items of an input have been tried again since. Inputs that are gone count as equal.
    """
    if not is_published(store, kind, key):
        return False
    made_from = Artifact(store, kind, key).manifest.get("made_from", {})
    return all(
        Artifact(store, name, input["key"]).content == input["content"]
        for name, input in made_from.items()
        if is_published(store, name, input["key"])
    )


def published(store: Store, kind: str) -> list[Artifact]:
    """All published artifacts of a kind, newest first."""
    keys = [key for key in store.list(f"artifacts/{kind}") if is_published(store, kind, key)]
    return sorted((Artifact(store, kind, key) for key in keys), key=lambda a: a.manifest["created"], reverse=True)


def find(store: Store, prefix: str, kind: str | None = None) -> Artifact:
    """The one artifact, of a kind or of any, whose key starts with `prefix`.

    Raises MissingArtifact when none or several do.
    """
    found = [
        (kind, key)
        for kind in ([kind] if kind else KINDS)
        for key in store.list(f"artifacts/{kind}")
        if key.startswith(prefix) and is_published(store, kind, key)
    ]
    if len(found) != 1:
        what = f"{kind} artifacts" if kind else "artifacts"
        among = ", ".join(f"{kind} {key[:16]}" for kind, key in found) or "none"
        raise MissingArtifact(
            f"{len(found)} {what} in {store.url} have a key beginning {prefix!r} ({among}); "
            "`malmm artifacts ls` lists them all"
        )
    return Artifact(store, *found[0])
