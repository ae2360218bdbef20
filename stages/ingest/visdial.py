"""VisDial v1.0 annotations to dialogues and rows. Pure: bytes and dicts in, dialogues out.

Das et al., "Visual Dialog" (CVPR 2017); the official schema is described at visualdialog.org/data. A second,
inline layout (a list of dialogues with their texts inside, as chat-based retrieval sets publish them) is read too.
"""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stages.errors import BadInput
from stages.ingest.records import Found, Wanted

# VisDial v1.0: train images come from both halves of COCO 2014, val and test have pictures of their own.
IMAGE_NAMES = {
    "train": ("COCO_train2014_{:012d}", "COCO_val2014_{:012d}"),
    "val": ("VisualDialog_val2018_{:012d}",),
    "test": ("VisualDialog_test2018_{:012d}",),
}


@dataclass(frozen=True)
class Turn:
    """One round: texts, and for ranking the candidates as indices into the file's answers."""

    question: str
    answer: str | None
    candidates: tuple[int, ...] | None = None
    gt_index: int | None = None


@dataclass(frozen=True)
class Dialogue:
    """One image with its caption and rounds. `id`: "<split>/<image>", then "-2", "-3" for more of one image."""

    id: str
    image: int
    wanted: Wanted
    caption: str
    turns: tuple[Turn, ...]


def wanted(split: str, image: int, file: str | None) -> Wanted:
    """The image's own file name (in the inline layout alone), or the names that VisDial gives to this number."""
    return Wanted("image", (posixpath.basename(file),) if file else tuple(n.format(image) for n in IMAGE_NAMES[split]))


def media_of(data: Any, split: str) -> list[Wanted]:
    """What every dialogue is about, each once, in order; much faster than reading the dialogues."""
    listed = (
        data if isinstance(data, list) else data.get("data", {}).get("dialogs", []) if isinstance(data, dict) else []
    )
    pairs = dict.fromkeys((d.get("image_id"), d.get("file")) for d in listed if isinstance(d, dict))
    named = ((image, file) for image, file in pairs if isinstance(image, int) and isinstance(file, str | None))
    return [wanted(split, image, file) for image, file in named]


def read(data: Any, split: str, name: str) -> Found:
    """All dialogues of one file, and its pool of answers; `found.items` are Dialogue.

    Raises BadInput when it is no VisDial v1.0 file, or one of another split. A dialogue that cannot be read is listed
    in `broken` and the others go on.
    """
    if isinstance(data, list):
        return _collect(data, [], lambda d: _inline(d), split)
    content = data.get("data") if isinstance(data, dict) else None
    if not isinstance(content, dict) or not all(
        isinstance(content.get(k), list) for k in ("dialogs", "questions", "answers")
    ):
        raise BadInput(
            f"{name} has no data.dialogs, data.questions and data.answers: VisDial v1.0 files look like "
            "visdial_1.0_val.json from visualdialog.org"
        )
    found = str(data.get("split", ""))
    if not found.startswith(split):
        raise BadInput(f"{name} is of split {found!r}, the config gives it as {split!r}")
    questions, answers = content["questions"], content["answers"]
    return _collect(content["dialogs"], answers, lambda d: _official(d, questions, answers), split)


def dense_of(data: Any, name: str) -> dict[tuple[int, int], list[float]]:
    """Dense annotations: (image number, turn from 0) -> relevance of each candidate, 0-1.

    `round_id` counts from 1; val files say `gt_relevance`, train files `relevance`.
    """
    try:
        return {
            (d["image_id"], d["round_id"] - 1): [float(r) for r in d.get("gt_relevance", d.get("relevance"))]
            for d in data
        }
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"{name} is no list of image_id, round_id and gt_relevance ({type(error).__name__}: {error}): "
            "VisDial publishes it as visdial_1.0_val_dense_annotations.json"
        ) from None


def _collect(listed: list[Any], answers: list[str], build: Any, split: str) -> Found:
    found = Found(answers=answers)
    seen: dict[int, list[tuple]] = {}
    for position, raw in enumerate(listed):
        image = raw.get("image_id") if isinstance(raw, dict) else None
        label = f"{split}/{image if isinstance(image, int) else f'entry {position}'}"
        try:
            said = (*_about(raw, split), tuple(build(raw)))
            _check_turns(said[-1])
        except (KeyError, TypeError, IndexError, ValueError) as error:
            found.broken[label] = f"{type(error).__name__}: {error}"
            continue
        before = seen.setdefault(image, [])
        if said in before:
            found.oddities["dialogues repeated word for word"] += 1
            continue
        if before:
            found.oddities["images with several dialogues"] += 1
        before.append(said)
        again = f"-{len(before)}" if len(before) > 1 else ""
        dialogue = Dialogue(f"{label}{again}", *said)
        found.items.append(dialogue)
        found.oddities.update(_oddities(dialogue, answers))
    return found


def _official(raw: dict[str, Any], questions: list[str], answers: list[str]) -> Iterator[Turn]:
    for number, round_ in enumerate(raw["dialog"]):
        if "question" not in round_:
            continue  # the test split ends where the question to answer is
        options, gt = round_.get("answer_options"), round_.get("gt_index")
        if options is not None and not all(0 <= option < len(answers) for option in options):
            raise ValueError(f"turn {number}: an answer option is outside the {len(answers)} answers of the file")
        if gt is not None and not 0 <= gt < len(options or ()):
            raise ValueError(f"turn {number}: gt_index {gt} is outside its {len(options or ())} answer options")
        answer = round_.get("answer")
        yield Turn(
            _text(questions, round_["question"], number),
            None if answer is None else _text(answers, answer, number),
            None if options is None else tuple(options),
            gt,
        )


def _inline(raw: dict[str, Any]) -> Iterator[Turn]:
    for r in raw["dialog"]:
        yield Turn(str(r["question"]), None if r.get("answer") is None else str(r["answer"]))


def _about(raw: dict[str, Any], split: str) -> tuple[int, Wanted, str]:
    image = raw["image_id"]
    if not isinstance(image, int) or image < 0:
        raise ValueError(f"image_id {image!r} is no number")
    return image, wanted(split, image, raw.get("file")), str(raw["caption"])


def _check_turns(turns: tuple[Turn, ...]) -> None:
    if not 1 <= len(turns) <= 10:
        raise ValueError(f"{len(turns)} turns; VisDial has 1 to 10")


def _text(pool: list[str], index: int, turn: int) -> str:
    if not 0 <= index < len(pool):
        raise ValueError(f"turn {turn}: index {index} is outside the {len(pool)} texts of the file")
    return pool[index]


def _oddities(dialogue: Dialogue, answers: list[str]) -> Iterator[str]:
    """What is inconsistent but can be worked with; counted, so that nobody has to find out later."""
    if len(dialogue.turns) != 10:
        yield "dialogues of fewer than 10 turns"
    for turn in dialogue.turns:
        if turn.candidates is None:
            if turn.answer is not None:
                yield "turns without candidates"
            continue
        if len(turn.candidates) != 100:
            yield "turns without 100 candidates"
        if len({answers[c] for c in turn.candidates}) != len(turn.candidates):
            yield "turns with a candidate twice"
        if (
            turn.gt_index is not None
            and turn.answer is not None
            and (answers[turn.candidates[turn.gt_index]] != turn.answer)
        ):
            yield "turns whose gt_index is not the answer"
