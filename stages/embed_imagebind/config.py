"""Settings of embed_imagebind."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from stages.config import How, SourceFile, StageConfig


class EmbedConfig(StageConfig):
    """Embeds images, videos (frames, sound) and questions of the samples with ImageBind, except what the bank has."""

    STAGE: ClassVar[str] = "embed_imagebind"
    VERSION: ClassVar[int] = 2
    SPLITS: ClassVar[bool] = True
    KIND: ClassVar[str] = "features"
    INPUTS: ClassVar[tuple[str, ...]] = ("samples",)
    OPTIONAL: ClassVar[tuple[str, ...]] = ("frames",)
    CODE: ClassVar[tuple[str, ...]] = ("video",)
    LIBRARIES: ClassVar[tuple[str, ...]] = (
        "torch",
        "pillow",
        "av",
        "ftfy",
        "regex",
        "tokenizers",
        "imagebind-packaged",
    )

    engine: Literal["malmm", "reference"] = Field(
        "malmm", description="whose code runs: malmm's own, or the package imagebind-packaged"
    )
    architecture: Literal["huge", "tiny"] = Field(
        "huge", description="imagebind_huge, or the same at widths that a CPU core runs in milliseconds"
    )
    weights: SourceFile | None = Field(
        None, description="imagebind_huge.pth or .safetensors; null (tiny only): random weights"
    )
    seed: int = Field(0, ge=0, description="of the random weights; unused where `weights` is given")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of the matrix products; bf16 and fp16 (autocast) are for a GPU"
    )
    dtype: Literal["float16", "float32"] = Field("float16", description="of the rows in the feature bank")
    tokens: Literal["frame", "patch"] = Field(
        "frame",
        description="of a video's frame: one embedding, or the trunk's 257 tokens (class token, 16 x 16 patches) "
        "before the head, 320 times as many bytes",
    )
    audio: bool = Field(True, description="also embed the sound of videos that have some, in clips of 2 s")

    images: How[Path | None] = Field(None, description="the folder that the samples' paths of images lie below")
    videos: How[Path | None] = Field(
        None, description="the folder that paths of videos lie below; read for sound, and for frames of format: direct"
    )
    device: How[Literal["auto", "cpu", "cuda"]] = Field("auto", description="auto takes the GPU where there is one")
    vision_batch: How[int] = Field(16, ge=1, description="images or frames a step; every step is padded to it")
    text_batch: How[int] = Field(32, ge=1, description="questions a step; every step is padded to it")
    audio_batch: How[int] = Field(16, ge=1, description="clips of sound a step; every step is padded to it")
    shard_rows: How[int] = Field(
        2048, ge=1, description="embeddings a shard, but at least 64 frames; a kill loses one shard"
    )
    workers: How[int] = Field(4, ge=1, description="threads that decode images while the model runs")
    max_failed_share: float = Field(
        0.0, ge=0, le=1, description="the share of images, videos and questions that may fail before the stage does"
    )

    @model_validator(mode="after")
    def _weights_given(self) -> "EmbedConfig":
        if self.weights is None and self.architecture != "tiny":
            raise ValueError(
                "weights: huge needs imagebind_huge.pth or .safetensors "
                "(`malmm weights imagebind_huge`); random weights are for tiny alone"
            )
        return self

    def key_fields(self) -> dict[str, Any]:
        fields = super().key_fields()
        return fields if self.weights is None else {k: v for k, v in fields.items() if k != "seed"}

    def problems(self) -> list[str]:
        folders = {"images": self.images, "videos": self.videos}
        return super().problems() + [
            f"embed_imagebind.{name}: no folder {path}" for name, path in folders.items() if path and not path.is_dir()
        ]
