"""A real tiny pipeline over one video: samples, frames, features and a checkpoint, published as by the stages before.

The video is planted: SCENES of identical embeddings, so that what a memory of as many entries keeps is known.
"""

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from PIL import Image

from malmm.model import ModelConfig, MultimodalModel, build_model
from malmm.prompt import Template
from malmm.qformer import QFormerConfig
from storage import Draft, Ledger, Store
from storage.digests import Digests
from storage.features import FeatureBank, text_digest
from storage.tables import FRAMES, SAMPLES, TIMELINES, VIDEOS
from storage.videos import SEGMENT, segment_digest

FPS, BANK, RECIPE = 10, "tiny-0123456789abcdef", "planted"
SCENES = (3, 9, 5, 7)  # frames
FRAMES_TAKEN = sum(SCENES)
QUESTION = "what happens?"
PATH = "clips/a street.mp4"
MODEL = ModelConfig(
    qformer=QFormerConfig(hidden=16, layers=2, heads=2, intermediate=32, encoder_width=12, query_tokens=4),
    vision_dim=8, text_dim=6, quantization="none", memory_bank_length=len(SCENES), max_frames=30,
    trainable=("imagebind_fc", "ln_vision", "query_tokens", "qformer", "llm_proj"),
    template=Template("{visual}Question: {question} Answer:"),
)  # fmt: skip


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


VIDEO = digest("the video")


def colour(frame: int) -> tuple[int, int, int]:
    """Of a frame's picture: tells which frame it is, also after JPEG."""
    return 10 * frame, 255 - 10 * frame, 128


class OneVideo:
    """Publishes everything into `store`; `request` is what ask and memory take."""

    def __init__(self, store: Path, llm: Path, tokens: int = 1):
        self.store, self.llm, self.tokens = store, llm, tokens
        self.keys: dict[str, str] = {}
        self.samples()
        self.features()
        self.frames()
        self.checkpoint()

    def publish(self, kind: str, key: str, about: dict[str, Any], files: dict[str, Any]) -> None:
        draft = Draft(Store(self.store), kind, digest(key))
        for name, content in files.items():
            write = {"parquet": draft.write_table, "json": draft.write_json}.get(name.split(".")[-1], draft.write_bytes)
            write(name, content)
        draft.publish(Ledger(), about)
        self.keys[kind] = digest(key)

    def samples(self, key: str = "samples", **fields: Any) -> None:
        row = {
            "sample": "test/0", "split": "test", "task": "question", "dialogue": f"test/{PATH}", "media": VIDEO,
            "media_kind": "video", "media_path": PATH, "turn": 0, "history": [], "question": QUESTION,
        } | fields  # fmt: skip
        self.publish("samples", key, {}, {"samples.parquet": pa.Table.from_pylist([row], schema=SAMPLES)})

    def features(self, key: str = "features", bank: str = BANK, frames: int = FRAMES_TAKEN) -> None:
        rng = np.random.default_rng(3)
        scenes = rng.standard_normal((len(SCENES), self.tokens, 8)).astype(np.float16)
        rows = np.repeat(scenes, SCENES, axis=0)
        assert len(rows) <= SEGMENT
        writer = FeatureBank(Store(self.store), bank)
        segment = segment_digest("frames", RECIPE, VIDEO, 0)
        writer.append("frames", [segment], rows.reshape(-1, 8), [rows.shape[0] * self.tokens])
        writer.append("text", [text_digest(QUESTION)], rng.standard_normal((1, 6)).astype(np.float16))
        start = np.arange(frames) / FPS
        timeline = {"video": VIDEO, "modality": "frames", "start": start, "end": (np.arange(frames) + 1) / FPS}
        timelines = pa.Table.from_pylist([timeline] if frames else [], schema=TIMELINES)
        about = {"bank": bank, "random_weights": True, "fps": FPS}
        about |= {"recipes": {"frames": RECIPE}, "tokens": {"frames": self.tokens}}
        self.publish("features", key, {"encoder": about}, {"timelines.parquet": timelines})

    def frames(self, key: str = "frames", direct: bool = False) -> None:
        """In row groups of ten, behind those of another video."""
        rows = [
            {"video": VIDEO, "k": k, "pts": k / FPS, "image": picture(colour(k)), "width": 64, "height": 48}
            for k in range(FRAMES_TAKEN)
        ]
        other = [row | {"video": digest("another"), "image": picture((255, 0, 0))} for row in rows[:10]]
        buffer = io.BytesIO()
        with pq.ParquetWriter(buffer, FRAMES) as writer:
            for group in (other, *(rows[at : at + 10] for at in range(0, len(rows), 10))):
                writer.write_table(pa.Table.from_pylist(group, schema=FRAMES))
        video = {
            "video": VIDEO, "media_path": PATH, "frames": len(rows), "pts": [row["pts"] for row in rows], "width": 64,
            "height": 48, "codec": "h264", "rate": 25.0, "duration": 2.4, "rotation": 0, "audio": False, "warnings": [],
        }  # fmt: skip
        if not direct:
            video |= {"shard": "frames-00000.parquet", "first_row_group": 1, "row_groups": 3}
        files = {"videos.parquet": pa.Table.from_pylist([video], schema=VIDEOS)}
        draft = Draft(Store(self.store), "frames", digest(key))
        if not direct:
            draft.write_bytes("frames-00000.parquet", buffer.getvalue())
        self.publish("frames", key, {"frames": {"format": "direct" if direct else "jpeg"}}, files)

    def checkpoint(
        self,
        key: str = "checkpoint",
        llm_sha256: str | None = None,
        frames: int | None = FRAMES_TAKEN,
        qformer_weights: Path | None = None,
        **fields: Any,
    ) -> None:
        self.model = replace(MODEL, **fields)
        model = build_model(self.model, self.llm, qformer_weights=qformer_weights)
        generator = torch.Generator().manual_seed(5)
        self.weights = {
            name: tensor + 0.5 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in model.trained_state().items()
        }
        config = {
            "model": self.model.to_json(),
            "training": {"frames": frames, "frame_choice": "segments"},
            "llm_sha256": llm_sha256 or Digests().folder(self.llm),
            "text_tokenizer_sha256": None,
            "qformer_weights_sha256": qformer_weights and Digests().file(qformer_weights),
        }
        record = {"record": {"inputs": {"features": self.keys["features"]}}}
        weights = safetensors.torch.save(self.weights)
        self.publish("checkpoint", key, record, {"config.json": config, "model.safetensors": weights})

    def trained(self) -> MultimodalModel:
        model = build_model(self.model, self.llm)
        model.load_trained(self.weights)
        return model

    def request(self, to: Path, **more: Any) -> str:
        """As JSON."""
        config = {"llm": self.llm, "device": "cpu", "max_new_tokens": 6}
        request = {"store": self.store, **self.keys, "video": PATH, "question": QUESTION, "config": config, "to": to}
        return json.dumps(request | more, default=str)


def picture(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
