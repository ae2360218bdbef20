"""The stage as a program, on a tiny language model."""

import io
import random
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from malmm.model import ModelConfig, build_model
from stages.finetune.config import FinetuneConfig
from stages.finetune.data import read_split
from storage import Artifact, Store
from tests.finetune.conftest import Inputs
from tests.stage_command import run_stage

DATA_FILES = ("model.safetensors", "state.safetensors", "config.json", "curves.parquet", "curves.png")


def test_a_checkpoint_learns_and_rebuilds_the_model(inputs):
    outcome = run_stage("finetune", inputs.config(max_steps=60, lr=0.01), inputs.store, inputs.keys)
    checkpoint = outcome.artifact(inputs.store)
    curves = checkpoint.read_table("curves.parquet").to_pydict()
    assert curves["step"] == list(range(1, 61)) and set(curves) == {"step", "loss", "lr", "grad_norm"}
    assert np.mean(curves["loss"][-5:]) < 0.5 * np.mean(curves["loss"][:5])
    assert Image.open(io.BytesIO(checkpoint.read_bytes("curves.png"))).width > 500
    assert checkpoint.manifest["samples_per_second"] > 0 and checkpoint.manifest["counts"]["done"] == 30
    assert "recipe connector: trains imagebind_fc" in outcome.of("log")[0]["message"]
    assert outcome.of("metric") and outcome.of("progress")[-1]["done"] == 240

    config = ModelConfig.from_json(checkpoint.read_json("config.json")["model"])
    model = build_model(config, inputs.llm)
    model.load_trained(safetensors.torch.load(checkpoint.read_bytes("model.safetensors")))
    samples, features = (Artifact(Store(inputs.store), kind, inputs.keys[kind]) for kind in ("samples", "features"))
    data = read_split(samples, features, FinetuneConfig(**inputs.config()))
    with torch.no_grad():
        loss, tokens = model.loss(data.batch(np.arange(len(data)), 0))
    assert loss / tokens < 0.7 * curves["loss"][0]
    assert str(inputs.llm) not in checkpoint.read_bytes("config.json").decode()


@pytest.mark.slow
def test_killed_at_20_random_moments(inputs, tmp_path, tiny_llm):
    fields = {"max_steps": 120, "accumulate": 2, "checkpoint_every": 1, "quantization": "nf4"}
    undisturbed = Inputs(tmp_path / "whole", tiny_llm)
    assert undisturbed.keys == inputs.keys
    expected = undisturbed.run(**fields).artifact(undisturbed.store)

    choose, resumed_at, killed_at_work = random.Random(7), [], 0
    for attempt in range(20):
        stage = inputs.start(**fields)
        if attempt % 4:  # most while it trains, some while it starts
            steps = choose.randint(1, 4)
            while stage.process.is_alive() and sum(e["event"] == "metric" for e in stage.events()) < steps:
                time.sleep(0.002)
            killed_at_work += stage.process.is_alive()
        time.sleep(choose.uniform(0, 0.1))
        stage.kill()
        said = [event["message"] for event in stage.events() if "taken up at step" in event.get("message", "")]
        resumed_at += [int(message.split()[4]) for message in said]
    found = inputs.run(**fields).artifact(inputs.store)

    assert resumed_at == sorted(resumed_at) and len(set(resumed_at)) >= 8 and killed_at_work == 15
    assert found.key == expected.key
    for name in DATA_FILES:
        assert found.read_bytes(name) == expected.read_bytes(name), name
    assert not found.exists("partial/state.safetensors")


def test_accumulating_is_the_same_as_one_large_batch(inputs):
    fields = {"max_steps": 4, "qformer": inputs.config()["qformer"] | {"dropout": 0.0}}
    one, two = (
        safetensors.torch.load(
            inputs.run(**fields, batch=b, accumulate=a).artifact(inputs.store).read_bytes("model.safetensors")
        )
        for b, a in ((30, 1), (15, 2))
    )  # an epoch is one step, so both see the same samples
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], atol=1e-3, rtol=0)


def test_what_cannot_be_trained_on_is_named(inputs):
    good = inputs.rows
    inputs.samples([*good[:-1], good[-1] | {"answer": None}])
    refused = inputs.run()
    assert refused.code == 65 and "train/9/2 (9.jpg, 'is it a circle ?')" in refused.message
    assert "1 of 30 samples have no answer" in refused.message

    inputs.samples([*good, good[0] | {"sample": "train/x/0", "media": "ab" * 32, "media_path": "new.jpg"}])
    refused = inputs.run()
    assert refused.code == 65 and "no vision embedding" in refused.message and "train/x/0 (new.jpg" in refused.message

    inputs.samples(good)
    assert inputs.run(train_split="val").code == 65
    wrong = inputs.run(template="{visual}{query}")
    assert wrong.code == 78 and "{query}" in wrong.message and "{question}" in wrong.message


def test_a_loss_that_is_no_number_stops_the_run(inputs):
    outcome = inputs.run(lr=1e30, grad_clip=1e30, warmup_steps=0)
    assert outcome.code == 78 and "the loss is" in outcome.message and "lower finetune.lr" in outcome.message
