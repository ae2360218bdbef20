"""What the adapters make of an annotation file: items, each one record of the file with its samples. Pure."""

import posixpath
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from stages.errors import BadInput


class Wanted(NamedTuple):
    """A file to look for below a media root: its kind (image | video), and names that are tried in turn."""

    kind: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One thing to answer about a video or an image; the columns of SAMPLES that its record decides."""

    id: str
    task: str
    question: str
    answer: str | None = None
    start: float | None = None
    end: float | None = None
    category: str | None = None
    caption: str | None = None
    candidates: tuple[str, ...] | None = None
    gt_index: int | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One record: a row of the ledger ("<split>/<the record's own id>"), one file, one sample or several."""

    id: str
    wanted: Wanted
    samples: tuple[Sample, ...]
    frame_length: int | None = None  # frames of the whole video, as the annotations claim


@dataclass
class Found:
    """One annotation file, read: its items in order, what was left out and why, and what could not be read."""

    items: list[Any] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # id -> reason
    broken: dict[str, str] = field(default_factory=dict)  # id -> what is wrong with it
    oddities: Counter = field(default_factory=Counter)
    answers: list[str] = field(default_factory=list)  # VisDial: the pool that its candidates index


class LeftOut(Exception):
    """Raised by an adapter for a record that the official code leaves out too; the message is the reason."""


def parse(data: bytes, name: str) -> Any:
    """JSON of an annotation file. Raises BadInput naming the file."""
    try:
        return orjson.loads(data)
    except ValueError as error:
        raise BadInput(f"{name} is not JSON ({error}): fetch or unpack it again") from None


def by_id(data: Any, name: str, example: str) -> dict[str, Any]:
    """The records of a file that is a mapping of ids to records, as all of MA-LMM's are. Raises BadInput."""
    if not isinstance(data, dict) or not data:
        raise BadInput(f"{name} is no mapping of ids to records; MA-LMM's annotation files look like {example}")
    return data


def collect(records: Iterable[tuple[str, Any]], split: str, build: Callable[[str, str, Any], Item]) -> Found:
    """`build(item id, record's id, record)` for every record; one that cannot be read is listed, the others go on."""
    found = Found()
    seen: set[str] = set()
    for key, raw in records:
        id = f"{split}/{key}"
        try:
            if not isinstance(raw, dict):
                raise ValueError(f"the record is no mapping of fields to values: {raw!r}"[:200])
            if id in seen:
                raise ValueError("another record has the same id")
            item = build(id, key, raw)
        except LeftOut as reason:
            found.skipped[id] = str(reason)
        except (LookupError, TypeError, ValueError) as error:
            found.broken[id] = str(error)
        else:
            found.items.append(item)
            found.oddities["records whose answer is not told"] += sum(s.answer is None for s in item.samples)
        seen.add(id)
    return found


def text(raw: dict[str, Any], name: str) -> str:
    """A field that must be a text and say something. Raises ValueError."""
    value = raw.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be a text; {_given(raw, name)}")
    return value


def number(raw: dict[str, Any], name: str, whole: bool = False) -> float:
    """A field that must be a number from 0 on. Raises ValueError."""
    value = raw.get(name)
    if not isinstance(value, int if whole else int | float) or isinstance(value, bool) or not 0 <= value < 1e9:
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number from 0 on; {_given(raw, name)}")
    return value


def video_name(raw: dict[str, Any], name: str) -> str:
    """A field that names a video; never a path. Raises ValueError."""
    value = text(raw, name)
    if value != posixpath.basename(value) or value in (".", ".."):
        raise ValueError(f"{name} {value!r} is no name of a video")
    return value


def _given(raw: dict[str, Any], name: str) -> str:
    return f"it is {raw[name]!r}"[:200] if name in raw else "there is none"
