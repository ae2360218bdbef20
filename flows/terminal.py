"""What a stage says while it runs, for a person: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from flows.runners.output import Event
from flows.table import counted
from storage import Artifact


class Terminal:
    """Takes a stage's events. `cause` is what the stage gave as its reason to fail."""

    LINE_SECONDS = 15.0  # between plain lines
    ITEMS_NAMED = 20  # failed items said one by one; the ledger has them all

    def __init__(self, stage: str):
        self.stage, self.cause = stage, "it said nothing"
        self._bar: tqdm | None = None
        self._person = sys.stderr.isatty()
        self._started = self._last_line = time.monotonic()
        self._failed_items = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close_bar()

    def on_event(self, event: Event) -> None:
        """Show one event of stages.events.Events."""
        match event["event"]:
            case "progress":
                self.progress(event["done"], event["total"], event["unit"])
            case "metric" if self._bar is not None:
                self._bar.set_postfix({event["name"]: f"{event['value']:.4g}"}, refresh=False)
            case "log":
                self.say(event["message"], event.get("level", "info"))
            case "item_failed":
                self._failed_items += 1
                if self._failed_items <= self.ITEMS_NAMED:
                    self.say(f"item {event['id']} failed: {event['error']}: {event['message']}", "warning")
            case "error":
                self.cause = f"{event['error']}: {event['message']}"
                self.say(self.cause, "error")
            case "part_done":
                self._close_bar()
                made = counted(event["counts"]) or "no items"
                self.say(f"part {event['number']} of {event['of']} done: {made}")
            case "done":
                self._close_bar()
                seconds = time.monotonic() - self._started
                made = counted(event["counts"]) or "no items"
                self.say(f"{event['kind']} {event['key'][:12]} made in {seconds:.0f} s: {made}")

    def reused(self, artifact: Artifact) -> None:
        """The artifact was there: nothing ran."""
        self.say(f"{artifact.kind} {artifact.key[:12]} is there, 0 items executed")

    def progress(self, done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        if self._person:
            if self._bar is None or (self._bar.total, self._bar.unit) != (total, f" {unit}"):
                self._close_bar()
                self._bar = tqdm(total=total, initial=done, desc=self.stage, unit=f" {unit}", dynamic_ncols=True)
            self._bar.update(done - self._bar.n)
        elif now - self._last_line > self.LINE_SECONDS:
            self._last_line = now
            self.say(f"{done} of {total} {unit} ({100 * done / max(1, total):.0f}%) after {now - self._started:.0f} s")

    def say(self, message: str, level: str = "info") -> None:
        mark = "" if level == "info" else f"{level}: "
        tqdm.write(f"{self.stage:16s} {mark}{message}", file=sys.stderr)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
