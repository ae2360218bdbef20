"""The embedder: what random weights tell apart, and that an item's bits follow from the item alone."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.embed_imagebind.embed import BadImage, Embedder
from stages.embed_imagebind.model import ARCHITECTURES
from stages.embed_imagebind.weights import random_weights
from tests.embed_imagebind.conftest import picture

QUESTIONS = [
    "is it red ?",
    "is it day ?",
    "how many blocks are there ?",
    "what is it ?",
    "",
    "what colour is the block in the upper left corner of the picture, next to the other one ?",
    "dog " * 90,
]
PICTURES = [picture(seed, (90 + 10 * seed, 100)) for seed in range(6)]


@pytest.fixture(scope="module")
def tensors():
    return random_weights(ARCHITECTURES["tiny"], seed=0)


@pytest.fixture(scope="module")
def embedder(tensors):
    with Embedder("malmm", "tiny", tensors, vision_batch=4, text_batch=4, workers=2) as made:
        yield made


@pytest.fixture(scope="module")
def rows(embedder):
    return embedder.vision(PICTURES), embedder.text(QUESTIONS)


def test_norms_and_differences(rows):
    for embedded, norm in zip(rows, (1, 1 / 0.07)):
        assert embedded.dtype == np.float32 and embedded.shape[1] == 1024
        np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), norm, rtol=1e-5)
        cosines = embedded @ embedded.T / norm**2
        assert cosines[~np.eye(len(cosines), dtype=bool)].max() < 0.99


@settings(max_examples=15, deadline=None)
@given(order=st.lists(st.sampled_from(range(len(QUESTIONS))), min_size=1, max_size=12))
def test_text_bits_do_not_depend_on_neighbours(embedder, rows, order):
    np.testing.assert_array_equal(embedder.text([QUESTIONS[i] for i in order]), rows[1][order])


@settings(max_examples=5, deadline=None)
@given(order=st.lists(st.sampled_from(range(len(PICTURES))), min_size=1, max_size=7))
def test_image_bits_do_not_depend_on_neighbours(embedder, rows, order):
    np.testing.assert_array_equal(embedder.vision([PICTURES[i] for i in order]), rows[0][order])


def test_images_come_as_bytes_images_or_readers(embedder, rows):
    sources = [PICTURES[0], Image.open(io.BytesIO(PICTURES[1])), lambda: PICTURES[2]]
    np.testing.assert_array_equal(embedder.vision(sources), rows[0][:3])


def test_broken_images_leave_the_others_as_they_are(embedder, rows):
    failed, done = {}, []
    sources = [b"", PICTURES[0], PICTURES[1][:99], PICTURES[2], PICTURES[3], b"BM"]
    embedded = embedder.vision(sources, failed.__setitem__, done.append)
    assert sorted(failed) == [0, 2, 5] and done == [4, 6]
    np.testing.assert_array_equal(embedded, rows[0][[0, 2, 3]])
    with pytest.raises(BadImage, match="cannot be decoded"):
        embedder.vision(sources)
    assert embedder.vision([b""], failed.__setitem__).shape == (0, 1024)


def test_engines_agree(tensors, rows):
    with Embedder("reference", "tiny", tensors, vision_batch=4, text_batch=4) as official:
        np.testing.assert_allclose(official.vision(PICTURES), rows[0], atol=1e-5)
        np.testing.assert_allclose(official.text(QUESTIONS), rows[1], atol=1e-5)


def test_bf16_is_near(tensors, rows):
    with Embedder("malmm", "tiny", tensors, precision="bf16", vision_batch=4, text_batch=4) as half:
        for embedded, full in ((half.vision(PICTURES), rows[0]), (half.text(QUESTIONS), rows[1])):
            cosine = (embedded * full).sum(1) / np.linalg.norm(embedded, axis=1) / np.linalg.norm(full, axis=1)
            assert embedded.dtype == np.float32 and cosine.min() > 0.99
