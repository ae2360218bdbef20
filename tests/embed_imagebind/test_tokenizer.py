"""Tokens, id for id those of the official tokenizer."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from stages.embed_imagebind.tokenizer import prompt_lengths, tokenize


def test_tokens_are_the_official_ones(shared):
    folder = shared("golden/imagebind")
    facts = json.loads((folder / "golden_prep.json").read_text())
    tokens = tokenize(facts["prompts"])
    np.testing.assert_array_equal(tokens, load_file(folder / "golden_prep_audio_text.safetensors")["text/tokens"])
    np.testing.assert_array_equal(prompt_lengths(tokens) - 1, facts["argmax"])


def test_long_prompts_keep_their_end_and_their_difference():
    long = " ".join(["dog"] * 74)
    tokens = tokenize([f"{long} a b", f"{long} c b", long])
    assert (tokens[:2, 76] == 49407).all() and (tokens[0] != tokens[1]).any()
    assert prompt_lengths(tokens).tolist() == [77, 77, 76]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=120))
def test_every_text_has_a_start_an_end_and_nothing_after(text: str):
    row = tokenize([text])[0]
    end = np.flatnonzero(row == 49407)
    assert row[0] == 49406 and len(end) and (row[end[-1] + 1 :] == 0).all()
    assert 2 <= prompt_lengths(row[None])[0] <= 77
