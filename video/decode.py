"""The planned frames of a video, one after the other: memory does not depend on the video's length."""

import os
from collections.abc import Iterator

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from video.errors import DamagedVideo
from video.picture import Picture, preparer
from video.plan import Plan
from video.source import opened, video_stream


def decode(path: str | os.PathLike[str], plan: Plan) -> Iterator[tuple[int, np.ndarray]]:
    """(k, (H,W,3) uint8 RGB) for k = 0 ... len(plan) - 1, in order; repeats are the same array again.

    Raises VideoError where a planned frame does not decode, or a frame before the last planned one is damaged.
    """
    for ks, picture in pictures(path, plan, half_chroma=False):
        rgb = picture.rgb()
        for k in ks:
            yield k, rgb


def pictures(
    path: str | os.PathLike[str], plan: Plan, half_chroma: bool, skip: bool = True
) -> Iterator[tuple[range, Picture]]:
    """Each distinct planned frame with the range of k that it is taken for.

    `half_chroma`: keep 4:2:0 as it is (for JPEG); else full chroma (for RGB). `skip`: see `_presented`.
    """
    with opened(path) as container:
        stream = video_stream(container, path)
        if plan.ordered:
            frames = _in_order(container, stream, plan, path)
        else:
            frames = _presented(container, stream, plan, path, skip)
        prepare = preparer(plan, path, half_chroma)
        for ks, frame in frames:
            yield ks, prepare(frame)


def runs(values: tuple[int, ...]) -> dict[int, range]:
    """Each distinct value of a sequence that never falls -> the places where it stands."""
    found: dict[int, range] = {}
    for k, value in enumerate(values):
        found[value] = range(found[value].start if value in found else k, k + 1)
    return found


def _presented(
    container: InputContainer, stream: VideoStream, plan: Plan, path: str | os.PathLike[str], skip: bool
) -> Iterator[tuple[range, VideoFrame]]:
    """The planned frames, found by PTS. `skip`: packets that no planned frame needs (not planned themselves, and no
    reference of others) are not decoded, which changes no pixel."""
    wanted = runs(plan.pts)
    left, decoder = iter(wanted), stream.codec_context
    due = next(left)
    for number, packet in enumerate(container.demux(stream)):
        if packet.is_corrupt:
            raise DamagedVideo(f"{path}: packet {number} of its video is damaged")
        if skip:
            decoder.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        for frame in _decoded(packet, due, plan, path):
            if frame.pts is not None and frame.pts < due:
                continue
            if frame.pts != due:
                raise DamagedVideo(f"{path}: its frame at {_at(due, plan)} does not decode")
            yield wanted[due], frame
            due = next(left, None)
            if due is None:
                return
    raise DamagedVideo(f"{path}: its frame at {_at(due, plan)} does not decode")


def _in_order(
    container: InputContainer, stream: VideoStream, plan: Plan, path: str | os.PathLike[str]
) -> Iterator[tuple[range, VideoFrame]]:
    """The planned frames, found by their place among all that are decoded."""
    wanted = runs(plan.index)
    place, last = 0, plan.index[-1]
    for packet in container.demux(stream):
        for frame in _decoded(packet, plan.origin, plan, path, cut=place == plan.presented - 1):
            if place in wanted:
                yield wanted[place], frame
            if place == last:
                return
            place += 1
    raise DamagedVideo(f"{path}: {place} frames of its video decode, {plan.presented} did when it was planned")


def _decoded(
    packet: av.Packet, due: int, plan: Plan, path: str | os.PathLike[str], cut: bool = False
) -> Iterator[VideoFrame]:
    """The frames that come out after `packet`. A damaged one is an error, except where the plan saw it (`cut`)."""
    try:
        frames = packet.decode()
    except av.error.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        raise DamagedVideo(f"{path}: its video cannot be decoded near {_at(due, plan)} ({error.strerror})") from error
    for frame in frames:
        if frame.is_corrupt and not cut:
            raise DamagedVideo(f"{path}: its frame at {_at(due, plan)} or soon after is damaged")
        yield frame


def _at(pts: int, plan: Plan) -> str:
    return f"{float((pts - plan.origin) * plan.time_base):.3f} s"
