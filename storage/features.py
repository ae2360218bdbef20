"""The feature bank: append-only embeddings of one encoder, addressed by content.

    features/<encoder>/encoder.json         what made the rows
    features/<encoder>/shards/<id>.zarr     one Zarr v3 array (rows, dim) a shard, sharding codec, uncompressed
    features/<encoder>/index/<id>.parquet   which content lies in which rows: written last, and so it publishes

Each writer writes shards of its own, whole, and never touches another's: no locks, nothing to rename.
Chunks inside a shard are uncompressed and lie in order, so a shard on a local disk is read as one memory
map; any Zarr v3 client reads it as well.
"""

import hashlib
import itertools
import json
import os
import secrets
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from zarr.codecs import BytesCodec

from storage.artifacts import Artifact
from storage.errors import CorruptArtifact, MissingEmbedding, StorageError
from storage.store import Store
from storage.tables import FEATURE_INDEX

AT_ONCE = 16  # index parts read from another machine at a time
CHUNK_ROWS = 64  # 128 KiB of float16 at 1024 wide: what a remote reader fetches for one row


def text_digest(text: str) -> str:
    """The content address of a text: SHA-256 of its UTF-8 bytes, hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class FeatureBank:
    """Rows of one encoder in `store`, under the name `encoder` (architecture and fingerprint).

    Digests are SHA-256 in hexadecimal. An item has one row, or several (tokens of a frame, clips of a sound).
    """

    def __init__(self, store: Store, encoder: str):
        self.store, self.encoder, self.folder = store, encoder, f"features/{encoder}"
        self._parts: dict[str, pa.Table] = {}
        self._indexes: dict[str, _Index] = {}
        self._shards: dict[str, np.ndarray] = {}

    def describe(self, about: dict[str, Any]) -> None:
        """Say what made the rows; the same for every writer, since the fingerprint names the bank."""
        text = json.dumps(about, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        self.store.write_bytes(f"{self.folder}/encoder.json", text.encode())

    def about(self) -> dict[str, Any]:
        return json.loads(self.store.read_bytes(f"{self.folder}/encoder.json"))

    # Writing

    def append(
        self, modality: str, digests: Sequence[str], rows: np.ndarray, counts: Sequence[int] | None = None
    ) -> str:
        """Write one whole shard and publish it. Returns the shard's id.

        rows: (n, dim) float16 or float32, of the items in order; counts: rows of each item, 1 each if not given.
        Raises ValueError when the numbers do not fit, StorageError for rows that are not finite.
        """
        counts = np.ones(len(digests), np.int64) if counts is None else np.asarray(counts, np.int64)
        if rows.ndim != 2 or not len(digests) or len(counts) != len(digests) or counts.sum() != len(rows):
            raise ValueError(f"{len(digests)} items of {counts.sum()} rows do not fit an array of {rows.shape}")
        if not np.isfinite(rows).all():
            bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            item = digests[int(np.searchsorted(np.cumsum(counts), bad, side="right"))]
            raise StorageError(f"the {modality} embedding of {item} is not finite in {rows.dtype}: nothing was stored")
        # Ids sort by time, so that of two shards with one item the later is read.
        shard = f"{time.time_ns():016x}-{secrets.token_hex(4)}"
        self._write_shard(shard, modality, rows)
        index = pa.table(
            {
                "digest": pa.array([bytes.fromhex(d) for d in digests], pa.binary(32)),
                "modality": [modality] * len(digests),
                "shard": [shard] * len(digests),
                "first_row": np.cumsum(counts) - counts,
                "rows": counts,
            },
            schema=FEATURE_INDEX,
        )
        self.store.write_table(f"{self.folder}/index/{shard}.parquet", index)
        self._indexes = {}  # read again, with this shard, when next asked
        return shard

    def _write_shard(self, shard: str, modality: str, rows: np.ndarray) -> None:
        n, dim = rows.shape
        # write_empty_chunks: a chunk equal to the fill value must be written too, or the map has a hole.
        with zarr.config.set({"array.write_empty_chunks": True}):
            array = zarr.create_array(
                self._zarr_store(shard),
                shape=(n, dim),
                dtype=rows.dtype,
                chunks=(CHUNK_ROWS, dim),
                shards=(-(-n // CHUNK_ROWS) * CHUNK_ROWS, dim),
                filters=None,
                compressors=None,
                serializer=BytesCodec(endian="little"),
                attributes={"encoder": self.encoder, "modality": modality},
            )
            array[:] = rows
        if self.store.local is not None:  # the index part must never outlive a power cut that the rows did not
            with open(self.store.local / self._shard_name(shard) / "c" / "0" / "0", "rb") as file:
                os.fsync(file.fileno())

    # Reading

    def refresh(self) -> None:
        """See what other writers have published since."""
        names = self.store.list(f"{self.folder}/index")
        fresh = [name for name in names if name not in self._parts]
        # Elsewhere than on a disk a part costs a journey each, and there may be thousands.
        with ThreadPoolExecutor(1 if self.store.local else AT_ONCE) as pool:
            tables = pool.map(self.store.read_table, (f"{self.folder}/index/{name}" for name in fresh))
            self._parts.update(zip(fresh, tables, strict=True))
        if fresh or not self._indexes:
            parts = [self._parts[name] for name in sorted(self._parts)]
            table = pa.concat_tables(parts) if parts else FEATURE_INDEX.empty_table()
            modalities = table["modality"].combine_chunks().dictionary_encode()
            self._indexes = {}
            for code, modality in enumerate(modalities.dictionary.to_pylist()):
                chosen = np.flatnonzero(np.asarray(modalities.indices) == code)
                self._indexes[modality] = _Index(table.take(chosen))

    def has(self, modality: str, digests: Sequence[str]) -> np.ndarray:
        """Which of the items are published: (n,) bool."""
        return self._find(modality, digests) >= 0

    def missing(self, modality: str, digests: Iterable[str]) -> list[str]:
        """The items that no shard holds, each once, in the order given."""
        distinct = list(dict.fromkeys(digests))
        return [d for d, there in zip(distinct, self.has(modality, distinct)) if not there]

    def gather(self, modality: str, digests: Sequence[str]) -> np.ndarray:
        """The rows of items with one row each, in order: (n, dim).

        Raises MissingEmbedding naming the first items that no shard holds; never answers with zeros.
        """
        at = self._locate(modality, digests)
        index = self._indexes[modality]
        if (index.rows[at] != 1).any():
            item = digests[int(np.flatnonzero(index.rows[at] != 1)[0])]
            raise StorageError(f"{modality} item {item} has several rows: read it with `rows`")
        return self._read(index, index.shard[at], index.first[at])

    def gather_parts(self, modality: str, digests: Sequence[str], starts: np.ndarray, count: int) -> np.ndarray:
        """`count` rows of each item, from its row `starts[i]` on: (n, count, dim). An item may come many times.

        Raises MissingEmbedding as `gather` does, IndexError when an item has fewer rows.
        """
        at, starts = self._locate(modality, digests), np.asarray(starts, np.int64)
        index = self._indexes[modality]
        outside = (starts < 0) | (starts + count > index.rows[at])
        if outside.any():
            i = int(np.flatnonzero(outside)[0])
            raise IndexError(f"{modality} item {digests[i]} has {index.rows[at[i]]} rows, not {starts[i]} + {count}")
        first = index.first[at] + starts
        return self._read(index, index.shard[at], first if count == 1 else first[:, None] + np.arange(count)).reshape(
            len(digests), count, -1
        )

    def _read(self, index: "_Index", shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The rows (n, ...) of the shards (n,): (n, ..., dim)."""
        order = np.argsort(shards, kind="stable")
        begins = np.flatnonzero(np.diff(shards[order], prepend=-1))
        out: np.ndarray | None = None
        for begin, end in itertools.pairwise((*begins, len(order))):
            positions = order[begin:end]
            shard = np.asarray(self._shard(index.shards[shards[positions[0]]]))  # indexes faster than a map
            if len(begins) == 1:  # the common case needs no second copy
                return shard[rows]
            if out is None:
                out = np.empty((*rows.shape, shard.shape[1]), shard.dtype)
            out[positions] = shard[rows[positions]]
        return out

    def rows(self, modality: str, digest: str) -> np.ndarray:
        """All rows of one item, in order: (rows, dim). Raises MissingEmbedding."""
        at = int(self._locate(modality, [digest])[0])
        index = self._indexes[modality]
        begin = index.first[at]
        return np.array(self._shard(index.shards[index.shard[at]])[begin : begin + index.rows[at]])

    def count(self, modality: str) -> int:
        """Distinct items published."""
        self.refresh()
        return len(self._indexes[modality].keys) if modality in self._indexes else 0

    def _find(self, modality: str, digests: Sequence[str]) -> np.ndarray:
        """Position of each digest in the index, -1 where it is not there: (n,) int64.

        What others have published since is looked for only when something is missing: on an object store that
        look costs more than the rows.
        """
        at = self._look_up(modality, digests)
        if (at < 0).any():
            self.refresh()
            at = self._look_up(modality, digests)
        return at

    def _look_up(self, modality: str, digests: Sequence[str]) -> np.ndarray:
        if modality not in self._indexes or not len(digests):
            return np.full(len(digests), -1, np.int64)
        return self._indexes[modality].find(digests)

    def _locate(self, modality: str, digests: Sequence[str]) -> np.ndarray:
        if not len(digests):
            raise ValueError(f"no {modality} items were asked for")
        at = self._find(modality, digests)
        if (at < 0).any():
            gone = [digests[i] for i in np.flatnonzero(at < 0)]
            raise MissingEmbedding(
                f"{len(gone)} of {len(digests)} {modality} embeddings are not in {self.store.url}/"
                f"{self.folder}: {', '.join(gone[:3])}{', ...' if len(gone) > 3 else ''}; run "
                "embed_imagebind again"
            )
        return at

    def _shard(self, shard: str) -> np.ndarray:
        """The rows of a shard: a memory map on a local disk, else an array read through Zarr."""
        if shard not in self._shards:
            try:
                array = zarr.open_array(self._zarr_store(shard), mode="r")
            except FileNotFoundError:
                raise CorruptArtifact(
                    f"{self.store.url}/{self.folder}/shards/{shard}.zarr is gone though its index "
                    f"part is there: delete {self.folder}/index/{shard}.parquet and run "
                    "embed_imagebind again"
                ) from None
            mapped = _map_shard(array, self.store.local / self._shard_name(shard)) if self.store.local else None
            self._shards[shard] = np.asarray(array[:]) if mapped is None else mapped
        return self._shards[shard]

    def _shard_name(self, shard: str) -> str:
        return f"{self.folder}/shards/{shard}.zarr"

    def _zarr_store(self, shard: str) -> Any:
        if self.store.local is not None:
            return str(self.store.local / self._shard_name(shard))
        return zarr.storage.FsspecStore.from_url(f"{self.store.url}/{self._shard_name(shard)}")


def open_features(artifact: Artifact) -> FeatureBank:
    """The bank that a features artifact vouches for."""
    return FeatureBank(artifact.store, artifact.manifest["encoder"]["bank"])


class _Index:
    """Digest -> row of the index of one modality: binary search on the first 8 bytes, checked on all 32."""

    def __init__(self, table: pa.Table):
        data = table["digest"].combine_chunks()
        raw = np.frombuffer(data.buffers()[1], np.uint8).reshape(-1, 32)[data.offset : data.offset + len(data)]
        words = np.ascontiguousarray(raw).view(">u8").astype(np.uint64)
        # Among equal digests the last comes first: the later shard is read.
        order = len(words) - 1 - np.argsort(words[::-1, 0], kind="stable")
        if (np.diff(words[order, 0]) == 0).any():  # rare, and the whole sort is much slower
            order = np.lexsort((-np.arange(len(words)), words[:, 3], words[:, 2], words[:, 1], words[:, 0]))
        words = words[order]
        newest = np.ones(len(words), bool)
        newest[1:] = (words[1:] != words[:-1]).any(axis=1)
        self.words, order = words[newest], order[newest]
        self.keys = np.ascontiguousarray(self.words[:, 0])
        shards = table["shard"].combine_chunks().dictionary_encode()
        self.shards: list[str] = shards.dictionary.to_pylist()
        self.shard = np.asarray(shards.indices)[order]
        self.first = np.asarray(table["first_row"])[order]
        self.rows = np.asarray(table["rows"])[order]

    def find(self, digests: Sequence[str]) -> np.ndarray:
        """Position of each digest, -1 where it is not there: (n,) int64."""
        wanted = np.frombuffer(bytes.fromhex("".join(digests)), ">u8").astype(np.uint64).reshape(-1, 4)
        at = np.searchsorted(self.keys, wanted[:, 0])
        found = np.full(len(wanted), -1, np.int64)
        open_ = np.arange(len(wanted))
        while len(open_):  # once; again only where two digests share their first 8 bytes
            inside = at[open_] < len(self.keys)
            open_ = open_[inside]
            open_ = open_[self.keys[at[open_]] == wanted[open_, 0]]
            equal = (self.words[at[open_]] == wanted[open_]).all(axis=1)
            found[open_[equal]] = at[open_[equal]]
            open_ = open_[~equal]
            at[open_] += 1
        return found


def _map_shard(array: zarr.Array, folder: Path) -> np.ndarray | None:
    """The shard's rows as a memory map, or None when its chunks do not lie in order and uncompressed.

    The sharding codec ends a shard with its index: offset and length of each chunk as little-endian uint64,
    then a CRC-32C of four bytes (Zarr v3 sharding codec 1.0).
    """
    path = folder / "c" / "0" / "0"
    rows, dim = array.shape
    if array.shards is None or array.compressors or not path.is_file():
        return None
    chunks = -(-array.shards[0] // array.chunks[0])
    length = array.chunks[0] * dim * array.dtype.itemsize
    with open(path, "rb") as file:
        file.seek(-(16 * chunks + 4), 2)
        index = np.frombuffer(file.read(16 * chunks), "<u8").reshape(-1, 2)
    in_order = (index[:, 0] == np.arange(chunks, dtype=np.uint64) * length).all() and (index[:, 1] == length).all()
    return np.memmap(path, array.dtype, "r", shape=(rows, dim)) if in_order else None


def orphans(store: Store) -> list[str]:
    """What killed writers left: shards that no index part names, and files that never got their name.

    Safe to delete when nothing runs on the store.
    """
    found = []
    for encoder in store.list("features"):
        named = {name.removesuffix(".parquet") for name in store.list(f"features/{encoder}/index")}
        shards = store.list(f"features/{encoder}/shards")
        found += [f"features/{encoder}/shards/{name}" for name in shards if name.removesuffix(".zarr") not in named]
    return found + store.unfinished()
