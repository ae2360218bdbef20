"""What decodes: one function a backend, all with the same signature and the same frames, or a refusal.

    frames(path, plan, half_chroma) -> Iterator[(range of k, Picture)]    each distinct planned frame, in order

The plan, made from the packets, says what is taken; a backend that cannot be held to it raises Refused.
"""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from video import Picture, Plan, VideoError, pictures

Frames = Callable[[Path, Plan, bool], Iterator[tuple[range, Picture]]]


class Refused(VideoError):
    """This backend is not exact on this video, or gave other frames than planned: the pyav backend may be."""


def load(name: str) -> Frames:
    """The backend `name` ("pyav", "ffmpeg" or "decord"); its library is imported only here."""
    if name == "pyav":
        return pictures
    return cast(Frames, importlib.import_module(f"stages.extract_frames.backends_{name}").frames)
