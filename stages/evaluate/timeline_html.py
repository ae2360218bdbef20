"""What timeline_png draws, as one page with times under the pointer. It opens offline and holds no script."""

import base64
import io
from collections.abc import Callable
from html import escape

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm, to_hex
from PIL import Image

from stages.evaluate.timeline import Held, Moments, counted, held, ticks
from stages.evaluate.timeline_png import COLOURS

WIDE, TALL, BAR, GAP, AXIS, LEFT = 1200, 420, 40, 14, 46, 60  # of the drawing, in its own units
PICTURE = 240  # pixels of a thumbnail's longer side

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; margin: 2rem auto; max-width: 1280px;
       padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .4rem; }
.note { color: #555; margin: .1rem 0; }
svg { width: 100%; height: auto; margin: 1rem 0; }
svg rect { stroke: #fff; stroke-width: .7; }
svg rect:hover { stroke: #d55e00; stroke-width: 3; }
svg text { font: 13px system-ui, sans-serif; fill: #222; pointer-events: none; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .9rem; padding: 0; }
li { list-style: none; font-size: .85rem; border-top: 6px solid; padding-top: .3rem; }
li img { display: block; max-width: 100%; max-height: 200px; margin-bottom: .25rem; }
li:target { outline: 3px solid #d55e00; outline-offset: 4px; }
""".strip()


def page(moments: Moments) -> str:
    """The whole HTML: all text escaped, thumbnails as data URIs, no reference to anything outside it."""
    title = escape(moments.title)
    notes = "\n".join(f'<p class="note">{escape(note)}</p>' for note in moments.notes)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{STYLE}
</style>
</head>
<body>
<h1>{title}</h1>
{notes}
<p class="note">Across: the frames; down: how many of them the memory had seen. A block is one entry for as long as it
lived; the darker, the more frames it stands for. Point at a block for its times; click one of the last row for its
picture.</p>
{_drawing(moments)}
<ol>
{_cards(moments)}
</ol>
</body>
</html>
"""


def _drawing(moments: Moments) -> str:
    """An SVG: every entry that ever was, then those that are kept, then the time."""
    total = len(moments.steps)
    across, down = (WIDE - LEFT - 20) / total, TALL / total
    colour = _colours(moments)
    parts = []
    for one in held(moments.steps):
        at = (
            LEFT + one.run.first * across,
            one.since * down,
            one.run.size * across,
            (one.until - one.since + 1) * down,
        )
        parts.append(_block(at, colour(one.run.size), _said(moments, one)))
    for number, run in enumerate(moments.kept, start=1):
        at = (LEFT + run.first * across, TALL + GAP, run.size * across, BAR)
        said = f"moment {number}: {moments.span(run)}, {counted(run.size)}"
        parts.append(f'<a href="#moment-{number}">{_block(at, colour(run.size), said)}</a>')
        if run.size * across > 9 * len(str(number)):
            ink = "#fff" if LogNorm(1, _largest(moments))(run.size) > 0.45 else "#000"
            parts.append(_text(at[0] + at[2] / 2, TALL + GAP + BAR / 2 + 5, str(number), "middle", ink))
    under = TALL + GAP + BAR
    for mark in ticks(moments.start):
        at = LEFT + mark * across
        parts.append(f'<path d="M{at:.1f} {under}v6" stroke="#222"/>')
        parts.append(_text(at, under + 20, moments.instant(moments.start[mark]), "middle"))
    parts.append(_text((LEFT + WIDE) / 2, under + 40, "time in the video", "middle"))
    parts.append(_text(LEFT - 8, TALL + GAP + BAR / 2 + 5, "kept", "end"))
    for seen in sorted({1, *(round(total * part / 4) for part in (1, 2, 3, 4))} - {0}):
        parts.append(_text(LEFT - 8, min(seen * down + 4, TALL), str(seen), "end"))
    inside = "\n".join(parts)
    return f'<svg viewBox="0 0 {WIDE} {under + AXIS}" role="img" aria-label="entries over time">\n{inside}\n</svg>'


def _said(moments: Moments, one: Held) -> str:
    lived = f"at frame {one.since + 1}" + (f" to {one.until + 1}" if one.until > one.since else "")
    return f"{moments.span(one.run)}, {counted(one.run.size)}; in the memory {lived}"


def _cards(moments: Moments) -> str:
    colour = _colours(moments)
    cards = []
    for number, run in enumerate(moments.kept, start=1):
        said = f"{moments.span(run)}, {counted(run.size)}"
        picture = ""
        if len(moments.pictures):
            shown = moments.instant(moments.start[run.middle])
            source = _data_uri(moments.pictures[number - 1])
            picture = f'<img alt="the frame at {shown}" title="{said}; shown: {shown}" src="{source}">'
        cards.append(
            f'<li id="moment-{number}" style="border-color: {colour(run.size)}" title="{said}">{picture}'
            f"<b>{number}</b> {moments.span(run)}<br>{counted(run.size)}</li>"
        )
    return "\n".join(cards)


def _largest(moments: Moments) -> int:
    return max(2, max(run.size for run in moments.kept))


def _colours(moments: Moments) -> Callable[[int], str]:
    norm, colours = LogNorm(1, _largest(moments)), colormaps[COLOURS]
    return lambda size: to_hex(colours(norm(size)))


def _block(at: tuple[float, float, float, float], colour: str, said: str) -> str:
    x, y, width, height = at
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}">'
        f"<title>{escape(said)}</title></rect>"
    )


def _text(x: float, y: float, text: str, anchor: str, ink: str = "") -> str:
    fill = f' style="fill: {ink}"' if ink else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{fill}>{escape(text)}</text>'


def _data_uri(picture: np.ndarray) -> str:
    """A thumbnail, (H,W,3) uint8, as a JPEG inside the page."""
    image = Image.fromarray(picture)
    image.thumbnail((PICTURE, PICTURE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
