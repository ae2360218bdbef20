"""`python -m stages.evaluate.memory REQUEST.json`: draws which frames of a video the memory bank merged over time.

Writes <video>.memory.png and .html, and prints their paths. The language model is not loaded where it can be spared: a
bank is made of the frames and the question alone.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from malmm.connector import Connector
from malmm.model import ModelConfig
from stages.contract import WrongConfig
from stages.evaluate import timeline_html, timeline_png
from stages.evaluate.inquiry import Inquiry, Request, Scene, look, main, thumbnails
from stages.evaluate.timeline import Run

PARTS = ("imagebind_fc", "turn_pe", "image_pe", "ln_vision")  # of the connector: what makes the bank's entries
PRETRAINED = ("image_pe", "ln_vision")  # of them, what a file of pretrained weights may hold
THUMBNAIL = 320  # pixels of the longer side


def run(request: Request) -> None:
    """Draw the bank of the request's video and question. Raises WrongConfig where the model has none."""
    inquiry = Inquiry(request)
    config = inquiry.checkpoint.config
    if not config.memory_bank_length:
        raise WrongConfig(
            f"checkpoint {request.checkpoint[:16]} has no memory banks (finetune.memory_bank_length is 0): every frame "
            "goes to the language model and none is merged, so there is nothing to draw"
        )
    scene = look(inquiry)
    moments = scene.moments(_sizes(inquiry, scene))
    pictures = _pictures(inquiry, scene, moments.kept)
    moments = replace(moments, notes=_notes(inquiry, scene, bool(pictures)), pictures=pictures)
    request.to.mkdir(parents=True, exist_ok=True)
    stem = request.to / f"{Path(scene.path).stem}.memory"
    for suffix, content in ((".png", timeline_png.draw(moments)), (".html", timeline_html.page(moments).encode())):
        path = stem.with_name(stem.name + suffix)
        path.write_bytes(content)
        print(path)


def _sizes(inquiry: Inquiry, scene: Scene) -> list[Tensor]:
    """(1,M_t,N) for each frame: of the bank's entries after it."""
    weights = inquiry.checkpoint.weights()
    trained = {name.split(".")[1] for name in weights if name.startswith("connector.")}
    if inquiry.config.qformer_weights is not None and not trained.issuperset(PRETRAINED):
        return inquiry.model().memory(scene.batch)
    connector = light_connector(inquiry.checkpoint.config, weights)
    return connector.memory(scene.batch.vision, scene.batch.text, torch.tensor([scene.batch.samples[0].turn]))


def light_connector(config: ModelConfig, weights: Mapping[str, Tensor]) -> Connector:
    """The trained connector as far as the visual bank goes, in memory of a few megabytes.

    Its Q-Former and projection stand for nothing: they are as small as can be. What did not train is made from the
    seed, by name, so it is what the whole model has.
    """
    connector = Connector(
        replace(config.qformer, hidden=1, layers=1, heads=1, intermediate=1, vocab_size=1, query_tokens=1),
        1,
        config.vision_dim,
        config.text_dim,
        normalize_inputs=config.normalize_inputs,
        memory_bank_length=config.memory_bank_length,
        max_frames=config.max_frames,
        seed=config.seed,
    )
    trained = {name.removeprefix("connector."): tensor for name, tensor in weights.items()}
    with torch.no_grad():
        for name, parameter in connector.named_parameters():
            if name.split(".")[0] in PARTS and name in trained:
                parameter.copy_(trained[name])
    return connector.eval()


def _pictures(inquiry: Inquiry, scene: Scene, kept: Sequence[Run]) -> list[np.ndarray]:
    """The middle frame of each moment, (H,W,3) uint8; none where frames are not kept."""
    if "frames" not in inquiry.inputs:
        return []
    wanted = [int(scene.frames[run.middle]) for run in kept]
    encoded = thumbnails(inquiry.inputs["frames"], scene.video, wanted)
    return [_decode(encoded[k]) for k in wanted] if encoded else []


def _decode(encoded: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(image)


def _notes(inquiry: Inquiry, scene: Scene, pictures: bool) -> tuple[str, ...]:
    length = inquiry.checkpoint.config.memory_bank_length
    notes = [
        f"Question: {scene.batch.samples[0].question}",
        f"{len(scene.frames)} frames, evenly spaced over {scene.span}; the memory holds {length} moments, beside "
        "the last frame.",
    ]
    if (tokens := scene.batch.vision.shape[2]) > 1:
        notes.append(f"Each of the {tokens} token positions of a frame remembers on its own; this is the first one.")
    if inquiry.inputs["features"].manifest["encoder"]["random_weights"]:
        notes.append("The encoder has random weights: it tells frames apart, but understands none.")
    if not pictures:
        notes.append("No thumbnails: the frames are not stored (extract_frames.format: direct stores none).")
    return tuple(notes)


if __name__ == "__main__":
    main("memory", __doc__.split("\n")[0], run)
