"""Tasks whose flow was killed: nothing is left to tell of their end, and Prefect would show them Running for ever."""

from prefect import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed

from flows.runners.settings import STAGES

UNDER_WAY = [StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED]  # Scheduled: waits for its retry


def settle(flow: object = None, flow_run: object = None, state: object = None) -> None:
    """Of flow runs that are Crashed, make the stages' tasks that are under way so too.

    Takes what Prefect gives a hook, by name, and needs none of it."""
    crashed = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CRASHED])))
    under_way = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=UNDER_WAY)))
    with get_client(sync_client=True) as client:
        for task in client.read_task_runs(flow_run_filter=crashed, task_run_filter=under_way):
            if set(task.tags) & set(STAGES):  # a server may have other people's runs
                client.set_task_run_state(task.id, Crashed(message="ended with the process of its flow"), force=True)
