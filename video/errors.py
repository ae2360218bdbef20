"""What is wrong with a video, as one tree: catch `VideoError` for all of it."""


class VideoError(Exception):
    """Base of what this package raises about a file. The message names the file and what is wrong with it."""


class RefusedFile(VideoError):
    """Not opened at all: no regular file, or a format that may reach beyond it (playlists, image sequences)."""


class UnreadableVideo(VideoError):
    """Not a video that can be read: no container, no video stream, no frame that decodes."""


class TimeError(VideoError):
    """Its frames have no times, two have the same, or time runs backwards: nothing says which frame is shown when."""


class DamagedVideo(VideoError):
    """A packet or a frame before the last planned one is damaged, or a planned frame does not decode."""
