"""The stages' environments: made, checked and locked with uv, one virtual environment a stage.

    python -m flows.environments sync [NAME ...]     `malmm env sync` is the same
    python -m flows.environments lock [NAME ...]

Standard library only: it is what a bare machine runs first, and its import must cost nothing. An environment
carries a stamp, the digest of the lock it was made from; where that is current, `sync` returns at once.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
STAGES = ("orchestrator", "ingest", "extract_frames", "embed_imagebind", "finetune", "evaluate")
# Folders of packages without an interpreter: put on PYTHONPATH beside a stage's own packages.
TARGETS = ("testing", "demo", "moto")
NAMES = STAGES + TARGETS
LOCKED = (*STAGES, "testing", "moto")  # the demo's packages need no others

# The wheel of a CUDA build of torch names each of these exactly, so they need no lock of their own; the CPU
# build has none.
_CUDA = re.compile(r"(nvidia|cuda|triton|pytorch-triton)(-|==|$)")


# What the locks are resolved for: torch's wheels need this glibc or a later one.
_FOR = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28")


class EnvironmentFailed(Exception):
    """An environment could not be made or locked; the message names it, the command and the remedy."""


def root() -> Path:
    """Where environments live: MALMM_ENVS, or `.envs` in the repository."""
    return Path(os.environ.get("MALMM_ENVS") or REPO / ".envs").absolute()


def python(stage: str) -> Path:
    """The interpreter of a stage's environment; it need not exist yet."""
    return root() / stage / "bin" / "python"


def uv() -> str:
    """The uv that the orchestrator's environment pins, else the one on PATH."""
    own = (Path(sys.prefix, "bin", "uv"), root() / "orchestrator" / "bin" / "uv")
    found = next((str(path) for path in own if path.exists()), None) or shutil.which("uv")
    if found is None:
        raise EnvironmentFailed("uv is not installed, and it makes the environments: run `make setup`")
    return found


def lock_digest(name: str) -> str:
    """SHA-256 over what an environment is made from: its lock and, where it has one, its overrides."""
    digest = hashlib.sha256()
    for file in ("requirements.txt", "overrides.txt"):
        path = REPO / "envs" / name / file
        digest.update(path.read_bytes() if path.exists() else b"")
        digest.update(b"\0")
    return digest.hexdigest()


def is_current(name: str) -> bool:
    """Whether the environment was made, to the end, from the present lock and in the present place."""
    if name in STAGES and not python(name).exists():
        return False
    try:
        return json.loads(_stamp_file(name).read_text()) == _stamp(name)
    except (OSError, ValueError):
        return False


def sync(names: Iterable[str] = NAMES, force: bool = False, log: Callable[[str], None] = print) -> list[str]:
    """Makes the named environments as their locks say, and returns those that had to be made.

    An environment of the present lock costs a few milliseconds; `force` makes it again all the same. One that
    was left half made is made again from nothing. Two calls at once wait for each other.
    """
    stale = [name for name in _known(names) if force or not is_current(name)]
    if not stale:
        return []
    root().mkdir(parents=True, exist_ok=True)
    with _alone():
        stale = [name for name in stale if force or not is_current(name)]
        for name in stale:
            start = time.monotonic()
            log(f"environment {name}: installing")
            if name in STAGES:
                _make_stage(name)
            else:
                _make_target(name)
            log(f"environment {name}: ready after {time.monotonic() - start:.0f} s")
    return stale


def lock(names: Iterable[str] = STAGES, upgrade: bool = False, log: Callable[[str], None] = print) -> None:
    """Compiles envs/<name>/requirements.in to requirements.txt; locked versions stay, unless `upgrade`."""
    for name in _known(names):
        folder = REPO / "envs" / name
        if not (folder / "requirements.in").exists():
            raise EnvironmentFailed(f"envs/{name}/requirements.in does not exist, so there is nothing to lock")
        target, draft = folder / "requirements.txt", folder / "requirements.txt.new"
        if target.exists() and not upgrade:
            shutil.copyfile(target, draft)  # uv prefers the versions it finds in its output
        try:
            _uv(name, "pip", "compile", "--quiet", f"envs/{name}/requirements.in", *_overrides(name), *_FOR,
                "--output-file", f"envs/{name}/requirements.txt.new",
                "--custom-compile-command", f"malmm env lock {name}")  # fmt: skip
            draft.write_text(portable(draft.read_text()))
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
        log(f"envs/{name}/requirements.txt: {len(pins(target))} packages")


def portable(text: str) -> str:
    """A compiled lock without what hangs on its machine: torch's build, and the packages of a CUDA build."""
    kept, skipping = [], False
    for line in text.splitlines():
        if line and not line.startswith((" ", "#")):
            skipping = bool(_CUDA.match(line))
            line = re.sub(r"^([A-Za-z0-9_.-]+==[^\s;+]+)\+[A-Za-z0-9.]+", r"\1", line)
        if not skipping:
            kept.append(line)
    return "\n".join(kept) + "\n"


def pins(requirements: Path) -> dict[str, str]:
    """The `name==version` lines of a lock, names in lower case with hyphens (PEP 503)."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", requirements.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def _make_stage(name: str) -> None:
    folder = root() / name
    own = folder == Path(sys.prefix)  # the orchestrator's environment may be the one that runs this
    made_before = _stamp_file(name).exists()
    if not own:
        base = getattr(sys, "_base_executable", sys.executable)
        _uv(name, "venv", "--quiet", "--clear", "--no-python-downloads", "--python", base, str(folder))
    _stamp_file(name).write_text("{}")  # until it is finished, it is half made
    command = ["pip", "install", "--python", str(python(name)), "--exact"]
    command += ["-r", f"envs/{name}/requirements.txt", *_overrides(name)]
    if own and made_before:
        command.append("--reinstall")  # half made, forced, or moved: then its scripts name the old place
    if name == "orchestrator":
        # The project itself, for the `malmm` command; it has no dependencies. A user's shell may forbid
        # Python to write bytecode, and Prefect takes 6 s to import without. The runner lifts that for stages,
        # whose first run compiles what it imports: a quarter of what all of torch and transformers would take
        # here.
        command += ["--editable", str(REPO), "--compile-bytecode"]
    _uv(name, *command)
    _finish(name)


def _make_target(name: str) -> None:
    folder, draft = root() / name, root() / f".{name}.new"
    shutil.rmtree(draft, ignore_errors=True)
    place = ["--python", sys.executable, "--target", str(draft)]
    _uv(name, "pip", "install", *place, "--no-deps", "-r", f"envs/{name}/requirements.txt")
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    _finish(name)


def _uv(name: str, *arguments: str) -> None:
    """Runs uv in the repository. Its words go to the terminal, or where there is none into the error."""
    command = [uv(), *arguments]
    terminal = sys.stderr.isatty()
    done = subprocess.run(
        command,
        cwd=REPO,
        env=_uv_environment(os.environ),
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=None if terminal else subprocess.PIPE,
        stderr=None if terminal else subprocess.STDOUT,
    )
    if done.returncode:
        said = "" if terminal else "\n" + "\n".join(done.stdout.strip().splitlines()[-15:])
        raise EnvironmentFailed(
            f"environment {name}: `uv {' '.join(arguments)}` failed, exit status {done.returncode}.{said}\n"
            f"Nothing else was changed; when the cause is mended, `malmm env sync {name}` takes it up again."
        )


def _uv_environment(outer: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    """The variables uv runs with: none that point it at another environment, and pip's find-links as its own.

    A machine offers its builds of torch in PIP_FIND_LINKS, but uv reads UV_FIND_LINKS alone.
    """
    dropped = {"VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME", "UV_PROJECT_ENVIRONMENT"}
    variables = {key: value for key, value in outer.items() if key not in dropped}
    if links := find_links(outer):
        variables["UV_FIND_LINKS"] = ",".join(links)
    variables.setdefault("UV_HTTP_TIMEOUT", "300")
    return variables


def find_links(variables: Mapping[str, str]) -> list[str]:
    """Folders and pages of packages beside the index: uv's, which commas part, else pip's, which blanks do."""
    ours = [link for link in variables.get("UV_FIND_LINKS", "").split(",") if link]
    return ours or variables.get("PIP_FIND_LINKS", "").split()


def _overrides(name: str) -> list[str]:
    return ["--override", f"envs/{name}/overrides.txt"] if (REPO / "envs" / name / "overrides.txt").exists() else []


def _known(names: Iterable[str]) -> list[str]:
    names = list(names)
    for name in names:
        if name not in NAMES:
            raise EnvironmentFailed(f"there is no environment {name!r}; there are {', '.join(NAMES)}")
        if not (REPO / "envs" / name).is_dir():
            raise EnvironmentFailed(f"envs/{name} does not exist")
    return names


def _stamp(name: str) -> dict[str, str]:
    return {
        "lock": lock_digest(name),
        "python": platform.python_version(),
        "place": str(root() / name),
        "repository": str(REPO) if name == "orchestrator" else "",  # its `malmm` command names the repository
    }


def _stamp_file(name: str) -> Path:
    return root() / name / ".malmm.json"


def _finish(name: str) -> None:
    draft = _stamp_file(name).with_suffix(".new")
    draft.write_text(json.dumps(_stamp(name)))
    draft.replace(_stamp_file(name))


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    with (root() / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: list[str] | None = None) -> int:
    """The command line, for a machine that has no `malmm` yet. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flows.environments", description="Makes the stages' environments.")
    parser.add_argument("action", choices=["sync", "lock"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all where none is named")
    parser.add_argument("--force", action="store_true", help="sync: make them again though they are current")
    parser.add_argument("--upgrade", action="store_true", help="lock: take the newest versions that fit")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.action == "sync":
            sync(chosen.names or NAMES, force=chosen.force)
        else:
            lock(chosen.names or LOCKED, upgrade=chosen.upgrade)
    except EnvironmentFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
