"""The training split: its samples, the embeddings of their questions, and what is seen of their media."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from malmm.frames import window
from malmm.model import Batch, Sample
from stages.contract import BadInput, WrongConfig
from stages.finetune.config import FinetuneConfig
from stages.finetune.media import Images, Videos
from storage import Artifact
from storage.features import open_features, text_digest
from storage.videos import VideoFeatures

COLUMNS = [
    "sample", "media", "media_kind", "media_path", "start", "end", "turn", "caption", "history", "question", "answer",
]  # fmt: skip


@dataclass(frozen=True)
class TrainingData:
    """
    table: n samples. text (questions, dim): each distinct question once, in the bank's dtype; question (n,): the row
    of a sample. skipped: samples of the split that go untrained, and why.
    """

    table: pa.Table
    media: Images | Videos
    text: torch.Tensor
    question: np.ndarray
    skipped: dict[str, str]

    def __len__(self) -> int:
        return len(self.table)

    @property
    def widths(self) -> tuple[int, int]:
        """Of the embeddings of media and of text."""
        return self.media.dim, self.text.shape[1]

    @property
    def lengths(self) -> np.ndarray:
        """Characters of history, question and answer of each sample: what makes prompts differ in length."""
        history = self.table["history"].combine_chunks()
        turns = history.flatten()
        ends = np.asarray(history.offsets) - history.offsets[0].as_py()
        total = np.concatenate([[0], np.cumsum(sum(_characters(turns.field(n)) for n in ("question", "answer")))])
        return total[ends[1:]] - total[ends[:-1]] + sum(_characters(self.table[n]) for n in ("question", "answer"))

    def batch(self, rows: np.ndarray, epoch: int) -> Batch:
        samples = [Sample.from_row(row) for row in self.table.take(rows).to_pylist()]
        return Batch(samples, self.media.gather(rows, epoch), self.text[self.question[rows]])


def read_split(samples: Artifact, features: Artifact, config: FinetuneConfig) -> TrainingData:
    """
    Raises BadInput naming the first samples that have no answer, or (beyond max_failed_share) no media or no
    embedding; WrongConfig where `frames` does not fit the kind of media.
    """
    split = config.train_split
    with samples.open("samples.parquet") as file:  # not the candidates, which are most of the table
        table = pq.read_table(file, columns=COLUMNS, filters=pc.field("split") == split)
    if not len(table):
        raise BadInput(f"the samples have no split {split!r}: set finetune.train_split, or give ingest its annotations")
    kind = _kind(table, config.frames)
    if wrong := table.filter(pc.is_null(table["answer"])).to_pylist():
        raise BadInput(_named(table, wrong, "no answer to train on: choose a split whose answers are known"))

    found = _Videos(features, config) if kind == "video" else _Images(features)
    table, skipped = _trainable(table, found, config.max_failed_share)
    texts, question = np.unique(table["question"].to_numpy(), return_inverse=True)
    bank, digests = open_features(features), [text_digest(text) for text in texts]
    if wrong := table.filter(pa.array(~bank.has("text", digests)[question])).to_pylist():
        raise BadInput(_named(table, wrong, "no text embedding: run embed_imagebind again"))
    text = torch.from_numpy(np.array(bank.gather("text", digests)))
    return TrainingData(table, found.media(table), text, question, skipped)


def dimensions(features: Artifact, frames: int | None) -> tuple[int, int]:
    """Widths of the embeddings of media (videos, with ``frames``) and of text. Raises BadInput where there is none."""
    items, bank, widths = features.read_table("items.parquet"), open_features(features), []
    for modality in ("vision" if frames is None else "frames", "text"):
        digests = items.filter(pc.field("modality") == modality)["digest"]
        if not len(digests):
            raise BadInput(f"the features hold no {modality} embedding: check finetune.frames, or give ingest samples")
        widths.append(bank.rows(modality, digests[0].as_py()).shape[1])
    return widths[0], widths[1]


class _Images:
    """Which samples have an embedded image, and the images of those that have."""

    def __init__(self, features: Artifact):
        self.bank = open_features(features)

    def problems(self, table: pa.Table) -> list[str | None]:
        media = np.unique(table["media"].drop_null().to_numpy())
        has = dict(zip(media, self.bank.has("vision", media.tolist()), strict=True)) if len(media) else {}
        return [
            "no image: give ingest the images, or leave these samples out"
            if digest is None
            else None
            if has[digest]
            else "no vision embedding: run embed_imagebind again"
            for digest in table["media"].to_pylist()
        ]

    def media(self, table: pa.Table) -> Images:
        media, image = np.unique(table["media"].to_numpy(), return_inverse=True)
        return Images(torch.from_numpy(np.array(self.bank.gather("vision", media.tolist()))), image)


class _Videos:
    """Which samples have an embedded video that reaches to where they begin, and the videos of those that have."""

    def __init__(self, features: Artifact, config: FinetuneConfig):
        self.features, self.config = VideoFeatures(features), config
        self.fps, self.dim = features.manifest["encoder"]["fps"], dimensions(features, config.frames)[0]

    def problems(self, table: pa.Table) -> list[str | None]:
        return [self._problem(row) for row in table.select(["media", "start", "end"]).to_pylist()]

    def media(self, table: pa.Table) -> Videos:
        rows = table.select(["media", "start", "end"]).to_pylist()
        windows = np.array([self._window(row) for row in rows])
        video, c = np.array([row["media"] for row in rows]), self.config
        return Videos(self.features, video, windows, c.frames, c.frame_choice, c.seed, self.dim)

    def _problem(self, row: dict) -> str | None:
        if row["media"] is None:
            return "no video: give ingest the videos, or leave these samples out"
        if row["media"] not in self.features.timelines:
            return f"no frames embedded: {self.features.why_not(row['media'])}"
        try:
            self._window(row)
        except ValueError as error:
            return f"a window outside their video: {error}"
        return None

    def _window(self, row: dict) -> tuple[int, int]:
        return window(row["start"], row["end"], self.fps, len(self.features.timelines[row["media"]]))


def _kind(table: pa.Table, frames: int | None) -> str:
    kinds = table["media_kind"].unique().to_pylist()
    if len(kinds) > 1:
        raise WrongConfig("finetune.train_split: the split has both images and videos; train on one kind at a time")
    if kinds == ["video"] and frames is None:
        raise WrongConfig("finetune.frames: the samples are of videos; say how many frames to take of each")
    if kinds == ["image"] and frames is not None:
        raise WrongConfig(f"finetune.frames: the samples are of images, which have no {frames} frames; leave it out")
    return kinds[0]


def _trainable(table: pa.Table, found: _Images | _Videos, share: float) -> tuple[pa.Table, dict[str, str]]:
    """The samples that can be trained on, and the others with the reason. Raises BadInput when they are too many."""
    problems = found.problems(table)
    bad = [i for i, problem in enumerate(problems) if problem is not None]
    if not bad:
        return table, {}
    if len(bad) == len(table) or len(bad) > share * len(table):
        alike = [i for i in bad if problems[i] == problems[bad[0]]]
        said = _named(table, table.take(alike).to_pylist(), problems[bad[0]])
        more = f"; {len(bad) - len(alike)} more for other reasons" if len(bad) > len(alike) else ""
        raise BadInput(f"{said}{more}. finetune.max_failed_share is {share:g}")
    names = table["sample"].take(bad).to_pylist()
    whole = table.filter(pa.array([problem is None for problem in problems]))
    return whole, {name: problems[i] for name, i in zip(names, bad, strict=True)}


def _named(table: pa.Table, wrong: list[dict], why: str) -> str:
    first = "; ".join(f"{row['sample']} ({row['media_path']}, {row['question']!r})" for row in wrong[:3])
    return f"{len(wrong)} of {len(table)} samples have {why}. The first: {first}"


def _characters(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(pc.utf8_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
