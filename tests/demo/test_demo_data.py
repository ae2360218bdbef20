"""The demo's data: VisDial v1.0's schema, honest splits, the same bytes every time, the right photographs."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from demo.build import CANDIDATES, TURNS, BadDialogue, Dialogues, build, read_dialogues
from demo.files import BadPackage
from demo.prepare import prepare, read_photograph

PACKAGES = Path(__file__).resolve().parents[2] / ".envs" / "demo"


@pytest.fixture(scope="module")
def dialogues() -> Dialogues:
    return read_dialogues()


@pytest.fixture(scope="module")
def built(dialogues) -> dict:
    return {name: json.loads(content) for name, content in build(dialogues).items()}


@pytest.fixture
def packages() -> Path:
    if not (PACKAGES / "skimage").is_dir():
        pytest.skip(f"no packages at {PACKAGES}; install them as the head of envs/demo/requirements.txt says")
    return PACKAGES


def answers_of(file: dict) -> list[str]:
    return [file["data"]["answers"][turn["answer"]] for dialog in file["data"]["dialogs"] for turn in dialog["dialog"]]


@pytest.mark.parametrize("split", ["train", "val"])
def test_official_schema(built, shared, split):
    official = json.loads(shared("data/visdial/visdial_1.0_val_50dialogs.json").read_bytes())
    file = built[f"dialogues_{split}.json"]
    for mine, theirs in [
        (file, official),
        (file["data"], official["data"]),
        (file["data"]["dialogs"][0], official["data"]["dialogs"][0]),
        (file["data"]["dialogs"][0]["dialog"][0], official["data"]["dialogs"][0]["dialog"][0]),
    ]:
        assert {k: type(v) for k, v in mine.items()} == {k: type(v) for k, v in theirs.items()}
    assert file["version"] == official["version"]
    assert built["dialogues_val.json"]["split"] == official["split"]


@pytest.mark.parametrize("split", ["train", "val"])
def test_turns_and_candidates_are_those_written(built, dialogues, split):
    data = built[f"dialogues_{split}.json"]["data"]
    for texts in (data["questions"], data["answers"]):
        assert len(set(texts)) == len(texts)
    for photograph, dialog in zip(dialogues.of(split), data["dialogs"], strict=True):
        assert (dialog["image_id"], dialog["caption"]) == (photograph.id, photograph.caption)
        assert len(dialog["dialog"]) == TURNS
        for (question, answer), turn in zip(photograph.turns, dialog["dialog"], strict=True):
            assert data["questions"][turn["question"]] == question and "?" not in question
            assert data["answers"][turn["answer"]] == answer and 1 <= len(answer.split()) <= 8
            assert len(set(turn["answer_options"])) == CANDIDATES
            assert turn["answer_options"][turn["gt_index"]] == turn["answer"]


def test_the_right_answer_stands_at_every_place_equally_often(built):
    for split, count in (("train", 170), ("val", 60)):
        dialogs = built[f"dialogues_{split}.json"]["data"]["dialogs"]
        places = Counter(turn["gt_index"] for dialog in dialogs for turn in dialog["dialog"])
        assert places.total() == count and max(places.values()) <= -(-count // CANDIDATES)


def test_dense_relevance_fits_its_turn(built, dialogues):
    dense = built["dense_annotations_val.json"]
    data = built["dialogues_val.json"]["data"]
    turns = {(d["image_id"], i): turn for d in data["dialogs"] for i, turn in enumerate(d["dialog"], start=1)}
    assert [entry["image_id"] for entry in dense] == [photograph.id for photograph in dialogues.of("val")]
    for entry, photograph in zip(dense, dialogues.of("val"), strict=True):
        turn = turns[entry["image_id"], entry["round_id"]]
        assert len(entry["gt_relevance"]) == CANDIDATES
        assert set(entry["gt_relevance"]) <= {0.0, 0.2, 0.4, 0.6, 0.8, 1.0}
        assert entry["gt_relevance"][turn["gt_index"]] == 1.0
        given = {data["answers"][o]: r for o, r in zip(turn["answer_options"], entry["gt_relevance"], strict=True)}
        assert {answer: given[answer] for answer in photograph.relevance} == photograph.relevance


def test_splits_are_disjoint_and_large_enough(dialogues):
    train, val = dialogues.of("train"), dialogues.of("val")
    assert len(train) + len(val) >= 14 and len(val) >= 4
    for field in ("id", "file", "sha256", "image_name"):
        assert not {getattr(p, field) for p in train} & {getattr(p, field) for p in val}


def test_the_majority_answer_is_beatable_and_forms_recur(built, dialogues):
    for split in ("train", "val"):
        counts = Counter(answers_of(built[f"dialogues_{split}.json"]))
        assert counts.most_common(1)[0][1] / counts.total() < 0.45
        assert 0.8 < counts["yes"] / counts["no"] < 1.25
    forms = Counter(question for photograph in dialogues.of("train") for question, _ in photograph.turns)
    for form in [form for form, n in forms.items() if n >= 5]:
        answers = Counter(a for p in dialogues.of("train") for q, a in p.turns if q == form)
        assert answers.most_common(1)[0][1] / answers.total() <= 0.67, form  # blind to the image, it is not won


def test_the_same_bytes_every_time(dialogues):
    assert build(dialogues) == build(read_dialogues())
    digest = hashlib.sha256(b"".join(build(dialogues).values())).hexdigest()
    # On every machine, so that scores of the demo can be compared. Changes with dialogues.yaml only.
    assert digest == "493323551de0bbc024f981416af0e5e04eca708280fd67556a346c836c644a6c"


def test_prepare_copies_untouched_and_is_idempotent(tmp_path, packages, dialogues):
    data = prepare(packages, tmp_path)
    for photograph in dialogues.photographs:
        copied = (data.images / photograph.image_name).read_bytes()
        assert hashlib.sha256(copied).hexdigest() == photograph.sha256
    assert all(path.is_file() for path in (data.train, data.val, data.dense_val))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    (data.images / "COCO_train2014_000000000003.png").write_bytes(b"damaged")
    assert prepare(packages, tmp_path) == data
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in after if after[path] != before[path]} == {"COCO_train2014_000000000003.png"}
    mended = (data.images / "COCO_train2014_000000000003.png").read_bytes()
    assert hashlib.sha256(mended).hexdigest() == dialogues.photographs[2].sha256


def test_a_missing_or_other_photograph_is_named(tmp_path, dialogues):
    cat = next(p for p in dialogues.photographs if p.file.name == "chelsea.png")
    with pytest.raises(BadPackage, match=r"chelsea\.png.*scikit-image.*uv pip install --target"):
        read_photograph(cat, tmp_path)
    (tmp_path / cat.file).parent.mkdir(parents=True)
    (tmp_path / cat.file).write_bytes(b"another cat")
    with pytest.raises(BadPackage, match=r"chelsea\.png: SHA-256 is .*another file, 596aa1e7"):
        read_photograph(cat, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("      - is it flying? no\n", "", r"image 9 .*9 turns"),
        ("- is it flying? no", "- is it flying, no", r"image 9 .*question\? answer"),
        ("- is it flying? no", "- Is it flying? no", r"image 9 .*lower case"),
        (
            "file: skimage/data/gravel.png",
            "file: skimage/data/grass.png",
            r"file skimage/data/grass.png stands at",
        ),
        ("file: skimage/data/gravel.png", "file: ../gravel.png", r"image 18 .*inside the packages' folder"),
    ],
)
def test_a_broken_source_is_refused(tmp_path, old, new, message):
    text = (Path(__file__).resolve().parents[2] / "demo" / "dialogues.yaml").read_text(encoding="utf-8")
    assert text.count(old) == 1
    (tmp_path / "dialogues.yaml").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(BadDialogue, match=message):
        read_dialogues(tmp_path / "dialogues.yaml")


def test_too_few_answers_are_refused(dialogues):
    with pytest.raises(BadDialogue, match="other_answers"):
        build(replace(dialogues, photographs=dialogues.photographs[:1], other_answers=()))
