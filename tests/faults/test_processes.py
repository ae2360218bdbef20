"""Processes that end: the flow's, the worker's with it, the server's; and a run that a user cancels."""

import os
import signal
from collections.abc import Iterator
from datetime import timedelta

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.schemas.automations import AutomationCore

from flows.local import SILENT_SECONDS
from tests.faults.conftest import alive, wait_for

pytestmark = pytest.mark.slow

STAGES = ("ingest", "embed_imagebind")
# The second stage hangs in its first try; it follows its parent, as every stage does (stages.contract.main).
HANGS = """
from stages.contract import _follow_parent
_follow_parent()
(here / "pids").write_text(f"{os.getpid()} {os.getppid()}\\n")
while attempt == 1 and not (here / "go").exists(): time.sleep(0.1)
"""


@pytest.fixture
def hanging(laptop, pretend):
    """A run of the deployment that hangs in its second stage: its id, the pids of the stage and of the flow."""
    pretend.behave("embed_imagebind", HANGS)
    run, pids = laptop.begin(pretend.config), pretend.folder / "envs" / "embed_imagebind" / "bin" / "pids"

    def told() -> str:
        assert not laptop.has_ended(run), laptop.state(run)
        return pids.exists() and pids.read_text().endswith("\n") and pids.read_text()

    stage, flow = map(int, wait_for(told).split())
    return run, stage, flow


def takes_up(laptop, pretend) -> bool:
    """Whether the next run finds what was made, and makes the rest."""
    run = laptop.begin(pretend.config, STAGES)
    assert laptop.end(run)[0] == "Completed"
    tasks = laptop.tasks(run)
    assert [tasks[stage].state.name for stage in STAGES] == ["Cached", "Completed"]
    return [pretend.tries(stage) for stage in STAGES] == [1, 2]


def crashed(laptop, run) -> bool:
    """Whether the run's second task is shown as ended with its flow."""
    return wait_for(lambda: laptop.tasks(run)["embed_imagebind"].state.name == "Crashed")


def test_the_flow_is_killed(laptop, pretend, hanging):
    run, stage, flow = hanging
    os.kill(flow, signal.SIGKILL)
    name, message = laptop.end(run)
    assert name == "Crashed" and "SIGKILL" in message
    assert crashed(laptop, run)
    wait_for(lambda: not alive(stage))
    assert takes_up(laptop, pretend)


def test_a_user_cancels(laptop, pretend, hanging):
    run, stage, flow = hanging
    laptop.cancel(run)
    assert laptop.end(run) == ("Cancelled", "Flow run was cancelled successfully.")
    assert crashed(laptop, run)
    wait_for(lambda: not (alive(stage) or alive(flow)))
    assert takes_up(laptop, pretend)


def test_the_server_is_killed_and_comes_back(laptop, pretend, hanging):
    """The stage ends while there is no server; flow and worker wait for one."""
    run, stage, _ = hanging
    laptop.kill("server")
    (pretend.folder / "envs" / "embed_imagebind" / "bin" / "go").touch()
    wait_for(lambda: not alive(stage))
    laptop.up()
    name, message = laptop.end(run)
    assert name == "Completed" and "features" in message and "report" in message
    assert {task.state.name for task in laptop.tasks(run).values()} == {"Completed"}
    assert [pretend.tries(stage) for stage in (*STAGES, "finetune", "evaluate")] == [1, 1, 1, 1]


@pytest.fixture
def attentive(laptop) -> Iterator[None]:
    """Silence is noticed in 10 s, the least that Prefect allows, and not in 90."""
    with SyncPrefectClient(laptop.api) as client:
        (watch,) = client.read_automations_by_name("Runs without a sign of life")
        assert watch.trigger.within == timedelta(seconds=SILENT_SECONDS)
        as_made = AutomationCore.model_validate(watch.model_dump(include=set(AutomationCore.model_fields)))
        soon = as_made.trigger.model_copy(update={"within": timedelta(seconds=10)})
        client.delete_automation(watch.id)
        made = client.create_automation(as_made.model_copy(update={"trigger": soon}))
        yield
        client.delete_automation(made)
        client.create_automation(as_made)


def test_the_worker_is_killed_with_the_flow(laptop, pretend, attentive, hanging):
    """Then nobody is left to report it: what does is a heartbeat that fails to come."""
    run, stage, flow = hanging
    laptop.kill("worker")
    os.kill(flow, signal.SIGKILL)
    wait_for(lambda: not alive(stage))
    name, message = laptop.end(run)
    assert name == "Crashed" and "sign of life for 90 s" in message
    laptop.up()
    assert takes_up(laptop, pretend)
    assert crashed(laptop, run)
