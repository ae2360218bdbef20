"""Real stages on real videos: disks that are full or read-only, and a video that cannot be read."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from prefect.client.schemas.objects import State

from flows.parts import worth_retrying
from flows.pipeline import run_stage
from storage import Store, published
from tests.faults.conftest import ROOT

ENVIRONMENTS = Path(os.environ.get("MALMM_ENVS") or ROOT / ".envs")
VIDEOS = 8
STAGES = ("ingest", "extract_frames")
DISK = "1m"  # where the frames of two videos fit, and of eight do not
MAKE = """
import sys
from pathlib import Path
from tests.video.make import video
video(Path(sys.argv[1]), 100, size=(480, 320))
"""


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> bytes:
    """A video of four seconds."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    python = ENVIRONMENTS / "extract_frames" / "bin" / "python"
    subprocess.run([python, "-c", MAKE, path], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, check=True)
    return path.read_bytes()


@pytest.fixture
def videos(pretend, video) -> Path:
    """The folder of eight videos, equal in all but their digests; ingest and extract_frames are the real ones."""
    pretend.over_video().unlink()
    folder = pretend.folder / "videos"
    for number in range(VIDEOS):
        free = bytes([0, 0, 0, 9, *b"free", number])  # a box of MP4 that players pass over
        (folder / f"{number}.mp4").write_bytes(video + free)
    asked = [{"video": f"{n}.mp4", "question": "who is it", "answer": "a rabbit"} for n in range(VIDEOS)]
    (pretend.folder / "questions.json").write_text(json.dumps(asked))
    for stage in STAGES:
        (pretend.folder / "envs" / stage).rename(pretend.folder / "envs" / f"no-{stage}")
        (pretend.folder / "envs" / stage).symlink_to(ENVIRONMENTS / stage)
    settings = "{workers: 1, shard_videos: 1, short_side: 320}"
    pretend.config.write_text(pretend.config.read_text().replace("extract_frames: {}", f"extract_frames: {settings}"))
    return folder


@pytest.fixture
def disk(pretend):
    """The store is a small disk of its own; `disk(options)` changes it."""

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", pretend.store]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting a disk of memory is not allowed here: {done.stderr.strip()}")

    pretend.store.mkdir()
    mount(f"size={DISK}")
    try:
        yield lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", "--lazy", pretend.store], check=True)


def test_the_disk_is_full(laptop, pretend, videos, disk, at_once, monkeypatch):
    """Some videos' frames are written when the disk is full. It grows before the retry, and that makes the others."""
    written = []

    def grow(task: object, run: object, state: State) -> bool:
        written.append((state.message, shards(pretend.store)))
        disk("size=64m")
        return worth_retrying(task, run, state)

    monkeypatch.setattr(run_stage, "retry_condition_fn", grow)
    run = laptop.run(pretend.config, STAGES)
    [(said, before)] = written
    assert "extract_frames: OSError: [Errno 28] No space left on device: " in said and str(pretend.store) in said
    assert "exit code 75" in said and 0 < len(before) < VIDEOS
    after = shards(pretend.store)
    assert len(after) == VIDEOS and before.items() <= after.items()  # what was written was not written again
    name, message = laptop.state(run)
    assert name == "Completed" and f"{VIDEOS} done" in message
    assert laptop.tasks(run)["extract_frames"].run_count == 2
    rows = published(Store(pretend.store), "frames")[0].ledger().to_pylist()
    assert [(row["status"], row["attempts"]) for row in rows] == [("done", 1)] * VIDEOS


def shards(store: Path) -> dict[str, tuple[int, int]]:
    """The files of frames, and what tells one that is written again."""
    found = store.glob("artifacts/frames/*/frames-*.parquet")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def test_the_store_is_read_only(laptop, pretend, videos, disk, at_once):
    disk("ro")
    run = laptop.run(pretend.config, STAGES, "retries=1")
    name, message = laptop.state(run)
    assert name == "Failed" and "ingest: OSError: [Errno 30] Read-only file system: " in message
    assert str(pretend.store) in message and laptop.tasks(run)["ingest"].run_count == 2
    disk("rw")
    assert laptop.state(laptop.run(pretend.config, STAGES[:1]))[0] == "Completed"


def test_a_video_that_cannot_be_read(laptop, pretend, videos):
    broken = videos / "3.mp4"
    broken.write_bytes(broken.read_bytes()[:5000])
    run = laptop.run(pretend.config, STAGES)
    name, message = laptop.state(run)
    assert name == "Failed" and "extract_frames: BadInput: 1 of 8 videos failed" in message and ": 3.mp4: " in message
    assert laptop.tasks(run)["extract_frames"].run_count == 1  # it cannot pass: not tried again
    before = shards(pretend.store)
    run = laptop.run(pretend.config, STAGES, "extract_frames.max_failed_share=0.2")
    name, message = laptop.state(run)
    assert name == "Completed" and "7 done, 1 failed" in message
    assert before and before == shards(pretend.store)
