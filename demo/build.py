"""Dialogues as people read them (dialogues.yaml) to JSON as VisDial v1.0 ships it: the same bytes everywhere.

Schema: visualdialog.org/data, v1.0. A turn refers to its question and to its 100 candidate answers by index
into the file's own lists of distinct strings; ``gt_index`` is the place of the right answer among them.
"""

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

SOURCE = Path(__file__).with_name("dialogues.yaml")
TURNS = 10  # of a VisDial dialogue
CANDIDATES = 100  # of a VisDial turn
SEED = 1
SPLITS = {"train": "train", "val": "val2018"}  # ours -> the name VisDial v1.0 writes into the file
IMAGE_NAMES = {"train": "COCO_train2014_{:012d}", "val": "VisualDialog_val2018_{:012d}"}


class BadDialogue(ValueError):
    """dialogues.yaml breaks one of its own rules; the message names the image and the turn."""


@dataclass(frozen=True)
class Photograph:
    """One image and its dialogue; ``file`` is relative to the folder that the packages are installed in."""

    id: int
    split: str
    package: str
    file: PurePosixPath
    sha256: str
    licence: str
    caption: str
    turns: tuple[tuple[str, str], ...]  # (question, answer) x 10
    dense_turn: int | None  # from 1
    relevance: dict[str, float]  # answer -> relevance at dense_turn; unlisted is 0

    @property
    def image_name(self) -> str:
        """As VisDial's readers look for it: COCO 2014 names for train, VisualDialog_val2018 for val."""
        return IMAGE_NAMES[self.split].format(self.id) + self.file.suffix


@dataclass(frozen=True)
class Dialogues:
    """dialogues.yaml, checked."""

    photographs: tuple[Photograph, ...]
    popular_answers: tuple[str, ...]  # candidates of every turn
    other_answers: tuple[str, ...]

    def of(self, split: str) -> list[Photograph]:
        return [photograph for photograph in self.photographs if photograph.split == split]


def read_dialogues(path: Path = SOURCE) -> Dialogues:
    """Reads and checks the source. Raises BadDialogue."""
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    photographs = tuple(_photograph(entry) for entry in raw["images"])
    for field in ("id", "file", "sha256"):  # an image in both splits would make the held-out score a lie
        twice = [value for value, n in Counter(getattr(p, field) for p in photographs).items() if n > 1]
        if twice:
            raise BadDialogue(f"{path.name}: {field} {twice[0]} stands at two images; give every image once")
    return Dialogues(photographs, tuple(raw["popular_answers"]), tuple(raw["other_answers"]))


def _photograph(entry: dict) -> Photograph:
    where = f"image {entry.get('id')} ({entry.get('file')})"
    turns = tuple(_turn(line, where) for line in entry["dialog"])
    if len(turns) != TURNS:
        raise BadDialogue(f"{where}: {len(turns)} turns; a VisDial dialogue has {TURNS}")
    if entry["split"] not in SPLITS:
        raise BadDialogue(f"{where}: split {entry['split']!r}; use one of {', '.join(SPLITS)}")
    if not re.fullmatch("[0-9a-f]{64}", entry["sha256"]):
        raise BadDialogue(f"{where}: sha256 must be 64 hex digits")
    file = PurePosixPath(entry["file"])
    if file.is_absolute() or ".." in file.parts:
        raise BadDialogue(f"{where}: file must be a path inside the packages' folder")
    dense = entry.get("dense")
    if dense and (
        dense["turn"] not in range(1, TURNS + 1) or dense["relevance"].get(turns[dense["turn"] - 1][1]) != 1.0
    ):
        raise BadDialogue(f"{where}: dense needs a turn of 1-{TURNS} and relevance 1.0 for that turn's own answer")
    return Photograph(
        id=entry["id"],
        split=entry["split"],
        package=entry["package"],
        file=file,
        sha256=entry["sha256"],
        licence=entry["licence"],
        caption=entry["caption"],
        turns=turns,
        dense_turn=dense["turn"] if dense else None,
        relevance=dict(dense["relevance"]) if dense else {},
    )


def _turn(line: str, where: str) -> tuple[str, str]:
    parts = line.split("? ") if isinstance(line, str) else []
    if len(parts) != 2 or not all(part and part == part.strip().lower() for part in parts):
        raise BadDialogue(f"{where}: turn {line!r} must be `question? answer`, in lower case")
    return parts[0], parts[1]


def build(dialogues: Dialogues) -> dict[str, bytes]:
    """The JSON files by name: dialogues_train.json, dialogues_val.json, dense_annotations_val.json.

    Candidates of a turn, as VisDial draws them: the right answer, the popular answers, answers that the same
    question has elsewhere, and answers at random. The right one's place is uniform: over every 100 turns of a
    split, each place once. Raises BadDialogue when there are too few or too many answers to draw from.
    """
    asked: dict[str, set[str]] = defaultdict(set)
    for photograph in dialogues.photographs:
        for question, answer in photograph.turns:
            asked[question].add(answer)
    listed = {answer for photograph in dialogues.photographs for answer in photograph.relevance}
    pool = sorted({*dialogues.popular_answers, *dialogues.other_answers, *listed}.union(*asked.values()))
    if len(pool) < CANDIDATES:
        raise BadDialogue(f"{len(pool)} distinct answers for {CANDIDATES} candidates; add to other_answers")

    files: dict[str, object] = {}
    for split, official in SPLITS.items():
        photographs = dialogues.of(split)
        questions = sorted({question for photograph in photographs for question, _ in photograph.turns})
        question_index = {question: index for index, question in enumerate(questions)}
        answer_index = {answer: index for index, answer in enumerate(pool)}
        places = _places(random.Random(f"{SEED}/{split}"), len(photographs) * TURNS)
        dialogs, dense = [], []
        for photograph in photographs:
            turns = []
            for turn, (question, answer) in enumerate(photograph.turns, start=1):
                judged = photograph.relevance if turn == photograph.dense_turn else {}
                wanted = [*judged, *dialogues.popular_answers, *sorted(asked[question])]
                place = next(places)
                draw = random.Random(f"{SEED}/{photograph.id}/{turn}")
                candidates = _candidates(answer, wanted, pool, place, draw)
                turns.append(
                    {
                        "question": question_index[question],
                        "answer": answer_index[answer],
                        "answer_options": [answer_index[candidate] for candidate in candidates],
                        "gt_index": place,
                    }
                )
                if judged:
                    relevance = [judged.get(candidate, 0.0) for candidate in candidates]
                    dense.append({"image_id": photograph.id, "round_id": turn, "gt_relevance": relevance})
            dialogs.append({"image_id": photograph.id, "caption": photograph.caption, "dialog": turns})
        data = {"questions": questions, "answers": pool, "dialogs": dialogs}
        files[f"dialogues_{split}.json"] = {"version": "1.0", "split": official, "data": data}
        if dense:
            files[f"dense_annotations_{split}.json"] = dense
    return {name: (json.dumps(content, indent=1) + "\n").encode() for name, content in files.items()}


def _candidates(answer: str, wanted: list[str], pool: list[str], place: int, draw: random.Random) -> list[str]:
    """100 distinct answers, ``answer`` at ``place``, ``wanted`` among them; ``draw`` decides the others."""
    others = [candidate for candidate in dict.fromkeys(wanted) if candidate != answer]
    if len(others) >= CANDIDATES:
        raise BadDialogue(f"{len(others)} popular and plausible answers beside {answer!r}; room for {CANDIDATES - 1}")
    rest = [candidate for candidate in pool if candidate != answer and candidate not in others]
    others += draw.sample(rest, CANDIDATES - 1 - len(others))
    draw.shuffle(others)
    return [*others[:place], answer, *others[place:]]


def _places(draw: random.Random, count: int) -> Iterator[int]:
    while count > 0:
        order = list(range(CANDIDATES))
        draw.shuffle(order)
        yield from order[:count]
        count -= CANDIDATES
