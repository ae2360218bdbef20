"""python -m benchmarks [NAME ...]: runs the benchmarks and writes their sections of docs/benchmarks.md."""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time

from benchmarks.common import load, machine
from flows import environments
from flows.runners import ROOT, stage_environment

# The environment each runs in: that of what it measures.
BENCHMARKS = {
    "feature_bank": "embed_imagebind",
    "text_embedding": "embed_imagebind",
    "ranking": "finetune",
    "finetune": "finetune",
    "memory_bank": "finetune",
    "frames": "extract_frames",
    "s3": "orchestrator",
    "rerun": "orchestrator",
    "status": "orchestrator",
    "scaling": "orchestrator",
}
DOCUMENT = ROOT / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Written by `make bench` (one of them: `make bench ARGS=NAME`); each section says what ran, where and when. Times are
medians, with the range, of rounds in which the ways take turns; "relative" is the ratio to the row with 1, taken within
each round. "Load" is the average number of processes ready to run in the minute before: near 0 on a quiet machine.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures; writes docs/benchmarks.md.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all where none is named")
    names = parser.parse_args().names or list(BENCHMARKS)
    if wrong := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"there is no benchmark {', '.join(wrong)}; there are {', '.join(BENCHMARKS)}")
    failed = []
    with tempfile.TemporaryDirectory(prefix="malmm-bench-") as work:
        for name in names:
            print(name, file=sys.stderr)
            disturbed, begin = load(), time.monotonic()
            done = subprocess.run(
                [environments.python(BENCHMARKS[name]), "-m", f"benchmarks.{name}", work],
                cwd=ROOT,
                env=stage_environment() | {"TQDM_DISABLE": "1"},
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            if done.returncode:
                failed.append(name)
                continue
            section = write_up(name, json.loads(done.stdout.splitlines()[-1]), disturbed, time.monotonic() - begin)
            keep(name, section)
            print(section)
    if failed:
        print(f"failed: {', '.join(failed)}; their sections of {DOCUMENT.name} are as they were", file=sys.stderr)
    return bool(failed)


def write_up(name: str, found: dict, disturbed: float, seconds: float) -> str:
    """A section: what was measured, on what and when, and the tables."""
    today = datetime.datetime.now(datetime.UTC).date()
    parts = [
        f"## {name}",
        found["about"].strip(),
        f"`make bench ARGS={name}`: {today}, {seconds:.0f} s, load {disturbed:.1f} before; {machine()}.",
    ]
    for table in found["tables"]:
        lines = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
        parts += [f"**{table['title']}**", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    return "\n\n".join(parts) + "\n"


def keep(name: str, section: str) -> None:
    """Put a section into the document in place of the earlier one of the same name."""
    sections = {}
    if DOCUMENT.exists():
        for text in DOCUMENT.read_text().split("\n## ")[1:]:
            sections[text.split("\n", 1)[0]] = f"## {text.rstrip()}\n"
    sections[name] = section
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text("\n".join([HEAD, *(sections[known] for known in BENCHMARKS if known in sections)]))


if __name__ == "__main__":
    sys.exit(main())
