"""Stage processes without the seconds that each takes to import torch: a server imports once and forks.

What runs is the stage's own command in a process of its own, which can be killed like any other.
"""

import importlib
import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

from tests.stage_command import Outcome

_context = multiprocessing.get_context("forkserver")


def preload(*modules: str) -> None:
    """What the server imports before it forks; call it before the first process."""
    _context.set_forkserver_preload(list(modules))


def _stage(stage: str, request: str, events: str) -> None:
    from stages.contract import StageConfig, main

    module = importlib.import_module(f"stages.{stage}.config")
    config = next(
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, StageConfig) and getattr(c, "STAGE", None) == stage
    )
    os.dup2(os.open(events, os.O_WRONLY | os.O_CREAT), 1)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    main(config, importlib.import_module(f"stages.{stage}.run").run, ["run", request])


class StageProcess:
    """`python -m stages.<stage> run REQUEST`, started at once; its events are in a file."""

    def __init__(self, request: dict[str, Any], folder: Path):
        number = len(list(folder.glob("request-*")))
        request_file, self.events_file = folder / f"request-{number}.json", folder / f"events-{number}.jsonl"
        request_file.write_text(json.dumps(request))
        self.process = _context.Process(
            target=_stage, args=(request["stage"], str(request_file), str(self.events_file))
        )
        self.process.start()

    def events(self) -> list[dict[str, Any]]:
        if not self.events_file.exists():
            return []
        lines = self.events_file.read_text().split("\n")[:-1]  # the last may be half a line
        return [json.loads(line) for line in lines]

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def outcome(self) -> Outcome:
        self.process.join(800)
        assert self.process.exitcode is not None, "the stage did not end"
        return Outcome(self.process.exitcode, self.events(), "")
