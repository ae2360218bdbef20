"""Frames that another run has taken are not decoded again."""

import shutil

import pytest

from tests.extract_frames.conftest import digest_of, frames_of


@pytest.fixture
def without_b(place, tmp_path):
    """The videos but one: what becomes of it cannot come from decoding it."""
    folder = tmp_path / "others"
    shutil.copytree(place.videos, folder)
    (folder / "b.mp4").unlink()
    return str(folder)


def test_a_video_that_was_extracted_for_other_samples_is_taken_from_there(place, without_b):
    before = place.run({"only": ["b.mp4", "c.mkv"]}).artifact(place.store)
    digest = digest_of(place.videos / "b.mp4")
    after = place.run(videos=without_b).artifact(place.store)
    status = {row["id"]: row["status"] for row in after.ledger().to_pylist()}
    assert status[digest] == "reused" and list(status.values()).count("reused") == 2 < len(status)
    old, new = place.rows(before)["b.mp4"], place.rows(after)["b.mp4"]
    place_in = ("shard", "first_row_group")
    assert {k: v for k, v in old.items() if k not in place_in} == {k: v for k, v in new.items() if k not in place_in}
    assert frames_of(after, new) == frames_of(before, old) != []


def test_frames_of_another_recipe_or_under_force_are_decoded(place):
    place.run({"only": ["b.mp4"]})
    digest = digest_of(place.videos / "b.mp4")
    for changed in ({"quality": 80}, {"format": "png"}, {"fps": 5}, {"short_side": 48}):
        artifact = place.run({"only": ["b.mp4"]}, **changed).artifact(place.store)
        assert artifact.ledger().to_pylist()[0]["status"] == "done", changed
    forced = place.run({"only": ["b.mp4"], "force": True}).artifact(place.store)
    assert {row["id"]: row["status"] for row in forced.ledger().to_pylist()} == {digest: "done"}


def test_direct_plans_are_taken_too(place, without_b):
    place.run({"only": ["b.mp4"]}, format="direct")
    artifact = place.run(format="direct", videos=without_b).artifact(place.store)
    assert place.rows(artifact)["b.mp4"]["shard"] is None and place.rows(artifact)["b.mp4"]["frames"] > 0
