"""The Q-Former against vectors made by the official code."""

from dataclasses import replace

import pytest
import torch

from malmm.initial import initialise
from malmm.qformer import QFormer, QFormerConfig
from tests.malmm.golden import Golden, close


@pytest.fixture(scope="module")
def golden(shared) -> Golden:
    return Golden.read(shared, "golden_qformer_nomem", "golden_qformer_mb")


@pytest.fixture(scope="module")
def qformer(golden: Golden) -> QFormer:
    return golden.qformer()


@pytest.mark.parametrize("tokens", ["n1", "n5"])
def test_every_frame_alone(golden, qformer, tokens):
    # Without banks the official code adds no time embedding.
    frames = golden[f"{tokens}.frames"].flatten(0, 1)  # (B,T,N,C) -> (B*T,N,C)
    samples, steps = golden[f"{tokens}.frames"].shape[:2]
    queries = golden["weights.query_tokens"].expand(len(frames), -1, -1)
    ids = golden["input_ids"].repeat_interleave(steps, 0)
    mask = golden["text_attention_mask"].repeat_interleave(steps, 0)
    output = qformer(queries, frames, ids, mask)
    close(output, golden[f"{tokens}.output"])
    visual = torch.nn.functional.linear(
        output[:, : queries.shape[1]], golden["weights.llm_proj.weight"], golden["weights.llm_proj.bias"]
    ).reshape(samples, -1, 32)
    close(visual, golden[f"{tokens}.llm_inputs_embeds"][:, : visual.shape[1]])


def test_without_text(golden, qformer):
    queries = golden["weights.query_tokens"].expand(2, -1, -1)
    close(qformer(queries, golden["notext.frame"]), golden["notext.output"])


def test_mask_over_the_encoder(golden, qformer):
    queries = golden["weights.query_tokens"].expand(2, -1, -1)
    output = qformer(
        queries,
        golden["notext.frame"],
        golden["input_ids"],
        golden["text_attention_mask"],
        encoder_mask=golden["encmask.mask"],
    )
    close(output, golden["encmask.output"])


def test_text_longer_than_the_table_is_refused():
    model = QFormer(QFormerConfig(9, 8, 1, 2, 8, encoder_width=4, query_tokens=2, max_positions=3))
    with pytest.raises(ValueError, match="4 tokens, but max_positions is 3"):
        model(torch.zeros(1, 2, 8), torch.zeros(1, 1, 4), torch.zeros(1, 4, dtype=torch.long))


def test_initial_weights_follow_from_seed_and_name_alone():
    small = QFormerConfig(9, 8, 1, 2, 8, encoder_width=4)
    one, two, deeper, other = QFormer(small), QFormer(small), QFormer(replace(small, layers=2)), QFormer(small)
    for model, seed in ((one, 1), (two, 1), (deeper, 1), (other, 2)):
        initialise(model, seed)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(one.state_dict()[name], two.state_dict()[name])
    assert torch.equal(one.state_dict()[name], deeper.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])
