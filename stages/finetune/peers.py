"""What passes between processes that train together: gradients and a few numbers, added up."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from torch import Tensor, nn

from stages.contract import TryAgain
from stages.finetune.launch import MEETING

MESSAGE = 1 << 24  # numbers in one message


class Disconnected(TryAgain):
    """Another process of the training has ended."""


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Raises Disconnected for what Gloo and NCCL raise, which is a RuntimeError without a type of its own."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise Disconnected(f"another process of the training has ended ({error})") from error


def join(device: str) -> PartialState:
    """The group of processes that train together, when all are there; this one alone where nothing started several."""
    meeting = {}
    if MEETING in os.environ:
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        meeting = {"init_method": f"file://{os.environ[MEETING]}", "rank": rank, "world_size": ranks}
    group = PartialState(cpu=device == "cpu", **meeting)
    with connected():
        group.wait_for_everyone()
    return group


@connected()
def add_up(parameters: Sequence[nn.Parameter], numbers: Sequence[float], accelerator: Accelerator) -> list[float]:
    """
    The sums of ``numbers`` over all processes; gradients are added up in place. A parameter that no process has a
    gradient for keeps none. Raises Disconnected when another process has ended.
    """
    if accelerator.num_processes == 1:
        return list(numbers)
    reached = [float(p.grad is not None) for p in parameters]
    sums = torch.tensor([*numbers, *reached], dtype=torch.float64, device=accelerator.device)
    dist.all_reduce(sums)
    sums, reached = sums[: len(numbers)].tolist(), sums[len(numbers) :].tolist()
    trained = [p for p, anywhere in zip(parameters, reached, strict=True) if anywhere]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for gradients in _messages([p.grad for p in trained]):
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
    return sums


def _messages(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors in few groups, so that neither their number nor a copy of all of them costs much."""
    group: list[Tensor] = []
    for tensor in tensors:
        group.append(tensor)
        if sum(t.numel() for t in group) >= MESSAGE:
            yield group
            group = []
    if group:
        yield group
