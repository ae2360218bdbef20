"""The official annotation files, whole: every record, the references that MA-LMM is scored against, its clips."""

import json
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.errors import BadInput
from stages.ingest import text
from stages.ingest.classification import BREAKFAST_LEFT_OUT, LVU_TASKS, clips
from stages.ingest.formats import FORMATS
from stages.ingest.records import parse

# (films, clips of 100 s every 20 s, classes) of every LVU task in train.json (6012 films) and val.json (1400).
LVU = {
    "director": ((680, 1731, 8), (163, 393, 7)),
    "genre": ((2810, 6432, 4), (569, 1428, 4)),
    "relationship": ((138, 298, 4), (49, 103, 4)),
    "scene": ((515, 1202, 6), (108, 269, 6)),
    "way_speaking": ((876, 2135, 5), (196, 470, 5)),
    "writer": ((748, 2126, 7), (174, 484, 7)),
    "year": ((726, 1688, 9), (163, 454, 9)),
}
MSRVTT = {"what": 8337, "who": 3439, "how": 344, "when": 106, "where": 52}
MSVD = {"what": 3995, "who": 2168, "how": 185, "when": 51, "where": 16}
ACTIVITYNET = {
    "yes/no": 2084, "other": 1491, "motion": 796, "spatial": 796, "temporal": 796, "color": 694, "number": 602,
    "location": 385, "object": 316,
}  # fmt: skip


@pytest.fixture(scope="module")
def official(shared):
    """`official(format, split, "lvu/val.json", ...)`: the items of a real file, all of which can be read."""

    def read(name: str, split: str, file: str, **settings):
        path = shared(f"data/annotations/{file}")
        found = FORMATS[name].read(parse(path.read_bytes(), path.name), split, path.name, **settings)
        assert found.broken == {}
        return found

    return read


def samples(found) -> list:
    return [sample for item in found.items for sample in item.samples]


@pytest.mark.parametrize("task", LVU_TASKS)
def test_lvu_is_cut_as_the_official_loader_cuts_it(official, task):
    for split, total, expected in zip(("train", "val"), (6012, 1400), LVU[task], strict=True):
        found = official("lvu", split, f"lvu/{split}.json", task=task, history=100, stride=20)
        cut = samples(found)
        assert (len(found.items), len(cut), len({s.answer for s in cut})) == expected
        assert found.oddities[f"films without a {task}"] == total - len(found.items)
        assert {s.question for s in cut} == {f"what is the {task} of the movie?"}
        assert all(s.end - s.start <= 99 and s.start % 20 == 0 for s in cut)
        first = cut[0]
        assert first.id == f"{found.items[0].id}_0" and first.start == 0


@given(st.integers(1, 400), st.integers(1, 120), st.integers(1, 50))
def test_clips_cover_a_film_while_a_whole_one_fits(duration, history, stride):
    cut = clips(duration, history, stride)
    starts = [start for start, _ in cut]
    assert starts == [k * stride for k in range(len(cut))]
    assert len(starts) == 1 or starts[-1] + history <= duration
    assert starts[-1] + stride + history > duration
    assert all(end == min(start + history - 1, duration) for start, end in cut)


def test_breakfast_leaves_out_three_videos_and_says_so(official):
    found = official("breakfast", "train", "breakfast/train.json")
    assert len(found.items) == 1354 and set(found.skipped) == {f"train/{name}" for name in BREAKFAST_LEFT_OUT}
    assert Counter(s.answer for s in samples(found))["fried egg"] == 137
    assert {s.question for s in samples(found)} == {"what type of breakfast is shown in the video?"}
    assert found.items[0].frame_length == 558


def test_coin_takes_the_records_of_its_subset():
    data = {
        "a": {"subset": "train", "target": "replace the toner", "num_frames_actual": 900, "duration": 90},
        "b": {"subset": "val", "target": "make tea", "num_frames_actual": 10, "duration": 1},
        "c": {"subset": "train", "target": "make tea", "duration": 90},
        "AfiVmAjfTNs": {"subset": "train", "target": "make tea", "num_frames_actual": 7, "duration": 90},
    }
    found = FORMATS["coin"].read(data, "train", "COIN.json")
    assert [(s.id, s.answer) for s in samples(found)] == [("train/a", "replace the toner")]
    assert set(found.skipped) == {"train/c", "train/AfiVmAjfTNs"} and "num_frames_actual" in found.skipped["train/c"]
    with pytest.raises(BadInput, match="no record is of subset 'test'; its subsets are train, val"):
        FORMATS["coin"].read(data, "test", "COIN.json")


@pytest.mark.parametrize(
    "name, file, records, videos, kinds",
    [
        ("msrvtt_qa", "msrvtt/qa_val.json", 12278, 497, MSRVTT),
        ("msvd_qa", "msvd/qa_val.json", 6415, 245, MSVD),
        ("activitynet_qa", "activitynet/qa_test.json", 7960, 796, ACTIVITYNET),
    ],
)
def test_questions_keep_their_answers_and_kinds(official, shared, name, file, records, videos, kinds):
    found = official(name, "test", file)
    raw = json.loads(shared(f"data/annotations/{file}").read_text())
    assert len(found.items) == records and len({item.wanted for item in found.items}) == videos
    assert Counter(sample.category for sample in samples(found)) == kinds
    by_id = {item.id.removeprefix("test/"): item for item in found.items}
    assert by_id.keys() == raw.keys()
    for key, record in raw.items():
        sample = by_id[key].samples[0]
        assert sample.answer == record["answer"]  # MA-LMM scores against the answer as it is annotated
        assert sample.question == text.question(record["question"])
        assert by_id[key].frame_length == record["frame_length"]


def test_a_training_answer_is_what_lavis_trains_on(official):
    scored, trained = (official("activitynet_qa", split, "activitynet/qa_test.json") for split in ("test", "train"))
    changed = [
        (a.answer, b.answer) for a, b in zip(samples(scored), samples(trained), strict=True) if a.answer != b.answer
    ]
    assert changed == [("9.75", "975")]


@pytest.mark.parametrize(
    "name, folder, captions, things",
    [("msrvtt_cap", "msrvtt", 9940, 497), ("msvd_cap", "msvd", 4290, 100), ("youcook2_cap", "youcook2", 3184, 3184)],
)
def test_references_are_those_of_the_official_ground_truth(official, shared, name, folder, captions, things):
    found = official(name, "val", f"{folder}/cap_val.json")
    truth = json.loads(shared(f"data/annotations/{folder}/coco_gt/cap_val.json").read_text())["annotations"]
    theirs, ours = defaultdict(Counter), defaultdict(Counter)
    for record in truth:
        theirs[record["image_id"]][record["caption"]] += 1
    for item in found.items:
        (sample,) = item.samples
        thing = item.wanted.names[0]
        if sample.start is not None:
            thing = f"{thing}_{int(sample.start):04d}_{int(sample.end):04d}"
        ours[thing][sample.answer] += 1
    assert len(found.items) == captions and len(ours) == things and ours == theirs
    assert {sample.question for sample in samples(found)} == {"what does the video describe?"}


def test_training_captions_are_cleaned_and_withheld_ones_are_null(official):
    cleaned = samples(official("youcook2_cap", "train", "youcook2/cap_val.json"))
    assert all(s.answer == text.caption(s.answer) for s in cleaned)
    record = {"video": "v", "start_time": 3, "end_time": 9, "duration": 8.5, "caption": "", "frame_length": 85}
    found = FORMATS["youcook2_cap"].read({"v_0003_0009": record}, "test", "cap_test.json")
    assert [(s.start, s.end, s.answer) for s in samples(found)] == [(3.0, 8.5, None)]
    assert found.oddities["records whose answer is not told"] == 1


def test_a_real_list_of_activitynet_is_read_too(shared):
    path = shared("data/video_qa/v_GGSY1Qvo990_activitynet_qa.json")
    found = FORMATS["activitynet_qa"].read(parse(path.read_bytes(), path.name), "test", path.name)
    assert len(found.items) == 10 and {item.wanted.names[0] for item in found.items} == {"v_GGSY1Qvo990"}
    assert found.items[0].id == "test/v_GGSY1Qvo990_1" and samples(found)[0].category == "motion"


@pytest.mark.parametrize(
    "given, captioned, asked",
    [
        ("What is he doing?", "what is he doing?", "what is he doing?"),
        ('  A "big" dog.  ', "a big dog", "  a big dog"),
        ("no273 (may be)  here", "no273 may be here", "no273 may be  here"),
        ("3:45 ~ #1!", "3 45 1", "345  1"),
        ("tab\t\tand\nline\n", "tab and\nline", "tab\t\tand\nline\n"),
        (" ".join(map(str, range(60))), " ".join(map(str, range(50))), " ".join(map(str, range(50)))),
    ],
)
def test_texts_are_cleaned_by_the_rules_of_lavis(given, captioned, asked):
    assert (text.caption(given), text.question(given)) == (captioned, asked)


@given(st.text(alphabet='aB .!"()*#:;~\t\n?é', max_size=300))
def test_cleaning_a_clean_text_changes_nothing(words):
    for clean in (text.caption, text.question):
        once = clean(words)
        assert clean(once) == once and len(once.split(" ")) <= 50 and not set(once) & set('.!"()*#:;~B')
