import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.evaluate.controls import frequency_scores, majority_answer, permuted

names = st.lists(st.text("abcdef", min_size=1, max_size=3), max_size=12)


def test_the_majority_answer_is_compared_as_exact_match_does():
    assert majority_answer(["no", "Yes.", "yes", "yes", "no"]) == "yes"
    assert majority_answer(["b", "a"]) == "a"
    with pytest.raises(ValueError, match="no training answers"):
        majority_answer([])


def test_frequency_ranks_candidates_by_how_often_training_says_them():
    assert frequency_scores({"yes": 3, "no": 1}, ["No.", "maybe", "YES"]).tolist() == [1, 0, 3]


@given(names, st.integers(0, 2**32))
def test_no_image_keeps_its_own_and_none_is_used_twice(media, seed):
    given = permuted(media, seed)
    assert set(given) == set(given.values()) == set(media)
    if len(set(media)) > 1:
        assert all(a != b for a, b in given.items())
    assert permuted(list(reversed(media)), seed) == given
