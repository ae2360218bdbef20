"""MSRVTT-QA, MSVD-QA and ActivityNet-QA as MA-LMM's annotation files have them. Pure: dicts in, items out.

Xu et al., "Video Question Answering via Gradually Refined Attention" (ACM MM 2017) for the first two; Yu et al.,
"ActivityNet-QA" (AAAI 2019).
"""

from typing import Any

from stages.ingest import text as lavis
from stages.ingest.records import Found, Item, Sample, Wanted, by_id, collect, number, text, video_name

# What ActivityNet-QA means by its types 0-8.
ACTIVITYNET_TYPES = ("motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other")


def msrvtt_or_msvd(data: Any, split: str, name: str) -> Found:
    """MSRVTT-QA or MSVD-QA; the category is what, who, how, when or where."""

    def build(id: str, key: str, raw: dict[str, Any]) -> Item:
        video = video_name(raw, "video")
        return _item(id, Wanted("video", (video,)), raw, split, text(raw, "answer_type"))

    records = by_id(data, name, '{"0000000": {"video": "video6513", "question": "...", "answer": "couch"}}')
    return collect(records.items(), split, build)


def activitynet(data: Any, split: str, name: str) -> Found:
    """ActivityNet-QA: MA-LMM's layout, or a list of ActivityNet-QA's own records with their answers.

    ActivityNet's files are v_<id>.mp4 while the annotations say <id>.
    """

    def build(id: str, key: str, raw: dict[str, Any]) -> Item:
        video = video_name(raw, "video_name" if own else "video")
        kind = number(raw, "type" if own else "answer_type", whole=True)
        if kind >= len(ACTIVITYNET_TYPES):
            raise ValueError(f"type {kind} is none of ActivityNet-QA's 0 to {len(ACTIVITYNET_TYPES) - 1}")
        return _item(id, Wanted("video", (f"v_{video}", video)), raw, split, ACTIVITYNET_TYPES[kind])

    if own := isinstance(data, list) and len(data) > 0:
        keyed = [
            (str(raw.get("question_id", f"entry {at}")) if isinstance(raw, dict) else f"entry {at}", raw)
            for at, raw in enumerate(data)
        ]
        return collect(keyed, split, build)
    records = by_id(data, name, '{"v_1QIUV7WYKXg_3": {"video": "1QIUV7WYKXg", "question": "...", "answer_type": 3}}')
    return collect(records.items(), split, build)


def _item(id: str, wanted: Wanted, raw: dict[str, Any], split: str, category: str) -> Item:
    """LAVIS cleans what it trains on, and scores against the answers as they are annotated: so does the split."""
    answer = text(raw, "answer")
    if split == "train":
        answer = lavis.question(answer)
    question = lavis.question(text(raw, "question"))
    frames = number(raw, "frame_length", whole=True) if "frame_length" in raw else None
    return Item(id, wanted, (Sample(id, "question", question, answer, category=category),), frames)
