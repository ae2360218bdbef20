"""The feature bank (50,000 embeddings, 1024 float16, 13 shards) against `numpy.memmap` and `numpy.save` on the same
bytes, and against one `.pt` file an embedding, as the seed fork stores them (2,000 files: more would only take longer).

The bank finds rows by the SHA-256 of their content, where the memory map is given row numbers. Everything is read from
the page cache. The bank and `numpy.save` wait until a shard is on the disk (fsync); the `.pt` files do not. Goal: a
gather of many rows near the memory map.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import compare, each, interleave, publish, say, table
from storage import Store
from storage.features import FeatureBank, text_digest

ROWS, DIM, SHARD, FILES = 50_000, 1024, 4096, 2_000
SAVE, MEMMAP, PT = "`numpy.save`, one file a shard", "`numpy.memmap`, by row number", "one `.pt` file an embedding"
BANK, OPENED = "feature bank, by digest", "feature bank, opened for this gather"


def main() -> None:
    rows = np.random.default_rng(0).standard_normal((ROWS, DIM), np.float32).astype(np.float16)
    digests = [text_digest(str(i)) for i in range(ROWS)]
    folder = Path(sys.argv[1], "feature_bank")
    writing = write(folder, rows, digests)
    rows.tofile(folder / "flat.bin")
    bank = FeatureBank(Store(folder / "bank0"), "bench")
    if not np.array_equal(bank.gather("vision", digests), rows):
        sys.exit("the bank returned other rows than were written")
    publish(__doc__, writing, gather(folder, bank, digests, 256), gather(folder, bank, digests, 4096))


def write(folder: Path, rows: np.ndarray, digests: list[str]) -> dict[str, Any]:
    """Each round writes into new places: bank0, bank1, ..."""
    say("write")
    begins = range(0, ROWS, SHARD)
    places = {name: iter([folder / f"{name}{number}" for number in range(9)]) for name in ("bank", "npy", "pt")}

    def bank() -> None:
        target = FeatureBank(Store(next(places["bank"])), "bench")
        for begin in begins:
            target.append("vision", digests[begin : begin + SHARD], rows[begin : begin + SHARD])

    def numpy_save() -> None:
        (place := next(places["npy"])).mkdir(parents=True)
        for begin in begins:
            with open(place / f"{begin}.npy", "wb") as file:
                np.save(file, rows[begin : begin + SHARD])
                file.flush()
                os.fsync(file.fileno())

    def pt_files() -> None:
        (place := next(places["pt"])).mkdir(parents=True)
        for i in range(FILES):
            torch.save(torch.from_numpy(rows[i].copy()), place / f"{i}.pt")

    seconds = interleave({SAVE: numpy_save, "feature bank": bank, PT: pt_files}, 5)
    return table(
        "Write",
        ["way", "µs a row", "relative"],
        compare(each(seconds, {SAVE: ROWS, "feature bank": ROWS, PT: FILES}), SAVE, 1e6, ""),
    )


def gather(folder: Path, bank: FeatureBank, digests: list[str], number: int) -> dict[str, Any]:
    """Random rows into one array: by the bank as a training run holds it, and by one opened for this alone."""
    say(f"gather {number}")
    random = np.random.default_rng(number)
    at, files = random.integers(ROWS, size=number), random.integers(FILES, size=256)
    wanted = [digests[i] for i in at]
    mapped = np.memmap(folder / "flat.bin", np.float16, "r", shape=(ROWS, DIM))
    ways = {
        MEMMAP: lambda: np.array(mapped[at]),
        BANK: lambda: bank.gather("vision", wanted),
        OPENED: lambda: FeatureBank(bank.store, bank.encoder).gather("vision", wanted),
        PT: lambda: torch.stack([torch.load(folder / "pt0" / f"{i}.pt", weights_only=True) for i in files]),
    }
    a_row = each(interleave(ways, 15), dict.fromkeys(ways, number) | {PT: len(files)})
    return table(f"Gather {number} random rows", ["way", "µs a row", "relative"], compare(a_row, MEMMAP, 1e6, ""))


if __name__ == "__main__":
    main()
