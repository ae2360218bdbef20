"""The stage on videos: what is seen of them, what is refused, and that a killed run sees the same frames."""

import random
import time

import numpy as np
import pytest
import safetensors.torch
import torch

from malmm.frames import evaluation_frames
from malmm.model import ModelConfig, build_model
from stages.finetune.config import FinetuneConfig
from stages.finetune.data import read_split
from stages.finetune.train import read_ahead
from storage import Artifact, Store
from storage.digests import Digests
from tests.finetune.conftest import COLOURS, Inputs, digest, video_rows


def data_of(inputs, **fields):
    samples, features = (Artifact(Store(inputs.store), kind, inputs.keys[kind]) for kind in ("samples", "features"))
    return read_split(samples, features, FinetuneConfig(**inputs.video_config(**fields)))


@pytest.fixture
def videos(inputs):
    inputs.videos(video_rows())
    return inputs


def test_a_model_of_videos_learns_and_rebuilds(videos):
    outcome = videos.run(**videos.video_config(max_steps=60, lr=0.01))
    checkpoint = outcome.artifact(videos.store)
    loss = checkpoint.read_table("curves.parquet")["loss"].to_pylist()
    assert np.mean(loss[-5:]) < 0.5 * np.mean(loss[:5]) and checkpoint.manifest["counts"]["done"] == 27
    record = checkpoint.read_json("config.json")
    assert (record["training"]["frames"], record["training"]["frame_choice"]) == (6, "segments")
    config = ModelConfig.from_json(record["model"])
    assert (config.memory_bank_length, config.vision_dim, config.text_dim) == (3, 8, 6)
    state = safetensors.torch.load(checkpoint.read_bytes("model.safetensors"))
    assert state["connector.image_pe.weight"].abs().max() > 0  # it is zero before training
    model = build_model(config, videos.llm)
    model.load_trained(state)
    with torch.no_grad():
        total, tokens = model.loss(data_of(videos).batch(np.arange(9), 0))
    assert total / tokens < 0.5 * loss[0]


def test_frames_follow_from_seed_epoch_and_sample(videos):
    data = data_of(videos)
    media, again = data.media, data_of(videos).media
    whole, half = 0, 2  # a sample of a whole video of 80 frames, and one of its 4.0 s to 7.9 s
    assert media.windows[[whole, half]].tolist() == [[0, 79], [40, 79]]
    for row, (first, last) in ((whole, (0, 79)), (half, (40, 79))):
        frames = media.frames(row, epoch=3)
        assert frames.tolist() == again.frames(row, epoch=3).tolist() and first <= frames[0] <= frames[-1] <= last
        bounds = np.linspace(first, last + 1, 7, dtype=int)
        assert (bounds[:-1] <= frames).all() and (frames < bounds[1:]).all()
    assert len({tuple(media.frames(whole, epoch)) for epoch in range(5)}) == 5
    assert media.frames(0, 0).tolist() != media.frames(1, 0).tolist()
    assert data_of(videos, seed=1).media.frames(0, 0).tolist() != media.frames(0, 0).tolist()
    even = data_of(videos, frame_choice="linspace").media
    assert even.frames(half, 1).tolist() == even.frames(half, 2).tolist() == evaluation_frames(40, 79, 6).tolist()

    batch = data.batch(np.array([half, whole]), epoch=3)
    assert batch.vision.shape == (2, 6, 1, 8) and batch.vision.dtype == torch.float16
    expected = media.features.gather(digest("video 0"), media.frames(half, 3))
    assert (batch.vision[0].numpy() == expected).all()


def test_reading_ahead_keeps_the_order_and_raises_in_its_turn():
    def read(number):
        time.sleep(0.001 * (number % 3))
        if number == 7:
            raise OSError("gone")
        return number

    found = read_ahead(read, ((i,) for i in range(9)))
    assert [next(found) for _ in range(7)] == list(range(7))
    with pytest.raises(OSError, match="gone"):
        next(found)
    assert list(read_ahead(read, [])) == []


@pytest.mark.slow
def test_a_killed_run_on_videos_repeats_what_was_lost(videos, tmp_path, tiny_llm):
    fields = videos.video_config(max_steps=30, checkpoint_every=1)
    undisturbed = Inputs(tmp_path / "whole", tiny_llm)
    undisturbed.videos(video_rows())
    assert undisturbed.keys == videos.keys
    expected = undisturbed.run(**fields).artifact(undisturbed.store)
    choose, resumed = random.Random(3), 0
    for _ in range(4):
        stage = videos.start(**fields)
        steps = choose.randint(1, 5)
        while stage.process.is_alive() and sum(e["event"] == "metric" for e in stage.events()) < steps:
            time.sleep(0.002)
        time.sleep(choose.uniform(0, 0.05))
        stage.kill()
        resumed += any("taken up at step" in event.get("message", "") for event in stage.events())
    found = videos.run(**fields).artifact(videos.store)
    assert resumed >= 2
    for name in ("model.safetensors", "state.safetensors", "config.json", "curves.parquet"):
        assert found.read_bytes(name) == expected.read_bytes(name), name


def test_zero_shot_publishes_the_model_as_it_is(videos):
    rows = [row | {"split": "test"} for row in video_rows()]  # nothing to train on
    videos.samples(rows)
    checkpoint = videos.run(**videos.video_config(max_steps=0)).artifact(videos.store)
    assert checkpoint.manifest["steps"] == 0 and not checkpoint.exists("curves.parquet")
    config = ModelConfig.from_json(checkpoint.read_json("config.json")["model"])
    assert (config.vision_dim, config.text_dim) == (8, 6)
    state = safetensors.torch.load(checkpoint.read_bytes("model.safetensors"))
    model = build_model(config, videos.llm)
    assert state.keys() == model.trained_state().keys()
    assert all((state[name] == value).all() for name, value in model.trained_state().items())


def test_a_pretrained_qformer_is_where_training_begins(videos, tmp_path):
    other = videos.run(**videos.video_config(max_steps=0, seed=7)).artifact(videos.store)
    weights = safetensors.torch.load(other.read_bytes("model.safetensors"))
    names = [name for name in weights if "Qformer" in name or "query_tokens" in name]
    model = build_model(ModelConfig.from_json(other.read_json("config.json")["model"]), videos.llm)
    held = dict(model.connector.named_parameters())
    file = tmp_path / "qformer.safetensors"
    safetensors.torch.save_file({n: p for n, p in held.items() if n.startswith(("Qformer.", "query_tokens"))}, file)
    outcome = videos.run(**videos.video_config(max_steps=0, qformer_weights=str(file)))
    checkpoint = outcome.artifact(videos.store)
    found = safetensors.torch.load(checkpoint.read_bytes("model.safetensors"))
    assert all((found[name] == weights[name]).all() for name in names)
    assert (found["connector.imagebind_fc.weight"] != weights["connector.imagebind_fc.weight"]).any()
    assert checkpoint.read_json("config.json")["qformer_weights_sha256"] == Digests().file(file)
    assert checkpoint.manifest["pretrained"] == ["query_tokens", "Qformer"]
    said = [event["message"] for event in outcome.of("log")]
    assert any("pretrained: query_tokens, Qformer (" in message for message in said)
    assert not any("llm_proj came from" in message for message in said)
    # The projection's shape fits, but nothing tells which language model it speaks to: that is said aloud.
    kept = ("Qformer.", "query_tokens", "llm_proj")
    safetensors.torch.save_file({n: p for n, p in held.items() if n.startswith(kept)}, file)
    outcome = videos.run(**videos.video_config(max_steps=0, qformer_weights=str(file)))
    assert outcome.artifact(videos.store).manifest["pretrained"] == ["query_tokens", "Qformer", "llm_proj"]
    warned = [event["message"] for event in outcome.of("log") if event["level"] == "warning"]
    assert any("llm_proj came from finetune.qformer_weights" in message for message in warned)

    safetensors.torch.save_file({n: p for n, p in held.items() if n.startswith("llm_proj")}, file)
    refused = videos.run(**videos.video_config(max_steps=0, qformer_weights=str(file)))
    assert refused.code == 78 and "its Q-Former does not fit" in refused.message


def test_settings_that_do_not_fit_the_samples_name_the_field(videos):
    unset = videos.run(**videos.config())
    assert unset.code == 78 and "finetune.frames: the samples are of videos" in unset.message
    captions = videos.run(**videos.video_config(template="{visual}{caption} {question}"))
    assert captions.code == 78 and "finetune.template has {caption}, but 27 of 27" in captions.message
    mixed = video_rows()
    mixed[0]["media_kind"] = "image"
    videos.samples(mixed)
    refused = videos.run(**videos.video_config())
    assert refused.code == 78 and "both images and videos" in refused.message
    videos.samples([row | {"media_kind": "image"} for row in video_rows()])
    refused = videos.run(**videos.video_config())
    assert refused.code == 78 and "finetune.frames: the samples are of images" in refused.message


def test_what_the_model_refuses_in_training_names_its_remedy(videos):
    # 6 frames of 100 queries each: more than the 512 positions of the language model.
    wide = {"hidden": 32, "layers": 2, "heads": 2, "intermediate": 64, "encoder_width": 32, "query_tokens": 100}
    part = ("imagebind_fc", "llm_proj")
    refused = videos.run(**videos.video_config(memory_bank_length=0, qformer=wide, trainable=part))
    assert refused.code == 78 and "step 1: " in refused.message
    assert "600 of them visual, but the language model takes 512: set a memory_bank_length" in refused.message


def test_videos_that_failed_are_never_dropped_in_silence(inputs):
    rows = video_rows()
    rows[3]["start"], rows[3]["end"] = 60.0, 70.0  # behind the end of 8 s
    rows[6]["media"] = None
    inputs.videos([row for row in rows if row["media"]], without=(digest("video 0"),))
    inputs.samples(rows)
    refused = inputs.run(**inputs.video_config())
    assert refused.code == 65 and "3 of 27 samples have no frames embedded" in refused.message
    assert "train/0-0 (0.mp4" in refused.message and "2 more for other reasons" in refused.message
    assert inputs.run(**inputs.video_config(max_failed_share=0.1)).code == 65
    checkpoint = inputs.run(**inputs.video_config(max_failed_share=0.2, max_steps=4)).artifact(inputs.store)
    assert checkpoint.manifest["counts"] == {"done": 22, "reused": 0, "failed": 0, "skipped": 5}
    said = {row["id"]: row["message"] for row in checkpoint.ledger().to_pylist() if row["status"] == "skipped"}
    assert "no frames embedded" in said["train/0-2"] and "begins at 60 s" in said["train/1-0"]
    assert said["train/2-0"].startswith("no video")
    assert COLOURS[0] not in said
