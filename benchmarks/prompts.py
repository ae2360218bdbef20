"""Real material for benchmarks: the demo's dialogues, and the language model that the demo uses."""

import json
from pathlib import Path

from demo.build import build, read_dialogues
from flows import environments
from flows.demo import in_finetune_environment

LLM = "SmolLM2-135M-Instruct"


def dialogues() -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    """(caption, ten turns of question and answer) of each of the demo's photographs."""
    return [(photograph.caption, photograph.turns) for photograph in read_dialogues().photographs]


def questions() -> list[str]:
    """Every distinct question, in the order they are asked."""
    return list(dict.fromkeys(question for _, turns in dialogues() for question, _ in turns))


def candidates() -> list[str]:
    """A hundred candidate answers of one turn, as VisDial ships them."""
    data = json.loads(build(read_dialogues())["dialogues_val.json"])["data"]
    return [data["answers"][i] for i in data["dialogs"][0]["dialog"][5]["answer_options"]]


def language_model(work: Path) -> Path:
    """The demo's language model as a folder of transformers, converted once for all benchmarks."""
    target = work / LLM
    in_finetune_environment("demo.language_model", target, environments.root() / "demo")
    return target
