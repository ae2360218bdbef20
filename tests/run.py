"""Runs each folder of tests in the environment of its stage, two at a time; `make test` calls it.

    .envs/orchestrator/bin/python tests/run.py [a folder or file under tests/ ...] [options of pytest ...]

The last line counts all tests. The exit status is 0 only if none failed and every folder that should hold
tests does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from flows import environments  # noqa: E402

# Environment and folders, the slowest first, so that they overlap.
SUITES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("orchestrator", ("flows",)),
    ("orchestrator", ("faults", "containers", "clusters", "storage", "environments", "demo")),
    ("evaluate", ("evaluate",)),
    ("extract_frames", ("video", "extract_frames")),
    ("embed_imagebind", ("embed_imagebind",)),
    ("finetune", ("malmm", "finetune")),
    ("ingest", ("ingest",)),
)
SIDE_BY_SIDE = 2
NOTHING_COLLECTED = 5  # pytest's exit status


@dataclass(frozen=True)
class Result:
    """One environment's run: pytest's exit status, its output, and the tests counted by outcome."""

    environment: str
    status: int
    output: str
    seconds: float
    counts: Counter[str]


def choose(arguments: list[str]) -> tuple[list[tuple[str, list[Path]]], list[str]]:
    """Splits the command line: (environment, paths to run) of each suite, and what is left for pytest.

    Paths are those that name something under tests/; without any, every folder that a suite lists.
    """
    paths, options = [], []
    for argument in arguments:
        path = (REPO / argument.split("::")[0]).resolve()
        (paths if path.is_relative_to(REPO / "tests") and path.exists() else options).append(argument)
    chosen: list[tuple[str, list[Path]]] = []
    for environment, folders in SUITES:
        here = [REPO / "tests" / folder for folder in folders]
        if paths:
            picked = [
                REPO / path for path in paths if any((REPO / path.split("::")[0]).is_relative_to(top) for top in here)
            ]
        else:
            picked = here
        if picked:
            chosen.append((environment, picked))
    return chosen, options


def misplaced() -> list[str]:
    """What no environment would run, and what a suite lists that holds no test."""
    tests = REPO / "tests"
    listed = {folder for _, folders in SUITES for folder in folders}
    present = {path.relative_to(tests).parts[0] for path in tests.rglob("test_*.py")}
    return [f"tests/{name} belongs to no suite of tests/run.py" for name in sorted(present - listed)] + [
        f"tests/{name} holds no tests" for name in sorted(listed - present)
    ]


def run(environment: str, paths: list[Path], options: list[str]) -> Result:
    """Runs pytest in one environment and counts what it reports."""
    start = time.monotonic()
    threads = str(max(1, (os.cpu_count() or 2) // SIDE_BY_SIDE))
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    variables["PYTHONPATH"] = os.pathsep.join([str(REPO), str(environments.root() / "testing")])
    variables.setdefault("OMP_NUM_THREADS", threads)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [
            environments.python(environment),
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--color=no",
        ]
        command += [f"--junit-xml={report}", "-o", "junit_family=xunit2", *options, *paths]
        done = subprocess.run(
            command,
            cwd=REPO,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        counts: Counter[str] = Counter()
        if report.exists():
            for case in ElementTree.parse(report).iter("testcase"):
                kinds = {child.tag for child in case}
                counts["failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"] += 1
    return Result(environment, done.returncode, done.stdout, time.monotonic() - start, counts)


def main(arguments: list[str]) -> int:
    """Runs what is asked for and returns the exit status."""
    chosen, options = choose(arguments)
    wrong = misplaced() if not arguments else []
    total: Counter[str] = Counter()
    bad = list(wrong)
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        started = [pool.submit(run, environment, paths, options) for environment, paths in chosen]
        for future in as_completed(started):
            result = future.result()
            print(f"== {result.environment}: {result.seconds:.0f} s\n{result.output.strip()}\n", flush=True)
            total += result.counts
            # A selection such as -k may leave a folder empty; all of them empty is a mistake.
            if result.status and not (arguments and result.status == NOTHING_COLLECTED):
                bad.append(f"{result.environment}: pytest ended with status {result.status}")
    if not sum(total.values()):
        bad.append("no test was run")
    print(*bad, sep="\n", end="\n" if bad else "")
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return 1 if bad or total["failed"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
