"""A small job of embed_imagebind: images of coloured blocks, questions, a samples artifact, a store."""

import hashlib
import io
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from stages.contract import main
from stages.embed_imagebind.config import EmbedConfig
from stages.embed_imagebind.model import ARCHITECTURES
from stages.embed_imagebind.run import run
from stages.embed_imagebind.weights import expected_shapes
from storage import Artifact, Draft, Ledger, Store
from storage.tables import SAMPLES
from tests.stage_command import Outcome, run_stage


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
    expected_shapes(
        ARCHITECTURES["tiny"]
    )  # torch loads much when first asked for a meta device: once, not in each fork


def picture(seed: int, size: tuple[int, int] = (90, 70)) -> bytes:
    """A PNG of random coloured blocks."""
    blocks = np.random.RandomState(seed).randint(0, 256, (4, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


@dataclass
class Work:
    """Files below `root`, a store, and the stage's command on them."""

    root: Path
    store: Path
    settings: dict[str, Any] = field(default_factory=dict)

    def samples(self, files: dict[str, bytes | None], questions: list[str], key: str = "ab" * 32) -> Artifact:
        """Publish a samples table: every image with every question. A file of None was missing at ingest."""
        rows = []
        for name, data in files.items():
            if data is not None:
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                (self.root / name).write_bytes(data)
            for turn, question in enumerate(questions):
                rows.append(
                    {
                        "sample": f"train/{name}/{turn}",
                        "split": "train",
                        "task": "dialogue",
                        "dialogue": f"train/{name}",
                        "media": data and hashlib.sha256(data).hexdigest(),
                        "media_kind": "image",
                        "media_path": name,
                        "turn": turn % 10,
                        "caption": "a picture",
                        "history": [],
                        "question": question,
                    }
                )
        draft = Draft(Store(self.store), "samples", key)
        draft.write_table("samples.parquet", pa.Table.from_pylist(rows, schema=SAMPLES))
        return draft.publish(Ledger(), {})

    def run(
        self,
        samples: Artifact,
        request: dict[str, Any] | None = None,
        real: bool = False,
        frames: Artifact | None = None,
        **settings: Any,
    ) -> Outcome:
        """The stage's command, as it is called (`real`) or forked from here, where torch is loaded."""
        config = {
            "architecture": "tiny",
            "images": str(self.root),
            "device": "cpu",
            "vision_batch": 2,
            "text_batch": 4,
            **self.settings,
            **settings,
        }
        inputs = {"samples": samples.key} | ({"frames": frames.key} if frames else {})
        if real:
            return run_stage("embed_imagebind", config, self.store, inputs, **(request or {}))
        return _forked(
            {
                "stage": "embed_imagebind",
                "config": config,
                "inputs": inputs,
                "store": str(self.store),
                **(request or {}),
            }
        )


def _forked(request: dict[str, Any]) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / name for name in ("request", "out", "err")}
        paths["request"].write_text(json.dumps(request))
        child = os.fork()
        if child == 0:
            for name, number in (("out", 1), ("err", 2)):
                os.dup2(os.open(paths[name], os.O_CREAT | os.O_WRONLY), number)
            try:
                main(EmbedConfig, run, ["run", str(paths["request"])])
            except SystemExit as exit:
                os._exit(exit.code or 0)
            os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return Outcome(
            code,
            [json.loads(line) for line in paths["out"].read_text().splitlines()],
            paths["err"].read_text(),
        )


@pytest.fixture
def work(tmp_path: Path) -> Work:
    (tmp_path / "images").mkdir()
    return Work(tmp_path / "images", tmp_path / "store")
