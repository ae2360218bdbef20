"""Parts of the work, side by side, killed or run twice: what is published has the bytes of one undivided run."""

import json
import os
import shutil
import signal

import pytest

from stages.contract import Request, open_draft
from stages.extract_frames.config import ExtractConfig
from storage import Store
from tests.extract_frames.conftest import LENGTHS, SAMPLES_KEY, Place, digest_of

SHORT = sorted(name for name in LENGTHS if name != "slow.mp4")
OPTIONS = {"shard_videos": 2, "workers": 1}


def files(artifact):
    return {name: about["sha256"] for name, about in artifact.manifest["files"].items()}


def part(number, of, **more):
    return {"part": {"number": number, "of": of}, **more}


@pytest.fixture(scope="module")
def undivided(films, tmp_path_factory):
    place = Place(films, tmp_path_factory.mktemp("undivided") / "store")
    place.samples({name: digest_of(films / name) for name in SHORT})
    return place.run(**OPTIONS).artifact(place.store)


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "format"), [(7, "jpeg"), (2, "direct")])
def test_parts_in_any_order_leave_nothing_to_do(place, undivided, parts, format):
    for number in reversed(range(parts)):
        outcome = place.run(part(number, parts), format=format, **OPTIONS)
        assert outcome.code == 0 and not outcome.of("done") and outcome.of("part_done")[0]["number"] == number
    (draft,) = (place.store / "artifacts/frames").iterdir()
    times = {path.name: path.stat().st_mtime_ns for path in draft.glob("frames-*.parquet")}
    last = place.run(format=format, **OPTIONS)
    artifact = last.artifact(place.store)
    assert last.of("metric")[0]["value"] == 0 and artifact.manifest["counts"] == undivided.manifest["counts"]
    assert times == {path.name: path.stat().st_mtime_ns for path in draft.glob("frames-*.parquet")}
    assert all(row["seconds"] > 0 and row["attempts"] == 1 for row in artifact.ledger().to_pylist())
    if format == "jpeg":
        assert len(times) == 3 and files(artifact) == files(undivided)
    else:
        rows, whole = place.rows(artifact), place.rows(undivided)
        nowhere = {"shard": None, "first_row_group": None, "row_groups": None}
        assert rows == {name: row | nowhere for name, row in whole.items()}


@pytest.mark.slow
def test_a_part_killed_and_one_run_twice_at_once(place, undivided):
    of_two = [place.start(part(number, 2), **OPTIONS) for number in (0, 0, 1)]
    for line in of_two[2].stdout:  # killed when its first video is finished
        if json.loads(line).get("done"):
            break
    os.killpg(of_two[2].pid, signal.SIGKILL)
    assert [process.wait() for process in of_two] == [0, 0, -signal.SIGKILL]
    assert place.run(part(2, 3), **OPTIONS).code == 0  # another number of parts
    row = next((place.store / "artifacts/frames").glob(f"*/partial/{'?' * 64}.json"))
    row.write_text(row.read_text().replace('"row_groups": 1', '"row_groups": 2'))  # not what is in the shard
    again = place.run(**OPTIONS)
    assert again.code == 75 and "the next run makes it again" in again.message
    last = place.run(**OPTIONS).artifact(place.store)
    assert files(last) == files(undivided) and last.manifest["counts"] == undivided.manifest["counts"]


@pytest.mark.slow
def test_failed_videos_of_parts_are_tried_again_when_that_is_asked_for(place, films, undivided, tmp_path):
    place.videos = tmp_path / "videos"
    shutil.copytree(films, place.videos)
    (place.videos / "d.mp4").write_bytes(b"another film")
    lenient = OPTIONS | {"max_failed_share": 0.5}

    def in_parts(**more):
        return [place.run(part(number, 2, **more), **OPTIONS) for number in range(2)]

    first = in_parts()
    assert [outcome.code for outcome in first] == [0, 0]  # a part does not fail for the share
    assert sum(len(outcome.of("item_failed")) for outcome in first) == 1
    strict = place.run(**OPTIONS)
    assert strict.code == 65 and "1 of 5 videos failed" in strict.message and not strict.of("item_failed")
    artifact = place.run(**lenient).artifact(place.store)  # and is not tried again
    assert artifact.manifest["counts"] == {"done": 4, "reused": 0, "failed": 1, "skipped": 0}
    assert sorted(place.rows(artifact)) == [name for name in SHORT if name != "d.mp4"]

    shutil.copy(films / "d.mp4", place.videos)
    config = ExtractConfig(**place.config(**OPTIONS))
    again = Request(
        stage="extract_frames",
        config=config.model_dump(mode="json"),
        inputs={"samples": SAMPLES_KEY},
        store=str(place.store),
        retry_failed=True,
    )
    open_draft(again, Store(place.store), "frames", artifact.key)
    tried = in_parts(retry_failed=True)
    assert sum(outcome.of("part_done")[0]["counts"]["done"] for outcome in tried) == 1
    mended = place.run(**OPTIONS).artifact(place.store)
    late = place.run(part(0, 2, force=True), **OPTIONS)
    assert late.code == 65 and "run extract_frames without a part" in late.message
    row = next(row for row in mended.ledger().to_pylist() if row["id"] == digest_of(films / "d.mp4"))
    assert (row["status"], row["attempts"]) == ("done", 2) and sorted(place.rows(mended)) == SHORT
    before = files(artifact)
    assert {name: files(mended)[name] for name in before if name.startswith("frames")} == {
        name: digest for name, digest in before.items() if name.startswith("frames")
    }
