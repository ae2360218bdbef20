"""What the model sees of a sample: the embedding of its image, or those of chosen frames of its video."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from malmm.frames import evaluation_frames, training_frames
from storage.videos import VideoFeatures


@dataclass(frozen=True)
class Images:
    """vectors (images, dim): each distinct image once, in the bank's dtype; image (n,): the row of a sample."""

    vectors: Tensor
    image: np.ndarray

    @property
    def dim(self) -> int:
        return self.vectors.shape[1]

    def gather(self, rows: np.ndarray, epoch: int) -> Tensor:
        """(B,dim) of the samples ``rows`` (B,); the same in every epoch."""
        return self.vectors[self.image[rows]]


@dataclass(frozen=True)
class Videos:
    """
    Reads from the bank what a batch needs, so that memory is a batch's and not the data set's.

    video (n,) str: the digest of a sample's video; windows (n,2) int64: its first and last frame; count: frames taken
    of each. choice: "segments" takes one at random in each of ``count`` equal segments, "linspace" spaces them evenly.
    """

    features: VideoFeatures
    video: np.ndarray
    windows: np.ndarray
    count: int
    choice: Literal["segments", "linspace"]
    seed: int
    dim: int

    def frames(self, row: int, epoch: int) -> np.ndarray:
        """The frames (count,) int64 of one sample in one epoch: a function of the seed, the epoch and the row alone."""
        first, last = self.windows[row]
        if self.choice == "linspace":
            return evaluation_frames(first, last, self.count)
        return training_frames(first, last, self.count, np.random.default_rng([self.seed, epoch, row]))

    def gather(self, rows: np.ndarray, epoch: int) -> Tensor:
        """(B,count,tokens,dim) in the bank's dtype. Raises MissingEmbedding when the bank has lost what it had."""
        found = [self.features.gather(self.video[row], self.frames(row, epoch)) for row in rows]
        return torch.from_numpy(np.stack(found))
