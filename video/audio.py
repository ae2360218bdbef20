"""The sound of a video in clips of a few seconds, on the clock of its pictures."""

import os
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer

from video.errors import DamagedVideo, TimeError, UnreadableVideo
from video.plan import Plan
from video.source import opened

SOUND = 1  # raised when other samples, or other clips of them, come out
JUMP = Fraction(
    1, 10
)  # seconds; containers round times to milliseconds, and a lost packet of sound is longer than that


def clips(
    path: str | os.PathLike[str], plan: Plan, seconds: Fraction | float = 2.0
) -> Iterator[tuple[float, float, np.ndarray, int]]:
    """(start, end, samples, rate) of each clip, in order: `samples` (channels, n) float32 in [-1, 1] at the
    file's own `rate` in Hz and with all its channels; start and end in seconds since the first video frame.

    Clips follow one another from the first sample on, each `seconds` long, the last one shorter. Where sound
    begins before the picture does, start is negative: nothing is cut off, and nothing is filled in where it
    begins later. Where time jumps ahead by more than 0.1 s, the clip ends there (shorter) and the next one
    begins after the gap, so no clip bridges a hole and no silence is made up.
    FFmpeg's best audio stream is read, packet by packet: memory holds one clip, whatever the length.
    Raises VideoError: for no audio stream, damage, time that runs back, channels or rate that change.
    """
    with opened(path) as container:
        stream = container.streams.best("audio")
        if stream is None or stream.codec_context is None:
            raise UnreadableVideo(f"{path}: has no sound that FFmpeg can decode")
        stream.codec_context.thread_count = 1  # videos run side by side
        to_float = av.AudioResampler("fltp")
        held: list[np.ndarray] = []  # of the clip in hand
        begin = expected = before = Fraction(0)  # of that clip; of the next frame; of the last one
        shape: tuple[int, int] | None = None  # channels, rate
        for frame in _frames(container, stream, path):
            here = expected if frame.pts is None else frame.pts * frame.time_base - plan.origin * plan.time_base
            rate = frame.sample_rate
            found = (len(frame.layout.channels), rate)
            if shape is None:
                shape, begin, expected, before = found, here, here, here
            elif found != shape:
                raise UnreadableVideo(f"{path}: its sound changes from {shape} to {found} channels and Hz")
            if here < before:
                raise TimeError(f"{path}: the time of its sound runs back at {float(before):.3f} s")
            if abs(here - expected) > JUMP:
                if held:
                    yield _clip(begin, held, rate)
                held, begin, expected = [], here, here
            before, full = here, int(seconds * rate)
            held += [part.to_ndarray() for part in to_float.resample(frame)]
            expected += Fraction(frame.samples, rate)
            while sum(part.shape[1] for part in held) >= full:
                samples = np.concatenate(held, axis=1)
                yield _clip(begin, [samples[:, :full]], rate)
                held, begin = [samples[:, full:]] if samples.shape[1] > full else [], begin + Fraction(full, rate)
        if held:
            yield _clip(begin, held, shape[1])


def _clip(begin: Fraction, held: list[np.ndarray], rate: int) -> tuple[float, float, np.ndarray, int]:
    samples = np.concatenate(held, axis=1)
    return float(begin), float(begin + Fraction(samples.shape[1], rate)), samples, rate


def _frames(container: InputContainer, stream: AudioStream, path: str | os.PathLike[str]) -> Iterator[AudioFrame]:
    """Frames of sound that are whole. Damage before the first and after the last one is passed over, as sound that
    is cut out of a stream begins and ends inside a frame; between two it raises DamagedVideo."""
    heard, damage = False, None
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
            if packet.is_corrupt:
                frames, damage = [], "damaged"
        except av.error.FFmpegError as error:
            frames, damage = [], error.strerror
        for frame in frames:
            if frame.is_corrupt:
                damage = "damaged"
                continue
            if heard and damage:
                raise DamagedVideo(f"{path}: its sound cannot be decoded ({damage})")
            heard, damage = True, None
            yield frame
