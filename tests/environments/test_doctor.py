"""Doctor's judgement, on reports as flows/_probe.py makes them, and on environments that are not there."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flows import doctor, environments, weights
from flows.doctor import Check, examine, passed, table

LOCK = {"torch": "2.13.0", "typing-extensions": "4.16.0"}
REPORT = {
    "python": "3.11.7",
    "packages": {"torch": "2.13.0+cpu", "Typing_Extensions": "4.16.0", "pip": "26.0"},
    "imports": {"torch": None},
    "torch": {"version": "2.13.0+cpu", "cuda": False},
}


def states(checks: list[Check]) -> dict[str, str]:
    return {check.what: check.state for check in checks}


def test_a_sound_environment() -> None:
    assert set(states(examine("finetune", REPORT, LOCK, gpu=False)).values()) == {"ok"}


@pytest.mark.parametrize(
    "change, what, told",
    [
        ({"python": "3.12.1"}, "interpreter", "3.12.1"),
        (
            {"packages": {"torch": "2.12.0", "typing-extensions": "4.16.0"}},
            "packages",
            "torch is 2.12.0, locked 2.13.0",
        ),
        ({"packages": {"torch": "2.13.0"}}, "packages", "typing-extensions 4.16.0 is missing"),
        ({"packages": REPORT["packages"] | {"timm": "1.0"}}, "packages", "timm 1.0 is not in the lock"),
        ({"imports": {"torch": None, "malmm": "ImportError: no"}}, "imports", "malmm: ImportError: no"),
        ({"java_error": "FileNotFoundError: java"}, "Java, for METEOR and the PTB tokenizer", "java"),
    ],
)
def test_each_fault_is_named_with_its_remedy(change: dict, what: str, told: str) -> None:
    checks = examine("finetune", REPORT | change, LOCK, gpu=False)
    failed = [check for check in checks if check.state == "failed"]
    assert [check.what for check in failed] == [what]
    assert told in failed[0].found and failed[0].remedy == "malmm env sync finetune --force"
    assert not passed(checks) and failed[0].remedy in table(checks)


def test_a_gpu_that_torch_cannot_use_is_a_warning() -> None:
    checks = examine("finetune", REPORT, LOCK, gpu=True)
    assert states(checks)["torch"] == "warning" and passed(checks)


def test_every_gpu_is_read_from_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.graphics() == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB, 143000 MiB'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert doctor.graphics() == ["NVIDIA H200, 143771 MiB, 143000 MiB free"]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'driver/library version mismatch'; exit 18\n")
    assert doctor.graphics() == []


def test_cuda_packages_need_no_lock() -> None:
    report = REPORT | {"packages": REPORT["packages"] | {"nvidia-cublas": "13.0", "triton": "3.5"}}
    assert passed(examine("finetune", report, LOCK, gpu=False))


def test_environments_that_are_absent_or_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALMM_ENVS", str(tmp_path))
    environments.python("ingest").parent.mkdir(parents=True)
    environments.python("ingest").symlink_to(sys.executable)
    checks = [check for check in doctor.diagnose(["ingest", "evaluate"]) if check.where in environments.STAGES]
    assert [(check.where, check.what, check.state) for check in checks] == [
        ("ingest", "environment", "failed"),
        ("evaluate", "environment", "failed"),
    ]
    assert checks[1].remedy == "malmm env sync evaluate"


def test_probe_survives_a_module_that_does_not_import(tmp_path: Path) -> None:
    script = Path(doctor.__file__).with_name("_probe.py")
    command = [sys.executable, "-P", str(script), json.dumps(["json", "no_such_module"])]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert report["imports"]["json"] is None and "ModuleNotFoundError" in report["imports"]["no_such_module"]


def test_weights_are_held_to_size_and_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = weights.KNOWN["imagebind_huge"]
    known = replace(entry, sha256=hashlib.sha256(b"four").hexdigest(), size=4)
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    monkeypatch.setattr(weights, "KNOWN", {"imagebind_huge": known})
    assert doctor.weight_files({})[0].state == "warning"
    for content, state in ((b"four", "ok"), (b"five", "failed"), (b"longer", "failed")):
        (tmp_path / known.file).write_bytes(content)
        assert doctor.weight_files({})[0].state == state
    missing = doctor.weight_files({"finetune.llm": tmp_path / "absent"})[1]
    assert missing.state == "failed" and "finetune.llm" in missing.remedy
