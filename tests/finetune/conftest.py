"""Tiny real inputs for finetune: samples and embeddings, published as the stages before it do."""

import hashlib
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from demo.tiny_language_model import write_tiny_llm
from storage import Draft, Ledger, Store
from storage.features import FeatureBank, text_digest
from storage.tables import FEATURE_ITEMS, SAMPLES, TIMELINES
from storage.videos import SEGMENT, segment_digest
from tests.stage_command import Outcome
from tests.warm import StageProcess, preload

preload("stages.finetune.run", "transformers.models.llama.modeling_llama", "transformers.generation", "bitsandbytes")

COLOURS = ["red", "blue", "green"]
BANK = "tiny-0123456789abcdef"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def rows(dialogues: int = 10, turns: int = 3) -> list[dict[str, Any]]:
    """Every image has a colour, which is the answer to the first question."""
    found = []
    for d in range(dialogues):
        past: list[dict[str, str]] = []
        for turn in range(turns):
            question = ["what colour is it ?", "is it red ?", "is it a circle ?"][turn % 3]
            colour = COLOURS[d % 3]
            answer = [colour, "yes" if colour == "red" else "no", "yes"][turn % 3]
            found.append({
                "sample": f"train/{d}/{turn}", "split": "train", "task": "dialogue", "dialogue": f"train/{d}",
                "media": digest(f"image {d}"), "media_kind": "image", "media_path": f"{d}.jpg", "turn": turn,
                "caption": "a thing", "history": list(past), "question": question, "answer": answer,
            })  # fmt: skip
            past.append({"question": question, "answer": answer})
    return found


def video_rows(videos: int = 9, per_video: int = 3) -> list[dict[str, Any]]:
    """Every video shows a colour, asked for by one question; the last of a video's samples is of its second half."""
    found = []
    for d in range(videos):
        for number in range(per_video):
            part = {"start": 4.0, "end": 7.9} if number == per_video - 1 else {}
            found.append({
                "sample": f"train/{d}-{number}", "split": "train", "task": "question", "dialogue": f"train/{d}",
                "media": digest(f"video {d}"), "media_kind": "video", "media_path": f"{d}.mp4", "turn": 0,
                "history": [], "question": "what colour is it ?", "answer": COLOURS[d % 3], **part,
            })  # fmt: skip
    return found


class Inputs:
    """Publishes artifacts into ``store`` and runs the stage on them."""

    def __init__(self, store: Path, llm: Path):
        store.mkdir(parents=True)
        self.store, self.llm, self.keys = store, llm, {}
        self.samples(rows())
        self.features(self.rows)

    def publish(self, kind: str, about: dict[str, Any], tables: dict[str, pa.Table]) -> None:
        draft = Draft(Store(self.store), kind, digest(f"{kind} {len(self.keys)} {tables}"))
        for name, table in tables.items():
            draft.write_table(name, table)
        draft.publish(Ledger(), about)
        self.keys[kind] = draft.key

    def samples(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.publish("samples", {}, {"samples.parquet": pa.Table.from_pylist(rows, schema=SAMPLES)})

    def features(self, rows: list[dict[str, Any]]) -> None:
        writer = FeatureBank(Store(self.store), BANK)
        media = sorted({row["media"] for row in rows})
        shown = {row["media"]: COLOURS.index(row["answer"]) for row in rows if row["turn"] == 0}
        rng = np.random.default_rng(0)
        vision = np.eye(8)[[shown[m] for m in media]] * 3 + 0.1 * rng.standard_normal((len(media), 8))
        texts = sorted({row["question"] for row in rows})
        writer.append("vision", media, vision.astype(np.float16))
        writer.append("text", [text_digest(t) for t in texts], rng.standard_normal((len(texts), 6)).astype(np.float16))
        self.publish("features", {"encoder": {"bank": BANK}, "record": {"sources": {}}}, {})

    def videos(self, rows: list[dict[str, Any]], without: tuple[str, ...] = ()) -> None:
        """Samples of videos of 80 to 90 frames, 2 segments each; those named in ``without`` are not embedded."""
        self.samples(rows)
        writer, rng, timelines = FeatureBank(Store(self.store), BANK), np.random.default_rng(0), []
        shown = {row["media"]: COLOURS.index(row["answer"]) for row in rows}
        for number, (media, colour) in enumerate(shown.items()):
            if media in without:
                continue
            frames = 80 + number
            steps = (np.eye(8)[colour] * 3 + 0.1 * rng.standard_normal((frames, 8))).astype(np.float16)
            digests = [segment_digest("frames", "tiny", media, i) for i in range(2)]
            writer.append("frames", digests, steps, [SEGMENT, frames - SEGMENT])
            times = np.arange(frames + 1) / 10
            timelines.append({"video": media, "modality": "frames", "start": times[:-1], "end": times[1:]})
        texts = sorted({text_digest(row["question"]) for row in rows})
        writer.append("text", texts, rng.standard_normal((len(texts), 6)).astype(np.float16))
        encoder = {"bank": BANK, "recipes": {"frames": "tiny"}, "tokens": {"frames": 1}, "fps": 10}
        items = [{"modality": "text", "digest": text} for text in texts] + [
            {"modality": "frames", "digest": segment_digest("frames", "tiny", t["video"], 0)} for t in timelines
        ]
        self.publish("features", {"encoder": encoder, "record": {"sources": {}}}, {
            "items.parquet": pa.Table.from_pylist(items, schema=FEATURE_ITEMS),
            "timelines.parquet": pa.Table.from_pylist(timelines, schema=TIMELINES),
        })  # fmt: skip

    def video_config(self, **fields: Any) -> dict[str, Any]:
        malmm = {"recipe": "malmm", "frames": 6, "memory_bank_length": 3, "template": "{visual}{question}"}
        return self.config(**malmm) | fields

    def config(self, **fields: Any) -> dict[str, Any]:
        sizes = {"hidden": 32, "layers": 2, "heads": 2, "intermediate": 64, "encoder_width": 32, "query_tokens": 4}
        return {
            "llm": str(self.llm), "device": "cpu", "quantization": "none", "qformer": sizes, "batch": 4, "lr": 0.003,
            "warmup_steps": 2, "max_steps": 12,
        } | fields  # fmt: skip

    def start(self, **fields: Any) -> StageProcess:
        config = self.config(**fields)
        request = {"stage": "finetune", "config": config, "inputs": self.keys, "store": str(self.store)}
        return StageProcess(request, self.store)

    def run(self, **fields: Any) -> Outcome:
        return self.start(**fields).outcome()


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture
def inputs(tmp_path: Path, tiny_llm: Path) -> Inputs:
    return Inputs(tmp_path / "store", tiny_llm)
