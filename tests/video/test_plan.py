"""Plans and decoding of videos made here: rates, late starts, gaps, edit lists, what makes them errors."""

from fractions import Fraction

import av
import numpy as np
import pytest

from tests.video.make import number, video
from video import DamagedVideo, decode, plan
from video.plan import scaled_size

MILLISECOND = Fraction(1, 1000)


def taken(path, **options):
    return [number(rgb) for _, rgb in decode(path, plan(path, **options))]


def test_frames_are_those_shown_at_the_tenths_of_a_second(tmp_path):
    path = video(tmp_path / "a.mkv", [0, 40, 80, 120, 600, 610, 620], MILLISECOND)
    planned = plan(path)
    assert list(planned.index) == [0, 2, 3, 3, 3, 3, 4] == taken(path)
    assert planned.seconds.tolist() == [0, 0.08, 0.12, 0.12, 0.12, 0.12, 0.6]
    assert planned.presented == 7 and planned.codec == "mpeg4"


def test_a_late_start_changes_nothing(tmp_path):
    early, late = (video(tmp_path / f"{s}.mkv", range(s, s + 1000, 40), MILLISECOND) for s in (0, 5000))
    assert plan(late).origin == 5000 and taken(early) == taken(late)
    assert np.array_equal(plan(early).seconds, plan(late).seconds)


def test_other_rates_and_sizes(tmp_path):
    path = video(tmp_path / "a.mp4", 50)
    assert taken(path, fps=1) == [0, 25] and taken(path, fps=5) == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]
    assert taken(path, fps=50) == [k // 2 for k in range(100)]
    planned = plan(path, short_side=32)
    assert (planned.width, planned.height) == (48, 32) and next(decode(path, planned))[1].shape == (32, 48, 3)


@pytest.mark.parametrize(
    "size, scaled",
    [((640, 360), (455, 256)), ((360, 640), (256, 455)), ((64, 48), (341, 256)), ((321, 243), (338, 256))],
)
def test_the_short_side_is_scaled(size, scaled):
    assert scaled_size(*size, 256) == scaled


def test_b_frames_come_in_order_of_showing(tmp_path):
    path = video(tmp_path / "b.mkv", 100, codec="libx264", options={"bf": "3", "b-adapt": "0", "preset": "ultrafast"})
    with av.open(str(path)) as container:
        dts_order = [p.pts for p in container.demux(video=0) if p.size]
    assert dts_order != sorted(dts_order)  # the file has what is tested
    assert taken(path) == [k * 5 // 2 for k in range(40)]


def test_what_an_edit_list_discards_is_not_presented(tmp_path):
    """Cutting an MP4 between key frames without encoding it again writes an edit list."""
    source = video(tmp_path / "a.mp4", 50, codec="libx264", options={"g": "50", "bf": "0"})
    path = tmp_path / "cut.mp4"
    with av.open(str(source)) as read, av.open(str(path), "w") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = stream
                step = int(Fraction(1, 25) / packet.time_base)
                packet.pts, packet.dts = packet.pts - 10 * step, packet.dts - 10 * step
                write.mux(packet)
    planned = plan(path)
    assert planned.edited and planned.presented == 40
    assert taken(path) == [10 + k * 5 // 2 for k in range(16)]


def test_a_file_that_changes_after_planning_is_an_error(tmp_path):
    path = video(tmp_path / "a.mp4", 50)
    planned = plan(path)
    video(tmp_path / "a.mp4", 20)
    with pytest.raises(DamagedVideo, match="does not decode"):
        list(decode(path, planned))


def test_a_picture_that_changes_its_size_is_an_error(tmp_path):
    path = tmp_path / "a.mkv"
    parts = [video(tmp_path / f"{w}.mkv", 10, codec="mjpeg", size=(w, 64)) for w in (96, 64)]
    with av.open(str(path), "w") as write:
        stream, shift = None, 0
        for part in parts:
            with av.open(str(part)) as read:
                stream = stream or write.add_stream_from_template(read.streams.video[0])
                for packet in read.demux(video=0):
                    if packet.size:
                        packet.stream = stream
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        write.mux(packet)
            shift += 400
    with pytest.raises(DamagedVideo, match="changes from 96x64 to 64x64"):
        list(decode(path, plan(path)))


def test_cover_art_is_not_the_video(shared):
    assert plan(shared("data/video_corpus/cover_first.mp4")).presented == 125
