import pytest
from hypothesis import given
from hypothesis import strategies as st

from malmm.prompt import Prompt, Template

words = st.text("abc {}\n", max_size=12)


def test_the_default_template():
    prompt = Template().render("is it red ?", "a circle", [("is it big ?", "no")])
    assert prompt == Prompt("", "Caption: a circle\nQuestion: is it big ?\nAnswer: no\nQuestion: is it red ?\nAnswer:")


def test_visual_tokens_go_where_the_template_says():
    assert Template("look: {visual} {question} A:").render("q") == Prompt("look: ", " q A:")
    assert Template("{question} A:").render("q") == Prompt("", "q A:")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{qestion}", r"unknown placeholder \{qestion\}; allowed: \{visual\}, \{caption\}, \{history\}, \{question\}"),
        ("{question!r}", "unknown placeholder"),
        ("{question:>9}", "unknown placeholder"),
        ("{0} {question}", "unknown placeholder"),
        ("{question", "allowed:"),
        ("{caption}", r"\{question\} is missing"),
        ("{visual}{visual}{question}", "only once"),
    ],
)
def test_a_wrong_template_names_what_is_allowed(text, said):
    with pytest.raises(ValueError, match=said):
        Template(text)
    with pytest.raises(ValueError, match=r"history template: unknown placeholder \{turn\}"):
        Template(history="{turn}")


def test_a_caption_that_the_sample_lacks_is_an_error():
    with pytest.raises(ValueError, match="the sample has none"):
        Template().render("q")
    assert Template("{{caption}} {question}").render("q").after == "{caption} q"


@given(st.lists(st.tuples(words, words), max_size=6), st.integers(0, 120), words)
def test_the_longest_recent_history_that_fits_is_kept(history, budget, question):
    template = Template("{history}Q {question} A:", "<{question}|{answer}>")
    whole = [template.render(question, None, history[start:]).after for start in range(len(history) + 1)]
    fitting = [text for text in whole if len(text) <= budget]
    assert template.render(question, None, history, budget).after == (fitting or whole[-1:])[0]
