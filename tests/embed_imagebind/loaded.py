"""What every process of embed_imagebind loads before it works, for processes that are forked with it loaded."""

import torch

from stages.embed_imagebind import run  # noqa: F401
from stages.embed_imagebind.model import ARCHITECTURES
from stages.embed_imagebind.weights import expected_shapes

torch.set_num_threads(1)  # or the process that forks has threads, which its children lack
expected_shapes(ARCHITECTURES["tiny"])  # torch loads much when first asked for a meta device
