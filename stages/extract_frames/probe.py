"""`probe FILE...`: what would be taken from videos, or what is wrong with them."""

import argparse
import json
from pathlib import Path
from typing import Any

from stages.extract_frames.work import describe
from video import VideoError, pictures, plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with the time of each frame")


def run(arguments: argparse.Namespace) -> int:
    """Print a report of each file; 0 when all are fine, else 65."""
    failed = False
    for path in arguments.files:
        found = probe(path)
        failed |= found["status"] == "error"
        print(json.dumps(found, ensure_ascii=False) if arguments.json else _line(found), flush=True)
    return 65 if failed else 0


def probe(path: Path) -> dict[str, Any]:
    """What is taken from `path`: its plan, and that all of it decodes. `pts` in units of `time_base` seconds."""
    found: dict[str, Any] = {"file": str(path), "status": "ok", "error": None}
    try:
        planned = plan(path)
        described = describe(planned)
        found |= described | {
            "pts": list(planned.pts),
            "time_base": str(planned.time_base),
            "seconds": described["pts"],
        }
        for _ in pictures(path, planned, half_chroma=True):
            pass
    except VideoError as error:
        found |= {"status": "error", "error": f"{type(error).__name__}: {error}"}
    return found


def _line(found: dict[str, Any]) -> str:
    if found["status"] == "error":
        return found["error"].split(": ", 1)[1]
    parts = [
        f"{found['frames']} frames of {found['width']}x{found['height']}",
        f"{found['codec']}, {found['rate']:.5g} a second, {found['duration']:.3f} s",
        f"rotated by {found['rotation']} degrees" if found["rotation"] else "",
        "" if found["audio"] else "no sound",
        *(f"warning: {warning}" for warning in found["warnings"]),
    ]
    return f"{found['file']}: {'; '.join(filter(None, parts))}"
