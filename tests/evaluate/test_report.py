import numpy as np
import pytest

from stages.evaluate.report import Context, render, warnings_of
from stages.evaluate.scoring import Answers, Item, score_systems, summarise

ANSWERS = ["yes", "no", "a red ball", "two dogs"] * 6
ITEMS = [
    Item(f"val/{i // 4}/{i % 4}", f"val/{i // 4}", i % 4, "is it | <red>?", (answer,), truth=i % 3)
    for i, answer in enumerate(ANSWERS)
]


CONTEXT = Context("dialogue", "image", "val", "standard", 200, 0, "greedy", majority="yes")


def scored(**texts: list[str]):
    rng = np.random.default_rng(0)
    systems = {
        name: Answers(texts.get(name, ["something else"] * 23 + ["more"]), [rng.random(3) for _ in ITEMS])
        for name in ("untrained", "trained", "permuted", "majority")
    }
    scores, gains = summarise(score_systems(ITEMS, systems, with_meteor=False), [i.dialogue for i in ITEMS], 200, 0)
    return systems, scores, gains


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({"trained": ["", *ANSWERS[1:]]}, "1 of 24 answers are empty (trained)"),
        ({"trained": ["no"] * 24}, "all 24 answers are the same, `no` (trained)"),
        ({"trained": ["x y z w"] * 12 + ["q"] * 12}, "BLEU-1 is nearly 0"),
        ({"trained": ["yes"] * 12 + ["no"] * 12}, "BLEU-4 is nearly 0"),
        ({"trained": ANSWERS, "untrained": ANSWERS}, "training changed no answer"),
        ({}, "only 6 dialogues"),
        ({"trained": ANSWERS, "majority": ANSWERS}, "as well"),
        ({"trained": ANSWERS, "permuted": ANSWERS}, "the images cannot be shown to matter"),
    ],
)
def test_what_is_wrong_is_said(texts, says):
    systems, scores, gains = scored(**texts)
    # Rankings are random here and alike: they must not hide what the texts tell.
    gains = {s: {m: g for m, g in one.items() if m in ("bleu_1", "exact_match")} for s, one in gains.items()}
    assert any(says in warning for warning in warnings_of(CONTEXT, ITEMS, systems, scores, gains))


def test_a_good_model_gets_no_warning():
    systems, scores, gains = scored(trained=ANSWERS, untrained=["yes", *["no idea"] * 20, "", "", "b"])
    found = warnings_of(CONTEXT, ITEMS, systems, scores, gains)
    assert not [warning for warning in found if "(trained)" in warning or "not measurably" in warning]
    assert scores["trained"]["exact_match"].value == pytest.approx(1)


def test_warnings_come_first_and_no_answer_breaks_the_tables():
    odd = ["a | b", "<script>", "*bold*\nand more", "`code`"] * 6
    systems, scores, gains = scored(trained=odd)
    text = render(CONTEXT, ITEMS, systems, scores, gains, ["first", "second"], ["scores.png"])
    assert text.startswith("> **Warning:** first\n>\n> **Warning:** second\n\n# Evaluation\n")
    assert "<script>" not in text and "<red>" not in text
    table = [line for line in text.split("## Examples")[1].splitlines() if line.startswith("|")]
    assert len(table) == 12 and {line.replace("\\|", "").count("|") for line in table} == {7}
    assert "-0.000" not in text
