"""ImageBind (Girdhar et al., CVPR 2023, arXiv:2305.05665) for inference: six modalities, one embedding space.

One encoder a modality: tokens -> transformer trunk (pre-LN) -> head on one token -> unit norm x a learned
scale. Parameter names are those of the published checkpoint, so `imagebind_huge.pth` loads without renaming.
Only what inference needs is here: no dropout, no drop-path, no training loss.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.embed_imagebind.stems import token_layer

MODALITIES = ("vision", "text", "audio", "depth", "thermal", "imu")
MAX_SCALE = 100.0


@dataclass(frozen=True)
class ImageBindConfig:
    """Widths, depths and head counts of the six trunks; the defaults are imagebind_huge."""

    out_embed_dim: int = 1024
    vision_embed_dim: int = 1280
    vision_num_blocks: int = 32
    vision_num_heads: int = 16
    text_embed_dim: int = 1024
    text_num_blocks: int = 24
    text_num_heads: int = 16
    audio_embed_dim: int = 768
    audio_num_blocks: int = 12
    audio_num_heads: int = 12
    depth_embed_dim: int = 384
    depth_num_blocks: int = 12
    depth_num_heads: int = 8
    thermal_embed_dim: int = 768
    thermal_num_blocks: int = 12
    thermal_num_heads: int = 12
    imu_embed_dim: int = 512
    imu_num_blocks: int = 6
    imu_num_heads: int = 8

    def trunk(self, modality: str) -> tuple[int, int, int]:
        """(width, blocks, heads) of a modality's trunk."""
        return (
            getattr(self, f"{modality}_embed_dim"),
            getattr(self, f"{modality}_num_blocks"),
            getattr(self, f"{modality}_num_heads"),
        )


ARCHITECTURES = {
    "huge": ImageBindConfig(),
    # The same architecture at widths a CPU core runs in milliseconds. The output stays 1024 wide, so that
    # what is trained on top has the shapes it has on imagebind_huge.
    "tiny": ImageBindConfig(
        vision_embed_dim=128,
        vision_num_blocks=4,
        vision_num_heads=4,
        text_embed_dim=128,
        text_num_blocks=4,
        text_num_heads=4,
        audio_embed_dim=64,
        audio_num_blocks=2,
        audio_num_heads=4,
        depth_embed_dim=64,
        depth_num_blocks=2,
        depth_num_heads=4,
        thermal_embed_dim=64,
        thermal_num_blocks=2,
        thermal_num_heads=4,
        imu_embed_dim=64,
        imu_num_blocks=2,
        imu_num_heads=4,
    ),
}


class Attention(nn.Module):
    """Multi-head self-attention; with `bias_kv`, one learned key and value follow the sequence's own."""

    def __init__(self, width: int, heads: int, bias_kv: bool, causal: bool):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.bias_k = nn.Parameter(torch.zeros(1, 1, width)) if bias_kv else None
        self.bias_v = nn.Parameter(torch.zeros(1, 1, width)) if bias_kv else None
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        query, key, value = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        if self.bias_k is not None:
            key = torch.cat([key, self.bias_k.to(key.dtype).expand(batch, -1, -1)], dim=1)
            value = torch.cat([value, self.bias_v.to(value.dtype).expand(batch, -1, -1)], dim=1)
        query, key, value = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, bias_kv: bool, causal: bool):
        super().__init__()
        self.attn = Attention(width, heads, bias_kv, causal)
        self.norm_1 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class Trunk(nn.Module):
    def __init__(self, width: int, blocks: int, heads: int, modality: str):
        super().__init__()
        self.pre_transformer_layer = nn.Sequential(*([nn.LayerNorm(width, eps=1e-6)] if modality == "vision" else []))
        self.blocks = nn.Sequential(
            *(
                Block(width, heads, bias_kv=modality not in ("vision", "text"), causal=modality == "text")
                for _ in range(blocks)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.pre_transformer_layer(x))


class TextHead(nn.Module):
    """Reads the token at the first end-of-text; what follows it cannot have reached it (causal attention)."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.proj = nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Linear(width, out, bias=False))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        return self.proj(x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)])


class ClassToken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class UnitNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x.float(), dim=-1)


class LogitScale(nn.Module):
    def __init__(self, scale: float):
        super().__init__()
        self.register_buffer("log_logit_scale", torch.tensor(math.log(scale)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.log_logit_scale.exp().clamp(max=MAX_SCALE)


# The text scale is learned (this is CLIP's start); the others are constants of the published model.
SCALES = {"text": 1 / 0.07, "audio": 20.0, "depth": 5.0, "thermal": 10.0, "imu": 5.0}


def _head(modality: str, width: int, out: int) -> nn.Module:
    if modality == "text":
        return TextHead(width, out)
    norm, linear = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, out, bias=False)
    dropout = [nn.Identity()] if modality == "imu" else []  # holds the place of a training-only layer
    return nn.Sequential(norm, ClassToken(), *dropout, linear)


class ImageBind(nn.Module):
    """The encoders of the wanted modalities.

    `forward(modality, x)` returns float32 (B, out_embed_dim). x, float32 unless said otherwise:
        vision   (B, 3, 224, 224), or clips (B, S, 3, 2, 224, 224)
        text     (B, L) int64 token ids, L <= 77, every row with an end-of-text: what follows the longest
                 prompt of a batch may be cut off, the result is the same
        audio    (B, S, 1, 128, 204) mel spectrograms of S clips, or (B, 1, 128, 204)
        depth, thermal  (B, 1, 224, 224);    imu  (B, 6, 2000)
    Vision is of unit norm, text of norm min(exp(log_logit_scale), 100), audio 20, depth 5, thermal 10, imu 5;
    several clips are averaged after that and not normalised again, as in the published model.

    `patches(x)` of images (B, 3, 224, 224): (B, 257, vision width), float32 but under autocast; the class token
    first, then 16 x 16 patches. It is the trunk's output, before the LayerNorm of ImageBind's head: MA-LMM takes
    its frozen encoder's last block in the same way and normalises that itself, by a LayerNorm that it trains
    (`ln_vision`). The head's norm would leave nothing for that one to learn, and its weights are of the class token.
    """

    def __init__(self, config: ImageBindConfig, modalities: Sequence[str] = MODALITIES):
        super().__init__()
        parts = {part: nn.ModuleDict() for part in ("preprocessors", "trunks", "heads", "postprocessors")}
        for modality in modalities:
            width, blocks, heads = config.trunk(modality)
            scale = [LogitScale(SCALES[modality])] if modality in SCALES else []
            parts["preprocessors"][modality] = token_layer(modality, width)
            parts["trunks"][modality] = Trunk(width, blocks, heads, modality)
            parts["heads"][modality] = _head(modality, width, config.out_embed_dim)
            parts["postprocessors"][modality] = nn.Sequential(UnitNorm(), *scale)
        self.modality_preprocessors = parts["preprocessors"]
        self.modality_trunks = parts["trunks"]
        self.modality_heads = parts["heads"]
        self.modality_postprocessors = parts["postprocessors"]
        self.config = config
        self.requires_grad_(False).eval()

    def forward(self, modality: str, x: Tensor) -> Tensor:
        clips = None
        if modality in ("vision", "audio") and x.ndim >= 5:
            clips, x = x.shape[1], x.flatten(0, 1)
        hidden = self.modality_trunks[modality](self.modality_preprocessors[modality](x))
        head = self.modality_heads[modality]
        chosen = head(hidden, x) if modality == "text" else head(hidden)
        embedded = self.modality_postprocessors[modality](chosen)
        return embedded if clips is None else embedded.unflatten(0, (-1, clips)).mean(dim=1)

    def patches(self, x: Tensor) -> Tensor:
        return self.modality_trunks["vision"](self.modality_preprocessors["vision"](x))
