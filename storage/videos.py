"""Features of videos over time, in the feature bank: steps (frames, or clips of sound) in segments of SEGMENT.

A segment is one item of the bank, addressed by the video's content and by what made the steps of it; so a
video of hours is taken up in its middle, and the index has one row for 64 frames.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.artifacts import Artifact
from storage.errors import MissingEmbedding
from storage.features import FeatureBank

SEGMENT = 64  # steps


def segment_digest(modality: str, recipe: str, video: str, number: int) -> str:
    """The content address of a segment: steps number * SEGMENT ... of `video`, made as `recipe` says."""
    return hashlib.sha256(f"{modality}/{recipe}/{video}/{number}".encode()).hexdigest()


@dataclass(frozen=True)
class Timeline:
    """When the steps of a video are: `start` and `end` (T,) float64, seconds since the first frame."""

    start: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.start)


class VideoFeatures:
    """What a features artifact holds of one modality ("frames" or "audio") of its videos.

    The manifest's `encoder` has, for the modality, `recipes` (what made the steps) and `tokens` (rows a step);
    an artifact of images alone has neither, and no timelines. Raises MissingEmbedding for such a one.
    """

    def __init__(self, artifact: Artifact, modality: str = "frames"):
        about = artifact.manifest["encoder"]
        if modality not in about.get("recipes", {}):
            raise MissingEmbedding(
                f"features {artifact.key[:12]} hold no {modality} of videos: run the pipeline with extract_frames"
                + (" and embed_imagebind.audio: true" if modality == "audio" else "")
            )
        self.modality, self.recipe = modality, about["recipes"][modality]
        self.tokens: int = about["tokens"][modality]
        self.bank = FeatureBank(artifact.store, about["bank"])
        self.timelines = read_timelines(artifact, modality)
        self._artifact = artifact

    def why_not(self, video: str) -> str:
        """What the artifact's ledger says of a video that it holds nothing of, and what to do."""
        if (message := self._lacking.get(f"{self.modality}/{video}")) is None:
            return "run embed_imagebind again, on these samples"
        return f"{message}; mend the file and run ingest again, or try it again with --retry-failed"

    @cached_property
    def _lacking(self) -> dict[str, str]:
        """Id -> message of what failed or was skipped. Read when first asked for: mostly nobody asks."""
        ledger = self._artifact.ledger()
        rows = ledger.filter(pc.is_in(ledger["status"], pa.array(["failed", "skipped"]))).to_pylist()
        return {row["id"]: row["message"] for row in rows}

    def gather(self, video: str, steps: np.ndarray) -> np.ndarray:
        """(len(steps), tokens, dim) of the steps, in the order given; they may repeat.

        Raises MissingEmbedding, IndexError for a step that the video does not have, ValueError for no steps."""
        if video not in self.timelines:
            raise MissingEmbedding(f"video {video} has no {self.modality} embedded: {self.why_not(video)}")
        steps, length = np.asarray(steps, np.int64), len(self.timelines[video])
        if not len(steps):
            raise ValueError(f"no {self.modality} of video {video} were asked for")
        if steps.min() < 0 or steps.max() >= length:
            wrong = steps[(steps < 0) | (steps >= length)][0]
            raise IndexError(f"step {wrong} of video {video}, which has {length}")
        numbers, at = np.unique(steps // SEGMENT, return_inverse=True)
        digests = [segment_digest(self.modality, self.recipe, video, number) for number in numbers.tolist()]
        return self.bank.gather_parts(
            self.modality, [digests[i] for i in at.tolist()], steps % SEGMENT * self.tokens, self.tokens
        )


def read_timelines(artifact: Artifact, modality: str) -> dict[str, Timeline]:
    """The timelines of one modality by video, as views of the table: an hour of video is 36000 steps."""
    if not artifact.exists("timelines.parquet"):
        return {}
    table = artifact.read_table("timelines.parquet")
    table = table.filter(pc.equal(table["modality"], modality)).combine_chunks()
    starts, ends = (lists(table[name]) for name in ("start", "end"))
    return {video: Timeline(*times) for video, *times in zip(table["video"].to_pylist(), starts, ends, strict=True)}


def lists(column: pa.ChunkedArray) -> list[np.ndarray]:
    """The arrays of a column of lists without nulls, as views."""
    return [
        values
        for chunk in column.chunks
        if len(chunk)  # splitting nothing still gives one part
        for values in np.split(chunk.flatten().to_numpy(), np.cumsum(chunk.value_lengths().to_numpy())[:-1])
    ]
