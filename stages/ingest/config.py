"""Settings of ingest, and which outside bytes make its key."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from stages.config import How, SourceFiles, StageConfig
from stages.ingest.media import MediaRoot
from stages.ingest.visdial import media_of, parse
from storage.digests import Digests, listing_digest

Split = Literal["train", "val", "test"]


class IngestConfig(StageConfig):
    """Reads annotation files and an image root; makes the samples table."""

    STAGE: ClassVar[str] = "ingest"
    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "samples"

    format: Literal["visdial"] = Field("visdial", description="layout of the annotation files")
    annotations: SourceFiles = Field(description="split -> annotation file; splits: train, val, test")
    dense: SourceFiles = Field({}, description="split -> dense annotations (relevance of each candidate)")
    images: How[Path] = Field(description="the folder with all images, also in subfolders; its bytes enter the key")
    allow_missing: bool = Field(False, description="list missing images and go on, instead of failing")

    @model_validator(mode="after")
    def _splits(self) -> "IngestConfig":
        known = Split.__args__
        for name, value in (("annotations", self.annotations), ("dense", self.dense)):
            if wrong := sorted(set(value) - set(known)):
                raise ValueError(f"{name}: {', '.join(wrong)} is no split; allowed: {', '.join(known)}")
        if not self.annotations:
            raise ValueError("annotations: give at least one of train, val, test")
        if extra := sorted(set(self.dense) - set(self.annotations)):
            raise ValueError(f"dense: {', '.join(extra)} has no annotations of the same split")
        return self

    def problems(self) -> list[str]:
        there = [] if self.images.is_dir() else [f"ingest.images: no folder {self.images}"]
        return super().problems() + there

    def sources(self, digests: Digests) -> dict[str, str]:
        """The annotation files, and the images they name: no other file of the root enters the key."""
        found = super().sources(digests)
        root = MediaRoot(self.images)
        entries = []
        for split, path in self.annotations.items():
            wanted = digests.fact(
                "visdial.media.1",
                found[f"annotations.{split}"],
                lambda path=path: media_of(parse(path.read_bytes(), str(path))),
            )
            entries += [(split, image, root.find(split, image, file)) for image, file in wanted]
        below = f"{root.path}/"  # strings: a Path for every image takes longer than looking its digest up
        hashed = digests.files({below + relative for _, _, relative in entries if relative})
        found["images"] = listing_digest(
            (f"{split}/{image}/{relative}", hashed[below + relative] if relative else "missing")
            for split, image, relative in entries
        )
        return found
