"""Q-Former (Li et al., BLIP-2, 2023; with text input as in InstructBLIP, Dai et al., 2023).

A BERT encoder over [query tokens, text tokens]. Queries and text see each other in self-attention; every
``cross_attention_every``-th layer the queries alone also attend to the encoder's states. Queries and text have
feed-forward layers of their own. Parameters carry the official names (``bert.encoder.layer.N.attention...``), so
that LAVIS, InstructBLIP and MA-LMM checkpoints load as they are.

No state is kept between calls: a video's past (He et al., MA-LMM, 2024) comes in and goes out as a Memory.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from malmm.memory import Bank, OpenBank


@dataclass(frozen=True)
class QFormerConfig:
    """Sizes of a Q-Former; the defaults are InstructBLIP's, except for the width of the encoder."""

    vocab_size: int | None = None
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    intermediate: int = 3072
    cross_attention_every: int = 2
    encoder_width: int = 1024
    query_tokens: int = 32
    max_positions: int = 512
    dropout: float = 0.1
    eps: float = 1e-12

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"Q-Former: hidden ({self.hidden}) must be a multiple of heads ({self.heads})")


class _Projections(nn.Module):
    """Query, key and value projections, and scaled dot-product attention over heads."""

    def __init__(self, config: QFormerConfig, key_width: int) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.query = nn.Linear(config.hidden, config.hidden)
        self.key = nn.Linear(key_width, config.hidden)
        self.value = nn.Linear(key_width, config.hidden)

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=self.heads) for x in (self.query(hidden), keys, values))
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return rearrange(out, "b h n d -> b n (h d)")


class _Residual(nn.Module):
    """dense -> dropout -> add -> LayerNorm, which closes each BERT block."""

    def __init__(self, config: QFormerConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class _Intermediate(nn.Module):
    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden, config.intermediate)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class Attention(nn.Module):
    """Multi-head attention of ``hidden`` (B,L,C) over keys and values (B,S,C); mask (B,1,1,S) bool, True = attend."""

    def __init__(self, config: QFormerConfig, key_width: int) -> None:
        super().__init__()
        self.self = _Projections(config, key_width)
        self.output = _Residual(config, config.hidden)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Of what is attended to, (...,K) -> (...,C) each; affine maps."""
        return self.self.key(context), self.self.value(context)

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        return self.output(self.self(hidden, keys, values, mask), hidden)


class Layer(nn.Module):
    def __init__(self, config: QFormerConfig, index: int) -> None:
        super().__init__()
        self.attention = Attention(config, config.hidden)
        self.has_crossattention = index % config.cross_attention_every == 0
        if self.has_crossattention:
            self.crossattention = Attention(config, config.encoder_width)
        self.intermediate = _Intermediate(config)
        self.output = _Residual(config, config.intermediate)
        self.intermediate_query = _Intermediate(config)
        self.output_query = _Residual(config, config.intermediate)

    def encoder_keys_values(self, states: Tensor) -> tuple[Tensor, ...]:
        """Those of cross-attention, where the layer has it; nothing else."""
        return self.crossattention.keys_values(states) if self.has_crossattention else ()

    def forward(
        self,
        hidden: Tensor,
        queries: int,
        context: Sequence[Tensor],
        mask: Tensor | None,
        encoder: Sequence[Tensor],
        encoder_mask: Tensor | None,
    ) -> Tensor:
        """
        hidden (B,Q+L,C), the first ``queries`` of them query tokens -> (B,Q+L,C). ``context``: keys and values (B,S,C)
        of self-attention; ``encoder``: those of cross-attention, where the layer has it. Masks cover them.
        """
        hidden = self.attention(hidden, *context, mask)
        query, text = hidden[:, :queries], hidden[:, queries:]
        if self.has_crossattention:
            query = self.crossattention(query, *encoder, encoder_mask)
        query = self.output_query(self.intermediate_query(query), query)
        if not text.shape[1]:
            return query
        return torch.cat([query, self.output(self.intermediate(text), text)], dim=1)


class _Embeddings(nn.Module):
    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden)
        self.position_embeddings = nn.Embedding(config.max_positions, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, queries: Tensor, input_ids: Tensor | None) -> Tensor:
        hidden = queries
        if input_ids is not None:
            limit = self.position_embeddings.num_embeddings
            if input_ids.shape[1] > limit:
                raise ValueError(f"Q-Former: text of {input_ids.shape[1]} tokens, but max_positions is {limit}")
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
            text = self.word_embeddings(input_ids) + self.position_embeddings(positions)
            hidden = torch.cat([queries, text.to(queries.dtype)], dim=1)
        return self.dropout(self.LayerNorm(hidden))


class _Encoder(nn.Module):
    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config, index) for index in range(config.layers))


class _Bert(nn.Module):
    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)


@dataclass(frozen=True, eq=False)
class Memory:
    """What a Q-Former keeps of past frames: the encoder's states, and each layer's inputs (queries and text)."""

    visual: Bank
    layers: tuple[Bank, ...]


class QFormer(nn.Module):
    """The encoder itself; the learned query tokens belong to its owner and come in as ``queries``."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = _Bert(config)

    def forward(
        self,
        queries: Tensor,
        encoder_states: Tensor,
        input_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        encoder_mask: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """
        queries (B,Q,hidden) float; encoder_states (B,N,encoder_width) float; input_ids (B,L) int64;
        text_mask (B,L) and encoder_mask (B,N), nonzero = attend, None = attend to all. With ``memory``, cross-attention
        sees the past frames' states too, and self-attention the past inputs of its layer (MA-LMM); gradients flow
        through the present frame and the projections of the past, not into the past.
        Returns (B,Q+L,hidden): the outputs at the query positions, then at the text positions.
        Raises ValueError if the text is longer than max_positions.
        """
        hidden = self.bert.embeddings(queries, input_ids)
        mask = _mask(text_mask, queries.shape[1], 1 if memory is None else len(memory.layers[0]) + 1)
        encoder_mask = _mask(encoder_mask, 0, 1 if memory is None else len(memory.visual) + 1)
        seen = encoder_states if memory is None else _after(memory.visual, encoder_states)
        for number, layer in enumerate(self.bert.encoder.layer):
            context = hidden if memory is None else _after(memory.layers[number], hidden)
            context, encoder = layer.attention.keys_values(context), layer.encoder_keys_values(seen)
            hidden = layer(hidden, queries.shape[1], context, mask, encoder, encoder_mask)
        return hidden

    @torch.no_grad()
    def observe(
        self,
        queries: Tensor,
        frames: Iterable[Tensor],
        input_ids: Tensor | None,
        text_mask: Tensor | None,
        length: int,
        memory: Memory | None = None,
    ) -> Memory:
        """
        The memory after the encoder states (B,N,encoder_width) of more frames, one at least, with at most ``length``
        entries a bank; ``memory``: that before them. The rest as in forward. Nothing flows back through a memory, so
        no graph is built.
        """
        layers = self.bert.encoder.layer
        visual, banks = OpenBank(length), [OpenBank(length) for _ in layers]

        def remember(number: int, hidden: Tensor, sizes: Tensor | None = None) -> None:
            # Nobody reads what the last layer makes of a frame that is not the last.
            kept = layers[number].attention.keys_values(hidden) if number + 1 < len(layers) else ()
            banks[number].append(hidden, *kept, sizes=sizes)

        if memory is not None:
            for values, sizes in memory.visual.entries():
                visual.append(values, *self._encoder_keys_values(values), sizes=sizes)
            for number, bank in enumerate(memory.layers):
                for values, sizes in bank.entries():
                    remember(number, values, sizes)
        for states in frames:
            hidden = self.bert.embeddings(queries, input_ids)
            visual.append(states, *self._encoder_keys_values(states))
            encoder = iter([entries.flatten(1, 2) for entries in visual.entries[1:]])
            for number, layer in enumerate(layers):
                remember(number, hidden)
                if number + 1 < len(layers):
                    _, *context = banks[number].entries
                    mask = _mask(text_mask, queries.shape[1], context[0].shape[1])
                    context = [entries.flatten(1, 2) for entries in context]
                    seen = list(islice(encoder, 2 * layer.has_crossattention))
                    hidden = layer(hidden, queries.shape[1], context, mask, seen, None)
                banks[number].compress()
            visual.compress()
        return Memory(visual.closed(), tuple(bank.closed() for bank in banks))

    def _encoder_keys_values(self, states: Tensor) -> list[Tensor]:
        """Of all layers with cross-attention, one after the other."""
        return [x for layer in self.bert.encoder.layer for x in layer.encoder_keys_values(states)]


def _mask(mask: Tensor | None, queries: int, entries: int) -> Tensor | None:
    """(B,L), nonzero = attend -> (B,1,1,entries*(queries+L)) bool: the same for every entry, True for queries."""
    if mask is None:
        return None
    return F.pad(mask.bool(), (queries, 0), value=True).repeat(1, entries)[:, None, None, :]


def _after(bank: Bank, states: Tensor) -> Tensor:
    """A bank's entries and then ``states`` (B,N,C): (B,(M+1)*N,C)."""
    return torch.cat([bank.values.flatten(1, 2), states], 1)
