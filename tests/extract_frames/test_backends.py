"""Every backend gives the planned frames, pixel for pixel where its scaler allows, or refuses the video."""

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from stages.extract_frames.backends import Refused, load
from stages.extract_frames.backends_ffmpeg import command
from tests.video.make import number, video
from video import VideoError, plan

# Late starts, gaps, B-frames, rotation, 10 bit, 4:4:4, full range, interlaced, VFR, every container.
SMALL = (
    "anamorphic.mp4 av1.mp4 bad_jpegrenamed.mp4 bad_trunc.mkv cover_first.mp4 delayed_video.mp4 gap_end.mp4 h264.flv "
    "h264_0p4.mp4 h264_2997.mp4 h264_444_10b.mp4 h264_5.mp4 hevc.mp4 interlaced.mpg lie_dur.mkv mjpeg.avi mpeg4.avi "
    "mpeg4_b.avi odd_vp9.webm oneframe.mp4 real_cv_cinepak_dropframes.avi real_decord_unordered.mov "
    "real_meca_mpeg4B.avi real_meca_theora.ogv real_mpeg1_es.mpg real_psd_start1s.mp4 real_tc_fullrange.mp4 "
    "real_tc_hevc10.mp4 rot270.mp4 start_ts.ts tiny.mp4 twoframe.mp4 vfr.mp4 wmv2.wmv"
).split()
EXACT_DECORD = "h264_2997.mp4 hevc.mp4 gap_end.mp4 lie_dur.mkv vfr.mp4 h264_5.mp4"
REFUSED_DECORD = (
    "start_ts.ts interlaced.mpg mpeg4_b.avi real_mpeg1_es.mpg wmv2.wmv av1.mp4 rot270.mp4 real_meca_theora.ogv"
)


@pytest.fixture(scope="module")
def corpus(shared):
    return shared("data/video_corpus")


def pixels(picture, half_chroma):
    planes = picture.planes() if half_chroma else None
    return np.concatenate([p.ravel() for p in planes]) if planes else picture.rgb().ravel()


def compare_ffmpeg(path, half_chroma):
    planned = plan(path)
    ours, theirs = (load(name)(path, planned, half_chroma) for name in ("pyav", "ffmpeg"))
    taken = 0
    for (ks, a), (same_ks, b) in zip(ours, theirs, strict=True):
        assert (ks.start, ks) == (taken, same_ks), path.name
        taken = ks.stop
        assert np.array_equal(pixels(a, half_chroma), pixels(b, half_chroma)), (path.name, ks)
    assert taken == len(planned)


@pytest.mark.parametrize("name", SMALL)
def test_ffmpeg_gives_the_same_bytes(corpus, name):
    compare_ffmpeg(corpus / name, half_chroma=True)


@pytest.mark.slow
def test_ffmpeg_gives_the_same_bytes_of_all_of_the_corpus(corpus):
    for vector in json.loads((corpus / "corpus.json").read_text())["files"]:
        if vector["expected"] == "ok" and vector["file"] not in ("bad_trunc.avi", "long_10min_15fps.mp4"):
            for half_chroma in (False,) if vector["file"] in SMALL else (False, True):  # those were compared above
                compare_ffmpeg(corpus / vector["file"], half_chroma)


@pytest.mark.parametrize("name", ["bad_decord_corrupted.mp4", "bad_midcorrupt.mp4", "bad_trunc.avi"])
def test_ffmpeg_does_not_conceal_damage(corpus, name):
    """Left alone, ffmpeg exits with 0 and makes up what is missing."""
    with pytest.raises(VideoError, match=name):
        list(load("ffmpeg")(corpus / name, plan(corpus / name), True))


@pytest.mark.parametrize("name", EXACT_DECORD.split())
def test_decord_gives_the_planned_frames(corpus, name):
    """By the barcode: decord has another scaler, so pixels differ a little."""
    planned = plan(corpus / name)
    taken = 0
    for (ks, theirs), (_, ours) in zip(
        load("decord")(corpus / name, planned, True), load("pyav")(corpus / name, planned, False), strict=True
    ):
        assert ks.start == taken
        taken = ks.stop
        assert number(theirs.rgb()) == planned.index[ks.start] == number(ours.rgb())
        assert np.abs(theirs.rgb().astype(int) - ours.rgb()).mean() < 4
    assert taken == len(planned)


@pytest.mark.parametrize("name", REFUSED_DECORD.split())
def test_decord_refuses_what_it_gets_wrong(corpus, name):
    with pytest.raises(Refused, match="decord is not exact on"):
        next(load("decord")(corpus / name, plan(corpus / name), True))


def test_a_backend_with_other_frames_than_planned_refuses(tmp_path):
    """The file is not what was planned: as if the backend's FFmpeg read it differently."""
    path = video(tmp_path / "a.mp4", 50, codec="libx264")
    planned = plan(path)
    video(tmp_path / "a.mp4", 40, codec="libx264")
    with pytest.raises(Refused, match="16 frames, 20 are planned"):
        list(load("ffmpeg")(path, planned, True))
    with pytest.raises(Refused, match="sees 40 frames, its packets are 50"):
        list(load("decord")(path, planned, True))
    now = plan(path)
    late = replace(now, pts=(0, *(pts + int(Fraction(1, 25) / now.time_base) for pts in now.pts[1:])))
    with pytest.raises(Refused, match=r"sees frame \d+ 0.040 s off its time"):
        list(load("decord")(path, late, True))


def test_ffmpeg_is_given_no_way_out(tmp_path):
    """No protocol but file, no playlists, no input from the terminal; a name is never an option."""
    path = video(tmp_path / "a.mp4", 10)
    line = command(path, plan(path), True)
    assert line[line.index("-protocol_whitelist") + 1] == "file"
    assert "hls" not in line[line.index("-format_whitelist") + 1] and "-nostdin" in line
    assert line[line.index("-i") + 1] == f"file:{path}"
    dashed = video(tmp_path / "-i.mp4", 10)
    assert len(list(load("ffmpeg")(dashed, plan(dashed), True))) == 4
