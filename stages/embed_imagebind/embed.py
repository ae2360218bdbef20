"""Images, sound and texts in, rows out: batches of fixed shapes, so that an item's bits follow from the item alone.

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
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from stages.contract import BadInput
from stages.embed_imagebind.model import ARCHITECTURES
from stages.embed_imagebind.preprocess import MEL_BINS, MEL_FRAMES, SIDE, audio_clip, decode_image, image_array
from stages.embed_imagebind.reference import ReferenceImageBind
from stages.embed_imagebind.stems import CONTEXT_LENGTH, END_OF_TEXT, IMAGE_TOKENS
from stages.embed_imagebind.tokenizer import prompt_lengths, tokenize
from stages.embed_imagebind.weights import build_model, random_weights, read_weights

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
LENGTH_STEP = 4
AHEAD = 3  # batches decoded before the model asks for them

ImageSource = bytes | Image.Image | Callable[[], bytes | Image.Image]
SoundSource = Callable[[], tuple[np.ndarray, int]]  # (channels, samples) float32 and its rate in Hz
Failed = Callable[[int, BadInput], None]
Progress = Callable[[int], None]


class BadImage(BadInput):
    """One image that cannot be embedded."""


class BadVideo(BadInput):
    """One video whose frames or sound cannot be embedded, or are not what was planned."""


class Embedder(AbstractContextManager):
    """ImageBind's encoders of `modalities`, ready to embed. A context manager: it ends its decoding threads.

    tensors: all of the architecture's (see weights.py); precision: fp32, or bf16 / fp16 by autocast; device:
    cpu or cuda.
    """

    def __init__(
        self,
        engine: str,
        architecture: str,
        tensors: Mapping[str, Tensor],
        modalities: Sequence[str] = ("vision", "text"),
        *,
        precision: str = "fp32",
        device: str = "cpu",
        vision_batch: int = 16,
        text_batch: int = 32,
        audio_batch: int = 16,
        workers: int = 4,
    ):
        config = ARCHITECTURES[architecture]
        model: nn.Module = (
            ReferenceImageBind(config, tensors) if engine == "reference" else build_model(config, tensors, modalities)
        )
        self.device, self.dim, self.model = torch.device(device), config.out_embed_dim, model.to(device)
        self.width = config.vision_embed_dim
        self.vision_batch, self.text_batch, self.audio_batch = vision_batch, text_batch, audio_batch
        self._autocast = AUTOCAST[precision]
        self._pool = ThreadPoolExecutor(workers, "decode")
        self._sound = ThreadPoolExecutor(1, "sound")  # its work is torch's, which brings threads of its own
        if self.device.type == "cuda" and precision == "fp32":
            torch.backends.cudnn.allow_tf32 = False  # the patch convolution would keep 10 bits only

    def __exit__(self, *exception: object) -> None:
        for pool in (self._pool, self._sound):
            pool.shutdown(wait=True, cancel_futures=True)

    def vision(
        self, images: Iterable[ImageSource], failed: Failed | None = None, progress: Progress | None = None
    ) -> np.ndarray:
        """(n, dim) float32 of unit norm, of files' bytes, open images, or functions that give either.

        Images are read and decoded by threads, a few batches ahead of the model. One that cannot be decoded,
        or whose function raises BadInput, raises it here; with `failed`, it is told there by its position and
        has no row. `progress` hears how many are done."""
        decoded = self._decoded(images, self.vision_batch, self._pool, load_image)
        return self._rows("vision", decoded, (self.vision_batch, 3, SIDE, SIDE), (self.dim,), failed, progress)

    def patches(
        self, images: Iterable[ImageSource], failed: Failed | None = None, progress: Progress | None = None
    ) -> np.ndarray:
        """(n, 257, width) float32: the tokens before the head (ImageBind.patches), otherwise as `vision`."""
        decoded, out = self._decoded(images, self.vision_batch, self._pool, load_image), (IMAGE_TOKENS, self.width)
        return self._rows("patches", decoded, (self.vision_batch, 3, SIDE, SIDE), out, failed, progress)

    def audio(
        self, clips: Iterable[SoundSource], failed: Failed | None = None, progress: Progress | None = None
    ) -> np.ndarray:
        """(n, dim) float32 of norm 20, one row a clip of 25 ms to 2 s; failures and progress as in `vision`."""
        decoded = self._decoded(clips, self.audio_batch, self._sound, load_clip)
        shape = (self.audio_batch, 1, MEL_BINS, MEL_FRAMES)
        return self._rows("audio", decoded, shape, (self.dim,), failed, progress)

    def _rows(
        self,
        kind: str,
        decoded: Iterable[tuple[int, list[Future]]],
        shape: tuple[int, ...],
        out: tuple[int, ...],
        failed: Failed | None,
        progress: Progress | None,
    ) -> np.ndarray:
        rows, good = [], []
        for start, futures in decoded:
            batch = torch.zeros(shape, pin_memory=self.device.type == "cuda")
            for place, future in enumerate(futures):
                try:
                    batch[place] = torch.from_numpy(future.result())
                    good.append(start + place)
                except BadInput as error:
                    if failed is None:
                        raise
                    failed(start + place, error)
            rows.append(self._embed(kind, batch))
            if progress is not None:
                progress(start + len(futures))
        return self._collect(rows, out)[good]

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
        out[order] = self._collect(rows, (self.dim,))
        return out

    def _embed(self, kind: str, batch: Tensor) -> Tensor:
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, self._autocast, self._autocast is not None),
        ):
            batch = batch.to(self.device, non_blocking=True)
            return self.model.patches(batch) if kind == "patches" else self.model(kind, batch)

    def _collect(self, rows: list[Tensor], shape: tuple[int, ...]) -> np.ndarray:
        """One copy from the device at the end: until then it never waits for us."""
        return torch.cat(rows).float().cpu().numpy() if rows else np.empty((0, *shape), np.float32)

    @staticmethod
    def _decoded(
        sources: Iterable[Any], size: int, pool: ThreadPoolExecutor, load: Callable[[Any], np.ndarray]
    ) -> Iterator[tuple[int, list[Future]]]:
        """(position of its first, futures of its tensors) of each batch; the next are under way."""
        source, queue, start = iter(sources), deque(), 0
        while True:
            while len(queue) <= AHEAD and (part := list(islice(source, size))):
                queue.append([pool.submit(load, one) for one in part])
            if not queue:
                return
            yield start, (batch := queue.popleft())
            start += len(batch)


def load_image(source: ImageSource) -> np.ndarray:
    """(3, 224, 224) float32 of one image. Raises BadImage when it cannot be decoded.

    It runs in threads and leaves torch alone, which would start more threads in each of them."""
    data = source() if callable(source) else source
    return image_array(data.convert("RGB") if isinstance(data, Image.Image) else load_picture(data))


def load_picture(data: bytes) -> Image.Image:
    """An RGB image from a file's bytes. Raises BadImage when they are none that can be embedded."""
    try:
        image = decode_image(data)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise of many classes
        raise BadImage(f"cannot be decoded ({type(error).__name__}: {error})") from error
    if max(image.size) > 1000 * min(image.size):  # its long side would have millions of pixels at 224 wide
        raise BadImage(f"is {image.size[0]} x {image.size[1]} pixels: a strip, no picture")
    return image


def load_clip(source: SoundSource) -> np.ndarray:
    """(1, 128, 204) float32 of one clip of sound. Raises BadVideo for one that ImageBind cannot hear."""
    samples, rate = source()
    try:
        return audio_clip(torch.from_numpy(samples), rate).numpy()
    except ValueError as error:
        raise BadVideo(f"its sound: {error}") from error


def padded_lengths(tokens: np.ndarray) -> np.ndarray:
    """Tokens of each row that enter the model: to the first end-of-text, rounded up to LENGTH_STEP."""
    return np.minimum(-(-prompt_lengths(tokens) // LENGTH_STEP) * LENGTH_STEP, CONTEXT_LENGTH)


def load_tensors(architecture: str, weights: Path | None, seed: int) -> dict[str, Tensor]:
    """The architecture's tensors from a file (BadInput when they do not fit), or random ones."""
    config = ARCHITECTURES[architecture]
    return random_weights(config, seed) if weights is None else read_weights(weights, config)
