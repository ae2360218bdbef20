"""The connector: ImageBind embeddings of an image or a video and of a question -> inputs of the language model.

concat(vision, text) -> imagebind_fc -> + turn_pe[turn] -> ln_vision -> the tokens that the Q-Former's queries attend
to, with the question as the Q-Former's text -> llm_proj. For an image, one token: the architecture of the seed fork of
MA-LMM. For a video, N tokens a frame, and either each frame goes through the Q-Former alone and all outputs go to the
language model, or, with memory banks, + image_pe[frame], one frame after the other, and those of the last frame go.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from malmm.initial import initialise
from malmm.memory import Bank
from malmm.qformer import QFormer, QFormerConfig

TURNS = 11


class Connector(nn.Module):
    """
    outputs: "all" hands every output position of the Q-Former to the language model, those of the question's tokens
    too (as the seed fork does); "queries" hands over those of the query tokens alone (as BLIP-2 and MA-LMM do).
    normalize_inputs: both embeddings are brought to unit root mean square first. ImageBind's text rows are 100 times as
    long as its image rows, so that without it the image is 1% of what imagebind_fc sees.
    memory_bank_length: entries of MA-LMM's memory banks, 0 = none; with them there is image_pe, of max_frames rows.
    All weights follow from ``seed``; turn_pe and image_pe start at zero, as MA-LMM's frame embedding does.
    """

    def __init__(
        self,
        qformer: QFormerConfig,
        llm_hidden: int,
        vision_dim: int = 1024,
        text_dim: int = 1024,
        outputs: Literal["queries", "all"] = "queries",
        normalize_inputs: bool = True,
        memory_bank_length: int = 0,
        max_frames: int = 120,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.outputs, self.normalize_inputs = outputs, normalize_inputs
        self.memory_bank_length = memory_bank_length
        self.imagebind_fc = nn.Linear(vision_dim + text_dim, qformer.encoder_width)
        self.turn_pe = nn.Embedding(TURNS, qformer.encoder_width)
        self.ln_vision = nn.LayerNorm(qformer.encoder_width)
        self.query_tokens = nn.Parameter(torch.empty(1, qformer.query_tokens, qformer.hidden))
        self.Qformer = QFormer(qformer)
        self.llm_proj = nn.Linear(qformer.hidden, llm_hidden)
        zero = [self.turn_pe]
        if memory_bank_length:
            self.image_pe = nn.Embedding(max_frames, qformer.encoder_width)
            zero.append(self.image_pe)
        initialise(self, seed)
        for embedding in zero:
            nn.init.zeros_(embedding.weight)

    def forward(
        self, vision: Tensor, text: Tensor, turn: Tensor, input_ids: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        vision (B,vision_dim) of images or (B,T,N,vision_dim) of videos, text (B,text_dim), float; turn (B,) int64 in
        0..10; input_ids, text_mask (B,L) int64, padded on the right.
        Returns (B,P,llm_hidden) and its mask (B,P) bool: P = Q, or Q+L with outputs "all"; T times that for videos
        without memory banks. Raises ValueError for vision of another shape, a video of no frames or, with banks, of
        more than max_frames.
        """
        video = _video(vision)
        queries = self.query_tokens.expand(len(video), -1, -1)
        if self.memory_bank_length:
            hidden = self._remembering(video, text, turn, queries, input_ids, text_mask)
        else:
            steps = video.shape[1]
            text, turn, queries, input_ids, text_mask = (
                x.repeat_interleave(steps, 0) for x in (text, turn, queries, input_ids, text_mask)
            )
            hidden = self.Qformer(queries, self._states(video.flatten(0, 1), text, turn), input_ids, text_mask)
        mask = torch.ones(queries.shape[:2], dtype=torch.bool, device=hidden.device)
        if self.outputs == "all":
            mask = torch.cat([mask, text_mask.bool()], dim=1)
        else:
            hidden = hidden[:, : queries.shape[1]]
        return self.llm_proj(hidden.reshape(len(video), -1, hidden.shape[-1])), mask.reshape(len(video), -1)

    @torch.no_grad()
    def memory(self, vision: Tensor, text: Tensor, turn: Tensor) -> list[Tensor]:
        """
        Sizes (B,M,N) of the visual bank's entries after each of the T frames; shapes as in forward. After the last
        frame nothing is merged any more: this is what the language model's tokens are made from.
        Raises ValueError where there are no memory banks.
        """
        if not self.memory_bank_length:
            raise ValueError("the model has no memory banks (memory_bank_length is 0), so there is nothing to show")
        video = _video(vision)
        bank, sizes = None, []
        for step in range(video.shape[1]):
            states = self._frame(video, text, turn, step)
            bank = Bank.of(states) if bank is None else bank.append(states)
            if step + 1 < video.shape[1]:
                bank = bank.compress(self.memory_bank_length)
            sizes.append(bank.sizes)
        return sizes

    def _remembering(
        self, video: Tensor, text: Tensor, turn: Tensor, queries: Tensor, input_ids: Tensor, text_mask: Tensor
    ) -> Tensor:
        """The Q-Former's outputs (B,Q+L,hidden) for the last frame, which sees the past in the banks."""
        *past, last = range(video.shape[1])
        memory = None
        if past:
            with torch.no_grad():
                frames = (self._frame(video, text, turn, step) for step in past)
                memory = self.Qformer.observe(queries, frames, input_ids, text_mask, self.memory_bank_length)
        return self.Qformer(queries, self._frame(video, text, turn, last), input_ids, text_mask, memory=memory)

    def _frame(self, video: Tensor, text: Tensor, turn: Tensor, step: int) -> Tensor:
        """(B,N,encoder_width): what the Q-Former sees of frame ``step``, with the time embedding."""
        rows = len(self.image_pe.weight)
        if video.shape[1] > rows:
            raise ValueError(f"{video.shape[1]} frames, but image_pe has {rows} rows: take fewer, or set max_frames")
        return self._states(video[:, step], text, turn) + self.image_pe.weight[step]

    def _states(self, frames: Tensor, text: Tensor, turn: Tensor) -> Tensor:
        """frames (B,N,vision_dim), text (B,text_dim), turn (B,) -> (B,N,encoder_width)."""
        dtype = self.imagebind_fc.weight.dtype
        frames, text = frames.to(dtype), text.to(dtype)
        if self.normalize_inputs:
            frames, text = F.rms_norm(frames, frames.shape[-1:]), F.rms_norm(text, text.shape[-1:])
        text = text[:, None].expand(-1, frames.shape[1], -1)
        fused = self.imagebind_fc(torch.cat([frames, text], dim=-1)) + self.turn_pe(turn)[:, None]
        return self.ln_vision(fused)


def _video(vision: Tensor) -> Tensor:
    """(B,D) or (B,T,N,D) -> (B,T,N,D)."""
    video = vision[:, None, None] if vision.ndim == 2 else vision
    if video.ndim != 4 or not video.shape[1]:
        raise ValueError(f"vision {tuple(vision.shape)}; expected (B,D) of images or (B,T,N,D) of videos, T at least 1")
    return video
