"""Events: one JSON object a line for a program, a progress bar for a person."""

import json
import os
import time
from typing import IO, Any

from tqdm import tqdm

from storage import Artifact


class Events:
    """Writes events to `out`. On a terminal they become a progress bar with rate and time left."""

    def __init__(self, out: IO[str], least_seconds: float = 0.2):
        self._out, self._least = out, least_seconds
        self._bar: tqdm | None = None
        self._person = out.isatty()
        self._last = 0.0

    def progress(self, done: int, total: int, unit: str = "items") -> None:
        """`done` of `total`; said at most five times a second, and always at the end."""
        now = time.monotonic()
        if done < total and now - self._last < self._least:
            return
        self._last = now
        if not self._person:
            self._say("progress", done=done, total=total, unit=unit)
            return
        if self._bar is None or self._bar.total != total or self._bar.unit != f" {unit}":
            self.close()
            self._bar = tqdm(total=total, initial=done, unit=f" {unit}", file=self._out, dynamic_ncols=True)
        self._bar.update(done - self._bar.n)

    def metric(self, name: str, value: float, **more: Any) -> None:
        if self._person and self._bar is not None:
            self._bar.set_postfix({name: f"{value:.4g}"}, refresh=False)
        else:
            self._say("metric", name=name, value=value, **more)

    def log(self, message: str, level: str = "info") -> None:
        self._say("log", level=level, message=message)

    def item_failed(self, id: str, error: BaseException) -> None:
        self._say("item_failed", id=id, error=type(error).__name__, message=str(error))

    def done(self, artifact: Artifact, reused: bool) -> None:
        self._say(
            "done",
            kind=artifact.kind,
            key=artifact.key,
            reused=reused,
            counts=artifact.manifest["counts"],
            url=f"{artifact.store.url}/{artifact.folder}",
        )

    def part_done(self, number: int, of: int, counts: dict[str, int]) -> None:
        self._say("part_done", number=number, of=of, counts=counts)

    def error(self, error: str, message: str) -> None:
        self._say("error", error=error, message=message)

    def hand_over(self) -> None:
        """Let processes that are started from now on write where events go: there is their standard output."""
        os.dup2(self._out.fileno(), 1)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _say(self, event: str, **fields: Any) -> None:
        if not self._person:
            self._out.write(json.dumps({"event": event, **fields}, ensure_ascii=False) + "\n")
            self._out.flush()
            return
        text = fields.get("message") or " ".join(f"{name}={value}" for name, value in fields.items())
        tqdm.write(f"{fields.get('error') or event}: {text}" if event != "log" else text, file=self._out)
