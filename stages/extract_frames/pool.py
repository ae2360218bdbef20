"""Worker processes, one a core: what one video does to its worker is an error of that video alone.

pebble's pool gives each task a deadline, kills what passes it, and puts a new process in the place of a dead
one; the pool of the standard library is broken by the first crash. The limit of memory is the kernel's
(RLIMIT_DATA): it counts what a process allocates, heap and stacks, and neither libraries nor mapped files, as
RLIMIT_AS would; past it allocations fail, so that the video fails and the machine does not swap.
"""

import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, TimeoutError, wait
from typing import TypeVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from stages.contract import BadInput

Task, Result = TypeVar("Task"), TypeVar("Result")


class TimeLimit(BadInput):
    """A video took longer than it may."""


class MemoryLimit(BadInput):
    """A video needed more memory than it may."""


class WorkerDied(BadInput):
    """The process that worked on a video ended: a crash inside a decoder."""


def each(
    work: Callable[[Task], Result], tasks: Sequence[Task], workers: int, time_limit: float, memory_limit: int
) -> Iterator[tuple[Task, Result | Exception, float]]:
    """Do `work` on every task: (task, its result or what it raised or died of, seconds), as they end.

    `workers`: 0 for one a core; `time_limit`: seconds a task; `memory_limit`: MiB a process.
    """
    cores = int(os.environ.get("MALMM_CPUS") or len(os.sched_getaffinity(0)))  # a runner may allow fewer than there are
    workers = min(workers or cores, len(tasks))
    if not workers:
        return
    # Not forkserver: a worker must be the stage's own child, to go with it whatever it hangs in.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPool(workers, initializer=_begin, initargs=(memory_limit << 20, os.getpid()), context=context)
    try:
        running = {pool.schedule(_measured, args=(work, task), timeout=time_limit): task for task in tasks}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), *_outcome(future, time_limit, memory_limit)
    finally:
        pool.stop()
        pool.join()


def _outcome(future: ProcessFuture, time_limit: float, memory_limit: int) -> tuple[Result | Exception, float]:
    """What became of a task. Raises what is no fault of the task: a pool that cannot start, a full disk."""
    try:
        outcome, seconds = future.result()
    except TimeoutError:
        return TimeLimit(f"took longer than time_limit: {time_limit:g} s"), time_limit
    except ProcessExpired as death:
        how = (
            f"signal {signal.Signals(-death.exitcode).name}" if death.exitcode < 0 else f"exit status {death.exitcode}"
        )
        return WorkerDied(f"its worker process died ({how})"), 0.0
    if isinstance(outcome, MemoryError):
        return MemoryLimit(f"needs more memory than memory_limit: {memory_limit} MiB"), seconds
    if isinstance(outcome, OSError):
        raise outcome
    return outcome, seconds


def _begin(memory_limit: int, parent: int) -> None:
    """In a fresh worker: its limit, and the signals that are not for it."""
    die_with_parent()
    if os.getppid() != parent:
        sys.exit(1)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, memory_limit))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the stage, which ends the pool


def die_with_parent() -> None:
    """From here on the kernel kills this process when its parent ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _measured(work: Callable[[Task], Result], task: Task) -> tuple[Result | Exception, float]:
    begin = time.monotonic()
    try:
        outcome: Result | Exception = work(task)
    except Exception as error:  # it is the task's outcome, and the seconds are wanted with it
        outcome = error
    return outcome, round(time.monotonic() - begin, 3)
