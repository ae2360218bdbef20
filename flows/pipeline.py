"""The DAG: samples, frames, features, checkpoint, report. Each stage is a task that runs a program in its environment.

    malmm run configs/visdial.yaml

The store owns the keys; Prefect schedules, retries and shows. An artifact that is there is not made again.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from prefect import flow, runtime, task
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from pydantic import Field

from flows.config import ConfigError, Pipeline, load
from flows.killed import settle
from flows.limits import gpu_places
from flows.parts import begin_parts, delays, last, number_of_parts, run_parts, worth_retrying
from flows.plan import Step, chosen, plan
from flows.progress import Progress
from flows.runners import Event, RunnerSettings, StageFailed, runner_of
from flows.runners.settings import STAGES
from flows.show import show_lineage, show_report
from flows.table import counted
from stages.contract import FORCED, StageError, making, nothing_to_do
from storage import Artifact, StorageError, Store
from storage.artifacts import PARTIAL, folder_of

Stage = Literal[STAGES]
Override = Annotated[str, Field(pattern=r"^[^=.\s]+(\.[^=.\s]+)*=")]


def run_name() -> str:
    """The run at hand by its pipeline and report: "visdial 3f2a9c01". Where config or input is wrong, by its file."""
    asked = runtime.flow_run.parameters
    try:
        settings = load(asked["config"], asked["overrides"])
        return f"{settings.name} {plan(settings)['evaluate'].key[:8]}"
    except (ConfigError, StageError, StorageError, OSError):  # the run says it, as its state
        return Path(asked["config"]).stem


@flow(name="malmm", flow_run_name=run_name, persist_result=False, on_crashed=[settle])
def pipeline(
    config: str,
    overrides: Sequence[Override] = (),
    stages: Sequence[Stage] = (),
    force: Sequence[Stage] = (),
    retry_failed: bool = False,
) -> State[dict[str, str]]:
    """Run a pipeline from its config. Returns kind -> key of the artifacts made or found, all of them published.

    Args:
        config: the pipeline's YAML; relative paths, in it too, start in the folder of the run
        overrides: values laid over the config, each as field=value: finetune.epochs=2
        stages: run these alone; what they read must be there. None: all
        force: make these stages' artifacts again though they are there
        retry_failed: try the items again that failed before
    """
    settle()  # where the worker was killed too, no hook was called
    settings = load(config, overrides)
    steps = chosen(plan(settings, force=force, retry_failed=retry_failed), stages)

    made: dict[str, State] = {}  # ingest -> extract_frames -> embed_imagebind -> finetune -> evaluate
    for step in steps.values():
        made[step.kind] = execute(step, settings, [made[kind] for kind in step.request.inputs if kind in made])

    if "evaluate" in steps:
        show_report(steps["evaluate"])
    show_lineage(steps.values())
    keys = {step.kind: step.key for step in steps.values()}
    return Completed(message=". ".join(state.message for state in made.values()), data=keys)


def execute(step: Step, settings: Pipeline, after: Sequence[State]) -> State:
    """Run one step as a Prefect task named by its stage. Raises StageFailed when it ends without its artifact."""
    retries, request = settings.retries, step.request
    if not nothing_to_do(request, Store(request.store), step.kind, step.key):
        parts = number_of_parts(step, settings.runner)
        if parts > 1:
            begin_parts(step, get_run_logger().info)
            run_parts(step, parts, settings.runner, retries)
            step = replace(step, request=last(request))
    run = run_stage.with_options(
        name=step.stage,
        task_run_name=f"{step.stage} {step.key[:12]}",
        tags={step.stage, step.request.label},
        retries=retries,
        retry_delay_seconds=delays(retries) or None,
    )
    state = run(step, settings.runner, wait_for=list(after), return_state=True)
    state.result(raise_on_failure=True)
    return state


@task(persist_result=False, retry_condition_fn=worth_retrying)
def run_stage(step: Step, settings: RunnerSettings) -> State:
    """Make the artifact of a step, or find it made: then the state is named Cached."""
    store, folder, request = Store(step.request.store), folder_of(step.kind, step.key), step.request
    if request.force and runtime.task_run.run_count > 1 and store.exists(f"{folder}/{PARTIAL}/{FORCED}"):
        request = request.model_copy(update={"force": False})  # the try before this one began it: take up what it left
    counts: dict[str, int] = {}
    with Progress(step.stage, f"{step.stage}-{step.key[:12]}") as progress:

        def on_event(event: Event) -> None:
            counts.update(event.get("counts", {}))
            progress.on_event(event)

        if store.exists(f"{folder}.lock"):  # wait here: a stage that waits holds GPUs, and its timeout runs
            with making(store, step.kind, step.key, progress.say):
                pass
        if nothing_to_do(request, store, step.kind, step.key):
            artifact = Artifact(store, step.kind, step.key)
            progress.reused(artifact)
            return Completed(name="Cached", message=f"{in_words(step, artifact.manifest['counts'])}; it was there")
        with gpu_places(settings, step.stage):
            code = runner_of(settings, step.stage).run(request, on_event)
    if code != 0:
        failure = StageFailed(step.stage, code, progress.cause)
        return Failed(message=str(failure), data=failure)
    return Completed(message=in_words(step, counts))


def in_words(step: Step, counts: dict[str, int]) -> str:
    """An artifact in words, with its items."""
    return f"{step.kind} {step.key[:12]}: {counted(counts)}"
