"""What a stage's settings are: typed fields, which of them enter the key, which are outside bytes.

Light on purpose: the orchestrator imports every stage's config without that stage's libraries.
"""

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, field_validator

from storage.digests import Digests


class _How:
    """Marks a field that says how the work is done, not what comes out of it: it stays out of the key."""


class _Source:
    """Marks a path whose bytes, never whose name, enter the key."""

    def __init__(self, folder: bool):
        self.folder = folder


class How:
    """`device: How[str] = "auto"`: a field that cannot change the output (beyond rounding)."""

    def __class_getitem__(cls, item: Any) -> Any:
        return Annotated[item, _How()]


SourceFile = Annotated[Path, _Source(folder=False)]
SourceFiles = Annotated[dict[str, Path], _Source(folder=False)]
SourceDir = Annotated[Path, _Source(folder=True)]


class StageConfig(BaseModel):
    """Base of every stage's config. A stage states here, once, all that its key is made of."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True)

    STAGE: ClassVar[str]
    VERSION: ClassVar[int]  # raised when the stage's output changes
    KIND: ClassVar[str]  # the kind of artifact it makes
    INPUTS: ClassVar[tuple[str, ...]] = ()  # the kinds it reads
    OPTIONAL: ClassVar[tuple[str, ...]] = ()  # the kinds it reads where the pipeline makes them
    SPLITS: ClassVar[bool] = False  # whether it honours a request's part
    LIBRARIES: ClassVar[tuple[str, ...]] = ()  # packages whose versions change the output
    CODE: ClassVar[tuple[str, ...]] = ()  # folders whose sources make the output, beside stages/<STAGE>

    @field_validator("*", mode="after")
    @classmethod
    def _whole_paths(cls, value: Any) -> Any:
        """A request must mean the same wherever its stage runs: paths are made absolute, and lose their `..`, because
        a container has no more of a path than what is mounted."""
        if isinstance(value, Path):
            return Path(os.path.abspath(value.expanduser()))
        if isinstance(value, dict) and all(isinstance(p, Path) for p in value.values()):
            return {name: Path(os.path.abspath(p.expanduser())) for name, p in value.items()}
        return value

    def key_fields(self) -> dict[str, Any]:
        """The fields that change the output, as JSON values; sources are left to `sources`."""
        left_out = {name for name in type(self).model_fields if self.in_key(name) != "yes"}
        return self.model_dump(mode="json", exclude=left_out)

    def paths(self) -> dict[str, Path]:
        """Every path in the settings, by field; one of a mapping of paths is named "<field>.<name>"."""
        found: dict[str, Path] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            named = {f"{name}.{part}": one for part, one in value.items()} if isinstance(value, dict) else {name: value}
            found |= {field: path for field, path in named.items() if isinstance(path, Path)}
        return found

    def source_paths(self) -> dict[str, tuple[Path, bool]]:
        """Outside files and folders whose bytes enter the key: field, as in `paths` -> (path, is it a folder)."""
        marks = {name: self._mark(name, _Source) for name in type(self).model_fields}
        found = ((named, path, marks[named.partition(".")[0]]) for named, path in self.paths().items())
        return {named: (path, mark.folder) for named, path, mark in found if mark is not None}

    def sources(self, digests: Digests) -> dict[str, str]:
        """Digests of all outside bytes that enter the key. A stage with more than path fields extends it.

        Raises FileNotFoundError naming the field and the path.
        """
        if problems := self.problems():
            raise FileNotFoundError("; ".join(problems))
        return {
            name: digests.folder(path) if folder else digests.file(path)
            for name, (path, folder) in self.source_paths().items()
        }

    def problems(self) -> list[str]:
        """What is wrong with the settings as a whole and can be seen before anything starts."""
        return [
            f"{self.STAGE}.{name}: no {'folder' if folder else 'file'} {path}"
            for name, (path, folder) in self.source_paths().items()
            if not (path.is_dir() if folder else path.is_file())
        ]

    @classmethod
    def in_key(cls, name: str) -> str:
        """Whether a field enters the key: "yes", "bytes" (a file's, never its name) or "no"."""
        return "no" if cls._mark(name, _How) else "bytes" if cls._mark(name, _Source) else "yes"

    @classmethod
    def _mark(cls, name: str, kind: type) -> Any:
        field = cls.model_fields[name]
        return next((mark for mark in [*field.metadata, *_marks(field.annotation)] if isinstance(mark, kind)), None)


def _marks(annotation: Any) -> list[Any]:
    """Marks at any depth of a type: `SourceFile | None` carries its mark inside the union."""
    own = list(getattr(annotation, "__metadata__", ()))
    return own + [mark for part in get_args(annotation) for mark in _marks(part)]
