"""From a bank's sizes to the frames it merged, as properties; the pictures hold what they should."""

import io
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from PIL import Image

from stages.evaluate import timeline_html, timeline_png
from stages.evaluate.timeline import Moments, Run, clock, held, runs, ticks


@st.composite
def banks(draw, most: int = 40):
    """Sizes over time of a bank of some length that merges any neighbours, the last frame staying alone."""
    total, length = draw(st.integers(1, most)), draw(st.integers(1, 12))
    sizes, steps = [], []
    for step in range(total):
        sizes = [*sizes, 1]
        if len(sizes) > length and step + 1 < total:
            at = draw(st.integers(0, len(sizes) - 2))
            sizes = [*sizes[:at], sizes[at] + sizes[at + 1], *sizes[at + 2 :]]
        steps.append(np.array(sizes, draw(st.sampled_from([np.float32, np.int64]))))
    return steps


def moments_of(steps, pictures: bool = True, seconds: float = 7.0, **more) -> Moments:
    found, times = runs(steps), np.linspace(0, seconds, len(steps) + 1)
    shown = [np.full((9, 16, 3), 20 * i % 256, np.uint8) for i in range(len(found[-1]))] if pictures else []
    given = {"title": "memory of a.mp4", "notes": ("a note",)} | more
    return Moments(steps=found, start=times[:-1], end=times[1:], pictures=shown, **given)


@given(banks())
def test_runs_cover_every_frame_once_in_order(steps):
    for step, (sizes, entries) in enumerate(zip(steps, runs(steps), strict=True)):
        assert [frame for run in entries for frame in range(run.first, run.last + 1)] == list(range(step + 1))
        assert [run.size for run in entries] == sizes.tolist()
        assert all(run.first <= run.middle <= run.last for run in entries)


@given(banks())
def test_every_entry_lives_through_the_steps_that_hold_it(steps):
    found = runs(steps)
    lives = held(found)
    assert len({one.run for one in lives}) == len(lives)
    for step, entries in enumerate(found):
        assert sorted((o.run for o in lives if o.since <= step <= o.until), key=lambda r: r.first) == entries


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([[1], [1, 2]], "step 1: the sizes sum to 3, but 2 frames"),
        ([[1], [3, -1]], "whole and positive"),
        ([[1], [1.5, 0.5]], "whole and positive"),
        ([[2]], "sum to 2, but 1"),
        ([[[1]]], "whole and positive"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes, said):
    with pytest.raises(ValueError, match=said):
        runs([np.array(one) for one in sizes])


def test_moments_are_told_by_their_times():
    steps = [np.ones(i + 1) for i in range(41)]
    steps = [*steps[:-1], np.array([39, 1, 1])]
    found = runs(steps)
    seconds = np.arange(41) * 2.0
    whole = Moments("", (), found, seconds, seconds + 0.1)
    assert list(whole.said()) == ["0:00-1:16 (39 frames)", "1:18 (1 frame)", "1:20 (1 frame)"]
    short = Moments("", (), found, seconds / 20, seconds / 20 + 0.1)
    assert next(short.said()) == "0:00.0-0:03.9 (39 frames)"


def test_a_clock_says_hours_and_carries_over():
    assert [clock(s) for s in (0, 59.4, 59.6, 600, 3599.9, 3661)] == [
        "0:00",
        "0:59",
        "1:00",
        "10:00",
        "1:00:00",
        "1:01:01",
    ]
    assert [clock(s, tenths=True) for s in (0, 9.94, 59.96)] == ["0:00.0", "0:09.9", "1:00.0"]


@given(st.integers(1, 3000), st.integers(1, 20))
def test_an_axis_has_few_marks_and_begins_at_0(total, most):
    marks = ticks(np.zeros(total), most)
    assert marks[0] == 0 and len(marks) <= most and marks[-1] < total and len(set(np.diff(marks))) <= 1


def test_numbers_that_do_not_fit_are_refused():
    found = runs([np.ones(1)])
    with pytest.raises(ValueError, match="1 steps, 2 starts"):
        Moments("", (), found, np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match="2 pictures for 1 entries"):
        Moments("", (), found, np.zeros(1), np.zeros(1), [np.zeros((1, 1, 3))] * 2)


def bank(total: int, length: int) -> list[np.ndarray]:
    """A bank that merges its two smallest neighbours."""
    sizes, steps = [], []
    for step in range(total):
        sizes.append(1)
        if len(sizes) > length and step + 1 < total:
            at = int(np.argmin(np.add(sizes[1:], sizes[:-1])))
            sizes[at : at + 2] = [sizes[at] + sizes[at + 1]]
        steps.append(np.array(sizes))
    return steps


@pytest.mark.parametrize(
    ("total", "length", "seconds"), [(1, 5, 0.1), (20, 5, 10), (100, 20, 600), (80, 40, 7200), (300, 10, 40)]
)
def test_no_text_of_the_picture_touches_another(monkeypatch, total, length, seconds):
    """Every text that is drawn, as the renderer measures it, from few to many moments of short and long videos."""
    figures = []
    monkeypatch.setattr(timeline_png.plt, "close", figures.append)
    png = timeline_png.draw(moments_of(bank(total, length), seconds=seconds, notes=("word " * 60,)))
    (figure,) = figures
    assert Image.open(io.BytesIO(png)).size[0] == 14 * 110
    renderer = figure.canvas.get_renderer()
    texts = [t for t in figure.findobj(plt.Text) if t.get_text().strip() and t.get_visible()]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts]
    edge = figure.bbox
    for i, (text, box) in enumerate(boxes):
        assert box.x0 >= 0 and box.x1 <= edge.width and box.y0 >= 0 and box.y1 <= edge.height, text
        for other, second in boxes[:i]:
            across = min(box.x1, second.x1) - max(box.x0, second.x0)
            down = min(box.y1, second.y1) - max(box.y0, second.y0)
            assert across <= 1 or down <= 1, f"{text!r} and {other!r}"
    plt.close(figure)


def test_the_same_numbers_give_the_same_picture():
    assert timeline_png.draw(moments_of(bank(20, 5))) == timeline_png.draw(moments_of(bank(20, 5)))


class Page(HTMLParser):
    """Every tag must close in order; collects attributes and titles."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.attributes, self.tags = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@settings(max_examples=20, deadline=None)
@given(banks(), st.booleans())
def test_the_page_tells_every_moment_and_asks_for_nothing(steps, pictures):
    moments = moments_of(steps, pictures)
    text = timeline_html.page(moments)
    page = Page(text)
    assert "script" not in page.tags and "link" not in page.tags and "url(" not in text and "@import" not in text
    for name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith(("data:image/jpeg;base64,", "#moment-")), value[:40]
    ids = [value for name, value in page.attributes if name == "id"]
    assert ids == [f"moment-{i + 1}" for i in range(len(moments.kept))]
    drawing = ElementTree.fromstring(re.search("<svg.*</svg>", text, re.DOTALL)[0])
    said = [title.text for title in drawing.iter("title")]
    assert len(said) == len(held(moments.steps)) + len(moments.kept)
    for run in moments.kept:
        assert any(one.startswith(moments.span(run)) for one in said)
    assert page.tags.count("img") == (len(moments.kept) if pictures else 0)


def test_text_is_escaped():
    moments = moments_of(bank(3, 5), title="<script>alert(1)</script>", notes=('Question: "a" < b & c?',))
    text = timeline_html.page(moments)
    assert "<script" not in text and "&lt;script&gt;" in text and "&quot;a&quot; &lt; b &amp; c?" in text


def test_a_run_counts_its_frames():
    assert (Run(3, 7).size, Run(3, 7).middle, Run(3, 6).middle) == (5, 5, 4)
