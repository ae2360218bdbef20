"""`malmm status` and ingest at 100,000 samples: 10,000 dialogues made up in VisDial's schema (ten turns, 100 candidates
each), 10,000 small files as images. Times are of the whole command, the start of Python included; beside it,
`malmm --help`, which does nothing else. The first status hashes every file; later ones find the digests remembered.
Goal: under 1 s once digests are remembered.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import Malmm, compare, interleave, publish, say, table
from flows.smoke import CONFIG, generate
from storage import Store, published

ROUNDS = 9
HELP, STATUS = "`malmm --help`", "`malmm status`, digests remembered"
SPLITS = {"train": ("COCO_train2014_{:012d}.jpg", 9_000), "val": ("VisualDialog_val2018_{:012d}.jpg", 1_000)}


def main() -> None:
    work = Path(sys.argv[1]) / "status"
    say("10,000 dialogues")
    malmm, config = Malmm(work), [str(CONFIG), *(f"--set={override}" for override in make(work))]
    first = seconds_of(lambda: malmm("status", *config))
    say("ingest")
    whole = seconds_of(lambda: malmm("stage", "ingest", "--config", *config))
    samples = published(Store(work), "samples")[0]
    count, inside = samples.read_json("checks.json")["samples"], samples.manifest["seconds"]
    say("status")
    ways = {HELP: lambda: malmm("--help"), STATUS: lambda: malmm("status", *config)}
    rows = [["`malmm status`, everything hashed for the first time", f"{first:.2f}", "-"]]
    rows += compare(interleave(ways, ROUNDS), HELP, 1, "")
    publish(
        __doc__,
        table("The command", ["", "seconds", "relative"], rows),
        table(
            f"`malmm stage ingest`, {count:,} samples",
            ["", "seconds", "samples a second"],
            [
                ["the stage's own work", f"{inside:.1f}", f"{count / inside:,.0f}"],
                ["the whole command", f"{whole:.1f}", f"{count / whole:,.0f}"],
            ],
        ),
    )


def seconds_of(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def make(work: Path) -> list[str]:
    """Annotations and images; the config's overrides for them."""
    overrides = generate(work)  # the language model; its dialogues and images are not used
    images = work / "visdial"
    images.mkdir()
    for split, (pattern, number) in SPLITS.items():
        (work / f"{split}.json").write_text(json.dumps(dialogues(split, number)))
        for image in range(number):
            (images / pattern.format(image)).write_bytes(f"{split} {image}".encode())
    given = {"images": images} | {f"ingest.annotations.{split}": work / f"{split}.json" for split in SPLITS}
    return [*overrides, *(f"{name}={json.dumps(str(path))}" for name, path in given.items())]


def dialogues(split: str, number: int) -> dict:
    """VisDial v1.0's schema; as many distinct questions and answers as there are dialogues, drawn at random."""
    draw = random.Random(split)
    turns = [
        {
            "question": draw.randrange(number),
            "answer_options": (options := draw.choices(range(number), k=100)),
            "gt_index": (place := draw.randrange(100)),
            "answer": options[place],
        }
        for _ in range(10 * number)
    ]
    listed = [
        {"image_id": image, "caption": f"picture {image}", "dialog": turns[10 * image : 10 * image + 10]}
        for image in range(number)
    ]
    return {
        "version": "1.0",
        "split": split,
        "data": {
            "questions": [f"is it the picture number {n}" for n in range(number)],
            "answers": [f"no, it is number {n}" for n in range(number)],
            "dialogs": listed,
        },
    }


if __name__ == "__main__":
    main()
