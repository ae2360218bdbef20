"""Settings that cannot go together are refused before anything starts."""

import pytest
from pydantic import ValidationError

from stages.extract_frames.config import ExtractConfig


def test_another_backend_cannot_decode_in_the_embedding_stage():
    assert ExtractConfig(format="direct").backend == "pyav"
    with pytest.raises(ValidationError, match="decord decodes here"):
        ExtractConfig(format="direct", backend="decord")


def test_the_folder_of_videos_must_be_there(tmp_path):
    assert ExtractConfig(videos=tmp_path).problems() == []
    assert "give the folder" in ExtractConfig().problems()[0]
    assert f"no folder {tmp_path / 'gone'}" in ExtractConfig(videos=tmp_path / "gone").problems()[0]
