"""A pipeline of pretended stages, and a server of Prefect's that `malmm up` started."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}  # read when Prefect is imported

from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.smoke import generate
from tests.flows.laptop import Laptop
from tests.flows.pretend import ROOT as ROOT
from tests.flows.pretend import Pretend


@pytest.fixture
def pretend(tmp_path, monkeypatch) -> Pretend:
    monkeypatch.setenv("MALMM_ENVS", str(tmp_path / "envs"))
    return Pretend(tmp_path)


@pytest.fixture(scope="session")
def _laptop(tmp_path_factory) -> Iterator[Laptop]:
    laptop = Laptop(tmp_path_factory.mktemp("laptop"))
    yield laptop
    laptop("flows", "down")


@pytest.fixture
def laptop(_laptop) -> Laptop:
    """A folder in which `malmm up` was called: one for all tests, as Prefect takes half a minute to start."""
    if not _laptop.is_up():
        code, said = _laptop("flows", "up", f"--port={_laptop.port}")
        assert code == 0 and f"http://127.0.0.1:{_laptop.port}" in said, said
    return _laptop


@pytest.fixture
def server(laptop) -> Iterator[None]:
    """Flows of this process run on the laptop's server."""
    with temporary_settings({PREFECT_API_URL: f"{laptop.url}/api", PREFECT_CLIENT_MAX_RETRIES: 10}):
        yield


@pytest.fixture(scope="session")
def smoke_store(tmp_path_factory) -> Path:
    """The smoke flow's store, as far as its inputs."""
    store = tmp_path_factory.mktemp("smoke")
    generate(store)
    return store


@pytest.fixture(scope="session")
def tiny_llm(smoke_store) -> Path:
    return smoke_store / "inputs" / "llm"
