"""Paths that annotations bring: below their root, or not opened."""

import os
from pathlib import Path, PurePosixPath

from stages.errors import BadInput


def below(root: Path, media_path: str) -> Path:
    """The path `media_path` below `root`, which neither it nor a link may leave. Raises BadInput that
    does not name it."""
    relative = PurePosixPath(media_path)
    real, found = os.path.realpath(root), os.path.realpath(root / relative)
    if relative.is_absolute() or ".." in relative.parts or os.path.commonpath([real, found]) != real:
        raise BadInput(f"leaves the folder {root}; run ingest again")
    return root / relative
