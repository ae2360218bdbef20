"""`export`: frames of an artifact as files, in the layout that MA-LMM's own code reads.

<folder>/<video>/frame000001.jpg, frame000002.jpg, ...
"""

import argparse
import os
import shutil
import uuid
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq
import simplejpeg

from stages.contract import BadInput
from stages.extract_frames.encode import decoded
from storage import Artifact, Store

QUALITY = 95  # of JPEGs made from PNGs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--store", required=True, help="folder or fsspec URL of the store")
    parser.add_argument("--key", required=True, help="of the frames artifact")
    parser.add_argument("--to", required=True, type=Path, help="the folder to write into")
    parser.add_argument("--layout", default="malmm", choices=["malmm"], help="<video>/frame000001.jpg, ...")
    parser.add_argument(
        "--videos", nargs="+", default=[], metavar="NAME", help="only these: name, media path or SHA-256"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the frames; 0, and how many videos. Raises BadInput, StorageError."""
    artifact = Artifact(Store(arguments.store), "frames", arguments.key)
    written = export(artifact, arguments.to, arguments.videos)
    print(f"{written} videos in {arguments.to}")
    return 0


def export(artifact: Artifact, to: Path, only: list[str]) -> int:
    """Write each video's frames into a folder of `to` with its name; one that is there is replaced whole.

    A folder appears by renaming: a kill leaves no half of a video. Raises BadInput where nothing is stored, names
    clash or leave `to`, or `only` names a video that is not there.
    """
    if artifact.manifest["frames"]["format"] == "direct":
        raise BadInput(f"frames {artifact.key[:12]} stores no frames (format: direct); extract with format: jpeg")
    named = names(chosen(artifact.read_table("videos.parquet").to_pylist(), only))
    to.mkdir(parents=True, exist_ok=True)
    for leftover in to.glob(".*.exporting"):  # of a run that was killed
        shutil.rmtree(leftover)
    for name, row in named.items():
        beside = to / f".{uuid.uuid4().hex[:8]}.exporting"
        beside.mkdir()
        try:
            _write(artifact, row, beside)
            if (to / name).exists():
                os.rename(to / name, replaced := to / f".{uuid.uuid4().hex[:8]}.exporting")
                os.rename(beside, to / name)
                shutil.rmtree(replaced)
            else:
                os.rename(beside, to / name)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    return len(named)


def chosen(rows: list[dict[str, Any]], only: list[str]) -> list[dict[str, Any]]:
    """The VIDEOS rows that `only` names, by folder's name, media path or SHA-256; all where it names none."""
    if not only:
        return rows
    known: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        for word in {PurePosixPath(row["media_path"]).stem, row["media_path"], row["video"]}:
            known[word].append(row)
    if unknown := [word for word in only if word not in known]:
        raise BadInput(f"there is no video {', '.join(unknown)} in the artifact")
    return list({row["video"]: row for word in only for row in known[word]}.values())


def names(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The folder's name of each VIDEOS row: its media path's last part without suffix. Raises BadInput."""
    found = defaultdict(list)
    for row in rows:
        name = PurePosixPath(row["media_path"]).stem
        if not name or name.startswith(".") or "/" in name or "\\" in name or "\0" in name:
            raise BadInput(f"{row['media_path']!r} gives no name for a folder")
        found[name].append(row)
    for name, clashing in found.items():
        if len(clashing) > 1:
            paths = " and ".join(sorted(row["media_path"] for row in clashing))
            raise BadInput(f"{paths} would be the same folder {name}: name one by --videos")
    return {name: row for name, (row,) in found.items()}


def _write(artifact: Artifact, row: dict[str, Any], folder: Path) -> None:
    count = 0
    with artifact.open(row["shard"]) as file:
        shard = pq.ParquetFile(file)
        for group in range(row["first_row_group"], row["first_row_group"] + row["row_groups"]):
            # One thread: Arrow's others may still hold the Python file when the program ends, and would abort it.
            table = shard.read_row_group(group, ["video", "k", "image"], use_threads=False)
            for video, k, image in zip(*(table[name].to_pylist() for name in table.column_names)):
                if video != row["video"] or k != count:
                    raise BadInput(f"{row['shard']}: row group {group} is not of {row['media_path']}: extract it again")
                if not simplejpeg.is_jpeg(image):
                    image = simplejpeg.encode_jpeg(decoded(image), QUALITY, colorsubsampling="444")
                (folder / f"frame{k + 1:06d}.jpg").write_bytes(image)
                count += 1
    if count != row["frames"]:
        raise BadInput(f"{row['shard']}: {count} frames of {row['media_path']}, {row['frames']} were taken")
