"""Real VisDial answers, as text pairs."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def visdial_pairs(shared: Callable[[str], Path]) -> tuple[list[str], list[str]]:
    """500 true answers, and for each a stand-in for a model's: itself or one of its 100 candidates."""
    data = json.loads(shared("data/visdial/visdial_1.0_val_50dialogs.json").read_text())["data"]
    choose = random.Random(0)
    references, hypotheses = [], []
    for dialogue in data["dialogs"]:
        for turn in dialogue["dialog"]:
            references.append(data["answers"][turn["answer"]])
            other = data["answers"][choose.choice(turn["answer_options"])]
            hypotheses.append(references[-1] if choose.random() < 0.3 else other)
    return references, hypotheses
