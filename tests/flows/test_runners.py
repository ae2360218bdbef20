"""The process runner: events as they come, exit codes as they are, no process left whatever happens."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows import environments
from flows.runners import ROOT, ProcessRunner, ending_stages, stage_environment
from flows.runners.settings import Needs
from stages.contract import Request

REQUEST = Request(stage="ingest", config={}, store="memory://runner")
RUN = """
import sys
from flows.runners import ProcessRunner
from stages.contract import Request
ProcessRunner().run(Request.model_validate_json(sys.argv[1]), print)
"""

UNTIL_IT_HAS_BEGUN = (0.5, 2.0, 8.0, 32.0)  # seconds: a busy machine is slow to start a program
PATIENCE = 120  # seconds; what should end by being told to would sleep for longer


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a small program in the place of a stage's interpreter, to see what the runner makes of it."""
    monkeypatch.setenv("MALMM_ENVS", str(tmp_path))
    place = tmp_path / "ingest" / "bin"
    place.mkdir(parents=True)

    def write(body: str) -> None:
        script = place / "python"
        script.write_text(
            f"#!{sys.executable}\nimport json, os, signal, subprocess, sys, time\n" + textwrap.dedent(body)
        )
        script.chmod(0o755)

    return write


def run(events: list) -> int:
    return ProcessRunner().run(REQUEST, events.append)


def test_events_and_exit_code_pass_through_and_the_request_goes_in(program):
    program("""
        request = json.loads(sys.stdin.read())
        print(json.dumps({"event": "log", "message": request["stage"] + " " + " ".join(sys.argv[1:])}))
        print("not an event")
        print(json.dumps({"event": "error", "error": "BadInput", "message": "a.json"}))
        sys.exit(65)
    """)
    events: list = []
    assert run(events) == 65
    assert events[0]["message"] == "ingest -m stages.ingest run -"
    assert events[1] == {"event": "log", "level": "info", "message": "not an event"}
    assert events[2]["error"] == "BadInput" and len(events) == 3


def test_a_flood_on_standard_error_does_not_block_and_its_end_is_told(program):
    program("""
        for n in range(200000): print("line", n, file=sys.stderr)
        os.kill(os.getpid(), 9)
    """)
    events: list = []
    assert run(events) == -9
    assert "killed by SIGKILL" in events[-1]["message"] and "line 199999" in events[-1]["message"]


def test_a_line_without_an_end_costs_no_memory_and_is_cut(program):
    program("""
        for _ in range(256): sys.stdout.write("x" * (1 << 20))
        print()
        print(json.dumps({"event": "done"}))
    """)
    events: list = []
    tracemalloc.start()
    assert run(events) == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20 and events[0]["message"].endswith("x ... (cut)") and events[1] == {"event": "done"}


@pytest.mark.timeout(300)
def test_a_stage_that_talks_before_it_reads_a_large_request_does_not_block(program):
    program("""
        for n in range(20000): print(json.dumps({"event": "log", "message": n}))
        sys.stdout.flush()
        print(json.dumps({"event": "done", "items": len(json.loads(sys.stdin.read())["only"])}))
    """)
    events: list = []
    request = REQUEST.model_copy(update={"only": tuple(f"{n:0100}" for n in range(10000))})
    assert ProcessRunner().run(request, events.append) == 0
    assert len(events) == 20001 and events[-1]["items"] == 10000


def test_a_stage_that_hangs_and_does_not_listen_is_killed_after_its_timeout_and_the_grace(program):
    program("""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(json.dumps({"event": "log", "message": str(os.getpid())}), flush=True)
        time.sleep(600)
    """)
    for timeout in UNTIL_IT_HAS_BEGUN:
        events: list = []
        assert ProcessRunner(Needs(timeout=timeout), grace_seconds=0.3).run(REQUEST, events.append) == 75
        assert events[-1]["error"] == "TimedOut" and f"{timeout:g} s" in events[-1]["message"]
        if len(events) == 2:  # its number, and the error
            break
    assert _gone(int(events[0]["message"]))


def test_a_stage_that_has_ended_keeps_its_number_until_nothing_signals_it_and_its_code_whatever_the_clock(program):
    """Its events may be told long after it ended: a signal then must not reach another process of that number."""
    program("""print(json.dumps({"event": "done", "pid": os.getpid()}))""")

    def slow(event):
        time.sleep(timeout + 0.2)  # past its timeout too
        states.append((event["pid"], Path(f"/proc/{event['pid']}/stat").read_text().rsplit(")", 1)[1].split()[0]))

    for timeout in UNTIL_IT_HAS_BEGUN:
        states: list = []
        code = ProcessRunner(Needs(timeout=timeout)).run(REQUEST, lambda event: slow(event) if "pid" in event else None)
        if code != 75:
            break
    assert code == 0
    ((pid, state),) = states
    assert state == "Z" and not Path(f"/proc/{pid}").exists()


def test_a_stage_that_leaves_children_leaves_none(program, tmp_path):
    program(f"""
        child = subprocess.Popen(["sleep", "600"])
        open({str(tmp_path / "child")!r}, "w").write(str(child.pid))
        print(json.dumps({{"event": "done"}}))
    """)
    assert run([]) == 0
    assert _gone(int((tmp_path / "child").read_text()))


def test_an_exception_in_the_callback_ends_the_stage(program):
    program("""
        print(json.dumps({"event": "log", "message": str(os.getpid())}), flush=True)
        time.sleep(600)
    """)
    seen = []

    def stop(event):
        seen.append(int(event["message"]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ProcessRunner().run(REQUEST, stop)
    assert _gone(seen[0])


def test_nothing_of_the_orchestrator_leaks_into_a_stage(monkeypatch):
    for name in ("PYTHONSTARTUP", "PREFECT_API_URL", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "x")
    environment = stage_environment()
    assert not {"PYTHONSTARTUP", "PREFECT_API_URL", "VIRTUAL_ENV"} & set(environment)
    assert environment["PYTHONPATH"] == str(ROOT) and environment["HF_HUB_OFFLINE"] == "1"


def test_a_missing_environment_is_a_wrong_config_with_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("MALMM_ENVS", str(tmp_path / "none"))
    events: list = []
    assert run(events) == 78 and "malmm env sync ingest" in events[0]["message"]


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_stage_dies_with_its_orchestrator(tmp_path):
    """The parent is killed -9 while the stage hashes a huge (sparse) file and says nothing."""
    huge = tmp_path / "huge.json"
    huge.touch()
    os.truncate(huge, 200 << 30)
    (tmp_path / "images").mkdir()
    request = {
        "stage": "ingest",
        "store": str(tmp_path / "store"),
        "config": {"annotations": {"val": str(huge)}, "images": str(tmp_path / "images")},
    }
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            RUN,
            json.dumps(request),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        child = _wait_for(lambda: _children(parent.pid, "stages.ingest"))[0]
        _wait_for(lambda: _reads(child, huge))
    finally:
        parent.kill()
        parent.wait()
    assert _gone(child)


def test_a_stage_whose_parent_died_while_it_was_starting_does_nothing():
    started = subprocess.run(
        [str(environments.python("ingest")), "-m", "stages.ingest", "run", "-"],
        env=stage_environment() | {"MALMM_PARENT": "1"},
        cwd=ROOT,
        input="{}",
        text=True,
        capture_output=True,
    )
    assert started.returncode == 75 and not started.stdout


def test_a_signal_is_passed_on_and_a_second_one_does_not_wait(program, tmp_path):
    program(f"""
        signal.signal(signal.SIGTERM, lambda *_: open({str(tmp_path / "told")!r}, "w").close())
        open({str(tmp_path / "begun.new")!r}, "w").write(str(os.getpid()))
        os.rename({str(tmp_path / "begun.new")!r}, {str(tmp_path / "begun")!r})
        while True: time.sleep(600)
    """)
    parent = subprocess.Popen(
        [sys.executable, "-c", RUN, REQUEST.model_dump_json()],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
    )
    try:
        _wait_for((tmp_path / "begun").exists)
        parent.send_signal(signal.SIGINT)
        _wait_for((tmp_path / "told").exists)
        assert parent.poll() is None
        parent.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in parent.communicate(timeout=PATIENCE)[1]
    finally:
        parent.kill()
    assert _gone(int((tmp_path / "begun").read_text()))


def test_what_stops_a_thread_ends_the_stages_of_those_that_it_waits_for(program):
    """As Ctrl-C while parts run in threads; also a part that a thread begins after that."""
    program("""
        print(json.dumps({"event": "log", "message": str(os.getpid())}), flush=True)
        time.sleep(600)
    """)
    said: list = []
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(ProcessRunner().run, REQUEST, said.append) for _ in range(3)]
        with pytest.raises(KeyboardInterrupt), ending_stages():
            _wait_for(lambda: len(said) == 2)
            raise KeyboardInterrupt
        assert [future.result(timeout=PATIENCE) for future in futures] == [-signal.SIGTERM] * 3
    with ending_stages():  # stages begin again
        pass
    assert all(_gone(int(event["message"])) for event in said if event["event"] == "log")


def _children(pid: int, named: str) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if named in line]


def _reads(pid: int, path: Path) -> bool:
    try:
        return any(os.readlink(f"/proc/{pid}/fd/{fd}") == str(path) for fd in os.listdir(f"/proc/{pid}/fd"))
    except FileNotFoundError:
        return False


def _wait_for(look):
    end = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def _gone(pid: int) -> bool:
    """Whether a process ends (a zombie has ended) long before it would of itself."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return False
