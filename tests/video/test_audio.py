"""Sound in clips: every sample once, at the file's own rate and channels, on the clock of the pictures."""

import itertools
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from video import DamagedVideo, TimeError, UnreadableVideo, plan
from video.audio import clips


def noise(samples: int, channels: int, seed: int = 0) -> np.ndarray:
    """(channels, samples) int16."""
    return np.random.default_rng(seed).integers(-32768, 32768, (channels, samples)).astype(np.int16)


def film(
    path: Path, sound: np.ndarray, rate: int, picture_at: float = 0.0, sound_at: float = 0.0, hole: int = 0
) -> Path:
    """One second of grey pictures from `picture_at` seconds on; `sound` as PCM, with `hole` silent milliseconds,
    in which no packet is, after its first half."""
    with av.open(str(path), "w", format="matroska") as container:
        picture = container.add_stream("mjpeg", rate=10)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p"
        track = container.add_stream("pcm_s16le", rate=rate, layout={1: "mono", 2: "stereo", 6: "5.1"}[len(sound)])
        for number in range(10):
            frame = av.VideoFrame(64, 48, "yuvj420p")
            frame.pts = number + round(10 * picture_at)
            container.mux(picture.encode(frame))
        step = rate // 50
        for begin in range(0, sound.shape[1], step):
            part = sound[:, begin : begin + step]
            frame = av.AudioFrame.from_ndarray(part.T.reshape(1, -1), "s16", track.layout.name)
            late = hole * rate // 1000 if begin >= sound.shape[1] // 2 else 0
            frame.sample_rate, frame.pts = rate, begin + round(sound_at * rate) + late
            container.mux(track.encode(frame))
        container.mux(itertools.chain(picture.encode(), track.encode()))
    return path


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rate=st.sampled_from([8000, 16000, 22050, 44100]),
    channels=st.sampled_from([1, 2, 6]),
    length=st.floats(0.03, 5.0),
    seconds=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_clips_hold_every_sample_once(tmp_path, rate, channels, length, seconds):
    sound = noise(int(length * rate), channels)
    path = film(tmp_path / "film.mkv", sound, rate)
    found = list(clips(path, plan(path), seconds))
    full = int(seconds * rate)
    assert all(samples.shape == (channels, full) for *_, samples, _ in found[:-1]) and found[-1][2].shape[1] <= full
    together = np.concatenate([samples for *_, samples, _ in found], axis=1)
    assert together.dtype == np.float32 and np.array_equal(together, sound / np.float32(32768))
    for number, (start, end, samples, at) in enumerate(found):
        assert at == rate and start == pytest.approx(seconds * number, abs=1e-9)
        assert end - start == pytest.approx(samples.shape[1] / rate, abs=1e-9)


@pytest.mark.parametrize("picture_at, sound_at", [(0.0, 0.3), (0.7, 0.0), (1.0, 0.4)])
def test_times_count_from_the_first_picture(tmp_path, picture_at, sound_at):
    path = film(tmp_path / "film.mkv", noise(36000, 1), 16000, picture_at, sound_at)
    found = [clip[:2] for clip in clips(path, plan(path))]
    begin = sound_at - picture_at
    np.testing.assert_allclose(found, [[begin, begin + 2], [begin + 2, begin + 2.25]], atol=1e-9)


def test_no_clip_bridges_a_hole(tmp_path):
    sound = noise(48000, 1)
    path = film(tmp_path / "film.mkv", sound, 16000, hole=700)
    found = list(clips(path, plan(path)))
    assert [clip[:2] for clip in found] == [(0.0, 1.5), (2.2, 3.7)]
    assert np.array_equal(np.concatenate([clip[2] for clip in found], axis=1), sound / np.float32(32768))
    path = film(tmp_path / "film.mkv", sound, 16000, hole=90)  # what rounding and clocks that drift may make
    assert [clip[:2] for clip in clips(path, plan(path))] == [(0.0, 2.0), (2.0, 3.0)]


def test_memory_holds_one_clip(tmp_path):
    def peak(seconds: int) -> int:
        path = film(tmp_path / f"{seconds}.mkv", noise(seconds * 16000, 1), 16000)
        made = plan(path)
        tracemalloc.start()
        for _ in clips(path, made):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(60) < 1.2 * peak(6)


REAL = {  # name: first start, last end, clips, channels, rate
    "delayed_video.mp4": (-1.0, 5.0140, 4, 1, 44100),
    "real_malmm_360p24.mp4": (0.0, 70.4261, 36, 2, 44100),
    "real_skv_bbb720.mp4": (0.0, 5.312, 3, 6, 48000),
    "real_kinetics_240p30.mkv": (0.0, 10.3677, 6, 1, 48000),
    "real_cv_mpeg4_packedB.avi": (-0.0097, 11.1903, 6, 2, 48000),  # begins and ends inside a frame of AC-3
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(shared, name):
    path, (start, end, count, channels, rate) = shared(f"data/video_corpus/{name}"), REAL[name]
    found = list(clips(path, plan(path)))
    assert len(found) == count and {(clip[2].shape[0], clip[3]) for clip in found} == {(channels, rate)}
    np.testing.assert_allclose([found[0][0], found[-1][1]], [start, end], atol=1e-4)
    assert all(np.isfinite(clip[2]).all() and np.abs(clip[2]).max() < 2 for clip in found)


@pytest.mark.parametrize(
    "name, sound_of, error",
    [
        ("h264_25.mp4", "h264_25.mp4", UnreadableVideo),  # has none
        ("faststart.mp4", "bad_midcorrupt.mp4", DamagedVideo),
        ("start_ts.ts", "ptsjump.ts", TimeError),
    ],
)
def test_sound_that_cannot_be_trusted_is_an_error_that_names_the_file(shared, name, sound_of, error):
    folder = shared("data/video_corpus")
    with pytest.raises(error, match=sound_of):
        list(clips(folder / sound_of, plan(folder / name)))


def test_a_lost_packet_is_damage_in_the_middle_and_passed_over_at_the_ends(tmp_path, shared):
    """MPEG-TS counts its packets of 188 bytes, so a lost one is seen."""
    whole = shared("data/video_corpus/start_ts.ts")
    data, made = whole.read_bytes(), plan(whole)
    with av.open(str(whole)) as container:
        track = container.streams.audio[0].id
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    sound = [n for n, packet in enumerate(packets) if int.from_bytes(packet[1:3]) & 0x1FFF == track]
    length = sum(clip[1] - clip[0] for clip in clips(whole, made))
    for lost, fails in ((sound[len(sound) // 2], True), (sound[-1], False)):
        path = tmp_path / "lost.ts"
        path.write_bytes(b"".join(packets[:lost] + packets[lost + 1 :]))
        if fails:
            with pytest.raises(DamagedVideo, match="its sound cannot be decoded"):
                list(clips(path, made))
        else:
            assert length - 0.5 < sum(clip[1] - clip[0] for clip in clips(path, made)) < length
