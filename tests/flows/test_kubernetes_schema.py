"""What is sent to a cluster, held to Kubernetes's own schemas: fields that they do not know are refused."""

import asyncio
from uuid import uuid4

import pytest
import yaml
from kubernetes import client as k8s
from kubernetes_validate import ValidationError, latest_version, validate
from prefect.client.schemas.objects import FlowRun
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration

from flows.runners import ROOT
from flows.runners.job import config_map_of, job_of, labels_of
from flows.runners.settings import KubernetesSettings, Needs
from stages.contract import Part, Request


@pytest.fixture
def sent(tmp_path) -> dict[str, dict]:
    """A Job that uses every setting, and its ConfigMap, as they go over the wire."""
    config = {"annotations": {"val": str(tmp_path / "val.json")}, "images": str(tmp_path / "images")}
    sources = {"annotations.val": "0" * 64, "images": "1" * 64}
    request = Request(
        stage="ingest", config=config, store=str(tmp_path / "s"), sources=sources, part=Part(number=1, of=4)
    )
    settings = KubernetesSettings(
        images={"ingest": "registry/malmm-ingest@sha256:0"},
        volumes={str(tmp_path): "data", str(tmp_path / "s"): "store"},
        secret="s3",
        service_account="stages",
    )
    needs = Needs(cpus=1.5, memory_gib=2.5, gpus=2, timeout=0.5)
    job = job_of(request, settings, needs, labels_of(request, str(uuid4())))
    job.metadata.uid = str(uuid4())  # as the API gives it back
    serialized = k8s.ApiClient(k8s.Configuration()).sanitize_for_serialization
    return {"job": serialized(job), "config map": serialized(config_map_of(request, job))}


def test_a_stage_s_job_and_its_config_map_are_valid(sent):
    pod = sent["job"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"cpu": "1500m", "memory": "2560Mi", "nvidia.com/gpu": "2"}
    assert len(pod["volumes"]) == 5 and pod["containers"][0]["envFrom"]
    for manifest in sent.values():
        assert validate(manifest, latest_version(), strict=True) == latest_version().rpartition(".")[0]


@pytest.mark.parametrize(
    ("place", "field"),
    [
        (("spec",), "backofflimit"),
        (("spec", "template", "spec"), "activeDeadline"),
        (("spec", "template", "spec", "containers", 0, "securityContext"), "readOnlyRootFileSystem"),
        (("spec", "template", "spec", "volumes", 0, "persistentVolumeClaim"), "claim"),
    ],
)
def test_a_field_misspelt_is_refused(sent, place, field):
    inner = sent["job"]
    for step in place:
        inner = inner[step]
    inner[field] = 0
    with pytest.raises(ValidationError, match=f"'{field}' was unexpected"):
        validate(sent["job"], latest_version(), strict=True)


def test_the_documents_of_the_docs_are_valid():
    documents = list(yaml.safe_load_all((ROOT / "docs/running/kubernetes.yaml").read_text()))
    assert [document["kind"] for document in documents] == ["ServiceAccount", "Role", "RoleBinding"]
    for document in documents:
        validate(document, latest_version(), strict=True)
        with pytest.raises(ValidationError, match="'rule' was unexpected"):
            validate(document | {"rule": []}, latest_version(), strict=True)


def test_the_job_that_prefect_makes_of_a_deployment_is_valid():
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    pool = next(d["work_pool"] for d in deployments if d["name"] == "kubernetes")
    template = KubernetesWorker.get_default_base_job_template()
    assert set(pool["job_variables"]) <= set(template["variables"]["properties"])
    make = KubernetesWorkerJobConfiguration.from_template_and_values
    made = asyncio.run(make(template, pool["job_variables"], client=object()))  # nothing of it is asked of a server
    made.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="smoke"))
    manifest, pod = made.job_manifest, made.job_manifest["spec"]["template"]["spec"]
    assert (pod["containers"][0]["image"], pod["serviceAccountName"]) == ("malmm-orchestrator", "malmm")
    for field in ("completions", "parallelism"):  # Prefect puts these of a Job into its pod, where the API ignores them
        pod.pop(field, None)
    validate(manifest, latest_version(), strict=True)
