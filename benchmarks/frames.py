"""Frames at 10 a second out of real clips (h264, 256 to 1024 lines, 5 to 70 s): CPU seconds of all processes for a
minute of video, on one core.

The floor is decoding every frame with PyAV and throwing it away. The official command is MA-LMM's own, `ffmpeg -vf
scale=-1:256 -q:v 1 -r 10`, with the FFmpeg of imageio-ffmpeg and, where there is one, the machine's own. malmm is all
that its worker does for a video: hash the file, plan, decode, scale, encode JPEG at quality 95, write Parquet. Goals:
half of the official command, 1.15 of the floor. Memory is the peak of a process that extracts one video; two videos of
320x240 at 15 a second.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import imageio_ffmpeg

from benchmarks.common import compare, publish, ratios, say, spread, table
from stages.extract_frames.config import ExtractConfig
from stages.extract_frames.work import Extractor
from storage.digests import sha256_of
from video import plan

CLIPS = {
    "360 lines, 24 a second": "real_malmm_360p24.mp4",
    "720 lines, 29.97, B-frames": "real_psd_720p2997.mp4",
    "256 lines, 30": "real_kinetics_256p30.mp4",
    "portrait, 1024 lines, 29.97": "real_vllama_portrait.mp4",
    "480 lines, 29.97": "real_vllama_480p.mp4",
    "720 lines, 25": "real_skv_bbb720.mp4",
}
FLOOR, OURS = "decode alone", "malmm (pyav)"
ROUNDS = 3
LENGTHS = {"5 s": "h264_15.mp4", "10 min": "long_10min_15fps.mp4"}


def main() -> None:
    root = Path(os.environ.get("MALMM_SHARED") or Path(__file__).resolve().parents[2] / "shared") / "data/video_corpus"
    if not root.is_dir():
        sys.exit(f"no videos at {root}; set MALMM_SHARED to the folder that has data/video_corpus")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    work = Path(sys.argv[1], "frames")
    work.mkdir()
    minutes = {name: plan(root / file).duration / 60 for name, file in CLIPS.items()}
    digests = {file: sha256_of(root / file) for file in [*CLIPS.values(), *LENGTHS.values()]}
    programs = ffmpegs()
    rows, shares = [], {name: [] for name in (*programs, FLOOR)}
    for name, file in CLIPS.items():
        say(name)
        seconds = measure(root, file, digests[file], work, programs)
        seconds = {way: [s / minutes[name] for s in spent] for way, spent in seconds.items()}
        rows += [[name, *row] for row in compare(seconds, next(iter(programs)), 1, "")]
        for other, found in shares.items():
            found += ratios(seconds[OURS], seconds[other])
    publish(
        __doc__,
        table("CPU seconds for a minute of video", ["clip", "way", "CPU seconds", "relative"], rows),
        table(
            "malmm relative to the others, all clips",
            ["to", "ratio", "goal"],
            [[other, spread(found), "1.15" if other == FLOOR else "0.5"] for other, found in shares.items()],
        ),
        table(
            "memory",
            ["video", "peak of the process, MiB"],
            [[length, str(peak(root, file, digests[file], work))] for length, file in LENGTHS.items()],
        ),
    )


def ffmpegs() -> dict[str, str]:
    """The official command's name, with the version of FFmpeg -> program."""
    found = [imageio_ffmpeg.get_ffmpeg_exe(), shutil.which("ffmpeg")]
    said = {
        program: subprocess.run([program, "-version"], check=True, capture_output=True, text=True).stdout
        for program in filter(None, found)
    }
    return {f"official command, FFmpeg {text.split()[2].split('-')[0]}": program for program, text in said.items()}


def measure(root: Path, file: str, digest: str, work: Path, programs: dict[str, str]) -> dict[str, list[float]]:
    """CPU seconds of each way in each round; the ways take turns, beginning with another one each round."""
    extract = Extractor(ExtractConfig(videos=root), str(work / "store"), "partial")

    def decode() -> None:
        with av.open(str(root / file)) as container:
            stream = container.streams.best("video")
            stream.codec_context.thread_count = 1
            for _ in container.decode(stream):
                pass

    def official(program: str) -> None:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            line = [program, "-v", "error", "-nostdin", "-i", str(root / file)]
            line += ["-vf", "scale=-1:256", "-q:v", "1", "-r", "10", f"{folder}/frame%06d.jpg"]
            subprocess.run(line, check=True)

    ways: dict[str, Callable[[], object]] = {FLOOR: decode, OURS: lambda: extract((digest, file))}
    ways |= {name: partial(official, program) for name, program in programs.items()}
    names, found = list(ways), {name: [] for name in ways}
    for number in range(ROUNDS):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begin = spent()
            ways[name]()
            found[name].append(spent() - begin)
    return found


def spent() -> float:
    """CPU seconds of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak(root: Path, file: str, digest: str, work: Path) -> int:
    """MiB that a process of its own holds at most when it extracts one video."""
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from stages.extract_frames.config import ExtractConfig\n"
        "from stages.extract_frames.work import Extractor\n"
        "root, store, digest, file = sys.argv[1:]\n"
        "Extractor(ExtractConfig(videos=Path(root)), store, 'partial')((digest, file))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    line = [sys.executable, "-c", program, str(root), str(work / "store"), digest, file]
    return int(subprocess.run(line, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
