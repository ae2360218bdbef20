"""The stage by its real command: samples in, bank and artifact out; what it does when something is wrong."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.torch import save_file

from stages.embed_imagebind.embed import Embedder
from stages.embed_imagebind.model import ARCHITECTURES
from stages.embed_imagebind.weights import random_weights
from storage import Draft, Store
from storage.features import FeatureBank, open_features, text_digest
from tests.embed_imagebind.conftest import Work, picture

QUESTIONS = [
    "is it red ?",
    "how many blocks are there in the picture ?",
    "is it day ?",
    "what is it ?",
    "what colour is the block in the upper left corner ?",
]
FILES = {
    "train/a.png": picture(1),
    "train/b.png": picture(2, (70, 90)),
    "c.png": picture(3, (224, 224)),
    "same_as_a.png": picture(1),
}


def digest(name: str) -> str:
    return hashlib.sha256(FILES[name]).hexdigest()


def test_embeds_each_content_once(work: Work):
    samples = work.samples(FILES | {"lost.png": None}, QUESTIONS)
    artifact = work.run(samples, real=True, shard_rows=2).artifact(work.store)
    assert artifact.manifest["counts"] == {"done": 8, "reused": 0, "failed": 0, "skipped": 1}
    assert artifact.manifest["items"] == {"vision": 3, "text": 5}
    items = artifact.read_table("items.parquet").to_pylist()
    assert items == sorted(items, key=lambda row: (row["modality"], row["digest"])) and len(items) == 8

    bank = open_features(artifact)
    assert bank.encoder.startswith("imagebind-tiny-") and bank.about() == artifact.manifest["encoder"]
    assert len(Store(work.store).list(f"{bank.folder}/index")) == 2 + 3
    tensors = random_weights(ARCHITECTURES["tiny"], 0)
    with Embedder("malmm", "tiny", tensors, vision_batch=2, text_batch=4) as embedder:
        images, texts = embedder.vision(list(FILES.values())), embedder.text(QUESTIONS)
    # One thread here, several there: the last bit of float16 may differ.
    np.testing.assert_allclose(bank.gather("vision", list(map(digest, FILES))), images, atol=1e-4)
    np.testing.assert_allclose(bank.gather("text", list(map(text_digest, QUESTIONS))), texts, atol=4e-3)


def test_second_run_executes_nothing_and_new_items_are_added(work: Work):
    first = work.run(work.samples(FILES, QUESTIONS)).artifact(work.store)
    again = work.run(work.samples(FILES, QUESTIONS))
    assert again.of("done")[0]["reused"] and again.artifact(work.store).key == first.key

    more = work.samples(FILES | {"new.png": picture(9)}, [*QUESTIONS, "is it night ?"], key="cd" * 32)
    artifact = work.run(more).artifact(work.store)
    assert artifact.manifest["counts"] == {"done": 2, "reused": 8, "failed": 0, "skipped": 0}
    assert artifact.manifest["encoder"] == first.manifest["encoder"]


def test_broken_image_fails_alone(work: Work):
    broken = {"cut.png": picture(4)[:200], "text.jpg": b"not an image"}
    samples = work.samples(FILES | broken, QUESTIONS)
    outcome = work.run(samples)
    assert outcome.code == 65 and "max_failed_share" in outcome.message
    failed = outcome.of("item_failed")
    ids = {f"vision/{hashlib.sha256(data).hexdigest()}" for data in broken.values()}
    assert {event["id"] for event in failed} == ids
    assert all(name in " ".join(event["message"] for event in failed) for name in broken)

    assert work.run(samples).code == 65
    (key,) = os.listdir(work.store / "artifacts" / "features")
    kept = Draft(Store(work.store), "features", key).partial.read_table("ledger.parquet").to_pylist()
    assert [row["attempts"] for row in kept if row["id"] in ids] == [2, 2]

    allowed = work.run(samples, max_failed_share=0.3)  # another key, but what the failed runs embedded is in the bank
    artifact = allowed.artifact(work.store)
    assert artifact.manifest["counts"] == {"done": 0, "reused": 8, "failed": 2, "skipped": 0}
    assert allowed.of("metric")[0]["value"] == 0 and len(artifact.read_table("items.parquet")) == 8


def test_image_changed_or_gone_since_ingest_fails(work: Work):
    samples = work.samples(FILES, QUESTIONS)
    (work.root / "c.png").write_bytes(picture(8))
    (work.root / "train/b.png").unlink()
    outcome = work.run(samples)
    assert outcome.code == 65
    messages = " ".join(event["message"] for event in outcome.of("item_failed"))
    assert "c.png: has changed since ingest: run ingest again" in messages and "b.png: cannot be read" in messages


def test_path_out_of_the_root_is_not_read(work: Work, tmp_path: Path):
    (tmp_path / "secret.png").write_bytes(picture(5))
    outcome = work.run(work.samples({"../secret.png": picture(5)}, ["what ?"]))
    assert outcome.code == 65 and "leaves the folder" in outcome.message


def test_force_embeds_again(work: Work):
    samples = work.samples(FILES, QUESTIONS)
    first = work.run(samples).artifact(work.store)
    forced = work.run(samples, request={"force": True})
    assert forced.artifact(work.store).key == first.key and forced.of("metric")[0]["value"] == 8


def test_only_by_path_question_or_id(work: Work):
    samples = work.samples(FILES, QUESTIONS)
    artifact = work.run(samples, request={"only": ["c.png", QUESTIONS[2], f"text/{text_digest(QUESTIONS[0])}"]})
    assert artifact.artifact(work.store).manifest["items"] == {"vision": 1, "text": 2}
    outcome = work.run(samples, request={"only": ["d.png"]})
    assert outcome.code == 65 and "d.png" in outcome.message


def test_plan_of_a_killed_run_is_kept(work: Work):
    """Whatever the bank has got meanwhile, the shards of a run taken up again are those it planned."""
    samples = work.samples(FILES, QUESTIONS)
    reference = work.run(samples, shard_rows=2).artifact(work.store)
    killed = Work(work.root, work.store.parent / "other")
    killed.samples(FILES, QUESTIONS)
    draft = Draft(Store(killed.store), "features", reference.key)
    bank, done = (
        FeatureBank(Store(killed.store), reference.manifest["encoder"]["bank"]),
        open_features(reference),
    )
    planned = _shards(done)
    draft.partial.write_table(
        "plan.parquet",
        pa.Table.from_pylist([{"modality": m, "digest": d, "shard": s} for m, s, digests in planned for d in digests]),
    )
    modality, _, digests = planned[3]
    bank.append(modality, digests, done.gather(modality, digests))
    artifact = killed.run(samples, shard_rows=2).artifact(killed.store)
    assert artifact.manifest["counts"]["done"] == 8
    made = open_features(artifact)
    assert sorted((m, d) for m, _, d in _shards(made)) == sorted((m, d) for m, _, d in planned)
    for modality, _, digests in planned:
        np.testing.assert_array_equal(made.gather(modality, digests), done.gather(modality, digests))


def _shards(bank: FeatureBank) -> list[tuple[str, int, list[str]]]:
    """(modality, number, digests) of every shard, in the order they were published."""
    index = f"{bank.folder}/index"
    parts = [bank.store.read_table(f"{index}/{name}") for name in bank.store.list(index)]
    return [
        (part["modality"][0].as_py(), number, [d.hex() for d in part["digest"].to_pylist()])
        for number, part in enumerate(parts)
    ]


def test_weights_file_is_read_and_named_by_its_bytes(work: Work, tmp_path: Path):
    samples = work.samples(FILES, QUESTIONS)
    random = work.run(samples, dtype="float32").artifact(work.store)
    path = tmp_path / "w.safetensors"
    save_file(random_weights(ARCHITECTURES["tiny"], 0), path)
    artifact = work.run(samples, dtype="float32", weights=str(path)).artifact(work.store)
    assert artifact.manifest["encoder"]["random_weights"] is False
    assert artifact.manifest["encoder"]["bank"] != random.manifest["encoder"]["bank"]
    np.testing.assert_array_equal(
        open_features(artifact).gather("vision", [digest("c.png")]),
        open_features(random).gather("vision", [digest("c.png")]),
    )


@pytest.mark.parametrize(
    "settings, told",
    [({"architecture": "huge"}, "weights"), ({"precision": "fp8"}, "precision"), ({"shards": 3}, "shards")],
)
def test_wrong_config_is_78(work: Work, settings: dict, told: str):
    outcome = work.run(work.samples(FILES, QUESTIONS), **settings)
    assert outcome.code == 78 and told in outcome.message
