"""Settings of the runners: where stages run, and what each may take. None of them enters a key."""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

STAGES = ("ingest", "extract_frames", "embed_imagebind", "finetune", "evaluate")


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Needs(_Settings):
    """What one stage may take."""

    timeout: float | None = Field(
        None, gt=0, description="seconds that one try may take; then it is ended, and counts as what may pass later"
    )
    cpus: float | None = Field(
        None, gt=0, description="CPUs of its container or pod; everywhere, its threads and the processes of workers: 0"
    )
    memory_gib: float | None = Field(None, gt=0, description="GiB of memory of its container or pod")
    gpus: int = Field(0, ge=0, description="GPUs of its container or pod, and places it takes in gpu_limit")
    part_items: int | None = Field(
        None, ge=1, description="items a part; parts run side by side. Without it the stage runs as a whole"
    )

    def variables(self) -> dict[str, str]:
        """What tells a stage how many of the cores that it sees are its own; torch and others count them all."""
        return dict.fromkeys(("OMP_NUM_THREADS", "MALMM_CPUS"), str(math.ceil(self.cpus))) if self.cpus else {}


class ContainerSettings(_Settings):
    """For kind: container."""

    socket: str | None = Field(
        None, description="URL of Docker's or Podman's API; else DOCKER_HOST, or the first socket found of both"
    )
    images: dict[str, str] = Field(
        {}, description="stage -> image, best by digest (name@sha256:...); else malmm-<stage>, as built here"
    )
    user: str | None = Field(
        None, description="uid:gid that stages run as; else the user's own, or 10001:10001 for root"
    )


class KubernetesSettings(_Settings):
    """For kind: kubernetes."""

    namespace: str = Field("default", description="where the Jobs run")
    images: dict[str, str] = Field({}, description="stage -> image, best by digest (name@sha256:...)")
    volumes: dict[str, str] = Field(
        {}, description="folder -> name of the PersistentVolumeClaim that holds it; the store's is mounted writable, "
        "the others read-only, each at the folder's own path"
    )  # fmt: skip
    secret: str | None = Field(None, description="Secret whose entries become variables: credentials of an S3 store")
    service_account: str | None = Field(None, description="service account of the pods")
    gpu_resource: str = Field("nvidia.com/gpu", description="name of the resource that gpus counts")
    user: int = Field(10001, ge=1, description="uid and gid that stages run as")
    ttl: int = Field(3600, ge=0, description="seconds until the cluster removes a Job that is done")

    @field_validator("volumes")
    @classmethod
    def _whole_paths(cls, volumes: dict[str, str]) -> dict[str, str]:
        if wrong := [folder for folder in volumes if not folder.startswith("/")]:
            raise ValueError(f"{', '.join(wrong)}: give each folder as an absolute path")
        return volumes


class RunnerSettings(_Settings):
    """Where the stages run."""

    kind: Literal["process", "container", "kubernetes"] = Field(
        "process", description="process: each stage in its virtual environment on this machine"
    )
    cluster: str | None = Field(
        None,
        pattern=r"^(ray|dask)://",
        description="ray://host:10001 or dask://host:8786: where the parts of stages run; else here, in threads",
    )
    side_by_side: int = Field(1, ge=1, description="parts that run at once on this machine")
    gpu_limit: str | None = Field(
        None, description="Prefect's global concurrency limit that a stage with gpus waits for; `malmm up` makes `gpu`"
    )
    stages: dict[Literal[STAGES], Needs] = Field({}, description="stage -> what it may take")
    container: ContainerSettings = Field(default_factory=ContainerSettings, description="for kind: container")
    kubernetes: KubernetesSettings = Field(default_factory=KubernetesSettings, description="for kind: kubernetes")

    def of(self, stage: str) -> Needs:
        """What a stage may take."""
        return self.stages.get(stage, Needs())
