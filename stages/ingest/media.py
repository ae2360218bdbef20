"""Where an image of a data set lies below its root."""

import os
from pathlib import Path

from stages.errors import BadInput

SUFFIXES = (".jpg", ".jpeg", ".png")

# VisDial v1.0: train images come from both halves of COCO 2014, val and test have pictures of their own.
VISDIAL_NAMES = {
    "train": ("COCO_train2014_{:012d}", "COCO_val2014_{:012d}"),
    "val": ("VisualDialog_val2018_{:012d}",),
    "test": ("VisualDialog_test2018_{:012d}",),
}


class MediaRoot:
    """All images below `path`, listed once. Nothing outside the root is ever opened.

    Raises BadInput when a link below the root leads out of it.
    """

    def __init__(self, path: Path):
        self.path = path
        self._by_name: dict[str, str] = {}
        self.repeated: dict[str, list[str]] = {}  # the same file name in several folders
        real = os.path.realpath(path)
        folders = [""]
        while folders:
            folder = folders.pop()
            with os.scandir(path / folder) as entries:
                for entry in sorted(entries, key=lambda e: e.name):
                    relative = f"{folder}{entry.name}"
                    if entry.is_symlink():
                        target = os.path.realpath(entry.path)
                        if os.path.commonpath([real, target]) != real:
                            raise BadInput(
                                f"{entry.path} links to {target}, outside the image root {path}: put the "
                                "files below the root, or make the root the folder that has them"
                            )
                    if entry.is_dir():
                        folders.append(f"{relative}/")
                    elif entry.name.lower().endswith(SUFFIXES):
                        self._add(entry.name, relative)

    def _add(self, name: str, relative: str) -> None:
        if name in self._by_name:
            self.repeated.setdefault(name, [self._by_name[name]]).append(relative)
            relative = min(relative, self._by_name[name])  # one choice, whatever order the disk lists
        self._by_name[name] = relative

    def find(self, split: str, image: int, file: str | None = None) -> str | None:
        """Path below the root of an image by its number, or by its own file name; None when it is not there."""
        if file is not None:
            return self._by_name.get(os.path.basename(file))
        for pattern in VISDIAL_NAMES[split]:
            for suffix in SUFFIXES:
                if relative := self._by_name.get(pattern.format(image) + suffix):
                    return relative
        return None

    @staticmethod
    def expected(split: str, image: int, file: str | None = None) -> str:
        """The name under which the image was looked for, for error messages and the samples table."""
        return file or VISDIAL_NAMES[split][0].format(image) + SUFFIXES[0]
