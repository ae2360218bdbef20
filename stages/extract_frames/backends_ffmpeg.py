"""The ffmpeg backend: the program of imageio-ffmpeg, its command line built by ffmpeg-python.

FFmpeg chooses the frames itself, by its fps filter; that it chose as many as planned is checked. Where a file
has no times (AVI, raw streams) all frames are asked for and the planned ones kept, by their place.
"""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import ffmpeg
import imageio_ffmpeg
import numpy as np
from av.video.frame import VideoFrame

from stages.extract_frames.backends import Refused
from stages.extract_frames.pool import die_with_parent
from video import DamagedVideo, Picture, Plan
from video.decode import runs
from video.picture import SCALING_NAMES, kept_format
from video.source import OPTIONS, checked


def command(path: Path, plan: Plan, half_chroma: bool) -> list[str]:
    """The command line; frames come out of it raw, scaled, not rotated."""
    # Whatever is damaged ends it, instead of being concealed.
    source = ffmpeg.input(checked(path), **OPTIONS, threads=1, xerror=None, noautorotate=None, max_error_rate=0)
    chosen = source[str(plan.stream)]
    if not plan.ordered:
        chosen = chosen.filter("setpts", "PTS-STARTPTS").filter("fps", fps=str(plan.fps), round="up")
    width, height = plan.scaled
    scaled = chosen.filter("scale", width, height, flags=SCALING_NAMES)
    output = scaled.output(
        "pipe:", format="rawvideo", pix_fmt=kept_format(plan.pixels, half_chroma), fps_mode="passthrough"
    )
    return output.global_args("-nostdin", "-loglevel", "error").compile(cmd=imageio_ffmpeg.get_ffmpeg_exe())


def frames(path: Path, plan: Plan, half_chroma: bool) -> Iterator[tuple[range, Picture]]:
    """The planned frames. Raises Refused where FFmpeg takes another number, DamagedVideo where it fails."""
    wanted = runs(plan.index)
    places = iter(wanted) if plan.ordered else (k.start for k in wanted.values())
    expected = plan.presented if plan.ordered else len(plan)
    by_place = dict(zip(places, wanted.values()))
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            command(path, plan, half_chroma),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            preexec_fn=die_with_parent,  # a worker that is killed leaves no ffmpeg behind
        ) as process,
    ):
        try:
            place = 0
            while (frame := _read(process.stdout, plan, kept_format(plan.pixels, half_chroma))) is not None:
                if place in by_place:
                    yield by_place[place], Picture(frame, plan.rotation)
                place += 1
            code = process.wait()
        finally:
            with suppress(ProcessLookupError):
                process.kill()
        if code:
            said.seek(0)
            reason = said.read().decode(errors="replace").strip().splitlines()[-1:] or [f"exit status {code}"]
            raise DamagedVideo(f"{path}: ffmpeg stopped after {place} frames: {reason[0]}")
    if place != expected:
        raise Refused(f"{path}: ffmpeg gives {place} frames, {expected} are planned; use backend: pyav")


def _read(pipe: IO[bytes], plan: Plan, pixels: str) -> VideoFrame | None:
    """The next raw frame of the pipe; None at its end."""
    frame = VideoFrame(*plan.scaled, pixels)
    frame.colorspace, frame.color_range = plan.colour
    for plane in frame.planes:
        row = plane.width * (3 if pixels == "rgb24" else 1)
        data = pipe.read(plane.height * row)
        if len(data) < plane.height * row:
            return None
        padded = np.zeros((plane.height, plane.line_size), np.uint8)
        padded[:, :row] = np.frombuffer(data, np.uint8).reshape(plane.height, row)
        plane.update(padded)
    return frame
