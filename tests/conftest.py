"""What all tests share. Each folder of tests runs in the environment of what it tests (tests/run.py)."""

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage import Store
from tests.s3_server import BUCKET, s3_server

ROOT = Path(__file__).resolve().parent.parent
# Under a script's `&` SIGINT is ignored, and what a test starts would inherit that: no Ctrl-C would reach it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """`shared("golden/imagebind")`: a path in the reference data, or a skip that says where it was looked for."""

    def find(relative: str) -> Path:
        path = Path(os.environ.get("MALMM_SHARED") or ROOT.parent / "shared") / relative
        if not path.exists():
            pytest.skip(f"no reference data at {path}; set MALMM_SHARED to the folder that has {relative}")
        return path

    return find


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remembered digests of a test stay with the test run, out of the user's cache."""
    monkeypatch.setenv("MALMM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def s3_variables() -> Iterator[dict[str, str]]:
    """The variables that lead to an S3 server; a skip where there is none."""
    try:
        with s3_server() as variables:
            yield variables
    except FileNotFoundError as absent:
        pytest.skip(str(absent))


@pytest.fixture
def s3(s3_variables, monkeypatch) -> Store:
    """A new store on S3."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_variables.items():
        monkeypatch.setenv(name, value)
    return Store(f"s3://{BUCKET}/{uuid.uuid4().hex}")


@pytest.fixture(scope="session")
def laptop_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A laptop on which `malmm up` was called: one for faults, containers and clusters, as Prefect takes its time."""
    from tests.faults.conftest import Laptop

    laptop = Laptop(tmp_path_factory.mktemp("laptop"))
    try:
        laptop.up()
        yield laptop
    finally:
        laptop.malmm("down")
