"""The shell of extract_frames: samples in; frames in shards, and a row a video, out.

Each video is finished by itself beside the draft (partial/<SHA-256>.json and .parquet) and copied into its
shard when all of the shard's videos are settled: a killed run loses the videos in work, nothing else.
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stages.contract import BadInput, Job
from stages.extract_frames import reuse, shards
from stages.extract_frames.config import ExtractConfig
from stages.extract_frames.pool import each
from stages.extract_frames.work import Extractor
from storage.tables import VIDEOS
from video import SAMPLING

PLAN = "shards.json"
Rows = dict[str, dict[str, Any]]  # SHA-256 -> VIDEOS row


def run(job: Job) -> None:
    """Extract what is not there; write videos.parquet, frames-*.parquet, checks.json. Raises BadInput when more videos
    fail than may."""
    config: ExtractConfig = job.config
    videos = collect(job)
    rows, failures = resume(job, videos)
    extract(job, videos, rows, failures)
    if len(failures) > config.max_failed_share * len(videos):
        some = "; ".join(list(failures.values())[:5]) + ("; ..." if len(failures) > 5 else "")
        raise BadInput(
            f"{len(failures)} of {len(videos)} videos failed, more than extract_frames.max_failed_share: "
            f"{config.max_failed_share} allows: {some}; what is done is kept, --retry-failed tries them again"
        )
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


def collect(job: Job) -> dict[str, list[str]]:
    """The distinct videos of the samples, or those asked for: SHA-256 -> paths below the root, sorted."""
    table = job.inputs["samples"].read_table("samples.parquet", ["media", "media_kind", "media_path"])
    table = table.filter(pc.equal(table["media_kind"], "video"))
    missing = table.filter(pc.is_null(table["media"]))
    for path in sorted(pc.unique(missing["media_path"]).to_pylist()):
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


def resume(job: Job, videos: dict[str, list[str]]) -> tuple[Rows, dict[str, str]]:
    """Rows of the videos that earlier tries finished, and what went wrong with those that are not tried again."""
    rows: Rows = {}
    if job.draft.exists("videos.parquet"):  # opened again for what failed
        rows = {row["video"]: row for row in job.draft.read_table("videos.parquet").to_pylist()}
    for name in job.draft.partial.list():
        if name.endswith(".json") and name.removesuffix(".json") in videos:
            rows[name.removesuffix(".json")] = job.draft.partial.read_json(name)
    for video in rows:
        job.ledger.done(video)
    failures = {v: said for v, said in job.failed_before.items() if v in videos and v not in rows}
    for video in failures:
        job.ledger.still(video)
    return rows, failures


def extract(job: Job, videos: dict[str, list[str]], rows: Rows, failures: dict[str, str]) -> None:
    """Take up, or extract, the videos that are in neither `rows` nor `failures`, and put all of them into shards."""
    config: ExtractConfig = job.config
    todo = [video for video in videos if video not in rows and video not in failures]
    plan = {} if config.format == "direct" else plan_shards(job, todo)
    if not job.request.force:
        for video, row in reuse.take(job, todo, recipe(config)).items():
            rows[video] = row | {"media_path": videos[video][0]}
            job.draft.partial.write_json(f"{video}.json", rows[video])
            job.ledger.reused(video)
        todo = [video for video in todo if video not in rows]
    waiting = {name: set(found).intersection(todo) for name, found in plan.items() if not job.draft.exists(name)}

    def settle() -> None:
        for name in [name for name, awaited in waiting.items() if not awaited]:
            del waiting[name]
            if done := [video for video in plan[name] if video in rows]:
                shards.write(job.draft, name, done)

    settle()
    work = Extractor(config, job.store.url, job.draft.partial.folder)
    tasks = [(video, videos[video][0]) for video in todo]
    finished = len(videos) - len(todo)
    for (video, path), outcome, seconds in each(work, tasks, config.workers, config.time_limit, config.memory_limit):
        if isinstance(outcome, Exception):
            failures[video] = fail(job, video, path, outcome, seconds)
        else:
            job.draft.partial.write_json(f"{video}.json", outcome)
            rows[video] = outcome
            job.ledger.done(video, seconds)
        for awaited in waiting.values():
            awaited.discard(video)
        settle()
        finished += 1
        job.progress(finished, len(videos), "videos")
    shards.place(plan, rows)
    job.metric("frames", sum(rows[video]["frames"] for video in todo if video in rows))


def plan_shards(job: Job, todo: list[str]) -> shards.Shards:
    """The plan of all shards. It is kept, so that the next try makes the same."""
    partial = job.draft.partial
    before = partial.read_json(PLAN) if partial.exists(PLAN) else {}
    made = [name for name in job.draft.list() if name.startswith("frames-")]
    plan = shards.planned(before, made, todo, job.config.shard_videos)
    partial.write_json(PLAN, plan)
    return plan


def fail(job: Job, video: str, path: str, error: Exception, seconds: float) -> str:
    """Record a failed video at once, so that even after a kill it is not tried again by itself.

    Returns what is said of it."""
    said = str(error).removeprefix(f"{job.config.videos / path}: ")
    told = type(error)(f"{path}: {said}")
    job.item_failed(video, told, seconds)
    job.keep_ledger()
    return f"{type(told).__name__}: {told}"


def check(job: Job, videos: dict[str, list[str]], rows: Rows) -> dict[str, Any]:
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
