"""
Stage processes without the seconds that each takes to import torch and transformers: a server imports once and forks.
What runs is the stage's own command in a process of its own, which can be killed like any other.
"""

import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

from tests.stage_command import Outcome

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["stages.finetune.run", "transformers.models.llama.modeling_llama", "transformers.generation", "bitsandbytes"]
)


def _stage(request: str, events: str) -> None:
    from stages.contract import main
    from stages.finetune.config import FinetuneConfig
    from stages.finetune.run import run

    os.dup2(os.open(events, os.O_WRONLY | os.O_CREAT), 1)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    main(FinetuneConfig, run, ["run", request])


class StageProcess:
    """`python -m stages.finetune run REQUEST`, started at once; its events are in a file."""

    def __init__(self, request: dict[str, Any], folder: Path):
        number = len(list(folder.glob("request-*")))
        request_file, self.events_file = folder / f"request-{number}.json", folder / f"events-{number}.jsonl"
        request_file.write_text(json.dumps(request))
        self.process = _context.Process(target=_stage, args=(str(request_file), str(self.events_file)))
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
        self.process.join(300)
        assert self.process.exitcode is not None, "the stage did not end"
        return Outcome(self.process.exitcode, self.events(), "")
