"""A stage over many items, in parts that run side by side: in threads here, or on a Ray or Dask cluster.

Parts leave their work beside the draft; the run of the whole stage, which comes after them, takes it up, does what a
lost part left undone, and publishes. So what is published does not depend on how many parts there were, nor on
their luck.
"""

import contextlib
import math
import socket
import time
from collections.abc import Callable, Iterable, Iterator

import prefect
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from prefect import flow, get_client, task
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectHTTPStatusError
from prefect.futures import PrefectFuture
from prefect.logging import get_logger, get_run_logger
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Crashed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.config import STAGES
from flows.limits import gpu_places
from flows.plan import Step
from flows.progress import Progress
from flows.runners import Event, RunnerSettings, StageFailed, ending_stages, runner_of
from flows.runners.mounts import as_the_owner
from flows.table import counted
from stages.contract import Part, Request, TryAgain, WrongConfig, finished, making, open_draft
from stages.identity import code_digest
from storage import Artifact, Draft, StorageError, Store
from storage.artifacts import folder_of

COUNTED = 1_000_000  # samples; of more, the media of a share of them stand for all


def number_of_parts(step: Step, settings: RunnerSettings) -> int:
    """How many parts a stage's items make, `part_items` in each; 1 where it does not split."""
    size = settings.of(step.stage).part_items
    if size is None or step.request.only:
        return 1
    return max(1, -(-number_of_items(step) // size))


def number_of_items(step: Step) -> int:
    """Items of a stage that splits: distinct media, or samples of the split that evaluate scores.

    Questions are not counted: beside an image or a video they cost next to nothing."""
    with Artifact(Store(step.request.store), "samples", step.request.inputs["samples"]).open("samples.parquet") as file:
        table = pq.ParquetFile(file)
        if step.stage == "evaluate":
            split = step.request.config["split"]
            return sum(pc.sum(pc.equal(values, split)).as_py() or 0 for values in _column(table, "split"))
        # Digests are even: one in 16 begins with a zero.
        zeros = max(0, math.ceil(math.log(max(1, table.metadata.num_rows) / COUNTED, 16)))
        found: set[str] = set()
        for media in _column(table, "media"):
            found.update(pc.unique(media.filter(pc.starts_with(media, "0" * zeros))).to_pylist())
        return len(found) * 16**zeros


def split(request: Request, parts: int, numbers: Iterable[int]) -> list[Request]:
    """The requests of the parts of these numbers."""
    return [request.model_copy(update={"part": Part(number=number, of=parts)}) for number in numbers]


def last(request: Request) -> Request:
    """The request of the run after the parts: it takes up what they did, so it neither begins nor retries again."""
    return request.model_copy(update={"force": False, "retry_failed": False})


def delays(retries: int) -> list[int]:
    """Seconds to wait before each retry."""
    return [min(300, 10 * 3**n) for n in range(retries)]


def worth_retrying(task: object, task_run: object, state: State) -> bool:
    """Whether a failed stage may pass later: its exit code said so, or something killed it, or the store is away."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, StorageError):
        return error.exit_code == TryAgain.exit_code
    return isinstance(error, StageFailed) and (error.code == TryAgain.exit_code or error.code < 0)


def begin_parts(step: Step, log: Callable[[str], None]) -> None:
    """Take away, or open again, what parts would find published, or was made before a forced run: they take nothing."""
    request, store, folder = step.request, Store(step.request.store), folder_of(step.kind, step.key)
    if request.force or store.exists(folder):
        with as_the_owner(store, folder), making(store, step.kind, step.key, log):
            open_draft(request, store, step.kind, step.key)


def run_parts(step: Step, parts: int, settings: RunnerSettings, retries: int) -> None:
    """Run all parts of a step. Raises StageFailed when one of them failed in the end."""
    if settings.cluster and not PREFECT_API_URL.value():
        raise StageFailed(
            step.stage, WrongConfig.exit_code, "runner.cluster: set PREFECT_API_URL to a server that nodes reach"
        )
    left = unfinished(step, parts)
    if not left:
        return
    side_by_side = in_parts.with_options(
        name=f"{step.stage} in parts", task_runner=task_runner(settings), flow_run_name=f"{step.stage} {step.key[:12]}"
    )
    with connected(settings, step.stage, retries):
        side_by_side(step.request, parts, left, settings, retries)


def unfinished(step: Step, parts: int) -> list[int]:
    """The numbers of the parts that an earlier try did not finish: all, where failed items are wanted again."""
    partial = Draft(Store(step.request.store), step.kind, step.key).partial
    done = () if step.request.retry_failed else set(partial.list())
    return [number for number in range(parts) if finished(Part(number=number, of=parts)) not in done]


def task_runner(settings: RunnerSettings) -> TaskRunner:
    """Prefect's task runner for the parts."""
    match (settings.cluster or "").split("://"):
        case ["ray", _]:
            from prefect_ray import RayTaskRunner

            return RayTaskRunner(address=settings.cluster)
        case ["dask", address]:
            from prefect_dask import DaskTaskRunner

            return DaskTaskRunner(address=f"tcp://{address}")
        case _:
            return ThreadPoolTaskRunner(max_workers=settings.side_by_side)


@contextlib.contextmanager
def connected(settings: RunnerSettings, stage: str, retries: int) -> Iterator[None]:
    """A connection to the Ray cluster, where parts run on one; a busy one may take none at the first try.

    The task runner would make it after the flow of the parts has begun, which would be Running for ever without it.
    Raises StageFailed."""
    if not (settings.cluster or "").startswith("ray"):
        yield
        return
    import ray

    runner = task_runner(settings)
    for delay in (*delays(retries), None):
        try:
            ray.init(runner.address, **runner.init_kwargs)
            break
        except ConnectionError as error:
            said = f"runner.cluster {settings.cluster}: {error}"
            if delay is None:
                raise StageFailed(stage, TryAgain.exit_code, said) from None
            get_logger("malmm").warning("%s; the next try follows after %s s", said, delay)
            time.sleep(delay)
    try:
        yield
    finally:
        ray.shutdown()


def claim(settings: RunnerSettings, stage: str) -> contextlib.AbstractContextManager:
    """What a part takes of a cluster's node, for the parts submitted inside."""
    needs, cluster = settings.of(stage), settings.cluster or ""
    if cluster.startswith("ray"):
        from prefect_ray.context import remote_options

        return remote_options(num_cpus=needs.cpus or 1, num_gpus=needs.gpus)
    if cluster.startswith("dask") and needs.gpus:
        import dask

        return dask.annotate(resources={"GPU": needs.gpus})
    return contextlib.nullcontext()


@flow(persist_result=False)
def in_parts(request: Request, parts: int, numbers: list[int], settings: RunnerSettings, retries: int) -> None:
    """Run these parts of a request; those that are lost with their node are submitted again. Raises StageFailed."""
    stage = request.stage
    run = run_part.with_options(
        name=stage,
        task_run_name=f"{stage} part {{request.part.number}} of {parts}",
        tags={stage, request.label},
        retries=retries,
        retry_delay_seconds=delays(retries) or None,
    )
    left, wanted = split(request, parts, numbers), versions(stage) if settings.cluster else {}
    for delay in (0, *delays(retries)):
        time.sleep(delay)
        with claim(settings, stage):
            futures = [run.submit(part, settings, wanted) for part in left]
        with ending_stages():
            lost = {part.part.number: error for part, future in zip(left, futures) if (error := outcome(future))}
        if not lost:
            return
        left = [part for part in left if part.part.number in lost]
        some = ", ".join(map(str, list(lost)[:5])) + (", ..." if len(lost) > 5 else "")
        said = f"{len(lost)} of {parts} parts were lost ({some}): {next(iter(lost.values()))}"
        get_run_logger().warning("%s", said)
    raise StageFailed(stage, TryAgain.exit_code, said)


def outcome(future: PrefectFuture) -> Exception | None:
    """None when the part is done; what is said of its loss when its node, worker or process ended under it.

    Raises StageFailed when the stage itself failed. The run of a lost part is made Crashed: else it would be Running
    for ever."""
    try:
        future.result()
    except StageFailed:
        raise
    except Exception as error:
        unknown = contextlib.suppress(PrefectHTTPStatusError)  # it had not begun
        with get_client(sync_client=True) as client, unknown:
            client.set_task_run_state(future.task_run_id, Crashed(message=f"lost: {error}"), force=True)
        return error


@task(persist_result=False, retry_condition_fn=worth_retrying)
def run_part(request: Request, settings: RunnerSettings, wanted: dict[str, str]) -> State:
    """Run one part, here or on a node of the cluster, whose `versions` must be the `wanted`. Raises StageFailed."""
    stage, part = request.stage, request.part
    there = versions(stage) if wanted else {}
    if differ := [f"{what} {there[what]}, not {found}" for what, found in wanted.items() if there[what] != found]:
        node = socket.gethostname()
        raise StageFailed(stage, WrongConfig.exit_code, f"node {node} has {'; '.join(differ)}: bring it up to date")
    counts: dict[str, int] = {}
    with Progress(stage, f"{stage}-part-{part.number}") as progress:

        def on_event(event: Event) -> None:
            counts.update(event.get("counts", {}))
            progress.on_event(event)

        with gpu_places(settings, stage):
            code = runner_of(settings, stage).run(request, on_event)
    if code != 0:
        failure = StageFailed(stage, code, progress.cause)
        return Failed(message=str(failure), data=failure)
    return Completed(message=f"part {part.number} of {part.of}: {counted(counts) or 'no items'}")


def versions(stage: str) -> dict[str, str]:
    """What must be the same on every node."""
    return {"Prefect": prefect.__version__, f"sources of {stage}": code_digest(STAGES[stage])[:12]}


def _column(table: pq.ParquetFile, name: str) -> Iterator[pa.Array]:
    """One column, some rows at a time: of 10^8 samples it takes GiB."""
    return (batch.column(0) for batch in table.iter_batches(columns=[name]))
