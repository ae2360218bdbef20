"""What a store on S3 costs: requests, which are exact, and milliseconds against moto's server on the same machine.
Those are the client's and moto's own work; a network adds a journey to each request, of which 16 go at once when a bank
is opened.
"""

import hashlib
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks.common import publish, table
from storage import Draft, Ledger, Store, published
from storage.features import FeatureBank
from storage.s3 import S3
from tests.s3_server import BUCKET, s3_server

requests = itertools.count()
ROWS = np.random.default_rng(0).standard_normal((1000, 1024)).astype(np.float16)
TEN_MB = bytes(10 << 20)


def main() -> None:
    os.environ.pop("AWS_CA_BUNDLE", None)
    with s3_server() as variables:
        os.environ |= variables
        call = S3._call_s3

        async def counted(self: S3, *args: object, **more: object) -> object:
            next(requests)
            return await call(self, *args, **more)

        S3._call_s3 = counted
        rows = measure(Store(f"s3://{BUCKET}/bench"))
    publish(__doc__, table("A store on S3", ["", "requests", "ms"], rows))


def measure(store: Store) -> list[list[str]]:
    store.write_bytes("there", b"1")
    bank, keys, shards = FeatureBank(store, "encoder"), itertools.count(), itertools.count()
    filled: list[str] = []

    def artifact() -> None:
        draft = Draft(store, "report", f"{next(keys):064x}")
        draft.write_json("a.json", {})
        draft.publish(Ledger(), {})

    def shard() -> None:
        number = next(shards)
        filled[:] = [hashlib.sha256(f"{number}/{row}".encode()).hexdigest() for row in range(len(ROWS))]
        bank.append("vision", filled, ROWS)

    def folder() -> None:
        for name in "abc":
            store.write_bytes(f"folder/{name}", b"1")

    def first_rows() -> None:
        opened._shards.clear()
        opened.gather("vision", filled[:3])

    found = [
        row("is a file there: yes", lambda: store.exists("there"), 30),
        row("no", lambda: store.exists("absent"), 30),
        row("read a small file", lambda: store.read_bytes("there"), 30),
        row("write it", lambda: store.write_bytes("there", b"1"), 30),
        row("write 10 MB", lambda: store.write_bytes("big", TEN_MB), 5),
        row("read them", lambda: store.read_bytes("big"), 5),
        row("remove a folder of three files", lambda: store.delete("folder"), 10, folder),
        row("make and publish an artifact of one file", artifact, 10),
        row("list those eleven artifacts", lambda: published(store, "report"), 5),
        row("add a shard to a bank, 1000 rows of 1024 in float16", shard, 70),
    ]
    opened = FeatureBank(store, "encoder")
    return [
        *found,
        row("open the bank, 71 shards", lambda: FeatureBank(store, "encoder").missing("vision", ["00" * 32]), 3),
        row("read three rows of a shard for the first time", first_rows, 10),
    ]


def row(what: str, do: Callable[[], object], rounds: int, before: Callable[[], object] = lambda: None) -> list[str]:
    """Requests and median milliseconds of one; a first one is not counted."""
    asked, seconds = [], []
    for _ in range(rounds + 1):
        before()
        first, begin = next(requests), time.perf_counter()
        do()
        seconds.append(time.perf_counter() - begin)
        asked.append(next(requests) - first - 1)
    return [what, f"{statistics.median(asked[1:]):.0f}", f"{statistics.median(seconds[1:]) * 1e3:.0f}"]


if __name__ == "__main__":
    sys.exit(main())
