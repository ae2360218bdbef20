"""The process runner: a stage in its own virtual environment on this machine.

A stage dies with the thread that started it (PR_SET_PDEATHSIG, which the stage asks for itself): that thread stays in
`run` until the stage has ended. One that is still importing when its parent dies ends as soon as it has imported.
"""

import contextlib
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from flows import environments
from flows.runners.output import LAST, Event, error, event_of, lines, log
from flows.runners.settings import Needs
from stages.contract import Request, StageError, TryAgain

ROOT = environments.REPO
TIMED_OUT = TryAgain.exit_code
BROKEN = StageError.exit_code  # the stage itself broke, as when it ends well without a word
OFFLINE = {  # no stage reaches a model hub: what is not on disk is an error that says so
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class ProcessRunner:
    """Runs a stage in its own virtual environment, in a session of its own, with a cleaned environment."""

    needs: Needs = field(default_factory=Needs)
    grace_seconds: float = 15.0

    def run(self, request: Request, on_event: Callable[[Event], None]) -> int:
        python = environments.python(request.stage)
        if not python.exists():
            on_event(error("NoEnvironment", f"{python} does not exist: run `malmm env sync {request.stage}`"))
            return 78
        process = subprocess.Popen(
            [str(python), "-m", f"stages.{request.stage}", "run", "-"],
            cwd=ROOT,
            env=stage_environment() | self.needs.variables(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        said: deque[bytes] = deque(maxlen=40)  # enough for a traceback, whatever a library prints
        pieces = iter(partial(process.stderr.readline, 4096), b"")
        writer = threading.Thread(target=_hand_over, args=(process, request), daemon=True)
        reader = threading.Thread(target=said.extend, args=(pieces,), daemon=True)
        watch = threading.Thread(target=_watch, args=(process,), daemon=True)
        for thread in (writer, reader, watch):
            thread.start()
        finished = False
        deadline = Deadline(self.needs.timeout, lambda: self._end(process, watch))
        try:
            for line in lines(iter(partial(process.stdout.read1, 1 << 16), b"")):
                event = event_of(line)
                finished = finished or event["event"] in LAST
                on_event(event)
            watch.join()
        finally:
            deadline.cancel()
            self._end(process, watch)
            code = process.wait()  # now its number may become another's, and nothing signals it any more
        reader.join(timeout=5)
        if deadline.passed and code != 0:
            on_event(deadline.error())
            return TIMED_OUT
        last_words = b"".join(said).decode(errors="replace").rstrip()
        if not finished:
            on_event(error("Died", died(code, last_words)))
            return code or BROKEN
        if code == BROKEN:
            on_event(log(last_words, "error"))
        return code

    def _end(self, process: subprocess.Popen, watch: threading.Thread) -> None:
        """Whatever happened, the stage and its children are gone afterwards; a second Ctrl-C cuts the grace short."""
        try:
            if watch.is_alive():
                _signal(process, signal.SIGTERM)
                watch.join(self.grace_seconds)
        finally:
            _signal(process, signal.SIGKILL)
            watch.join()


class Deadline:
    """Calls `end`, from another thread, `seconds` from now (None: never), or when `ending_stages` says so."""

    under_way: ClassVar[set["Deadline"]] = set()
    stopping: ClassVar[threading.Event] = threading.Event()  # then a stage that begins all the same is ended at once

    def __init__(self, seconds: float | None, end: Callable[[], None]):
        self.seconds, self.passed, self._end = seconds, False, end
        self._lock, self._cancelled = threading.Lock(), False
        self._timer = threading.Timer(seconds or 0, self._pass)
        self._timer.daemon = True
        self.under_way.add(self)
        if seconds is not None:
            self._timer.start()
        if self.stopping.is_set():
            threading.Thread(target=self.end, daemon=True).start()

    def _pass(self) -> None:
        self.passed = True
        self.end()

    def end(self) -> None:
        with self._lock:
            if not self._cancelled:
                self._end()

    def cancel(self) -> None:
        """Afterwards `end` is not called, nor is it still under way."""
        self.under_way.discard(self)
        self._timer.cancel()
        with self._lock:
            self._cancelled = True

    def error(self) -> Event:
        """What is said of a stage that was ended."""
        return timed_out(self.seconds)


def timed_out(seconds: float) -> Event:
    """What is said of a stage that took longer than its settings allow."""
    said = f"no end after {seconds:g} s, which runner.stages.<stage>.timeout allows; it was ended"
    return error("TimedOut", said)


@contextlib.contextmanager
def ending_stages() -> Iterator[None]:
    """For a thread that waits for others, which run stages: what stops it - Ctrl-C, a cancellation - ends them all.

    Else the stages would run on to their ends, and the others, and so this process, with them."""
    Deadline.stopping.clear()
    try:
        yield
    except Exception:
        raise
    except BaseException:
        Deadline.stopping.set()
        for deadline in list(Deadline.under_way):
            threading.Thread(target=deadline.end, daemon=True).start()
        raise


def stage_environment() -> dict[str, str]:
    """The variables a stage runs with: nothing of the orchestrator's Python or of Prefect leaks in."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "PREFECT_", "VIRTUAL_ENV", "CONDA_"))
    }
    return kept | OFFLINE | {"PYTHONPATH": str(ROOT), "MALMM_PARENT": str(os.getpid())}


def code_of(status: int) -> int:
    """The exit code of a container as the process runner gives it: of a stage that a signal killed, that signal's
    number, negative. 130 is a stage's own: it stopped when it was asked to."""
    return 128 - status if status != 130 and status - 128 in set(signal.Signals) else status


def died(code: int, last_words: str) -> str:
    """The cause that is told of a stage that gave none itself."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"the stage {how} without a last word{': ' if last_words else ''}{last_words[-2000:]}"


def _hand_over(process: subprocess.Popen, request: Request) -> None:
    """In a thread of its own: a stage may fill its output before it reads."""
    with contextlib.suppress(BrokenPipeError), process.stdin:  # it died before it read: its last words tell
        process.stdin.write(request.model_dump_json().encode())


def _watch(process: subprocess.Popen) -> None:
    """When the stage ends, what it started ends: a grandchild may hold its pipes open.

    The stage is left unreaped, so that until all is done its number is no other process's."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    _signal(process, signal.SIGKILL)


def _signal(process: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
