"""A video of 100 frames through the Q-Former with memory banks of 20 entries, forward and backward, as malmm does it
and as the official code does: banks kept on the modules, keys and values of the whole bank computed again for every
frame, softmax written out, a graph for every frame. Written from its description, on the same weights; outputs and
gradients are checked to agree. One thread; 4 layers of 128 in place of 12 of 768.
"""

import ctypes
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import compare, interleave, publish, say, spread, table
from malmm.connector import Connector
from malmm.memory import Bank, OpenBank
from malmm.qformer import Attention, QFormerConfig

SAMPLES, FRAMES, BANK, WORDS, ROUNDS = 16, 100, 20, 8, 2
SIZES = QFormerConfig(100, hidden=128, layers=4, heads=2, intermediate=512, encoder_width=128, query_tokens=32)
OURS, LOOP = "malmm", "official way"


def main() -> None:
    torch.set_num_threads(1)
    publish(__doc__, *(videos(tokens) for tokens in (1, 32)), compression())


def videos(tokens: int) -> dict:
    """The table of videos with so many tokens a frame."""
    say(f"{tokens} tokens a frame")
    torch.manual_seed(0)
    connector = Connector(
        SIZES, 64, 256, 256, normalize_inputs=False, memory_bank_length=BANK, max_frames=FRAMES
    ).eval()  # fmt: skip
    with torch.no_grad():  # far from the initial weights, whose attention is even everywhere
        for parameter in connector.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    video, text = torch.randn(SAMPLES, FRAMES, tokens, 256), torch.randn(SAMPLES, 256)
    turn, ids = torch.zeros(SAMPLES, dtype=torch.long), torch.randint(100, (SAMPLES, WORDS))
    inputs = (video, text, turn, ids, torch.ones_like(ids))
    loop = Loop(connector)
    peaks: dict[str, list[float]] = {OURS: [], LOOP: []}
    found: dict[str, list[Tensor]] = {}

    def run(name: str, forward: Callable[..., Tensor]) -> None:
        connector.zero_grad()
        with Peak(peaks[name]):
            out = forward(*inputs)
            out.square().sum().backward()
        found[name] = [out.detach(), *(p.grad for p in connector.parameters() if p.grad is not None)]

    seconds = interleave(
        {LOOP: lambda: run(LOOP, loop), OURS: lambda: run(OURS, lambda *x: connector(*x)[0])}, ROUNDS, warm_up=False
    )
    # The gradient of a key's bias is zero but for rounding, so gradients are compared on the scale of the largest.
    largest = [max(t.abs().max().item() for t in part) for part in (found[LOOP][:1], found[LOOP][1:])]
    scales = [largest[0], *[largest[1]] * (len(found[LOOP]) - 1)]
    pairs = zip(found[OURS], found[LOOP], scales, strict=True)
    apart = max((one - other).abs().max().item() / scale for one, other, scale in pairs)
    if apart > 1e-3:
        raise SystemExit(f"the two ways differ by {apart:.1e} of the largest value")
    rows = compare(seconds, LOOP, 1, "s")
    return table(
        f"{SAMPLES} videos of {FRAMES} frames of {tokens} tokens; outputs and gradients differ by {apart:.0e} of the "
        "largest value at most",
        ["way", "time", "relative", "peak memory"],
        [[*row, spread(peaks[row[0]], "MiB")] for row in rows],
    )


def compression() -> dict:
    """The table of compression alone."""
    say("compression")
    frames = torch.randn(SAMPLES, FRAMES, 40, SIZES.hidden)

    def loop() -> tuple[Tensor, Tensor]:
        bank = sizes = None
        for frame in frames.unbind(1):
            bank, sizes = extend(bank, sizes, frame, last=False)
        return bank, sizes

    def value() -> tuple[Tensor, Tensor]:
        bank = Bank.of(frames[:, 0])
        for frame in frames[:, 1:].unbind(1):
            bank = bank.append(frame).compress(BANK)
        return bank.values, bank.sizes

    def opened() -> tuple[Tensor, Tensor]:
        bank = OpenBank(BANK)
        for frame in frames.unbind(1):
            bank.append(frame)
            bank.compress()
        closed = bank.closed()
        return closed.values, closed.sizes

    torch.testing.assert_close(value(), loop())
    torch.testing.assert_close(opened(), loop())
    ways = {LOOP: loop, "malmm, values": value, "malmm, open bank": opened}
    return table(
        f"Compression alone: {SAMPLES} videos of {FRAMES} frames, 40 x {SIZES.hidden}, to {BANK} entries",
        ["way", "time", "relative"],
        compare(interleave(ways, ROUNDS), LOOP),
    )


class SelfAttention:
    """Self-attention that keeps its past inputs between calls."""

    def __init__(self, attention: Attention):
        self.attention = attention
        self.bank = self.sizes = None

    def __call__(self, hidden: Tensor, mask: Tensor, last: bool) -> Tensor:
        part = self.attention.self
        keys, values = part.key(hidden), part.value(hidden)
        if self.bank is not None:
            past = self.bank.flatten(1, 2)
            keys, values = torch.cat([part.key(past), keys], 1), torch.cat([part.value(past), values], 1)
            mask = torch.cat([mask] * (self.bank.shape[1] + 1), -1)
        out = attend(part.query(hidden), keys, values, part.heads, mask)
        self.bank, self.sizes = extend(self.bank, self.sizes, hidden, last)
        return self.attention.output(out, hidden)


class Loop:
    """Frame after frame through the Q-Former, as MA-LMM's training does it. Takes what Connector.forward takes."""

    def __init__(self, connector: Connector):
        self.connector = connector
        self.attentions = [SelfAttention(layer.attention) for layer in connector.Qformer.bert.encoder.layer]

    def __call__(self, video: Tensor, text: Tensor, turn: Tensor, ids: Tensor, text_mask: Tensor) -> Tensor:
        c = self.connector
        count = c.query_tokens.shape[1]
        queries = c.query_tokens.expand(len(video), -1, -1)
        mask = (1.0 - F.pad(text_mask, (count, 0), value=1)[:, None, None].float()) * -10000.0
        bank = sizes = None
        for step in range(video.shape[1]):
            last = step + 1 == video.shape[1]
            fused = torch.cat([video[:, step], text[:, None].expand(-1, video.shape[2], -1)], -1)
            states = c.ln_vision(c.imagebind_fc(fused) + c.turn_pe(turn)[:, None]) + c.image_pe.weight[step]
            seen = states if bank is None else torch.cat([bank.flatten(1, 2), states], 1)
            hidden = c.Qformer.bert.embeddings(queries, ids)
            for layer, attention in zip(c.Qformer.bert.encoder.layer, self.attentions, strict=True):
                hidden = attention(hidden, mask, last)
                query, words = hidden[:, :count], hidden[:, count:]
                if layer.has_crossattention:
                    part = layer.crossattention.self
                    out = attend(part.query(query), part.key(seen), part.value(seen), part.heads)
                    query = layer.crossattention.output(out, query)
                query = layer.output_query(layer.intermediate_query(query), query)
                hidden = torch.cat([query, layer.output(layer.intermediate(words), words)], 1)
            bank, sizes = extend(bank, sizes, states, last)
        return c.llm_proj(hidden[:, :count])


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Attention as BERT writes it out: (B,L,C) over (B,S,C); ``mask`` is added to the scores."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (queries, keys, values))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def extend(bank: Tensor | None, sizes: Tensor | None, entry: Tensor, last: bool) -> tuple[Tensor | None, Tensor | None]:
    """A bank with one entry more, compressed if it is too long; none after the last frame."""
    entry = entry.detach()[:, None]
    one = torch.ones(entry.shape[:3])
    bank, sizes = (entry, one) if bank is None else (torch.cat([bank, entry], 1), torch.cat([sizes, one], 1))
    if last:
        return None, None
    return merge(bank, sizes) if bank.shape[1] > BANK else (bank, sizes)


def merge(bank: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The most similar neighbours become one: every entry is weighted, gathered and divided again."""
    samples, length, tokens, width = bank.shape
    place = F.cosine_similarity(bank[:, :-1], bank[:, 1:], dim=-1).max(1, keepdim=True)[1]
    kept = torch.arange(length - 1)[None, :, None].repeat(samples, 1, tokens)
    kept[kept > place] += 1

    def rows(index: Tensor) -> Tensor:
        return index[..., None].expand(-1, -1, -1, width)

    merged, dropped = bank.gather(1, rows(kept)), bank.gather(1, rows(place + 1))
    weights, weight = sizes.gather(1, kept), sizes.gather(1, place + 1)
    merged *= weights[..., None]
    dropped *= weight[..., None]
    merged.scatter_add_(1, rows(place), dropped)
    weights.scatter_add_(1, place, weight)
    return merged / weights[..., None], weights


class Peak:
    """Appends to a list by how much resident memory rose inside the block at most, in MiB."""

    def __init__(self, found: list[float]):
        self._found = found

    def __enter__(self) -> None:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # forget the peak
        self._before = _status("VmRSS")

    def __exit__(self, *_: object) -> None:
        self._found.append((_status("VmHWM") - self._before) / 1024)


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
