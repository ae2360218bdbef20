"""A frozen causal language model that reads visual tokens and text.

Sequences are laid out as [left padding][text before][visual tokens][text after][answer][EOS][right padding], so that
the answers of a batch start at one position and only their logits are computed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, DynamicCache, GenerationConfig

from malmm.initial import seeded_normal
from malmm.prompt import Prompt
from malmm.trie import Row, following, tries

VISUAL, PAD = -1, -2  # stand-ins for token ids at places that hold no token
Quantization = Literal["nf4", "none"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al., 2022) on all linear layers of the language model but its head."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05


class LanguageModel(nn.Module):
    """
    A causal LM of transformers from a local directory (config.json, *.safetensors, tokenizer files).

    quantization: "nf4" holds linear layers as 4-bit NormalFloat (Dettmers et al., 2023) by bitsandbytes, "none" in
    ``precision`` ("fp32" or "bf16"), which is also the type of computation. All weights are frozen but LoRA's.
    Raises OSError (of transformers) if the directory lacks a file, ValueError if the tokenizer has no EOS.
    """

    def __init__(
        self,
        path: str | Path,
        quantization: Quantization = "nf4",
        precision: Literal["fp32", "bf16"] = "fp32",
        device: str = "cpu",
        lora: Lora | None = None,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        if self.tokenizer.eos_token_id is None:
            raise ValueError(f"{path}: the tokenizer has no EOS token, so an answer would have no end")
        dtype = DTYPES[precision]
        quantized = None
        if quantization == "nf4":
            quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        self.model = AutoModelForCausalLM.from_pretrained(
            path,
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype,
            quantization_config=quantized,
            device_map={"": device},
        ).requires_grad_(False)
        if lora is not None:
            self.model = _with_lora(self.model, lora, seed)
        self.eos, bos = self.tokenizer.eos_token_id, self.tokenizer.bos_token_id
        # What the tokenizer puts in front of a text (BOS); like the official code, in front of the first text, not of
        # visual tokens that come before it.
        self.start = [token for token in self.tokenizer("")["input_ids"] if token != self.eos or token == bos]
        # Text may hold no answer over several lines, so a new line ends a generated answer as EOS does.
        self.stops = [self.eos] + [
            index
            for token, index in self.tokenizer.get_vocab().items()
            if index != self.eos and ("\n" in token or "Ċ" in token or token == "<0x0A>")
        ]

    @property
    def hidden(self) -> int:
        """Width of the input embeddings."""
        return self.model.get_input_embeddings().embedding_dim

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    def count(self, text: str) -> int:
        """Tokens of ``text``, special ones left out."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def answer_ids(self, prompt: Prompt, answers: Sequence[str]) -> list[list[int]]:
        """Token ids of each answer, as they would follow the prompt after a space, and EOS."""
        # A tokenizer may mark the start of a text, so answers are tokenised behind the prompt's last character.
        anchor = prompt.after[-1:] or "."
        space = "" if anchor.isspace() else " "
        head = self.tokenizer(anchor, add_special_tokens=False)["input_ids"]
        texts = [anchor + space + " ".join(answer.split()) if answer.split() else anchor for answer in answers]
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        for row, answer in zip(rows, answers, strict=True):
            if row[: len(head)] != head:
                raise ValueError(
                    f"answer {answer!r} cannot be told from the end of its prompt {prompt.after!r}: end the template "
                    "without a space"
                )
        return [row[len(head) :] + [self.eos] for row in rows]

    def prompt_ids(self, prompt: Prompt, visual: int) -> list[int]:
        """Token ids of a prompt, with ``visual`` times VISUAL where the visual tokens go."""
        before = self.tokenizer(prompt.before, add_special_tokens=False)["input_ids"] if prompt.before else []
        after = self.tokenizer(prompt.after, add_special_tokens=False)["input_ids"]
        if before:
            return self.start + before + [VISUAL] * visual + after
        return [VISUAL] * visual + self.start + after

    def answer_loss(
        self, prefix: Tensor, prefix_mask: Tensor, prompts: Sequence[Prompt], answers: Sequence[str]
    ) -> tuple[Tensor, int]:
        """
        prefix (B,P,hidden) float, prefix_mask (B,P) bool, B prompts and answers.
        Returns the negative log-likelihood summed over all tokens of the answers and their EOS (float32 scalar), and
        the number of those tokens.
        """
        targets = [self.answer_ids(p, [a])[0] for p, a in zip(prompts, answers, strict=True)]
        embeds, mask = self._embed(prefix, prefix_mask, prompts, targets)
        longest = max(map(len, targets))
        labels = _pad(targets, longest, -100, self.device)
        logits = self.model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=_positions(mask),
            logits_to_keep=longest + 1,
            use_cache=False,
        ).logits[:, :-1]
        loss = F.cross_entropy(
            rearrange(logits.float(), "b t v -> (b t) v"), rearrange(labels, "b t -> (b t)"), reduction="sum"
        )
        return loss, sum(map(len, targets))

    @torch.no_grad()
    def generate(
        self,
        prefix: Tensor,
        prefix_mask: Tensor,
        prompts: Sequence[Prompt],
        beams: int = 1,
        max_new_tokens: int = 30,
        length_penalty: float = 1.0,
        min_new_tokens: int = 1,
        allowed: Sequence[str] | None = None,
        returned: int = 1,
    ) -> list[str]:
        """
        Answers (greedy, or the best of ``beams``), ended by EOS or a new line; shapes as in answer_loss. ``returned``:
        so many of a sample's beams, best first, one after the other.

        allowed: each answer is one of these strings, chosen token by token among those that continue one of them; the
        numbers of new tokens do not matter then. Raises ValueError if there is none.
        """
        embeds, mask = self._embed(prefix, prefix_mask, prompts)
        options: list[dict[Row, str]] = []
        if allowed is not None:
            if not allowed:
                raise ValueError("there is no string to choose an answer from")
            options = self._options(prompts, allowed)
            max_new_tokens = max(len(row) for rows in options for row in rows)
        config = GenerationConfig(
            do_sample=False,
            num_beams=beams,
            num_return_sequences=returned,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens if not options else None,
            length_penalty=length_penalty,
            eos_token_id=self.stops if not options else self.eos,
            pad_token_id=self.eos,
        )
        follow = [following(tuple(rows)) for rows in options]

        def may_follow(sample: int, ids: Tensor) -> list[int]:
            # Beams without an option left go on with EOS; their score is minus infinity already.
            return follow[sample].get(tuple(ids.tolist()), [self.eos])

        ids = self.model.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            generation_config=config,
            prefix_allowed_tokens_fn=may_follow if options else None,
        )
        if options:
            rows = [tuple(row[: row.index(self.eos) + 1]) for row in ids.tolist()]
            return [options[number // returned][row] for number, row in enumerate(rows)]
        return [self._text(row) for row in ids]

    @torch.no_grad()
    def stream(
        self, prefix: Tensor, prefix_mask: Tensor, prompts: Sequence[Prompt], max_new_tokens: int = 30
    ) -> Iterator[str]:
        """Pieces of the answer that generate gives without beams, as they come; shapes as in answer_loss with B = 1."""
        inputs, past = {"inputs_embeds": self._embed(prefix, prefix_mask, prompts)[0]}, None
        ids: list[int] = []
        said = ""
        while len(ids) < max_new_tokens and not (ids and ids[-1] in self.stops):
            out = self.model(**inputs, past_key_values=past, use_cache=True, logits_to_keep=1)
            logits = out.logits[0, -1].clone()
            if not ids:  # an answer has one token at least
                logits[self.stops] = -torch.inf
            ids.append(int(logits.argmax()))
            inputs, past = {"input_ids": torch.tensor([ids[-1:]], device=self.device)}, out.past_key_values
            # Bytes of a character are kept back until it is whole: SentencePiece reads a run of them as one or as none.
            text, token = self._text(ids), self.tokenizer.convert_ids_to_tokens(ids[-1])
            if text != said and not (text.endswith("\N{REPLACEMENT CHARACTER}") or token.startswith("<0x")):
                yield text[len(said) :]
                said = text
        if text := self._text(ids)[len(said) :]:
            yield text

    def _text(self, ids: Sequence[int] | Tensor) -> str:
        """The first line of what was generated."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).lstrip().split("\n")[0].strip()

    def _options(self, prompts: Sequence[Prompt], allowed: Sequence[str]) -> list[dict[Row, str]]:
        """For each prompt the allowed answers by their token ids, which depend on the prompt's last character alone."""
        known: dict[str, dict[Row, str]] = {}  # where two answers are the same tokens, the first stays
        for prompt in prompts:
            last = prompt.after[-1:]
            if last not in known:
                rows = self.answer_ids(prompt, allowed)
                known[last] = {tuple(row): text for row, text in zip(reversed(rows), reversed(allowed), strict=True)}
        return [known[prompt.after[-1:]] for prompt in prompts]

    @torch.no_grad()
    def rank(
        self, prefix: Tensor, prefix_mask: Tensor, prompt: Prompt, candidates: Sequence[str], chunk: int = 128
    ) -> Tensor:
        """
        prefix (P,hidden), prefix_mask (P,), C candidates -> (C,) float32 on the CPU: mean log-likelihood of a
        candidate's tokens and its EOS.

        The prompt goes through the model once, and candidates share its keys and values. They also share those of the
        tokens that they begin with: a trie of their tokens goes through the model as one sequence in which each token
        sees the prompt and its own ancestors alone (tree attention), ``chunk`` candidates at a time.
        """
        if not candidates:
            return torch.empty(0)
        embeds, mask = self._embed(prefix[None], prefix_mask[None], [prompt])
        out = self.model(inputs_embeds=embeds, attention_mask=mask, use_cache=True, logits_to_keep=1)
        rows = [tuple(row) for row in self.answer_ids(prompt, candidates)]
        scores: dict[Row, float] = {}
        for trie in tries(tuple(rows), chunk):
            logprobs = out.logits[:, -1]
            if trie.tokens:
                seen = F.pad(trie.ancestry.to(self.device), (embeds.shape[1], 0), value=True)
                hidden = torch.zeros(seen.shape, dtype=embeds.dtype, device=self.device)
                depths = torch.tensor([trie.depths], device=self.device)
                after = self.model(
                    input_ids=torch.tensor([trie.tokens], device=self.device),
                    attention_mask=hidden.masked_fill(~seen, torch.finfo(embeds.dtype).min)[None, None],
                    position_ids=embeds.shape[1] + depths,
                    past_key_values=DynamicCache([(c.keys, c.values) for c in out.past_key_values.layers]),
                    use_cache=True,
                )
                logprobs = torch.cat([logprobs, after.logits[0]])
            logprobs = logprobs.float().log_softmax(-1)
            for row, nodes in trie.paths.items():
                scores[row] = logprobs[nodes, list(row)].mean().item()
        return torch.tensor([scores[row] for row in rows], dtype=torch.float32)

    def _embed(
        self,
        prefix: Tensor,
        prefix_mask: Tensor,
        prompts: Sequence[Prompt],
        answers: Sequence[Sequence[int]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Input embeddings (B,T,hidden) and attention mask (B,T) bool. Raises ValueError for more tokens than the model
        has positions: it would answer all the same, and nonsense."""
        visual_tokens = prefix_mask.sum(1).tolist()
        rows = [self.prompt_ids(p, n) for p, n in zip(prompts, visual_tokens, strict=True)]
        width = max(map(len, rows))
        longest = width if answers is None else max(len(r) + len(a) for r, a in zip(rows, answers, strict=True))
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is not None and longest > limit:
            raise ValueError(
                f"{longest} tokens, up to {max(visual_tokens)} of them visual, but the language model takes {limit}: "
                "set a memory_bank_length, take fewer frames, or lower max_prompt_tokens"
            )
        ids = _pad([row[::-1] for row in rows], width, PAD, self.device).flip(1)
        if answers is not None:
            ids = torch.cat([ids, _pad(answers, max(map(len, answers)), PAD, self.device)], dim=1)
        words = self.model.get_input_embeddings()(ids.clamp(min=0))
        visual = prefix[prefix_mask].to(words.dtype)  # row by row, which is the order of masked_scatter
        return words.masked_scatter((ids == VISUAL)[..., None], visual), ids != PAD


def _with_lora(model: nn.Module, lora: Lora, seed: int) -> nn.Module:
    from peft import LoraConfig, get_peft_model  # half of all the time that importing takes, and seldom needed

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    with torch.no_grad():  # peft draws from the global generator; here a seed decides (B is zero already)
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                std = (3.0 * parameter.shape[1]) ** -0.5
                parameter.copy_(seeded_normal(parameter.shape, seed, name, std))
    return model


def _pad(rows: Sequence[Sequence[int]], width: int, value: int, device: torch.device) -> Tensor:
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], device=device)


def _positions(mask: Tensor) -> Tensor:
    """(B,T) bool -> (B,T) int64: the place of each token among those that are there."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)
