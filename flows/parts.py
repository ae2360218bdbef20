"""A stage over many items, in parts that run side by side: in threads here, or on a Ray or Dask cluster.

Parts leave their work beside the draft; the run of the whole stage, which comes after them, takes it up, does what a
lost part left undone, and publishes. So what is published does not depend on how many parts there were, nor on
their luck.
"""

import pyarrow.compute as pc
from prefect import flow, task
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.plan import Step
from flows.progress import Progress
from flows.runners import Runner, RunnerSettings, StageFailed, runner_of
from stages.contract import Part, Request, open_draft
from storage import Artifact, Store

# What counts as an item of a stage: distinct media, questions too, or samples of the split that is scored.


def number_of_parts(step: Step, settings: RunnerSettings) -> int:
    """How many parts a stage's items make, `part_items` in each; 1 where it does not split."""
    size = settings.of(step.stage).part_items
    if size is None or step.request.only:
        return 1
    return max(1, -(-number_of_items(step) // size))


def number_of_items(step: Step) -> int:
    """Items of a stage that splits: videos, media and questions, or samples of the split."""
    samples = Artifact(Store(step.request.store), "samples", step.request.inputs["samples"])
    if step.stage == "evaluate":
        splits = samples.read_table("samples.parquet", ["split"])["split"]
        return pc.sum(pc.equal(splits, step.request.config["split"])).as_py() or 0
    columns = ["media"] if step.stage == "extract_frames" else ["media", "question"]
    table = samples.read_table("samples.parquet", columns)
    return sum(pc.count_distinct(table[name]).as_py() for name in columns)


def split(request: Request, parts: int) -> list[Request]:
    """The requests of the parts."""
    return [request.model_copy(update={"part": Part(number=n, of=parts)}) for n in range(parts)]


def last(request: Request) -> Request:
    """The request of the run after the parts: it takes up what they did, so it neither begins nor retries again."""
    return request.model_copy(update={"force": False, "retry_failed": False})


def run_parts(step: Step, parts: int, settings: RunnerSettings) -> None:
    """Run all parts of a step. Raises StageFailed when one of them failed in the end."""
    open_draft(step.request, Store(step.request.store), step.kind, step.key)
    side_by_side = in_parts.with_options(
        name=f"{step.stage} in parts", task_runner=task_runner(settings), flow_run_name=f"{step.stage} {step.key[:12]}"
    )
    side_by_side(step.request, parts, runner_of(settings, step.stage))


def task_runner(settings: RunnerSettings) -> TaskRunner:
    """Prefect's task runner for the parts."""
    return ThreadPoolTaskRunner(max_workers=settings.side_by_side)


@flow(persist_result=False)
def in_parts(request: Request, parts: int, runner: Runner) -> None:
    """Run all parts of a request."""
    futures = [run_part.submit(part, runner) for part in split(request, parts)]
    for future in futures:
        future.result()


@task(persist_result=False, task_run_name="part {request.part.number} of {request.part.of}")
def run_part(request: Request, runner: Runner) -> None:
    """Run one part. Raises StageFailed."""
    with Progress(request.stage, f"{request.stage}-part-{request.part.number}") as progress:
        if code := runner.run(request, progress.on_event):
            raise StageFailed(request.stage, code, progress.cause)
