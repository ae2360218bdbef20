"""Places among the GPUs, which every stage and part that needs some waits for, whatever flow it belongs to."""

import contextlib
from collections.abc import Iterator

from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency

from flows.runners import RunnerSettings, StageFailed
from stages.errors import WrongConfig


@contextlib.contextmanager
def gpu_places(settings: RunnerSettings, stage: str) -> Iterator[None]:
    """Hold as many places of `runner.gpu_limit` as the stage needs GPUs. Raises StageFailed when they cannot be had."""
    needs, limit = settings.of(stage), settings.gpu_limit
    with contextlib.ExitStack() as held:
        if needs.gpus and limit:
            # A server that is away for a moment must not end a stage that has its GPUs: leases are renewed leniently.
            places = concurrency(limit, occupy=needs.gpus, strict=True, raise_on_lease_renewal_failure=False)
            try:
                held.enter_context(places)
            except ConcurrencySlotAcquisitionError as error:
                raise StageFailed(
                    stage,
                    WrongConfig.exit_code,
                    f"runner.gpu_limit: Prefect has no {needs.gpus} places of {limit} ({error}): `malmm up` makes the "
                    f"limit gpu, `prefect gcl create {limit} --limit N` any other",
                ) from None
        yield
