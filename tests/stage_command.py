"""Runs a stage the way everything runs it: its real command, a request in, events out."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage import Artifact, Store

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Outcome:
    code: int
    events: list[dict[str, Any]]
    stderr: str

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    def artifact(self, store: Path | str) -> Artifact:
        assert self.code == 0, f"exit {self.code}: {self.of('error')} {self.stderr[-2000:]}"
        done = self.of("done")[0]
        return Artifact(Store(store), done["kind"], done["key"])

    @property
    def message(self) -> str:
        return self.of("error")[0]["message"]


def command(stage: str) -> list[str]:
    return [sys.executable, "-m", f"stages.{stage}", "run", "-"]


def run_stage(
    stage: str,
    config: dict[str, Any],
    store: Path,
    inputs: dict[str, str] | None = None,
    timeout: float = 800,
    **more: Any,
) -> Outcome:
    """Run `python -m stages.<stage> run -` in this environment and wait for its end."""
    request = {"stage": stage, "config": config, "inputs": inputs or {}, "store": str(store), **more}
    done = subprocess.run(
        command(stage),
        input=json.dumps(request, default=str),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=timeout,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return Outcome(done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr)
