"""Parts of the work, side by side, killed or run twice: the artifact has the bytes of one undivided run."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from stages.contract import Part, Request, open_draft
from stages.embed_imagebind.model import ARCHITECTURES
from stages.embed_imagebind.weights import random_weights
from storage import Store
from storage.digests import sha256_of
from storage.features import open_features
from storage.videos import VideoFeatures
from tests.embed_imagebind.conftest import picture
from tests.embed_imagebind.films import film, frames_artifact, samples_artifact
from tests.embed_imagebind.test_crash import CONFIG
from tests.warm import StageProcess, preload

preload("tests.embed_imagebind.loaded")

VIDEOS = ["long.mkv", "short.mkv", "silent.mkv"]
NAMES = [*VIDEOS, *(f"{number}.png" for number in range(6))]
BEFORE = ["0.png", "silent.mkv"]  # embedded for other samples


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("media")
    film(root / "long.mkv", 100, seed=1, sound=5.0)
    film(root / "short.mkv", 9, seed=2, sound=0.7)
    film(root / "silent.mkv", 12, seed=3)
    for number in range(6):
        (root / f"{number}.png").write_bytes(picture(number))
    save_file(random_weights(ARCHITECTURES["tiny"], 0), root / "weights.safetensors")  # drawn once, not in each run
    return root


class Embedding:
    """A store with samples and direct frames of the media, some of which the bank has; runs and parts of the stage."""

    def __init__(self, store: Path, media: Path, names: list[str] = NAMES):
        store.mkdir(parents=True)
        self.store, self.media, self.weights = store, media, media / "weights.safetensors"
        samples = samples_artifact(store, media, BEFORE, key="cd" * 32)
        frames = frames_artifact(store, media, BEFORE[1:], "direct", key="f1" * 32)
        self.inputs = {"samples": samples.key, "frames": frames.key}
        assert self.start().outcome().code == 0
        samples = samples_artifact(store, media, names)
        frames = frames_artifact(store, media, VIDEOS, "direct")
        self.inputs = {"samples": samples.key, "frames": frames.key}

    def start(self, part: tuple[int, int] | None = None, config: dict | None = None, **more) -> StageProcess:
        folders = {"images": str(self.media), "videos": str(self.media)}
        config = CONFIG | folders | {"weights": str(self.weights)} | (config or {})
        request = {"stage": "embed_imagebind", "config": config, "store": str(self.store), "inputs": self.inputs} | more
        return StageProcess(request | ({"part": {"number": part[0], "of": part[1]}} if part else {}), self.store)

    def run(self, *args, **more):
        return self.start(*args, **more).outcome()


@pytest.fixture(scope="module")
def undivided(media, tmp_path_factory):
    work = Embedding(tmp_path_factory.mktemp("whole") / "store", media)
    return work.run().artifact(work.store)


def same(found, undivided) -> None:
    """What is published, and in the bank, is what one run makes."""
    assert found.manifest["files"] == undivided.manifest["files"]
    assert {n: found.manifest[n] for n in ("counts", "reused", "items")} == {
        n: undivided.manifest[n] for n in ("counts", "reused", "items")
    }
    banks = open_features(found), open_features(undivided)
    for modality in ("vision", "text"):
        digests = [r["digest"] for r in found.read_table("items.parquet").to_pylist() if r["modality"] == modality]
        np.testing.assert_array_equal(*(bank.gather(modality, digests) for bank in banks))
    for modality in ("frames", "audio"):
        ours, theirs = VideoFeatures(found, modality), VideoFeatures(undivided, modality)
        for video, line in ours.timelines.items():
            np.testing.assert_array_equal(*(f.gather(video, np.arange(len(line))) for f in (ours, theirs)))


@pytest.mark.parametrize("parts", [3, 12])  # of ten items
def test_parts_in_any_order_leave_nothing_to_read(media, undivided, tmp_path, parts):
    root = tmp_path / "media"
    shutil.copytree(media, root)
    work = Embedding(tmp_path / "store", root)
    outcomes = [work.run((number, parts)) for number in reversed(range(parts))]
    done = [outcome.of("part_done")[0]["counts"]["done"] for outcome in outcomes]
    assert sum(done) == undivided.manifest["counts"]["done"] == 5 + 2 + 2 and not any(o.of("done") for o in outcomes)
    for name in NAMES:
        (root / name).write_bytes(b"nobody reads it")
    last = work.run()
    assert not last.of("metric")
    same(last.artifact(work.store), undivided)
    timed = {row["id"] for row in last.artifact(work.store).ledger().to_pylist() if row["seconds"] is not None}
    assert len(timed) == sum(done)


def test_a_part_killed_and_one_run_twice_at_once(media, undivided, tmp_path):
    work = Embedding(tmp_path / "store", media)
    long = next(n for n in range(2) if Part(number=n, of=2).has(sha256_of(media / "long.mkv")))
    killed, *twins = [work.start((number, 2)) for number in (long, 1 - long, 1 - long)]
    while killed.process.is_alive() and not any("clips" in e["unit"] for e in killed.events() if "unit" in e):
        time.sleep(0.005)  # until it embeds
    killed.kill()
    assert [twin.outcome().code for twin in twins] == [0, 0]
    assert work.run((long, 3)).code == 0  # another number of parts
    same(work.run().artifact(work.store), undivided)


def test_broken_items_of_parts_are_what_an_undivided_run_has(media, tmp_path):
    """A part does not fail for the share; what it refuses is in the last ledger."""
    counts, codes = [], []
    for name, parts in (("whole", 0), ("parts", 3)):
        root = tmp_path / name / "media"
        shutil.copytree(media, root)
        work = Embedding(tmp_path / name / "store", root)
        (root / "5.png").write_bytes(b"no picture")
        (root / "short.mkv").unlink()
        lenient = {"max_failed_share": 0.5}
        codes += [work.run((number, parts), lenient).code for number in range(parts)]
        artifact = work.run(config=lenient).artifact(work.store)
        counts.append((artifact.manifest["counts"], artifact.manifest["files"], artifact.manifest["reused"]))
    assert counts[0] == counts[1] and counts[0][0]["failed"] == 2 and codes == [0, 0, 0]


def test_forced_parts_embed_everything_of_theirs_again(media, tmp_path):
    work = Embedding(tmp_path / "store", media, ["1.png", "2.png", "silent.mkv"])
    first = work.run().artifact(work.store)
    request = Request(stage="embed_imagebind", config={}, inputs=work.inputs, store=str(work.store), force=True)
    open_draft(request, Store(work.store), "features", first.key)
    parts = [work.run((number, 2), force=True) for number in range(2)]
    assert sum(outcome.of("metric")[0]["value"] for outcome in parts if outcome.of("metric")) == 2 + 12 + 1
    again = work.run()
    assert not again.of("metric") and again.artifact(work.store).manifest["files"] == first.manifest["files"]
    assert again.artifact(work.store).manifest["counts"]["reused"] == 0
