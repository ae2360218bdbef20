import pytest
import torch

from malmm.language import VISUAL, LanguageModel
from malmm.prompt import Prompt

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
