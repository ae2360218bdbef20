"""The decord backend, for comparing: decord 0.6.0 has the FFmpeg of 2018 and takes frames by their number.

Refused is what it is known to be wrong on without saying so: MPEG-TS and PS, AVI, WMV, raw streams, edit lists,
AV1, rotation; and every video of which it sees another number of frames, or other times, than the packets say.
"""

from collections.abc import Iterator
from pathlib import Path

import decord
import numpy as np
from av.video.frame import VideoFrame

from stages.extract_frames.backends import Refused
from video import DamagedVideo, Picture, Plan
from video.decode import runs
from video.source import checked

CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flv"}
CODECS = {"h264", "hevc", "mpeg4", "vp8", "vp9"}
CHUNK = 32  # frames held at once
TOLERANCE = 0.002  # seconds; decord keeps times as float32


def frames(path: Path, plan: Plan, half_chroma: bool) -> Iterator[tuple[range, Picture]]:
    """The planned frames, as RGB. Raises Refused, DamagedVideo."""
    if reason := _refusal(plan):
        raise Refused(f"{path}: decord is not exact on {reason}; use backend: pyav")
    wanted = runs(plan.index)
    places = list(wanted)
    try:
        name = checked(path).removeprefix("file:")
        reader = decord.VideoReader(name, decord.cpu(0), *plan.scaled, num_threads=1)
        if len(reader) != plan.presented:
            raise Refused(f"{path}: decord sees {len(reader)} frames, its packets are {plan.presented}")
        begins = reader.get_frame_timestamp(places)[:, 0]
        planned = plan.seconds[[ks.start for ks in wanted.values()]]
        off = np.abs(begins - begins[0] - planned)
        if off.max() > TOLERANCE + 1e-6 * begins.max():
            raise Refused(f"{path}: decord sees frame {places[int(off.argmax())]} {off.max():.3f} s off its time")
        for begin in range(0, len(places), CHUNK):
            part = places[begin : begin + CHUNK]
            for place, rgb in zip(part, reader.get_batch(part).asnumpy(), strict=True):
                yield wanted[place], Picture(VideoFrame.from_ndarray(rgb, "rgb24"), 0)
    except decord.DECORDError as error:
        raise DamagedVideo(f"{path}: decord cannot read it ({str(error).splitlines()[0]})") from error


def _refusal(plan: Plan) -> str | None:
    """What of this video decord is known to get wrong; None where nothing is."""
    if plan.container not in CONTAINERS:
        return f"{plan.container} files"
    if plan.codec not in CODECS:
        return f"{plan.codec} video"
    if plan.edited:
        return "edit lists"
    if plan.rotation:
        return "rotated video"
    return None
