"""Frames that an earlier run took: another annotation file about the same videos decodes none of them again."""

from collections.abc import Collection
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.contract import Job
from stages.extract_frames import shards
from stages.extract_frames.work import WRITING
from storage import Artifact, published
from storage.tables import FRAMES


def take(job: Job, wanted: Collection[str], recipe: str) -> dict[str, dict[str, Any]]:
    """VIDEOS rows of the wanted videos (SHA-256) that a published artifact of the same recipe and format has; their
    frames are copied beside the draft, as if they had just been extracted."""
    found: dict[str, dict[str, Any]] = {}
    for artifact in published(job.store, "frames"):
        about = artifact.manifest["frames"]
        if (about["recipe"], about["format"]) != (recipe, job.config.format):
            continue
        table = artifact.read_table("videos.parquet")
        lacking = pa.array(sorted(set(wanted) - set(found)), pa.string())
        for row in table.filter(pc.is_in(table["video"], lacking)).to_pylist():
            if row["shard"] is not None:
                copy(job, artifact, row)
            found[row["video"]] = row | {"shard": None, "first_row_group": None}
    return found


def copy(job: Job, artifact: Artifact, row: dict[str, Any]) -> None:
    """The row groups of one video, into its file beside the draft."""
    with (
        artifact.open(row["shard"]) as shard,
        job.draft.partial.create(f"{row['video']}.parquet") as file,
        pq.ParquetWriter(file, FRAMES, **WRITING) as writer,
    ):
        first = row["first_row_group"]
        shards.copy(pq.ParquetFile(shard), range(first, first + row["row_groups"]), writer)
