"""The whole pipeline with every stage in its image; the second run executes nothing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import docker
import pytest

from flows.config import STAGES as CONFIGS
from flows.runners import ROOT
from stages.identity import code_digest
from storage import Artifact, Store

STAGES = ("ingest", "embed_imagebind", "finetune", "evaluate")


@pytest.mark.slow
def test_the_smoke_flow_runs_whole_in_containers(engine, laptop_up, tmp_path):
    client = docker.DockerClient(base_url=engine)
    for stage in STAGES:
        try:
            client.images.get(f"malmm-{stage}")
        except docker.errors.ImageNotFound:
            pytest.skip(f"no image malmm-{stage}: run `malmm images build {' '.join(STAGES)}`")
    user = str(os.getuid() or 10001)
    store = tmp_path / "store"
    store.mkdir()
    os.chown(store, int(user), -1)
    malmm = Path(sys.executable).with_name("malmm")
    done = subprocess.run(
        [str(malmm), "smoke", "--store", str(store), "--set", "runner.kind=container"],
        cwd=ROOT,
        env=os.environ | {"DOCKER_HOST": engine, "PREFECT_API_URL": laptop_up.api},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in STAGES:
        # Docker calls it malmm-ingest, Podman localhost/malmm-ingest.
        assert re.search(rf"image (localhost/)?malmm-{stage}:latest is sha256:", done.stderr)
    assert done.stderr.count("is there, 0 items executed") == len(STAGES)
    for kind, key in json.loads(done.stdout)["keys"].items():
        folder = store / "artifacts" / kind / key
        assert {path.stat().st_uid for path in (folder, *folder.rglob("*"))} == {int(user)}
        manifest = Artifact(Store(store), kind, key).manifest
        sources = code_digest(CONFIGS[manifest["stage"]])
        assert manifest["code"] == sources, "the images are older than the sources: run `malmm images build`"
    assert not client.api.containers(all=True, filters={"label": "malmm.owner"})
