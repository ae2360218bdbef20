"""Small videos whose frames say which they are: a barcode over the top sixth, 16 cells (1, 14 bits, 0)."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CELLS = 16


def picture(number: int, width: int, height: int) -> np.ndarray:
    """(H,W,3) uint8: frame `number`."""
    rgb = np.full((height, width, 3), 96, np.uint8)
    rgb[height // 2 :, : width // 2] = (200, 40, 40)
    bits = [1, *((number >> bit) & 1 for bit in range(14)), 0]
    for cell, bit in enumerate(bits):
        rgb[: height // 6, cell * width // CELLS : (cell + 1) * width // CELLS] = 255 * bit
    return rgb


def number(rgb: np.ndarray) -> int:
    """Which frame this is."""
    height, width = rgb.shape[:2]
    row = rgb[: height // 8].mean((0, 2))
    bits = [row[(2 * cell + 1) * width // (2 * CELLS)] > 127 for cell in range(CELLS)]
    assert bits[0] and not bits[15], "no barcode"
    return sum(bit << place for place, bit in enumerate(bits[1:15]))


def video(
    path: Path,
    pts: Sequence[int] | int,
    time_base: Fraction = Fraction(1, 25),
    size: tuple[int, int] = (96, 64),
    codec: str = "mpeg4",
    options: dict[str, str] | None = None,
    **stream_fields: int,
) -> Path:
    """Write frames 0, 1, ... at `pts` (or that many in a row)."""
    pts = range(pts) if isinstance(pts, int) else pts
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=1 / time_base, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.time_base = stream.codec_context.time_base = time_base
        stream.codec_context.bit_rate = 4_000_000
        for name, value in stream_fields.items():
            setattr(stream.codec_context, name, value)
        for index, at in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), "rgb24")
            frame.pts, frame.time_base = at, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
