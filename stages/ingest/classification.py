"""LVU, Breakfast and COIN as MA-LMM's annotation files have them. Pure: dicts in, items out.

The answer is the class name; the question is the prompt of MA-LMM's loaders. LVU: Wu and Krahenbuhl, "Towards
Long-Form Video Understanding" (CVPR 2021). Breakfast: Kuehne et al., "The Language of Actions" (CVPR 2014).
COIN: Tang et al., "COIN" (CVPR 2019).
"""

from typing import Any

from stages.errors import BadInput
from stages.ingest.records import Found, Item, LeftOut, Sample, Wanted, by_id, collect, number, text

LVU_TASKS = ("director", "genre", "relationship", "scene", "way_speaking", "writer", "year")

# Left out by MA-LMM's loaders by name.
BREAKFAST_LEFT_OUT = ("P28-cam01-P28_cereals", "P28-cam02-P28_cereals", "P27-stereo-P27_milk_ch0")
COIN_LEFT_OUT = ("AfiVmAjfTNs", "cjwtcDKTQM8")
_BY_NAME = "MA-LMM's loader leaves this video out"


def clips(duration: int, history: int, stride: int) -> list[tuple[int, int]]:
    """(start, end) in whole seconds of a film's clips, as MA-LMM cuts LVU.

    The first clip starts at 0 however short the film is; others start every `stride` seconds while `history` seconds
    are left. A clip of `history` seconds ends at its last full second, start + history - 1: its frames at f frames
    a second are those from start * f to end * f, both taken.
    """
    starts = [0, *range(stride, duration - history + 1, stride)]
    return [(start, min(start + history - 1, duration)) for start in starts]


def lvu(data: Any, split: str, name: str, task: str, history: int, stride: int) -> Found:
    """LVU: `task` of every film that is annotated for it, a sample a clip. Raises BadInput when no film is."""
    films = by_id(data, name, '{"-wX6_qCCnPc": {"duration": 133, "num_frames": 1628, "director": "steven"}}')
    asked = {film: raw for film, raw in films.items() if not isinstance(raw, dict) or task in raw}
    if not asked:
        raise BadInput(f"{name}: no film has a {task}; LVU's tasks are {', '.join(LVU_TASKS)}")

    def build(id: str, film: str, raw: dict[str, Any]) -> Item:
        if raw.get("subset", split) != split:
            raise ValueError(f"its subset is {raw['subset']!r}, the config gives the file as {split!r}")
        label, question = text(raw, task), f"what is the {task} of the movie?"
        samples = tuple(
            Sample(f"{id}_{start}", "classification", question, label, float(start), float(end))
            for start, end in clips(number(raw, "duration", whole=True), history, stride)
        )
        return Item(id, Wanted("video", (film,)), samples, number(raw, "num_frames", whole=True))

    found = collect(asked.items(), split, build)
    found.oddities[f"films without a {task}"] = len(films) - len(asked)
    return found


def breakfast(data: Any, split: str, name: str) -> Found:
    """Breakfast: what is being prepared, a sample a video, but for the three that MA-LMM leaves out."""

    def build(id: str, video: str, raw: dict[str, Any]) -> Item:
        if video in BREAKFAST_LEFT_OUT:
            raise LeftOut(_BY_NAME)
        question = "what type of breakfast is shown in the video?"
        return _whole(id, video, question, text(raw, "class_name"), number(raw, "frame_length", whole=True))

    records = by_id(data, name, '{"P03-cam01-P03_cereals": {"frame_length": 558, "class_name": "cereal"}}')
    return collect(records.items(), split, build)


def coin(data: Any, split: str, name: str) -> Found:
    """COIN: the records of the file whose subset is `split`. One file holds all subsets; give it for each.

    Left out are two videos by name, and those of which the annotations count no frames: MA-LMM's authors had none.
    Raises BadInput when no record is of this subset.
    """
    records = by_id(
        data, name, '{"4Mbd-WmZ3PU": {"subset": "train", "target": "replace battery", "num_frames_actual": 900}}'
    )
    here = {video: raw for video, raw in records.items() if not isinstance(raw, dict) or raw.get("subset") == split}
    if not here:
        subsets = sorted({str(raw.get("subset")) for raw in records.values()})
        raise BadInput(f"{name}: no record is of subset {split!r}; its subsets are {', '.join(subsets)}")

    def build(id: str, video: str, raw: dict[str, Any]) -> Item:
        if video in COIN_LEFT_OUT:
            raise LeftOut(_BY_NAME)
        if "num_frames_actual" not in raw:
            raise LeftOut("the annotations count no frames of it (num_frames_actual)")
        question = "what is the activity in the video?"
        return _whole(id, video, question, text(raw, "target"), number(raw, "num_frames_actual", whole=True))

    return collect(here.items(), split, build)


def _whole(id: str, video: str, question: str, label: str, frames: int) -> Item:
    return Item(id, Wanted("video", (video,)), (Sample(id, "classification", question, label),), frames)
