"""What finetune left: the model's config and the weights that trained. Whether the other inputs fit it."""

from collections.abc import Mapping

import safetensors.torch
from torch import Tensor

from malmm.model import ModelConfig
from stages.contract import BadInput, Job, WrongConfig
from storage import Artifact, is_published


class Checkpoint:
    """A checkpoint artifact: `config` of the model, and `weights()` for MultimodalModel.load_trained.

    frames: how many frames of a video the model was trained on; None: on images. zero_shot: nothing was trained.
    Raises BadInput for a checkpoint of another version, WrongConfig when evaluate's language model (or the
    tokenizer of the Q-Former's text, or its pretrained weights) is not, byte for byte, the one it was trained with.
    """

    def __init__(self, job: Job):
        self._artifact = job.inputs["checkpoint"]
        record = self._artifact.read_json("config.json")
        try:
            self.config = ModelConfig.from_json(record["model"])
            self.digests = {name: record.get(f"{name}_sha256") for name in ("llm", "text_tokenizer", "qformer_weights")}
            training = record.get("training", {})
            self.frames: int | None = training.get("frames")
            self.zero_shot: bool = training.get("max_steps") == 0
        except (TypeError, KeyError, ValueError) as error:
            raise BadInput(
                f"checkpoint {self._artifact.key}: config.json is not this version's ({error!r}): run finetune again"
            ) from None
        given = job.sources
        for name, trained in self.digests.items():
            if given.get(name) != trained:
                raise WrongConfig(
                    f"evaluate.{name}: {getattr(job.config, name)} (digest {_short(given.get(name))}) is "
                    f"not what checkpoint {_short(self._artifact.key)} was trained with (digest "
                    f"{_short(trained)}): set evaluate.{name} to what finetune.{name} was"
                )

    def weights(self) -> Mapping[str, Tensor]:
        return safetensors.torch.load(self._artifact.read_bytes("model.safetensors"))


def check_encoder(job: Job) -> None:
    """Raises BadInput when the embeddings are of another encoder than the checkpoint was trained with."""
    key = job.inputs["checkpoint"].manifest["record"]["inputs"]["features"]
    if not is_published(job.store, "features", key):  # it may have been deleted since
        return
    trained = Artifact(job.store, "features", key).manifest["encoder"]["bank"]
    given = job.inputs["features"].manifest["encoder"]["bank"]
    if trained != given:
        raise BadInput(
            f"the embeddings are of encoder {given}, the checkpoint was trained with {trained}: embed with "
            "the same encoder, or train again"
        )


def provenance(job: Job, checkpoint: Checkpoint) -> dict[str, str]:
    """Where the scores come from: keys and digests, no path and no time."""
    return {
        "report": job.key,
        **{kind: artifact.key for kind, artifact in job.inputs.items()},
        "encoder": job.inputs["features"].manifest["encoder"]["bank"],
        "language model": checkpoint.digests["llm"],
        "trained parts": ", ".join(checkpoint.config.trainable),
    }


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:16]
