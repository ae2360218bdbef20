"""Stages run for a person at a shell, without Prefect."""

import subprocess

from flows import environments
from flows.plan import Step
from flows.runners import Runner, StageFailed, stage_environment
from flows.terminal import Terminal
from stages.contract import nothing_to_do
from storage import Artifact, Store


def make(step: Step, runner: Runner) -> None:
    """Make the artifact of a step, or a part of it, or find it made. Raises StageFailed."""
    store = Store(step.request.store)
    with Terminal(step.stage) as terminal:
        if nothing_to_do(step.request, store, step.kind, step.key):
            terminal.reused(Artifact(store, step.kind, step.key))
        elif code := runner.run(step.request, terminal.on_event):
            raise StageFailed(step.stage, code, terminal.cause)


def command(stage: str, module: str, *arguments: str, stdin: str | None = None) -> int:
    """Run another program of a stage's environment on our own terminal. Returns its exit code.

    Raises EnvironmentFailed when the environment is not there.
    """
    python = environments.python(stage)
    if not python.exists():
        raise environments.EnvironmentFailed(f"{python} does not exist: run `malmm env sync {stage}`")
    done = subprocess.run(
        [str(python), "-m", module, *arguments],
        env=stage_environment(),
        input=stdin,
        text=True,
        check=False,
    )
    return done.returncode
