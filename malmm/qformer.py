"""Q-Former (Li et al., BLIP-2, 2023; with text input as in InstructBLIP, Dai et al., 2023).

A BERT encoder over [query tokens, text tokens]. Queries and text see each other in self-attention; every
``cross_attention_every``-th layer the queries alone also attend to the encoder's states. Queries and text have
feed-forward layers of their own. Parameters carry the official names (``bert.encoder.layer.N.attention...``), so
that LAVIS, InstructBLIP and MA-LMM checkpoints load as they are.

No state is kept between calls: what a layer attends to comes in as an argument (``context``).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


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

    def forward(self, hidden: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (
            rearrange(x, "b n (h d) -> b h n d", h=self.heads)
            for x in (self.query(hidden), self.key(context), self.value(context))
        )
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
    """Multi-head attention of ``hidden`` (B,L,C) over ``context`` (B,S,K); mask (B,1,1,S) bool, True = attend."""

    def __init__(self, config: QFormerConfig, key_width: int) -> None:
        super().__init__()
        self.self = _Projections(config, key_width)
        self.output = _Residual(config, config.hidden)

    def forward(self, hidden: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        return self.output(self.self(hidden, context, mask), hidden)


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

    def forward(
        self,
        hidden: Tensor,
        queries: int,
        mask: Tensor | None,
        encoder_states: Tensor,
        encoder_mask: Tensor | None,
        context: Tensor | None = None,
    ) -> Tensor:
        """hidden (B,Q+L,C), the first ``queries`` of them query tokens -> (B,Q+L,C).

        ``context`` (B,S,C) is what self-attention looks at, by default ``hidden``; ``mask`` covers it."""
        hidden = self.attention(hidden, hidden if context is None else context, mask)
        query, text = hidden[:, :queries], hidden[:, queries:]
        if self.has_crossattention:
            query = self.crossattention(query, encoder_states, encoder_mask)
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
    ) -> Tensor:
        """
        queries (B,Q,hidden) float; encoder_states (B,N,encoder_width) float; input_ids (B,L) int64;
        text_mask (B,L) and encoder_mask (B,N), nonzero = attend, None = attend to all.
        Returns (B,Q+L,hidden): the outputs at the query positions, then at the text positions.
        Raises ValueError if the text is longer than max_positions.
        """
        hidden = self.bert.embeddings(queries, input_ids)
        mask = None
        if text_mask is not None:
            mask = F.pad(text_mask.bool(), (queries.shape[1], 0), value=True)[:, None, None, :]
        if encoder_mask is not None:
            encoder_mask = encoder_mask.bool()[:, None, None, :]
        for layer in self.bert.encoder.layer:
            hidden = layer(hidden, queries.shape[1], mask, encoder_states, encoder_mask)
        return hidden
