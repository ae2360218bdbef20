"""A user's own questions about videos and images: a JSON list of records. Pure: dicts in, items out."""

import posixpath
from typing import Any

from stages.errors import BadInput
from stages.ingest.records import Found, Item, Sample, Wanted, collect, number, text

FIELDS = ("video", "image", "question", "answer", "start", "end", "caption", "candidates", "task")
TASKS = ("question", "caption")


def read(data: Any, split: str, name: str) -> Found:
    """A sample a record, named by its place in the list. Texts stay as they are written.

    {"video" or "image": file below the media root, "question", "answer"?, "start"? and "end"? (seconds of a video),
    "caption"? (what is told beforehand), "candidates"? (texts; the answer is one of them), "task"? (question or
    caption)}. A caption's question may be left out. Raises BadInput when the file is no list.
    """
    if not isinstance(data, list) or not data:
        raise BadInput(f'{name} is no list of records such as {{"video": "clip.mp4", "question": "what happens?"}}')
    return collect(((str(at), raw) for at, raw in enumerate(data)), split, _item)


def _item(id: str, key: str, raw: dict[str, Any]) -> Item:
    if unknown := sorted(set(raw) - set(FIELDS)):
        raise ValueError(f"no such field: {', '.join(unknown)}; there are {', '.join(FIELDS)}")
    task = raw.get("task", "question")
    if task not in TASKS:
        raise ValueError(f"task {task!r} must be one of {', '.join(TASKS)}")
    if ("video" in raw) == ("image" in raw):
        raise ValueError("give one of video and image")
    kind = "video" if "video" in raw else "image"
    question = text(raw, "question") if task == "question" or "question" in raw else f"what does the {kind} describe?"
    start, end = (number(raw, at) if raw.get(at) is not None else None for at in ("start", "end"))
    if kind == "image" and (start, end) != (None, None):
        raise ValueError("start and end are for videos")
    if end is not None and (start or 0) >= end:
        raise ValueError(f"start {start or 0} must be before end {end}")
    answer, caption = (text(raw, at) if raw.get(at) is not None else None for at in ("answer", "caption"))
    candidates = _candidates(raw, answer)
    gt = candidates.index(answer) if candidates and answer is not None else None
    sample = Sample(id, task, question, answer, start, end, None, caption, candidates, gt)
    return Item(id, Wanted(kind, (_below(raw, kind),)), (sample,))


def _below(raw: dict[str, Any], kind: str) -> str:
    """A file's path below the media root, in one spelling."""
    path = posixpath.normpath(text(raw, kind))
    if path == ".." or path.startswith(("/", "../")):
        raise ValueError(f"{kind} {raw[kind]!r} must be a path below the folder {kind}s:")
    return path


def _candidates(raw: dict[str, Any], answer: str | None) -> tuple[str, ...] | None:
    listed = raw.get("candidates")
    if listed is None:
        return None
    if not isinstance(listed, list) or len(listed) < 2 or not all(isinstance(c, str) and c.strip() for c in listed):
        raise ValueError("candidates must be a list of two texts or more")
    if answer is not None and answer not in listed:
        raise ValueError(f"the answer {answer!r} is none of the candidates")
    return tuple(listed)
