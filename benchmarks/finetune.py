"""Training with the demo's recipe on the CPU (configs/demo.yaml: model, batch, language model SmolLM2-135M-Instruct),
on the demo's own dialogues; random embeddings stand in for ImageBind's and cost the same. Start-up and the first steps
are left out; a value is one optimizer step.
"""

import itertools
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import yaml
from accelerate import Accelerator

from benchmarks.common import publish, say, spread, table
from benchmarks.prompts import dialogues, language_model
from malmm.model import build_model
from stages.finetune.config import FinetuneConfig
from stages.finetune.data import COLUMNS, TrainingData
from stages.finetune.media import Images
from stages.finetune.run import model_config
from stages.finetune.schedule import Schedule
from stages.finetune.train import train
from storage.tables import SAMPLES

WARM_UP, STEPS = 3, 12
DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"


def main() -> None:
    llm = language_model(Path(sys.argv[1]))
    config = FinetuneConfig(**yaml.safe_load(DEMO.read_text())["finetune"] | {"llm": llm, "device": "cpu"})
    data = made_up()
    say("model")
    model = build_model(model_config(config, *data.widths), llm, "cpu")
    schedule = Schedule(
        data.lengths, config.batch, config.accumulate, config.epochs, WARM_UP + STEPS, config.lr, 0, config.seed
    )
    begins, sizes = [], []

    def tell(step: int, samples: int, values: dict[str, float]) -> None:
        begins.append(time.perf_counter())
        sizes.append(samples)

    say(f"{WARM_UP + STEPS} steps")
    train(
        model,
        data,
        schedule,
        Accelerator(cpu=True),
        config.weight_decay,
        config.grad_clip,
        None,
        10**6,
        lambda state: None,
        tell,
    )
    seconds = [b - a for a, b in itertools.pairwise(begins)][WARM_UP - 1 :]
    sizes = sizes[WARM_UP:]
    trained = sum(p.numel() for p in model.trained_parameters().values())
    publish(
        __doc__,
        table(
            f"Recipe {config.recipe}, {trained / 1e6:.1f} M parameters, batch {config.batch} x {config.accumulate}",
            ["", "median (range)"],
            [
                ["samples a second", spread(n / s for n, s in zip(sizes, seconds, strict=True))],
                ["seconds a step", spread(seconds)],
            ],
        ),
    )


def made_up() -> TrainingData:
    """The demo's dialogues as finetune reads them from a store."""
    rows = [
        {
            "sample": f"train/{image}/{number}",
            "media": str(image),
            "media_kind": "image",
            "media_path": str(image),
            "start": None,
            "end": None,
            "turn": number,
            "caption": caption,
            "history": [{"question": q, "answer": a} for q, a in turns[:number]],
            "question": question,
            "answer": answer,
        }
        for image, (caption, turns) in enumerate(dialogues())
        for number, (question, answer) in enumerate(turns)
    ]
    columns = pa.schema([SAMPLES.field(name) for name in COLUMNS])
    images = np.array([int(row["media"]) for row in rows])
    texts, question = np.unique([row["question"] for row in rows], return_inverse=True)
    torch.manual_seed(0)
    vision, text = (torch.randn(n, 1024).half() for n in (images.max() + 1, len(texts)))
    return TrainingData(pa.Table.from_pylist(rows, schema=columns), Images(vision, images), text, question, {})


if __name__ == "__main__":
    main()
