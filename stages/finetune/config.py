"""Settings of finetune. Defaults of the model are the seed fork's; what trains is set by the recipe."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stages.config import How, SourceDir, StageConfig

Part = Literal["imagebind_fc", "turn_pe", "ln_vision", "query_tokens", "qformer", "qformer_words", "llm_proj", "lora"]

# A recipe is a set of defaults; fields given in the config go before it.
RECIPES: dict[str, dict[str, Any]] = {
    "connector": {
        "trainable": ("imagebind_fc", "turn_pe", "query_tokens", "qformer", "llm_proj"),
        "outputs": "queries",
        "normalize_inputs": True,
    },
    "seed": {"trainable": ("imagebind_fc", "turn_pe"), "outputs": "all", "normalize_inputs": False},
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
    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = "checkpoint"
    INPUTS: ClassVar[tuple[str, ...]] = ("samples", "features")
    LIBRARIES: ClassVar[tuple[str, ...]] = (
        "torch", "transformers", "tokenizers", "bitsandbytes", "peft", "accelerate", "numpy", "safetensors",
        "matplotlib",
    )  # fmt: skip
    CODE: ClassVar[tuple[str, ...]] = ("malmm",)

    recipe: How[Literal["connector", "seed"]] = Field(
        "connector",
        description="defaults of trainable, outputs and normalize_inputs: connector learns to answer, seed trains the "
        "two layers that the seed fork of MA-LMM trains",
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
    max_text_tokens: int = Field(128, ge=1, description="longest question for the Q-Former, in tokens")
    template: str = Field(
        "{visual}Caption: {caption}\n{history}Question: {question}\nAnswer:",
        description="prompt, with {visual}, {caption}, {history} and {question}",
    )
    history_template: str = Field(
        "Question: {question}\nAnswer: {answer}\n", description="one past turn, with {question} and {answer}"
    )
    max_prompt_tokens: int = Field(512, ge=1, description="the oldest turns are left out of longer prompts")

    train_split: Literal["train", "val", "test"] = Field("train", description="split to train on")
    epochs: int = Field(1, ge=1, description="passes over the split")
    max_steps: int | None = Field(None, ge=1, description="number of optimizer steps instead of whole epochs")
    batch: int = Field(8, ge=1, description="samples in one forward pass")
    accumulate: int = Field(1, ge=1, description="batches in one optimizer step")
    lr: float = Field(1e-4, gt=0, description="highest learning rate of AdamW")
    weight_decay: float = Field(0.05, ge=0, description="of matrices; biases and norms have none")
    warmup_steps: int = Field(100, ge=0, description="steps of linear warm-up, before the cosine to 0")
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    seed: int = Field(42, ge=0, description="of the initial weights, the order of samples and the dropout")

    device: How[Literal["auto", "cpu", "cuda"]] = Field("auto", description="where the model runs")
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
        if self.max_steps is not None and self.warmup_steps >= self.max_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be below max_steps {self.max_steps}")
        return self
