"""Small clips, and extract_frames over them in parts."""

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

os.environ |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}  # read when Prefect is imported

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterName
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows import environments
from flows.by_hand import make
from flows.config import load
from flows.parts import last, number_of_parts, run_parts
from flows.plan import plan
from flows.runners import ROOT, ProcessRunner
from storage import Artifact, Store

CLIPS, PARTS = 8, 4
PROGRAM = b"/extract_frames/bin/python"
MAKE = f"""
import sys
from pathlib import Path
from tests.video.make import video
for number in range({CLIPS}):
    video(Path(sys.argv[1], f"{{number}}.mp4"), 100 + number, codec="libx264", size=(640, 360),
          options={{"preset": "ultrafast"}})
"""


class Films:
    """A pipeline's config over clips, of which extract_frames runs, each time into a store of its own."""

    def __init__(self, folder: Path):
        self.folder, self.config = folder, folder / "config.yaml"
        (folder / "videos").mkdir()
        (folder / "llm").mkdir()
        (folder / "llm" / "config.json").write_text("{}")
        line = [environments.python("extract_frames"), "-c", MAKE, folder / "videos"]
        subprocess.run(line, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
        records = [{"video": f"{n}.mp4", "question": "who is it", "answer": "a rabbit"} for n in range(CLIPS)]
        (folder / "questions.json").write_text(json.dumps(records))
        self.config.write_text(f"""\
name: films
videos: {folder}/videos
llm: {folder}/llm
runner:
  stages: {{extract_frames: {{part_items: {CLIPS // PARTS}}}}}
ingest:
  format: questions
  annotations: {{train: {folder}/questions.json}}
extract_frames: {{workers: 1, shard_videos: 1}}
embed_imagebind: {{architecture: tiny}}
finetune: {{frames: 4}}
evaluate: {{beams: 1}}
""")

    def run(self, name: str, runner: str) -> dict[str, dict]:
        """Extract the frames in parts, then whole, as the pipeline does. Returns the manifest's files."""
        settings = load(self.config, [f"store={self.folder / name}", runner])
        steps = plan(settings)
        make(steps["ingest"], ProcessRunner())
        step = steps["extract_frames"]
        assert number_of_parts(step, settings.runner) == PARTS
        run_parts(step, PARTS, settings.runner, retries=2)
        make(replace(step, request=last(step.request)), ProcessRunner())
        frames = Artifact(Store(self.folder / name), "frames", step.key)
        assert frames.manifest["counts"]["done"] == CLIPS and not frames.exists("partial")
        return frames.manifest["files"]


@pytest.fixture(scope="session")
def films(tmp_path_factory) -> Iterator[Films]:
    folder = tmp_path_factory.mktemp("films")
    with pytest.MonkeyPatch.context() as patch:  # the clusters' nodes have these, too
        patch.setenv("MALMM_CACHE", str(folder / "cache"))
        patch.setenv("PYTHONPATH", str(ROOT))
        yield Films(folder)


@pytest.fixture(scope="session")
def server(laptop_up) -> Iterator[None]:
    with temporary_settings({PREFECT_API_URL: laptop_up.api, PREFECT_CLIENT_MAX_RETRIES: 10}):
        yield


@pytest.fixture(scope="session")
def undisturbed(films, server) -> dict[str, dict]:
    """The files of frames made by threads on this machine."""
    return films.run("undisturbed", "runner.side_by_side=2")


@pytest.fixture(autouse=True)
def nothing_left(films) -> Iterator[None]:
    """After each test no stage works on, whatever happened to its node."""
    yield
    mine = str(films.folder).encode()
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    stages = [pid for pid in pids if PROGRAM in told(pid, "cmdline") and mine in told(pid, "environ")]
    wait_for(lambda: not any(told(pid, "cmdline") for pid in stages))


def part_runs() -> Counter[str]:
    """The parts' task runs by the name of their state."""
    with get_client(sync_client=True) as client:
        of_parts = TaskRunFilter(name=TaskRunFilterName(like_=" part "))
        return Counter(run.state.name for run in client.read_task_runs(task_run_filter=of_parts))


def stage_below(pid: int) -> bool:
    """Whether a node's process has started one of extract_frames."""
    return any(PROGRAM in told(p, "cmdline") for p in below(pid))


def wait_for(found: Callable[[], Any], seconds: float = 400) -> Any:
    """What `found` finds, as soon as it finds something."""
    end = time.monotonic() + seconds
    while not (it := found()):
        assert time.monotonic() < end, f"nothing after {seconds} s"
        time.sleep(0.05)
    return it


def below(pid: int) -> list[int]:
    """All that a process has started, and that they have."""
    try:
        tasks = [Path(task, "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return []
    children = [int(child) for text in tasks for child in text.split()]
    return children + [one for child in children for one in below(child)]


def told(pid: int, what: str) -> bytes:
    """What /proc tells of a process, empty where it cannot."""
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # ended, or another user's
        return b""
