"""The CI smoke flow: tiny generated data, the whole DAG twice; the second time must execute nothing.

malmm smoke
"""

import json
import random
import struct
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow

from flows.config import load
from flows.demo import in_finetune_environment
from flows.pipeline import Override, pipeline
from flows.runners import ROOT
from storage import Artifact, Store

CONFIG = ROOT / "configs" / "smoke.yaml"
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 180, 30),
    "blue": (30, 30, 220),
    "white": (240, 240, 240),
    "yellow": (230, 220, 30),
    "black": (15, 15, 15),
}


class SmokeFailed(Exception):
    """The second run executed something, or its scores differ from the first's."""


@flow(name="smoke", flow_run_name="smoke in {store}", persist_result=False)
def smoke(store: str = "smoke-store", overrides: Sequence[Override] = ()) -> dict[str, Any]:
    """Run a tiny pipeline twice. Returns the seconds of both and the scores. Raises SmokeFailed.

    Args:
        store: the folder of its store, or a URL; then the inputs lie in the folder smoke-store
        overrides: values laid over configs/smoke.yaml, each as field=value: runner.kind=container
    """
    if "://" in store:
        overrides = [*generate(Path("smoke-store")), f"store={json.dumps(store)}", *overrides]
    else:
        overrides = [*generate(Path(store)), *overrides]
    settings = load(CONFIG, overrides)
    started = time.monotonic()
    first = pipeline(str(CONFIG), overrides)
    middle = time.monotonic()
    before = {kind: _manifest(settings.store, kind, key) for kind, key in first.items()}
    second = pipeline(str(CONFIG), overrides)
    seconds = {"first": round(middle - started, 1), "second": round(time.monotonic() - middle, 1)}
    if second != first:
        raise SmokeFailed(f"the second run has other keys: {first} and {second}")
    for kind, key in second.items():
        if _manifest(settings.store, kind, key) != before[kind]:
            raise SmokeFailed(f"the second run made {kind} {key} again")
    scores = Artifact(Store(settings.store), "report", second["report"]).read_json("metrics.json")["trained"]
    return {"seconds": seconds, "scores": {name: score["value"] for name, score in scores.items()}, "keys": second}


def generate(folder: Path) -> list[str]:
    """Make plain-coloured images, dialogues that name the colour, and a tiny language model; the overrides for them."""
    inputs = folder.absolute() / "inputs"
    (inputs / "images").mkdir(parents=True, exist_ok=True)
    llm = inputs / "llm"
    if not (llm / "model.safetensors").exists():
        in_finetune_environment("demo.tiny_language_model", llm)
    for split, pattern, names in (
        ("train", "COCO_train2014_{:012d}.png", list(COLOURS)),
        ("val", "VisualDialog_val2018_{:012d}.png", ["red", "blue"]),
    ):
        for number, name in enumerate(names):
            _write(inputs / "images" / pattern.format(number), _png(COLOURS[name]))
        _write(inputs / f"{split}.json", json.dumps(_dialogues(split, names)).encode())
    overrides = {
        "store": folder.absolute(),
        "images": inputs / "images",
        "llm": llm,
        "ingest.annotations.train": inputs / "train.json",
        "ingest.annotations.val": inputs / "val.json",
    }
    return [f"{field}={json.dumps(str(value))}" for field, value in overrides.items()]


def _dialogues(split: str, names: list[str]) -> dict[str, Any]:
    """VisDial v1.0's schema: ten turns an image, a hundred candidates a turn."""
    rng = random.Random(split)
    questions = [f"is it {colour}" for colour in COLOURS] + ["what color is it", "is it bright", "is it round", "why"]
    answers = [*COLOURS, "yes", "no", "it is not", "nobody knows", *(f"maybe {n}" for n in range(90))]
    dialogs = []
    for number, name in enumerate(names):
        said = ["yes" if colour == name else "no" for colour in COLOURS]
        said += [name, "yes" if name in ("white", "yellow") else "no", "it is not", "nobody knows"]
        turns = []
        for turn, answer in enumerate(said):
            options = rng.sample(range(len(answers)), len(answers))
            turns.append(
                {
                    "question": turn,
                    "answer": answers.index(answer),
                    "answer_options": options,
                    "gt_index": options.index(answers.index(answer)),
                }
            )
        dialogs.append({"image_id": number, "caption": "a plain picture", "dialog": turns})
    return {"version": "1.0", "split": split, "data": {"questions": questions, "answers": answers, "dialogs": dialogs}}


def _png(colour: tuple[int, int, int], side: int = 32) -> bytes:
    """A plain PNG, by hand: the orchestrator's environment needs no image library."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = (b"\0" + bytes(colour) * side) * side
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _write(path: Path, data: bytes) -> None:
    if not path.is_file() or path.read_bytes() != data:
        path.write_bytes(data)


def _manifest(store: str, kind: str, key: str) -> dict[str, Any]:
    return Artifact(Store(store), kind, key).manifest
