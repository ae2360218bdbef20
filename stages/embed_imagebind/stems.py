"""ImageBind's stems: the six kinds of input to tokens of the trunks' width."""

import torch
from torch import Tensor, nn

CONTEXT_LENGTH = 77
IMAGE_TOKENS = 257  # a class token and 16 x 16 patches
VOCABULARY_SIZE = 49408
END_OF_TEXT = 49407


class Stem(nn.Module):
    """A linear map of patches to tokens; all but vision normalise the tokens after it."""

    def __init__(self, proj: nn.Module, norm_width: int | None):
        super().__init__()
        self.proj = proj
        if norm_width is not None:
            self.norm_layer = nn.LayerNorm(norm_width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        if x.ndim > 3:  # a convolution's (B, D, ...) -> (B, L, D)
            x = x.flatten(2).transpose(1, 2)
        return self.norm_layer(x) if hasattr(self, "norm_layer") else x


class RepeatInTime(nn.Module):
    """(B, C, H, W) -> (B, C, 2, H, W): a patch spans two frames, so an image is shown twice."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(2).expand(-1, -1, 2, -1, -1) if x.ndim == 4 else x


class PositionTable(nn.Module):
    def __init__(self, length: int, width: int):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, length, width))


class PatchTokens(nn.Module):
    """Class token + patches + learned positions, for vision, audio, depth and thermal."""

    def __init__(self, width: int, length: int, stem_name: str, stem: Stem):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embedding_helper = PositionTable(length, width)
        self.add_module(stem_name, stem)
        self._stem_name = stem_name

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.get_submodule(self._stem_name)(x)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return tokens + self.pos_embedding_helper.pos_embed


class ImuTokens(nn.Module):
    """(B, 6, 2000) accelerometer and gyroscope samples -> class token + 250 windows of 8 samples."""

    def __init__(self, width: int):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 251, width))
        self.imu_stem = Stem(nn.Linear(48, width, bias=False), width)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unfold(-1, 8, 8).permute(0, 2, 1, 3).flatten(2)
        tokens = self.imu_stem(windows)
        return torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.pos_embed


class TextTokens(nn.Module):
    """(B, L <= 77) int64 token ids -> (B, L, width)."""

    def __init__(self, width: int):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, CONTEXT_LENGTH, width))
        self.token_embedding = nn.Embedding(VOCABULARY_SIZE, width)
        # Kept for the checkpoint's key; attention is told "causal" instead, which is the same and faster.
        self.register_buffer("mask", torch.full((CONTEXT_LENGTH, CONTEXT_LENGTH), float("-inf")).triu_(1))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token_embedding(tokens) + self.pos_embed[:, : tokens.shape[1]]


def token_layer(modality: str, width: int) -> nn.Module:
    """The stem of a modality, with the published parameter names; `ImageBind` tells the inputs' shapes."""

    def patches(kernel: int, stride: int, channels: int = 1) -> nn.Conv2d:
        return nn.Conv2d(channels, width, kernel, stride, bias=False)

    if modality == "vision":
        conv = nn.Conv3d(3, width, (2, 14, 14), (2, 14, 14), bias=False)
        return PatchTokens(width, IMAGE_TOKENS, "rgbt_stem", Stem(nn.Sequential(RepeatInTime(), conv), None))
    if modality == "audio":
        return PatchTokens(width, 229, "rgbt_stem", Stem(patches(16, 10), width))
    if modality == "depth":
        return PatchTokens(width, 197, "depth_stem", Stem(patches(16, 16), width))
    if modality == "thermal":
        return PatchTokens(width, 197, "rgbt_stem", Stem(patches(16, 16), width))
    return TextTokens(width) if modality == "text" else ImuTokens(width)
