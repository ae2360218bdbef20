"""The process runner: a stage in its own virtual environment on this machine."""

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flows import environments
from flows.runners.settings import Needs
from stages.contract import Request

Event = dict[str, Any]
ROOT = environments.REPO
TIMED_OUT = 75  # it may pass later


@dataclass(frozen=True)
class ProcessRunner:
    """Runs a stage in its own virtual environment, in a session of its own, with a cleaned environment."""

    needs: Needs = field(default_factory=Needs)
    grace_seconds: float = 15.0

    def run(self, request: Request, on_event: Callable[[Event], None]) -> int:
        python = environments.python(request.stage)
        if not python.exists():
            on_event(
                {
                    "event": "error",
                    "error": "NoEnvironment",
                    "message": f"{python} does not exist: run `malmm env sync {request.stage}`",
                }
            )
            return 78
        process = subprocess.Popen(
            [str(python), "-m", f"stages.{request.stage}", "run", "-"],
            cwd=ROOT,
            env=stage_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        said: deque[str] = deque(maxlen=40)  # enough for a traceback, whatever a library prints
        reader = threading.Thread(target=said.extend, args=(process.stderr,), daemon=True)
        reader.start()
        # A grandchild may hold the pipe open: what the stage started ends when the stage does.
        threading.Thread(target=_reap, args=(process,), daemon=True).start()
        finished = False
        deadline = Deadline(self.needs.timeout, lambda: self._end(process))
        try:
            _hand_over(process, request)
            for line in process.stdout:
                event = _parse(line)
                finished = finished or event["event"] in ("done", "error", "part_done")
                on_event(event)
            code = process.wait()
        finally:
            deadline.cancel()
            self._end(process)
        reader.join(timeout=5)
        if deadline.passed:
            on_event(deadline.error())
            return TIMED_OUT
        if not finished:
            on_event({"event": "error", "error": "Died", "message": _cause(code, said)})
        elif code == 70:
            on_event({"event": "log", "level": "error", "message": "".join(said).rstrip()})
        return code

    def _end(self, process: subprocess.Popen) -> None:
        """Whatever happened, the stage and its children are gone afterwards."""
        if process.poll() is None:
            _signal(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self.grace_seconds)
        _signal(process, signal.SIGKILL)
        process.wait()


class Deadline:
    """Calls `end` once, `seconds` from now, unless it is cancelled before; None: never."""

    def __init__(self, seconds: float | None, end: Callable[[], None]):
        self.seconds, self.passed, self._end = seconds, False, end
        self._timer = threading.Timer(seconds, self._pass) if seconds is not None else None
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()

    def _pass(self) -> None:
        self.passed = True
        self._end()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def error(self) -> Event:
        """What is said of a stage that was ended."""
        return {
            "event": "error",
            "error": "TimedOut",
            "message": f"no end after {self.seconds:g} s, which runner.stages.<stage>.timeout allows; it was ended",
        }


def stage_environment() -> dict[str, str]:
    """The variables a stage runs with: nothing of the orchestrator's Python or of Prefect leaks in."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "PREFECT_", "VIRTUAL_ENV", "CONDA_"))
    }
    # No stage reaches a model hub: what is not on disk is an error that says so.
    return kept | {
        "PYTHONPATH": str(ROOT),
        "MALMM_PARENT": str(os.getpid()),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _hand_over(process: subprocess.Popen, request: Request) -> None:
    try:
        process.stdin.write(request.model_dump_json())
        process.stdin.close()
    except BrokenPipeError:
        pass  # it died before it read: its exit code and last words tell


def _parse(line: str) -> Event:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    return (
        event
        if isinstance(event, dict) and "event" in event
        else {"event": "log", "level": "info", "message": line.rstrip()}
    )


def _cause(code: int, said: deque[str]) -> str:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"the stage {how} without a last word{': ' if said else ''}{''.join(said)[-2000:].rstrip()}"


def _reap(process: subprocess.Popen) -> None:
    process.wait()
    _signal(process, signal.SIGKILL)


def _signal(process: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
