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
    for limit in (3.0, 30.0, 300.0):  # a busy machine needs seconds for the others too
        found = {task: (outcome, seconds) for task, outcome, seconds in each(work, tasks, 2, limit, 1024)}
        if sum(isinstance(outcome, TimeLimit) for outcome, _ in found.values()) == 1:
            break
    assert {task: outcome for task, (outcome, _) in found.items() if len(task) == 1} == {t: t.upper() for t in "abcdef"}
    ends = {task: (type(outcome), str(outcome)) for task, (outcome, _) in found.items() if len(task) > 1}
    assert ends == {
        "crash": (WorkerDied, "its worker process died (signal SIGSEGV)"),
        "exit": (WorkerDied, "its worker process died (exit status 3)"),
        "hang": (TimeLimit, f"took longer than time_limit: {limit:g} s"),
        "devour": (MemoryLimit, "needs more memory than memory_limit: 1024 MiB"),
        "raise": (BadInput, "nothing in it"),
    }
    assert found["hang"][1] == limit


def test_a_full_disk_is_no_fault_of_the_task():
    with pytest.raises(OSError, match="No space left"):
        list(each(work, ["a", "full"], 1, 60, 1024))


def test_no_task_needs_no_worker():
    assert list(each(work, [], 4, 60, 1024)) == []
