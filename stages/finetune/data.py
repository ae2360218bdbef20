"""The training split: its samples and the embeddings of their images and questions, gathered once."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from malmm.model import Batch, Sample
from stages.contract import BadInput
from storage import Artifact
from storage.features import open_features, text_digest

COLUMNS = ["sample", "media", "media_path", "turn", "caption", "history", "question", "answer"]


@dataclass(frozen=True)
class TrainingData:
    """
    table: n samples. vision (images, dim) and text (questions, dim): each distinct content once, in the bank's dtype;
    image, question (n,): the rows of a sample.
    """

    table: pa.Table
    vision: torch.Tensor
    text: torch.Tensor
    image: np.ndarray
    question: np.ndarray

    def __len__(self) -> int:
        return len(self.table)

    @property
    def lengths(self) -> np.ndarray:
        """Characters of history, question and answer of each sample: what makes prompts differ in length."""
        history = self.table["history"].combine_chunks()
        turns = history.flatten()
        ends = np.asarray(history.offsets) - history.offsets[0].as_py()
        total = np.concatenate([[0], np.cumsum(sum(_characters(turns.field(n)) for n in ("question", "answer")))])
        return total[ends[1:]] - total[ends[:-1]] + sum(_characters(self.table[n]) for n in ("question", "answer"))

    def batch(self, rows: np.ndarray) -> Batch:
        samples = [Sample.from_row(row) for row in self.table.take(rows).to_pylist()]
        return Batch(samples, self.vision[self.image[rows]], self.text[self.question[rows]])


def read_split(samples: Artifact, features: Artifact, split: str) -> TrainingData:
    """Raises BadInput naming the first samples that have no answer, no image or no embedding."""
    with samples.open("samples.parquet") as file:  # not the candidates, which are most of the table
        table = pq.read_table(file, columns=COLUMNS, filters=pc.field("split") == split)
    if not len(table):
        raise BadInput(f"the samples have no split {split!r}: set finetune.train_split, or give ingest its annotations")
    _refuse(table, pc.is_null(table["answer"]), "have no answer to train on: choose a split whose answers are known")
    _refuse(table, pc.is_null(table["media"]), "have no image: give ingest the images, or leave these samples out")

    bank = open_features(features)
    media, image = np.unique(table["media"].to_numpy(), return_inverse=True)
    texts, question = np.unique(table["question"].to_numpy(), return_inverse=True)
    digests = {"vision": media.tolist(), "text": [text_digest(text) for text in texts]}
    for (modality, wanted), rows in zip(digests.items(), (image, question), strict=True):
        missing = ~bank.has(modality, wanted)
        _refuse(table, pa.array(missing[rows]), f"have no {modality} embedding: run embed_imagebind again")
    vision, text = (torch.from_numpy(np.array(bank.gather(m, wanted))) for m, wanted in digests.items())
    return TrainingData(table, vision, text, image, question)


def _refuse(table: pa.Table, bad: pa.Array | pa.ChunkedArray, why: str) -> None:
    if wrong := table.filter(bad).select(["sample", "media_path", "question"]).slice(0, 3).to_pylist():
        named = "; ".join(f"{row['sample']} ({row['media_path']}, {row['question']!r})" for row in wrong)
        raise BadInput(f"{pc.sum(bad).as_py()} of {len(table)} samples {why}. The first: {named}")


def _characters(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(pc.utf8_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
