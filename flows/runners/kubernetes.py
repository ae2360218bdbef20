"""The Kubernetes runner: a stage, or a part of one, as a Job of a cluster.

It makes the Job, follows its pod and the pod's log, and returns the stage's exit code. When it is stopped, or the pod
cannot run, it deletes the Job. When this process is killed the Job runs on: the next try of the same work deletes it
first, and waits until it is gone.
"""

import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kubernetes import client as k8s
from kubernetes import config as k8s_config
from kubernetes.client.exceptions import ApiException, NotFoundException
from pydantic import ValidationError
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from flows.runners.job import CONTAINER, config_map_of, job_of, labels_of, same_work
from flows.runners.labels import flow_run
from flows.runners.output import LAST, Event, error, event_of, lines, log
from flows.runners.pod import Reading, disruption, end_of, has_ended, hindrance, is_running
from flows.runners.process import BROKEN, Deadline, died
from flows.runners.settings import KubernetesSettings, Needs
from stages.contract import Request, StageError, TryAgain, WrongConfig, exit_code_of
from storage import StorageError

HELP = "docs/running/kubernetes.md has what the flow needs"


@dataclass(frozen=True)
class KubernetesRunner:
    """Runs a stage as a Job, through the API that the pod's service account or else KUBECONFIG leads to.

    `patience`: seconds for which an image may fail to be pulled, or what an earlier run left may take to go."""

    settings: KubernetesSettings
    needs: Needs = field(default_factory=Needs)
    poll_seconds: float = 2.0
    patience: float = 120.0
    backoff_seconds: float = 0.5  # before the first retry of a call; doubles up to half a minute, ten times in all

    def run(self, request: Request, on_event: Callable[[Event], None]) -> int:
        try:
            labels = labels_of(request, flow_run())
            job = job_of(request, self.settings, self.needs, labels)
            with _client(self.backoff_seconds) as api, _named_errors():
                run = _Run(self, api, job.metadata.name, on_event)
                run.clear(same_work(labels))
                return run.through(job, request)
        except (StageError, StorageError, ValidationError, FileNotFoundError) as failure:
            on_event(error(type(failure).__name__, str(failure)))
            return exit_code_of(failure)


class _Run:
    """One Job, from its creation to its end."""

    def __init__(self, runner: KubernetesRunner, api: k8s.ApiClient, name: str, on_event: Callable[[Event], None]):
        self._runner, self._name, self._on_event = runner, name, on_event
        self._jobs, self._core = k8s.BatchV1Api(api), k8s.CoreV1Api(api)
        self._where: dict[str, Any] = {"namespace": runner.settings.namespace, "_request_timeout": (10, 60)}
        self._reading = Reading()
        self._said: deque[str] = deque(maxlen=40)  # the last lines that are no other events
        self._finished = False
        self._stopped = threading.Event()

    def clear(self, selector: str) -> None:
        """Delete the Jobs that an earlier run left, and wait until their pods are gone. Raises TryAgain."""
        end = time.monotonic() + self._runner.patience
        while left := self._left(selector):
            for job in left["jobs"]:
                if not job.metadata.deletion_timestamp:
                    self._log(f"deleting Job {job.metadata.name}, which an earlier run left", "warning")
                    self._delete(job.metadata.name)
            if time.monotonic() > end:
                names = ", ".join(thing.metadata.name for things in left.values() for thing in things)
                raise TryAgain(f"{names}: of an earlier run, and still not gone; look whether its node is lost")
            time.sleep(self._runner.poll_seconds)

    def through(self, job: k8s.V1Job, request: Request) -> int:
        """Make the Job, follow it, and return the stage's exit code; a Job that does not come to its end is deleted."""
        ended, stop = False, Deadline(None, self._stop)
        try:
            with _there_already_is_fine():
                self._jobs.create_namespaced_job(body=job, **self._where)
            made = self._jobs.read_namespaced_job(self._name, **self._where)
            with _there_already_is_fine():
                self._core.create_namespaced_config_map(body=config_map_of(request, made), **self._where)
            pod = self._followed()
            ended = True
        finally:
            stop.cancel()
            if not ended:
                self._delete(self._name)
        code, cause = end_of(pod, self._runner.needs)
        if cause is None and not self._finished:
            code, cause = code or BROKEN, error("Died", died(code, "".join(self._said).rstrip()))
        if cause is not None:
            self._on_event(cause)
        return code

    def _followed(self) -> k8s.V1Pod:
        """The pod as it ended, its log read. Raises TryAgain when it is lost, WrongConfig when it cannot start."""
        seen, warned, blocked_at = None, set(), None
        while not self._stopped.wait(self._runner.poll_seconds):
            pod = self._pod(seen)
            if pod and has_ended(pod):
                self._read_to_the_end(pod.metadata.name)
                return pod
            if pod and pod.metadata.deletion_timestamp:
                raise TryAgain(f"pod {pod.metadata.name} is being taken away: {disruption(pod)}")
            if pod and is_running(pod):
                self._read(pod.metadata.name, follow=True)
            else:
                self._warn(pod.metadata.name if pod else self._name, warned)
            if pod and (why := hindrance(pod)):
                blocked_at = blocked_at or time.monotonic()
                if time.monotonic() - blocked_at > self._runner.patience:
                    raise WrongConfig(f"image {pod.spec.containers[0].image}: {why}; {HELP}")
            seen = pod.metadata.name if pod else None
        raise KeyboardInterrupt

    def _pod(self, seen: str | None) -> k8s.V1Pod | None:
        """The Job's pod, None before there is one. Raises TryAgain when it, or the Job, is gone."""
        pods = self._core.list_namespaced_pod(label_selector=f"job-name={self._name}", **self._where).items
        if pods:
            return pods[0]
        if seen:
            raise TryAgain(f"pod {seen} was deleted")
        try:
            self._jobs.read_namespaced_job(self._name, **self._where)
        except NotFoundException:
            raise TryAgain(f"Job {self._name} was deleted") from None
        return None

    def _read_to_the_end(self, pod: str) -> None:
        for _ in range(5):
            if self._read(pod, follow=False):
                return
            time.sleep(self._runner.poll_seconds)
        self._log(f"the end of the log of pod {pod} could not be read", "warning")

    def _read(self, pod: str, follow: bool) -> bool:
        """Turn new lines of the log into events. Returns whether it came to the stream's end.

        A stream that says nothing for a minute counts as broken: one that stalls is not told from a silent stage."""
        try:
            stream = self._core.read_namespaced_pod_log(
                pod, container=CONTAINER, follow=follow, timestamps=True, _preload_content=False, **self._where
            )
            with contextlib.closing(stream):
                # A followed stream may be ended in the middle of a line, which comes again, whole, with the next one.
                found = (line for line in lines(stream.stream()) if line.endswith("\n") or not follow)
                for line in self._reading.new(found):
                    event = event_of(line)
                    self._finished = self._finished or event["event"] in LAST
                    if event["event"] == "log":
                        self._said.append(f"{event['message']}\n")
                    self._on_event(event)
        except HTTPError:
            return False
        except ApiException as error:
            if error.status in (401, 403):
                raise
            return False  # the node is out of reach, or the pod is gone: its state will tell
        return True

    def _warn(self, name: str, warned: set[str]) -> None:
        """Say, once each, why a Job has no pod or its pod does not start: no room in the cluster, no such volume."""
        about = f"involvedObject.name={name},type=Warning"
        for event in self._core.list_namespaced_event(field_selector=about, **self._where).items:
            if event.message not in warned:
                warned.add(event.message)
                self._log(f"{event.reason}: {event.message}", "warning")

    def _left(self, selector: str) -> dict[str, list]:
        """Jobs and pods of the selector that have not ended."""
        jobs = self._jobs.list_namespaced_job(label_selector=selector, **self._where).items
        pods = self._core.list_namespaced_pod(label_selector=selector, **self._where).items
        done = {"Complete", "Failed"}
        left = {
            "jobs": [
                j for j in jobs if not any(c.type in done and c.status == "True" for c in j.status.conditions or ())
            ],
            "pods": [pod for pod in pods if not has_ended(pod)],
        }
        return left if any(left.values()) else {}

    def _stop(self) -> None:
        self._stopped.set()
        self._delete(self._name)  # which ends the log that is being followed

    def _delete(self, name: str) -> None:
        """Delete a Job; what it made goes with it, a little later."""
        try:
            self._jobs.delete_namespaced_job(name, propagation_policy="Background", **self._where)
        except NotFoundException:
            pass
        except (ApiException, HTTPError) as error:
            self._log(f"Job {name} may run on, deleting it failed ({error}): kubectl delete job {name}", "error")

    def _log(self, message: str, level: str) -> None:
        self._on_event(log(message, level))


def _client(backoff_seconds: float) -> k8s.ApiClient:
    """A client of the cluster we are in, or of KUBECONFIG's. Raises WrongConfig when there is neither."""
    settings = k8s.Configuration()
    try:
        try:
            k8s_config.load_incluster_config(client_configuration=settings)
        except k8s_config.ConfigException:
            k8s_config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=settings)
    except k8s_config.ConfigException as error:
        raise WrongConfig(f"runner.kind kubernetes: no cluster is configured ({error}): set KUBECONFIG") from None
    settings.retries = Retry(
        total=10,
        backoff_factor=backoff_seconds,
        backoff_max=30,
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=None,  # all: names are ours, so that a second creation is told from the first
        raise_on_status=False,
    )
    return k8s.ApiClient(settings)


@contextlib.contextmanager
def _named_errors() -> Iterator[None]:
    """What the API refuses, as an error of a stage: to be tried again, or to be mended first."""
    try:
        yield
    except ApiException as error:
        with contextlib.suppress(ValueError, TypeError):
            error.reason = json.loads(error.body)["message"]
        said = f"Kubernetes's API says {error.status}: {error.reason}"
        if error.status in (0, 429) or error.status >= 500 or "exceeded quota" in said:
            raise TryAgain(said) from error
        raise WrongConfig(f"{said}; {HELP}") from error
    except HTTPError as error:
        raise TryAgain(f"Kubernetes's API is out of reach: {error}") from error


@contextlib.contextmanager
def _there_already_is_fine() -> Iterator[None]:
    """A creation that is tried again after its answer was lost finds what it made before."""
    try:
        yield
    except ApiException as error:
        if error.status != 409:
            raise
