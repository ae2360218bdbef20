"""Pictures as JPEG and PNG bytes."""

from fractions import Fraction

import av
import numpy as np
import simplejpeg
from av.video.frame import VideoFrame

from video import Picture


def jpeg(picture: Picture, quality: int) -> bytes:
    """JPEG (JFIF) from the planes as they are; of an RGB video with full chroma."""
    planes = picture.planes()
    if planes is None:
        return simplejpeg.encode_jpeg(picture.rgb(), quality, colorsubsampling="444")
    return simplejpeg.encode_jpeg_yuv_planes(*planes, quality)


def png(picture: Picture) -> bytes:
    """PNG, 8 bits RGB."""
    frame = VideoFrame.from_ndarray(picture.rgb(), "rgb24")
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, "rgb24"
    encoder.time_base = Fraction(1, 25)  # it must have one; a PNG does not
    return b"".join(bytes(packet) for packet in (*encoder.encode(frame), *encoder.encode(None)))


def decoded(image: bytes) -> np.ndarray:
    """(H,W,3) uint8 of JPEG or PNG bytes."""
    if simplejpeg.is_jpeg(image):
        return simplejpeg.decode_jpeg(image)
    decoder = av.CodecContext.create("png", "r")
    frame = next(f for packet in (av.Packet(image), None) for f in decoder.decode(packet))
    return frame.to_ndarray(format="rgb24")
