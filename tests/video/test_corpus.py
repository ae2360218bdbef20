"""Every file of the reference corpus: which frames are taken, by count, first times and digest of all times."""

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import pytest

from tests.video.make import number
from video import VideoError, decode, pictures, plan


@pytest.fixture(scope="module")
def corpus(shared):
    return shared("data/video_corpus")


def entries(corpus: Path, expected: str) -> list[dict]:
    return [f for f in json.loads((corpus / "corpus.json").read_text())["files"] if f["expected"] == expected]


def written(plan, vector: dict) -> list[str]:
    """The plan's times as the vectors write them: "None" where a frame came out last and without a DTS."""
    pts = [str(pts) for pts in plan.pts]
    if None in vector["first_pts"]:
        pts[vector["first_pts"].index(None)] = "None"
    return pts


def test_exactly_the_expected_frames_are_planned(corpus):
    found = entries(corpus, "ok")
    assert len(found) == 57
    for vector in found:
        planned = plan(corpus / vector["file"])
        pts = written(planned, vector)
        assert len(planned) == vector["frames_10fps"], vector["file"]
        assert pts[:12] == [str(p) for p in vector["first_pts"]], vector["file"]
        assert str(planned.time_base) == vector["time_base"], vector["file"]
        assert hashlib.sha1(",".join(pts).encode()).hexdigest() == vector["selected_pts_sha1"], vector["file"]
        assert planned.ordered == (vector["mode"] == "order"), vector["file"]
        assert planned.rotation == vector["rotation"], vector["file"]
        assert planned.audio == vector["audio"], vector["file"]
        assert min(planned.width, planned.height) == 256, vector["file"]


SKIPPED_IN = (
    "h264_2997.mp4 hevc.mp4 real_tc_hevc10.mp4 interlaced.mpg odd_vp9.webm real_tc_av1.mkv wmv2.wmv vfr.mp4 "
    "start_ts.ts real_meca_theora.ogv real_skv_carphone.mp4 h264_444_10b.mp4 real_psd_start1s.mp4 "
    "real_decord_unordered.mov real_kinetics_240p30.mkv h264.flv h264_5.mp4 gap_end.mp4 twoframe.mp4"
).split()


def same_frames(path: Path) -> int:
    """How many frames are taken, after checking that skipping changes no byte of them."""
    planned, count = plan(path), 0
    skipping, full = (pictures(path, planned, half_chroma=True, skip=skip) for skip in (True, False))
    for (ks, picture), (same_ks, same) in zip(skipping, full, strict=True):
        assert (ks.start, ks) == (count, same_ks), path.name
        count = ks.stop
        for ours, theirs in zip(picture.planes(), same.planes(), strict=True):
            assert np.array_equal(ours, theirs), (path.name, ks)
    return count


@pytest.mark.parametrize("name", SKIPPED_IN)
def test_what_is_planned_decodes_and_skipping_changes_no_byte(corpus, name):
    assert same_frames(corpus / name) == next(f["frames_10fps"] for f in entries(corpus, "ok") if f["file"] == name)


@pytest.mark.slow
def test_every_planned_frame_of_the_corpus_decodes(corpus):
    for vector in entries(corpus, "ok"):
        taken = [k for ks, _ in pictures(corpus / vector["file"], plan(corpus / vector["file"]), True) for k in ks]
        assert taken == list(range(vector["frames_10fps"])), vector["file"]


def test_what_is_bad_is_an_error(corpus):
    found = entries(corpus, "error")
    assert len(found) == 6
    for vector in found:
        path = corpus / vector["file"]
        with pytest.raises(VideoError, match=vector["file"]):
            for _ in decode(path, plan(path)):
                pass


@pytest.mark.parametrize(
    "name, warning",
    [
        ("bad_trunc.mkv", "header says 103.018 s"),
        ("bad_trunc.avi", "cut short"),
        ("lie_dur.mkv", "header says 90.000 s"),
        ("real_mpeg1_es.mpg", "30 frames a second is guessed"),
    ],
)
def test_what_is_odd_is_said(corpus, name, warning):
    assert any(warning in said for said in plan(corpus / name).warnings)


def test_sound_files_are_silent(corpus):
    for name in ("real_malmm_360p24.mp4", "real_psd_start1s.mp4", "delayed_video.mp4", "start_ts.ts", "mpeg4_b.avi"):
        assert plan(corpus / name).warnings == (), name


@pytest.mark.parametrize(
    "name", ["h264_25.mp4", "h264_2997.mp4", "h264_5.mp4", "mpeg4_b.avi", "h264_0p4.mp4", "hevc.mp4"]
)
def test_the_barcodes_are_those_of_the_rule(corpus, name):
    """The index drawn into each frame is the one that the plan names."""
    path = corpus / name
    planned = plan(path)
    assert [number(rgb) for _, rgb in decode(path, planned)] == list(planned.index)


@pytest.mark.parametrize("name, turns", [("rot180.mp4", 2), ("rot270.mp4", 3)])
def test_rotation_is_applied_before_the_short_side_is_measured(corpus, name, turns):
    """The same film upright: rotated ones show it turned as their display matrix says."""
    upright = next(decode(corpus / "h264_25.mp4", plan(corpus / "h264_25.mp4")))[1]
    turned_plan = plan(corpus / name)
    turned = next(decode(corpus / name, turned_plan))[1]
    assert turned.shape == (turned_plan.height, turned_plan.width, 3)
    assert np.array_equal(turned, np.rot90(upright, turns))


def test_frames_come_one_by_one(corpus):
    """Memory is independent of length: the first of 6000 frames is there before any other is decoded."""
    path = corpus / "long_10min_15fps.mp4"
    planned = plan(path)
    begin = time.process_time()
    k, rgb = next(decode(path, planned))
    assert (k, rgb.shape, len(planned)) == (0, (256, 341, 3), 6000) and time.process_time() - begin < 1
