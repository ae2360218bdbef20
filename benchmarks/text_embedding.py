"""Text embedding by imagebind_huge's text encoder (1024 wide, 24 blocks; random weights) of 96 questions: 64 of
the demo's and 32 of them again with "in the photo" behind, about as long as VisDial's.

Upstream runs all 77 tokens of every prompt, in the order given; here that is `imagebind-packaged` itself, in batches of
32. malmm crops each batch to its prompts and sorts by length, also in batches of 32, the padding of the last batch of a
length of prompts included. float32. Upstream's cost does not depend on the prompt, so it is given fewer of them.
"""

from dataclasses import replace

import numpy as np
import torch

from benchmarks.common import compare, each, interleave, publish, say, table
from benchmarks.prompts import questions
from stages.embed_imagebind.embed import Embedder
from stages.embed_imagebind.model import ARCHITECTURES
from stages.embed_imagebind.reference import ReferenceImageBind
from stages.embed_imagebind.tokenizer import tokenize
from stages.embed_imagebind.weights import random_weights

BATCH, ROUNDS = 32, 3


def main() -> None:
    # Full size for text alone: the other encoders do not run, so they need not be drawn.
    huge = ARCHITECTURES["huge"]
    ARCHITECTURES["text"] = replace(
        ARCHITECTURES["tiny"],
        text_embed_dim=huge.text_embed_dim,
        text_num_blocks=huge.text_num_blocks,
        text_num_heads=huge.text_num_heads,
    )
    say("weights")
    tensors = random_weights(ARCHITECTURES["text"], seed=0)
    ours = Embedder("malmm", "text", tensors, text_batch=BATCH)
    upstream = ReferenceImageBind(ARCHITECTURES["text"], tensors)
    short = questions()[:64]
    texts = short + [f"{question} in the photo" for question in short[:32]]
    tokens = torch.from_numpy(tokenize(texts[:BATCH]).astype(np.int64))
    rows: dict[str, np.ndarray] = {}

    def run_upstream() -> None:
        with torch.inference_mode():
            rows["upstream"] = upstream("text", tokens).numpy()

    def run_ours() -> None:
        rows["ours"] = ours.text(texts)

    say(f"{len(texts)} questions")
    seconds = interleave(
        {"upstream's package, 77 tokens": run_upstream, "malmm, cropped and sorted": run_ours}, ROUNDS, warm_up=False
    )
    counts = {"upstream's package, 77 tokens": BATCH, "malmm, cropped and sorted": len(texts)}
    apart = np.abs(rows["ours"][:BATCH] - rows["upstream"]).max() / np.linalg.norm(rows["upstream"], axis=1).max()
    publish(
        __doc__,
        table(
            f"{len(texts)} questions of {np.mean([len(t.split()) for t in texts]):.1f} words; largest difference "
            f"{apart:.0e} of a row's norm",
            ["way", "ms a question", "relative"],
            compare(each(seconds, counts), "upstream's package, 77 tokens", 1e3, ""),
        ),
    )


if __name__ == "__main__":
    main()
