"""The shell of extract_frames: samples in; frames in shards, and a row a video, out.

Each video is finished by itself beside the draft (partial/<SHA-256>.json and .parquet) and copied into its shard when
all of the shard's videos are: a killed run loses the videos in work, nothing else. A part of the work is whole shards.
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stages.contract import BadInput, Job, TryAgain
from stages.extract_frames import reuse, shards
from stages.extract_frames.config import ExtractConfig
from stages.extract_frames.pool import each
from stages.extract_frames.work import Extractor
from storage.tables import VIDEOS
from video import SAMPLING

PLAN = "shards.json"
Videos = dict[str, list[str]]  # SHA-256 -> paths below the root
Rows = dict[str, dict[str, Any]]  # SHA-256 -> VIDEOS row


def run(job: Job) -> None:
    """Extract what is not there; write videos.parquet, frames-*.parquet, checks.json. Raises BadInput when more videos
    fail than may, TryAgain when another run has written a shard that does not fit what this one saw."""
    config: ExtractConfig = job.config
    videos = collect(job)
    plan, finished = resume(job, videos)
    own = {name: found for name, found in plan.items() if job.mine(name)}
    failures = extract(job, videos, own, finished)
    if not job.whole:
        return
    if len(failures) > config.max_failed_share * len(videos):
        some = "; ".join(list(failures.values())[:5]) + ("; ..." if len(failures) > 5 else "")
        raise BadInput(
            f"{len(failures)} of {len(videos)} videos failed, more than extract_frames.max_failed_share: "
            f"{config.max_failed_share} allows: {some}; what is done is kept, --retry-failed tries them again"
        )
    rows = read_rows(job, finished)
    if config.format != "direct":
        finish_shards(job, plan, rows)
    table = pa.Table.from_pylist([rows[video] for video in sorted(rows)], schema=VIDEOS)
    job.draft.write_table("videos.parquet", table)
    job.draft.write_json("checks.json", check(job, videos, rows))
    job.about["frames"] = {
        "fps": config.fps,
        "short_side": config.short_side,
        "format": config.format,
        "quality": config.quality if config.format == "jpeg" else None,
        "recipe": recipe(config),
        "backend": config.backend,
    }


def recipe(config: ExtractConfig) -> str:
    """All that decides a frame's pixels; embeddings of frames are kept under it."""
    kept = f"jpeg={config.quality}" if config.format == "jpeg" else "rgb"  # png and direct give the same pixels
    scaled_by = ";scaled=decord" if config.backend == "decord" else ""
    return f"fps={config.fps};short={config.short_side};{kept};sampling={SAMPLING}{scaled_by}"


def collect(job: Job) -> Videos:
    """The distinct videos of the samples, or those asked for: SHA-256 -> paths below the root, sorted."""
    table = job.inputs["samples"].read_table("samples.parquet", ["media", "media_kind", "media_path"])
    table = table.filter(pc.equal(table["media_kind"], "video"))
    missing = table.filter(pc.is_null(table["media"]))
    for path in filter(job.mine, sorted(pc.unique(missing["media_path"]).to_pylist())):
        job.ledger.skipped(path, "the video was missing at ingest")
    found = table.filter(pc.is_valid(table["media"])).group_by("media").aggregate([("media_path", "distinct")])
    videos = {
        video: sorted(paths)
        for video, paths in zip(found["media"].to_pylist(), found["media_path_distinct"].to_pylist())
        if not job.only or job.only & {video, *paths}
    }
    if not videos:
        raise BadInput(
            f"no video is {', '.join(sorted(job.only))}: name videos by SHA-256 or by media path"
            if job.only
            else f"samples {job.inputs['samples'].key[:12]} hold no video: extract_frames is for sets of videos"
        )
    return dict(sorted(videos.items()))


def resume(job: Job, videos: Videos) -> tuple[shards.Shards, set[str]]:
    """The plan of all shards, and the videos that earlier tries, or other parts, have finished.

    The plan is made by the run that comes first, and kept; every other makes the same of it. What is there is looked
    at in the order shards, videos, plan, the reverse of that in which it comes to be: so a video is never missing from
    a shard that is there, nor finished before the plan, because another part went on meanwhile."""
    partial = job.draft.partial
    made = [name for name in job.draft.list() if name.startswith("frames-")]
    finished = {name.removesuffix(".json") for name in partial.list() if name.endswith(".json")}
    if job.draft.exists("videos.parquet"):  # opened again for what failed
        finished.update(job.draft.read_table("videos.parquet", ["video"])["video"].to_pylist())
    finished.intersection_update(videos)
    if job.config.format == "direct":
        return {video: [video] for video in videos}, finished
    todo = [video for video in videos if video not in finished and video not in job.failed_before]
    before = partial.read_json(PLAN) if partial.exists(PLAN) else {}
    plan = shards.planned(before, made, todo, job.config.shard_videos)
    if plan != before:
        partial.write_json(PLAN, plan)
    return plan, finished


def extract(job: Job, videos: Videos, plan: shards.Shards, finished: set[str]) -> dict[str, str]:
    """Take up, or extract, the videos of `plan` that are not in `finished`, add them there, and write each shard when
    all of its videos are. Returns what went wrong with the others, now or before, by video."""
    config, partial = job.config, job.draft.partial
    home = {video: name for name, found in plan.items() for video in found}
    own = [video for video in videos if job.whole or video in home]
    failures = {v: job.failed_before[v] for v in own if v in job.failed_before and v not in finished}
    for video in own:
        if video in finished:
            job.ledger.kept(video)
        elif video in failures:
            job.ledger.still(video)
    todo = [video for video in own if video not in finished and video not in failures]
    if not job.forced and (found := reuse.take(job, todo, recipe(config))):
        for video, row in found.items():
            partial.write_json(f"{video}.json", row | {"media_path": videos[video][0]})
            job.ledger.reused(video)
        job.keep_ledger()  # or nobody knew after a kill that they are reused
        finished.update(found)
        todo = [video for video in todo if video not in found]

    def settle(name: str) -> None:
        if config.format != "direct" and finished.issuperset(plan[name]):
            shards.write(job.draft, name, plan[name])

    for name in plan.keys() - set(job.draft.list()):
        settle(name)
    work = Extractor(config, job.store.url, partial.folder)
    tasks, frames, behind = [(video, videos[video][0]) for video in todo], 0, len(own) - len(todo)
    for (video, path), outcome, seconds in each(work, tasks, config.workers, config.time_limit, config.memory_limit):
        if isinstance(outcome, Exception):
            failures[video] = fail(job, video, path, outcome, seconds)
        else:
            partial.write_json(f"{video}.json", outcome)
            job.ledger.done(video, seconds)
            frames += outcome["frames"]
            finished.add(video)
            settle(home[video])
        behind += 1
        job.progress(behind, len(own), "videos")
    job.metric("frames", frames)
    return failures


def read_rows(job: Job, finished: set[str]) -> Rows:
    """The rows of the finished videos: of an artifact opened again, and those beside the draft."""
    rows: Rows = {}
    if job.draft.exists("videos.parquet"):
        rows = {row["video"]: row for row in job.draft.read_table("videos.parquet").to_pylist()}
    for name in job.draft.partial.list():
        if name.endswith(".json") and name.removesuffix(".json") in finished:
            rows[name.removesuffix(".json")] = job.draft.partial.read_json(name)
    return rows


def finish_shards(job: Job, plan: shards.Shards, rows: Rows) -> None:
    """Write the shards that lack a failed video, and note in `rows` where each one's frames lie.

    Raises TryAgain for a shard that holds other videos: then two runs of one part saw different ones fail."""
    draft = job.draft
    there = set(draft.list())
    for name, found in plan.items():
        if name not in there and (done := [video for video in found if video in rows]):
            shards.write(draft, name, done)
    for name, groups in shards.place(plan, rows).items():
        if shards.row_groups(draft, name) != groups:
            for gone in (*(f"partial/{video}.json" for video in plan[name]), name):
                draft.store.delete(f"{draft.folder}/{gone}")
            raise TryAgain(f"{name}: two runs at once put different videos into it; the next run makes it again")


def fail(job: Job, video: str, path: str, error: Exception, seconds: float) -> str:
    """Record a failed video at once, so that even after a kill it is not tried again by itself.

    Returns what is said of it."""
    said = str(error).removeprefix(f"{job.config.videos / path}: ")
    told = type(error)(f"{path}: {said}")
    job.item_failed(video, told, seconds)
    job.keep_ledger()
    return f"{type(told).__name__}: {told}"


def check(job: Job, videos: Videos, rows: Rows) -> dict[str, Any]:
    """What checks.json says: what is odd about videos, and where the annotations count other frames than were taken.

    The samples artifact may hold frame_lengths.json: media path -> frames that the annotation file says.
    """
    samples = job.inputs["samples"]
    said = samples.read_json("frame_lengths.json") if samples.exists("frame_lengths.json") else {}
    taken = {path: rows[video]["frames"] for video in rows for path in videos[video] if path in said}
    differ = {
        path: {"annotated": said[path], "taken": taken[path]} for path in sorted(taken) if said[path] != taken[path]
    }
    if differ:
        some = ", ".join(f"{p} {d['annotated']} / {d['taken']}" for p, d in list(differ.items())[:5])
        job.log(
            f"{len(differ)} of {len(taken)} videos have another number of frames than the annotations say "
            f"(annotated / taken: {some}{', ...' if len(differ) > 5 else ''}); what was taken is used",
            level="warning",
        )
    odd = {videos[video][0]: rows[video]["warnings"] for video in rows if rows[video]["warnings"]}
    for path, warnings in sorted(odd.items()):
        job.log(f"{path}: {'; '.join(warnings)}", level="warning")
    return {
        "videos": len(rows),
        "frames": sum(row["frames"] for row in rows.values()),
        "warnings": odd,
        "frame_lengths": {"compared": len(taken), "differ": differ},
    }
