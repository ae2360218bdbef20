"""extract_frames through its real command: what it publishes, what it makes of failures, kills and second tries."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages.extract_frames.encode import decoded
from storage import Store
from storage.tables import FRAMES, VIDEOS
from tests.extract_frames.conftest import LENGTHS, Place, digest_of, frames_of, processes, worker_on
from tests.video.make import number, video
from video import decode, plan

SHORT = sorted(name for name in LENGTHS if name != "slow.mp4")


def files(artifact):
    return {name: about["sha256"] for name, about in artifact.manifest["files"].items()}


def ledger(artifact):
    return {row["id"]: row for row in artifact.ledger().to_pylist()}


def test_frames_are_those_of_the_plan(place):
    place.samples({name: digest_of(place.videos / name) for name in SHORT}, {"b.mp4": 10, "c.mkv": 21, "absent.mp4": 3})
    outcome = place.run(shard_videos=2)
    artifact = outcome.artifact(place.store)
    rows = place.rows(artifact)
    assert sorted(rows) == SHORT and artifact.read_table("videos.parquet").schema == VIDEOS
    for name, row in rows.items():
        planned = plan(place.videos / name, short_side=64)
        assert row["frames"] == len(planned) == len(row["pts"]) and row["pts"] == planned.seconds.tolist()
        assert (row["width"], row["height"], row["codec"], row["audio"]) == (96, 64, "mpeg4", False)
        frames = frames_of(artifact, row)
        assert [f["k"] for f in frames] == list(range(len(planned))) and [f["pts"] for f in frames] == row["pts"]
        assert {f["video"] for f in frames} == {row["video"]} == {digest_of(place.videos / name)}
        images = [decoded(f["image"]) for f in frames]
        assert [number(image) for image in images] == list(planned.index)
        assert all(image.shape == (64, 96, 3) for image in images)
        exact = dict(decode(place.videos / name, planned))
        assert max(np.abs(image.astype(int) - exact[k]).mean() for k, image in enumerate(images)) < 6
    # Videos by digest, two a file; a row group holds frames of one video.
    order = sorted(rows.values(), key=lambda row: row["video"])
    assert [row["shard"] for row in order] == [f"frames-0000{number}.parquet" for number in (0, 0, 1, 1, 2)]
    assert artifact.manifest["frames"] == {
        "fps": 10,
        "short_side": 64,
        "format": "jpeg",
        "quality": 95,
        "recipe": "fps=10;short=64;jpeg=95;sampling=1",
        "backend": "pyav",
    }
    # The annotations' counts are compared and reported; ours are used.
    assert artifact.read_json("checks.json")["frame_lengths"] == {
        "compared": 2,
        "differ": {"c.mkv": {"annotated": 21, "taken": 20}},
    }
    assert any("c.mkv 21 / 20" in event["message"] for event in outcome.of("log"))
    assert not artifact.exists("partial") and ledger(artifact).keys() == {row["video"] for row in order}


def test_a_long_video_has_row_groups_of_few_frames(tmp_path):
    place = Place(tmp_path / "videos", tmp_path / "store")
    place.videos.mkdir()
    video(place.videos / "slow.mp4", [0, 600])  # repeats: 24.04 s at 25 frames a second
    place.samples({"slow.mp4": digest_of(place.videos / "slow.mp4")})
    artifact = place.run(fps=25).artifact(place.store)
    row = place.rows(artifact)["slow.mp4"]
    shard = pq.ParquetFile(place.store / artifact.folder / row["shard"])
    sizes = [shard.metadata.row_group(group).num_rows for group in range(shard.num_row_groups)]
    assert row["frames"] == sum(sizes) and len(sizes) == row["row_groups"] > 1 and max(sizes) == 256
    assert shard.schema_arrow.equals(FRAMES) and len(frames_of(artifact, row)) == row["frames"]


def test_png_is_lossless_and_direct_stores_no_frames(place):
    png = place.run(format="png").artifact(place.store)
    direct = place.run(format="direct").artifact(place.store)
    for name, row in place.rows(png).items():
        planned = plan(place.videos / name, short_side=64)
        for frame, (_, rgb) in zip(frames_of(png, row), decode(place.videos / name, planned), strict=True):
            assert np.array_equal(decoded(frame["image"]), rgb)
        without = {"shard": None, "first_row_group": None, "row_groups": None}
        assert place.rows(direct)[name] == row | without
    assert sorted(files(direct)) == ["checks.json", "videos.parquet"]
    recipes = {a.manifest["frames"]["recipe"] for a in (png, direct)}
    assert recipes == {"fps=10;short=64;rgb;sampling=1"}  # the same pixels: embedded once


def test_all_backends_publish_the_same_times_and_two_the_same_bytes(place):
    pyav, ffmpeg, decord = (place.run(backend=name).artifact(place.store) for name in ("pyav", "ffmpeg", "decord"))
    assert files(pyav) == files(ffmpeg) and len({a.key for a in (pyav, ffmpeg, decord)}) == 3
    assert place.rows(decord) == place.rows(pyav)
    assert decord.manifest["frames"]["recipe"] != pyav.manifest["frames"]["recipe"]
    for name, row in place.rows(decord).items():
        images = [decoded(frame["image"]) for frame in frames_of(decord, row)]
        assert [number(image) for image in images] == list(plan(place.videos / name).index)


def test_bytes_do_not_depend_on_kills_and_workers(place):
    """Killed when some videos are finished: the next try takes them up and publishes what one run would have."""
    whole = place.run(shard_videos=2, workers=1).artifact(place.store)
    other = Place(place.videos, place.store.parent / "killed")
    other.samples({name: digest_of(place.videos / name) for name in SHORT})
    process = other.start(shard_videos=2, workers=2)
    finished = 0
    while finished < 3 and (line := process.stdout.readline()):
        finished = json.loads(line).get("done", 0)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    partial = next(Path(other.store).rglob("partial"))
    assert (
        finished >= 3
        and len(list(partial.glob("*.json"))) > 3
        and not list(other.store.glob("**/frames/*/manifest.json"))
    )
    times = {path: path.stat().st_mtime_ns for path in partial.parent.glob("frames-*.parquet")}
    resumed = other.run(shard_videos=2, workers=2).artifact(other.store)
    assert files(resumed) == files(whole)
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_failed_videos_are_recorded_and_only_they_are_tried_again(place, films, tmp_path):
    place.videos = tmp_path / "videos"
    shutil.copytree(films, place.videos)
    good = place.run().artifact(place.store)  # to compare with
    place.store = tmp_path / "other"
    digests = {name: digest_of(place.videos / name) for name in SHORT}
    place.samples(digests | {"gone.mp4": "0" * 64, "never.mp4": None})
    (place.videos / "d.mp4").write_bytes(b"another film")
    (tmp_path / "outside.mp4").write_bytes((films / "e.mp4").read_bytes())
    (place.videos / "e.mp4").unlink()
    (place.videos / "e.mp4").symlink_to(tmp_path / "outside.mp4")

    strict = place.run()
    assert strict.code == 65 and "3 of 6 videos failed" in strict.message and "max_failed_share: 0.0" in strict.message
    failed = {event["id"]: (event["error"], event["message"]) for event in strict.of("item_failed")}
    assert (
        failed[digests["d.mp4"]][0] == "BadInput" and "d.mp4: has changed since ingest" in failed[digests["d.mp4"]][1]
    )
    assert "e.mp4: leaves the folder" in failed[digests["e.mp4"]][1] and "gone.mp4: is no file" in failed["0" * 64][1]

    lenient = place.run(max_failed_share=0.5)  # nothing is tried again: what was done is published
    assert not lenient.of("item_failed")
    artifact = lenient.artifact(place.store)
    assert sorted(place.rows(artifact)) == ["a/long.mp4", "b.mp4", "c.mkv"]
    entry = ledger(artifact)[digests["d.mp4"]]
    assert (entry["status"], entry["error"], entry["attempts"]) == ("failed", "BadInput", 1)
    assert "d.mp4" in entry["message"] and ledger(artifact)["never.mp4"]["status"] == "skipped"

    for name in ("d.mp4", "e.mp4"):
        (place.videos / name).unlink()
        shutil.copy(films / name, place.videos / name)
    before = files(artifact)
    again = place.run({"retry_failed": True}, max_failed_share=0.5).artifact(place.store)
    assert again.key == artifact.key and sorted(place.rows(again)) == SHORT
    assert files(again)["frames-00000.parquet"] == before["frames-00000.parquet"]  # stays as it was
    assert ledger(again)[digests["d.mp4"]]["status"] == "done" and ledger(again)["0" * 64]["status"] == "failed"
    assert ledger(again)["0" * 64]["attempts"] == 2
    for name, row in place.rows(good).items():
        assert frames_of(again, place.rows(again)[name]) == frames_of(good, row)


@pytest.mark.parametrize(
    "blow, limit, error, said",
    [
        (signal.SIGSEGV, 600, "WorkerDied", "its worker process died (signal SIGSEGV)"),  # a crash in a decoder
        (signal.SIGSTOP, 8, "TimeLimit", "took longer than time_limit: 8 s"),  # one that hangs
    ],
)
def test_a_crash_or_a_hang_costs_one_video(place, blow, limit, error, said):
    place.samples({name: digest_of(place.videos / name) for name in ("b.mp4", "c.mkv", "slow.mp4")})
    process = place.start(max_failed_share=0.5, time_limit=limit)
    os.kill(worker_on(place.videos / "slow.mp4", process), blow)
    events = [json.loads(line) for line in process.stdout]
    assert process.wait() == 0
    failed = [(event["error"], event["message"]) for event in events if event["event"] == "item_failed"]
    assert failed == [(error, f"slow.mp4: {said}")]
    assert events[-1]["counts"] == {"done": 2, "failed": 1, "reused": 0, "skipped": 0}


def test_a_video_that_needs_too_much_memory_fails_alone(place, films, tmp_path):
    place.videos = tmp_path / "videos"
    place.videos.mkdir()
    shutil.copy(films / "b.mp4", place.videos)
    video(place.videos / "huge.mkv", 1, size=(8192, 6144), codec="mjpeg")
    place.samples({name: digest_of(place.videos / name) for name in ("b.mp4", "huge.mkv")})
    artifact = place.run(memory_limit=256, max_failed_share=0.5).artifact(place.store)
    found = ledger(artifact)[digest_of(place.videos / "huge.mkv")]
    assert (found["error"], found["message"]) == (
        "MemoryLimit",
        "huge.mkv: needs more memory than memory_limit: 256 MiB",
    )
    assert sorted(place.rows(artifact)) == ["b.mp4"]


@pytest.mark.parametrize("backend", ["pyav", "ffmpeg"])
def test_no_process_outlives_the_stage(place, backend):
    place.samples({"slow.mp4": digest_of(place.videos / "slow.mp4")})
    process = place.start(workers=1, backend=backend)
    os.kill(worker_on(place.videos / "slow.mp4", process), signal.SIGSTOP)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 300
    while left := processes(process.pid):
        assert time.monotonic() < deadline, f"{left} still run"
        time.sleep(0.1)


@pytest.mark.parametrize("backend", ["pyav", "ffmpeg"])
def test_a_playlist_among_the_videos_is_refused(place, tmp_path, backend):
    place.videos = tmp_path / "videos"
    place.videos.mkdir()
    (place.videos / "list.mp4").write_text("#EXTM3U\n#EXTINF:5,\n/etc/hostname\n#EXT-X-ENDLIST\n")
    place.samples({"list.mp4": digest_of(place.videos / "list.mp4")})
    outcome = place.run(backend=backend)
    assert outcome.code == 65 and outcome.of("item_failed")[0]["error"] == "UnreadableVideo"
    assert outcome.of("item_failed")[0]["message"].startswith("list.mp4: is no video")


def test_what_is_asked_for_alone(place):
    outcome = place.run({"only": ["b.mp4", digest_of(place.videos / "d.mp4")]})
    assert sorted(place.rows(outcome.artifact(place.store))) == ["b.mp4", "d.mp4"]
    none = place.run({"only": ["nothing.mp4"]})
    assert none.code == 65 and "no video is nothing.mp4" in none.message


def test_samples_without_a_video_are_bad_input(place):
    place.samples({"a.jpg": "1" * 64})
    outcome = place.run()
    assert outcome.code == 65 and "hold no video" in outcome.message


def test_a_video_named_twice_is_extracted_once(place, tmp_path):
    place.videos = tmp_path / "videos"
    place.videos.mkdir()
    for name in ("x.mp4", "y.mp4"):
        video(place.videos / name, 10)
    digest = digest_of(place.videos / "x.mp4")
    place.samples({"x.mp4": digest, "y.mp4": digest}, {"y.mp4": 5})
    artifact = place.run().artifact(place.store)
    assert sorted(place.rows(artifact)) == ["x.mp4"]
    assert artifact.read_json("checks.json")["frame_lengths"]["differ"] == {"y.mp4": {"annotated": 5, "taken": 4}}


def test_on_s3_the_files_are_the_same(place, s3):
    made = []
    for store in (place.store, s3.url):
        place.store = store
        place.samples({name: digest_of(place.videos / name) for name in ("b.mp4", "c.mkv")})
        made.append(place.run(workers=1).artifact(place.store))
    assert files(made[0]) == files(made[1]) and made[1].list() == made[0].list()
    row = place.rows(made[1])["b.mp4"]
    assert len(frames_of(made[1], row)) == row["frames"]


def test_the_store_may_be_elsewhere(place):
    """Nothing is written beside the store: no partial file is left, and reading needs its URL alone."""
    artifact = place.run().artifact(place.store)
    again = Store(place.store.as_uri()).list(artifact.folder)
    assert again == sorted([*artifact.manifest["files"], "ledger.parquet", "manifest.json"])
