"""Settings of ingest, and which outside bytes make its key."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from stages.config import How, SourceFiles, StageConfig
from stages.errors import BadInput
from stages.ingest.formats import FORMATS, Format
from stages.ingest.media import MediaRoot
from stages.ingest.records import Wanted, parse
from storage.digests import Digests, listing_digest

Split = Literal["train", "val", "test"]
LVU_CLIPS = {"history": 100, "stride": 20}  # MA-LMM's


class IngestConfig(StageConfig):
    """Reads annotation files and the media that they name; makes the samples table."""

    STAGE: ClassVar[str] = "ingest"
    VERSION: ClassVar[int] = 2
    KIND: ClassVar[str] = "samples"

    format: Literal[
        "visdial", "lvu", "breakfast", "coin", "msrvtt_qa", "msvd_qa", "activitynet_qa", "msrvtt_cap", "msvd_cap",
        "youcook2_cap", "questions",
    ] = Field("visdial", description="layout of the annotation files; docs/datasets has a page for each")  # fmt: skip
    annotations: SourceFiles = Field(description="split -> annotation file; splits: train, val, test")
    dense: SourceFiles = Field({}, description="visdial: split -> dense annotations (relevance of each candidate)")
    task: Literal["director", "genre", "relationship", "scene", "way_speaking", "writer", "year"] | None = Field(
        None, description="lvu: which of its tasks"
    )
    history: int | None = Field(None, ge=1, description="lvu: seconds of a clip; 100 there")
    stride: int | None = Field(None, ge=1, description="lvu: seconds from one clip's start to the next one's; 20 there")
    images: How[Path | None] = Field(
        None,
        description="visdial, questions: the folder of all images, also in subfolders; their bytes enter the key",
    )
    videos: How[Path | None] = Field(
        None, description="all but visdial: the folder of all videos, also in subfolders; their bytes enter the key"
    )
    allow_missing: bool = Field(False, description="list missing images and videos and go on, instead of failing")

    @model_validator(mode="before")
    @classmethod
    def _fill_lvu(cls, data: Any) -> Any:
        return {**LVU_CLIPS, **data} if isinstance(data, dict) and data.get("format") == "lvu" else data

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

    @model_validator(mode="after")
    def _fields_of_the_format(self) -> "IngestConfig":
        if self.dense and self.format != "visdial":
            raise ValueError(f"dense is for visdial; {self.format} has no dense annotations")
        for name in ("task", "history", "stride"):
            if name in self.described.settings:
                if getattr(self, name) is None:
                    raise ValueError(f"{name} must be given with format: {self.format}")
            elif getattr(self, name) is not None:
                raise ValueError(f"{name} is for lvu; {self.format} has none")
        given = {kind for kind in ("image", "video") if getattr(self, f"{kind}s") is not None}
        if extra := sorted(given - set(self.described.kinds)):
            raise ValueError(f"{extra[0]}s: {self.format} is about {self.described.kinds[0]}s; leave {extra[0]}s out")
        if not given:
            raise ValueError(f"{' or '.join(f'{kind}s' for kind in self.described.kinds)} must be given: a folder")
        return self

    @property
    def described(self) -> Format:
        """What the format is."""
        return FORMATS[self.format]

    @property
    def settings(self) -> dict[str, Any]:
        """The fields that reading this format takes."""
        return {name: getattr(self, name) for name in self.described.settings}

    def roots(self) -> dict[str, MediaRoot]:
        """The media roots that are given, by kind, listed now."""
        paths = {"image": self.images, "video": self.videos}
        return {kind: MediaRoot(path, kind) for kind, path in paths.items() if path is not None}

    def problems(self) -> list[str]:
        folders = {"images": self.images, "videos": self.videos}
        absent = [f"ingest.{name}: no folder {path}" for name, path in folders.items() if path and not path.is_dir()]
        return super().problems() + absent

    def sources(self, digests: Digests) -> dict[str, str]:
        """The annotation files, and the media they name: no other file of a root enters the key."""
        found = super().sources(digests)
        settings = "".join(f"/{value}" for value in self.settings.values())
        wanted: list[tuple[str, Wanted]] = []
        for split, path in self.annotations.items():
            named = digests.fact(
                f"ingest.media.{self.VERSION}/{self.format}{settings}/{split}",
                found[f"annotations.{split}"],
                lambda split=split, path=path: self.described.media_of(
                    parse(path.read_bytes(), str(path)), split, str(path), **self.settings
                ),
            )
            wanted += [(split, Wanted(kind, tuple(names))) for kind, names in named]
        for kind, root in self.roots().items():
            entries = [(split, one, root.find(one)) for split, one in wanted if one.kind == kind]
            below = f"{root.path}/"  # strings: a Path for every image takes longer than looking its digest up
            hashed = digests.files({below + relative for _, _, relative in entries if relative})
            found[f"{kind}s"] = listing_digest(
                (f"{split}/{one.names[0]}/{relative}", hashed[below + relative] if relative else "missing")
                for split, one, relative in entries
            )
        self.check_roots({one.kind for _, one in wanted})
        return found

    def check_roots(self, kinds: set[str]) -> None:
        """Raises BadInput when records are about a kind of media that no folder is given for."""
        for kind in sorted(kinds):
            if getattr(self, f"{kind}s") is None:
                raise BadInput(f"some records of the annotations are about {kind}s: give the folder, {kind}s: ...")
