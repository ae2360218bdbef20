"""One writer at a time, between processes: no two hold a lock, the dead hold none, and nothing stays behind."""

import multiprocessing
import threading
from pathlib import Path

import pytest

from storage import Store
from storage.locks import alone

FORK = multiprocessing.get_context("fork")


def count_up(store: Path, times: int) -> None:
    """Read, and write one more: two at once would lose one."""
    counter = store / "counter"
    for _ in range(times):
        with alone(Store(store), "artifacts/samples/1", lambda: None):
            counter.write_text(str(int(counter.read_text()) + 1))


def hold(store: Path, begun) -> None:
    with alone(Store(store), "artifacts/samples/1", lambda: None):
        begun.set()
        threading.Event().wait()


def test_no_two_processes_hold_it_at_once(tmp_path):
    (tmp_path / "counter").write_text("0")
    counting = [FORK.Process(target=count_up, args=(tmp_path, 100)) for _ in range(4)]
    for process in counting:
        process.start()
    for process in counting:
        process.join()
    assert (tmp_path / "counter").read_text() == "400"
    assert not list((tmp_path / "artifacts" / "samples").iterdir())


def test_who_waits_is_told_and_a_killed_holder_holds_nothing(tmp_path):
    begun = FORK.Event()
    holder = FORK.Process(target=hold, args=(tmp_path, begun))
    holder.start()
    assert begun.wait(600)
    told = []

    def waiting():
        told.append(True)
        holder.kill()

    with alone(Store(tmp_path), "artifacts/samples/1", waiting), alone(Store(tmp_path), "artifacts/samples/2", waiting):
        assert told == [True]
    holder.join()


def test_what_a_killed_holder_leaves_is_open_to_every_user(tmp_path):
    begun = FORK.Event()
    holder = FORK.Process(target=hold, args=(tmp_path, begun))
    holder.start()
    assert begun.wait(600)
    holder.kill()
    holder.join()
    (left,) = (tmp_path / "artifacts" / "samples").iterdir()
    assert left.stat().st_mode & 0o777 == 0o666


def test_an_error_inside_lets_it_go_and_a_store_without_locks_has_none(tmp_path):
    for store in (Store(tmp_path), Store("memory://locks")):
        with pytest.raises(ValueError, match="inside"), alone(store, "artifacts/samples/1", lambda: None):
            raise ValueError("inside")
        with alone(store, "artifacts/samples/1", lambda: pytest.fail("somebody has it")):
            pass
        assert not store.list("artifacts/samples")
