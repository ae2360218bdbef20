"""What a stage prints, as events: line by line as it comes, in bounded memory."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

Event = dict[str, Any]
LAST = ("done", "part_done", "error")  # a stage's last word is one of them
LONGEST = 1 << 18  # bytes of a line; an event has some hundred


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """The lines of a stream, each with its newline, whatever pieces the stream comes in.

    Of a line of more than LONGEST bytes its beginning and a mark: what a library prints must not cost memory."""
    line = b""
    for chunk in chunks:
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            yield _text(line + end) + "\n"
            line = b""
        if len(line) <= LONGEST:
            line = (line + rest)[: LONGEST + 1]
    if line:
        yield _text(line)


def event_of(line: str) -> Event:
    """The event that a line is; a line that is none becomes the event of a log."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    if isinstance(event, dict) and isinstance(event.get("event"), str):
        return event
    return log(line.rstrip())


def log(message: str, level: str = "info") -> Event:
    """An event of a log."""
    return {"event": "log", "level": level, "message": message}


def error(name: str, message: str) -> Event:
    """The event of an error."""
    return {"event": "error", "error": name, "message": message}


def _text(line: bytes) -> str:
    return line[:LONGEST].decode(errors="replace") + (" ... (cut)" if len(line) > LONGEST else "")
