"""Digests are remembered, and forgotten when the file changes."""

import contextlib
import hashlib
import io
import os

from hypothesis import given
from hypothesis import strategies as st

import storage.digests
from storage.digests import Digests, hashed, listing_digest


def test_a_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    file = tmp_path / "a.jpg"
    file.write_bytes(b"one")
    reads, for_reading = [], storage.digests._for_reading
    monkeypatch.setattr(storage.digests, "_for_reading", lambda path: reads.append(path) or for_reading(path))
    digests = Digests(tmp_path / "memory.sqlite")
    first = digests.file(file)
    assert Digests(tmp_path / "memory.sqlite").file(file) == first and len(reads) == 1
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert digests.file(file) != first and len(reads) == 2


def test_a_folder_is_its_names_and_bytes(tmp_path):
    digests = Digests(tmp_path / "memory.sqlite")
    folder = tmp_path / "llm"
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    before = digests.folder(folder)
    (folder / ".cache").write_bytes(b"hidden files are not part of it")
    assert digests.folder(folder) == before
    (folder / "a").rename(folder / "b")
    assert digests.folder(folder) != before


def test_who_stops_listening_does_not_wait_for_the_end_of_a_large_file():
    class Endless(io.RawIOBase):
        def read(self, size=-1):
            return b"x"

    files = {"small": io.BytesIO(b"short"), "large": Endless()}
    with contextlib.closing(hashed(files.get, files)) as found:
        assert next(found) == ("small", hashlib.sha256(b"short").hexdigest())


def test_a_fact_is_computed_once_for_equal_content(tmp_path):
    digests, calls = Digests(tmp_path / "memory.sqlite"), []
    for _ in range(2):
        assert digests.fact("media.1", "ab", lambda: calls.append(1) or ["x"]) == ["x"]
    assert len(calls) == 1


@given(
    st.dictionaries(st.text(), st.text(alphabet="0123456789abcdef")),
    st.dictionaries(st.text(), st.text(alphabet="0123456789abcdef")),
)
def test_listings_collide_only_when_equal(one, other):
    assert (listing_digest(one.items()) == listing_digest(other.items())) == (one == other)
