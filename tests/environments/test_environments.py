"""Locks and virtual environments: what is committed, and a real one made from nothing."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import environments
from flows.environments import LOCKED, NAMES, REPO, STAGES, EnvironmentFailed, is_current, pins, portable, sync

ENVS = REPO / "envs"


@pytest.mark.parametrize("name", LOCKED)
def test_a_lock_is_portable_and_holds_every_direct_pin(name: str) -> None:
    text = (ENVS / name / "requirements.txt").read_text()
    assert portable(text) == text, "torch's local version, or packages of its CUDA build"
    assert not re.search(r"^\s*-", text, re.MULTILINE), (
        "options such as --find-links belong to the machine, not the lock"
    )
    assert "file://" not in text and not re.search(r"-r /", text)
    locked = pins(ENVS / name / "requirements.txt")
    wanted = pins(ENVS / name / "requirements.in")
    if "-r ../common.in" in (ENVS / name / "requirements.in").read_text():
        wanted |= pins(ENVS / "common.in")
    assert wanted and wanted.items() <= locked.items(), f"run `malmm env lock {name}`"


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_can_read_the_store(name: str) -> None:
    assert pins(ENVS / "common.in").items() <= pins(ENVS / name / "requirements.txt").items()


def test_environments_stay_free_of_each_other() -> None:
    assert "transformers" not in pins(ENVS / "embed_imagebind" / "requirements.txt")
    assert not {"timm", "imagebind-packaged"} & pins(ENVS / "finetune" / "requirements.txt").keys()
    assert "prefect" not in {name for stage in STAGES[1:] for name in pins(ENVS / stage / "requirements.txt")}
    versions = {pins(ENVS / stage / "requirements.txt").get("torch") for stage in STAGES} - {None}
    assert versions == {"2.13.0"}


@pytest.mark.parametrize("name", STAGES)
def test_dockerfiles_put_dependencies_before_code(name: str) -> None:
    text = (ENVS / name / "Dockerfile").read_text()
    first_code = min(text.index(line) for line in text.splitlines() if re.match(r"COPY (stages|storage|flows)\b", line))
    assert text.index("requirements.txt") < text.index("install --quiet -r") < first_code
    assert re.search(r"^USER (?!root|0)", text, re.MULTILINE) and text.startswith("# ") and "ARG BASE_IMAGE" in text
    assert text.rindex("USER ") > text.rindex("RUN ")
    program = "flows" if name == "orchestrator" else f"stages.{name}"
    begins = "CMD" if name == "orchestrator" else "ENTRYPOINT"  # a Prefect worker runs its own command in the flow's
    assert f'\n{begins} ["python", "-m", "{program}"]' in text
    lock = f"envs/{name}/requirements.txt"  # where stages/identity.py reads versions, in an image too
    assert re.search(rf"^COPY {lock} .*envs/{name}/$", text, re.MULTILINE) and f"-r {lock}" in text
    has_overrides = (ENVS / name / "overrides.txt").exists()
    assert has_overrides == (f"--override envs/{name}/overrides.txt" in text)
    uv = pins(ENVS / "orchestrator" / "requirements.txt")["uv"]
    assert f"uv=={uv}" in text
    assert re.findall(r"--no-deps torch==(\S+)", text) == list(filter(None, [pins(ENVS / lock[5:]).get("torch")]))
    assert re.search(r"^ARG BASE_IMAGE=docker.io/library/python:3\.11\S*@sha256:[0-9a-f]{64}$", text, re.MULTILINE)


@given(
    st.sampled_from(["2.13.0+cpu", "2.13.0+cu130", "2.13.0"]),
    st.permutations(["nvidia-nccl", "triton", "cuda-toolkit"]),
)
def test_portable_knows_one_lock_for_every_build_of_torch(version: str, extra: list[str]) -> None:
    cuda = [f"{name}==1.2\n    # via torch\n" for name in extra if "+cpu" not in version]
    torch = f"torch=={version}\n    # via -r x.in\n"
    compiled = "# header\n" + "".join(cuda[:1]) + torch + "".join(cuda[1:]) + "tqdm==4.0\n"
    assert portable(compiled) == "# header\ntorch==2.13.0\n    # via -r x.in\ntqdm==4.0\n"
    assert portable(portable(compiled)) == portable(compiled)


def test_pip_find_links_reach_uv_and_other_environments_do_not() -> None:
    outer = {"PIP_FIND_LINKS": "/a https://b", "VIRTUAL_ENV": "/v", "PYTHONPATH": "/p", "HOME": "/h"}
    inner = environments._uv_environment(outer)
    assert inner["UV_FIND_LINKS"] == "/a,https://b" and inner["HOME"] == "/h"
    assert not {"VIRTUAL_ENV", "PYTHONPATH"} & inner.keys()
    assert environments._uv_environment(outer | {"UV_FIND_LINKS": "/u"})["UV_FIND_LINKS"] == "/u"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(EnvironmentFailed, match="no environment 'fine_tune'; there are orchestrator"):
        sync(["fine_tune"])


def copy_of_envs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requirements: str) -> None:
    """A repository with one small lock, and a place of its own for environments."""
    (tmp_path / "repo" / "envs" / "ingest").mkdir(parents=True)
    (tmp_path / "repo" / "envs" / "ingest" / "requirements.txt").write_text(requirements)
    monkeypatch.setattr(environments, "uv", (lambda path: lambda: path)(environments.uv()))
    monkeypatch.setattr(environments, "REPO", tmp_path / "repo")
    monkeypatch.setenv("MALMM_ENVS", str(tmp_path / "envs"))


def test_a_failure_names_environment_and_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_of_envs(tmp_path, monkeypatch, "malmm-no-such-package==0.0.1\n")
    monkeypatch.setenv("UV_OFFLINE", "1")
    with pytest.raises(EnvironmentFailed) as failure:
        sync(["ingest"], log=lambda _: None)
    told = str(failure.value)
    assert "environment ingest" in told and "uv pip install" in told and "malmm-no-such-package" in told
    assert "malmm env sync ingest" in told
    assert not is_current("ingest")


def run_in(name: str, code: str) -> str:
    command = [environments.python(name), "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.timeout(600)
def test_sync_from_nothing_then_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALMM_ENVS", str(tmp_path))
    said: list[str] = []
    assert sync(["ingest"], log=said.append) == ["ingest"]
    assert len(said) == 2
    with monkeypatch.context() as nothing_can_be_started:
        nothing_can_be_started.setattr(subprocess, "Popen", None)
        assert sync(["ingest"]) == []
    locked = pins(ENVS / "ingest" / "requirements.txt")
    code = "import zarr, pyarrow, orjson; print(zarr.__version__, pyarrow.__version__, orjson.__version__)"
    assert run_in("ingest", code) == f"{locked['zarr']} {locked['pyarrow']} {locked['orjson']}"


def test_what_was_left_half_made_is_made_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_of_envs(tmp_path, monkeypatch, "orjson==3.13.0\n")
    sync(["ingest"], log=lambda _: None)
    package = Path(run_in("ingest", "import orjson; print(orjson.__file__)"))
    environments._stamp_file("ingest").write_text("{}")  # killed half way
    package.unlink()
    assert not is_current("ingest")
    assert sync(["ingest"], log=lambda _: None) == ["ingest"]
    assert run_in("ingest", "import orjson; print(orjson.dumps([]))") == "b'[]'"


def test_a_changed_lock_or_place_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_of_envs(tmp_path, monkeypatch, "tqdm==4.70.1\n")
    environments.python("ingest").parent.mkdir(parents=True)
    environments.python("ingest").touch()
    environments._finish("ingest")
    assert is_current("ingest")
    (tmp_path / "envs").rename(tmp_path / "moved")
    monkeypatch.setenv("MALMM_ENVS", str(tmp_path / "moved"))
    assert not is_current("ingest")
    environments._finish("ingest")
    assert is_current("ingest")
    (tmp_path / "repo" / "envs" / "ingest" / "overrides.txt").write_text("tqdm==4.70.0\n")
    assert not is_current("ingest")


def test_every_name_has_its_folder() -> None:
    assert {path.name for path in ENVS.iterdir() if path.is_dir()} == set(NAMES)
