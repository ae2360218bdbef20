"""The Kubernetes runner against a small API server: the Job it makes, and what it says of all that may happen."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from kubernetes import client as k8s
from pydantic import ValidationError

from flows.runners import ROOT, RunnerSettings, ending_stages, runner_of
from flows.runners.job import config_map_of, job_of, labels_of
from flows.runners.kubernetes import KubernetesRunner
from flows.runners.pod import Reading
from flows.runners.settings import KubernetesSettings, Needs
from stages.contract import Part, Request, WrongConfig
from tests.flows.fake_kubernetes import Cluster

DONE = 'print(json.dumps({"event": "done", "kind": "samples", "key": "k", "counts": {}}), flush=True)\n'


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    cluster = Cluster(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig()))
    yield cluster
    cluster.close()


@pytest.fixture
def request_(tmp_path) -> Request:
    (tmp_path / "images").mkdir()
    (tmp_path / "val.json").write_text("{}")
    config = {"annotations": {"val": str(tmp_path / "val.json")}, "images": str(tmp_path / "images")}
    sources = {"annotations.val": "0" * 64, "images": "1" * 64}
    return Request(stage="ingest", config=config, store=str(tmp_path / "store"), sources=sources)


@pytest.fixture
def settings(tmp_path) -> KubernetesSettings:
    return KubernetesSettings(images={"ingest": "registry/malmm-ingest@sha256:0"}, volumes={str(tmp_path): "data"})


def runner(settings: KubernetesSettings, patience: float = 60, **needs: float) -> KubernetesRunner:
    return KubernetesRunner(settings, Needs(**needs), poll_seconds=0.02, patience=patience, backoff_seconds=0.001)


def test_a_stage_runs_and_its_events_come_in_order(cluster, request_, settings):
    cluster.program = (
        """
request = json.load(open(sys.argv[2]))
print("a warning of a library", file=sys.stderr, flush=True)
for n in range(3):
    event = {"event": "progress", "done": n, "total": 3, "unit": request["stage"] + " " + sys.argv[1]}
    print(json.dumps(event), flush=True)
"""
        + DONE
    )
    events: list = []
    assert runner(settings).run(request_, events.append) == 0
    assert [event["event"] for event in events] == ["log", *["progress"] * 3, "done"]
    assert events[0]["message"] == "a warning of a library" and events[1]["unit"] == "ingest run"
    assert len(cluster.objects["jobs"]) == 1, "a Job that is done stays for its TTL, with its log"


@pytest.mark.parametrize(
    ("program", "terminated", "code", "said"),
    [
        (
            'print(json.dumps({"event": "error", "error": "BadInput", "message": "a.json"})); sys.exit(65)',
            {},
            65,
            "a.json",
        ),
        ("print('Traceback: no such thing'); sys.exit(70)", {}, 70, "exit code 70 without a last word: Traceback: no"),
        ("os.kill(os.getpid(), 9)", {}, -9, "killed by SIGKILL"),
        ("os.kill(os.getpid(), 9)", {"reason": "OOMKilled"}, -9, "more memory than 2 GiB: raise runner.stages.<stage>"),
        ("sys.exit(255)", {}, 255, "exit code 255"),
    ],
)
def test_exit_codes_are_those_of_the_stage(cluster, request_, settings, program, terminated, code, said):
    cluster.program, cluster.terminated = program, terminated
    events: list = []
    assert runner(settings, memory_gib=2).run(request_, events.append) == code
    assert events[-1]["event"] == "error" and said in events[-1]["message"]


def test_an_image_that_does_not_exist_is_a_wrong_config_and_its_job_goes(cluster, request_, settings):
    cluster.waiting = {"reason": "ImagePullBackOff", "message": "manifest unknown"}
    events: list = []
    assert runner(settings, patience=0.3).run(request_, events.append) == 78
    assert "registry/malmm-ingest@sha256:0: ImagePullBackOff: manifest unknown" in events[-1]["message"]
    assert not cluster.objects["jobs"] and not cluster.objects["configmaps"]


def test_a_pod_without_a_node_waits_and_says_so_once(cluster, request_, settings):
    cluster.program, cluster.unschedulable = DONE, "0/3 nodes are available: 3 Insufficient nvidia.com/gpu"
    found_a_node = threading.Timer(0.5, setattr, (cluster, "unschedulable", ""))
    events: list = []

    def hear(event: dict) -> None:
        if not events:
            found_a_node.start()
        events.append(event)

    assert runner(settings).run(request_, hear) == 0
    assert [event["message"] for event in events if event["event"] == "log"] == [
        "FailedScheduling: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu"
    ]


def test_a_stage_that_hangs_is_ended_by_its_timeout(cluster, request_, settings):
    cluster.program = "time.sleep(600)"
    events: list = []
    assert runner(settings, timeout=0.5).run(request_, events.append) == 75
    assert events[-1]["error"] == "TimedOut"


@pytest.mark.parametrize("how", ["evicted", "deleted"])
def test_a_pod_that_is_taken_away_may_pass_later(cluster, request_, settings, how):
    cluster.program = 'print(json.dumps({"event": "log", "message": "begun"}), flush=True); time.sleep(600)'
    events: list = []

    def take(event: dict) -> None:
        events.append(event)
        for pod in list(cluster.objects["pods"]):
            cluster.take(pod, "Evicted") if how == "evicted" else cluster.end_pod(pod)

    assert runner(settings).run(request_, take) == 75
    assert ("Evicted" if how == "evicted" else "was deleted") in events[-1]["message"]


def test_a_cancelled_run_deletes_its_job(cluster, request_, settings):
    cluster.program = 'print(json.dumps({"event": "log", "message": "begun"}), flush=True); time.sleep(600)'

    def cancel(event: dict) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner(settings).run(request_, cancel)
    assert not cluster.objects["jobs"] and not cluster.objects["pods"]
    assert all(process.poll() is not None for process in cluster.processes.values())


def test_a_job_in_another_thread_is_deleted_when_the_flow_is_stopped(cluster, request_, settings):
    cluster.program = 'print(json.dumps({"event": "log", "message": "begun"}), flush=True); time.sleep(600)'
    begun = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(runner(settings).run, request_, lambda event: begun.set())
        with pytest.raises(KeyboardInterrupt), ending_stages():
            assert begun.wait(120)
            raise KeyboardInterrupt
        with pytest.raises(KeyboardInterrupt):
            future.result(timeout=120)
    with ending_stages():  # stages begin again
        pass
    assert not cluster.objects["jobs"] and not cluster.objects["pods"]


def test_a_log_that_breaks_off_loses_no_line_and_doubles_none(cluster, request_, settings):
    cluster.break_log_every = 40
    cluster.program = (
        'for n in range(200): time.sleep(0.002); print(json.dumps({"event": "log", "message": n}), flush=True)\n' + DONE
    )
    events: list = []
    assert runner(settings).run(request_, events.append) == 0
    assert cluster.break_log_every > 42, "it did break off, more than once"
    assert [event["message"] for event in events[:-1]] == list(range(200))


def test_lines_of_one_instant_are_told_apart_by_their_number():
    log = [f"2026-11-22T10:00:00.00000000{second}Z line {n}\n" for n, second in enumerate((1, 1, 1, 2, 2))]
    reading = Reading()
    got = [line for end in (2, 4, 5) for line in reading.new(log[:end])]
    assert got == [f"line {n}\n" for n in range(5)]


def test_an_api_that_is_away_for_a_while_is_waited_for(cluster, request_, settings):
    cluster.program = DONE
    cluster.refusals = [503, 503, 0, 429, 0, 500, 0, 503, 503]
    assert runner(settings).run(request_, lambda event: None) == 0 and not cluster.refusals


def test_an_api_that_stays_away_may_pass_later_and_one_that_forbids_does_not(cluster, request_, settings):
    events: list = []
    cluster.forbidden = ("create", "jobs")
    assert runner(settings).run(request_, events.append) == 78
    assert 'cannot create resource "jobs"' in events[-1]["message"] and "kubernetes.md" in events[-1]["message"]
    cluster.refusals = [503] * 100
    assert runner(settings).run(request_, events.append) == 75
    assert "503" in events[-1]["message"]


def test_without_a_cluster_the_config_is_wrong(request_, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    events: list = []
    assert runner(settings).run(request_, events.append) == 78 and "set KUBECONFIG" in events[-1]["message"]


def test_what_a_killed_orchestrator_left_is_gone_before_the_next_try_begins(cluster, request_, settings):
    cluster.program = "time.sleep(600)"
    part = request_.model_copy(update={"part": Part(number=1, of=3)})
    labels = {n: labels_of(r) for n, r in (("same", request_), ("part", part))}
    labels["other"] = labels_of(request_.model_copy(update={"only": ("one",)}))
    api = k8s.BatchV1Api(k8s.ApiClient(k8s.Configuration(host=f"http://127.0.0.1:{cluster.server.server_address[1]}")))
    left = {n: job_of(request_, settings, Needs(), ls) for n, ls in labels.items()}
    for job in left.values():
        api.create_namespaced_job("default", job)
    cluster.program = DONE
    events: list = []
    assert runner(settings).run(request_, events.append) == 0
    assert left["other"].metadata.name in cluster.objects["jobs"], "other work goes on"
    for name in ("same", "part"):
        assert left[name].metadata.name not in cluster.objects["jobs"]
        assert any(left[name].metadata.name in event.get("message", "") for event in events)


def test_a_part_runs_beside_other_parts_but_not_beside_a_whole_run(cluster, request_, settings):
    cluster.program = "time.sleep(600)"
    api = k8s.BatchV1Api(k8s.ApiClient(k8s.Configuration(host=f"http://127.0.0.1:{cluster.server.server_address[1]}")))
    parts = [request_.model_copy(update={"part": Part(number=n, of=3)}) for n in range(3)]
    left = [job_of(request_, settings, Needs(), labels_of(r)) for r in (request_, parts[1], parts[2])]
    for job in left:
        api.create_namespaced_job("default", job)
    cluster.program = DONE
    assert runner(settings).run(parts[1], lambda event: None) == 0
    assert [job.metadata.name in cluster.objects["jobs"] for job in left] == [False, False, True]


def test_the_job_asks_for_what_the_config_says_and_may_do_little_else(request_, settings, tmp_path):
    settings = settings.model_copy(
        update={"volumes": {str(tmp_path): "media", str(tmp_path / "store"): "store"}, "secret": "s3", "ttl": 60}
    )
    needs = Needs(cpus=1.5, memory_gib=3, gpus=2, timeout=90.5)
    job = job_of(request_, settings, needs, labels_of(request_, run="00000000-0000-0000-0000-000000000000"))
    api = k8s.ApiClient(k8s.Configuration())
    sent = api.sanitize_for_serialization(job)
    assert api.sanitize_for_serialization(api.deserialize(json.dumps(sent), "V1Job", "application/json")) == sent

    pod = sent["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert sent["spec"]["backoffLimit"] == 0 and sent["spec"]["ttlSecondsAfterFinished"] == 60
    assert pod["restartPolicy"] == "Never" and pod["activeDeadlineSeconds"] == 91
    assert pod["automountServiceAccountToken"] is False
    assert (
        pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    )
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert {"name": "OMP_NUM_THREADS", "value": "2"} in container["env"]
    asked = {"cpu": "1500m", "memory": "3072Mi", "nvidia.com/gpu": "2"}
    assert container["resources"] == {"requests": asked, "limits": asked}
    assert container["envFrom"] == [{"secretRef": {"name": "s3"}}]
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
    assert mounts == {
        str(tmp_path): True,
        str(tmp_path / "store"): False,
        "/request": True,
        "/tmp": False,
        "/dev/shm": False,
    }
    remote = job_of(request_.model_copy(update={"store": "s3://bucket/x"}), settings, needs, labels_of(request_))
    (container,) = remote.spec.template.spec.containers
    writable = {mount.mount_path for mount in container.volume_mounts if not mount.read_only}
    assert container.env_from[0].secret_ref.name == "s3" and writable == {"/tmp", "/dev/shm"}
    owned = config_map_of(request_, job.model_copy(update={"metadata": k8s.V1ObjectMeta(name="job", uid="1-2-3")}))
    assert owned.metadata.owner_references[0].uid == "1-2-3"
    assert Request.model_validate_json(owned.data["request.json"]) == request_


def test_what_a_pod_would_not_find_is_named_before_it_starts(request_, settings, tmp_path):
    labels = labels_of(request_)
    with pytest.raises(ValidationError, match="data: give each folder as an absolute path"):
        KubernetesSettings(volumes={"data": "claim"})
    with pytest.raises(WrongConfig, match=r"runner\.kubernetes\.images\.ingest"):
        job_of(request_, KubernetesSettings(), Needs(), labels)
    elsewhere = settings.model_copy(update={"volumes": {str(tmp_path / "images"): "data"}})
    with pytest.raises(WrongConfig, match=r"ingest\.annotations\.val: .*val\.json lies in no folder"):
        job_of(request_, elsewhere, Needs(), labels)
    with pytest.raises(WrongConfig, match="a ConfigMap holds 1000000"):
        job_of(request_.model_copy(update={"only": ("x" * 1000,) * 1000}), settings, Needs(), labels)
    with pytest.raises(WrongConfig, match="store: /elsewhere"):
        job_of(request_.model_copy(update={"store": "/elsewhere"}), settings, Needs(), labels)


def test_the_role_of_the_docs_grants_what_it_calls_and_no_more(cluster, request_, settings):
    cluster.program, cluster.waiting = DONE, {"reason": "ErrImagePull", "message": "no"}
    assert runner(settings, patience=0.3).run(request_, lambda event: None) == 78
    cluster.waiting = None
    assert runner(settings).run(request_, lambda event: None) == 0
    role = next(
        d for d in yaml.safe_load_all((ROOT / "docs/running/kubernetes.yaml").read_text()) if d["kind"] == "Role"
    )
    granted = {(verb, kind) for rule in role["rules"] for kind in rule["resources"] for verb in rule["verbs"]}
    assert cluster.calls == granted


def test_the_config_leads_to_it(cluster, request_, settings):
    cluster.program = DONE
    chosen = runner_of(RunnerSettings(kind="kubernetes", kubernetes=settings), "ingest")
    assert chosen == KubernetesRunner(settings, Needs())
