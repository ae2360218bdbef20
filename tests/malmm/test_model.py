import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from malmm.language import Lora
from malmm.model import PARTS, Batch, ModelConfig, Sample, build_model
from malmm.prompt import Template
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
        banks = 2 if name == "image_pe" else 0
        model = build_model(replace(SMALL, trainable=(name,), lora=lora, memory_bank_length=banks), tiny_llm)
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


def videos(frames: int = 7, size: int = 3, tokens: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(4)
    return replace(batch(size), vision=torch.randn(size, frames, tokens, 8, generator=generator).half())


@pytest.mark.parametrize("length", [0, 3])
@pytest.mark.parametrize("outputs", ["queries", "all"])
def test_a_video_is_worth_the_same_in_every_batch(tiny_llm, length, outputs):
    config = replace(SMALL, memory_bank_length=length, max_frames=7, outputs=outputs)
    model = build_model(config, tiny_llm)
    together, _ = model.loss(videos())
    alone = [model.loss(part(videos(), i)) for i in range(3)]
    torch.testing.assert_close(together, sum(loss for loss, _ in alone), atol=1e-3, rtol=1e-5)
    prefix, mask = model.prefix(videos())
    read = (
        [len(model.text_tokenizer(s.question)["input_ids"]) for s in videos().samples] if outputs == "all" else [0] * 3
    )
    assert mask.sum(1).tolist() == [(4 + words) * (1 if length else 7) for words in read]
    assert prefix.shape[:2] == mask.shape == (3, (4 + max(read)) * (1 if length else 7))
    for one in (part(videos(), i) for i in range(3)):
        assert "".join(model.stream(one, 6)) == model.generate(one, max_new_tokens=6)[0]
    with pytest.raises(ValueError, match="3 samples"):
        model.stream(videos())


def test_an_image_is_a_video_of_one_frame_and_token(tiny_llm):
    model = build_model(SMALL, tiny_llm)
    as_video = replace(batch(), vision=batch().vision[:, None, None])
    assert model.loss(batch())[0] == model.loss(as_video)[0]


def test_the_order_of_frames_matters_through_image_pe_and_banks(tiny_llm):
    model = build_model(replace(SMALL, memory_bank_length=3, max_frames=7), tiny_llm)
    turned = replace(videos(), vision=torch.cat([videos().vision[:, :6].flip(1), videos().vision[:, 6:]], 1))
    with torch.no_grad():
        model.connector.image_pe.weight.normal_()
    assert model.loss(videos())[0] != model.loss(turned)[0]


def test_memory_says_which_frames_are_one(tiny_llm):
    model = build_model(replace(SMALL, memory_bank_length=3, max_frames=7), tiny_llm)
    still = videos()
    still.vision[:, 2:5] = still.vision[:, 2:3]  # three equal frames
    sizes = model.memory(still)
    assert [tuple(s.shape) for s in sizes] == [(3, m, 2) for m in (1, 2, 3, 3, 3, 3, 4)]
    assert all(s.dtype == torch.int64 and (s.sum(1) == t).all() for t, s in enumerate(sizes, 1))
    assert (sizes[3] == torch.tensor([1, 1, 2])[:, None]).all()  # frames 2 and 3
    assert (sizes[4] == torch.tensor([1, 1, 3])[:, None]).all()
    assert (sizes[6][:, -1] == 1).all()
    with pytest.raises(ValueError, match="no memory banks"):
        build_model(SMALL, tiny_llm).memory(videos())


def test_the_qformer_reads_the_question_or_the_whole_prompt(tiny_llm):
    config = replace(SMALL, outputs="all", template=Template("look: {visual} {question} Short answer:"))
    read = {name: build_model(replace(config, qformer_text=name), tiny_llm) for name in ("question", "prompt")}
    widths = {name: model.prefix(batch(1))[0].shape[1] - 4 for name, model in read.items()}
    count = read["prompt"].text_tokenizer
    assert widths == {
        "question": len(count("is it red ?")["input_ids"]),
        "prompt": len(count("look:  is it red ? Short answer:")["input_ids"]),
    }


def test_a_pretrained_qformer_with_its_own_tokenizer(tiny_llm, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"is it red very ? a".split()]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(tmp_path)
    theirs = build_model(replace(SMALL, seed=7), tiny_llm, text_tokenizer=tmp_path).connector
    state = {f"model.{n}": t for n, t in theirs.state_dict().items() if n.startswith(("Qformer", "query_tokens"))}
    name = "model.Qformer.bert.embeddings.word_embeddings.weight"
    state[name] = torch.cat([state[name], torch.ones(1, 16)])  # [DEC]
    save_file(state, tmp_path / "qformer.safetensors")
    model = build_model(SMALL, tiny_llm, text_tokenizer=tmp_path, qformer_weights=tmp_path / "qformer.safetensors")
    assert set(model.pretrained.loaded) == {n.removeprefix("model.") for n in state}
    assert torch.equal(model.connector.Qformer.state_dict()[name.removeprefix("model.Qformer.")], state[name][:-1])
    assert build_model(SMALL, tiny_llm).pretrained is None
    with pytest.raises(ValueError, match="set text_tokenizer"):
        build_model(SMALL, tiny_llm, qformer_weights=tmp_path / "qformer.safetensors")


def test_records_of_image_models_still_read(tiny_llm):
    record = SMALL.to_json()
    for name in ("memory_bank_length", "max_frames", "qformer_text"):
        del record[name]
    old = ModelConfig.from_json(record)
    assert old == SMALL and not any("image_pe" in n for n, _ in build_model(old, tiny_llm).named_parameters())


def test_settings_of_banks_that_make_no_sense():
    with pytest.raises(ValueError, match="image_pe, which is there only with a memory_bank_length above 0"):
        ModelConfig(trainable=("image_pe",))
    with pytest.raises(ValueError, match="memory_bank_length -1"):
        ModelConfig(memory_bank_length=-1)
    with pytest.raises(ValueError, match="max_frames"):
        ModelConfig(max_frames=0)


def test_embeddings_of_another_width_are_refused(tiny_llm):
    model = build_model(SMALL, tiny_llm)
    other = replace(batch(), vision=torch.zeros(3, 10))
    with pytest.raises(ValueError, match=r"embeddings of 10 \(media\) and 6 \(text\) numbers, .* made for 8 and 6"):
        model.generate(other)
