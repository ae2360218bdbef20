"""Videos through the Q-Former and the connector, with memory banks and without, against the official code's vectors."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from malmm.connector import Connector
from malmm.memory import Bank
from malmm.qformer import QFormer
from tests.malmm.golden import Golden, close

TOKENS = ["n1", "n5"]


@pytest.fixture(scope="module")
def golden(shared) -> Golden:
    return Golden.read(shared, "golden_qformer_mb", "golden_qformer_mb")


@pytest.fixture(scope="module")
def qformer(golden: Golden) -> QFormer:
    return golden.qformer()


@pytest.fixture
def connector(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> Connector:
    """With the official weights, taking what the vectors hold: frames behind ln_vision, before the time embedding."""
    config = golden.about["config"]
    made = Connector(
        golden.sizes, config["llm"]["hidden"], memory_bank_length=config["memory_bank_length"],
        max_frames=len(golden["weights.image_pe.weight"]),
    ).eval()  # fmt: skip
    ours = made.state_dict()
    official = {name: value for name, value in golden.under("weights.").items() if name in ours}
    assert {n for n in ours if n.startswith(("Qformer", "query_tokens", "image_pe", "llm_proj"))} == official.keys()
    made.load_state_dict(official, strict=False)
    monkeypatch.setattr(made, "_states", lambda frames, text, turn: frames)
    return made


def run(connector: Connector, golden: Golden, frames: torch.Tensor) -> torch.Tensor:
    zeros = torch.zeros(len(frames), dtype=torch.long)
    out, mask = connector(frames, zeros[:, None].float(), zeros, golden["input_ids"], golden["text_attention_mask"])
    assert mask.all() and mask.shape == out.shape[:2]
    return out


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("grad", [False, True])
def test_banks_and_outputs_of_every_step(golden, qformer, tokens, grad):
    frames, length = golden[f"{tokens}.frames"], golden.about["config"]["memory_bank_length"]
    queries = golden["weights.query_tokens"].expand(len(frames), -1, -1)
    ids, mask = golden["input_ids"], golden["text_attention_mask"]
    count, valid = queries.shape[1], torch.cat([torch.ones(queries.shape[:2]), mask], 1).bool()
    memory = None
    for step in range(frames.shape[1]):
        states = frames[:, step] + golden["weights.image_pe.weight"][step]
        with torch.set_grad_enabled(grad):
            output = qformer(queries, states, ids, mask, memory=memory)
        if step + 1 == frames.shape[1]:
            close(output[valid], golden[f"{tokens}.final.last_hidden_state"][valid])
            break
        close(output[valid], golden[f"{tokens}.step{step:02}.output"][valid])
        memory = qformer.observe(queries, [states], ids, mask, length, memory)
        close(memory.visual.values, golden[f"{tokens}.step{step:02}.visual_bank"])
        assert torch.equal(memory.visual.sizes, golden[f"{tokens}.step{step:02}.visual_size"])
        for number, bank in enumerate(memory.layers):
            expected = golden.under(f"{tokens}.step{step:02}.layer{number}.")
            keep = valid[:, None].expand(bank.sizes.shape)  # nobody reads what comes of padded text
            close(bank.values[keep], expected["query_bank"][keep])
            # The first layer's text is the same in every frame, so the second's differs by rounding alone.
            stable = slice(None) if number != 1 else slice(count)
            assert torch.equal(
                bank.sizes[..., stable][keep[..., stable]], expected["query_size"][..., stable][keep[..., stable]]
            ), (step, number)


@pytest.mark.parametrize("tokens", TOKENS)
def test_loss_and_gradients(golden, connector, tokens):
    config = golden.about["config"]["llm"]
    llm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config["vocab"], hidden_size=config["hidden"], intermediate_size=config["intermediate"],
            num_hidden_layers=config["layers"], num_attention_heads=config["heads"], pad_token_id=config["pad"],
            rms_norm_eps=config["rms_norm_eps"], attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    llm.load_state_dict(golden.under("weights.llm_model."))
    visual = run(connector, golden, golden[f"{tokens}.frames"])
    embeds = golden[f"{tokens}.llm_inputs_embeds"]
    close(visual, embeds[:, : visual.shape[1]])
    loss = llm(
        inputs_embeds=torch.cat([visual, embeds[:, visual.shape[1] :]], 1),
        attention_mask=golden[f"{tokens}.llm_attention_mask"],
        labels=golden[f"{tokens}.llm_labels"],
    ).loss
    close(loss[None], golden[f"{tokens}.loss"])
    loss.backward()
    parameters, gradients = dict(connector.named_parameters()), golden.under(f"{tokens}.grad.")
    assert gradients
    for name, expected in gradients.items():
        close(parameters[name].grad, expected)


def test_without_banks_every_frame_goes_to_the_language_model(golden, shared, connector):
    alone = Golden.read(shared, "golden_qformer_nomem", "golden_qformer_mb")
    connector.memory_bank_length = 0
    connector.load_state_dict(alone.under("weights."), strict=False)
    for tokens in TOKENS:
        visual = run(connector, golden, alone[f"{tokens}.frames"])
        close(visual, alone[f"{tokens}.llm_inputs_embeds"][:, : visual.shape[1]])


@pytest.mark.parametrize("tokens", TOKENS)
def test_frames_at_once_or_one_by_one(golden, qformer, tokens):
    frames = golden[f"{tokens}.frames"]
    queries = golden["weights.query_tokens"].expand(len(frames), -1, -1)
    text = (golden["input_ids"], golden["text_attention_mask"])
    once = qformer.observe(queries, frames.unbind(1), *text, length=3)
    half = qformer.observe(queries, frames[:, :7].unbind(1), *text, length=3)
    kept = half.layers[2].values.clone()
    parts = qformer.observe(queries, frames[:, 7:].unbind(1), *text, length=3, memory=half)
    assert torch.equal(half.layers[2].values, kept)
    assert torch.equal(once.visual.sizes, parts.visual.sizes)
    with torch.no_grad():
        close(*(qformer(queries, frames[:, 0], *text, memory=memory) for memory in (once, parts)))


@pytest.mark.parametrize(
    ("steps", "length", "tokens"),
    [(1, 4, 5), (3, 4, 5), (4, 4, 5), (5, 4, 5), (6, 4, 1), (6, 1, 5), (12, 2, 1), (12, 11, 5), (12, 12, 5)],
)
def test_short_videos_and_long_banks(golden, connector, steps, length, tokens):
    """Against a loop over whole banks, without anything that is carried along."""
    connector.memory_bank_length = length
    frames = golden["n5.frames"][:, :steps, :tokens]
    queries = connector.query_tokens.expand(len(frames), -1, -1)
    memory = None
    for step in range(steps):
        states = frames[:, step] + connector.image_pe.weight[step]
        hidden = connector.Qformer.bert.embeddings(queries, golden["input_ids"])
        mask = torch.nn.functional.pad(golden["text_attention_mask"], (queries.shape[1], 0), value=1).bool()
        banks = [Bank.of(states)] if memory is None else [memory[0].append(states)]
        seen = banks[0].values.flatten(1, 2)
        for number, layer in enumerate(connector.Qformer.bert.encoder.layer, 1):
            banks.append(Bank.of(hidden) if memory is None else memory[number].append(hidden))
            keys_values = layer.attention.keys_values(banks[-1].values.flatten(1, 2))
            every = mask.repeat(1, len(banks[-1]))[:, None, None]
            hidden = layer(hidden, queries.shape[1], keys_values, every, layer.encoder_keys_values(seen), None)
        memory = [bank.compress(length) for bank in banks]
    expected = connector.llm_proj(hidden[:, : queries.shape[1]])
    with torch.no_grad():
        close(run(connector, golden, frames), expected)


def test_only_the_last_frame_has_a_graph(golden, connector):
    frames = golden["n5.frames"].clone().requires_grad_(True)
    run(connector, golden, frames).sum().backward()
    assert (frames.grad.abs().sum((0, 2, 3)) > 0).tolist() == [False] * 11 + [True]
    assert (connector.image_pe.weight.grad.abs().sum(1) > 0).nonzero().flatten().tolist() == [11]


def test_what_is_kept_does_not_grow_with_the_video(golden, connector, monkeypatch):
    kept = []
    observe = connector.Qformer.observe

    def watch(*arguments):
        memory = observe(*arguments)
        kept.append([bank.values.shape for bank in (memory.visual, *memory.layers)])
        return memory

    monkeypatch.setattr(connector.Qformer, "observe", watch)
    for steps in (6, 12):
        run(connector, golden, golden["n5.frames"][:, :steps])
    assert kept[0] == kept[1]


def test_a_failure_in_the_middle_leaves_nothing(golden, connector, monkeypatch):
    frames = golden["n5.frames"]
    before, names = run(connector, golden, frames), {id(m): set(vars(m)) for m in connector.modules()}
    layer = connector.Qformer.bert.encoder.layer[1]
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError("in the middle")

    hook = layer.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        run(connector, golden, frames)
    hook.remove()
    assert {id(m): set(vars(m)) for m in connector.modules()} == names
    assert torch.equal(run(connector, golden, frames), before)


def test_gradients_under_autocast(golden, connector):
    # What autocast keeps of a weight that it cast for the frames without gradients must not be used for the last one.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run(connector, golden, golden["n5.frames"]).sum().backward()
    trained = {n for n, p in connector.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert "Qformer.bert.encoder.layer.0.attention.self.value.weight" in trained
    assert "Qformer.bert.encoder.layer.2.crossattention.self.key.weight" in trained


def test_dropout_is_on_in_every_frame_of_training(golden, connector):
    frames = golden["n5.frames"]
    connector.train()
    torch.manual_seed(0)
    one, other = (connector.Qformer.observe(
        connector.query_tokens.expand(2, -1, -1), frames[:, :2].unbind(1), golden["input_ids"], None, 4
    ) for _ in range(2))  # fmt: skip
    first = one.layers[0].values
    assert not torch.equal(first, other.layers[0].values) and not torch.equal(first[:, 0], first[:, 1])


def test_too_many_frames_are_refused(golden, connector):
    with pytest.raises(ValueError, match="17 frames, but image_pe has 16 rows"):
        run(connector, golden, torch.zeros(2, 17, 1, 48))


@pytest.mark.parametrize("shape", [(2, 0, 1, 48), (2, 5, 48)])
def test_other_shapes_are_refused(golden, connector, shape):
    with pytest.raises(ValueError, match=r"expected \(B,D\) of images or \(B,T,N,D\)"):
        run(connector, golden, torch.zeros(shape))
