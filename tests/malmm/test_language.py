import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from malmm.language import VISUAL, LanguageModel
from malmm.prompt import Prompt
from malmm.trie import tries

PROMPTS = [Prompt("", "Question: what colour is the circle?\nAnswer:"), Prompt("", "Question: red?\nAnswer:")]
ANSWERS = ["blue", "a red circle, on a blue ground"]


@pytest.fixture(scope="module")
def language(tiny_llm) -> LanguageModel:
    return LanguageModel(tiny_llm, quantization="none").eval()


@pytest.fixture
def prefix() -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
    return values, torch.tensor([[True] * 5, [True, True, False, True, False]])


def one_forward(language: LanguageModel, prefix, prompt: Prompt, answer: str) -> torch.Tensor:
    """Log-likelihoods of an answer's tokens and EOS, from one plain forward over an unpadded sequence."""
    target = language.answer_ids(prompt, [answer])[0]
    words = language.model.get_input_embeddings()
    after = language.tokenizer(prompt.after)["input_ids"]
    embeds = torch.cat([prefix, words(torch.tensor(after + target))])[None]
    with torch.no_grad():
        logprobs = language.model(inputs_embeds=embeds).logits[0, -len(target) - 1 : -1].log_softmax(-1)
    return logprobs[range(len(target)), target]


def test_answers_are_tokenised_as_they_follow_the_prompt(language):
    ids = language.answer_ids(PROMPTS[0], ["yes  blue"])[0]
    whole = language.tokenizer(PROMPTS[0].after + " yes blue", add_special_tokens=False)["input_ids"]
    assert whole[-len(ids) + 1 :] == ids[:-1] and ids[-1] == language.eos
    assert language.answer_ids(PROMPTS[0], [""]) == [[language.eos]]
    newline = Prompt("", "assistant\n")
    assert language.tokenizer.decode(language.answer_ids(newline, ["yes"])[0][:-1]) == "yes"


def test_bos_stands_in_front_of_the_first_text(language):
    bos = language.tokenizer.bos_token_id
    assert language.prompt_ids(Prompt("", "red"), 2)[:3] == [VISUAL, VISUAL, bos]
    ids = language.prompt_ids(Prompt("red ", " blue"), 1)
    assert ids[0] == bos and ids.count(bos) == 1 and ids.count(VISUAL) == 1


def test_loss_is_of_the_answers_tokens_alone_whatever_the_padding(language, prefix):
    loss, tokens = language.answer_loss(*prefix, PROMPTS, ANSWERS)
    expected = [
        one_forward(language, values[mask], prompt, answer)
        for values, mask, prompt, answer in zip(*prefix, PROMPTS, ANSWERS, strict=True)
    ]
    assert tokens == sum(map(len, expected))
    torch.testing.assert_close(loss, -sum(e.sum() for e in expected), atol=1e-3, rtol=1e-5)


def test_gradients_reach_the_visible_prefix_and_nothing_else(language, prefix):
    values, mask = prefix
    values.requires_grad_(True)
    language.answer_loss(values, mask, PROMPTS, ANSWERS)[0].backward()
    assert torch.isfinite(values.grad).all()
    assert (values.grad.abs().sum(-1) > 0).equal(mask)
    assert all(p.grad is None for p in language.parameters())


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_rank_equals_one_forward_each(language, prefix, chunk):
    candidates = ["yes", "no", "a red circle", "yes", "blue blue blue ground", "", "no "]
    values, mask = prefix[0][1], prefix[1][1]
    scores = language.rank(values, mask, PROMPTS[1], candidates, chunk)
    expected = torch.stack([one_forward(language, values[mask], PROMPTS[1], c).mean() for c in candidates])
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)
    assert scores[0] == scores[3] and scores[1] == scores[6]
    assert language.rank(values, mask, PROMPTS[1], []).shape == (0,)


def test_greedy_generation_follows_the_most_likely_token(language, prefix):
    values, mask = prefix[0][0], prefix[1][0]
    words = language.model.get_input_embeddings()
    after = language.tokenizer(PROMPTS[0].after)["input_ids"]
    embeds, ids = torch.cat([values[mask], words(torch.tensor(after))])[None], []
    for _ in range(8):
        ids.append(int(language.model(inputs_embeds=embeds).logits[0, -1].argmax()))
        if ids[-1] in language.stops:
            break
        embeds = torch.cat([embeds, words(torch.tensor([[ids[-1]]]))], dim=1)
    expected = language.tokenizer.decode(ids, skip_special_tokens=True).lstrip().split("\n")[0].strip()
    assert language.generate(*prefix, PROMPTS, max_new_tokens=8)[0] == expected


def test_beams_give_one_short_answer_a_sample(language, prefix):
    answers = language.generate(*prefix, PROMPTS, beams=4, max_new_tokens=3)
    assert len(answers) == 2 and all("\n" not in answer for answer in answers)
    # Beam search does not depend on the batch either.
    alone = language.generate(prefix[0][1:], prefix[1][1:], PROMPTS[1:], beams=4, max_new_tokens=3)
    assert alone == answers[1:]


def test_nf4_changes_little_and_passes_gradients(tiny_llm, language, prefix):
    small = LanguageModel(tiny_llm, quantization="nf4").eval()
    assert any("4bit" in type(m).__name__ for m in small.modules())
    prefix[0].requires_grad_(True)
    loss, tokens = small.answer_loss(*prefix, PROMPTS, ANSWERS)
    full = language.answer_loss(*prefix, PROMPTS, ANSWERS)[0]
    assert abs(loss - full) / tokens < 3
    loss.backward()
    assert torch.isfinite(prefix[0].grad).all() and prefix[0].grad.abs().sum() > 0
    scores = small.rank(prefix[0][0], prefix[1][0], PROMPTS[0], ["yes", "no"])
    assert torch.isfinite(scores).all()


def test_the_first_token_of_an_answer_is_no_end(language, prefix):
    ends = language.model.get_input_embeddings().weight.new_zeros(len(language.tokenizer))
    ends[language.stops] = 1e4
    handle = language.model.lm_head.register_forward_hook(lambda _m, _i, out: out + ends)
    try:
        for words in (1, 4):
            answer = language.generate(*prefix, PROMPTS, max_new_tokens=8, min_new_tokens=words)[0]
            assert answer == "".join(language.stream(prefix[0][:1], prefix[1][:1], PROMPTS[:1], 8)) or words > 1
            assert len(language.tokenizer(answer, add_special_tokens=False)["input_ids"]) >= 1
        assert language.generate(*prefix, PROMPTS, max_new_tokens=8, min_new_tokens=0) == ["", ""]
    finally:
        handle.remove()


def test_streamed_pieces_are_what_generate_gives(language, prefix):
    for i, prompt in enumerate(PROMPTS):
        one = prefix[0][i : i + 1], prefix[1][i : i + 1], [prompt]
        pieces = list(language.stream(*one, max_new_tokens=12))
        assert "".join(pieces) == language.generate(*one, max_new_tokens=12)[0]
        assert len(pieces) > 3 and torch.is_grad_enabled()


@pytest.mark.parametrize(("beams", "length_penalty"), [(1, 1.0), (2, 0.0), (5, 1.0)])
def test_an_answer_is_one_of_the_allowed(language, prefix, beams, length_penalty):
    prompts = [PROMPTS[0], Prompt("", "red\n")]  # whose last characters differ
    names = ["red", "red circle", "red  circle on a blue ground", "blue", "yes, no?", "red circle on"]
    answers = language.generate(*prefix, prompts, beams, 2, length_penalty, allowed=names)
    assert all(answer in names for answer in answers)
    for name in names[::2]:
        assert language.generate(*prefix, prompts, beams, 1, length_penalty, allowed=[name]) == [name] * 2


def test_of_two_allowed_answers_the_likelier_is_given(language, prefix):
    values, mask = prefix[0][:1], prefix[1][:1]
    for names in (["yes", "no"], ["blue", "red"], ["a", "the"]):
        totals = [one_forward(language, values[0], PROMPTS[0], name).sum() for name in names]
        best = names[int(torch.stack(totals).argmax())]
        assert language.generate(values, mask, PROMPTS[:1], 4, length_penalty=0.0, allowed=names) == [best]


def test_no_allowed_answer_is_an_error(language, prefix):
    with pytest.raises(ValueError, match="no string to choose"):
        language.generate(*prefix, PROMPTS, allowed=[])


def test_the_tries_of_class_names_are_built_once(language, prefix):
    names = [f"class {i}" for i in range(20)]
    tries.cache_clear()
    for i in range(2):
        language.rank(prefix[0][i], prefix[1][i], PROMPTS[i], names, chunk=6)
    assert (tries.cache_info().misses, tries.cache_info().hits) == (1, 1)


@pytest.fixture(scope="module")
def vicuna(tmp_path_factory) -> LanguageModel:
    """A random Llama with a tokenizer in the form of Llama 1, 2 and Vicuna: SentencePiece's BPE, bytes for the rest."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    text = "Question: what is red? yes no blue circle Short answer: ASSISTANT: the activity"
    pieces += sorted(set(text) - {" "}) + [
        "\u2581y",
        "\u2581ye",
        "\u2581yes",
        "re",
        "red",
        "\u2581red",
        "ye",
        "yes",
        "\u2581:",
    ]
    merges = [("\u2581", "y"), ("\u2581y", "e"), ("\u2581ye", "s"), ("y", "e"), ("ye", "s"), ("r", "e"), ("re", "d"),
              ("\u2581", "red"), ("\u2581", ":")]  # fmt: skip
    tokenizer = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder = tmp_path_factory.mktemp("vicuna")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(pieces), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            initializer_range=0.3, bos_token_id=1, eos_token_id=2,
        )
    ).save_pretrained(folder)  # fmt: skip
    return LanguageModel(folder, quantization="none").eval()


@pytest.mark.parametrize("after", ["Short answer:", "red?", "the\n", "red"])
def test_answers_of_a_sentencepiece_tokenizer(vicuna, after):
    prompt, names = Prompt("", after), ["yes", "red", "the activity", "n\u00e9", "\u4e2d"]
    assert vicuna.prompt_ids(prompt, 2)[:3] == [VISUAL, VISUAL, 1]
    whole = vicuna.prompt_ids(prompt, 0)
    space = "" if after[-1].isspace() else " "
    for name, ids in zip(names, vicuna.answer_ids(prompt, names), strict=True):
        assert whole + ids[:-1] == vicuna.tokenizer(after + space + name)["input_ids"] and ids[-1] == 2
        assert vicuna._text(ids) == name
    with pytest.raises(ValueError, match="end the template without a space"):
        vicuna.answer_ids(Prompt("", after + " "), ["yes"])


def test_generation_with_a_sentencepiece_tokenizer(vicuna, prefix):
    assert vicuna.tokenizer.convert_tokens_to_ids("<0x0A>") in vicuna.stops
    names = ["yes", "red", "the activity", "n\u00e9", "\u4e2d\u4e2d"]
    for beams in (1, 3):
        assert set(vicuna.generate(*prefix, PROMPTS, beams, allowed=names)) <= set(names)
    for seed in range(5):
        values = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(seed))
        one = values, torch.ones(1, 5, dtype=torch.bool), PROMPTS[:1]
        pieces = list(vicuna.stream(*one, max_new_tokens=12))
        assert "".join(pieces) == vicuna.generate(*one, max_new_tokens=12)[0]


def test_a_character_of_many_tokens_is_streamed_whole(vicuna, prefix):
    wanted = vicuna.answer_ids(PROMPTS[0], ["\u4e2d red \u4e2d"])[0]
    told = iter(wanted)

    def tell(_module, _inputs, out):
        out = torch.zeros_like(out)
        out[..., next(told)] = 1.0
        return out

    handle = vicuna.model.lm_head.register_forward_hook(tell)
    try:
        pieces = list(vicuna.stream(prefix[0][:1], prefix[1][:1], PROMPTS[:1]))
    finally:
        handle.remove()
    assert "".join(pieces) == "\u4e2d red \u4e2d" and not any("\ufffd" in piece for piece in pieces)
    assert pieces == ["\u4e2d red", " \u4e2d"]


def test_more_tokens_than_the_model_has_positions_are_refused(language):
    limit = language.model.config.max_position_embeddings
    values, prompt = torch.zeros(1, limit, language.hidden), [Prompt("", "red?")]
    mask = torch.zeros(1, limit, dtype=torch.bool)
    room = limit - len(language.prompt_ids(prompt[0], 0)) - len(language.answer_ids(prompt[0], ["blue"])[0])
    mask[:, :room] = True
    language.answer_loss(values, mask, prompt, ["blue"])  # just fits
    mask[:, room] = True
    with pytest.raises(ValueError, match=f"{limit + 1} tokens, up to {room + 1} of them visual"):
        language.answer_loss(values, mask, prompt, ["blue"])
    with pytest.raises(ValueError, match=f"but the language model takes {limit}: set a memory_bank_length"):
        language.generate(values, torch.ones_like(mask), prompt)
