"""Memory banks (He et al., MA-LMM, 2024): a past of any length in a fixed number of entries.

A bank holds, for each of N token positions, a row of entries in the order of time. When it grows over its length, the
two neighbours that are most alike become one, their mean weighted by the frames that each stands for. So an entry is a
contiguous run of frames, and different positions may merge different frames.

``compress`` and ``Bank`` are values and change nothing in place. ``OpenBank`` gives the same numbers by writing into
memory of its own, for a function that takes many frames at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def compress(bank: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """
    bank (B,T,N,C) float and sizes (B,T,N), the frames each entry stands for -> (B,T-1,N,C) and (B,T-1,N) float32.

    Per token position, the neighbours of the highest cosine similarity (the first, of equals) become their mean,
    weighted by sizes; sizes are added. float16 and bfloat16 are weighted and added as such, and come out as float32.
    Raises ValueError with the shapes if they do not fit each other or there are no two entries to merge.
    """
    if bank.ndim != 4 or sizes.shape != bank.shape[:3] or bank.shape[1] < 2:
        raise ValueError(
            f"bank {tuple(bank.shape)} and sizes {tuple(sizes.shape)}; expected (B,T,N,C) and (B,T,N), T at least 2"
        )
    sizes = sizes.float()
    place = _cosine(bank[:, :-1], bank[:, 1:]).argmax(1)
    pair = torch.stack([place, place + 1], 1)
    merged = _take(bank, _others(place, bank.shape[1])).float()
    _put(merged, place[:, None], _mean(_take(bank, pair), sizes.gather(1, pair)[..., None])[:, None])
    return merged, _add(sizes, place)


@dataclass(frozen=True, eq=False)
class Bank:
    """values (B,M,N,C) float and sizes (B,M,N) float32, the frames each entry stands for; detached."""

    values: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, frame: Tensor) -> "Bank":
        """A bank of one entry: frame (B,N,C)."""
        return cls(frame.detach()[:, None], torch.ones(len(frame), 1, frame.shape[1], device=frame.device))

    def __len__(self) -> int:
        """Entries at each token position."""
        return self.values.shape[1]

    def entries(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Values (B,N,C) and sizes (B,N) of each entry, in the order of time."""
        return zip(self.values.unbind(1), self.sizes.unbind(1), strict=True)

    def append(self, frame: Tensor) -> "Bank":
        """One entry more: frame (B,N,C). Raises ValueError if it does not fit."""
        if frame.shape != self.values[:, 0].shape:
            raise ValueError(f"a frame {tuple(frame.shape)} (B,N,C) for a bank {tuple(self.values.shape)} (B,M,N,C)")
        new = Bank.of(frame)
        return Bank(torch.cat([self.values, new.values], 1), torch.cat([self.sizes, new.sizes], 1))

    def compress(self, length: int) -> "Bank":
        """At most ``length`` entries. Raises ValueError for a length below 1."""
        values, sizes = self.values, self.sizes
        if length < 1:
            raise ValueError(f"a bank of {length} entries holds nothing")
        while values.shape[1] > length:
            values, sizes = compress(values, sizes)
        return Bank(values, sizes)


class OpenBank:
    """
    A bank of at most ``length`` entries being written: ``append``, look at ``entries``, ``compress``, and so on.

    Beside its values (B,M,N,C) it keeps tensors (B,M,N,*) computed from them by affine maps (keys, values). The weights
    of a mean add up to one, so the map of a mean is the mean of the maps: they are merged too, not computed again.
    Entries lie in slots, whose order does not matter to attention: a merged entry stays in the slot of the first of the
    two, and the next frame takes the other's. So a frame costs a few rows, whatever the length; of the neighbours'
    similarities three are new. float32.
    """

    def __init__(self, length: int) -> None:
        if length < 1:
            raise ValueError(f"a bank of {length} entries holds nothing")
        self.length = length
        self._slots: list[Tensor] = []  # values, then what is kept beside them: (B,length+1,N,*)

    def append(self, *new: Tensor, sizes: Tensor | None = None) -> None:
        """One entry more, for which two are merged if there is no room: values (B,N,C) and what is kept beside them
        (B,N,*). sizes (B,N): the frames it stands for, by default 1."""
        if self._slots:
            self.compress()
        batch, tokens = new[0].shape[:2]
        one = new[0].new_ones(batch, 1, tokens, dtype=torch.float32) if sizes is None else sizes[:, None]
        if not self._slots:
            self._slots = [x.new_empty(batch, self.length + 1, tokens, x.shape[-1], dtype=torch.float32) for x in new]
            self._sizes, self._order = one[:, :0], one[:, :0].long()
            self._similarity = one[:, :0]
            self._free = torch.zeros_like(one[:, 0], dtype=torch.long)
        if self._order.shape[1]:
            last = _take(self._slots[0], self._order[:, -1:])
            self._similarity = torch.cat([self._similarity, _cosine(last, new[0].float()[:, None])], 1)
        for slots, x in zip(self._slots, new, strict=True):
            _put(slots, self._free[:, None], x.float()[:, None])
        self._sizes = torch.cat([self._sizes, one], 1)
        self._order = torch.cat([self._order, self._free[:, None]], 1)
        self._free = self._free + 1  # right until the first merge

    @property
    def entries(self) -> list[Tensor]:
        """What was appended, (B,M,N,*) each, in no order; good until the next change."""
        return [slots[:, : self._order.shape[1]] for slots in self._slots]

    def compress(self) -> None:
        """Merges two entries if there are more than ``length``."""
        if self._order.shape[1] <= self.length:
            return
        place = self._similarity.argmax(1)
        pair = torch.stack([place, place + 1], 1)
        where, weights = self._order.gather(1, pair), self._sizes.gather(1, pair)[..., None]
        for slots in self._slots:
            _put(slots, where[:, :1], _mean(_take(slots, where), weights)[:, None])
        self._sizes = _add(self._sizes, place)
        self._free, self._order = where[:, 1], self._order.gather(1, _others(place, self.length + 1))
        # The merged entry's similarities; one place more at either end takes those to neighbours that do not exist.
        near = torch.stack([place - 1, place, place + 1], 1).clamp(0, self.length - 1)
        near = _take(self._slots[0], self._order.gather(1, near))
        kept = F.pad(self._similarity.gather(1, _others(place - 1, self.length)), (0, 0, 1, 1))
        self._similarity = kept.scatter(1, pair, _cosine(near[:, :2], near[:, 1:]))[:, 1:-1]

    def closed(self) -> Bank:
        """The bank as a value, in the order of time."""
        return Bank(_take(self._slots[0], self._order), self._sizes)


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    return F.cosine_similarity(one, other, dim=-1)


def _mean(two: Tensor, weights: Tensor) -> Tensor:
    """(B,2,N,C) and (B,2,N,1) float32 -> (B,N,C) float32."""
    return (two * weights).to(two.dtype).sum(1) / weights.sum(1)


def _add(sizes: Tensor, place: Tensor) -> Tensor:
    """(B,M,N) -> (B,M-1,N): sizes of entries ``place`` (B,N) and ``place`` + 1 added."""
    added = sizes.gather(1, place[:, None] + 1)
    return sizes.gather(1, _others(place, sizes.shape[1])).scatter_add(1, place[:, None], added)


def _others(place: Tensor, length: int) -> Tensor:
    """(B,length-1,N): the numbers 0 to length-1 in order, without ``place`` + 1."""
    number = torch.arange(length - 1, device=place.device)[None, :, None]
    return number + (number > place[:, None])


def _rows(entries: Tensor, index: Tensor) -> Tensor:
    """Numbers of rows in ``entries`` (B,M,N,C) flattened to (B*M*N,C), for index (B,K,N) along M: (B*K*N,)."""
    size, length, tokens = entries.shape[:3]
    batch = torch.arange(size, device=index.device)[:, None, None]
    return ((batch * length + index) * tokens + torch.arange(tokens, device=index.device)).flatten()


def _take(entries: Tensor, index: Tensor) -> Tensor:
    """``entries`` (B,M,N,C) at index (B,K,N) along M -> (B,K,N,C). Whole rows are copied, unlike in gather."""
    return entries.flatten(0, 2).index_select(0, _rows(entries, index)).unflatten(0, index.shape)


def _put(entries: Tensor, index: Tensor, new: Tensor) -> None:
    """Writes ``new`` (B,K,N,C) into ``entries`` (B,M,N,C) at index (B,K,N) along M, in place."""
    entries.view(-1, entries.shape[-1]).index_copy_(0, _rows(entries, index), new.flatten(0, 2))
