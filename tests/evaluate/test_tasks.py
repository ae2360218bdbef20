"""Each task of videos from end to end, on a tiny model: its metrics, controls, predictions and report."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch

from demo.tiny_language_model import write_tiny_llm
from malmm.frames import evaluation_frames
from malmm.model import MultimodalModel, build_model
from stages.evaluate import run
from stages.evaluate.features import Features, permuted_segments
from stages.evaluate.items import merge_captions, segment_of
from stages.evaluate.scoring import Answers
from stages.evaluate.text_metrics import accuracy
from storage import Artifact, Store
from tests.evaluate.pipeline import VIDEO_MODEL, Inputs, digest

CLASSES = ["a blue one", "cereals", "red", "yes"]
FRAMES = 5


def row(task: str, split: str, video: int, number: int, answer: str | None, **more: Any) -> dict[str, Any]:
    return {
        "sample": f"{split}/{video}-{number}", "split": split, "task": task, "dialogue": f"{split}/{video}",
        "media": digest(f"{split} video {video}"), "media_kind": "video", "media_path": f"{video}.mp4", "turn": 0,
        "history": [], "question": "what is it?", "answer": answer, "start": None, "end": None, "caption": None,
    } | more  # fmt: skip


class Videos(Inputs):
    """Inputs of one task of videos."""

    def __init__(
        self, store: Path, llm: Path, rows: Sequence[dict[str, Any]], without: Sequence[str] = (), **files: Any
    ):
        self.store, self.llm, self.keys = store, llm, {}
        self.samples(list(rows), **files)
        self.videos(tuple(without))
        self.checkpoint(model=VIDEO_MODEL, frames=FRAMES)


@pytest.fixture(scope="module")
def tiny_llm(tmp_path_factory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("llm"))


def questions() -> list[dict[str, Any]]:
    return [
        row("question", split, video, number, ["red", "two"][number], category=["colour", "count"][number])
        for split in ("train", "val")
        for video in range(3)
        for number in range(2 if split == "val" else 1)
    ]


def test_open_questions(tmp_path, tiny_llm):
    inputs = Videos(tmp_path, tiny_llm, questions())
    outcome = inputs.evaluate(config=inputs.config(beams=2, min_new_tokens=1))
    report = outcome.artifact(tmp_path)
    metrics = report.read_json("metrics.json")
    assert set(metrics) == {"trained", "untrained", "permuted", "majority"}
    for name in ("accuracy", "accuracy_first_word", "accuracy/colour", "accuracy/count", "bleu_4", "cider"):
        assert name in metrics["trained"]
    assert "exact_match" not in metrics["trained"] and "mrr" not in metrics["trained"]
    # The training answers are all "red": right for the colours and wrong for the counts.
    majority = metrics["majority"]
    assert [majority[f"accuracy{part}"]["value"] for part in ("", "/colour", "/count")] == [0.5, 1, 0]
    assert majority["accuracy/colour"]["n"] == 3 and majority["accuracy"]["low"] == 0.5  # each video has one of each
    table = report.read_table("predictions.parquet").to_pylist()
    found = accuracy([r["references"] for r in table], [r["trained_answer"] for r in table])
    assert metrics["trained"]["accuracy"]["value"] == pytest.approx(found.mean())
    text = report.read_bytes("report.md").decode()
    head = text.split("# Evaluation")[1]
    assert head.lstrip().startswith("- Open questions. Accuracy:") and "MSVD-QA" in head
    for part in (
        "6 samples of 3 videos", "trained, videos permuted",
        "5 frames of each video, evenly spaced, rounded to the nearest, memory bank of 3",
        "2 beams, length penalty 1, 1 to 6 tokens", "bootstrap over videos", "## Accuracy by category", "| colour |",
    ):  # fmt: skip
        assert part in text
    assert "papers write them times 100" in text and "Bold: right, as accuracy has it." in text
    assert "ranked" not in text  # such questions have no candidates
    body = text.split("## Provenance")[0]
    assert "image" not in body and "dialogue" not in body and "turns.png" not in report.manifest["files"]
    assert not [event for event in outcome.of("metric") if "/" in event["name"]]


def classifications() -> list[dict[str, Any]]:
    return [
        row("classification", split, video, 0, CLASSES[(video + (split == "val")) % 4], start=1.0, end=4.0)
        for split in ("train", "val")
        for video in range(6)
    ]


def test_classification(tmp_path, tiny_llm):
    inputs = Videos(tmp_path, tiny_llm, classifications(), classes_json=CLASSES)
    report = inputs.evaluate(config=inputs.config(beams=5)).artifact(tmp_path)
    metrics = report.read_json("metrics.json")
    assert {"top_1", "top_5", "constrained_top_1", "ranked_top_1", "ranked_top_5", "top_1/red"} <= set(
        metrics["trained"]
    )
    assert not {"bleu_1", "exact_match", "mrr"} & set(metrics["trained"]) and "tokenizer" not in report.manifest
    table = report.read_table("predictions.parquet").to_pylist()
    assert all(r[f"{system}_constrained"] in CLASSES for r in table for system in ("trained", "untrained", "permuted"))
    # The scores are the model's own, of the frames between 1.0 and 4.0 s; and the metrics are of those scores.
    model = build_model(VIDEO_MODEL, tiny_llm)
    checkpoint = Artifact(Store(tmp_path), "checkpoint", inputs.keys["checkpoint"])
    model.load_trained(safetensors.torch.load(checkpoint.read_bytes("model.safetensors")))
    val = [r for r in inputs.rows if r["split"] == "val"]
    batch = Features(Artifact(Store(tmp_path), "features", inputs.keys["features"]), val, FRAMES).batch(val)
    assert batch.vision.shape == (6, FRAMES, 1, 8)
    scores = torch.stack(model.rank(batch, [CLASSES] * 6)).numpy()
    np.testing.assert_allclose([r["trained_candidates"] for r in table], scores, atol=1e-4)
    truth = [CLASSES.index(r["answer"]) for r in table]
    assert metrics["trained"]["ranked_top_1"]["value"] == pytest.approx((scores.argmax(1) == truth).mean())
    assert metrics["trained"]["ranked_top_5"]["value"] == 1  # of four classes
    assert [r["trained_constrained"] for r in table] == model.generate(batch, 5, allowed=CLASSES)
    # All five beams, the first of them the answer: the one that the model's own generation gives.
    assert [r["trained_beams"][0] for r in table] == [r["trained_answer"] for r in table]
    assert [r["trained_answer"] for r in table] == model.generate(batch, 5, 6, min_new_tokens=0)
    assert all(len(r["trained_beams"]) == 5 and len(set(r["trained_beams"])) > 1 for r in table)
    assert table[0]["majority_beams"] == CLASSES and metrics["majority"]["top_5"]["value"] == 1
    # Training: classes 0 1 2 3 0 1, so that 0 ("a blue one") is the commonest by the alphabet; val has 1 2 3 0 1 2.
    assert metrics["majority"]["top_1"]["value"] == pytest.approx(1 / 6)
    assert metrics["majority"]["ranked_top_1"]["value"] == pytest.approx((1 / 2 + 2 / 2) / 6 + 0)
    text = report.read_bytes("report.md").decode()
    assert "Classification: the answer is a class name" in text and "## Free top-1 by class" in text


def captions() -> list[dict[str, Any]]:
    said = ["a red one is blue", "it is a thing", "a man plays"]
    found = [row("caption", "val", video, number, said[number]) for video in range(4) for number in range(3)]
    found += [row("caption", "val", 0, 3, "a part", start=1.0, end=3.0)]
    return found + [row("caption", "train", 9, i, text) for i, text in enumerate(["a thing", "A thing.", "no"])]


def test_captions_of_one_segment_are_one_item_with_many_references(tmp_path, tiny_llm):
    inputs = Videos(tmp_path, tiny_llm, captions())
    report = inputs.evaluate().artifact(tmp_path)
    table = report.read_table("predictions.parquet").to_pylist()
    assert [r["sample"] for r in table] == ["val/0-0", "val/1-0", "val/2-0", "val/3-0", "val/0-3"]
    assert [len(r["references"]) for r in table] == [3, 3, 3, 3, 1]
    metrics = report.read_json("metrics.json")
    assert {"bleu_1", "rouge_l", "cider"} <= set(metrics["trained"]) and "exact_match" not in metrics["trained"]
    assert metrics["trained"]["cider"]["n"] == 5
    text = report.read_bytes("report.md").decode()
    assert "5 samples (13 references) of 4 videos" in text and "Captions, each scored against all" in text
    assert "Commonest training caption: `A thing.`" in text  # the first in the alphabet of two spellings
    assert report.manifest["counts"]["done"] == 15  # 5 items by 3 systems
    # Whichever caption of a segment is named, it is scored against all of them.
    one = inputs.evaluate(only=["val/1-2"]).artifact(tmp_path).read_table("predictions.parquet").to_pylist()
    assert [r["sample"] for r in one] == ["val/1-0"] and one[0]["references"] == table[1]["references"]


def test_captions_are_merged_by_media_start_and_end_in_order():
    rows = [r | {"references": (r["answer"],)} for r in captions() if r["split"] == "val"]
    merged = merge_captions([rows[12], *rows[:12]])
    assert [r["references"] for r in merged][:2] == [("a part",), tuple(r["answer"] for r in rows[:3])]
    assert rows[0]["references"] == ("a red one is blue",)  # what was given is as it was
    asked = [rows[0], rows[1] | {"question": "what is heard?"}]
    assert [r["references"] for r in merge_captions(asked)] == [r["references"] for r in asked]


def test_zero_shot_leaves_out_the_control_before_training(tmp_path, tiny_llm):
    inputs = Videos(tmp_path, tiny_llm, [r for r in questions() if r["split"] == "val"])
    inputs.checkpoint("zero", model=VIDEO_MODEL, frames=FRAMES, zero_shot=True)
    report = inputs.evaluate().artifact(tmp_path)
    assert set(report.read_json("metrics.json")) == {"trained", "permuted"}
    assert set(report.read_json("gains.json")) == {"permuted"}
    text = report.read_bytes("report.md").decode()
    assert "imagebind_fc has random weights" in text
    assert "zero-shot: the checkpoint was not trained" in text and "| metric | zero-shot | zero-shot, videos" in text
    assert "training changed no answer" not in text and "untrained" not in text
    assert {r["id"].split("/")[0] for r in report.ledger().to_pylist()} == {"trained", "permuted"}


def test_frames_are_evenly_spaced_and_permuted_ones_are_of_another_video(tmp_path, tiny_llm):
    inputs = Videos(tmp_path, tiny_llm, classifications(), classes_json=CLASSES)
    val = [r for r in inputs.rows if r["split"] == "val"]
    features = Features(Artifact(Store(tmp_path), "features", inputs.keys["features"]), val, FRAMES)
    videos = features._videos
    seen = features.batch(val[:1]).vision[0].numpy()
    assert (seen == videos.gather(val[0]["media"], evaluation_frames(10, 40, FRAMES))).all()
    down = Features(Artifact(Store(tmp_path), "features", inputs.keys["features"]), val, 8, "down").batch(val[:1])
    steps = np.array([10, 14, 18, 22, 27, 31, 35, 40])  # 30 / 7 apart
    assert (down.vision[0].numpy() == videos.gather(val[0]["media"], steps)).all()
    other = (val[1]["media"], None, None)
    n = len(videos.timelines[val[1]["media"]])
    seen = features.batch(val[:1], {segment_of(val[0]): other}).vision[0].numpy()
    assert (seen == videos.gather(val[1]["media"], evaluation_frames(0, n - 1, FRAMES))).all()


def test_the_majority_class_is_a_class_not_a_spelling(monkeypatch):
    answers = ["red"] * 3 + ["a-b"] * 2 + ["ab"] * 2  # as answers, the last two are one
    monkeypatch.setattr(run, "read_split", lambda *_: pa.table({"answer": answers}))
    job = SimpleNamespace(inputs={"samples": None})
    said = {"trained": Answers(["x"], [None], [["x", "y"]], ["x"])}
    for task, answer in (("classification", "red"), ("question", "a-b")):
        systems, majority = run._with_majority(job, [{"task": task, "candidates": None}], said, [])
        assert majority == answer and systems["majority"].texts == systems["majority"].constrained == [answer]
    assert systems["majority"].beams == [["red", "a-b"]]


def test_a_video_is_seen_once_for_all_that_is_asked_of_it(tmp_path, tiny_llm, monkeypatch):
    inputs = Videos(tmp_path, tiny_llm, classifications(), classes_json=CLASSES)
    passes, prefix = tmp_path / "passes", MultimodalModel.prefix

    def counted(self, batch):
        with passes.open("a") as file:  # the stage runs in a fork
            file.write("x" * len(batch))
        return prefix(self, batch)

    monkeypatch.setattr(MultimodalModel, "prefix", counted)
    report = inputs.evaluate(config=inputs.config(beams=2, ranking=2)).artifact(tmp_path)
    assert passes.read_text() == "x" * 18  # 6 samples by 3 systems: generated twice, and 2 of them ranked
    table = report.read_table("predictions.parquet").to_pylist()
    assert [r["trained_candidates"] is not None for r in table] == [True, False, False, False, False, True]


def test_permuted_segments_are_all_of_the_other_video_in_order():
    segments = [("a", 0.0, 9.0), ("b", 1.0, 2.0), ("a", 9.0, 12.0), ("a", 0.0, 9.0), ("a", 12.0, None), ("b", 5.0, 6.0)]
    a, b = [segments[i] for i in (0, 2, 4)], [segments[i] for i in (1, 5)]
    expected = dict(zip(a, [b[0], b[1], b[0]], strict=True)) | dict(zip(b, a[:2], strict=True))
    assert permuted_segments(segments, 0) == expected
    assert permuted_segments(a, 0) == {one: one for one in a}  # there is no other


def test_videos_that_failed_count_against_the_share(tmp_path, tiny_llm):
    rows = questions()
    rows[-1] |= {"start": 60.0, "end": 70.0}  # behind its end
    gone = digest("val video 0")
    inputs = Videos(tmp_path, tiny_llm, rows, without=[gone])
    refused = inputs.evaluate()
    assert refused.code == 65 and "3 of 6 samples cannot be shown" in refused.message
    assert "val/0-0: no frames of" in refused.message and "begins at 60 s" in refused.message
    assert inputs.evaluate(config=inputs.config(max_failed_share=0.4)).code == 65
    report = inputs.evaluate(config=inputs.config(max_failed_share=0.5)).artifact(tmp_path)
    assert report.manifest["samples"] == 3 and report.manifest["counts"]["skipped"] == 9
    said = {r["id"]: r["message"] for r in report.ledger().to_pylist() if r["status"] == "skipped"}
    assert "no frames of 0.mp4" in said["trained/val/0-1"] and "begins at 60 s" in said["permuted/val/2-1"]
    assert "3 of 6 samples cannot be shown" in " ".join(report.manifest["warnings"])
    # One more, that the model refuses, is one too many; the message says why, and counts all of them.
    rows[-3] |= {"turn": 99}
    inputs.samples(rows, "refused")
    refused = inputs.evaluate(config=inputs.config(max_failed_share=0.5))
    assert refused.code == 65 and "1 of 6 samples failed (" in refused.message
    assert "turn 99" in refused.message and "after 3 that cannot be shown" in refused.message
    assert inputs.evaluate(config=inputs.config(max_failed_share=0.67)).code == 0


def test_samples_and_checkpoint_must_be_of_one_kind(tmp_path, tiny_llm):
    inputs = Videos(tmp_path, tiny_llm, questions())
    assert "protocol" in inputs.evaluate(config=inputs.config(protocol="sead")).message
    inputs.checkpoint("images")
    refused = inputs.evaluate()
    assert refused.code == 78 and "are of videos, the checkpoint was trained on images" in refused.message
    file = tmp_path / "other.safetensors"
    file.write_bytes(b"weights")
    refused = inputs.evaluate(config=inputs.config(qformer_weights=file))
    assert refused.code == 78 and "evaluate.qformer_weights" in refused.message
    inputs.checkpoint("videos", model=VIDEO_MODEL, frames=FRAMES)
    inputs.samples([*questions(), row("caption", "val", 1, 9, "a thing")], "mixed")
    refused = inputs.evaluate()
    assert refused.code == 78 and "mixes samples of task caption and question" in refused.message
    inputs.samples(classifications(), "no classes")
    refused = inputs.evaluate()
    assert refused.code == 65 and "classes.json" in refused.message
    inputs.samples(classifications(), "other classes", classes_json=["red"])
    refused = inputs.evaluate()
    assert refused.code == 65 and "is not in classes.json" in refused.message
    inputs.samples(captions(), "captions")
    refused = inputs.evaluate(config=inputs.config(protocol="seed"))
    assert refused.code == 78 and "evaluate.protocol" in refused.message


@pytest.mark.slow
def test_a_killed_evaluation_of_videos_goes_on_where_it_was(tmp_path, tiny_llm):
    whole = Videos(tmp_path / "whole", tiny_llm, classifications(), classes_json=CLASSES)
    inputs = Videos(tmp_path / "killed", tiny_llm, classifications(), classes_json=CLASSES)
    config = inputs.config(batch=1, beams=2)
    expected = whole.evaluate(config=config).artifact(whole.store)
    for files in (3, 9):
        inputs.killed_at(files, config=config)
    found = inputs.evaluate(config=config).artifact(inputs.store)
    assert sum(row["seconds"] is None for row in found.ledger().to_pylist()) >= 9
    assert {n: f["sha256"] for n, f in found.manifest["files"].items()} == {
        n: f["sha256"] for n, f in expected.manifest["files"].items()
    }
