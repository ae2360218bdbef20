"""The connector: one ImageBind embedding of an image and one of its question -> inputs of the language model.

concat(vision, text) -> imagebind_fc -> + turn_pe[turn] -> ln_vision -> one token, which the Q-Former's queries attend
to with the question as the Q-Former's text -> llm_proj. This is the architecture of the seed fork of MA-LMM.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from malmm.initial import initialise
from malmm.qformer import QFormer, QFormerConfig

TURNS = 11


class Connector(nn.Module):
    """
    outputs: "all" hands every output position of the Q-Former to the language model, those of the question's tokens
    too (as the seed fork does); "queries" hands over those of the query tokens alone (as BLIP-2 and MA-LMM do).
    normalize_inputs: both embeddings are brought to unit root mean square first. ImageBind's text rows are 100 times as
    long as its image rows, so that without it the image is 1% of what imagebind_fc sees.
    All weights follow from ``seed``; turn_pe starts at zero, as MA-LMM's frame embedding does.
    """

    def __init__(
        self,
        qformer: QFormerConfig,
        llm_hidden: int,
        vision_dim: int = 1024,
        text_dim: int = 1024,
        outputs: Literal["queries", "all"] = "queries",
        normalize_inputs: bool = True,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.outputs, self.normalize_inputs = outputs, normalize_inputs
        self.imagebind_fc = nn.Linear(vision_dim + text_dim, qformer.encoder_width)
        self.turn_pe = nn.Embedding(TURNS, qformer.encoder_width)
        self.ln_vision = nn.LayerNorm(qformer.encoder_width)
        self.query_tokens = nn.Parameter(torch.empty(1, qformer.query_tokens, qformer.hidden))
        self.Qformer = QFormer(qformer)
        self.llm_proj = nn.Linear(qformer.hidden, llm_hidden)
        initialise(self, seed)
        nn.init.zeros_(self.turn_pe.weight)

    def forward(
        self, vision: Tensor, text: Tensor, turn: Tensor, input_ids: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        vision (B,vision_dim), text (B,text_dim) float; turn (B,) int64 in 0..10; input_ids, text_mask (B,L) int64,
        padded on the right.
        Returns (B,P,llm_hidden) and its mask (B,P) bool: P = Q, or Q+L with outputs "all".
        """
        dtype = self.imagebind_fc.weight.dtype
        vision, text = vision.to(dtype), text.to(dtype)
        if self.normalize_inputs:
            vision, text = F.rms_norm(vision, vision.shape[-1:]), F.rms_norm(text, text.shape[-1:])
        fused = self.imagebind_fc(torch.cat([vision, text], dim=-1)) + self.turn_pe(turn)
        states = self.ln_vision(fused)[:, None, :]
        queries = self.query_tokens.expand(len(vision), -1, -1)
        hidden = self.Qformer(queries, states, input_ids, text_mask)
        mask = torch.ones(queries.shape[:2], dtype=torch.bool, device=hidden.device)
        if self.outputs == "all":
            mask = torch.cat([mask, text_mask.bool()], dim=1)
        else:
            hidden = hidden[:, : queries.shape[1]]
        return self.llm_proj(hidden), mask
