"""
The training loop. What is random in a batch follows from the seed and its number, so a resumed run repeats what was
lost, and processes may share the batches of a step in any number.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from malmm.model import Batch, MultimodalModel
from stages.contract import WrongConfig
from stages.finetune.data import TrainingData
from stages.finetune.peers import add_up
from stages.finetune.schedule import Schedule

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's
CURVES = ("loss", "lr", "grad_norm")


@dataclass
class State:
    """Where a run stands: steps done, trained weights, AdamW's moments by weight, and curves of one value a step."""

    step: int
    weights: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    curves: dict[str, list[float]]

    @classmethod
    def untrained(cls, model: MultimodalModel) -> "State":
        """Before the first step."""
        return cls(0, model.trained_state(), {m: {} for m in MOMENTS}, {name: [] for name in CURVES})

    def tensors(self) -> dict[str, Tensor]:
        """All of it as named tensors, for safetensors."""
        return (
            {"step": torch.tensor(self.step)}
            | {f"weight/{name}": value for name, value in self.weights.items()}
            | {f"{m}/{name}": value for m in MOMENTS for name, value in self.moments[m].items()}
            | {f"curve/{name}": torch.tensor(values, dtype=torch.float64) for name, values in self.curves.items()}
        )

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> "State":
        """The inverse of tensors."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        curves = {name: tensors[f"curve/{name}"].tolist() for name in CURVES}
        return cls(int(tensors["step"]), part("weight/"), {m: part(f"{m}/") for m in MOMENTS}, curves)


def train(
    model: MultimodalModel,
    data: TrainingData,
    schedule: Schedule,
    accelerator: Accelerator,
    weight_decay: float,
    grad_clip: float,
    state: State | None,
    every: int,
    save: Callable[[State], None],
    tell: Callable[[int, int, dict[str, float]], None],
) -> State:
    """
    Trains ``model`` in place from ``state`` (None: from the start) to the schedule's end and returns the state there.
    Of W processes, process r takes batches r, r + W, ... of a step; all take the same steps.

    ``save`` gets the state after each ``every`` steps, ``tell`` (steps done, samples of this step, its values) after
    each step. Raises WrongConfig if the model refuses a batch, or the loss or the gradient is not finite.
    """
    parameters = model.trained_parameters()
    # Vectors (biases, norms) have no weight decay, as in the official code.
    decayed = [p for p in parameters.values() if p.ndim > 1]
    others = [p for p in parameters.values() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=schedule.lr,
    )
    start, curves = 0, {name: [] for name in CURVES}
    if state is not None:
        model.load_trained(state.weights)
        _restore(optimizer, parameters, state)
        curves, start = state.curves, state.step
    optimizer = accelerator.prepare(optimizer)
    model.train()

    rank, ranks = accelerator.process_index, accelerator.num_processes
    batches = read_ahead(data.batch, (batch for work in schedule.walk(start) for batch in work[rank::ranks]))
    for step, work in enumerate(schedule.walk(start), start):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step)

        total, tokens, samples = 0.0, 0, 0
        for number in range(rank, len(work), ranks):
            batch = next(batches)
            torch.manual_seed((schedule.seed << 32) + step * schedule.accumulate + number)  # dropout
            try:
                with accelerator.autocast():
                    loss, count = model.loss(batch)
            except ValueError as error:  # too many tokens, a template that ends in a space, a turn out of range
                raise WrongConfig(f"step {step + 1}: {error}") from None
            accelerator.backward(loss)
            total, tokens, samples = total + loss.item(), tokens + count, samples + len(batch)
        numbers = add_up(list(parameters.values()), (total, tokens, samples, step), accelerator)
        total, tokens, samples = numbers[0], int(numbers[1]), int(numbers[2])
        if numbers[3] != ranks * step:
            raise WrongConfig("the processes stand at different steps: all nodes must see one and the same store")
        # The mean over the tokens of all batches, so that accumulating is the same as one large batch.
        for parameter in parameters.values():
            if parameter.grad is not None:
                parameter.grad.div_(tokens)
        norm = accelerator.clip_grad_norm_(list(parameters.values()), grad_clip).item()
        if not math.isfinite(total) or not math.isfinite(norm):
            raise WrongConfig(
                f"step {step + 1}: the loss is {total / tokens:.4g} and the gradient's norm {norm:.4g}; set a lower "
                "finetune.lr, or finetune.precision: fp32"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        values = {"loss": total / tokens, "lr": schedule.learning_rate(step), "grad_norm": norm}
        for name, value in values.items():
            curves[name].append(value)
        tell(step + 1, samples, values)
        if (step + 1) % every == 0 and step + 1 < schedule.steps:
            save(_snapshot(optimizer, model, step + 1, curves))
    return _snapshot(optimizer, model, schedule.steps, curves)


def read_ahead(read: Callable[..., Batch], work: Iterable[tuple[Any, ...]]) -> Iterator[Batch]:
    """``read(*arguments)`` of each piece of work, in order; a thread reads the next while the model takes this one."""
    with ThreadPoolExecutor(1, "read-ahead") as reader:
        coming = None
        for arguments in work:
            present, coming = coming, reader.submit(read, *arguments)
            if present is not None:
                yield present.result()
        if coming is not None:
            yield coming.result()


def _snapshot(optimizer: torch.optim.Optimizer, model: MultimodalModel, step: int, curves: dict) -> State:
    moments = {
        moment: {
            name: optimizer.state[p][moment].detach().cpu()
            for name, p in model.trained_parameters().items()
            if p in optimizer.state
        }
        for moment in MOMENTS
    }
    return State(step, model.trained_state(), moments, curves)


def _restore(optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter], state: State) -> None:
    for name, parameter in parameters.items():
        if name in state.moments[MOMENTS[0]]:  # not those that no gradient has reached
            optimizer.state[parameter] = {
                "step": torch.tensor(float(state.step)),
                **{m: state.moments[m][name].to(parameter.device) for m in MOMENTS},
            }
