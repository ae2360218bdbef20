"""The container runner on a real engine: what a stage may and may not, how it ends, and that nothing is left."""

import os
import subprocess
import sys
import time

import pytest

from flows import images
from flows.runners import ROOT
from flows.runners.reaper import owner, reap
from tests.containers.conftest import STAGE

LOOK_AROUND = """
import socket
def tried(what):
    try: return what() or "done"
    except OSError as error: return error.strerror
log(uid=os.getuid(), home=os.environ["HOME"], offline=os.environ["HF_HUB_OFFLINE"],
    capabilities=[l for l in open("/proc/self/status") if l.startswith(("CapEff", "NoNewPrivs"))],
    picture=open(request["config"]["images"] + "/one.jpg").read(),
    interfaces=[name for _, name in socket.if_nameindex()],
    store=tried(lambda: open(request["store"] + "/made", "w").close()),
    tmp=tried(lambda: open("/tmp/x", "w").close()),
    media=tried(lambda: open(request["config"]["images"] + "/two.jpg", "w").close()),
    root=tried(lambda: open("/app", "w").close()))
print("no event", flush=True)
print("last words", file=sys.stderr)
sys.exit(70)
"""


def test_a_stage_reads_its_inputs_writes_its_store_and_reaches_nothing_else(containers):
    assert containers.run(LOOK_AROUND) == 70
    image, seen, plain, died = containers.events
    assert image["message"].startswith("image ") and "sha256:" in image["message"]
    assert seen["uid"] == (os.getuid() or 10001) and seen["home"] == "/tmp" and seen["offline"] == "1"
    assert seen["capabilities"] == ["CapEff:\t0000000000000000\n", "NoNewPrivs:\t1\n"]
    assert seen["picture"] == "a picture" and seen["interfaces"] == ["lo"]
    assert seen["store"] == seen["tmp"] == "done"
    assert seen["media"] == seen["root"] == "Read-only file system"
    assert plain["message"] == "no event"
    assert died["message"] == "the stage ended with exit code 70 without a last word: last words"
    assert (containers.store / "made").stat().st_uid == seen["uid"]
    assert not containers.left()


def test_events_come_as_they_happen_and_the_exit_code_is_the_stage_s(containers):
    def hear(event):
        containers.events.append(event)
        if event["message"] == "one":
            (containers.store / "heard").touch()

    code = containers.run(
        """
log(message="one")
while not os.path.exists(request["store"] + "/heard"): time.sleep(0.01)
log(message="two")
print(json.dumps({"event": "error", "error": "BadInput", "message": "a.json"}))
print("x" * 3_000_000, file=sys.stderr)
sys.exit(65)
""",
        on_event=hear,
        timeout=120,
    )
    assert code == 65 and [event["message"] for event in containers.events[1:]] == ["one", "two", "a.json"]


def test_more_memory_than_allowed_is_named_with_its_remedy(containers):
    assert containers.run("held = bytearray(400 << 20)", memory_gib=0.06) == -9
    assert "it took more memory than the 0.06 GiB that runner.stages.ingest.memory_gib allows" in containers.said
    assert not containers.left()


def test_a_stage_that_hangs_is_ended_and_may_be_tried_again(containers):
    assert containers.run("time.sleep(100000)", timeout=1) == 75
    assert containers.events[-1]["error"] == "TimedOut" and not containers.left()


def test_a_container_killed_from_outside_was_killed(containers):
    def kill(event):
        containers.events.append(event)
        if event["message"] == "ready":
            containers.client.api.kill(containers.left()[0]["Id"])

    assert containers.run("log(message='ready'); time.sleep(100)", on_event=kill) == -9
    assert "killed by SIGKILL" in containers.said and not containers.left()


def test_a_callback_that_breaks_leaves_no_container(containers):
    def broken(event):
        if event["message"] == "ready":
            raise ValueError("no server")

    with pytest.raises(ValueError, match="no server"):
        containers.run("log(message='ready'); time.sleep(100)", on_event=broken)
    assert not containers.left()


def test_an_image_that_is_not_there_is_a_wrong_config_and_is_not_fetched(containers):
    assert containers.run("", image="registry.invalid/none@sha256:" + "0" * 64) == 78
    assert "no image registry.invalid/none" in containers.said and "malmm images build ingest" in containers.said


def test_images_are_built_where_the_runner_finds_them(containers, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", containers.url)
    subprocess.run([images.usual(), "image", "inspect", STAGE], check=True, stdout=subprocess.DEVNULL)


def test_an_orchestrator_that_is_killed_leaves_no_container(containers):
    request = containers.request("log(message='ready'); time.sleep(100)")
    program = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from flows.runners.container import ContainerRunner
from flows.runners.settings import ContainerSettings
from stages.contract import Request
settings = ContainerSettings(socket={containers.url!r}, images={{"ingest": "localhost/malmm-test-stage"}})
request = Request.model_validate_json({request.model_dump_json()!r})
ContainerRunner(settings).run(request, lambda event: print(event, flush=True))
"""
    orchestrator = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert any("ready" in line for line in orchestrator.stdout)
    assert len(containers.left()) == 1
    orchestrator.kill()
    orchestrator.wait()
    until = time.monotonic() + 120
    while containers.left() and time.monotonic() < until:
        time.sleep(0.1)
    assert not containers.left()


def test_containers_whose_owners_are_gone_are_found_by_label(containers):
    ours = owner()
    labels = {"alive": ours, "gone": ours.rsplit("/", 1)[0] + "/1", "elsewhere": "another-host/1/1"}
    made = {
        name: containers.client.containers.create("localhost/malmm-test-stage", labels={"malmm.owner": label})
        for name, label in labels.items()
    }
    try:
        assert reap(containers.client) == [made["gone"].name]
        assert {found["Id"] for found in containers.left()} == {made["alive"].id, made["elsewhere"].id}
    finally:
        for name in ("alive", "elsewhere"):
            made[name].remove(force=True)
