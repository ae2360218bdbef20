"""VisDial annotations through the real command: real files whole, bad ones with an error that names them."""

import json
import shutil

import pytest

from storage.tables import SAMPLES
from tests.stage_command import run_stage


def annotations(dialogues: int = 2, split: str = "val", **changes) -> dict:
    """A small file in VisDial's official schema; `changes` replace fields of the first turn of dialogue 0."""
    answers = [f"answer {i}" for i in range(120)]
    dialogs = [
        {
            "image_id": 10 + d,
            "caption": f"picture {d}",
            "dialog": [
                {"question": d * 10 + t, "answer": t, "answer_options": list(range(t, t + 100)), "gt_index": 0}
                for t in range(10)
            ],
        }
        for d in range(dialogues)
    ]
    dialogs[0]["dialog"][0] |= changes
    return {
        "version": "1.0",
        "split": f"{split}2018",
        "data": {"questions": [f"question {i}" for i in range(10 * dialogues)], "answers": answers, "dialogs": dialogs},
    }


@pytest.fixture
def place(tmp_path):
    """Annotations and two images; returns a function that writes a file and gives the stage's config."""
    images = tmp_path / "images" / "VisualDialog_val2018"
    images.mkdir(parents=True)
    for number in (10, 11):
        (images / f"VisualDialog_val2018_{number:012d}.jpg").write_bytes(b"picture %d" % number)

    def config(data, **more):
        file = tmp_path / "val.json"
        file.write_text(data if isinstance(data, str) else json.dumps(data))
        return {"annotations": {"val": str(file)}, "images": str(tmp_path / "images"), **more}

    return config


def test_samples_have_everything_a_model_is_asked_with(place, tmp_path):
    artifact = run_stage("ingest", place(annotations()), tmp_path / "store").artifact(tmp_path / "store")
    table = artifact.read_table("samples.parquet")
    assert table.schema.equals(SAMPLES) and len(table) == 20
    row = table.slice(12, 1).to_pylist()[0]
    assert row["sample"] == "val/11/2" and row["question"] == "question 12" and row["answer"] == "answer 2"
    assert row["history"] == [
        {"question": "question 10", "answer": "answer 0"},
        {"question": "question 11", "answer": "answer 1"},
    ]
    assert row["candidates"][row["gt_index"]] == row["answer"] and len(row["candidates"]) == 100
    assert row["media_path"] == "VisualDialog_val2018/VisualDialog_val2018_000000000011.jpg"
    assert artifact.manifest["counts"]["done"] == 2


def test_a_second_run_is_the_same_artifact_until_a_byte_of_an_image_changes(run_ingest, place, tmp_path):
    store, config = tmp_path / "store", place(annotations())
    first = run_ingest(config, store)
    again = run_ingest(config, store)
    assert again.of("done")[0]["reused"] and again.of("done")[0]["key"] == first.of("done")[0]["key"]
    images = tmp_path / "images" / "VisualDialog_val2018"
    (images / "unrelated.jpg").write_bytes(b"not named by any dialogue")
    assert run_ingest(config, store).of("done")[0]["reused"]
    (images / "VisualDialog_val2018_000000000010.jpg").write_bytes(b"another picture")
    assert not run_ingest(config, store).of("done")[0]["reused"]


def test_missing_images_fail_and_are_listed_unless_allowed(run_ingest, place, tmp_path):
    config = place(annotations(dialogues=3))
    failed = run_ingest(config, tmp_path / "store")
    assert failed.code == 65 and "VisualDialog_val2018_000000000012.jpg" in failed.message
    artifact = run_ingest(config | {"allow_missing": True}, tmp_path / "store").artifact(tmp_path / "store")
    assert artifact.read_json("checks.json")["missing_media"] == ["VisualDialog_val2018_000000000012.jpg"]
    assert artifact.manifest["counts"]["skipped"] == 1
    assert artifact.read_table("samples.parquet")["media"].null_count == 10


@pytest.mark.parametrize(
    "data, said",
    [
        ("{not json", "is not JSON"),
        ({"data": {}}, "no data.dialogs"),
        (annotations(split="test"), "the config gives it as 'val'"),
        (annotations(question=99), "val/10"),
        (annotations(gt_index=100), "gt_index 100 is outside"),
        (annotations(answer_options=[500]), "answer option is outside"),
    ],
)
def test_bad_annotations_are_refused_with_the_file_and_the_place(run_ingest, place, tmp_path, data, said):
    failed = run_ingest(place(data), tmp_path / "store")
    assert failed.code == 65 and said in failed.message and "val.json" in failed.message


def test_what_is_odd_is_counted_and_kept(run_ingest, place, tmp_path):
    data = annotations(answer=50)
    data["data"]["dialogs"].append(data["data"]["dialogs"][1])
    artifact = run_ingest(place(data), tmp_path / "store").artifact(tmp_path / "store")
    assert artifact.read_json("checks.json")["counts"] == {
        "dialogues repeated word for word": 1,
        "turns whose gt_index is not the answer": 1,
    }


def test_a_link_out_of_the_image_root_is_refused(run_ingest, place, tmp_path):
    config = place(annotations())
    (tmp_path / "images" / "secret.jpg").symlink_to("/etc/passwd")
    failed = run_ingest(config, tmp_path / "store")
    assert failed.code == 65 and "outside the image root" in failed.message


def test_only_makes_an_artifact_of_its_own(run_ingest, place, tmp_path):
    whole = run_ingest(place(annotations()), tmp_path / "store").artifact(tmp_path / "store")
    part = run_ingest(place(annotations()), tmp_path / "store", only=["val/11"]).artifact(tmp_path / "store")
    assert part.key != whole.key and set(part.read_table("samples.parquet")["dialogue"].to_pylist()) == {"val/11"}
    nothing = run_ingest(place(annotations()), tmp_path / "store", only=["val/99"])
    assert nothing.code == 65 and "val/99" in nothing.message


@pytest.mark.parametrize(
    "name, dialogues", [("visdial_1.0_val_50dialogs.json", 50), ("visdial_1.0_val_97dialogs.json", 97)]
)
def test_real_visdial_goes_through_whole(run_ingest, shared, tmp_path, name, dialogues):
    dense = shared("data/visdial/visdial_1.0_val_97dialogs_dense_annotations.json")
    config = {
        "annotations": {"val": str(shared("data/visdial") / name)},
        "images": str(tmp_path),
        "allow_missing": True,
    } | ({"dense": {"val": str(dense)}} if dialogues == 97 else {})
    artifact = run_ingest(config, tmp_path / "store").artifact(tmp_path / "store")
    table = artifact.read_table("samples.parquet")
    assert len(table) == dialogues * 10 and table["candidates"].null_count == 0
    for row in table.to_pylist():
        assert len(row["candidates"]) == 100 and row["candidates"][row["gt_index"]] == row["answer"]
    if dialogues == 97:
        dense_rows = [row for row in table.to_pylist() if row["relevance"]]
        assert len(dense_rows) == 97 and all(len(row["relevance"]) == 100 for row in dense_rows)


def test_real_dialogues_with_their_images(run_ingest, shared, tmp_path):
    images = shutil.copytree(shared("data/visdial/images"), tmp_path / "images")
    config = {"annotations": {"val": str(shared("data/visdial/visdial_with_images.json"))}, "images": str(images)}
    artifact = run_ingest(config, tmp_path / "store").artifact(tmp_path / "store")
    table = artifact.read_table("samples.parquet")
    assert len(table) == 60 and table["media"].null_count == 0 and len(set(table["media"].to_pylist())) == 6
    assert table["candidates"].null_count == 60


def test_a_wrong_request_says_what_is_wrong(run_ingest, tmp_path):
    wrong = run_ingest({"annotatoins": {}}, tmp_path / "store")
    assert wrong.code == 78 and "annotatoins" in wrong.message and "annotations: Field" in wrong.message
    other = run_ingest({"annotations": {"dev": "x"}, "images": "y"}, tmp_path / "store")
    assert other.code == 78 and "allowed: train, val, test" in other.message
