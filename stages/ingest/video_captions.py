"""MSRVTT, MSVD and YouCook2 captions as MA-LMM's annotation files have them. Pure: dicts in, items out.

A record is one caption; captions of one video, or of one segment, are the references of one thing to tell. MSRVTT: Xu
et al. (CVPR 2016). MSVD: Chen and Dolan (ACL 2011). YouCook2: Zhou et al. (AAAI 2018).
"""

from typing import Any

from stages.ingest import text as lavis
from stages.ingest.records import Found, Item, Sample, Wanted, by_id, collect, number, video_name

QUESTION = "what does the video describe?"  # the prompt of MA-LMM's loaders


def whole_videos(data: Any, split: str, name: str) -> Found:
    """MSRVTT or MSVD: captions of whole videos."""

    def build(id: str, key: str, raw: dict[str, Any]) -> Item:
        return _item(id, raw, split, None, None)

    records = by_id(data, name, '{"0": {"video": "video6513", "caption": "a family is talking"}}')
    return collect(records.items(), split, build)


def youcook2(data: Any, split: str, name: str) -> Found:
    """YouCook2: captions of the seconds from start_time to end_time, both kept inside the video's duration."""

    def build(id: str, key: str, raw: dict[str, Any]) -> Item:
        start = number(raw, "start_time")
        end = min(number(raw, "duration"), number(raw, "end_time"))
        if start >= end:
            raise ValueError(f"it starts at {start} s and ends at {end} s")
        return _item(id, raw, split, float(start), float(end))

    records = by_id(
        data, name, '{"xHr8X2Wpmno_0047_0060": {"video": "xHr8X2Wpmno", "start_time": 47, "end_time": 60, ...}}'
    )
    return collect(records.items(), split, build)


def _item(id: str, raw: dict[str, Any], split: str, start: float | None, end: float | None) -> Item:
    """LAVIS cleans what it trains on, and scores against the captions as they are annotated: so does the split."""
    told = raw.get("caption")
    if not isinstance(told, str):
        raise ValueError(f"caption must be a text, not {told!r}")
    answer = lavis.caption(told) if split == "train" else told
    if not answer.strip():
        answer = None  # YouCook2 keeps captions of its test split back, as empty texts
    frames = number(raw, "frame_length", whole=True) if "frame_length" in raw else None
    video = Wanted("video", (video_name(raw, "video"),))
    return Item(id, video, (Sample(id, "caption", QUESTION, answer, start, end),), frames)
