"""SPICE as far as it goes without CoreNLP's models (350 MB): its jars, its scene graphs' scores, its errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stages.contract import WrongConfig
from stages.evaluate import java
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.spice import spice

# CoreNLP 3.4.1, which the tokenizer of pycocoevalcap brings, has the classes that scene graphs need, but no models.
GRAPHS = """
import json, sys
from pathlib import Path
import jpype
from stages.evaluate.spice import score, start_java

package = start_java(Path(sys.argv[1]))
words = str(jpype.JClass("edu.cmu.meteor.util.Constants").DEFAULT_SYN_DIR_URL)
parts = [jpype.java.net.URL(f"{words}/english.{part}") for part in ("exceptions", "synsets", "relations")]
synonyms = jpype.JClass("edu.cmu.meteor.aligner.SynonymDictionary")(*parts)

def graph(objects, attributes, relations):
    made = package.SceneGraph(synonyms, True)
    for one in objects: made.addObject(one)
    for one in attributes: made.addAttribute(*one)
    for one in relations: made.addRelation(*one)
    return made

pairs = json.loads(sys.argv[2])
print(json.dumps(score(package, *([graph(*pair[i]) for pair in pairs] for i in (0, 1)))))
"""
RIDER = [["man", "horse"], [["man", "young"]], [["man", "horse", "ride"]]]


@pytest.fixture
def jars(tmp_path) -> Path:
    """A folder in which CoreNLP has no models."""
    (tmp_path / "stanford-corenlp-3.6.0.jar").symlink_to(java._jar("tokenizer/stanford-corenlp-3.4.1.jar"))
    return tmp_path


def test_scene_graphs_are_scored_as_spice_does(jars):
    others = [
        RIDER,
        [["man", "horse"], [], [["man", "horse", "ride"]]],  # 3 of the 4 tuples, and no other
        [["guy", "horse"], [["guy", "tall"]], []],  # of 3 tuples the horse is right; a guy is no man to WordNet
        [["cat"], [], []],
    ]
    command = [sys.executable, "-c", GRAPHS, str(jars), json.dumps([[RIDER, other] for other in others])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pytest.approx([1, 6 / 7, 2 / 7, 0])


def test_what_fails_in_java_is_told(jars):
    with pytest.raises(WrongConfig, match=r"SPICE failed \(exit 1; evaluate.spice: .*\): .*englishPCFG"):
        spice([["a man cooks", "a man is cooking"]], ["a man"], jars)


def test_missing_jars_are_named_before_anything_starts(jars):
    found = EvaluateConfig(llm=jars, spice=jars).problems()
    assert len(found) == 1 and "stanford-corenlp-3.6.0-models.jar" in found[0] and "nlp.stanford.edu" in found[0]
    assert "no folder" in EvaluateConfig(llm=jars, spice=jars / "nowhere").problems()[0]
