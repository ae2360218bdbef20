"""Embeddings of what is scored: of images and questions gathered once, of videos' frames a batch at a time."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from malmm.frames import evaluation_frames, window
from malmm.model import Batch, Sample
from stages.evaluate.controls import permuted
from stages.evaluate.items import Segment, segment_of
from storage import Artifact
from storage.features import open_features, text_digest
from storage.videos import VideoFeatures


def permuted_segments(segments: Iterable[Segment], seed: int) -> dict[Segment, Segment]:
    """Another segment for each, of another video or image: media as controls.permuted has it, of one media's segments
    the first for the first, and so on, from the start again where it has fewer. A single media keeps its own."""
    of: dict[str, list[Segment]] = {}
    for segment in dict.fromkeys(segments):
        of.setdefault(segment[0], []).append(segment)
    others = permuted(list(of), seed)
    return {
        one: of[others[media]][i % len(of[others[media]])] for media, own in of.items() for i, one in enumerate(own)
    }


class Features:
    """Makes batches of rows. frames: how many are taken of each video, evenly spaced and rounded so;
    None: the rows are of images."""

    def __init__(
        self,
        artifact: Artifact,
        rows: Sequence[Mapping[str, Any]],
        frames: int | None,
        rounding: Literal["nearest", "down"] = "nearest",
    ):
        self._bank, self._frames, self._rounding = open_features(artifact), frames, rounding
        questions = sorted({row["question"] for row in rows})
        self._questions = {question: i for i, question in enumerate(questions)}
        self._text = torch.from_numpy(np.array(self._bank.gather("text", [text_digest(q) for q in questions])))
        if frames is None:
            media = sorted({row["media"] for row in rows})
            held = [m for m, there in zip(media, self._bank.has("vision", media), strict=True) if there]
            self._images = {digest: i for i, digest in enumerate(held)}
            self._vision = torch.from_numpy(np.array(self._bank.gather("vision", held))) if held else torch.empty(0)
        else:
            self._videos, self._fps = VideoFeatures(artifact), artifact.manifest["encoder"]["fps"]

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Why a row cannot be shown, or None."""
        if self._frames is None:
            there = row["media"] in self._images
            return None if there else f"no vision embedding of {row['media']}: run embed_imagebind again"
        if row["media"] not in self._videos.timelines:
            return f"no frames of {row['media_path']} are embedded: {self._videos.why_not(row['media'])}"
        try:
            self._window(segment_of(row))
        except ValueError as error:
            return str(error)
        return None

    def batch(self, rows: Sequence[Mapping[str, Any]], shown: Mapping[Segment, Segment] | None = None) -> Batch:
        """The rows as the model takes them; `shown` gives each segment another one in its place."""
        segments = [segment_of(row) if shown is None else shown[segment_of(row)] for row in rows]
        return Batch(
            [Sample.from_row(row) for row in rows],
            self._seen(segments),
            self._text[[self._questions[row["question"]] for row in rows]],
        )

    def _seen(self, segments: Sequence[Segment]) -> torch.Tensor:
        """(B,dim) of images, (B,frames,tokens,dim) of videos."""
        if self._frames is None:
            return self._vision[[self._images[media] for media, _, _ in segments]]
        steps = [evaluation_frames(*self._window(segment), self._frames, self._rounding) for segment in segments]
        found = [self._videos.gather(media, at) for (media, _, _), at in zip(segments, steps, strict=True)]
        return torch.from_numpy(np.stack(found))

    def _window(self, segment: Segment) -> tuple[int, int]:
        media, start, end = segment
        return window(start, end, self._fps, len(self._videos.timelines[media]))
