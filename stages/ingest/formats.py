"""The annotation formats: how each is read, and what kinds of media it is about."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from stages.ingest import classification, questions, video_captions, video_qa, visdial
from stages.ingest.records import Found, Wanted


@dataclass(frozen=True)
class Format:
    """`read(data, split, name of the file, **settings)` makes items of parsed JSON; see the adapters."""

    kinds: tuple[str, ...]
    read: Callable[..., Found]
    settings: tuple[str, ...] = ()  # fields of IngestConfig that `read` takes, and no other format has

    def media_of(self, data: Any, split: str, name: str, **settings: Any) -> list[Wanted]:
        """What the records are about, each once, in order."""
        if self.read is visdial.read:
            return visdial.media_of(data, split)
        return list(dict.fromkeys(item.wanted for item in self.read(data, split, name, **settings).items))


_video = partial(Format, ("video",))

FORMATS: dict[str, Format] = {
    "visdial": Format(("image",), visdial.read),
    "lvu": _video(classification.lvu, ("task", "history", "stride")),
    "breakfast": _video(classification.breakfast),
    "coin": _video(classification.coin),
    "msrvtt_qa": _video(video_qa.msrvtt_or_msvd),
    "msvd_qa": _video(video_qa.msrvtt_or_msvd),
    "activitynet_qa": _video(video_qa.activitynet),
    "msrvtt_cap": _video(video_captions.whole_videos),
    "msvd_cap": _video(video_captions.whole_videos),
    "youcook2_cap": _video(video_captions.youcook2),
    "questions": Format(("image", "video"), questions.read),
}
