"""What one task does to its worker is that task's error, and the others go on."""

import ctypes
import os
import time

import pytest

from stages.contract import BadInput
from stages.extract_frames.pool import MemoryLimit, TimeLimit, WorkerDied, each


def work(task: str) -> str:
    if task == "crash":
        ctypes.string_at(0)
    elif task == "exit":
        os._exit(3)
    elif task == "hang":
        time.sleep(600)
    elif task == "devour":
        return len(bytearray(2 << 30))
    elif task == "raise":
        raise BadInput("nothing in it")
    elif task == "full":
        raise OSError(28, "No space left on device")
    return task.upper()


def test_each_task_has_its_own_end():
    tasks = ["a", "crash", "hang", "devour", "exit", "raise", *"bcdef"]
    begin = time.monotonic()
    found = {task: (outcome, seconds) for task, outcome, seconds in each(work, tasks, 2, 3.0, 1024)}
    assert {task: outcome for task, (outcome, _) in found.items() if len(task) == 1} == {t: t.upper() for t in "abcdef"}
    ends = {task: (type(outcome), str(outcome)) for task, (outcome, _) in found.items() if len(task) > 1}
    assert ends == {
        "crash": (WorkerDied, "its worker process died (signal SIGSEGV)"),
        "exit": (WorkerDied, "its worker process died (exit status 3)"),
        "hang": (TimeLimit, "took longer than time_limit: 3 s"),
        "devour": (MemoryLimit, "needs more memory than memory_limit: 1024 MiB"),
        "raise": (BadInput, "nothing in it"),
    }
    assert found["hang"][1] == 3.0 and time.monotonic() - begin < 120


def test_a_full_disk_is_no_fault_of_the_task():
    with pytest.raises(OSError, match="No space left"):
        list(each(work, ["a", "full"], 1, 60, 1024))


def test_no_task_needs_no_worker():
    assert list(each(work, [], 4, 60, 1024)) == []
