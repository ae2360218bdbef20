"""What benchmarks share: interleaved repeats, ratios with median and range, the machine. Standard library only."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Seconds = dict[str, list[float]]  # way -> seconds of each round


def interleave(ways: Mapping[str, Callable[[], Any]], rounds: int, warm_up: bool = True) -> Seconds:
    """Seconds of each way in each round. A round runs every way once, starting with another one each time, so that
    what else the machine does meets them alike. One round before is not counted, where `warm_up` is set.
    """
    names = list(ways)
    found: Seconds = {name: [] for name in names}
    for number in range(-int(warm_up), rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            begin = time.perf_counter()
            ways[name]()
            seconds = time.perf_counter() - begin
            if number >= 0:
                found[name].append(seconds)
    return found


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """The ratio within each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def each(seconds: Seconds, counts: Mapping[str, int]) -> Seconds:
    """Seconds for one item, where the ways did not get equally many."""
    return {name: [t / counts[name] for t in times] for name, times in seconds.items()}


def spread(values: Iterable[float], unit: str = "") -> str:
    """Median and range, to three digits: `1.23 (1.10-1.31)`."""
    values = list(values)
    low, middle, high = (_digits(v) for v in (min(values), statistics.median(values), max(values)))
    text = middle if len(values) == 1 else f"{middle} ({low}-{high})"
    return f"{text} {unit}".rstrip()


def compare(seconds: Seconds, baseline: str, scale: float = 1e3, unit: str = "ms") -> list[list[str]]:
    """Rows `way | time | time relative to the baseline`; `scale` turns seconds into `unit`."""
    return [
        [
            name,
            spread((t * scale for t in times), unit),
            "1" if name == baseline else spread(ratios(times, seconds[baseline])),
        ]
        for name, times in seconds.items()
    ]


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> dict[str, Any]:
    return {"title": title, "columns": list(columns), "rows": [list(row) for row in rows]}


def publish(about: str | None, *tables: Mapping[str, Any]) -> None:
    """The last line a benchmark prints: its docstring and its tables, as JSON."""
    print(json.dumps({"about": about, "tables": tables}), flush=True)


def say(text: str) -> None:
    """A line for who watches."""
    print(f"  {text}", file=sys.stderr, flush=True)


def machine() -> str:
    """CPU model, cores, memory, system, Python: no name of the machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    models = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return (
        f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB; "
        f"{platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}"
    )


def load() -> float:
    """Processes that were ready to run, on average over the last minute."""
    return os.getloadavg()[0]


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


class Malmm:
    """Runs `malmm` commands as a user would, with a cache and a Prefect of their own below `work`."""

    def __init__(self, work: Path):
        self.env = os.environ | {"MALMM_CACHE": str(work / "cache"), "PREFECT_HOME": str(work / "prefect")}

    def __call__(self, *arguments: str) -> str:
        """`malmm ARGUMENTS`: what it prints. Ends the benchmark, saying why, where it fails."""
        return self.python("-m", "flows", *arguments)

    def python(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=self.env,
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        if done.returncode:
            sys.exit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout
