"""Video sets and own questions through the real command: files found, keys, what is refused and how."""

import json
import os
import re
import shutil

import pytest
from pydantic import ValidationError

from stages.errors import BadInput
from stages.ingest.config import IngestConfig
from stages.ingest.formats import FORMATS
from stages.ingest.media import MediaRoot, expected
from stages.ingest.records import Wanted
from storage.tables import SAMPLES


@pytest.fixture
def videos(tmp_path):
    """A media root; `videos("a/b.mp4", ...)` puts small files there, each with bytes of its own."""
    root = tmp_path / "videos"
    root.mkdir()

    def put(*names: str):
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(name.encode())
        return root

    return put


@pytest.fixture
def ingest(run_ingest, videos, tmp_path):
    """Runs ingest on a file with this content."""

    def run(data, name: str = "questions", split: str = "test", **more):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(data))
        own = {"format": name, "annotations": {split: str(file)}, "videos": str(videos())}
        only = more.pop("only", [])
        return run_ingest(own | more, tmp_path / "store", only=only)

    return run


def find(root, *names: str, kind: str = "video") -> str | None:
    return MediaRoot(root, kind).find(Wanted(kind, names))


@pytest.mark.parametrize(
    "lies, asked",
    [
        ("video6513.mp4", "video6513"),
        ("some/folder/-wX6_qCCnPc.MKV", "-wX6_qCCnPc"),
        ("P03/cam01/P03_cereals.avi", "P03-cam01-P03_cereals"),
        ("release/P27/stereo/P27_milk_ch0.avi", "P27-stereo-P27_milk_ch0"),
        ("P03-cam01-P03_cereals.webm", "P03-cam01-P03_cereals"),
        ("a.b_1_2.avi", "a.b_1_2"),
        ("own/clip.mp4", "own/clip.mp4"),
    ],
)
def test_a_video_is_found_by_its_id(videos, lies, asked):
    root = videos("P04/cam01/P04_cereals.avi", "other.mp4", "notes.txt", "P27/stereo/P27_milk_ch1.avi", lies)
    assert find(root, asked) == lies


def test_names_are_tried_in_turn_and_one_of_several_files_is_always_the_same(videos):
    root = videos("b/v_x.mp4", "a/x.mp4", "c/y.webm", "d/y.mkv", "e/y.mkv")
    listed = MediaRoot(root, "video")
    assert listed.find(Wanted("video", ("v_x", "x"))) == "b/v_x.mp4"
    assert listed.find(Wanted("video", ("v_y", "y"))) == "d/y.mkv"
    assert listed.has_several(Wanted("video", ("v_y", "y"))) and not listed.has_several(Wanted("video", ("x",)))
    assert find(root, "../videos/a/x.mp4") is None and find(root, "x.txt") is None
    assert expected(Wanted("video", ("x",))) == "x.mp4" and expected(Wanted("video", ("own/x.MKV",))) == "own/x.MKV"


def test_links_stay_below_the_root_and_lead_in_no_circle(videos, tmp_path):
    root = videos("a/x.mp4", "b/y.mp4")
    for link, target in (("a/to_b", "b"), ("b/to_a", "a"), ("whole", ".")):
        os.symlink(root / target, root / link)
    assert find(root, "x") == "a/x.mp4"
    outside = tmp_path / "secret.mp4"
    outside.write_bytes(b"secret")
    (root / "z.mp4").symlink_to(outside)
    with pytest.raises(BadInput, match="outside the video root"):
        MediaRoot(root, "video")


# Of the real files: which, under which split, with which further settings; samples, records left out, videos.
REAL = {
    "lvu": ("lvu/val.json", "val", {"task": "scene"}, 269, 0, 108),
    "breakfast": ("breakfast/train.json", "train", {}, 1354, 3, 1354),
    "msrvtt_qa": ("msrvtt/qa_val.json", "val", {}, 12278, 0, 497),
    "msvd_qa": ("msvd/qa_val.json", "val", {}, 6415, 0, 245),
    "activitynet_qa": ("activitynet/qa_test.json", "test", {}, 7960, 0, 796),
    "msrvtt_cap": ("msrvtt/cap_val.json", "val", {}, 9940, 0, 497),
    "msvd_cap": ("msvd/cap_val.json", "val", {}, 4290, 0, 100),
    "youcook2_cap": ("youcook2/cap_val.json", "val", {}, 3184, 0, 414),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_set_goes_through_whole(run_ingest, shared, videos, tmp_path, name):
    file, split, more, samples, left_out, number = REAL[name]
    here = {"breakfast": "P03/cam01/P03_cereals.avi", "msvd_qa": "bQJQGoJF7_k_162_169.avi"}.get(name, "none.mp4")
    config = {"format": name, "annotations": {split: str(shared(f"data/annotations/{file}"))}, "allow_missing": True}
    done = run_ingest(config | {"videos": str(videos(here))} | more, tmp_path / "store")
    artifact = done.artifact(tmp_path / "store")
    table, checks = artifact.read_table("samples.parquet"), artifact.read_json("checks.json")
    assert table.schema.equals(SAMPLES) and len(table) == samples == checks["samples"]
    assert len(set(table["sample"].to_pylist())) == samples and set(table["media_kind"].to_pylist()) == {"video"}
    there = 0 if here == "none.mp4" else 1
    assert len(checks["missing_media"]) == number - there == checks["counts"]["missing videos"]
    assert checks["counts"].get("records left out, as by MA-LMM", 0) == left_out
    assert len(artifact.read_json("frame_lengths.json")) == number
    paths = {row["media_path"] for row in table.to_pylist() if row["media"]}
    assert paths == ({here} if there else set())
    assert artifact.exists("classes.json") == (name in ("lvu", "breakfast"))
    if name == "breakfast":
        ledger = {row["id"]: row for row in artifact.read_table("ledger.parquet").to_pylist()}
        assert ledger["train/P28-cam01-P28_cereals"]["status"] == "skipped"
        assert "leaves this video out" in ledger["train/P28-cam01-P28_cereals"]["message"]
        assert ledger["train/P03-cam01-P03_cereals"]["status"] == "done"
        assert artifact.read_json("classes.json")[:3] == ["cereal", "coffee", "fried egg"]
        assert artifact.read_json("frame_lengths.json")["P03/cam01/P03_cereals.avi"] == 558


def test_ten_real_questions_on_a_real_clip(run_ingest, shared, tmp_path):
    root = tmp_path / "videos" / "activitynet"
    root.mkdir(parents=True)
    shutil.copy(shared("data/video_qa/v_GGSY1Qvo990.mp4"), root)
    config = {
        "format": "activitynet_qa",
        "annotations": {"test": str(shared("data/video_qa/v_GGSY1Qvo990_activitynet_qa.json"))},
        "videos": str(root.parent),
    }
    artifact = run_ingest(config, tmp_path / "store").artifact(tmp_path / "store")
    rows = artifact.read_table("samples.parquet").to_pylist()
    assert len(rows) == 10 and {row["media_path"] for row in rows} == {"activitynet/v_GGSY1Qvo990.mp4"}
    assert rows[1]["answer"] == "black" and rows[1]["category"] == "color" and rows[1]["task"] == "question"
    assert artifact.manifest["counts"]["done"] == 10 and not artifact.exists("frame_lengths.json")


def test_clips_of_lvu_share_one_video_and_one_row_of_the_ledger(ingest, videos, tmp_path):
    videos("films/abc.mp4", "films/def.mp4")
    films = {
        "abc": {"subset": "val", "duration": 125, "num_frames": 1500, "scene": "hotel", "genre": "comedy"},
        "def": {"subset": "val", "duration": 50, "num_frames": 510, "genre": "romance"},
    }
    artifact = ingest(films, "lvu", "val", task="scene").artifact(tmp_path / "store")
    rows = artifact.read_table("samples.parquet").to_pylist()
    assert [(r["sample"], r["start"], r["end"]) for r in rows] == [("val/abc_0", 0, 99), ("val/abc_20", 20, 119)]
    assert {(r["dialogue"], r["answer"], r["task"]) for r in rows} == {("val/abc", "hotel", "classification")}
    assert artifact.manifest["counts"]["done"] == 1 and artifact.read_json("classes.json") == ["hotel"]
    shorter = ingest(films, "lvu", "val", task="scene", history=60, stride=30).artifact(tmp_path / "store")
    assert [r["end"] for r in shorter.read_table("samples.parquet").to_pylist()] == [59, 89, 119]
    (row,) = (
        ingest(films, "lvu", "val", task="genre", only=["val/def"])
        .artifact(tmp_path / "store")
        .read_table("samples.parquet")
        .to_pylist()
    )
    assert (row["sample"], row["start"], row["end"]) == ("val/def_0", 0, 50)
    assert "no film has a year" in ingest(films, "lvu", "val", task="year").message


def test_own_questions_about_videos_and_images(ingest, videos, tmp_path):
    videos("cats/one.mp4", "two.mkv")
    images = tmp_path / "images"
    images.mkdir()
    (images / "three.png").write_bytes(b"picture")
    records = [
        {"video": "./cats/one.mp4", "question": "What is it?", "answer": "A Cat.", "start": 1.5, "end": 4},
        {"video": "two.mkv", "task": "caption", "answer": "a cat sleeps"},
        {"image": "three.png", "question": "How many?", "caption": "cats", "candidates": ["1", "2"], "answer": "2"},
    ]  # fmt: skip
    artifact = ingest(records, images=str(images)).artifact(tmp_path / "store")
    one, two, three = artifact.read_table("samples.parquet").to_pylist()
    assert (one["media_path"], one["question"], one["answer"]) == ("cats/one.mp4", "What is it?", "A Cat.")
    assert (one["start"], one["end"], one["task"], one["sample"]) == (1.5, 4.0, "question", "test/0")
    assert (two["task"], two["question"], two["start"]) == ("caption", "what does the video describe?", None)
    assert (three["media_kind"], three["gt_index"], three["caption"]) == ("image", 1, "cats")
    assert all(row["media"] for row in (one, two, three))
    alone = ingest(records)
    assert alone.code == 65 and "about images" in alone.message


@pytest.mark.parametrize(
    "record, said",
    [
        ({"question": "what?"}, "give one of video and image"),
        ({"video": "../a.mp4", "question": "what?"}, "must be a path below the folder videos:"),
        ({"video": "a.mp4"}, "question must be a text; there is none"),
        ({"video": "a.mp4", "question": "what?", "stop": 3}, "no such field: stop"),
        ({"video": "a.mp4", "question": "what?", "start": 5, "end": 5}, "start 5 must be before end 5"),
        ({"video": "a.mp4", "question": "what?", "start": -1}, "start must be a number from 0 on; it is -1"),
        ({"video": "a.mp4", "question": "what?", "task": "guess"}, "task 'guess' must be one of question, caption"),
        ({"video": "a.mp4", "question": "what?", "answer": "x", "candidates": ["y", "z"]}, "none of the candidates"),
        ("what?", "no mapping of fields"),
    ],
)
def test_an_own_record_that_cannot_be_read_says_why(record, said):
    found = FORMATS["questions"].read([{"video": "a.mp4", "question": "what?"}, record], "test", "own.json")
    assert [item.id for item in found.items] == ["test/0"] and said in found.broken["test/1"]


def test_records_that_cannot_be_read_are_listed_and_fail_the_stage(ingest, videos):
    videos("a.mp4")
    failed = ingest([{"video": "a.mp4", "question": "what?"}, {"video": "a.mp4"}, {"question": "what?"}])
    assert failed.code == 65 and "questions.json: 2 records cannot be read (test/1: question must" in failed.message
    assert [event["id"] for event in failed.of("item_failed")] == ["test/1", "test/2"]


@pytest.mark.parametrize(
    "name, record, said",
    [
        ("breakfast", {"frame_length": 3}, "class_name must be a text"),
        ("breakfast", {"class_name": "tea", "frame_length": "3"}, "frame_length must be a whole number"),
        ("msvd_qa", {"video": "../x", "question": "q", "answer": "a", "answer_type": "who"}, "is no name of a video"),
        ("msvd_qa", {"video": "x", "question": "q", "answer": "a", "answer_type": " "}, "answer_type must be a text"),
        ("activitynet_qa", {"video": "x", "question": "q", "answer": "a", "answer_type": 9}, "none of Activity"),
        ("msrvtt_cap", {"video": "x"}, "caption must be a text"),
        ("youcook2_cap", {"video": "x", "start_time": 9, "end_time": 12, "duration": 8, "caption": "c"}, "ends at 8 s"),
    ],
)  # fmt: skip
def test_a_bad_record_of_a_set_says_why(name, record, said):
    assert said in FORMATS[name].read({"k": record}, "test", "file.json").broken["test/k"]


@pytest.mark.parametrize(
    "name, data, said",
    [
        ("msvd_cap", [{"video": "a"}], "file.json is no mapping of ids to records"),
        ("questions", {"video": "a"}, "file.json is no list of records"),
        ("questions", [], "file.json is no list of records"),
    ],
)
def test_a_file_of_another_format_is_refused(name, data, said):
    with pytest.raises(BadInput, match=said):
        FORMATS[name].read(data, "test", "file.json")


def test_a_film_of_another_subset_and_a_repeated_id_are_broken():
    film = {"subset": "train", "duration": 9, "num_frames": 90, "scene": "hotel"}
    found = FORMATS["lvu"].read({"f": film}, "val", "val.json", task="scene", history=100, stride=20)
    assert "its subset is 'train'" in found.broken["val/f"]
    question = {"video_name": "v", "question": "q", "question_id": "v_1", "answer": "a", "type": 0}
    found = FORMATS["activitynet_qa"].read([question, question], "test", "list.json")
    assert len(found.items) == 1 and "another record has the same id" in found.broken["test/v_1"]


def test_a_file_of_no_known_suffix_is_named(ingest, videos):
    videos("a/cat.jpg", "b/film.3gp", "notes")
    failed = ingest([{"video": name, "question": "what?"} for name in ("cat.jpg", "b/film.3gp", "no.mp4")])
    assert failed.code == 65 and ": b/film.3gp.mp4, cat.jpg, no.mp4; " in failed.message
    assert "a/cat.jpg, b/film.3gp there is passed over, as videos end in .mp4, .mkv" in failed.message
    failed = ingest({"0": {"video": "film", "caption": "a dog"}, "1": {"video": "x", "caption": "a cat"}}, "msvd_cap")
    assert "film.mp4, x.mp4; b/film.3gp there is passed over" in failed.message


def test_missing_videos_are_an_error_that_lists_them_unless_allowed(ingest, tmp_path):
    records = {str(at): {"video": f"video{at}", "caption": "a dog"} for at in range(7)}
    failed = ingest(records, "msrvtt_cap")
    assert failed.code == 65 and "7 videos are not below" in failed.message and "video0.mp4" in failed.message
    artifact = ingest(records, "msrvtt_cap", allow_missing=True).artifact(tmp_path / "store")
    assert artifact.manifest["counts"]["skipped"] == 7
    assert artifact.read_table("samples.parquet")["media"].null_count == 7


def test_the_key_changes_with_the_bytes_of_a_named_video_alone(ingest, videos):
    root = videos("a.mp4", "unrelated.mp4")
    records = [{"video": "a.mp4", "question": "what?"}]
    key = ingest(records).of("done")[0]["key"]
    (root / "unrelated.mp4").write_bytes(b"other bytes")
    again = ingest(records).of("done")[0]
    assert again["key"] == key and again["reused"]
    (root / "a.mp4").write_bytes(b"other bytes")
    assert ingest(records).of("done")[0]["key"] != key


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"format": "msvd_qa", "task": "scene"}, "task is for lvu; msvd_qa has none"),
        ({"format": "msvd_qa", "history": 9}, "history is for lvu"),
        ({"format": "msvd_qa", "dense": {"test": "x"}}, "dense is for visdial; msvd_qa has no dense annotations"),
        ({"format": "msvd_qa", "images": "x"}, "images: msvd_qa is about videos; leave images out"),
        ({"format": "msvd_qa", "videos": None}, "videos must be given: a folder"),
        ({"format": "questions", "videos": None}, "images or videos must be given"),
        ({"format": "visdial"}, "videos: visdial is about images"),
        ({"format": "lvu"}, "task must be given with format: lvu"),
        ({"format": "lvu", "task": "plot"}, "'director', 'genre'"),
        ({"format": "lvu", "task": "scene", "stride": 0}, "stride\n  Input should be greater than or equal to 1"),
        ({"format": "mnist"}, "'visdial', 'lvu'"),
    ],
)
def test_fields_of_another_format_are_refused(wrong, said):
    with pytest.raises(ValidationError, match=re.escape(said)):
        IngestConfig.model_validate({"annotations": {"test": "x"}, "videos": "y"} | wrong)


def test_lvu_is_cut_as_in_the_paper_unless_told_otherwise():
    given = {"format": "lvu", "task": "scene", "annotations": {"test": "x"}, "videos": "y"}
    assert IngestConfig(**given).settings == {"task": "scene", "history": 100, "stride": 20}
    assert IngestConfig(**given).key_fields() == IngestConfig(**given, history=100, stride=20).key_fields()
    assert IngestConfig(**given, stride=5).settings["stride"] == 5
