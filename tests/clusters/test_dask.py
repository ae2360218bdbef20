"""Parts of a stage on a Dask cluster of two workers, one of which is killed in the middle."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client

from flows import parts
from tests.clusters.conftest import Films, part_runs, stage_below, wait_for

ADDRESS = "127.0.0.1:4352"


@pytest.fixture
def workers(films, tmp_path) -> Iterator[list[subprocess.Popen]]:
    """Two workers that nobody starts again; the scheduler gives up a task whose worker dies."""
    commands = [["scheduler", "--host", "127.0.0.1", "--port", ADDRESS.split(":")[1]]]
    commands += 2 * [["worker", f"tcp://{ADDRESS}", "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny"]]
    cluster = [
        subprocess.Popen(
            [Path(sys.executable).with_name("dask"), *command, "--no-dashboard"],
            cwd=tmp_path,
            env=os.environ | {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"},
            stderr=subprocess.DEVNULL,
        )
        for command in commands
    ]
    try:
        with Client(f"tcp://{ADDRESS}", timeout=120) as client:
            client.wait_for_workers(2, timeout=120)
        yield cluster[1:]
    finally:
        for process in cluster:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_worker_dies_and_its_part_is_submitted_again(workers, films: Films, undisturbed, monkeypatch):
    monkeypatch.setattr(parts, "delays", lambda retries: [1] * retries)

    def kill() -> None:
        wait_for(lambda: next((worker for worker in workers if stage_below(worker.pid)), None)).kill()

    killer = threading.Thread(target=kill)
    killer.start()
    before = part_runs()
    assert films.run("dask", f"runner.cluster=dask://{ADDRESS}") == undisturbed
    killer.join()
    assert part_runs() - before == {"Completed": 4, "Crashed": 1}
