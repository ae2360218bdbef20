"""What a stage's container sees of this machine: its store, and the files and folders that its config names."""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from docker.types import Mount

from stages.config import StageConfig
from storage import Store

WRITTEN = ("log_dir",)  # the fields of a config that name what its stage writes; all other paths it reads
A_FEW = 100  # entries of a folder that are looked at before its stage starts


class Unfit(Exception):
    """This machine, as it is, cannot run the container; the message says what to do."""


def paths_of(config: StageConfig) -> dict[Path, bool]:
    """Every path in a config, and whether the stage writes there."""
    return {path: field in WRITTEN for field, path in config.paths().items()}


def mounts(readable: Iterable[Path], writable: Iterable[Path]) -> list[Mount]:
    """Bind mounts of absolute paths, each at its own place, so that a request means the same inside.

    An outer path comes before those inside it; what its nearest outer one grants already is left out; a path that is
    both is writable.
    """
    read_only = dict.fromkeys(readable, True) | dict.fromkeys(writable, False)
    kept: dict[Path, bool] = {}
    for path in sorted(read_only):
        outer = next((kept[parent] for parent in path.parents if parent in kept), None)
        if outer != read_only[path]:
            kept[path] = read_only[path]
    return [Mount(str(path), str(path), type="bind", read_only=only) for path, only in kept.items()]


def prepare_store(folder: Path, uid: int, gid: int) -> None:
    """Make the store's folder for its user where there is none. Raises Unfit when the user cannot write there."""
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(folder, uid, gid)
    inside = [p for deep in ("artifacts", "artifacts/*", "features", "features/*") for p in folder.glob(deep)]
    for place in (folder, *inside):
        if not allows(place.stat(), uid, gid, 0o3):
            raise Unfit(
                f"the store's folder {place} is not writable for user {uid}:{gid}, which the container runs as: "
                f"run `chown -R {uid}:{gid} {folder}`, or set runner.container.user"
            )


@contextlib.contextmanager
def as_the_owner(store: Store, name: str) -> Iterator[None]:
    """What root makes at and below a folder of a store becomes its owner's, or that of the folder it is made in: a
    container runs as that one."""
    if store.local is None or os.geteuid() != 0:
        yield
        return
    folder = store.local / name
    way = [folder, *(place for place in folder.parents if place.is_relative_to(store.local))]
    about = next(place for place in (*way, *store.local.parents) if place.exists()).stat()
    yield
    for path in (*way, *folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # a part that runs on renames its files
            os.chown(path, about.st_uid, about.st_gid)


def check_readable(paths: Iterable[Path], uid: int, gid: int) -> None:
    """Raises Unfit naming the first of these files and folders, or of what lies right below, that the user cannot read.

    Libraries tell it worse: of a file that it may not open, safetensors says that it does not exist.
    """
    for path in paths:
        below = itertools.islice(path.iterdir(), A_FEW) if path.is_dir() else ()
        for place in (path, *below):
            if place.exists() and not allows(place.stat(), uid, gid, 0o5 if place.is_dir() else 0o4):
                raise Unfit(
                    f"{place} is not readable for user {uid}:{gid}, which the container runs as: "
                    f"run `chmod -R a+rX {path}`, or set runner.container.user"
                )


def allows(about: os.stat_result, uid: int, gid: int, wanted: int) -> bool:
    """Whether permission bits let a user do what is wanted: 4 read, 2 write, 1 enter; root's too."""
    shift = 6 if about.st_uid == uid else 3 if about.st_gid == gid else 0
    return about.st_mode >> shift & wanted == wanted
