"""What will be taken from a video, known from its packets before any frame is decoded."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from video.errors import DamagedVideo, TimeError, UnreadableVideo
from video.sampling import sample
from video.source import opened, video_stream

HEADER_SECONDS, HEADER_SHARE = 0.5, 0.02  # how far a header's duration may be off before a warning says so


@dataclass(frozen=True)
class Plan:
    """The frames to take: one for each k = 0 ... len(plan) - 1, the one shown k / fps seconds after the first.

    `pts` (n,): begin of each taken frame in units of `time_base` seconds; below `fps` entries repeat.
    `index` (n,): its place among the `presented` frames, in the order they are shown. `origin`: the first PTS.
    `width`, `height`: of the taken frames, rotated, short side scaled; `scaled` (width, height): before
    rotation; `coded`: in the file. `rotation`: degrees counterclockwise, of the display matrix. `rate`: presented
    frames a second. `duration`: seconds, from the packets. `pixels`, `colour`: FFmpeg's pixel format, matrix and
    range (AVCOL_SPC_*, AVCOL_RANGE_*). `ordered`: frames are found by place, as their PTS mean nothing.
    `edited`: an edit list takes some of its frames away.
    """

    pts: tuple[int, ...]
    index: tuple[int, ...]
    time_base: Fraction
    origin: int
    fps: Fraction
    width: int
    height: int
    scaled: tuple[int, int]
    coded: tuple[int, int]
    codec: str
    container: str
    pixels: str
    colour: tuple[int, int]
    stream: int
    presented: int
    rate: float
    duration: float
    rotation: int
    audio: bool
    ordered: bool
    edited: bool
    warnings: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def seconds(self) -> np.ndarray:
        """(n,) float64: when each taken frame begins, in seconds after the first."""
        scale = self.time_base
        return np.array([(p - self.origin) * scale.numerator / scale.denominator for p in self.pts], np.float64)


@dataclass
class _Shown:
    """The presented frames: `pts` in order, `last`: duration of the last, all in units of the stream's time base."""

    pts: list[int]
    last: int
    first: VideoFrame
    edited: bool = False
    cut: bool = False


def plan(path: str | os.PathLike[str], fps: Fraction | int = 10, short_side: int = 256) -> Plan:
    """Plan what is taken from the video file `path`.

    Packets are read, and only as many decoded as it takes to see the first frame; but AVI and raw elementary
    streams have no times of presentation, and are decoded once to see the order in which frames come out.
    Raises VideoError.
    """
    with opened(path) as container:
        stream = video_stream(container, path)
        ordered = _by_order(container)
        try:
            shown = (_from_frames if ordered else _from_packets)(container, stream, path)
            index = sample(shown.pts, shown.last, stream.time_base, fps)
        except TimeError as error:
            raise TimeError(f"{path}: {error}") from None
        rotation = _rotation(shown.first, path)
        scaled = scaled_size(shown.first.width, shown.first.height, short_side)
        length = (shown.pts[-1] - shown.pts[0] + _last(shown)) * stream.time_base
        return Plan(
            pts=tuple(shown.pts[i] for i in index.tolist()),
            index=tuple(index.tolist()),
            time_base=stream.time_base,
            origin=shown.pts[0],
            fps=Fraction(fps),
            width=scaled[rotation % 180 != 0],
            height=scaled[rotation % 180 == 0],
            scaled=scaled,
            coded=(shown.first.width, shown.first.height),
            codec=stream.codec_context.codec.canonical_name,
            container=container.format.name,
            pixels=shown.first.format.name,
            colour=(shown.first.colorspace, shown.first.color_range),
            stream=stream.index,
            presented=len(shown.pts),
            rate=float(len(shown.pts) / length),
            duration=float(length),
            rotation=rotation,
            audio=bool(container.streams.audio),
            ordered=ordered,
            edited=shown.edited,
            warnings=tuple(_warnings(container, stream, shown, length)),
        )


def scaled_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(width, height) with the shorter one `short_side`, the other to the nearest integer (halves up)."""
    short = min(width, height)
    return tuple((2 * side * short_side + short) // (2 * short) for side in (width, height))


def _by_order(container: InputContainer) -> bool:
    """Whether the container keeps no PTS: AVI, whose guesses B-frames permute, and raw elementary streams."""
    return container.format.name == "avi" or _raw(container)


def _raw(container: InputContainer) -> bool:
    return bool(container.format.flags & av.format.Flags.no_timestamps.value)


def _from_packets(container: InputContainer, stream: VideoStream, path: str | os.PathLike[str]) -> _Shown:
    """Presented frames by their packets' PTS; what an edit list discards is not presented."""
    begins: list[tuple[int, int]] = []
    first, edited = None, False
    for packet in container.demux(stream):
        if first is None:
            first = next(iter(_decoded(packet, path)), None)
        if packet.size == 0:  # the end, or a frame that was dropped when recording
            continue
        if packet.is_corrupt:
            raise DamagedVideo(f"{path}: packet {len(begins)} of its video is damaged")
        if packet.is_discard:
            edited = True
            continue
        if packet.pts is None:
            raise TimeError(f"packet {len(begins)} of its video has no time")
        begins.append((packet.pts, packet.duration or 0))
    if first is None or not begins:
        raise UnreadableVideo(f"{path}: no frame of its video decodes")
    begins.sort()
    return _Shown([pts for pts, _ in begins], begins[-1][1], first, edited=edited)


def _from_frames(container: InputContainer, stream: VideoStream, path: str | os.PathLike[str]) -> _Shown:
    """Presented frames in the order they are decoded: at their DTS (AVI), or evenly spaced (raw streams)."""
    raw = _raw(container)
    step = int(1 / (stream.guessed_rate * stream.time_base)) if raw and stream.guessed_rate else 1
    pts: list[int] = []
    first, last, cut = None, 0, False
    for packet in container.demux(stream):
        for frame in _decoded(packet, path):
            if cut:
                raise DamagedVideo(f"{path}: frame {len(pts) - 1} of its video is damaged")
            cut = frame.is_corrupt  # at the very end: the file was cut short there
            first = first or frame
            begin = frame.dts
            if pts and (raw or begin is None):
                begin = pts[-1] + step
            pts.append(begin or 0)
            last = frame.duration or 0
    if first is None:
        raise UnreadableVideo(f"{path}: no frame of its video decodes")
    return _Shown(pts, last, first, cut=cut)


def _decoded(packet: av.Packet, path: str | os.PathLike[str]) -> Iterable[VideoFrame]:
    try:
        return packet.decode()
    except av.error.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        raise DamagedVideo(f"{path}: its video cannot be decoded ({error.strerror})") from error


def _last(shown: _Shown) -> int:
    """Duration of the last frame, as `sample` takes it."""
    return shown.last or (shown.pts[-1] - shown.pts[-2] if len(shown.pts) > 1 else 1)


def _rotation(frame: VideoFrame, path: str | os.PathLike[str]) -> int:
    if frame.rotation % 90:
        raise UnreadableVideo(f"{path}: is to be shown rotated by {frame.rotation} degrees; only quarters are done")
    return frame.rotation


def _warnings(container: InputContainer, stream: VideoStream, shown: _Shown, length: Fraction) -> Iterable[str]:
    """What does not stop extraction but a person should know."""
    if shown.cut:
        yield "its last frame is damaged: the file was cut short"
    if _raw(container):
        yield f"it has no times: {float(stream.guessed_rate or 0):g} frames a second is guessed"
        return
    if container.format.name == "avi" and stream.frames:
        header = stream.frames * stream.time_base  # the index alone tells the stream's duration when it is cut
    elif stream.duration is not None:
        header = stream.duration * stream.time_base
    elif container.duration is not None:
        header = Fraction(container.duration, av.time_base)
    else:
        return
    # Some containers count from zero, some from the first frame.
    ends = (length, (shown.pts[0] * stream.time_base) + length)
    off = min(abs(header - end) for end in ends)
    if off > HEADER_SECONDS and off > HEADER_SHARE * length:
        yield f"its header says {float(header):.3f} s, its frames end after {float(length):.3f} s"
