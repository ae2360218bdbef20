"""Pretrained Q-Formers in each format; their numbers against transformers' own InstructBLIP."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

from malmm.connector import Connector
from malmm.pretrained import load_pretrained
from malmm.qformer import QFormerConfig

SIZES = QFormerConfig(
    vocab_size=30, hidden=16, layers=3, heads=2, intermediate=32, encoder_width=12, query_tokens=4, max_positions=9
)


def connector(sizes: QFormerConfig = SIZES, llm: int = 24, seed: int = 1) -> Connector:
    return Connector(sizes, llm, 8, 6, memory_bank_length=2, max_frames=5, seed=seed).eval()


@pytest.fixture
def instructblip() -> InstructBlipQFormerModel:
    config = InstructBlipQFormerConfig(
        vocab_size=31, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        encoder_hidden_size=12, max_position_embeddings=9, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = InstructBlipQFormerModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def transformers_state(model: InstructBlipQFormerModel) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    beside = {
        "query_tokens": torch.randn(1, 4, 16, generator=generator),
        "language_projection.weight": torch.randn(24, 16, generator=generator),
        "language_projection.bias": torch.randn(24, generator=generator),
        "vision_model.post_layernorm.weight": torch.randn(12, generator=generator),
        "vision_model.post_layernorm.bias": torch.randn(7, generator=generator),  # another width
        "vision_model.embeddings.class_embedding": torch.zeros(3),
        "language_model.lm_head.weight": torch.zeros(3),
    }
    return {f"qformer.{name}": t.contiguous() for name, t in model.state_dict().items()} | beside


@pytest.mark.parametrize("form", ["file", "folder", "shards"])
def test_instructblip_of_transformers(tmp_path: Path, instructblip, form: str):
    state = transformers_state(instructblip)
    path = tmp_path
    if form == "shards":
        names = sorted(state)
        index = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
        for shard in set(index.values()):
            save_file({name: state[name] for name in names if index[name] == shard}, tmp_path / shard)
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    else:
        save_file(state, tmp_path / "model.safetensors")
        path = tmp_path / "model.safetensors" if form == "file" else tmp_path
    ours = connector()
    report = load_pretrained(ours, path)

    queries, ids = state["query_tokens"].expand(2, -1, -1), torch.tensor([[5, 6, 7], [8, 9, 0]])
    mask, seen = torch.tensor([[1, 1, 1], [1, 1, 0]]), torch.randn(2, 5, 12)
    with torch.no_grad():
        expected = instructblip(
            input_ids=ids,
            attention_mask=torch.cat([torch.ones(2, 4), mask], 1),
            query_embeds=queries,
            encoder_hidden_states=seen,
        ).last_hidden_state
        got = ours.Qformer(ours.query_tokens.expand(2, -1, -1), seen, ids, mask)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)

    assert torch.equal(ours.llm_proj.bias, state["language_projection.bias"])
    assert torch.equal(ours.ln_vision.weight, state["vision_model.post_layernorm.weight"])
    words = ours.Qformer.bert.embeddings.word_embeddings.weight
    assert torch.equal(words, state["qformer.embeddings.word_embeddings.weight"][:30])  # without [DEC]
    assert report.left == {
        "imagebind_fc.weight": "not in the file",
        "imagebind_fc.bias": "not in the file",
        "turn_pe.weight": "not in the file",
        "image_pe.weight": "not in the file",
        "ln_vision.bias": "shape (7,) in the file, (12,) here",
    }
    assert set(report.loaded) | set(report.left) == set(dict(ours.named_parameters()))
    assert report.unused == {"language_model": 1, "ln_vision": 1, "vision_model": 1}


@pytest.mark.parametrize("form", ["pth", "below model", "safetensors"])
def test_lavis_and_ma_lmm(tmp_path: Path, form: str):
    theirs = connector(seed=2)
    with torch.no_grad():
        theirs.image_pe.weight.add_(1.0)
    state = {n: t for n, t in theirs.state_dict().items() if not n.startswith(("imagebind_fc", "turn_pe"))}
    state["Qformer.bert.embeddings.position_ids"] = torch.arange(9)[None]
    state["Qformer.cls.predictions.bias"] = torch.zeros(2)
    path = tmp_path / ("q.safetensors" if form == "safetensors" else "q.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state, "epoch": 3} if form == "below model" else state, path)
    ours = connector()
    report = load_pretrained(ours, path)
    assert set(report.left) == {"imagebind_fc.weight", "imagebind_fc.bias", "turn_pe.weight"}
    assert report.unused == {"Qformer": 2}
    for name in report.loaded:
        assert torch.equal(ours.state_dict()[name], theirs.state_dict()[name]), name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden": 8}, r"LayerNorm.bias: shape \(8,\), expected \(16,\).*The file's: hidden 8, layers 3"),
        ({"encoder_width": 11}, r"expected \(16, 12\).*encoder_width 11"),
        ({"layers": 2}, r"layer.2.*: missing.*layers 2, cross_attention_every 2, encoder_width 12"),
        ({"layers": 4}, "there is no such layer here"),
        ({"cross_attention_every": 1}, "there is no such layer here.*cross_attention_every 1"),
        ({"query_tokens": 5}, r"query_tokens: shape \(1, 5, 16\), expected \(1, 4, 16\)"),
        ({"vocab_size": 32}, "knows 32 words and the text tokenizer 30: set text_tokenizer"),
        ({"vocab_size": 29}, "knows 29 words"),
    ],
)
def test_a_qformer_of_other_sizes_is_refused_whole(tmp_path: Path, change: dict, said: str):
    save_file(connector(replace(SIZES, **change), seed=2).state_dict(), tmp_path / "q.safetensors")
    ours = connector()
    before = {name: t.clone() for name, t in ours.state_dict().items()}
    with pytest.raises(ValueError, match=said):
        load_pretrained(ours, tmp_path / "q.safetensors")
    assert all(torch.equal(t, before[name]) for name, t in ours.state_dict().items())


def test_files_that_are_no_qformer(tmp_path: Path):
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="Expected a Q-Former as LAVIS"):
        load_pretrained(connector(), tmp_path / "x.safetensors")
    without_text = {n: t for n, t in connector().state_dict().items() if "word_embeddings" not in n}
    save_file(without_text, tmp_path / "blip2.safetensors")
    with pytest.raises(ValueError, match="no text input"):
        load_pretrained(connector(), tmp_path / "blip2.safetensors")
    torch.save({"model": connector().state_dict(), "code": Path("x")}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match=r"code.pth: not a file of tensors alone"):
        load_pretrained(connector(), tmp_path / "code.pth")
    with pytest.raises(FileNotFoundError):
        load_pretrained(connector(), tmp_path)


def test_a_file_cut_short_says_so(tmp_path: Path):
    file = tmp_path / "qformer.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")
    with pytest.raises(ValueError, match="qformer.safetensors: not a whole file of safetensors .*: download it again"):
        load_pretrained(connector(), file)
