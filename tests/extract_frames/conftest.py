"""Samples of videos made here, and the stage run on them through its real command."""

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import Artifact, Draft, Ledger, Store
from storage.tables import SAMPLES
from tests.stage_command import ROOT, Outcome, command, run_stage
from tests.video.make import video

LENGTHS = {"a/long.mp4": 100, "b.mp4": 25, "c.mkv": 50, "d.mp4": 10, "e.mp4": 5, "slow.mp4": 120}
SAMPLES_KEY = "5a" * 32


def processes(session: int) -> list[tuple[int, set[str]]]:
    """(pid, files that it has open) of the processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                found.append((int(entry.name), {os.readlink(link) for link in (entry / "fd").iterdir()}))
        except OSError:  # it has ended meanwhile
            continue
    return found


def worker_on(path: Path, process: subprocess.Popen) -> int:
    """The worker process that has `path` open, as soon as there is one."""
    while process.poll() is None:
        for pid, opened in processes(process.pid):
            if str(path) in opened:
                return pid
        time.sleep(0.01)
    raise AssertionError(f"the stage ended without opening {path}")


@dataclass
class Place:
    """A folder of videos, a store with the samples of them, and the stage's commands."""

    videos: Path
    store: Path

    def samples(self, paths: dict[str, str | None], frame_lengths: dict[str, int] | None = None) -> None:
        """Publish samples: a row for each path, with its digest (None: missing at ingest)."""
        rows = [
            {
                "sample": f"val/{number}",
                "split": "val",
                "task": "question",
                "dialogue": f"val/{path}",
                "media": digest,
                "media_kind": "image" if path.endswith(".jpg") else "video",
                "media_path": path,
                "turn": 0,
                "history": [],
                "question": "what is shown?",
            }
            for number, (path, digest) in enumerate(paths.items())
        ]
        draft = Draft(Store(self.store), "samples", SAMPLES_KEY)
        draft.write_table("samples.parquet", pa.Table.from_pylist(rows, schema=SAMPLES))
        if frame_lengths is not None:
            draft.write_json("frame_lengths.json", frame_lengths)
        draft.publish(Ledger(), {"stage": "ingest"})

    def config(self, **options) -> dict:
        return {"videos": str(self.videos), "workers": 2, "short_side": 64} | options

    def run(self, more: dict | None = None, **options) -> Outcome:
        inputs = {"samples": SAMPLES_KEY}
        return run_stage("extract_frames", self.config(**options), self.store, inputs, timeout=300, **(more or {}))

    def start(self, more: dict | None = None, **options) -> subprocess.Popen:
        """The stage, started in a session of its own."""
        config = self.config(**options)
        request = {"stage": "extract_frames", "config": config, "inputs": {"samples": SAMPLES_KEY}} | (more or {})
        process = subprocess.Popen(
            command("extract_frames"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        process.stdin.write(json.dumps(request | {"store": str(self.store)}))
        process.stdin.close()
        return process

    def tool(self, *arguments: str) -> subprocess.CompletedProcess:
        """`python -m stages.extract_frames ARGUMENTS`."""
        return subprocess.run(
            [sys.executable, "-m", "stages.extract_frames", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            timeout=300,
        )

    def rows(self, artifact: Artifact) -> dict[str, dict]:
        """VIDEOS rows by media path."""
        return {row["media_path"]: row for row in artifact.read_table("videos.parquet").to_pylist()}


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def frames_of(artifact: Artifact, row: dict) -> list[dict]:
    """FRAMES rows of one video, read by its row groups alone."""
    with artifact.open(row["shard"]) as file:
        shard = pq.ParquetFile(file)
        groups = range(row["first_row_group"], row["first_row_group"] + row["row_groups"])
        return [frame for group in groups for frame in shard.read_row_group(group).to_pylist()]


@pytest.fixture(scope="session")
def films(tmp_path_factory) -> Path:
    """The videos, made once."""
    folder = tmp_path_factory.mktemp("films")
    (folder / "a").mkdir()
    for name, length in LENGTHS.items():
        size = (96, 64) if name != "slow.mp4" else (1920, 1088)
        options = {"preset": "ultrafast"} if name == "slow.mp4" else {}
        video(folder / name, length, codec="libx264" if options else "mpeg4", size=size, options=options)
    return folder


@pytest.fixture
def place(films, tmp_path) -> Place:
    """All of the videos but the slow one, as samples."""
    found = Place(films, tmp_path / "store")
    found.samples({name: digest_of(films / name) for name in LENGTHS if name != "slow.mp4"})
    return found
