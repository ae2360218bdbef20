"""The whole model: embeddings of an image or a video and of a question in, an answer out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from malmm.connector import TURNS, Connector
from malmm.language import LanguageModel, Lora, Quantization
from malmm.pretrained import Loaded, load_pretrained
from malmm.prompt import Prompt, Template
from malmm.qformer import QFormerConfig

# What may train, and the parameters each name stands for. The first prefix that fits a parameter decides.
PARTS = {
    "imagebind_fc": "connector.imagebind_fc.",
    "turn_pe": "connector.turn_pe.",
    "image_pe": "connector.image_pe.",
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
    ``memory_bank_length``: entries of the memory banks; 0 = none, every frame goes to the language model on its own.
    ``max_frames``: rows of image_pe, which is there with banks only. ``qformer_text``: whether the Q-Former reads the
    question or, as MA-LMM's, the whole prompt.
    """

    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    outputs: Literal["queries", "all"] = "queries"
    normalize_inputs: bool = True
    vision_dim: int = 1024
    text_dim: int = 1024
    memory_bank_length: int = 0
    max_frames: int = 120
    qformer_text: Literal["question", "prompt"] = "question"
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
        if "image_pe" in self.trainable and not self.memory_bank_length:
            raise ValueError("trainable names image_pe, which is there only with a memory_bank_length above 0")
        if self.memory_bank_length < 0 or self.max_frames < 1:
            raise ValueError(f"memory_bank_length {self.memory_bank_length} is below 0, or max_frames below 1")

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
    """One question about one image or video; ``history`` holds (question, answer), oldest first."""

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
    """
    B samples, float16 or float32 embeddings of their images (B,vision_dim) or of their videos' T frames
    (B,T,N,vision_dim), N tokens each, and those of their questions (B,text_dim).
    """

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
        pretrained: Loaded | None = None,
    ) -> None:
        super().__init__()
        self.config, self.connector, self.language = config, connector, language
        self.text_tokenizer, self.pretrained = text_tokenizer, pretrained
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
        self,
        batch: Batch,
        beams: int = 1,
        max_new_tokens: int = 30,
        length_penalty: float = 1.0,
        min_new_tokens: int = 1,
        allowed: Sequence[str] | None = None,
        returned: int = 1,
        seen: tuple[Tensor, Tensor] | None = None,
    ) -> list[str]:
        """
        One answer a sample: greedy, or the best of ``beams``; it ends at EOS or at a new line. ``allowed``: each answer
        is one of these strings, whatever the numbers of tokens say. ``returned``: so many of a sample's beams, best
        first, one after the other. ``seen``: what prefix gives for the batch, where the caller has it already.
        """
        prefix, mask = self.prefix(batch) if seen is None else seen
        return self.language.generate(
            prefix,
            mask,
            self.prompts(batch),
            beams,
            max_new_tokens,
            length_penalty,
            min_new_tokens,
            allowed,
            returned,
        )

    @torch.no_grad()
    def rank(
        self,
        batch: Batch,
        candidates: Sequence[Sequence[str]],
        chunk: int = 128,
        seen: tuple[Tensor, Tensor] | None = None,
    ) -> list[Tensor]:
        """Per sample, the mean log-likelihood of its candidates' tokens (EOS included): float32 (C,), on the CPU.
        ``seen`` as in generate."""
        prefix, mask = self.prefix(batch) if seen is None else seen
        return [
            self.language.rank(*sample, chunk)
            for sample in zip(prefix, mask, self.prompts(batch), candidates, strict=True)
        ]

    def stream(self, batch: Batch, max_new_tokens: int = 30) -> Iterator[str]:
        """
        The greedy answer to a batch of one sample, piece by piece as it comes; joined, the pieces are what generate
        gives. Raises ValueError for a batch of another size.
        """
        if len(batch) != 1:
            raise ValueError(f"{len(batch)} samples, but one answer is streamed at a time")
        with torch.no_grad():
            prefix, mask = self.prefix(batch)
        return self.language.stream(prefix, mask, self.prompts(batch), max_new_tokens)

    def memory(self, batch: Batch) -> list[Tensor]:
        """
        Videos' visual bank over time: for each of T frames the sizes (B,M,N) int64 of its entries after that frame, on
        the CPU. An entry is a contiguous run of frames, so the sizes alone say which were merged. M grows to
        memory_bank_length; the last is as the answer is made from, the last frame beside the bank (M at most
        memory_bank_length + 1). Raises ValueError without banks.
        """
        vision, text, turns = self._inputs(batch)
        return [sizes.long().cpu() for sizes in self.connector.memory(vision, text, turns)]

    def prefix(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Visual tokens (B,P,llm hidden) and their mask (B,P) bool.
        Raises ValueError on a turn out of range or an embedding of another width."""
        texts = [sample.question for sample in batch.samples]
        if self.config.qformer_text == "prompt":
            texts = [(prompt.before + prompt.after).strip() for prompt in self.prompts(batch)]
        words = self.text_tokenizer(texts, truncation=True, max_length=self.config.max_text_tokens)["input_ids"]
        longest = max(map(len, words))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in words], dtype=torch.long)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in words], dtype=torch.long)
        device = self.language.device
        return self.connector(*self._inputs(batch), ids.to(device), mask.to(device))

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """vision, text and turn for the connector, on its device. Raises ValueError for embeddings of other widths."""
        device, widths = self.language.device, (batch.vision.shape[-1], batch.text.shape[-1])
        if widths != (self.config.vision_dim, self.config.text_dim):
            raise ValueError(
                f"embeddings of {widths[0]} (media) and {widths[1]} (text) numbers, but the model was made for "
                f"{self.config.vision_dim} and {self.config.text_dim}: embed as for its training (encoder, tokens)"
            )
        turns = [sample.turn for sample in batch.samples]
        if not all(0 <= turn < TURNS for turn in turns):
            raise ValueError(f"turn {max(turns)}: turn_pe has rows 0 to {TURNS - 1}")
        return batch.vision.to(device), batch.text.to(device), torch.tensor(turns, device=device)

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
    config: ModelConfig,
    llm: str | Path,
    device: str = "cpu",
    text_tokenizer: str | Path | None = None,
    qformer_weights: str | Path | None = None,
) -> MultimodalModel:
    """
    The untrained model, in evaluation mode; the same config and bytes of the files give the same weights. ``llm``: a
    directory of transformers. ``text_tokenizer``: that of the Q-Former's text, by default the language model's.
    ``qformer_weights``: a pretrained Q-Former (load_pretrained); what it gave is in the model's ``pretrained``.
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
        config.memory_bank_length,
        config.max_frames,
        config.seed,
    )
    pretrained = None if qformer_weights is None else load_pretrained(connector, qformer_weights)
    return MultimodalModel(config, connector.to(device), language, tokenizer, pretrained).eval()
