"""Memory banks: compression against vectors of the official code, and what must hold of any bank."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from malmm.memory import Bank, OpenBank, compress
from tests.malmm.golden import Golden, close


@pytest.fixture(scope="module")
def golden(shared) -> Golden:
    return Golden.read(shared, "golden_compress", "golden_compress")


def remembered(frames: torch.Tensor, length: int) -> Bank:
    """The bank after all frames (B,T,N,C)."""
    bank = Bank.of(frames[:, 0])
    for frame in frames[:, 1:].unbind(1):
        bank = bank.append(frame).compress(length)
    return bank


def written(frames: torch.Tensor, length: int) -> Bank:
    """The same by an open bank."""
    bank = OpenBank(length)
    for frame in frames.unbind(1):
        bank.append(frame)
        bank.compress()
    return bank.closed()


def test_every_vector_of_compression(golden):
    single = [name for name, about in golden.about.items() if "M" not in about]
    assert single
    for name in single:
        bank, sizes = golden[f"{name}.bank"], golden[f"{name}.size"]
        expected = golden[f"{name}.out_bank"]
        merged, added = compress(bank, sizes)
        torch.testing.assert_close(merged, expected, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
        assert merged.dtype == expected.dtype and torch.equal(added, golden[f"{name}.out_size"]), name


def test_every_vector_of_a_stream(golden):
    streams = {name: about["M"] for name, about in golden.about.items() if "M" in about}
    assert streams
    for name, length in streams.items():
        for bank in (remembered(golden[f"{name}.frames"], length), written(golden[f"{name}.frames"], length)):
            close(bank.values, golden[f"{name}.final_bank"])
            assert torch.equal(bank.sizes, golden[f"{name}.final_size"]), name


@st.composite
def banks(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Few distinct vectors, so that many neighbours tie."""
    shape = [draw(st.integers(1, n)) for n in (2, 6, 3, 4)]
    shape[1] += 1
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    kinds = torch.randn(draw(st.integers(1, 5)), shape[3], generator=generator)
    chosen = torch.randint(len(kinds), shape[:3], generator=generator)
    return kinds[chosen], torch.randint(1, 9, shape[:3], generator=generator).float()


@settings(max_examples=50, deadline=None)
@given(banks())
def test_one_compression(given_):
    bank, sizes = given_
    before = bank.clone(), sizes.clone()
    merged, added = compress(bank, sizes)
    assert torch.equal(bank, before[0]) and torch.equal(sizes, before[1])
    assert torch.equal(added.sum(1), sizes.sum(1))
    torch.testing.assert_close((merged * added[..., None]).sum(1), (bank * sizes[..., None]).sum(1))
    # By hand, one token position after the other.
    for sample in range(bank.shape[0]):
        for token in range(bank.shape[2]):
            rows, weights = bank[sample, :, token], sizes[sample, :, token]
            alike = torch.nn.functional.cosine_similarity(bank[:, :-1], bank[:, 1:], dim=-1)[sample, :, token]
            at = alike.tolist().index(alike.max())
            mean = (rows[at] * weights[at] + rows[at + 1] * weights[at + 1]) / (weights[at] + weights[at + 1])
            torch.testing.assert_close(merged[sample, :, token], torch.cat([rows[:at], mean[None], rows[at + 2 :]]))


@settings(max_examples=50, deadline=None)
@given(banks(), st.integers(1, 5))
def test_an_entry_is_the_mean_of_a_run_of_frames(given_, length):
    frames = given_[0]
    bank, other = remembered(frames, length), written(frames, length)
    assert torch.equal(bank.sizes, other.sizes) and len(bank) == min(length, frames.shape[1])
    torch.testing.assert_close(bank.values, other.values, atol=1e-6, rtol=1e-6)
    ends = bank.sizes.cumsum(1).long()
    for sample, entry, token in torch.cartesian_prod(*(torch.arange(n) for n in bank.sizes.shape)).tolist():
        end = int(ends[sample, entry, token])
        run = frames[sample, end - int(bank.sizes[sample, entry, token]) : end, token]
        torch.testing.assert_close(bank.values[sample, entry, token], run.mean(0), atol=1e-5, rtol=1e-5)


def test_affine_maps_are_merged_along_and_slots_are_used_again():
    frames = torch.randn(2, 30, 3, 5, generator=torch.Generator().manual_seed(0))
    affine, bank = torch.nn.Linear(5, 7), OpenBank(4)
    with torch.no_grad():
        for number, frame in enumerate(frames.unbind(1), 1):
            bank.append(frame, affine(frame))
            values, carried = bank.entries
            assert values.shape[1] == min(number, 5)
            torch.testing.assert_close(carried, affine(values), atol=1e-5, rtol=0)
            bank.compress()


def test_an_open_bank_makes_room_by_itself():
    frames = torch.randn(2, 30, 3, 5, generator=torch.Generator().manual_seed(0))
    bank = OpenBank(4)
    for frame in frames.unbind(1):
        bank.append(frame)
    bank.compress()
    assert torch.equal(bank.closed().values, written(frames, 4).values)


def test_a_bank_goes_on_from_a_value():
    frames = torch.randn(2, 30, 3, 5, generator=torch.Generator().manual_seed(0))
    half, bank = written(frames[:, :17], 4), OpenBank(4)
    for values, sizes in half.entries():
        bank.append(values, sizes=sizes)
    for frame in frames[:, 17:].unbind(1):
        bank.append(frame)
        bank.compress()
    assert torch.equal(bank.closed().sizes, written(frames, 4).sizes)


def test_a_bank_is_a_value():
    frame = torch.ones(1, 2, 3, requires_grad=True)
    one = Bank.of(frame)
    two = one.append(frame)
    values = two.values.clone()
    three = two.append(frame * 2).compress(1)
    assert not three.values.requires_grad and torch.equal(two.values, values) and (len(one), len(two)) == (1, 2)


def test_errors_show_shapes():
    bank = torch.zeros(2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 5\) and sizes \(2, 3, 5\); expected \(B,T,N,C\)"):
        compress(bank, torch.ones(2, 3, 5))
    with pytest.raises(ValueError, match="T at least 2"):
        compress(bank[:, :1], torch.ones(2, 1, 4))
    with pytest.raises(ValueError, match=r"\(2, 4, 6\).*\(2, 1, 4, 5\)"):
        Bank.of(bank[:, 0]).append(torch.zeros(2, 4, 6))
    for make in (lambda: Bank.of(bank[:, 0]).compress(0), lambda: OpenBank(0)):
        with pytest.raises(ValueError, match="0 entries"):
            make()
