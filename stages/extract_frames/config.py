"""Settings of extract_frames."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from stages.config import How, StageConfig


class ExtractConfig(StageConfig):
    """Takes frames from the videos of the samples: for each k the one shown k / fps seconds after the first."""

    STAGE: ClassVar[str] = "extract_frames"
    VERSION: ClassVar[int] = 1
    SPLITS: ClassVar[bool] = True
    KIND: ClassVar[str] = "frames"
    INPUTS: ClassVar[tuple[str, ...]] = ("samples",)
    LIBRARIES: ClassVar[tuple[str, ...]] = ("av", "decord", "imageio-ffmpeg", "simplejpeg")
    CODE: ClassVar[tuple[str, ...]] = ("video",)

    fps: int = Field(10, ge=1, le=1000, description="frames a second; where the video has fewer they repeat")
    short_side: int = Field(256, ge=16, le=4096, description="pixels of the shorter side, after rotation")
    format: Literal["jpeg", "png", "direct"] = Field(
        "jpeg", description="png: lossless; direct: stores no frames, the embedding stage decodes the videos itself"
    )
    quality: int = Field(95, ge=1, le=100, description="of the JPEGs; unused in other formats")
    backend: Literal["pyav", "ffmpeg", "decord"] = Field(
        "pyav", description="what decodes; all take the same frames, or refuse the video"
    )
    videos: How[Path | None] = Field(None, description="the folder that the samples' media paths lie below")
    workers: How[int] = Field(
        0,
        ge=0,
        description="videos decoded side by side, a process each; 0: one a core, or a CPU that its runner allows",
    )
    time_limit: How[float] = Field(3600, gt=0, description="seconds that one video may take")
    memory_limit: How[int] = Field(
        2048, ge=256, description="MiB that the process of one video may allocate (RLIMIT_DATA: heap and stacks)"
    )
    max_failed_share: How[float] = Field(
        0.0, ge=0, le=1, description="the share of videos that may fail before the stage does; what is done is kept"
    )
    shard_videos: How[int] = Field(16, ge=1, description="videos a file of frames")

    @model_validator(mode="after")
    def _direct_is_pyav(self) -> "ExtractConfig":
        if self.format == "direct" and self.backend != "pyav":
            raise ValueError(f"backend: {self.backend} decodes here, but with format: direct the embedding stage does")
        return self

    def problems(self) -> list[str]:
        if self.videos is None:
            return ["extract_frames.videos: give the folder that has the videos"]
        return [] if self.videos.is_dir() else [f"extract_frames.videos: no folder {self.videos}"]
