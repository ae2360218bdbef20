"""The whole model: embeddings of an image and a question in, an answer out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from malmm.connector import TURNS, Connector
from malmm.language import LanguageModel, Lora, Quantization
from malmm.prompt import Prompt, Template
from malmm.qformer import QFormerConfig

# What may train, and the parameters each name stands for. The first prefix that fits a parameter decides.
PARTS = {
    "imagebind_fc": "connector.imagebind_fc.",
    "turn_pe": "connector.turn_pe.",
    "ln_vision": "connector.ln_vision.",
    "query_tokens": "connector.query_tokens",
    "qformer_words": "connector.Qformer.bert.embeddings.word_embeddings.",
    "qformer": "connector.Qformer.",
    "llm_proj": "connector.llm_proj.",
    "lora": "language.",
}


@dataclass(frozen=True)
class ModelConfig:
    """
    All that decides the model beside the bytes of the language model and the tokenizer; goes into a checkpoint as JSON.
    ``qformer.vocab_size`` None: that of the text tokenizer. ``max_prompt_tokens``: history is cut to fit it.
    """

    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    outputs: Literal["queries", "all"] = "queries"
    normalize_inputs: bool = True
    vision_dim: int = 1024
    text_dim: int = 1024
    max_text_tokens: int = 128
    quantization: Quantization = "nf4"
    precision: Literal["fp32", "bf16"] = "fp32"
    lora: Lora | None = None
    template: Template = field(default_factory=Template)
    max_prompt_tokens: int | None = 512
    trainable: tuple[str, ...] = ("imagebind_fc", "turn_pe", "query_tokens", "qformer", "llm_proj")
    seed: int = 42

    def __post_init__(self) -> None:
        unknown = [name for name in self.trainable if name not in PARTS]
        if unknown or not self.trainable:
            raise ValueError(f"trainable: {', '.join(unknown) or 'nothing'}; allowed: {', '.join(PARTS)}")
        if ("lora" in self.trainable) != (self.lora is not None):
            raise ValueError("trainable names lora exactly when lora is configured (rank, alpha, dropout)")

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "trainable": list(self.trainable)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of to_json. Raises TypeError on a field that is not known."""
        return cls(
            **{
                **record,
                "qformer": QFormerConfig(**record["qformer"]),
                "lora": Lora(**record["lora"]) if record["lora"] else None,
                "template": Template(**record["template"]),
                "trainable": tuple(record["trainable"]),
            }
        )


@dataclass(frozen=True)
class Sample:
    """One question about one image; ``history`` holds (question, answer), oldest first."""

    question: str
    turn: int = 0
    caption: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    answer: str | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """A row of the samples table, as a dict."""
        history = tuple((past["question"], past["answer"]) for past in row["history"] or ())
        return cls(row["question"], row["turn"] or 0, row["caption"], history, row["answer"])


@dataclass(frozen=True)
class Batch:
    """B samples and the embeddings of their images (B,vision_dim) and questions (B,text_dim), float16 or float32."""

    samples: Sequence[Sample]
    vision: Tensor
    text: Tensor

    def __len__(self) -> int:
        return len(self.samples)


class MultimodalModel(nn.Module):
    """Connector and language model. Made by build_model."""

    def __init__(
        self,
        config: ModelConfig,
        connector: Connector,
        language: LanguageModel,
        text_tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        super().__init__()
        self.config, self.connector, self.language = config, connector, language
        self.text_tokenizer = text_tokenizer
        self.trainable(config.trainable)

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """
        Negative log-likelihood of the answers, summed over their tokens (EOS included), and the number of tokens:
        sums of batches add up, whatever their sizes. Raises ValueError if a sample has no answer.
        """
        for sample in batch.samples:
            if sample.answer is None:
                raise ValueError(f"no answer to train on (question: {sample.question!r})")
        prefix, mask = self.prefix(batch)
        return self.language.answer_loss(prefix, mask, self.prompts(batch), [s.answer for s in batch.samples])

    @torch.no_grad()
    def generate(
        self, batch: Batch, beams: int = 1, max_new_tokens: int = 30, length_penalty: float = 1.0
    ) -> list[str]:
        """One answer a sample: greedy, or the best of ``beams``; it ends at EOS or at a new line."""
        prefix, mask = self.prefix(batch)
        return self.language.generate(prefix, mask, self.prompts(batch), beams, max_new_tokens, length_penalty)

    @torch.no_grad()
    def rank(self, batch: Batch, candidates: Sequence[Sequence[str]], chunk: int = 128) -> list[Tensor]:
        """Per sample, the mean log-likelihood of its candidates' tokens (EOS included): float32 (C,), on the CPU."""
        prefix, mask = self.prefix(batch)
        return [
            self.language.rank(*sample, chunk)
            for sample in zip(prefix, mask, self.prompts(batch), candidates, strict=True)
        ]

    def prefix(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Visual tokens (B,P,llm hidden) and their mask (B,P) bool. Raises ValueError on a turn out of range."""
        device = self.language.device
        turns = [sample.turn for sample in batch.samples]
        if not all(0 <= turn < TURNS for turn in turns):
            raise ValueError(f"turn {max(turns)}: turn_pe has rows 0 to {TURNS - 1}")
        words = self.text_tokenizer(
            [sample.question for sample in batch.samples], truncation=True, max_length=self.config.max_text_tokens
        )["input_ids"]
        longest = max(map(len, words))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in words], dtype=torch.long)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in words], dtype=torch.long)
        return self.connector(
            batch.vision.to(device), batch.text.to(device), torch.tensor(turns, device=device), ids.to(device),
            mask.to(device),
        )  # fmt: skip

    def prompts(self, batch: Batch) -> list[Prompt]:
        render, budget = self.config.template.render, self.config.max_prompt_tokens
        return [render(s.question, s.caption, s.history, budget, self.language.count) for s in batch.samples]

    def trainable(self, names: Sequence[str]) -> None:
        """Lets the named parts train and freezes all else."""
        for name, parameter in self.named_parameters():
            part = next(part for part, prefix in PARTS.items() if name.startswith(prefix))
            wanted = part in names and (part != "lora" or "lora_" in name)
            parameter.requires_grad_(wanted)

    def train(self, mode: bool = True) -> Self:
        """The language model stays in evaluation mode unless it has adapters to train."""
        super().train(mode)
        self.language.train(mode and "lora" in self.config.trainable)
        return self

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def trained_state(self) -> dict[str, Tensor]:
        """What trains, by name, on the CPU: for safetensors. The rest follows from the config and the seed."""
        return {name: p.detach().cpu().contiguous() for name, p in self.trained_parameters().items()}

    @torch.no_grad()
    def load_trained(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError naming what is missing, superfluous or of another shape; then nothing is loaded."""
        parameters = self.trained_parameters()
        problems = [f"{name}: missing" for name in parameters.keys() - state.keys()]
        problems += [f"{name}: not a trained part of this model" for name in state.keys() - parameters.keys()]
        problems += [
            f"{name}: shape {tuple(state[name].shape)}, expected {tuple(parameters[name].shape)}"
            for name in parameters.keys() & state.keys()
            if state[name].shape != parameters[name].shape
        ]
        if problems:
            more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise ValueError("the weights do not fit the model: " + "; ".join(sorted(problems)[:5]) + more)
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def build_model(
    config: ModelConfig, llm: str | Path, device: str = "cpu", text_tokenizer: str | Path | None = None
) -> MultimodalModel:
    """
    The untrained model, in evaluation mode; the same config, bytes of ``llm`` and of ``text_tokenizer`` give the same
    weights. ``llm``: a directory of transformers. ``text_tokenizer``: that of the Q-Former's text, by default the
    language model's.
    """
    language = LanguageModel(llm, config.quantization, config.precision, device, config.lora, config.seed)
    tokenizer = language.tokenizer
    if text_tokenizer is not None:
        tokenizer = AutoTokenizer.from_pretrained(text_tokenizer, local_files_only=True)
    qformer = config.qformer
    if qformer.vocab_size is None:
        qformer = replace(qformer, vocab_size=len(tokenizer))
    connector = Connector(
        qformer,
        language.hidden,
        config.vision_dim,
        config.text_dim,
        config.outputs,
        config.normalize_inputs,
        config.seed,
    ).to(device)
    return MultimodalModel(config, connector, language, tokenizer).eval()
