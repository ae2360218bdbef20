import json
from dataclasses import replace

import pytest
import torch

from malmm.language import Lora
from malmm.model import PARTS, Batch, ModelConfig, Sample, build_model
from malmm.qformer import QFormerConfig

SMALL = ModelConfig(
    qformer=QFormerConfig(hidden=16, layers=2, heads=2, intermediate=32, encoder_width=12, query_tokens=4),
    vision_dim=8,
    text_dim=6,
    quantization="none",
)


def batch(size: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(3)
    samples = [
        Sample(
            f"is it red {'very ' * i}?", i, "a circle", (("is it big ?", "no"),) * i, "yes" if i % 2 else "a blue one"
        )
        for i in range(size)
    ]
    return Batch(samples, torch.randn(size, 8, generator=generator), torch.randn(size, 6, generator=generator).half())


def part(whole: Batch, *rows: int) -> Batch:
    return Batch([whole.samples[i] for i in rows], whole.vision[list(rows)], whole.text[list(rows)])


@pytest.mark.parametrize("outputs", ["queries", "all"])
def test_a_sample_is_worth_the_same_in_every_batch(tiny_llm, outputs):
    model = build_model(replace(SMALL, outputs=outputs), tiny_llm)
    together, tokens = model.loss(batch())
    alone = [model.loss(part(batch(), i)) for i in range(3)]
    assert tokens == sum(n for _, n in alone)
    torch.testing.assert_close(together, sum(loss for loss, _ in alone), atol=1e-3, rtol=1e-5)
    assert model.generate(batch(), max_new_tokens=4)[2:] == model.generate(part(batch(), 2), max_new_tokens=4)
    candidates = [["yes", "no"], ["yes"], ["a blue one", "red", "no"]]
    for row, alone in enumerate(model.rank(batch(), candidates)):
        torch.testing.assert_close(alone, model.rank(part(batch(), row), [candidates[row]])[0], atol=1e-4, rtol=0)


def test_only_the_named_parts_train_and_all_names_reach_something(tiny_llm):
    for name in PARTS:
        lora = Lora() if name == "lora" else None
        model = build_model(replace(SMALL, trainable=(name,), lora=lora), tiny_llm)
        model.loss(batch())[0].backward()
        got = {n for n, p in model.named_parameters() if p.grad is not None}
        assert got == set(model.trained_state()) and got
        assert all(n.startswith(PARTS[name]) for n in got)
    assert not any("word_embeddings" in n for n in build_model(SMALL, tiny_llm).trained_state())


@pytest.mark.parametrize("trainable", [("imagebind_fc", "turn_pe"), ("qformer", "lora")])
def test_config_seed_and_trained_weights_rebuild_the_model(tiny_llm, trainable):
    config = replace(SMALL, trainable=trainable, lora=Lora(rank=2) if "lora" in trainable else None)
    model = build_model(config, tiny_llm)
    with torch.no_grad():
        for parameter in model.trained_parameters().values():
            parameter.add_(torch.rand_like(parameter))
    torch.manual_seed(99)  # the global generator must not matter
    again = build_model(ModelConfig.from_json(json.loads(json.dumps(config.to_json()))), tiny_llm)
    assert again.loss(batch())[0] != model.loss(batch())[0]
    again.load_trained(model.trained_state())
    assert again.loss(batch())[0] == model.loss(batch())[0]


def test_weights_that_do_not_fit_are_refused_whole(tiny_llm):
    model = build_model(replace(SMALL, trainable=("imagebind_fc", "turn_pe")), tiny_llm)
    state = model.trained_state()
    before = {name: value.clone() for name, value in state.items()}
    wrong = {
        "connector.imagebind_fc.weight": torch.zeros(2, 2),
        "connector.imagebind_fc.bias": torch.ones(12),
        "x": torch.ones(1),
    }
    with pytest.raises(ValueError) as caught:
        model.load_trained(wrong)
    assert "connector.imagebind_fc.weight: shape (2, 2), expected (12, 14)" in str(caught.value)
    assert "connector.turn_pe.weight: missing" in str(caught.value)
    assert "x: not a trained part" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.trained_state().items())


def test_the_frozen_language_model_stays_in_evaluation_mode(tiny_llm):
    model = build_model(SMALL, tiny_llm).train()
    assert model.connector.training and not model.language.model.training


def test_errors_name_what_is_wrong(tiny_llm):
    model = build_model(SMALL, tiny_llm)
    one = batch(1)
    with pytest.raises(ValueError, match="no answer to train on .*is it red"):
        model.loss(replace(one, samples=[replace(one.samples[0], answer=None)]))
    with pytest.raises(ValueError, match="turn 11"):
        model.loss(replace(one, samples=[replace(one.samples[0], turn=11)]))
    with pytest.raises(ValueError, match="trainable: word; allowed: imagebind_fc, turn_pe"):
        ModelConfig(trainable=("word",))
    with pytest.raises(ValueError, match="exactly when lora is configured"):
        ModelConfig(trainable=("lora",))
