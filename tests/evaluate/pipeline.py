"""Tiny real inputs for evaluate: samples, embeddings and a checkpoint, published as by the stages before."""

import hashlib
import json
import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch

from malmm.model import ModelConfig, build_model
from malmm.prompt import Template
from malmm.qformer import QFormerConfig
from stages.contract import main
from stages.evaluate import predict
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.run import run
from storage import Draft, Ledger, Store
from storage.digests import Digests
from storage.features import FeatureBank, text_digest
from storage.tables import SAMPLES, TIMELINES
from storage.videos import SEGMENT, segment_digest
from tests.stage_command import Outcome

BANK = "tiny-0123456789abcdef"
CANDIDATES = ["yes", "no", "red", "a blue one", "maybe", "two"]
MODEL = ModelConfig(
    qformer=QFormerConfig(hidden=16, layers=2, heads=2, intermediate=32, encoder_width=12, query_tokens=4),
    vision_dim=8, text_dim=6, quantization="none",
)  # fmt: skip

VIDEO_MODEL = replace(MODEL, memory_bank_length=3, max_frames=8, template=Template("{visual}{question}"))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def rows(dialogues: int = 4, turns: int = 3) -> list[dict[str, Any]]:
    found = []
    for split in ("train", "val"):
        for d in range(dialogues):
            past: list[dict[str, str]] = []
            for turn in range(turns):
                question, answer = (
                    f"is thing {turn} red?",
                    CANDIDATES[(d + turn) % 4 if split == "val" else turn % 2],
                )
                relevance = [1.0 if c == answer else 0.0 for c in CANDIDATES] if turn == 1 else None
                found.append({
                    "sample": f"{split}/{d}/{turn}", "split": split, "task": "dialogue",
                    "dialogue": f"{split}/{d}",
                    "media": digest(f"{split} image {d}"), "media_kind": "image", "media_path": f"{d}.jpg",
                    "start": None, "end": None, "turn": turn,
                    "caption": "a red thing", "history": list(past), "question": question, "answer": answer,
                    "candidates": CANDIDATES if split == "val" else None,
                    "gt_index": CANDIDATES.index(answer) if split == "val" else None,
                    "relevance": relevance if split == "val" else None,
                })  # fmt: skip
                past.append({"question": question, "answer": answer})
    return found


class Inputs:
    """Publishes artifacts into `store`; `keys` are the inputs of a request."""

    def __init__(self, store: Path, llm: Path):
        self.store, self.llm = store, llm
        self.keys: dict[str, str] = {}
        self.samples(rows())
        self.features()
        self.checkpoint()

    def publish(self, kind: str, key: str, about: dict[str, Any], **files: bytes | pa.Table | dict) -> None:
        draft = Draft(Store(self.store), kind, digest(key))
        for name, content in files.items():
            stem, suffix = name.rsplit("_", 1)
            write = {
                "parquet": draft.write_table,
                "json": draft.write_json,
                "safetensors": draft.write_bytes,
            }[suffix]
            write(f"{stem}.{suffix}", content)
        draft.publish(Ledger(), about)
        self.keys[kind] = digest(key)

    def samples(self, rows: list[dict[str, Any]], key: str = "samples", **files: Any) -> None:
        self.rows = rows
        self.publish("samples", key, {}, samples_parquet=pa.Table.from_pylist(rows, schema=SAMPLES), **files)

    def features(self, bank: str = BANK, key: str = "features") -> None:
        rng = np.random.default_rng(0)
        writer = FeatureBank(Store(self.store), bank)
        media = sorted({row["media"] for row in self.rows if row["media"]})
        texts = sorted({text_digest(row["question"]) for row in self.rows})
        writer.append("vision", media, rng.standard_normal((len(media), 8)).astype(np.float16))
        writer.append("text", texts, rng.standard_normal((len(texts), 6)).astype(np.float16))
        self.publish("features", key, {"encoder": {"bank": bank, "random_weights": True}})

    def videos(self, without: tuple[str, ...] = (), key: str = "features") -> None:
        """Features of the samples' videos, 70 or more frames of one token each; `without`: those that are not there."""
        rng, timelines = np.random.default_rng(0), []
        writer = FeatureBank(Store(self.store), BANK)
        for number, media in enumerate(sorted({row["media"] for row in self.rows if row["media"]} - set(without))):
            n = 70 + number
            digests = [segment_digest("frames", "tiny", media, i) for i in range(2)]
            writer.append("frames", digests, rng.standard_normal((n, 8)).astype(np.float16), [SEGMENT, n - SEGMENT])
            times = np.arange(n + 1) / 10
            timelines.append({"video": media, "modality": "frames", "start": times[:-1], "end": times[1:]})
        texts = sorted({text_digest(row["question"]) for row in self.rows})
        writer.append("text", texts, rng.standard_normal((len(texts), 6)).astype(np.float16))
        encoder = {
            "bank": BANK,
            "random_weights": False,
            "recipes": {"frames": "tiny"},
            "tokens": {"frames": 1},
            "fps": 10,
        }
        table = pa.Table.from_pylist(timelines, schema=TIMELINES)
        self.publish("features", key, {"encoder": encoder}, timelines_parquet=table)

    def checkpoint(
        self,
        key: str = "checkpoint",
        llm_digest: str | None = None,
        model: ModelConfig = MODEL,
        frames: int | None = None,
        zero_shot: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(5)
        state = {
            name: tensor if zero_shot else tensor + 0.5 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in build_model(model, self.llm).trained_state().items()
        }
        config = {
            "model": model.to_json(),
            "training": {"frames": frames, "max_steps": 0 if zero_shot else 10},
            "llm_sha256": llm_digest or Digests().folder(self.llm),
            "text_tokenizer_sha256": None,
            "qformer_weights_sha256": None,
        }
        self.publish(
            "checkpoint",
            key,
            {"record": {"inputs": {"features": self.keys["features"]}}},
            config_json=config,
            model_safetensors=safetensors.torch.save(state),
        )

    def config(self, **fields: Any) -> dict[str, Any]:
        return {
            "llm": self.llm,
            "device": "cpu",
            "max_new_tokens": 6,
            "meteor": False,
            "batch": 5,
            "resamples": 200,
        } | fields

    def request(self, **more: Any) -> dict[str, Any]:
        request = {
            "stage": "evaluate",
            "config": self.config(),
            "inputs": self.keys,
            "store": self.store,
        } | more
        return json.loads(json.dumps(request, default=str))

    def evaluate(self, **more: Any) -> Outcome:
        """Run the stage in a fork of this process: the same program, spared ten seconds of imports."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            pid = start(self.request(**more), out.fileno(), err.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            out.seek(0)
            err.seek(0)
            return Outcome(code, [json.loads(line) for line in out], err.read().decode())

    def saved(self) -> int:
        """How many files of answers the draft has."""
        return len(list(self.store.glob("artifacts/report/*/partial/*-*.parquet")))

    def killed_at(self, files: int, **more: Any) -> None:
        """Run the stage, which saves every batch, to the SIGKILL that it gets as soon as so many files are saved."""

        def prepare() -> None:
            predict.SAVE_SECONDS = 0
            write = Store.write_table

            def write_and_look(store: Store, name: str, table: pa.Table) -> None:
                write(store, name, table)
                if self.saved() >= files:
                    os.kill(os.getpid(), signal.SIGKILL)

            Store.write_table = write_and_look

        with open(os.devnull, "wb") as null:
            pid = start(self.request(**more), null.fileno(), null.fileno(), prepare)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def start(request: dict[str, Any], out: int, err: int, prepare: Callable[[], None] = lambda: None) -> int:
    """Fork the stage's command and return the process id."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump(request, file)
    if pid := os.fork():
        return pid
    code = 70
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        prepare()
        main(EvaluateConfig, run, ["run", file.name])
    except SystemExit as end:
        code = end.code or 0
    finally:
        os.unlink(file.name)
        os._exit(code)
