"""Killed at random moments and run again: the bytes are those of an undisturbed run, no item lost or twice."""

import hashlib
import os
import random
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from storage import Draft, Ledger, Store
from storage.features import FeatureBank, open_features
from storage.tables import SAMPLES
from storage.videos import VideoFeatures
from tests.embed_imagebind.films import film, frames_artifact, samples_artifact
from tests.warm import StageProcess, preload

preload("tests.embed_imagebind.loaded")

KILLS, IMAGES = 20, 48
CONFIG = {"architecture": "tiny", "shard_rows": 4, "vision_batch": 4, "text_batch": 4, "device": "cpu", "workers": 1}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for number in range(IMAGES):
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / f"{number:02d}.png")
    return root


def samples(store: Path, images: Path, numbers: range) -> str:
    """Publish a samples artifact of some images, two questions each; returns its key."""
    rows = []
    for number in numbers:
        name = f"{number:02d}.png"
        media = hashlib.sha256((images / name).read_bytes()).hexdigest()
        rows += [
            dict(
                sample=f"val/{number}/{turn}",
                split="val",
                task="dialogue",
                dialogue=f"val/{number}",
                media=media,
                media_kind="image",
                media_path=name,
                turn=turn,
                caption="noise",
                history=[],
                question=f"is it number {number} {word}",
                answer="yes",
            )
            for turn, word in enumerate(("really", "or something else entirely"))
        ]
    key = hashlib.sha256(str(numbers).encode()).hexdigest()
    draft = Draft(Store(store), "samples", key)
    draft.write_table("samples.parquet", pa.Table.from_pylist(rows, schema=SAMPLES))
    draft.publish(Ledger(), {"stage": "ingest", "label": "", "record": {}})
    return key


def start(store: Path, media: Path, key: str, frames: str | None = None) -> StageProcess:
    inputs = {"samples": key} | ({"frames": frames} if frames else {})
    config = CONFIG | {"images": str(media), "videos": str(media)}
    return StageProcess({"stage": "embed_imagebind", "config": config, "store": str(store), "inputs": inputs}, store)


def shard_bytes(store: Path, bank: FeatureBank) -> list[str]:
    """SHA-256 of the rows of every published shard, sorted: the ids differ from run to run, the bytes must not."""
    shards = [name.removesuffix(".parquet") for name in bank.store.list(f"{bank.folder}/index")]
    return sorted(
        hashlib.sha256((store / bank.folder / f"shards/{s}.zarr/c/0/0").read_bytes()).hexdigest() for s in shards
    )


@pytest.mark.slow
def test_killed_at_random_moments(images, tmp_path):
    whole, store = tmp_path / "whole", tmp_path / "killed"
    key = samples(whole, images, range(IMAGES))
    samples(store, images, range(IMAGES))
    undisturbed = start(whole, images, key).outcome().artifact(whole)

    choose, killed_at_work = random.Random(7), 0
    for attempt in range(KILLS):
        stage = start(store, images, key)
        while attempt % 4 and stage.process.is_alive() and not any(e["event"] == "progress" for e in stage.events()):
            time.sleep(0.005)  # most kills while it embeds, some while it starts
        time.sleep(choose.uniform(0, 0.2 if attempt % 4 else 0.5))
        killed_at_work += stage.process.is_alive()
        stage.kill()
    final = start(store, images, key).outcome().artifact(store)

    assert final.key == undisturbed.key and killed_at_work >= KILLS // 2
    assert final.read_bytes("items.parquet") == undisturbed.read_bytes("items.parquet")
    assert final.ledger()["id"].to_pylist() == undisturbed.ledger()["id"].to_pylist()
    ours, theirs = open_features(final), open_features(undisturbed)
    items = final.read_table("items.parquet").to_pylist()
    for modality in ("vision", "text"):
        digests = [item["digest"] for item in items if item["modality"] == modality]
        assert np.array_equal(ours.gather(modality, digests), theirs.gather(modality, digests))
    assert shard_bytes(store, ours) == shard_bytes(whole, theirs)
    index = [ours.store.read_table(f"{ours.folder}/index/{n}") for n in ours.store.list(f"{ours.folder}/index")]
    assert sum(map(len, index)) == len(items) == 3 * IMAGES, "an item lost or embedded twice"


def test_two_processes_on_one_bank_lose_nothing(images, tmp_path):
    store = tmp_path / "store"
    keys = [samples(store, images, numbers) for numbers in (range(30), range(18, IMAGES))]
    processes = [start(store, images, key) for key in keys]
    assert [process.outcome().code for process in processes] == [0, 0]
    bank = FeatureBank(Store(store), os.listdir(store / "features")[0])
    media = [hashlib.sha256((images / f"{n:02d}.png").read_bytes()).hexdigest() for n in range(IMAGES)]
    assert np.isfinite(bank.gather("vision", media)).all() and bank.count("text") == 2 * IMAGES


@pytest.mark.parametrize("format", ["png", "direct"])
def test_killed_in_the_middle_of_a_video(format, tmp_path):
    """Each kill comes after another segment of it was published; what is there then is not made again."""
    media, names = tmp_path / "media", ["long.mkv", "short.mkv"]
    film(media / names[0], 140, seed=1, sound=5.0)
    film(media / names[1], 9, seed=2)
    whole, store, runs = tmp_path / "whole", tmp_path / "killed", []
    for place in (whole, store):
        samples = samples_artifact(place, media, names).key
        runs.append((samples, frames_artifact(place, media, names, format).key))
    undisturbed = start(whole, media, *runs[0]).outcome().artifact(whole)

    def published() -> int:
        return len(list(store.glob("features/*/index/*.parquet")))

    for number in (1, 2):
        stage = start(store, media, *runs[1])
        while stage.process.is_alive() and published() < number:
            time.sleep(0.002)
        stage.kill()
    final = start(store, media, *runs[1]).outcome()
    made, final = final.of("metric")[0]["value"], final.artifact(store)

    assert 0 < made <= 149 + 3 + 1 - 2 * 9, "nothing was killed in its middle, or nothing was taken up"
    for name in ("items.parquet", "timelines.parquet"):
        assert final.read_bytes(name) == undisturbed.read_bytes(name)
    assert shard_bytes(store, open_features(final)) == shard_bytes(whole, open_features(undisturbed))
    for modality in ("frames", "audio"):
        ours, theirs = VideoFeatures(final, modality), VideoFeatures(undisturbed, modality)
        assert ours.timelines.keys() == theirs.timelines.keys()
        for video, line in ours.timelines.items():
            steps = np.arange(len(line))
            assert np.array_equal(ours.gather(video, steps), theirs.gather(video, steps))
