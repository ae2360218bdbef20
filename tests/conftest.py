"""What all tests share. Each folder of tests runs in the environment of what it tests (tests/run.py)."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


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
