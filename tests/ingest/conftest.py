"""The stage without the second that each process takes to import Arrow; one test runs it by its real command."""

from pathlib import Path
from typing import Any

import pytest

from tests.stage_command import Outcome
from tests.warm import StageProcess, preload

preload("stages.ingest.run")


@pytest.fixture
def run_ingest(tmp_path_factory):
    """`run_ingest(config, store, only=[...])`: the stage in a process of its own, to its end."""
    requests = tmp_path_factory.mktemp("requests")

    def run(config: dict[str, Any], store: Path, **more: Any) -> Outcome:
        request = {"stage": "ingest", "config": config, "inputs": {}, "store": str(store), **more}
        return StageProcess(request, requests).outcome()

    return run
