import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.finetune.schedule import POOL, Schedule, shuffled_batches

counts = st.integers(1, 500)


@given(counts, st.integers(1, 9), st.integers(0, 5), st.integers(0, 3))
def test_every_sample_once_an_epoch_in_an_order_of_seed_and_epoch(n, batch, seed, epoch):
    lengths = np.arange(n) % 17
    batches = shuffled_batches(lengths, batch, seed, epoch)
    assert sorted(np.concatenate(batches)) == list(range(n))
    assert [len(b) for b in batches if len(b) != batch] in ([], [n % batch])
    again = shuffled_batches(lengths, batch, seed, epoch)
    assert all(np.array_equal(one, two) for one, two in zip(batches, again, strict=True))


def test_epochs_differ_and_batches_hold_like_lengths():
    lengths = np.random.default_rng(0).integers(0, 1000, 8 * POOL)
    one, two = (shuffled_batches(lengths, 8, 1, epoch) for epoch in (0, 1))
    assert not np.array_equal(np.concatenate(one), np.concatenate(two))
    assert max(np.ptp(lengths[b]) for b in one) < 150
    assert np.abs(np.diff([lengths[b].mean() for b in one])).mean() > 150, "batches come in no order of length"


@given(counts, st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
def test_steps_cover_the_epochs(n, batch, accumulate, epochs):
    schedule = Schedule(np.zeros(n), batch, accumulate, epochs, None, 1e-3, 0, 7)
    assert schedule.steps == sum(len(schedule.epoch(e)) for e in range(epochs))
    assert all(len(step) <= accumulate for step in schedule.epoch(0))


@given(counts, st.integers(1, 9), st.integers(1, 4), st.integers(0, 40))
def test_a_walk_from_a_step_is_the_end_of_the_whole_walk(n, batch, accumulate, total):
    schedule = Schedule(np.zeros(n), batch, accumulate, 2, total, 1e-3, 0, 7)
    whole = list(schedule.walk(0))
    assert len(whole) == schedule.steps == total
    for step, work in enumerate(whole):
        epoch = step // schedule.steps_per_epoch
        assert [e for _, e in work] == [epoch] * len(work)
    for one, two in zip(whole[total // 2 :], schedule.walk(total // 2), strict=True):
        assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(one, two, strict=True))


def test_learning_rate_rises_and_falls():
    schedule = Schedule(np.zeros(8), 8, 1, 1, 110, 0.4, 10, 7)
    rates = [schedule.learning_rate(step) for step in range(110)]
    assert rates[0] == 0.04 and rates[9] == 0.4 == rates[10] == max(rates)
    assert math.isclose(rates[60], 0.2) and 0 < rates[109] < 0.001
