"""The DAG: samples, frames, features, checkpoint, report. Each stage is a task that runs a program in its environment.

    malmm run configs/visdial.yaml

The store owns the keys; Prefect schedules, retries and shows. An artifact that is there is not made again.
"""

from collections.abc import Sequence
from dataclasses import replace

from prefect import flow, runtime, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.config import Pipeline, load, store_url
from flows.parts import last, number_of_parts, run_parts
from flows.plan import Step, plan
from flows.progress import Progress
from flows.runners import Runner, StageFailed, runner_of
from flows.table import counted, rows
from stages.contract import nothing_to_do
from storage import Artifact, Store

MAY_PASS_LATER = 75


@flow(name="malmm", flow_run_name="{config}", persist_result=False)
def pipeline(
    config: str, overrides: Sequence[str] = (), force: Sequence[str] = (), retry_failed: bool = False
) -> dict[str, str]:
    """Run a pipeline from its config. Returns kind -> key of the artifacts, all of them published."""
    settings = load(config, overrides)
    steps = plan(settings, force=force, retry_failed=retry_failed)

    made: dict[str, State] = {}  # ingest -> extract_frames -> embed_imagebind -> finetune -> evaluate
    for step in steps.values():
        made[step.kind] = execute(step, settings, [made[kind] for kind in step.request.inputs if kind in made])

    show_metrics(steps["evaluate"], Store(store_url(settings)), wait_for=[made["report"]])
    return {step.kind: step.key for step in steps.values()}


def execute(step: Step, settings: Pipeline, after: Sequence[State]) -> State:
    """Run one step as a Prefect task named by its stage. Raises StageFailed when it ends without its artifact."""
    retries, request = settings.retries, step.request
    if not nothing_to_do(request, Store(request.store), step.kind, step.key):
        parts = number_of_parts(step, settings.runner)
        if parts > 1:
            run_parts(step, parts, settings.runner)
            step = replace(step, request=last(request))
    run = run_stage.with_options(
        name=step.stage,
        task_run_name=f"{step.stage} {step.key[:12]}",
        tags={step.stage, step.request.label},
        retries=retries,
        retry_delay_seconds=[min(300, 10 * 3**n) for n in range(retries)] or None,
    )
    state = run(step, runner_of(settings.runner, step.stage), wait_for=list(after), return_state=True)
    state.result(raise_on_failure=True)
    return state


def worth_retrying(task: object, task_run: object, state: State) -> bool:
    """Whether a failed stage may pass later: its exit code said so, or something killed it."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailed) and (error.code == MAY_PASS_LATER or error.code < 0)


@task(persist_result=False, retry_condition_fn=worth_retrying)
def run_stage(step: Step, runner: Runner) -> State:
    """Make the artifact of a step, or find it made: then the state is named Cached."""
    store = Store(step.request.store)
    with Progress(step.stage, f"{step.stage}-{step.key[:12]}") as progress:
        if nothing_to_do(step.request, store, step.kind, step.key):
            progress.reused(Artifact(store, step.kind, step.key))
            return Completed(name="Cached", message=f"{step.kind} {step.key[:12]} was there")
        code = runner.run(step.request, progress.on_event)
        if code != 0:
            raise StageFailed(step.stage, code, progress.cause)
    artifact = Artifact(store, step.kind, step.key)
    if runtime.task_run.id:
        create_link_artifact(
            link=f"{store.url}/{artifact.folder}",
            link_text=f"{step.kind} {step.key[:12]}",
            key=f"{step.stage.replace('_', '-')}-artifact",
            description=f"What {step.stage} made",
        )
    return Completed(message=f"{step.kind} {step.key[:12]}: {counted(artifact.manifest['counts'])}")


@task(persist_result=False, task_run_name="metrics")
def show_metrics(step: Step, store: Store) -> None:
    """Show the scores as a table artifact of the run."""
    metrics = Artifact(store, step.kind, step.key).read_json("metrics.json")
    create_table_artifact(key="metrics", description=f"Report {step.key[:12]}", table=rows(metrics))
