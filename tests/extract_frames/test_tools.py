"""`probe` and `export`, as a person or another program runs them."""

import json
import shutil

import numpy as np
import pytest
import simplejpeg

from stages.extract_frames.export import names
from tests.extract_frames.conftest import Place, digest_of, frames_of
from tests.video.make import number, video
from video import plan


def test_probe_says_what_would_be_taken(shared):
    corpus = shared("data/video_corpus")
    vectors = {f["file"]: f for f in json.loads((corpus / "corpus.json").read_text())["files"]}
    asked = ["h264_2997.mp4", "rot270.mp4", "bad_trunc.mkv", "bad_midcorrupt.mp4", "bad_zero.mp4"]
    place = Place(corpus, corpus)
    done = place.tool("probe", "--json", *(corpus / name for name in asked))
    assert done.returncode == 65, done.stderr
    found = {line["file"].rsplit("/")[-1]: line for line in map(json.loads, done.stdout.splitlines())}
    assert list(found) == asked
    for name in asked[:3]:
        line, vector = found[name], vectors[name]
        assert (line["status"], line["error"]) == ("ok", None)
        assert line["frames"] == vector["frames_10fps"] == len(line["pts"])
        assert line["pts"][:12] == vector["first_pts"] and line["time_base"] == vector["time_base"]
        assert line["rotation"] == vector["rotation"] and line["codec"] == vector["codec"]
    assert found["h264_2997.mp4"]["duration"] == pytest.approx(5.005) and not found["h264_2997.mp4"]["warnings"]
    assert found["h264_2997.mp4"]["rate"] == pytest.approx(30000 / 1001)
    assert found["bad_trunc.mkv"]["warnings"]
    for name in asked[3:]:
        assert found[name]["status"] == "error" and name in found[name]["error"]


def test_probe_is_for_people_too(films):
    done = Place(films, films).tool("probe", films / "b.mp4")
    assert done.returncode == 0
    assert done.stdout == f"{films / 'b.mp4'}: 10 frames of 384x256; mpeg4, 25 a second, 1.000 s; no sound\n"


def export(place, key, to, *more):
    return place.tool("export", "--store", place.store, "--key", key, "--to", to, "--layout", "malmm", *more)


@pytest.mark.parametrize("form", ["jpeg", "png"])
def test_export_writes_what_the_official_code_reads(place, tmp_path, form):
    artifact = place.run(format=form).artifact(place.store)
    done = export(place, artifact.key, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["b", "c", "d", "e", "long"]
    for media_path, row in place.rows(artifact).items():
        folder = tmp_path / "out" / media_path.rsplit("/")[-1].split(".")[0]
        written = sorted(folder.iterdir())
        assert [p.name for p in written] == [f"frame{k:06d}.jpg" for k in range(1, row["frames"] + 1)]
        images = [simplejpeg.decode_jpeg(p.read_bytes()) for p in written]
        assert [number(image) for image in images] == list(plan(place.videos / media_path).index)
        if form == "jpeg":  # the stored bytes as they are
            assert [p.read_bytes() for p in written] == [f["image"] for f in frames_of(artifact, row)]


def test_export_of_some_replaces_them_whole(place, tmp_path):
    artifact = place.run().artifact(place.store)
    (tmp_path / "out" / "d").mkdir(parents=True)
    (tmp_path / "out" / "d" / "frame000099.jpg").write_bytes(b"old")
    (tmp_path / "out" / ".123.exporting").mkdir()  # left by a kill
    done = export(place, artifact.key, tmp_path / "out", "--videos", "d", "a/long.mp4")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["d", "long"]
    assert len(list((tmp_path / "out" / "d").iterdir())) == 4
    unknown = export(place, artifact.key, tmp_path / "out", "--videos", "z")
    assert unknown.returncode == 65 and "there is no video z" in unknown.stderr


def test_names_that_clash_are_an_error(tmp_path):
    place = Place(tmp_path / "videos", tmp_path / "store")
    for folder, length in (("a", 10), ("b", 20)):
        (place.videos / folder).mkdir(parents=True)
        video(place.videos / folder / "x.mp4", length)
    place.samples({path: digest_of(place.videos / path) for path in ("a/x.mp4", "b/x.mp4")})
    artifact = place.run().artifact(place.store)
    done = export(place, artifact.key, tmp_path / "out")
    assert done.returncode == 65 and "a/x.mp4 and b/x.mp4 would be the same folder x" in done.stderr
    assert export(place, artifact.key, tmp_path / "out", "--videos", "b/x.mp4").returncode == 0
    assert len(list((tmp_path / "out" / "x").iterdir())) == 8


@pytest.mark.parametrize("media_path", ["..", "a/...mp4", "", ".hidden", "a\\b.mp4", "x\0.mp4"])
def test_no_name_leaves_the_folder(media_path):
    from stages.contract import BadInput

    with pytest.raises(BadInput, match="gives no name"):
        names([{"media_path": media_path}])


def test_what_stores_no_frames_has_none_to_export(place, tmp_path):
    artifact = place.run(format="direct").artifact(place.store)
    done = export(place, artifact.key, tmp_path / "out")
    assert done.returncode == 65 and "stores no frames" in done.stderr
    absent = export(place, "ab" * 32, tmp_path / "out")
    assert absent.returncode == 65 and "no frames artifact" in absent.stderr
    assert np.array_equal(sorted(shutil.os.listdir(tmp_path)), ["store"])
