"""Settings of finetune. Defaults of the model are the seed fork's; what trains is set by the recipe."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stages.config import How, SourceDir, SourceFile, StageConfig

Part = Literal[
    "imagebind_fc", "turn_pe", "image_pe", "ln_vision", "query_tokens", "qformer", "qformer_words", "llm_proj", "lora"
]

# A recipe is a set of defaults; fields given in the config go before it.
RECIPES: dict[str, dict[str, Any]] = {
    "connector": {
        "trainable": ("imagebind_fc", "turn_pe", "query_tokens", "qformer", "llm_proj"),
        "outputs": "queries",
        "normalize_inputs": True,
    },
    "seed": {"trainable": ("imagebind_fc", "turn_pe"), "outputs": "all", "normalize_inputs": False},
    "malmm": {
        "trainable": ("imagebind_fc", "image_pe", "ln_vision", "query_tokens", "qformer", "llm_proj"),
        "outputs": "queries",
        "normalize_inputs": True,
    },
}


class QFormerSizes(BaseModel):
    """Sizes of the Q-Former."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden: int = Field(1024, ge=1, description="width")
    layers: int = Field(12, ge=1, description="layers")
    heads: int = Field(16, ge=1, description="attention heads; must divide hidden")
    intermediate: int = Field(4096, ge=1, description="width of the feed-forward layers")
    cross_attention_every: int = Field(2, ge=1, description="every how many layers the queries see the image")
    encoder_width: int = Field(1024, ge=1, description="width of imagebind_fc's output, which the queries attend to")
    query_tokens: int = Field(32, ge=1, description="learned queries")
    max_positions: int = Field(512, ge=1, description="rows of the position embedding of its text")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout in training")


class LoraSizes(BaseModel):
    """Low-rank adapters on the language model; they train where `trainable` names lora."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(8, ge=1, description="rank")
    alpha: float = Field(16.0, gt=0, description="scale; the adapters count alpha / rank")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout in training")


class FinetuneConfig(StageConfig):
    """Trains the connector in front of the frozen language model."""

    STAGE: ClassVar[str] = "finetune"
    VERSION: ClassVar[int] = 3
    KIND: ClassVar[str] = "checkpoint"
    INPUTS: ClassVar[tuple[str, ...]] = ("samples", "features")
    LIBRARIES: ClassVar[tuple[str, ...]] = (
        "torch", "transformers", "tokenizers", "bitsandbytes", "peft", "accelerate", "numpy", "safetensors",
        "matplotlib",
    )  # fmt: skip
    CODE: ClassVar[tuple[str, ...]] = ("malmm",)

    recipe: How[Literal["connector", "seed", "malmm"]] = Field(
        "connector",
        description="defaults of trainable, outputs and normalize_inputs: connector learns to answer about images, "
        "seed trains the two layers that the seed fork of MA-LMM trains, malmm trains what MA-LMM does on videos",
    )
    trainable: tuple[Part, ...] = Field(min_length=1, description="what trains; the rest is frozen")
    outputs: Literal["queries", "all"] = Field(
        description="Q-Former outputs that the language model sees: of the queries, or of the question's tokens too"
    )
    normalize_inputs: bool = Field(
        description="bring both embeddings to one scale first; ImageBind's text rows are 100 times as long as its "
        "image rows"
    )

    llm: SourceDir = Field(description="folder of a causal language model of transformers (safetensors, tokenizer)")
    quantization: Literal["nf4", "none"] = Field("nf4", description="how the language model's weights are held")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="type of computation; bf16 is for GPUs")
    lora: LoraSizes | None = Field(None, description="adapters on the language model")
    qformer: QFormerSizes = Field(default_factory=QFormerSizes, description="sizes of the Q-Former")
    text_tokenizer: SourceDir | None = Field(
        None, description="folder of the tokenizer of the Q-Former's text; by default the language model's"
    )
    qformer_weights: SourceFile | None = Field(
        None,
        description="pretrained Q-Former and query tokens: a checkpoint of LAVIS or InstructBLIP (.pth, .safetensors); "
        "by default random ones. text_tokenizer must then be the one they were trained with",
    )
    qformer_text: Literal["question", "prompt"] = Field(
        "question", description="what the Q-Former reads: the question, or the whole prompt as MA-LMM's does"
    )
    max_text_tokens: int = Field(128, ge=1, description="longest question for the Q-Former, in tokens")
    template: str = Field(
        "{visual}Caption: {caption}\n{history}Question: {question}\nAnswer:",
        description="prompt, with {visual}, {caption}, {history} and {question}",
    )
    history_template: str = Field(
        "Question: {question}\nAnswer: {answer}\n", description="one past turn, with {question} and {answer}"
    )
    max_prompt_tokens: int = Field(512, ge=1, description="the oldest turns are left out of longer prompts")

    frames: int | None = Field(
        None, ge=1, description="frames taken of each video, in training and in evaluation; for images leave it out"
    )
    frame_choice: Literal["segments", "linspace"] = Field(
        "segments",
        description="frames in training: one at random in each of so many equal segments, or evenly spaced (LVU). In "
        "evaluation they are evenly spaced",
    )
    memory_bank_length: int = Field(
        0, ge=0, description="entries of MA-LMM's visual and query banks; 0: off, every frame's queries go to the LLM"
    )
    max_frames: int = Field(120, ge=1, description="rows of the time embedding image_pe")

    train_split: Literal["train", "val", "test"] = Field("train", description="split to train on")
    epochs: int = Field(1, ge=1, description="passes over the split")
    max_steps: int | None = Field(
        None,
        ge=0,
        description="number of optimizer steps instead of whole epochs; 0 trains nothing and publishes the model as it "
        "is, for zero-shot evaluation",
    )
    batch: int = Field(8, ge=1, description="samples in one forward pass")
    accumulate: int = Field(1, ge=1, description="batches in one optimizer step")
    lr: float = Field(1e-4, gt=0, description="highest learning rate of AdamW")
    weight_decay: float = Field(0.05, ge=0, description="of matrices; biases and norms have none")
    warmup_steps: int = Field(
        100,
        ge=0,
        description="steps of linear warm-up, before a cosine to 0 by the step; the official code warms up from 1e-8 "
        "within its first epoch, then takes one cosine value an epoch",
    )
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    seed: int = Field(42, ge=0, description="of the initial weights, the order of samples, the dropout and the frames")
    max_failed_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="the share of samples whose media may be missing or have failed, and go untrained, before the "
        "stage does",
    )

    device: How[Literal["auto", "cpu", "cuda"]] = Field("auto", description="where the model runs")
    processes: How[int] = Field(
        1,
        ge=1,
        description="processes of this machine that train together, one a GPU, and share the batches of a step: at "
        "most accumulate",
    )
    checkpoint_every: How[int] = Field(100, ge=1, description="steps between saved states; a killed run loses no more")
    loggers: How[tuple[Literal["tensorboard", "wandb"], ...]] = Field((), description="where to log beside the curves")
    log_dir: How[Path] = Field(Path("logs"), description="folder of the loggers' files")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_recipe(cls, data: Any) -> Any:
        if isinstance(data, dict) and (recipe := data.get("recipe", "connector")) in RECIPES:
            return {**RECIPES[recipe], **data}
        return data

    @model_validator(mode="after")
    def _check_together(self) -> "FinetuneConfig":
        if ("lora" in self.trainable) != (self.lora is not None):
            raise ValueError("trainable names lora exactly when lora is set (rank, alpha, dropout)")
        if self.qformer.hidden % self.qformer.heads:
            raise ValueError(f"qformer.hidden {self.qformer.hidden} is not a multiple of heads {self.qformer.heads}")
        if self.max_text_tokens > self.qformer.max_positions:
            raise ValueError(
                f"max_text_tokens {self.max_text_tokens} are more than qformer.max_positions "
                f"{self.qformer.max_positions}, the rows of its position embedding"
            )
        if self.memory_bank_length and self.frames is None:
            raise ValueError("memory_bank_length is for videos: set frames too, or leave it at 0")
        if self.memory_bank_length and self.frames > self.max_frames:
            raise ValueError(f"frames {self.frames} are more than max_frames {self.max_frames}, the rows of image_pe")
        if "image_pe" in self.trainable and not self.memory_bank_length:
            raise ValueError(
                "trainable names image_pe (recipe malmm does), which is there only with memory banks: set "
                "memory_bank_length, or name what trains without image_pe"
            )
        if self.processes > self.accumulate:
            raise ValueError(too_many(self.processes, self.accumulate))
        if self.max_steps and self.warmup_steps >= self.max_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be below max_steps {self.max_steps}")
        return self


def too_many(processes: int, accumulate: int) -> str:
    """Why no more processes than ``accumulate`` train together, and what to do."""
    return (
        f"{processes} processes, but accumulate is {accumulate}: so many batches has a step to share, and the others "
        "would idle. Set accumulate to a multiple of the processes, and batch lower by as much for the same step"
    )
