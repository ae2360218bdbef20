"""The feature bank: what is written is read, by any Zarr client; what is not there is an error."""

import hashlib
import threading

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import MissingEmbedding, StorageError, Store
from storage.features import FeatureBank, orphans, text_digest


def digest(i: int) -> str:
    return hashlib.sha256(str(i).encode()).hexdigest()


def rows_of(items: list[int], dim: int = 8, dtype: type = np.float16) -> np.ndarray:
    return np.stack([np.random.default_rng(i).standard_normal(dim) for i in items]).astype(dtype)


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 150), min_size=1, max_size=4), data=st.data())
def test_gather_returns_each_item_in_the_order_asked(sizes, data):
    bank = FeatureBank(Store("memory://gather-" + str(abs(hash(tuple(sizes))))), "encoder-1")
    total = sum(sizes)
    begin = 0
    for size in sizes:
        items = list(range(begin, begin + size))
        bank.append("vision", [digest(i) for i in items], rows_of(items))
        begin += size
    wanted = data.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=50))
    got = bank.gather("vision", [digest(i) for i in wanted])
    assert got.dtype == np.float16 and np.array_equal(got, rows_of(wanted))


def test_a_missing_item_is_an_error_that_names_it(store):
    bank = FeatureBank(store, "encoder-1")
    bank.append("text", [text_digest("is it red")], rows_of([1]))
    with pytest.raises(MissingEmbedding, match=text_digest("is it blue")):
        bank.gather("text", [text_digest("is it red"), text_digest("is it blue")])
    with pytest.raises(MissingEmbedding):  # another modality has an index of its own
        bank.gather("vision", [text_digest("is it red")])
    assert bank.missing("text", [text_digest(t) for t in ("is it blue", "is it red", "is it blue")]) == [
        text_digest("is it blue")
    ]


def test_zeros_are_stored_as_rows_and_not_as_holes(store):
    bank = FeatureBank(store, "encoder-1")
    bank.append("vision", [digest(i) for i in range(130)], np.zeros((130, 8), np.float32))
    assert np.array_equal(bank.gather("vision", [digest(129)]), np.zeros((1, 8), np.float32))


def test_rows_that_are_not_finite_are_refused_and_nothing_is_published(store):
    bank = FeatureBank(store, "encoder-1")
    rows = rows_of([1, 2])
    rows[1, 3] = np.inf
    with pytest.raises(StorageError, match=digest(2)):
        bank.append("vision", [digest(1), digest(2)], rows)
    assert bank.missing("vision", [digest(1)]) == [digest(1)]


def test_items_of_several_rows(store):
    bank = FeatureBank(store, "encoder-1")
    bank.append("audio", [digest(1), digest(2)], rows_of([10, 11, 12, 13]), counts=[3, 1])
    assert np.array_equal(bank.rows("audio", digest(1)), rows_of([10, 11, 12]))
    assert np.array_equal(bank.gather("audio", [digest(2)]), rows_of([13]))
    with pytest.raises(StorageError, match="several rows"):
        bank.gather("audio", [digest(1)])
    with pytest.raises(ValueError, match="do not fit"):
        bank.append("audio", [digest(3)], rows_of([1, 2]), counts=[3])


def test_digests_that_share_their_first_bytes_stay_apart(store):
    bank = FeatureBank(store, "encoder-1")
    near = ["ab" * 8 + f"{i:02x}" * 24 for i in range(5)]
    bank.append("vision", near, rows_of(list(range(5))))
    assert np.array_equal(bank.gather("vision", near[::-1]), rows_of([4, 3, 2, 1, 0]))
    assert bank.missing("vision", ["ab" * 8 + "ff" * 24]) == ["ab" * 8 + "ff" * 24]


def test_a_later_shard_of_the_same_item_is_the_one_read(store):
    bank = FeatureBank(store, "encoder-1")
    bank.append("vision", [digest(1)], rows_of([1]))
    bank.append("vision", [digest(1)], rows_of([2]))
    assert np.array_equal(FeatureBank(store, "encoder-1").gather("vision", [digest(1)]), rows_of([2]))
    assert bank.count("vision") == 1


def test_any_zarr_client_reads_a_shard_and_a_local_one_is_mapped(tmp_path):
    bank = FeatureBank(Store(tmp_path), "encoder-1")
    items = list(range(100))
    shard = bank.append("vision", [digest(i) for i in items], rows_of(items))
    array = zarr.open_array(str(tmp_path / f"features/encoder-1/shards/{shard}.zarr"), mode="r")
    assert array.metadata.zarr_format == 3 and array.shards == (128, 8) and array.chunks == (64, 8)
    assert np.array_equal(array[:], rows_of(items))
    assert isinstance(bank._shard(shard), np.memmap)


def test_a_shard_without_its_index_part_is_invisible(tmp_path):
    """What a writer killed between the two writes leaves behind."""
    store = Store(tmp_path)
    bank = FeatureBank(store, "encoder-1")
    shard = bank.append("vision", [digest(1)], rows_of([1]))
    assert orphans(store) == []
    store.delete(f"features/encoder-1/index/{shard}.parquet")
    (tmp_path / "features/encoder-1/index/half.parquet.0123.tmp").write_bytes(b"half")
    left = [f"features/encoder-1/shards/{shard}.zarr", "features/encoder-1/index/half.parquet.0123.tmp"]
    assert orphans(store) == left
    assert FeatureBank(store, "encoder-1").missing("vision", [digest(1)]) == [digest(1)]


def test_writers_side_by_side_lose_nothing(tmp_path):
    store = Store(tmp_path)

    def write(first: int) -> None:
        bank = FeatureBank(store, "encoder-1")
        for begin in range(first, first + 60, 20):
            items = list(range(begin, begin + 20))
            bank.append("vision", [digest(i) for i in items], rows_of(items))

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 30, 60)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert np.array_equal(
        FeatureBank(store, "encoder-1").gather("vision", [digest(i) for i in range(120)]), rows_of(list(range(120)))
    )
