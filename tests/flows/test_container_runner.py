"""The container runner without an engine: what would be mounted, as whom, and what is said where it cannot be."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows import images
from flows.config import STAGES
from flows.environments import EnvironmentFailed
from flows.runners.container import ContainerRunner, code_of, engine
from flows.runners.mounts import Unfit, allows, check_readable, mounts, paths_of, prepare_store
from flows.runners.reaper import is_gone, owner
from flows.runners.settings import ContainerSettings, Needs
from stages.contract import Request


def test_each_path_is_mounted_once_at_its_place_and_media_are_read_only():
    given = [
        "/data/set/images",
        "/data/set",
        "/data/set",
        "/data/set/store/inputs",
        "/elsewhere/a:b,c.json",
        "/store/logs",
    ]
    made = mounts(map(Path, given), map(Path, ["/data/set/store", "/store", "/store/artifacts"]))
    assert [(m["Source"], m["ReadOnly"]) for m in made] == [
        ("/data/set", True),
        ("/data/set/store", False),
        ("/data/set/store/inputs", True),
        ("/elsewhere/a:b,c.json", True),
        ("/store", False),
        ("/store/logs", True),
    ]
    assert all(m["Source"] == m["Target"] and m["Type"] == "bind" for m in made)
    assert [m["ReadOnly"] for m in mounts([Path("/both")], [Path("/both")])] == [False]


def test_every_path_of_a_config_is_found_and_only_log_dir_is_written(tmp_path):
    config = STAGES["ingest"].model_validate(
        {"images": "a/../b", "annotations": {"train": "/t.json", "val": "/v.json"}}
    )
    assert paths_of(config) == {Path.cwd() / "b": False, Path("/t.json"): False, Path("/v.json"): False}
    written = [path for path, writes in paths_of(STAGES["finetune"](llm=tmp_path)).items() if writes]
    assert written == [Path.cwd() / "logs"]


def test_options_hold_the_container_to_its_inputs(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    (tmp_path / "t.json").write_text("{}")
    config = {"images": str(tmp_path / "none"), "annotations": {"train": str(tmp_path / "t.json")}}
    request = Request(stage="ingest", config=config, store=str(tmp_path / "store"), label="visdial")
    runner = ContainerRunner(ContainerSettings(user="7:8"), Needs(cpus=1.5, memory_gib=2, gpus=1))
    if os.getuid():
        (tmp_path / "store").mkdir(mode=0o777)
    options = runner.options(request)
    assert {m["Target"]: m["ReadOnly"] for m in options["mounts"]} == {
        str(tmp_path / "store"): False,
        str(tmp_path / "t.json"): True,
    }
    assert options["network_mode"] == "none" and "AWS_ACCESS_KEY_ID" not in options["environment"]
    assert (options["user"], options["nano_cpus"], options["mem_limit"]) == ("7:8", 1_500_000_000, 2 << 30)
    assert options["device_requests"][0]["Count"] == 1 and options["environment"]["OMP_NUM_THREADS"] == "2"
    assert not is_gone(options["labels"]["malmm.owner"]) and options["labels"]["malmm.label"] == "visdial"

    reach = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000", "AWS_REGION": "eu-west-1", "FSSPEC_S3_MAX_CONCURRENCY": "4"}
    reach["AWS_CA_BUNDLE"] = str(tmp_path / "ca.crt")
    (tmp_path / "ca.crt").write_text("a certificate")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in reach.items():
        monkeypatch.setenv(name, value)
    remote = runner.options(request.model_copy(update={"store": "s3://bucket/prefix"}))
    assert remote["network_mode"] is None
    assert (reach | {"AWS_ACCESS_KEY_ID": "key"}).items() <= remote["environment"].items()
    assert {m["Target"]: m["ReadOnly"] for m in remote["mounts"]} == {
        str(tmp_path / "ca.crt"): True,
        str(tmp_path / "t.json"): True,
    }


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make folders of other users")
def test_a_store_is_made_for_its_user_and_one_of_somebody_else_is_named_with_the_remedy(tmp_path):
    prepare_store(tmp_path / "new" / "store", 10001, 10001)
    assert (tmp_path / "new" / "store").stat().st_uid == 10001
    (tmp_path / "new" / "store" / "artifacts").mkdir()
    with pytest.raises(Unfit, match=rf"store/artifacts is not writable.*chown -R 10001:10001 {tmp_path}/new/store`"):
        prepare_store(tmp_path / "new" / "store", 10001, 10001)


def test_permission_bits_say_who_may_do_what():
    def about(mode: int) -> os.stat_result:
        return os.stat_result((mode, 0, 0, 0, 7, 8, 0, 0, 0, 0))

    assert allows(about(0o300), 7, 1, 3) and not allows(about(0o077), 7, 8, 3)
    assert allows(about(0o030), 1, 8, 3) and not allows(about(0o020), 1, 8, 3)
    assert allows(about(0o777), 1, 1, 3) and not allows(about(0o775), 0, 0, 3)
    assert allows(about(0o004), 1, 1, 4) and not allows(about(0o600), 1, 1, 4)


def test_inputs_that_the_container_s_user_cannot_read_are_named_with_the_remedy(tmp_path):
    (tmp_path / "model.safetensors").touch(mode=0o600)
    check_readable([tmp_path], os.getuid(), os.getgid())
    tmp_path.chmod(0o755)
    with pytest.raises(Unfit, match=rf"model.safetensors is not readable for user 10001:10001.*a\+rX {tmp_path}`"):
        check_readable([tmp_path], 10001, 10001)


def test_signals_are_negative_and_the_contract_s_codes_stay():
    assert [code_of(code) for code in (0, 65, 70, 75, 78, 130, 255)] == [0, 65, 70, 75, 78, 130, 255]
    assert [code_of(128 + number) for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)] == [-9, -11, -15]


def test_an_engine_is_found_or_its_absence_has_a_remedy(tmp_path, monkeypatch):
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(Path, "exists", lambda path: path.is_relative_to(tmp_path) and os.path.exists(path))
    with pytest.raises(Unfit, match="no container engine: start Docker, or `podman system service"):
        engine(None)
    events: list = []
    request = Request(stage="ingest", config={}, store=str(tmp_path / "store"))
    assert ContainerRunner().run(request, events.append) == 78 and "no container engine" in events[0]["message"]
    (tmp_path / "podman").mkdir()
    (tmp_path / "podman" / "podman.sock").touch()
    assert engine(None) == f"unix://{tmp_path}/podman/podman.sock"
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:2375")
    assert engine(None) == "tcp://127.0.0.1:2375" and engine("unix:///own") == "unix:///own"


def test_an_engine_that_does_not_answer_may_pass_later(tmp_path):
    events: list = []
    request = Request(stage="ingest", config={}, store=str(tmp_path / "store"))
    runner = ContainerRunner(ContainerSettings(socket=f"unix://{tmp_path}/none.sock"))
    assert runner.run(request, events.append) == 75 and "none.sock" in events[0]["message"]


def test_an_owner_is_gone_when_its_process_is_or_another_has_its_number():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    host, _, started = owner().rsplit("/", 2)
    assert not is_gone(owner()) and is_gone(f"{host}/{process.pid}/{started}") and not is_gone("elsewhere/1/1")
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie is gone too
    stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    assert is_gone(f"{host}/{process.pid}/{stat[19]}")
    process.wait()
    process.stdin.close()


def test_images_are_built_by_one_command_of_any_engine(tmp_path):
    variables = {"PIP_FIND_LINKS": f"{tmp_path} https://a.example/whl", "SSL_CERT_FILE": "/ca.crt"}
    assert images.command("finetune", "base@sha256:1", variables) == [
        "build", "-f", "envs/finetune/Dockerfile", "-t", "malmm-finetune", "--build-arg", "BASE_IMAGE=base@sha256:1",
        "--build-context", f"wheels={tmp_path}", "--build-arg", "UV_FIND_LINKS=/wheels,https://a.example/whl",
        "--secret", "id=ca,src=/ca.crt",
    ]  # fmt: skip
    assert len(images.command("finetune", None, {})) == 5
    with pytest.raises(EnvironmentFailed, match="several folders"):
        images.command("finetune", None, {"PIP_FIND_LINKS": f"{tmp_path} /tmp"})


def test_docker_without_buildx_is_named_with_its_remedy(tmp_path, monkeypatch):
    (tmp_path / "docker").write_text("#!/bin/sh\necho \"docker: 'buildx' is not a docker command.\" >&2; exit 1\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFailed, match=r"buildx, which is not installed: install docker-buildx-plugin"):
        images.build(["ingest"], None, "docker", print)
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with pytest.raises(EnvironmentFailed, match="podman or docker or buildah is not installed"):
        images.build(["ingest"], None, None, print)
