"""Random weights that depend on a seed and the parameter's name alone.

Frozen random parts are not stored in a checkpoint but made again from the seed, so the numbers must be the same on
every machine. A sum of four uniforms is used for the normal distribution: torch's uniforms are integers scaled by a
power of two and their sum is exact IEEE arithmetic, whereas log and cos of Box-Muller differ in the last bit between
instruction sets. Adding a parameter leaves the others as they were.
"""

import hashlib

import torch
from torch import Tensor, nn

STD = 0.02  # BERT's initializer_range


def seeded_normal(shape: torch.Size, seed: int, name: str, std: float = STD) -> Tensor:
    """float32 tensor on the CPU, mean 0, the given standard deviation, within 3.5 of them."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    total = torch.rand(shape, generator=generator)
    for _ in range(3):
        total += torch.rand(shape, generator=generator)
    return (total - 2.0).mul_(std * 3.0**0.5)


@torch.no_grad()
def initialise(module: nn.Module, seed: int) -> None:
    """BERT's initialisation: weights normal(0, 0.02), biases 0, LayerNorm 1 and 0; in place."""
    norms = {id(m.weight) for m in module.modules() if isinstance(m, nn.LayerNorm)}
    for name, parameter in module.named_parameters():
        if id(parameter) in norms:
            parameter.fill_(1.0)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.copy_(seeded_normal(parameter.shape, seed, name))
