"""Where the images and videos of a data set lie below their root."""

import os
from pathlib import Path

from stages.errors import BadInput
from stages.ingest.records import Wanted

# Of a kind's files; where one name has several, the first is taken, and the first is named where there is none.
SUFFIXES = {
    "image": (".jpg", ".jpeg", ".png"),
    "video": (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".ogv"),
}


class MediaRoot:
    """All files of one kind below `path`, listed once. Nothing outside the root is ever opened.

    Raises BadInput when a link below the root leads out of it, FileNotFoundError when there is no root.
    """

    def __init__(self, path: Path, kind: str):
        self.path, self.kind = path, kind
        self._rank = {suffix[1:]: place for place, suffix in enumerate(SUFFIXES[kind])}
        self._paths: set[str] = set()
        self._by_name: dict[str, tuple[int, str]] = {}  # name -> (place of its suffix, path below the root)
        self._several: set[str] = set()  # names of more than one file
        self._others: dict[str, str] = {}  # name -> path below the root, of files that are of no known suffix
        self._list()

    def find(self, wanted: Wanted) -> str | None:
        """Path below the root, or None. A name is a path below it, a file's name, or that without its suffix.

        Breakfast's release has P03/cam01/P03_cereals.avi, its annotations say P03-cam01-P03_cereals: three last
        parts of a video's path, joined so, are a name of it too.
        """
        for name in wanted.names:
            if name in self._paths:
                return name
            if found := self._by_name.get(name):
                return found[1]
        return None

    def has_several(self, wanted: Wanted) -> bool:
        """Whether the name that `find` goes by is of several files, of which it takes one."""
        named = next((name for name in wanted.names if name in self._paths or name in self._by_name), None)
        return named in self._several and named not in self._paths

    def other(self, wanted: Wanted) -> str | None:
        """Path below the root of a file of this name that is passed over for its suffix, for error messages."""
        return next((self._others[name] for name in wanted.names if name in self._others), None)

    def _list(self) -> None:
        real, folders = os.path.realpath(self.path), [""]
        entered: set[str] = set()  # where links to folders lead: each is entered once, so that none leads in a circle
        while folders:
            folder = folders.pop()
            with os.scandir(self.path / folder) as entries:
                for entry in sorted(entries, key=lambda e: e.name):
                    relative = f"{folder}{entry.name}"
                    if entry.is_symlink():
                        target = os.path.realpath(entry.path)
                        if os.path.commonpath([real, target]) != real:
                            raise BadInput(
                                f"{entry.path} links to {target}, outside the {self.kind} root {self.path}: put the "
                                "files below the root, or make the root the folder that has them"
                            )
                        if entry.is_dir():
                            if target in entered or target == real:
                                continue
                            entered.add(target)
                    if entry.is_dir():
                        folders.append(f"{relative}/")
                    else:
                        self._add(entry.name, relative)

    def _add(self, name: str, relative: str) -> None:
        stem, _, suffix = name.rpartition(".")
        rank = self._rank.get(suffix.lower())
        if rank is None or not stem:
            for known in (relative, name, stem or name):
                self._others.setdefault(known, relative)
            return
        self._paths.add(relative)
        names = [name, stem]
        if self.kind == "video" and relative.count("/") >= 2:
            names.append("-".join([*relative.split("/")[-3:-1], stem]))
        for known in names:
            before = self._by_name.get(known)
            if before is not None:
                self._several.add(known)
            if before is None or (rank, relative) < before:  # one choice, whatever order the disk lists
                self._by_name[known] = (rank, relative)


def expected(wanted: Wanted) -> str:
    """The name under which a file was looked for first, for error messages and the samples table."""
    name = wanted.names[0]
    return name if name.lower().endswith(sum(SUFFIXES.values(), ())) else name + SUFFIXES[wanted.kind][0]
