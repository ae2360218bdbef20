"""`python -m stages.evaluate.ask REQUEST.json`: a checkpoint's answer about one video, as it comes.

The answer goes to standard output; which moments the memory kept goes to standard error.
"""

import sys

from torch import Tensor

from stages.contract import BadInput
from stages.evaluate.inquiry import Inquiry, Request, Scene, look, main


def run(request: Request) -> None:
    """Print the greedy answer piece by piece, then the memory."""
    inquiry = Inquiry(request)
    scene = look(inquiry)
    model = inquiry.model()
    try:
        for piece in model.stream(scene.batch, inquiry.config.max_new_tokens):
            print(piece, end="", flush=True)
    except ValueError as error:  # a template that wants a caption, more frames than the model has rows for
        raise BadInput(f"{scene.path}: {error}") from None
    print(flush=True)
    sizes = model.memory(scene.batch) if model.config.memory_bank_length else None
    print(_memory(scene, sizes), file=sys.stderr)


def _memory(scene: Scene, sizes: list[Tensor] | None) -> str:
    seen = f"{len(scene.frames)} frames of {scene.span}"
    if sizes is None:
        return f"memory: off; all {seen} were seen, none merged"
    moments = scene.moments(sizes)
    position = " at the first token position" if scene.batch.vision.shape[2] > 1 else ""
    return f"memory: {', '.join(moments.said())}\n{seen} in {len(moments.kept)} moments{position}"


if __name__ == "__main__":
    main("ask", __doc__.split("\n")[0], run)
