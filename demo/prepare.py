"""Puts the demo's data where a user would put VisDial's: annotations as JSON, images by their VisDial names.

    python -m demo.prepare PACKAGES DESTINATION

PACKAGES is the folder that envs/demo/requirements.txt was installed into. Images are copied byte for byte,
never encoded again.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from demo.build import Photograph, build, read_dialogues
from demo.files import BadPackage, Packaged, keep, keep_made, read


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
        keep(target, lambda photograph=photograph: read_photograph(photograph, packages), photograph.sha256)
    for name, content in build(dialogues).items():
        keep_made(annotations / name, content)
    return DemoData(
        images,
        annotations / "dialogues_train.json",
        annotations / "dialogues_val.json",
        annotations / "dense_annotations_val.json",
    )


def read_photograph(photograph: Photograph, packages: Path) -> bytes:
    """The file's bytes out of ``packages``. Raises BadPackage."""
    return read(Packaged(photograph.file, photograph.package, photograph.sha256), packages)


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
