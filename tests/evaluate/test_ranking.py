from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.evaluate.ranking import ndcg, place

few = st.integers(0, 3).map(float)  # few values, so that ties are common


@st.composite
def candidates(draw, most=5):
    scores = draw(st.lists(few, min_size=1, max_size=most))
    relevance = draw(st.lists(st.sampled_from([0.0, 0.2, 0.6, 1.0]), min_size=len(scores), max_size=len(scores)))
    return np.array(scores), draw(st.integers(0, len(scores) - 1)), np.array(relevance)


def orders(scores):
    """All orders that sorting by score allows, each as likely."""
    return [
        order for order in permutations(range(len(scores))) if all(scores[a] >= scores[b] for a, b in pairwise(order))
    ]


def sorted_ndcg(order, relevance):
    """The Visual Dialog challenge's definition, for candidates in a given order."""
    k = np.count_nonzero(relevance)
    discount = np.log2(np.arange(k) + 2)
    return (relevance[list(order)][:k] / discount).sum() / (np.sort(relevance)[::-1][:k] / discount).sum()


@given(candidates())
def test_metrics_are_expectations_over_all_orders_of_the_ties(case):
    scores, truth, relevance = case
    ranks = np.array([order.index(truth) + 1 for order in orders(scores)])
    found = place(scores, truth)
    assert found.rank == pytest.approx(ranks.mean())
    assert found.reciprocal == pytest.approx((1 / ranks).mean())
    for k in (1, 2, 10):
        assert found.recall(k) == pytest.approx((ranks <= k).mean())
    if relevance.any():
        expected = np.mean([sorted_ndcg(order, relevance) for order in orders(scores)])
        assert ndcg(scores, relevance) == pytest.approx(expected)
    else:
        assert np.isnan(ndcg(scores, relevance))


@given(candidates(most=30), st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(case, random):
    scores, truth, relevance = case
    order = list(range(len(scores)))
    random.shuffle(order)
    assert place(scores[order], order.index(truth)) == place(scores, truth)
    np.testing.assert_allclose(ndcg(scores[order], relevance[order]), ndcg(scores, relevance), rtol=1e-12)


def test_all_equal_scores_are_chance():
    found = place(np.zeros(100), 7)
    assert found.rank == 50.5
    assert [found.recall(k) for k in (1, 5, 10, 100)] == [0.01, 0.05, 0.1, 1.0]
    assert found.reciprocal == pytest.approx(sum(1 / r for r in range(1, 101)) / 100)
    relevance = np.zeros(100)
    relevance[:4] = 1.0
    assert ndcg(np.zeros(100), relevance) == pytest.approx(0.04)


def test_best_and_worst():
    scores = np.arange(100.0)
    assert (place(scores, 99).rank, place(scores, 0).rank) == (1, 100)
    assert place(scores, 99).reciprocal == place(scores, 99).recall(1) == 1
    assert ndcg(scores, scores / 99) == pytest.approx(1)
    assert place(np.array([-np.inf, 0.0]), 1).rank == 1  # a candidate may be impossible


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(ValueError, match="candidate 1 is not a number"):
        place(np.array([0.0, np.nan]), 0)
    with pytest.raises(ValueError, match="number 2 of 2"):
        place(np.zeros(2), 2)
    with pytest.raises(ValueError, match="3 scores, 2 relevances"):
        ndcg(np.zeros(3), np.zeros(2))


def test_ndcg_against_real_dense_annotations(shared):
    import json

    folder = shared("data/visdial")
    dense = json.loads((folder / "visdial_1.0_val_97dialogs_dense_annotations.json").read_text())
    rng = np.random.default_rng(0)
    for one in dense:
        relevance = np.array(one["gt_relevance"])
        scores = rng.permutation(len(relevance)).astype(float)
        assert ndcg(scores, relevance) == pytest.approx(sorted_ndcg(np.argsort(-scores), relevance), abs=1e-12)
