import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.evaluate.bootstrap import Metric, difference, draw, score
from stages.evaluate.text_metrics import bleu, bleu_statistics


def bleu_4(sums):
    return bleu(sums)[..., 3]


def test_resamples_are_those_of_scoring_again():
    """The weights of `draw`, applied by repeating samples, give the same corpus BLEU and mean."""
    rng = np.random.default_rng(0)
    vocabulary = "yes no a dog is red it the".split()
    texts = [" ".join(rng.choice(vocabulary, rng.integers(1, 8))) for _ in range(60)]
    statistics = bleu_statistics(texts, texts[1:] + texts[:1])
    clusters = [f"d{i // 10}" for i in range(60)]
    values = rng.random(60)
    member, drawn = draw(clusters, 50, seed=1)
    again_bleu, again_mean = [], []
    for weights in drawn.astype(int):
        chosen = np.concatenate([np.flatnonzero(member == c).repeat(w) for c, w in enumerate(weights)])
        again_bleu.append(bleu_4(statistics[chosen].sum(0)))
        again_mean.append(values[chosen].mean())
    for metric, again in (
        (Metric.of_sums(statistics, bleu_4), again_bleu),
        (Metric.mean(values), again_mean),
    ):
        found = score(metric, member, drawn)
        np.testing.assert_allclose((found.low, found.high), np.quantile(again, [0.025, 0.975]), rtol=1e-9)
        assert found.n == 60


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for trial in range(200):
        effect = rng.normal(size=80)  # turns of one dialogue share it: an interval over turns would be far too narrow
        values = (effect[:, None] + rng.normal(size=(80, 5))).ravel()
        found = score(Metric.mean(values), *draw(np.repeat(np.arange(80), 5).astype(str), 400, seed=trial))
        hits += found.low <= 0 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1)), min_size=1, max_size=20))
def test_seeded_and_independent_of_the_order_of_samples(rows):
    clusters, values = zip(*rows, strict=True)
    found = score(Metric.mean(np.array(values)), *draw(clusters, 100, 7))
    back = score(Metric.mean(np.array(values[::-1])), *draw(clusters[::-1], 100, 7))
    np.testing.assert_allclose(tuple(vars(found).values()), tuple(vars(back).values()), atol=1e-12)
    if len(set(clusters)) > 1:
        assert found.low - 1e-12 <= found.high and 0 <= found.low and found.high <= 1 + 1e-12


def test_one_cluster_has_no_interval():
    found = score(Metric.mean(np.array([0.0, 1.0])), *draw(["a", "a"], 100, 0))
    assert found.value == 0.5 and np.isnan(found.low) and np.isnan(found.high)


def test_samples_without_a_value_are_left_out():
    values = np.array([1.0, np.nan, 0.0, np.nan])
    found = score(Metric.mean(values), *draw(list("abcd"), 200, 0))
    assert (found.value, found.n) == (0.5, 2)
    assert np.isnan(score(Metric.mean(np.full(2, np.nan)), *draw(list("ab"), 10, 0)).value)


def test_differences_are_paired():
    """Two systems that differ by a constant differ by it in every resample, whatever the dialogues drawn."""
    values = np.random.default_rng(0).random(50)
    found = difference(Metric.mean(values + 0.1), Metric.mean(values), *draw(list(map(str, range(50))), 100, 0))
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
