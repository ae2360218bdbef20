"""An artifact exists when its manifest does; work in progress survives and is not seen."""

import pytest

from storage import CorruptArtifact, Draft, Ledger, MissingArtifact, find, is_published, published
from storage.artifacts import Artifact
from storage.tables import LEDGER

KEY = "ab" * 32


def test_nothing_is_seen_before_publish_and_all_of_it_after(store):
    draft = Draft(store, "samples", KEY)
    draft.write_json("data.json", {"a": 1})
    draft.partial.write_bytes("half.bin", b"half")
    assert not is_published(store, "samples", KEY) and published(store, "samples") == []
    with pytest.raises(MissingArtifact, match=KEY):
        Artifact(store, "samples", KEY)
    ledger = Ledger()
    ledger.done("one", 0.5)
    artifact = draft.publish(ledger, {"stage": "ingest"})
    assert artifact.read_json("data.json") == {"a": 1}
    assert artifact.manifest["counts"] == {"done": 1, "reused": 0, "failed": 0, "skipped": 0}
    assert list(artifact.manifest["files"]) == ["data.json"] and not draft.partial.exists("half.bin")
    assert artifact.ledger().schema.equals(LEDGER)
    assert find(store, KEY[:8]).key == KEY
    artifact.verify()


def test_a_write_that_raises_leaves_no_file(store):
    draft = Draft(store, "report", KEY)
    with pytest.raises(RuntimeError), draft.create("a.bin") as file:
        file.write(b"half")
        raise RuntimeError
    assert draft.list() == []


def test_a_reopened_artifact_is_a_draft_with_its_files_and_a_discarded_one_is_gone(store):
    draft, ledger = Draft(store, "report", KEY), Ledger()
    ledger.done("one")
    draft.write_bytes("a.bin", b"one")
    draft.publish(ledger, {})
    draft.reopen()
    assert not is_published(store, "report", KEY) and draft.read_bytes("a.bin") == b"one"
    assert draft.partial.read_table("ledger.parquet")["id"].to_pylist() == ["one"]
    assert draft.publish(Ledger(), {}).read_bytes("a.bin") == b"one"
    draft.discard()
    assert not is_published(store, "report", KEY) and draft.list() == [] and store.list("artifacts/report") == []


def test_sizes_are_those_of_a_file_and_of_all_below_a_folder(store):
    store.write_bytes("a/one", b"1")
    store.write_bytes("a/b/two", b"22")
    assert (store.size("a/one"), store.size("a"), store.list("a"), store.list("none")) == (1, 3, ["b", "one"], [])
    store.delete("a/b")
    store.delete("a/b")
    assert store.list("a") == ["one"] and not store.exists("a/b/two") and store.unfinished() == []


def test_changed_bytes_are_found(store):
    draft = Draft(store, "report", KEY)
    draft.write_bytes("a.bin", b"one")
    artifact = draft.publish(Ledger(), {})
    store.write_bytes(f"artifacts/report/{KEY}/a.bin", b"two")
    with pytest.raises(CorruptArtifact, match="a.bin"):
        artifact.verify()


def test_attempts_are_counted_over_tries():
    first = Ledger()
    first.failed("x", ValueError("bad pixel"))
    second = Ledger(first.table())
    second.done("x")
    second.reused("y")
    rows = {row["id"]: row for row in second.table().to_pylist()}
    assert rows["x"]["attempts"] == 2 and rows["x"]["status"] == "done"
    assert rows["y"]["attempts"] == 0
    assert first.table()["error"].to_pylist() == ["ValueError"]


def test_a_name_cannot_leave_the_store(store):
    with pytest.raises(ValueError, match="leaves the store"):
        store.write_bytes("../outside", b"")


def test_an_ambiguous_prefix_lists_what_it_could_mean(store):
    for tail in ("00", "11"):
        Draft(store, "samples", "ab" * 31 + tail).publish(Ledger(), {})
    with pytest.raises(MissingArtifact, match="2 artifacts"):
        find(store, "abab")
