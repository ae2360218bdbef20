"""A stage's run as a Kubernetes Job: pure functions from request, settings and needs to the API's own models.

One Job, one pod, one container, tried once: whether to try again is the flow's to say. The request comes as a file of a
ConfigMap that goes with the Job. The pod runs as nobody in particular, on a read-only root, and may reach the folders
of `volumes` and nothing else of the cluster.
"""

import hashlib
import math
import secrets
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from kubernetes import client as k8s

from flows.config import STAGES
from flows.runners.process import OFFLINE
from flows.runners.settings import KubernetesSettings, Needs
from stages.config import StageConfig
from stages.contract import Request, WrongConfig
from stages.identity import record_of
from storage import Store, key_of
from storage.digests import Digests

CONTAINER = "stage"
REQUEST_FILE = "/request/request.json"
MOST_BYTES = 1_000_000  # a ConfigMap holds 1 MiB with its names


def labels_of(request: Request, run: str = "") -> dict[str, str]:
    """What a Job and its pod are found by: the artifact (in which store), the part, the flow's run."""
    config = STAGES[request.stage].model_validate(request.config)
    sources = config.sources(Digests()) if request.sources is None else request.sources
    key = key_of(record_of(config, request.inputs, sources, request.only))
    return {
        "malmm/stage": request.stage,
        "malmm/key": key[:16],
        "malmm/store": hashlib.sha256(request.store.encode()).hexdigest()[:16],
        "malmm/part": f"{request.part.number}-of-{request.part.of}" if request.part else "whole",
        "malmm/run": run,
    }


def same_work(labels: dict[str, str]) -> str:
    """The selector of the Jobs that may not run beside this one: beside a part, the same one and a whole run, which
    would publish; beside a whole run, any."""
    selector = ",".join(f"{name}={labels[name]}" for name in ("malmm/key", "malmm/store"))
    part = labels["malmm/part"]
    return selector if part == "whole" else f"{selector},malmm/part in ({part}, whole)"


def job_of(request: Request, settings: KubernetesSettings, needs: Needs, labels: dict[str, str]) -> k8s.V1Job:
    """The Job of a request. Raises WrongConfig naming the setting that lacks."""
    if request.stage not in settings.images:
        raise WrongConfig(f"runner.kubernetes.images.{request.stage}: give the image that the stage's pods run")
    if (size := len(request.model_dump_json().encode())) > MOST_BYTES:
        raise WrongConfig(f"the request takes {size} bytes, and a ConfigMap holds {MOST_BYTES}: ask for fewer items")
    volumes, mounts = volumes_of(request, settings)
    variables = OFFLINE | {"HOME": "/tmp"} | needs.variables()
    name = f"malmm-{request.stage.replace('_', '-')}-{labels['malmm/key'][:8]}-{secrets.token_hex(3)}"
    volumes += [
        k8s.V1Volume(name="request", config_map=k8s.V1ConfigMapVolumeSource(name=name)),
        k8s.V1Volume(name="tmp", empty_dir=k8s.V1EmptyDirVolumeSource()),
        k8s.V1Volume(name="shm", empty_dir=k8s.V1EmptyDirVolumeSource(medium="Memory")),
    ]
    mounts += [
        k8s.V1VolumeMount(name="request", mount_path=str(PurePosixPath(REQUEST_FILE).parent), read_only=True),
        k8s.V1VolumeMount(name="tmp", mount_path="/tmp"),
        k8s.V1VolumeMount(name="shm", mount_path="/dev/shm"),  # NCCL's, between GPUs: the 64 MiB there are too few
    ]
    container = k8s.V1Container(
        name=CONTAINER,
        image=settings.images[request.stage],
        args=["run", REQUEST_FILE],
        env=[k8s.V1EnvVar(name=name, value=value) for name, value in variables.items()],
        env_from=[k8s.V1EnvFromSource(secret_ref=k8s.V1SecretEnvSource(name=settings.secret))]
        if settings.secret
        else None,
        resources=resources_of(needs, settings.gpu_resource),
        volume_mounts=mounts,
        security_context=k8s.V1SecurityContext(
            allow_privilege_escalation=False,
            capabilities=k8s.V1Capabilities(drop=["ALL"]),
            read_only_root_filesystem=True,
        ),
    )
    pod = k8s.V1PodSpec(
        containers=[container],
        volumes=volumes,
        restart_policy="Never",
        # The pod's deadline, not the Job's: it begins on the node, so that waiting for a GPU does not count, and it
        # leaves the pod and its log where they are.
        active_deadline_seconds=math.ceil(needs.timeout) if needs.timeout else None,
        service_account_name=settings.service_account,
        automount_service_account_token=False,
        security_context=k8s.V1PodSecurityContext(
            run_as_non_root=True,
            run_as_user=settings.user,
            run_as_group=settings.user,
            fs_group=settings.user,
            fs_group_change_policy="OnRootMismatch",  # else every start changes the owner of every file of the store
            seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
        ),
    )
    return k8s.V1Job(
        api_version="batch/v1",
        kind="Job",
        metadata=k8s.V1ObjectMeta(name=name, labels=labels),
        spec=k8s.V1JobSpec(
            backoff_limit=0,
            ttl_seconds_after_finished=settings.ttl,
            template=k8s.V1PodTemplateSpec(metadata=k8s.V1ObjectMeta(labels=labels), spec=pod),
        ),
    )


def config_map_of(request: Request, job: k8s.V1Job) -> k8s.V1ConfigMap:
    """The ConfigMap with the request; it goes when its Job (as the API gave it back, with its uid) goes."""
    owner = k8s.V1OwnerReference(api_version="batch/v1", kind="Job", name=job.metadata.name, uid=job.metadata.uid)
    return k8s.V1ConfigMap(
        api_version="v1",
        kind="ConfigMap",
        metadata=k8s.V1ObjectMeta(name=job.metadata.name, labels=job.metadata.labels, owner_references=[owner]),
        data={PurePosixPath(REQUEST_FILE).name: request.model_dump_json()},
    )


def resources_of(needs: Needs, gpu_resource: str) -> k8s.V1ResourceRequirements:
    """What is asked for is also the limit, so that a pod neither starves nor is the first to be evicted."""
    amounts = {}
    if needs.cpus:
        amounts["cpu"] = f"{math.ceil(needs.cpus * 1000)}m"
    if needs.memory_gib:
        amounts["memory"] = f"{math.ceil(needs.memory_gib * 1024)}Mi"
    if needs.gpus:
        amounts[gpu_resource] = str(needs.gpus)
    return k8s.V1ResourceRequirements(requests=amounts, limits=amounts)


def volumes_of(request: Request, settings: KubernetesSettings) -> tuple[list[k8s.V1Volume], list[k8s.V1VolumeMount]]:
    """Every folder of `volumes` at its own path; that of the store alone is writable.

    Raises WrongConfig naming a path of the request that lies in none of them."""
    config = STAGES[request.stage].model_validate(request.config)
    for field, path in paths_of(config):
        _folder_of(f"{request.stage}.{field}", path, settings)
    store = Store(request.store).local
    written = _folder_of("store", store, settings) if store else None
    volumes, mounts = [], []
    for number, (folder, claim) in enumerate(settings.volumes.items()):
        source = k8s.V1PersistentVolumeClaimVolumeSource(claim_name=claim, read_only=folder != written)
        volumes.append(k8s.V1Volume(name=f"volume-{number}", persistent_volume_claim=source))
        mounts.append(k8s.V1VolumeMount(name=f"volume-{number}", mount_path=folder, read_only=folder != written))
    return volumes, mounts


def paths_of(config: StageConfig) -> Iterator[tuple[str, Path]]:
    """The paths that a stage's config names: (field, path). A field at its default is not the user's word."""
    for field, path in config.paths().items():
        default = type(config).model_fields[field.partition(".")[0]].default
        if not (isinstance(default, Path) and path == default.absolute()):
            yield field, path


def _folder_of(field: str, path: Path, settings: KubernetesSettings) -> str:
    """The folder of `volumes` that holds a path: the innermost."""
    holding = [folder for folder in settings.volumes if path.is_relative_to(folder)]
    if not holding:
        raise WrongConfig(
            f"{field}: {path} lies in no folder of runner.kubernetes.volumes "
            f"({', '.join(settings.volumes) or 'there is none'}): give the claim that holds it"
        )
    return max(holding, key=len)
