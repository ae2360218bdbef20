"""The videos of the samples: which of them passed the gate, their segments, their sound, their timelines."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pyarrow as pa

from stages.contract import Job, WrongConfig
from stages.embed_imagebind.config import EmbedConfig
from stages.embed_imagebind.embed import BadVideo
from stages.embed_imagebind.gate import check_frames, check_plan, check_row
from stages.embed_imagebind.model import ARCHITECTURES
from stages.embed_imagebind.preprocess import CLIP_SECONDS
from stages.embed_imagebind.stems import IMAGE_TOKENS
from stages.embed_imagebind.steps import (
    READING,
    StepReader,
    bad_video,
    decoded_frames,
    sound,
    sound_times,
    stored_columns,
    stored_frames,
)
from stages.paths import below
from storage import Artifact
from storage.digests import Digests
from storage.features import FeatureBank
from storage.videos import SEGMENT, lists, segment_digest
from video import Plan, plan
from video.audio import SOUND

AUDIO = f"clip={CLIP_SECONDS};sound={SOUND}"  # the recipe of the audio steps
Clips = list[tuple[float, float]]  # (start, end) of each, in seconds since the first frame
# What a part finds of a video that it embeds; clips are null where it has no track.
EXAMINED = pa.schema([("video", pa.string()), ("clips", pa.list_(pa.list_(pa.float64())))])


class Segment(NamedTuple):
    """Steps number * SEGMENT ... of a video; `steps` of them, SEGMENT but for the last segment."""

    video: str
    number: int
    steps: int


class Videos:
    """The videos that are embedded: what `frames` holds of those in `paths` (digest -> path below the media root).

    rows: digest -> row of videos.parquet (pts as (n,) float64); clips: digest -> (start, end) of each clip of its
    sound; failures: ledger id -> what is wrong, of what is refused."""

    def __init__(self, frames: Artifact, config: EmbedConfig, paths: dict[str, str]):
        self.artifact, self.config, self.paths = frames, config, paths
        about = frames.manifest["frames"]
        self.fps, self._short_side = about["fps"], about["short_side"]
        self.direct = about["format"] == "direct"
        self.tokens = {"frames": IMAGE_TOKENS if config.tokens == "patch" else 1}
        self.recipes = {"frames": f"{about['recipe']};tokens={config.tokens}"}
        if config.audio:
            self.tokens["audio"], self.recipes["audio"] = 1, AUDIO
        self.rows = {row["video"]: row for row in _rows(frames) if row["video"] in paths}
        self.clips: dict[str, Clips] = {}
        self.failures: dict[str, str] = {}
        self._digests = Digests()
        self.plan = lru_cache(maxsize=2 * config.workers)(self._plan)  # long ones are large: only those in work

    def refuse(self, job: Job, modality: str, video: str, error: BadVideo, seconds: float | None = None) -> None:
        """Record that the frames or the sound of a video are not embedded."""
        path, said = self.paths[video], str(error)
        if self.config.videos is not None:  # errors of `video` begin with the file's name
            said = said.removeprefix(f"{self.config.videos / path}: ")
        told = BadVideo(f"{path}: {said}")
        job.item_failed(f"{modality}/{video}", told, seconds)
        self.failures[f"{modality}/{video}"] = str(told)

    def about(self) -> dict[str, Any]:
        """What the manifest's `encoder` says of them; storage.videos.VideoFeatures reads it."""
        architecture = ARCHITECTURES[self.config.architecture]
        width = architecture.vision_embed_dim if self.config.tokens == "patch" else architecture.out_embed_dim
        widths = {"frames": width, "audio": architecture.out_embed_dim}
        return {
            "fps": self.fps,
            "recipes": self.recipes,
            "tokens": self.tokens,
            "widths": {modality: widths[modality] for modality in self.recipes},
        }

    def segments(self, modality: str) -> dict[str, Segment]:
        """Digest -> segment of all videos, those of one video together and in order."""
        steps = (
            {digest: row["frames"] for digest, row in self.rows.items()}
            if modality == "frames"
            else {digest: len(clips) for digest, clips in self.clips.items()}
        )
        return {
            segment_digest(modality, self.recipes[modality], video, number): Segment(
                video, number, min(SEGMENT, steps[video] - number * SEGMENT)
            )
            for video in sorted(steps)
            for number in range(-(-steps[video] // SEGMENT))
        }

    def reader(self, modality: str) -> StepReader:
        if modality == "audio":
            return StepReader(lambda video, first: sound(self.path(video), self.plan(video), first))
        if self.direct:
            return StepReader(lambda video, first: decoded_frames(self.path(video), self.plan(video), first))
        return StepReader(lambda video, first: stored_frames(self.artifact, self.rows[video], first))

    def timelines(self, modality: str, videos: set[str]) -> Iterator[dict[str, Any]]:
        """Rows of timelines.parquet. Step k of the frames is what is shown from k / fps seconds on."""
        for video in sorted(videos):
            if modality == "frames":
                times = np.arange(self.rows[video]["frames"] + 1) / self.fps
                start, end = times[:-1], times[1:]
            else:
                start, end = zip(*self.clips[video], strict=True)
            yield {"video": video, "modality": modality, "start": start, "end": end}

    def path(self, video: str) -> Path:
        """The video's file. Raises BadInput when its path leaves the folder."""
        return below(self.config.videos, self.paths[video])

    def same_file(self, video: str) -> Path:
        """The video's file, which must be the one that ingest saw. Raises BadInput."""
        path = self.path(video)
        try:
            found = self._digests.file(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
            raise BadVideo(f"cannot be read ({error.strerror}): put it back, or run ingest again") from error
        if found != video:
            raise BadVideo("has changed since ingest: run ingest again")
        return path

    def gate(self, video: str) -> None:
        """Raises BadInput when the video's frames are not exactly the plan (gate.py says what that means)."""
        row = self.rows[video]
        check_row(row, self.fps)
        if self.direct:
            self.same_file(video)
            check_plan(row, self.plan(video))
        else:
            check_frames(row, stored_columns(self.artifact, row))

    def hear(self, video: str) -> Clips:
        """When the clips of its sound are: the file is decoded once for that, and the answer remembered."""
        path, name = self.same_file(video), f"embed_imagebind/{AUDIO}/av={av.__version__}"
        return self._digests.fact(name, video, lambda: sound_times(path, self.plan(video)))

    def _plan(self, video: str) -> Plan:
        return plan(self.path(video), Fraction(str(self.fps)), self._short_side)


def examine(job: Job, wanted: Mapping[str, str], bank: FeatureBank) -> Videos:
    """Put every video through the gate, and see how much sound it has; what is refused is in the ledger. What a part
    has examined, and embedded, is not read again.

    Raises WrongConfig when files are to be read and the settings do not say where they lie."""
    config: EmbedConfig = job.config
    videos = Videos(job.inputs["frames"], config, dict(wanted))
    _skip_what_was_not_extracted(job, videos)
    sounding = {video for video, row in videos.rows.items() if config.audio and row["audio"]}
    if config.videos is None and (sounding or (videos.direct and videos.rows)):
        raise WrongConfig(
            "embed_imagebind.videos: name the folder that the videos lie below: "
            + ("the frames are of format direct" if videos.direct else "they have sound (or set audio: false)")
        )
    before = _embedded_by_parts(job, videos, bank) if job.whole else {}
    total, fine = len(videos.rows), []
    with ThreadPoolExecutor(config.workers, "gate") as pool:
        todo = sorted(videos.rows.keys() - before.keys())
        told = pool.map(lambda video: _examine(videos, video, video in sounding), todo)
        found = chain(((video, None, clips) for video, clips in before.items()), told)
        for done, (video, frames, clips) in enumerate(found, start=1):
            job.progress(done, total, "videos checked")
            if isinstance(frames, BadVideo):
                videos.refuse(job, "frames", video, frames)
                del videos.rows[video]
                if video in sounding:
                    job.ledger.skipped(f"audio/{video}", "its frames were refused")
            elif isinstance(clips, BadVideo):
                videos.refuse(job, "audio", video, clips)
            else:
                fine.append({"video": video, "clips": clips})
                if clips:
                    videos.clips[video] = clips
                elif clips is not None:
                    job.ledger.skipped(f"audio/{video}", "its track has less than 25 ms of sound")
    if not job.whole:
        job.draft.partial.write_table(job.own_file("examined"), pa.Table.from_pylist(fine, schema=EXAMINED))
    return videos


def _embedded_by_parts(job: Job, videos: Videos, bank: FeatureBank) -> dict[str, Clips | None]:
    """Of the videos that parts have examined, and of which the bank has every segment: when their clips are."""
    tables = [job.draft.partial.read_table(n) for n in job.draft.partial.list() if n.startswith("examined-")]
    found = {row["video"]: row["clips"] for table in tables for row in table.to_pylist() if row["video"] in videos.rows}
    videos.clips = {video: clips for video, clips in found.items() if clips}
    for modality in videos.recipes:
        segments = videos.segments(modality)
        for video in {segments[digest].video for digest in bank.missing(modality, segments)}:
            found.pop(video, None)
    videos.clips = {}
    return found


def _examine(videos: Videos, video: str, sounds: bool) -> tuple[str, BadVideo | None, Clips | BadVideo | None]:
    """(video, what is wrong with its frames, its clips of sound or what is wrong with it)."""
    try:
        videos.gate(video)
    except READING as error:
        return video, bad_video(error), None
    try:
        return video, None, videos.hear(video) if sounds else None
    except READING as error:
        return video, None, bad_video(error)


def _skip_what_was_not_extracted(job: Job, videos: Videos) -> None:
    lacking = sorted(set(videos.paths) - set(videos.rows))
    if not lacking:
        return
    ledger = {row["id"]: row for row in videos.artifact.ledger().to_pylist()}
    for video in lacking:
        row = ledger.get(video)
        job.ledger.skipped(
            f"frames/{video}",
            f"extract_frames failed on it: {row['error']}: {row['message']}"
            if row and row["status"] == "failed"
            else f"frames {videos.artifact.key[:12]} do not hold it: run extract_frames again",
        )


def _rows(frames: Artifact) -> Iterator[dict[str, Any]]:
    """Rows of videos.parquet; their times stay arrays, since an hour has 36000."""
    table = frames.read_table("videos.parquet")
    for row, pts in zip(table.drop_columns(["pts"]).to_pylist(), lists(table["pts"]), strict=True):
        yield row | {"pts": pts}
