"""Runners: how a stage's command is run. One interface, so that a laptop and a cluster run the same thing.

A runner takes a request, hands each event of the stage to a callback as it comes, and returns the exit code.
It never raises for what the stage did; it always leaves nothing running behind.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from flows.runners.output import Event
from flows.runners.process import ROOT, ProcessRunner, ending_stages, stage_environment
from flows.runners.settings import RunnerSettings
from stages.contract import Request

__all__ = [
    "ROOT",
    "Event",
    "ProcessRunner",
    "Runner",
    "RunnerSettings",
    "StageFailed",
    "ending_stages",
    "runner_of",
    "stage_environment",
]


@runtime_checkable
class Runner(Protocol):
    """Runs one request to its end and returns the stage's exit code. Small and picklable: it goes to cluster nodes."""

    def run(self, request: Request, on_event: Callable[[Event], None]) -> int: ...


class StageFailed(Exception):
    """A stage ended without its artifact; `code` is its exit code and says whether to try again."""

    def __init__(self, stage: str, code: int, cause: str):
        super().__init__(f"{stage}: {cause} (exit code {code})")
        self.stage, self.code, self.cause = stage, code, cause

    def __reduce__(self) -> tuple:
        return StageFailed, (self.stage, self.code, self.cause)


def runner_of(settings: RunnerSettings, stage: str) -> Runner:
    """The runner that the settings name, with what they say of the stage."""
    needs = settings.of(stage)
    match settings.kind:
        case "process":
            return ProcessRunner(needs)
        case "container":
            from flows.runners.container import ContainerRunner

            return ContainerRunner(settings.container, needs)
        case "kubernetes":
            from flows.runners.kubernetes import KubernetesRunner

            return KubernetesRunner(settings.kubernetes, needs)
