"""Shards: which videos lie in which file of frames, planned before anything runs, so that the bytes published
follow from the videos alone, and not from kills, workers, parts, or what was finished first."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from stages.extract_frames.work import WRITING
from storage.artifacts import Draft
from storage.tables import FRAMES

Shards = dict[str, list[str]]  # name of a file -> the videos planned for it, by digest


def name_of(number: int) -> str:
    """The file name of a shard."""
    return f"frames-{number:05d}.parquet"


def planned(before: Mapping[str, Sequence[str]], made: Iterable[str], todo: Iterable[str], size: int) -> Shards:
    """The plan of all shards, the ones made among them.

    `before`: an earlier try's plan; `made`: the files that are there, and stay as they are; `todo`: the videos
    without frames. Those of them that no shard still to be made awaits come into new ones, `size` videos each, in
    order of digest.
    """
    made, todo = set(made), set(todo)
    shards = {name: [v for v in videos if name not in made or v not in todo] for name, videos in before.items()}
    awaited = {video for name, videos in shards.items() if name not in made for video in videos}
    new = sorted(todo - awaited)
    free = (name for name in map(name_of, itertools.count()) if name not in made and name not in before)
    for begin in range(0, len(new), size):
        shards[next(free)] = new[begin : begin + size]
    return shards


def place(shards: Shards, rows: Mapping[str, dict[str, Any]]) -> dict[str, int]:
    """Note in each VIDEOS row of `shards` in which file, and at which row group of it, its frames begin.

    Returns how many row groups each file has, of those that have any."""
    ends = {}
    for name, videos in shards.items():
        for row in (rows[video] for video in videos if video in rows):
            row |= {"shard": name, "first_row_group": ends.get(name, 0)}
            ends[name] = row["first_row_group"] + row["row_groups"]
    return ends


def copy(source: pq.ParquetFile, groups: range, writer: pq.ParquetWriter) -> None:
    """Row groups as they are, one in memory at a time."""
    for number in groups:
        writer.write_table(source.read_row_group(number))


def write(draft: Draft, name: str, videos: Sequence[str]) -> None:
    """Put the frames of `videos` from their partial files into the shard `name`, a row group as a row group.

    Of two runs of one part it is the first that writes it; what the other has is the same."""
    if draft.exists(name):
        return
    try:
        with draft.create(name) as file, pq.ParquetWriter(file, FRAMES, **WRITING) as writer:
            for video in videos:
                with draft.partial.open(f"{video}.parquet") as part:
                    groups = pq.ParquetFile(part)
                    copy(groups, range(groups.num_row_groups), writer)
        for video in videos:
            draft.store.delete(f"{draft.partial.folder}/{video}.parquet")
    except FileNotFoundError:  # the other one has written the shard meanwhile, and taken the partial files away
        if not draft.exists(name):
            raise


def row_groups(draft: Draft, name: str) -> int:
    """How many row groups a shard has."""
    with draft.open(name) as file:
        return pq.ParquetFile(file).num_row_groups
