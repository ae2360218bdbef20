"""The frame-fidelity gate: what a video's frames must be, or the video is refused and never embedded.

Pure: rows of the frames artifact's tables in, nothing or `BadVideo` out.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from stages.embed_imagebind.embed import BadVideo
from video import Plan

AGAIN = "run extract_frames again with --force"


def check_row(row: Mapping[str, Any], fps: float) -> None:
    """A row of videos.parquet must be a plan: frames k = 0 ... n-1, each begun by k / fps seconds, in order.

    Raises BadVideo."""
    pts, n = np.asarray(row["pts"], np.float64), row["frames"]
    if n < 1 or len(pts) != n:
        raise BadVideo(f"its plan is of {n} frames, but of {len(pts)} times: {AGAIN}")
    late = pts > np.arange(n) / fps + 1e-9
    wrong = np.flatnonzero(late | (np.diff(pts, prepend=0.0) < 0) | ((np.arange(n) == 0) & (pts != 0)))
    if len(wrong):
        raise BadVideo(f"its plan has frame {wrong[0]} begin at {pts[wrong[0]]} s, which breaks the rule: {AGAIN}")
    if min(row["width"], row["height"]) < 1:
        raise BadVideo(f"its plan is of frames of {row['width']} x {row['height']} pixels: {AGAIN}")


def check_frames(row: Mapping[str, Any], stored: Mapping[str, np.ndarray]) -> None:
    """The stored frames must be exactly the planned ones.

    stored: columns `video`, `k`, `pts`, `width`, `height` (m,) of the row groups that `row` names. Raises BadVideo."""
    n, k = row["frames"], stored["k"]
    if (others := stored["video"] != row["video"]).any():
        raise BadVideo(f"among its stored frames is one of video {stored['video'][others][0][:12]}: {AGAIN}")
    if len(k) != n or (k != np.arange(n)).any():
        places = min(len(k), n)
        wrong = np.flatnonzero(k[:places] != np.arange(places))
        at = int(wrong[0]) if len(wrong) else places
        found = f"frame {k[at]}" if at < len(k) else "none"
        raise BadVideo(f"{len(k)} frames are stored, {n} were planned: at place {at} lies {found}: {AGAIN}")
    if len(wrong := np.flatnonzero(stored["pts"] != np.asarray(row["pts"]))):
        at = int(wrong[0])
        raise BadVideo(f"frame {at} is stored as of {stored['pts'][at]} s, planned was {row['pts'][at]} s: {AGAIN}")
    size = (row["width"], row["height"])
    if len(wrong := np.flatnonzero((stored["width"] != size[0]) | (stored["height"] != size[1]))):
        at = int(wrong[0])
        raise BadVideo(
            f"frame {at} is stored as of {stored['width'][at]} x {stored['height'][at]} pixels, "
            f"planned were {size[0]} x {size[1]}: {AGAIN}"
        )


def check_plan(row: Mapping[str, Any], plan: Plan) -> None:
    """The plan made from the file must be that of the frames artifact. Raises BadVideo."""
    if len(plan) != row["frames"]:
        raise BadVideo(f"its file gives {len(plan)} frames, planned were {row['frames']}: {AGAIN}")
    if len(wrong := np.flatnonzero(plan.seconds != np.asarray(row["pts"]))):
        at = int(wrong[0])
        raise BadVideo(
            f"frame {at} begins at {plan.seconds[at]} s in its file, planned was {row['pts'][at]} s: {AGAIN}"
        )
    if (size := (plan.width, plan.height)) != (row["width"], row["height"]):
        raise BadVideo(
            f"its file gives frames of {size[0]} x {size[1]} pixels, "
            f"planned were {row['width']} x {row['height']}: {AGAIN}"
        )
