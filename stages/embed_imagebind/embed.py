"""Images and texts in, rows out: batches of fixed shapes, so that an item's bits follow from the item alone.

On a CPU, a row of a batch is computed alike at every place in it and whatever the other rows hold, but a
batch of another shape rounds differently (by 4e-8). So batches are always padded to their full size, and a
text's length in its batch follows from the text alone: `LENGTH_STEP`, not the longest prompt that happens to
be beside it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from stages.contract import BadInput
from stages.embed_imagebind.model import ARCHITECTURES
from stages.embed_imagebind.preprocess import SIDE, decode_image, image_array
from stages.embed_imagebind.reference import ReferenceImageBind
from stages.embed_imagebind.stems import CONTEXT_LENGTH, END_OF_TEXT
from stages.embed_imagebind.tokenizer import prompt_lengths, tokenize
from stages.embed_imagebind.weights import build_model, random_weights, read_weights

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
LENGTH_STEP = 4
AHEAD = 3  # batches decoded before the model asks for them

ImageSource = bytes | Image.Image | Callable[[], bytes]


class BadImage(BadInput):
    """One image that cannot be embedded."""


class Embedder(AbstractContextManager):
    """ImageBind's vision and text encoders, ready to embed. A context manager: it ends its decoding threads.

    tensors: all of the architecture's (see weights.py); precision: fp32, or bf16 / fp16 by autocast; device:
    cpu or cuda.
    """

    def __init__(
        self,
        engine: str,
        architecture: str,
        tensors: Mapping[str, Tensor],
        *,
        precision: str = "fp32",
        device: str = "cpu",
        vision_batch: int = 16,
        text_batch: int = 32,
        workers: int = 4,
    ):
        config = ARCHITECTURES[architecture]
        model: nn.Module = (
            ReferenceImageBind(config, tensors)
            if engine == "reference"
            else build_model(config, tensors, ("vision", "text"))
        )
        self.device, self.dim, self.model = torch.device(device), config.out_embed_dim, model.to(device)
        self.vision_batch, self.text_batch = vision_batch, text_batch
        self._autocast = AUTOCAST[precision]
        self._pool = ThreadPoolExecutor(workers, "decode")
        if self.device.type == "cuda" and precision == "fp32":
            torch.backends.cudnn.allow_tf32 = False  # the patch convolution would keep 10 bits only

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def vision(
        self,
        images: Iterable[ImageSource],
        failed: Callable[[int, BadImage], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """(n, dim) float32 of unit norm, of files' bytes, open images, or functions that read the bytes.

        Images are read and decoded by threads, a few batches ahead of the model. One that cannot be decoded,
        or whose function raises BadImage, raises it here; with `failed`, it is told there by its position and
        has no row. `progress` hears how many are done."""
        rows, good = [], []
        for start, decoded in self._decoded(images):
            batch = torch.zeros(self.vision_batch, 3, SIDE, SIDE, pin_memory=self.device.type == "cuda")
            for place, future in enumerate(decoded):
                try:
                    batch[place] = torch.from_numpy(future.result())
                    good.append(len(rows) * self.vision_batch + place)
                except BadImage as error:
                    if failed is None:
                        raise
                    failed(start + place, error)
            rows.append(self._embed("vision", batch))
            if progress is not None:
                progress(start + len(decoded))
        return self._collect(rows)[good]

    def text(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> np.ndarray:
        """(n, dim) float32 of norm min(exp(log_logit_scale), 100), in the order given."""
        tokens = tokenize(texts)
        lengths = padded_lengths(tokens)
        order = np.argsort(lengths, kind="stable")
        rows, done = [], 0
        for length in np.unique(lengths):
            alike = order[lengths[order] == length]
            for start in range(0, len(alike), self.text_batch):
                part = tokens[alike[start : start + self.text_batch], :length].astype(np.int64)
                batch = torch.full((self.text_batch, int(length)), END_OF_TEXT)
                batch[: len(part)] = torch.from_numpy(part)
                if self.device.type == "cuda":
                    batch = batch.pin_memory()
                rows.append(self._embed("text", batch)[: len(part)])
                done += len(part)
                if progress is not None:
                    progress(done)
        out = np.empty((len(tokens), self.dim), np.float32)
        out[order] = self._collect(rows)
        return out

    def _embed(self, modality: str, batch: Tensor) -> Tensor:
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, self._autocast, self._autocast is not None),
        ):
            return self.model(modality, batch.to(self.device, non_blocking=True))

    def _collect(self, rows: list[Tensor]) -> np.ndarray:
        """One copy from the device at the end: until then it never waits for us."""
        return torch.cat(rows).float().cpu().numpy() if rows else np.empty((0, self.dim), np.float32)

    def _decoded(self, images: Iterable[ImageSource]) -> Iterator[tuple[int, list[Future]]]:
        """(position of its first, futures of its tensors) of each batch; the next are under way."""
        source, queue, start = iter(images), deque(), 0
        while True:
            while len(queue) <= AHEAD and (part := list(islice(source, self.vision_batch))):
                queue.append([self._pool.submit(load_image, image) for image in part])
            if not queue:
                return
            yield start, (batch := queue.popleft())
            start += len(batch)


def load_image(source: ImageSource) -> np.ndarray:
    """(3, 224, 224) float32 of one image. Raises BadImage when it cannot be decoded.

    It runs in threads and leaves torch alone, which would start more threads in each of them."""
    if isinstance(source, Image.Image):
        return image_array(source.convert("RGB"))
    data = source if isinstance(source, bytes) else source()
    try:
        image = decode_image(data)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise of many classes
        raise BadImage(f"cannot be decoded ({type(error).__name__}: {error})") from error
    if max(image.size) > 1000 * min(image.size):  # its long side would have millions of pixels at 224 wide
        raise BadImage(f"is {image.size[0]} x {image.size[1]} pixels: a strip, no picture")
    return image_array(image)


def padded_lengths(tokens: np.ndarray) -> np.ndarray:
    """Tokens of each row that enter the model: to the first end-of-text, rounded up to LENGTH_STEP."""
    return np.minimum(-(-prompt_lengths(tokens) // LENGTH_STEP) * LENGTH_STEP, CONTEXT_LENGTH)


def load_tensors(architecture: str, weights: Path | None, seed: int) -> dict[str, Tensor]:
    """The architecture's tensors from a file (BadInput when they do not fit), or random ones."""
    config = ARCHITECTURES[architecture]
    return random_weights(config, seed) if weights is None else read_weights(weights, config)
