"""Training in several processes: the same weights from any number of them, whatever ends and goes on in between."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from stages.finetune.config import FinetuneConfig
from stages.finetune.data import read_split
from stages.finetune.run import schedule_of
from storage import Artifact, Store
from tests.finetune.conftest import Inputs
from tests.stage_command import ROOT, Outcome

STAGE = ["-m", "stages.finetune", "run"]
FIELDS = {"max_steps": 24, "lr": 3e-4, "batch": 2, "accumulate": 4, "checkpoint_every": 1}


class Started:
    """A command that runs; its events are in a file."""

    def __init__(self, folder: Path, *command: str):
        number = len(list(folder.glob("*.jsonl")))
        self.out, self.err = folder / f"{number}.jsonl", folder / f"{number}.err"
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdout=self.out.open("w"),
            stderr=self.err.open("w"),
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_text().split("\n")[:-1]]

    def ranks(self) -> list[int]:
        """PIDs of its children, rank 0 first."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def outcome(self) -> Outcome:
        return Outcome(self.process.wait(800), self.events(), self.err.read_text())


def wait_for(what: Callable[[], bool]) -> bool:
    end = time.monotonic() + 600
    while not what() and time.monotonic() < end:
        time.sleep(0.02)
    return what()


def trains(stage: Any) -> Callable[[], bool]:
    return lambda: sum(event["event"] == "metric" for event in stage.events()) >= 2


def gone(pids: list[int]) -> Callable[[], bool]:
    return lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids)


def request_of(inputs: Inputs, **fields: Any) -> str:
    file = inputs.store / "request.json"
    request = {"stage": "finetune", "config": inputs.config(**FIELDS | fields), "inputs": inputs.keys}
    file.write_text(json.dumps(request | {"store": str(inputs.store)}))
    return str(file)


def assert_same(one: Artifact, two: Artifact) -> None:
    """Within rounding: gradients were added up in another order."""
    assert one.key == two.key
    curves = [artifact.read_table("curves.parquet").to_pydict() for artifact in (one, two)]
    for name in curves[0]:
        np.testing.assert_allclose(curves[1][name], curves[0][name], rtol=1e-3, err_msg=name)
    weights = [safetensors.torch.load(artifact.read_bytes("model.safetensors")) for artifact in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_any_number_of_processes_on_any_nodes_give_the_same_weights(inputs, tmp_path, tiny_llm):
    undisturbed = Inputs(tmp_path / "whole", tiny_llm)
    expected = undisturbed.run(**FIELDS).artifact(undisturbed.store)

    # Two processes, of which one is killed: the other does not wait for it.
    stage = Started(tmp_path, *STAGE, request_of(inputs, processes=2))
    assert wait_for(trains(stage)), stage.err.read_text()
    ranks = stage.ranks()
    os.kill(ranks[1], signal.SIGKILL)
    outcome = stage.outcome()
    assert outcome.code == 75 and len(outcome.of("error")) == 1, outcome
    assert f"process 1 (PID {ranks[1]}) was killed by SIGKILL" in outcome.message and gone(ranks)()

    # One process goes on, and is killed.
    alone = inputs.start(**FIELDS)
    assert wait_for(trains(alone))
    alone.kill()
    assert any("taken up at step" in event.get("message", "") for event in alone.events())

    # Two nodes, of one process each, end it.
    with socket.create_server(("127.0.0.1", 0)) as server:
        meet = f"127.0.0.1:{server.getsockname()[1]}"
    torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    torchrun += ["--rdzv-endpoint", meet, "--local-addr", "127.0.0.1", *STAGE, request_of(inputs)]
    nodes = [node.outcome() for node in [Started(tmp_path, *torchrun), Started(tmp_path, *torchrun)]]
    assert [node.code for node in nodes] == [0, 0], nodes
    silent, spoke = sorted(nodes, key=lambda node: len(node.events))
    assert not silent.events and "taken up at step" in str(spoke.of("log")) and "in 2 processes" in str(spoke.of("log"))
    assert_same(expected, spoke.artifact(inputs.store))


@pytest.mark.slow
def test_what_one_process_cannot_do_is_what_the_stage_says(inputs, tmp_path):
    config = FinetuneConfig(**inputs.config(**FIELDS))
    samples, features = (Artifact(Store(inputs.store), kind, inputs.keys[kind]) for kind in ("samples", "features"))
    first = schedule_of(config, read_split(samples, features, config)).epoch(0)[0]
    wrong = first[1][0]  # the second batch of the first step is rank 1's
    inputs.samples([row | {"turn": 99} if number == wrong else row for number, row in enumerate(inputs.rows)])
    outcome = Started(tmp_path, *STAGE, request_of(inputs, processes=2)).outcome()
    assert outcome.code == 78 and len(outcome.of("error")) == 1, outcome
    assert outcome.message.startswith("step 1: turn 99: turn_pe has rows 0 to")


def test_no_process_outlives_the_one_that_started_it(inputs, tmp_path):
    stage = Started(tmp_path, *STAGE, request_of(inputs, processes=2))
    assert wait_for(lambda: len(stage.ranks()) == 2), stage.err.read_text()
    ranks = stage.ranks()
    stage.process.kill()
    assert wait_for(gone(ranks))
