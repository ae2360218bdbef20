"""Stages that end badly, through Prefect: what may pass is tried again, the cause is told, nothing runs on."""

from tests.containers.conftest import _podman
from tests.faults.conftest import alive

STAGES = ("ingest", "embed_imagebind")
KILLED = "os.kill(os.getpid(), 9)"


def test_a_stage_is_killed_once(laptop, pretend, at_once):
    pretend.behave("embed_imagebind", f"if attempt == 1: {KILLED}")
    run = laptop.run(pretend.config, STAGES)
    assert laptop.state(run)[0] == "Completed"
    assert laptop.tasks(run)["embed_imagebind"].run_count == 2
    assert [pretend.tries(stage) for stage in STAGES] == [1, 2]


def test_a_stage_is_killed_every_time(laptop, pretend, at_once):
    pretend.behave("embed_imagebind", KILLED)
    run = laptop.run(pretend.config, STAGES, "retries=1")
    name, message = laptop.state(run)
    assert name == "Failed" and "embed_imagebind: Died: the stage was killed by SIGKILL" in message
    task = laptop.tasks(run)["embed_imagebind"]
    assert (task.state.name, task.run_count) == ("Failed", 2) and "SIGKILL" in task.state.message
    assert pretend.tries("embed_imagebind") == 2


def test_a_stage_hangs(laptop, pretend):
    pretend.behave("embed_imagebind", "(here / 'pid').write_text(str(os.getpid())); time.sleep(6000)")
    pid = pretend.folder / "envs" / "embed_imagebind" / "bin" / "pid"
    for seconds in (4, 16, 64):  # until it has begun: a busy machine is slow to start a program
        run = laptop.run(pretend.config, STAGES, "retries=0", f"runner.stages.embed_imagebind.timeout={seconds}")
        name, message = laptop.state(run)
        assert name == "Failed" and f"embed_imagebind: TimedOut: no end after {seconds} s" in message
        if pid.exists():
            break
    assert not alive(int(pid.read_text()))


def test_an_image_that_does_not_exist(laptop, pretend, tmp_path_factory):
    with _podman(tmp_path_factory.mktemp("podman")) as url:
        overrides = [f"runner.container.socket={url}", "runner.container.images.ingest=nobody/ever:built"]
        run = laptop.run(pretend.config, STAGES, "runner.kind=container", *overrides)
    name, message = laptop.state(run)
    assert name == "Failed" and "ingest: Unfit: there is no image nobody/ever:built here" in message
    assert laptop.tasks(run)["ingest"].run_count == 1  # waiting makes no image


def test_no_container_engine(laptop, pretend, at_once):
    nowhere = f"unix://{pretend.folder}/nobody.sock"
    run = laptop.run(pretend.config, STAGES, "retries=1", "runner.kind=container", f"runner.container.socket={nowhere}")
    name, message = laptop.state(run)
    assert name == "Failed" and f"ingest: EngineFailed: container engine {nowhere}" in message
    assert laptop.tasks(run)["ingest"].run_count == 2  # the engine may be starting
