"""A store of each kind: what holds on a disk must hold on S3."""

import pytest

from storage import Store


@pytest.fixture(params=["disk", "memory", "s3"])
def store(request, tmp_path) -> Store:
    match request.param:
        case "disk":
            return Store(tmp_path / "store")
        case "memory":
            return Store(f"memory://{tmp_path.name}")
        case "s3":
            return request.getfixturevalue("s3")
