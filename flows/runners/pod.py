"""What the state of a pod says of its stage, and how far its log has been read: no I/O."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from kubernetes.client import V1ContainerState, V1Pod

from flows.runners.output import Event, error
from flows.runners.process import TIMED_OUT, code_of, timed_out
from flows.runners.settings import Needs
from stages.contract import TryAgain

KILLED = -9
STARTING = ("ContainerCreating", "PodInitializing", None)


def is_running(pod: V1Pod) -> bool:
    """Whether its container has begun and not ended."""
    return _state(pod).running is not None


def has_ended(pod: V1Pod) -> bool:
    """Whether its container has ended, or will never run."""
    return _state(pod).terminated is not None or pod.status.phase in ("Succeeded", "Failed")


def hindrance(pod: V1Pod) -> str | None:
    """What keeps its container from starting: an image that cannot be pulled, a Secret that is not there."""
    waiting = _state(pod).waiting
    return f"{waiting.reason}: {waiting.message or ''}" if waiting and waiting.reason not in STARTING else None


def disruption(pod: V1Pod) -> str | None:
    """What took the pod from its node, or takes it now: pressure on the node, its loss, a drain, someone's deletion."""
    for condition in pod.status.conditions or ():
        if condition.type == "DisruptionTarget" and condition.status == "True":
            return f"{condition.reason}: {condition.message or ''}"
    if pod.status.reason:
        return f"{pod.status.reason}: {pod.status.message or ''}"
    return "it was deleted" if pod.metadata.deletion_timestamp else None


def end_of(pod: V1Pod, needs: Needs) -> tuple[int, Event | None]:
    """The exit code of a pod that has ended, and what is to be said of it where the stage could not say it itself."""
    terminated = _state(pod).terminated
    if terminated and terminated.exit_code == 0:
        return 0, None
    if pod.status.reason == "DeadlineExceeded":
        return TIMED_OUT, timed_out(needs.timeout)
    if terminated is None or disruption(pod):
        return TryAgain.exit_code, error("PodLost", f"the pod was taken away: {disruption(pod) or 'nobody said why'}")
    if terminated.reason == "OOMKilled":
        had = f"{needs.memory_gib:g} GiB" if needs.memory_gib else "its node had"
        return KILLED, error(
            "OutOfMemory",
            f"the stage took more memory than {had}: raise runner.stages.<stage>.memory_gib, or take smaller batches",
        )
    return code_of(terminated.exit_code), None


class Reading:
    """How far a log has been read. A stream may break off and begin again anywhere: each line comes out once.

    By the timestamps before the lines, and of lines with one timestamp by their number."""

    def __init__(self) -> None:
        self._at, self._count = datetime.min.replace(tzinfo=UTC), 0

    def new(self, lines: Iterable[str]) -> Iterator[str]:
        """The lines of a stream, which begins where it likes, that were not read before, without their timestamps."""
        past, skip = self._at, self._count
        for line in lines:
            stamp, _, text = line.partition(" ")
            try:
                at = datetime.fromisoformat(stamp)
            except ValueError:  # not of the container but of the node, which cannot read the log
                yield line
                continue
            if at < past:
                continue
            if at == past and skip:
                skip -= 1
                continue
            self._count = self._count + 1 if at == self._at else 1
            self._at = at
            yield text


def _state(pod: V1Pod) -> V1ContainerState:
    statuses = pod.status.container_statuses
    return (statuses and statuses[0].state) or V1ContainerState()
