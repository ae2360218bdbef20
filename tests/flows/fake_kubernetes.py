"""A Kubernetes API as small as the runner needs it, on 127.0.0.1, and a cluster behind it whose pods are processes.

What is sent is held to Kubernetes's own schemas, so a Job that is no Job is refused. A pod runs `program` in the place
of its image, with the arguments and variables that its container is given. Faults are attributes that a test sets.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import yaml
from kubernetes_validate import ValidationError, latest_version, validate

PATH = re.compile(
    r"/(?:api/v1|apis/batch/v1)/namespaces/(?P<ns>[^/]+)/(?P<kind>[a-z]+)(?:/(?P<name>[^/]+))?(?P<log>/log)?$"
)
KINDS = {"jobs": "Job", "configmaps": "ConfigMap"}
LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
TERM = re.compile(r"([^\s,=]+)(?:=([^,]*)| in \(([^)]+)\))")  # of a selector
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


class Cluster:
    """Jobs, pods, ConfigMaps and events of one namespace."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.objects: dict[str, dict[str, dict]] = {"jobs": {}, "pods": {}, "configmaps": {}, "events": {}}
        self.program = ""  # what a pod runs
        self.waiting: dict | None = None  # why containers cannot start
        self.unschedulable = ""  # why pods have no node, until it is emptied
        self.terminated: dict = {}  # laid over how a container ended
        self.refusals: list[int] = []  # statuses of the next calls
        self.forbidden: tuple[str, str] | None = None  # (verb, kind)
        self.break_log_every = 0  # lines after which a log stream breaks off in the middle of the next one
        self.calls: set[tuple[str, str]] = set()  # (verb, kind), as a Role grants them
        self.logs: dict[str, list[bytes]] = {}
        self.processes: dict[str, subprocess.Popen] = {}
        self.changed = threading.Condition()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"cluster": self}))
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def kubeconfig(self) -> Path:
        path, port = self.folder / "kubeconfig", self.server.server_address[1]
        path.write_text(
            yaml.safe_dump({
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "fake",
                "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                "users": [{"name": "fake", "user": {"token": "x"}}],
                "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
            })
        )  # fmt: skip
        return path

    def close(self) -> None:
        for name in list(self.objects["jobs"]):
            self.delete_job(name)
        self.server.shutdown()
        self.server.server_close()

    def create(self, kind: str, body: dict) -> dict:
        name = body["metadata"]["name"]
        body["metadata"]["uid"] = str(uuid.uuid4())
        self.objects[kind][name] = body
        if kind == "jobs":
            body["status"] = {"active": 1}
            threading.Thread(target=self._run, args=(body,), daemon=True).start()
        return body

    def delete_job(self, name: str) -> None:
        """With propagationPolicy Background: what the Job owns goes as well."""
        self.objects["jobs"].pop(name)
        self.objects["configmaps"].pop(name, None)
        self.end_pod(f"{name}-x")

    def end_pod(self, pod: str) -> None:
        """Delete a pod, and wait for its process."""
        if process := self.processes.get(pod):
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
            process.wait()
        self.objects["pods"].pop(pod, None)
        with self.changed:
            self.changed.notify_all()

    def _run(self, job: dict) -> None:
        name, template = job["metadata"]["name"], job["spec"]["template"]
        pod = {
            "metadata": {"name": f"{name}-x", "labels": template["metadata"]["labels"] | {"job-name": name}},
            "spec": template["spec"],
            "status": {"phase": "Pending"},
        }
        self.objects["pods"][f"{name}-x"] = pod
        self.logs[f"{name}-x"] = []
        if self.unschedulable:
            self._event(pod, "FailedScheduling", self.unschedulable)
        while self.unschedulable or name not in self.objects["configmaps"]:
            time.sleep(0.01)
        if self.waiting:
            self._set(pod, "Pending", {"waiting": self.waiting})
        else:
            self._process(pod, template["spec"], self.objects["configmaps"][name]["data"])
            failed = pod["status"]["phase"] == "Failed"
            job["status"] = {"conditions": [{"type": "Failed" if failed else "Complete", "status": "True"}]}

    def _process(self, pod: dict, spec: dict, files: dict[str, str]) -> None:
        name, container = pod["metadata"]["name"], spec["containers"][0]
        folder = self.folder / name
        folder.mkdir()
        for file, text in files.items():
            (folder / file).write_text(text)
        arguments = [argument.replace("/request/", f"{folder}/") for argument in container["args"]]
        self.processes[name] = process = subprocess.Popen(
            [sys.executable, "-c", "import json, os, sys, time\n" + self.program, *arguments],
            env={variable["name"]: variable["value"] for variable in container["env"]},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._set(pod, "Running", {"running": {}})
        if "activeDeadlineSeconds" in spec:
            threading.Timer(spec["activeDeadlineSeconds"], self.take, (name, "DeadlineExceeded")).start()
        for line in process.stdout:
            stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "000000Z")  # some are alike
            with self.changed:
                self.logs[name].append(f"{stamp} ".encode() + line)
                self.changed.notify_all()
        code = process.wait()
        ended = {"exitCode": 128 - code if code < 0 else code, "reason": "Error" if code else "Completed"}
        self._set(pod, "Failed" if code else "Succeeded", {"terminated": ended | self.terminated})

    def take(self, pod: str, reason: str) -> None:
        """End a pod from outside, for a reason that its status tells."""
        if pod in self.objects["pods"] and self.processes[pod].poll() is None:
            self.objects["pods"][pod]["status"]["reason"] = reason
            os.killpg(self.processes[pod].pid, signal.SIGKILL)

    def _set(self, pod: dict, phase: str, state: dict) -> None:
        with self.changed:
            status = {"name": "stage", "image": "x", "imageID": "x", "ready": False, "restartCount": 0, "state": state}
            pod["status"] |= {"phase": phase, "containerStatuses": [status]}
            self.changed.notify_all()

    def _event(self, about: dict, reason: str, message: str) -> None:
        name = about["metadata"]["name"]
        self.objects["events"][f"{name}.1"] = {
            "metadata": {"name": f"{name}.1"},
            "involvedObject": {"name": name},
            "type": "Warning",
            "reason": reason,
            "message": message,
        }


class Handler(BaseHTTPRequestHandler):
    """The API over HTTP."""

    protocol_version = "HTTP/1.1"
    cluster: Cluster

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_DELETE = do_GET

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self) -> None:
        cluster, url = self.cluster, urlparse(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        asked, query = PATH.match(url.path), {name: values[0] for name, values in parse_qs(url.query).items()}
        kind, name = asked["kind"], asked["name"]
        verb = {"POST": "create", "DELETE": "delete"}.get(self.command) or ("get" if name else "list")
        cluster.calls.add((verb, f"{kind}{asked['log'] or ''}"))
        found = cluster.objects[kind]
        if cluster.refusals and (status := cluster.refusals.pop(0)):
            self._refuse(status, "not now")
        elif cluster.forbidden == (verb, kind):
            self._refuse(
                403, f'{kind} is forbidden: User "u" cannot {verb} resource "{kind}" in the namespace "default"'
            )
        elif verb == "create":
            if wrong := _wrong(sent := json.loads(body), KINDS[kind]):
                self._refuse(422, wrong)
            else:
                self._send(201, cluster.create(kind, sent))
        elif verb == "list":
            self._send(200, {"items": [thing for thing in list(found.values()) if _chosen(thing, query)]})
        elif name not in found:
            self._refuse(404, f'{kind} "{name}" not found')
        elif verb == "delete":
            assert query["propagationPolicy"] == "Background"
            cluster.delete_job(name)
            self._send(200, {"status": "Success"})
        elif asked["log"]:
            assert query["timestamps"] == "true"
            self._log(name, query.get("follow") == "true")
        else:
            self._send(200, found[name])

    def _log(self, pod: str, follow: bool) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        cluster, sent, log = self.cluster, 0, self.cluster.logs[pod]
        while True:
            with cluster.changed:
                while follow and sent == len(log) and _is_running(cluster.objects["pods"].get(pod)):
                    cluster.changed.wait(1)
            if sent == len(log):
                break
            line = log[sent]
            if follow and cluster.break_log_every and sent and sent % cluster.break_log_every == 0:
                cluster.break_log_every += 1
                self._chunk(line[: len(line) // 2])
                if cluster.break_log_every % 2:
                    break  # as when the server ends the stream in order
                self.close_connection = True  # as when a proxy gives up
                return
            self._chunk(line)
            sent += 1
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _refuse(self, status: int, message: str) -> None:
        self._send(status, {"kind": "Status", "status": "Failure", "message": message, "code": status})

    def _send(self, status: int, thing: dict) -> None:
        data = json.dumps(thing).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _wrong(sent: dict, kind: str) -> str:
    """Why a body is refused, by the API's schemas and its rules for names and labels."""
    if sent["kind"] != kind:
        return f"not a {kind}"
    try:
        validate(sent, latest_version(), strict=True)
    except ValidationError as error:
        return error.message
    labels = sent["metadata"]["labels"]
    bad = [value for value in labels.values() if len(value) > 63 or not LABEL.fullmatch(value)]
    named = NAME.fullmatch(sent["metadata"]["name"]) and len(sent["metadata"]["name"]) <= 63
    return f"labels {bad}" if bad else "" if named else "name"


def _chosen(thing: dict, query: dict[str, str]) -> bool:
    labels = thing["metadata"].get("labels", {})
    fields = {"involvedObject.name": thing.get("involvedObject", {}).get("name"), "type": thing.get("type")}
    for asked, has in (("labelSelector", labels), ("fieldSelector", fields)):
        for name, value, values in TERM.findall(query.get(asked, "")):
            if has.get(name) not in (values.split(", ") if values else [value]):
                return False
    return True


def _is_running(pod: dict | None) -> bool:
    return pod is not None and "running" in pod["status"]["containerStatuses"][0]["state"]
