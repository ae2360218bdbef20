"""Opening a video with FFmpeg so that nothing but that one file is ever opened.

Three bars: it must be a regular file, the only protocol is `file`, and the format is one that keeps all its
data inside (no playlist, no list of files, no device, no filter graph).
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from video.errors import RefusedFile, UnreadableVideo

# FFmpeg's demuxers of self-contained video files. hls, dash, concat, image2, imf, sdp, lavfi, ... are not among them.
FORMATS = (
    "asf,av1,avi,dv,flv,gif,h261,h263,h264,hevc,ivf,jpeg_pipe,m4v,matroska,mjpeg,mov,mpeg,mpegts,mpegvideo,mxf,"
    "nut,obu,ogg,rm,vc1,wtv,yuv4mpegpipe"
)
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": FORMATS}


def checked(path: str | os.PathLike[str]) -> str:
    """The URL under which FFmpeg may open `path`. Raises RefusedFile for what is no regular file."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise RefusedFile(f"{path}: cannot be opened ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISREG(mode):
        raise RefusedFile(f"{path}: is no regular file")
    return f"file:{Path(path).absolute()}"  # with its protocol, no name can be taken for another one


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[InputContainer]:
    """The open container. Raises RefusedFile, UnreadableVideo (also for what FFmpeg says inside the block)."""
    url = checked(path)
    try:
        with av.open(url, options=OPTIONS) as container:
            yield container
    except av.error.FFmpegError as error:
        if isinstance(error, MemoryError):  # the machine's trouble, not the file's
            raise
        raise UnreadableVideo(f"{path}: {_said(error)}") from error


def video_stream(container: InputContainer, path: str | os.PathLike[str]) -> VideoStream:
    """FFmpeg's best video stream; cover art (an attached picture) is none. Raises UnreadableVideo."""
    stream = container.streams.best("video")
    if stream is not None and stream.disposition & av.stream.Disposition.attached_pic:
        moving = (s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic)
        stream = next(moving, None)
    if stream is None:
        raise UnreadableVideo(f"{path}: has no video stream")
    if stream.codec_context is None:
        raise UnreadableVideo(f"{path}: FFmpeg has no decoder for its video")
    stream.codec_context.thread_count = 1  # videos run side by side, a process each
    return stream


def _said(error: av.error.FFmpegError) -> str:
    if isinstance(error, av.error.InvalidDataError):
        return "is no video that FFmpeg can read, or is damaged"
    return f"FFmpeg cannot read it ({error.strerror})"
