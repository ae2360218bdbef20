"""A second `malmm run` of a pipeline whose artifacts are all there (configs/smoke.yaml: the four stages at tiny size),
beside the first, which makes them, and `malmm --help`, which only starts Python. Where
Prefect's server is up already, what is left is the work on keys and store, and Prefect's bookkeeping.
"""

import json
import sys
import time
from pathlib import Path

from benchmarks.common import Malmm, compare, interleave, publish, say, spread, table
from flows.smoke import CONFIG, generate

ROUNDS = 3
RERUN = "`malmm run`, nothing to do"
# `malmm run` again and again in one process: the first call starts Prefect's server and is not counted.
AGAIN = f"""
import json, pathlib, sys, time
from flows.cli.running import run
seconds = []
for _ in range({ROUNDS} + 1):
    begin = time.perf_counter()
    run(pathlib.Path(sys.argv[1]), sys.argv[2:], [])
    seconds.append(time.perf_counter() - begin)
print(json.dumps(seconds[1:]))
"""


def main() -> None:
    work = Path(sys.argv[1]) / "rerun"
    overrides = generate(work)
    malmm = Malmm(work)
    config = [str(CONFIG), *(f"--set={override}" for override in overrides)]
    say("first run")
    begin = time.perf_counter()
    malmm("run", *config)
    rows = [["`malmm run`, the first", f"{time.perf_counter() - begin:.1f}", "-"]]
    say("second runs")
    ways = {"`malmm --help`": lambda: malmm("--help"), RERUN: lambda: malmm("run", *config)}
    rows += compare(interleave(ways, ROUNDS, warm_up=False), RERUN, 1, "")
    again = json.loads(malmm.python("-c", AGAIN, str(CONFIG), *overrides).splitlines()[-1])
    rows.append(["the same in a process that has Prefect's server up", spread(again), "-"])
    publish(__doc__, table("The whole pipeline", ["", "seconds", "relative"], rows))


if __name__ == "__main__":
    main()
