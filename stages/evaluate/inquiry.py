"""One question about one video, outside of the stage: the request of `ask` and `memory`, and what they read for it."""

import argparse
import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import transformers
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from malmm.frames import evaluation_frames, window
from malmm.model import Batch, MultimodalModel, Sample, build_model
from stages.contract import BadInput, WrongConfig, exit_code_of
from stages.evaluate.checkpoint import Checkpoint, check_encoder
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.timeline import Moments, clock, runs
from storage import Artifact, Store
from storage.digests import Digests
from storage.features import open_features, text_digest
from storage.videos import VideoFeatures


class Request(BaseModel):
    """What both commands take, as JSON.

    store: its URL; samples, features, checkpoint, frames: keys of artifacts; frames may be left out, then there are no
    thumbnails. video: its SHA-256, or its path as the samples have it. question: as the samples have it.
    config: the fields of evaluate's config. to: folder of the pictures. sources: digests of the config's outside bytes
    where the caller has them already.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: str
    samples: str
    features: str
    checkpoint: str | None
    frames: str | None = None
    video: str
    question: str
    config: dict[str, Any]
    to: Path = Path()
    sources: dict[str, str] | None = None


class Inquiry:
    """A request with what it names: it stands where a stage's Job does for Checkpoint and check_encoder.

    Raises WrongConfig for a checkpoint that does not fit evaluate's settings or takes no videos, BadInput for
    embeddings of another encoder.
    """

    def __init__(self, request: Request):
        if request.checkpoint is None:
            raise BadInput("there is no checkpoint to answer from: `malmm run` on the pipeline's config trains one")
        self.request, self.store = request, Store(request.store)
        with _naming("config"):
            self.config = EvaluateConfig.model_validate(request.config)
        self.sources = self.config.sources(Digests()) if request.sources is None else request.sources
        kinds = [kind for kind in ("samples", "features", "checkpoint", "frames") if getattr(request, kind)]
        self.inputs = {kind: Artifact(self.store, kind, getattr(request, kind)) for kind in kinds}
        self.checkpoint = Checkpoint(self)
        check_encoder(self)
        if self.checkpoint.frames is None:
            raise WrongConfig(
                f"checkpoint {request.checkpoint[:16]} was trained on images: train one with finetune.frames set"
            )

    @property
    def device(self) -> str:
        if self.config.device != "auto":
            return self.config.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def model(self) -> MultimodalModel:
        """The trained model. What libraries say meanwhile goes to standard error: standard output is the answer's."""
        config = self.config
        with contextlib.redirect_stdout(sys.stderr):
            transformers.utils.logging.disable_progress_bar()
            model = build_model(
                self.checkpoint.config, config.llm, self.device, config.text_tokenizer, config.qformer_weights
            )
            model.load_trained(self.checkpoint.weights())
        return model


@dataclass(frozen=True)
class Scene:
    """What the model sees of a video: the batch of one sample; frames (T,) int64, numbers among those taken of the
    video; start, end (T,) float64: seconds from which and to which each of them is shown."""

    path: str
    video: str
    batch: Batch
    frames: np.ndarray
    start: np.ndarray
    end: np.ndarray

    def moments(self, sizes: Sequence[Tensor]) -> Moments:
        """Of the first token position; sizes: (1,M_t,N) a step, as MultimodalModel.memory gives them."""
        steps = runs([one[0, :, 0].numpy() for one in sizes])
        title = f"What the memory kept of {Path(self.path).name}"
        return Moments(title, (), steps, self.start, self.end)

    @property
    def span(self) -> str:
        short = self.end[-1] - self.start[0] < 60
        return f"{clock(self.start[0], short)}-{clock(self.end[-1], short)}"


def look(inquiry: Inquiry) -> Scene:
    """The frames that evaluation would show of the video. Raises BadInput, MissingEmbedding."""
    row = _row(inquiry)
    features = inquiry.inputs["features"]
    frames = VideoFeatures(features)
    if row["media"] not in frames.timelines:
        raise BadInput(f"no frames of {row['media_path']} are embedded: run embed_imagebind again, on these samples")
    timeline = frames.timelines[row["media"]]
    try:
        first, last = window(row["start"], row["end"], features.manifest["encoder"]["fps"], len(timeline))
    except ValueError as error:
        raise BadInput(f"{row['media_path']}: {error}") from None
    chosen = evaluation_frames(first, last, inquiry.checkpoint.frames, inquiry.config.frame_rounding)
    vision = torch.from_numpy(frames.gather(row["media"], chosen))[None]
    text = torch.from_numpy(np.array(open_features(features).gather("text", [text_digest(row["question"])])))
    batch = Batch([Sample.from_row(row)], vision, text)
    return Scene(row["media_path"], row["media"], batch, chosen, timeline.start[chosen], timeline.end[chosen])


def thumbnails(frames: Artifact, video: str, wanted: Sequence[int]) -> dict[int, bytes]:
    """Encoded pictures by frame number, as far as the artifact has them: with format `direct` it has none."""
    table = frames.read_table("videos.parquet").to_pylist()
    row = next((row for row in table if row["video"] == video), None)
    if row is None or row["shard"] is None:
        return {}
    found: dict[int, bytes] = {}
    with frames.open(row["shard"]) as file:
        shard = pq.ParquetFile(file)
        for group in range(row["first_row_group"], row["first_row_group"] + row["row_groups"]):
            numbers = shard.read_row_group(group, columns=["k"], use_threads=False)["k"].to_pylist()
            if set(numbers).intersection(wanted):  # else its pictures need not be read
                pictures = shard.read_row_group(group, columns=["image"], use_threads=False)["image"].to_pylist()
                found |= {k: image for k, image in zip(numbers, pictures, strict=True) if k in wanted}
    return found


def main(name: str, about: str, run: Callable[[Request], None], argv: Sequence[str] | None = None) -> None:
    """The command: `python -m stages.evaluate.<name> REQUEST.json`, or `-` for standard input.

    Exit codes as of a stage; the message goes to standard error.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.evaluate.{name}", description=about, epilog=(Request.__doc__ or "").strip()
    )
    parser.add_argument("request", help="a JSON file with the request, or - for standard input")
    source = parser.parse_args(argv).request
    try:
        run(_read(source))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # whatever it is, it must end as one message and one exit code
        code = exit_code_of(error)
        if code == 70:
            traceback.print_exc()
        print(str(error) or repr(error), file=sys.stderr)
        sys.exit(code)


def _read(source: str) -> Request:
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text()
    except FileNotFoundError:
        raise WrongConfig(f"no request file {source}") from None
    with _naming("request"):
        return Request.model_validate_json(text)


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    """A field that is wrong, as one line."""
    try:
        yield
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, (what, *e['loc'])))}: {e['msg']}" for e in error.errors())
        raise WrongConfig(said) from None


def _row(inquiry: Inquiry) -> Mapping[str, Any]:
    """The sample of the question about the video."""
    request = inquiry.request
    about = (pc.field("media") == request.video) | (pc.field("media_path") == request.video)
    with inquiry.inputs["samples"].open("samples.parquet") as file:
        rows = pq.read_table(file, filters=about).to_pylist()
    if not rows:
        raise BadInput(f"the samples have no video {request.video}: give ingest a question about it")
    if rows[0]["media_kind"] != "video":
        raise BadInput(f"{request.video} is an image: there is nothing to remember over time")
    asked = [row for row in rows if row["question"] == request.question]
    if not asked:
        raise BadInput(
            f"the samples do not ask {json.dumps(request.question)} about {request.video}: give ingest that question, "
            "so that it is embedded too"
        )
    if asked[0]["media"] is None:
        raise BadInput(f"the file of {request.video} is missing: put it below ingest.videos, and run ingest again")
    return asked[0]
