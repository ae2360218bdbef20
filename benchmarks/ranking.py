"""Ranking VisDial's 100 candidates of one turn with SmolLM2-135M-Instruct, the demo's language model. malmm computes
the prompt's keys and values once and shares them, and candidates that begin alike share their first tokens' too;
beside it, one forward pass of prompt and answer for each candidate, timed on 5 of the 100. The prompt has 32 visual
tokens, a caption and five past turns. Computation is in float32.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import compare, each, interleave, publish, say, table
from benchmarks.prompts import candidates, dialogues, language_model
from malmm.language import LanguageModel
from malmm.prompt import Template

ROUNDS, SINGLE = 3, 5
SHARED, ALONE = "malmm, shared", "one forward each"


def main() -> None:
    folder = language_model(Path(sys.argv[1]))
    publish(
        __doc__, rank("float32", LanguageModel(folder, "none").eval()), rank("NF4", LanguageModel(folder, "nf4").eval())
    )


def rank(weights: str, model: LanguageModel) -> dict[str, Any]:
    say(weights)
    torch.manual_seed(0)
    caption, turns = dialogues()[0]
    answers = candidates()
    prompt = Template().render(turns[5][0], caption, turns[:5])
    prefix, mask = torch.randn(32, model.hidden) * 0.1, torch.ones(32, dtype=torch.bool)
    scores: dict[str, torch.Tensor] = {}

    def shared() -> None:
        scores[SHARED] = model.rank(prefix, mask, prompt, answers)

    @torch.no_grad()
    def alone() -> None:
        losses = [model.answer_loss(prefix[None], mask[None], [prompt], [answer]) for answer in answers[:SINGLE]]
        scores[ALONE] = torch.stack([-loss / tokens for loss, tokens in losses])

    seconds = interleave({ALONE: alone, SHARED: shared}, ROUNDS)
    apart = (scores[SHARED][:SINGLE] - scores[ALONE]).abs().max().item()
    return table(
        f"Weights in {weights}, a prompt of {len(model.prompt_ids(prompt, 32))} tokens; scores differ by "
        f"{apart:.0e} at most",
        ["way", "ms a candidate", "relative"],
        compare(each(seconds, {ALONE: SINGLE, SHARED: len(answers)}), ALONE, 1e3, ""),
    )


if __name__ == "__main__":
    main()
