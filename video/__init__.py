"""Exact frames of video files: the sampling rule, plans made from packets, decoding. PyAV and numpy alone."""

from video.decode import decode, pictures
from video.errors import DamagedVideo, RefusedFile, TimeError, UnreadableVideo, VideoError
from video.picture import Picture
from video.plan import Plan, plan
from video.sampling import SAMPLING, sample

__all__ = [
    "SAMPLING",
    "DamagedVideo",
    "Picture",
    "Plan",
    "RefusedFile",
    "TimeError",
    "UnreadableVideo",
    "VideoError",
    "decode",
    "pictures",
    "plan",
    "sample",
]
