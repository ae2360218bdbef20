"""Videos through the stage's command: frames and sound over time, the gate, what is taken up and what is refused."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stages.embed_imagebind.embed import BadVideo, Embedder
from stages.embed_imagebind.model import ARCHITECTURES
from stages.embed_imagebind.preprocess import audio_clip, image_array
from stages.embed_imagebind.weights import build_model, random_weights
from storage import MissingEmbedding
from storage.digests import sha256_of
from storage.videos import VideoFeatures
from tests.embed_imagebind.conftest import Work, picture
from tests.embed_imagebind.films import SHORT_SIDE, Rows, film, frames_artifact, samples_artifact
from video import decode, plan
from video.audio import clips

LONG, SHORT, SILENT = "long.mkv", "sub/short.mkv", "silent.mkv"
SMALL = {"vision_batch": 8, "audio_batch": 2, "dtype": "float32", "shard_rows": 64}


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 100 frames whose sound begins half a second before it, one of 7 frames, one without sound."""
    root = tmp_path_factory.mktemp("films")
    film(root / LONG, 100, seed=1, sound=7.3, early=0.5)
    film(root / SHORT, 7, seed=2, sound=0.7)
    film(root / SILENT, 12, seed=3)
    return root


@pytest.fixture
def work(films: Path, tmp_path: Path) -> Work:
    shutil.copytree(films, tmp_path / "media")
    return Work(tmp_path / "media", tmp_path / "store", {"videos": str(tmp_path / "media"), **SMALL})


def embedded(root: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Frames (n, 1024) and clips (m, 1024) of a video by the model alone."""
    made = plan(root / name, 10, SHORT_SIDE)
    model = build_model(ARCHITECTURES["tiny"], random_weights(ARCHITECTURES["tiny"], 0), ("vision", "audio"))
    frames = [torch.from_numpy(image_array(Image.fromarray(rgb))) for _, rgb in decode(root / name, made)]
    sounds = [audio_clip(torch.from_numpy(s), rate) for *_, s, rate in clips(root / name, made)] if made.audio else []
    return tuple(
        model(modality, torch.stack(xs)).numpy() if xs else np.empty((0, 1024), np.float32)
        for modality, xs in (("vision", frames), ("audio", sounds))
    )


def test_frames_and_sound_with_their_times(work: Work):
    names = [LONG, SHORT, SILENT]
    samples = samples_artifact(work.store, work.root, names)
    frames = frames_artifact(work.store, work.root, names)
    artifact = work.run(samples, real=True, frames=frames).artifact(work.store)

    assert artifact.manifest["counts"] == {"done": 3 + 2 + 1, "reused": 0, "failed": 0, "skipped": 0}
    encoder = artifact.manifest["encoder"]
    assert encoder["recipes"]["frames"] == "fps=10;short=48;png;sampling=1;tokens=frame"
    assert encoder["tokens"] == {"frames": 1, "audio": 1} and encoder["fps"] == 10
    assert encoder["widths"] == {"frames": 1024, "audio": 1024}
    assert artifact.manifest["items"] == {"vision": 0, "text": 1, "frames": 2 + 1 + 1, "audio": 2}
    assert [row["id"].split("/")[0] for row in artifact.ledger().to_pylist()] == ["audio"] * 2 + ["frames"] * 3 + [
        "text"
    ]

    of_frames, of_sound = VideoFeatures(artifact), VideoFeatures(artifact, "audio")
    assert len(of_frames.timelines) == 3 and len(of_sound.timelines) == 2
    for name, count, sounds in ((LONG, 100, 4), (SHORT, 7, 1), (SILENT, 12, 0)):
        video = sha256_of(work.root / name)
        times = of_frames.timelines[video]
        np.testing.assert_array_equal(times.start, np.arange(count) / 10)
        np.testing.assert_array_equal(times.end, np.arange(1, count + 1) / 10)
        expected = embedded(work.root, name)
        # Batches of another size round differently.
        np.testing.assert_allclose(of_frames.gather(video, np.arange(count))[:, 0], expected[0], atol=1e-5)
        if sounds:
            found = of_sound.gather(video, np.arange(sounds))[:, 0]
            np.testing.assert_allclose(found, expected[1], atol=1e-4)
            np.testing.assert_allclose(np.linalg.norm(found, axis=1), 20, rtol=1e-5)
    heard = of_sound.timelines[sha256_of(work.root / LONG)]
    np.testing.assert_allclose([heard.start, heard.end], [[-0.5, 1.5, 3.5, 5.5], [1.5, 3.5, 5.5, 6.8]], atol=2e-3)


def test_bits_follow_from_the_video_alone(work: Work, tmp_path: Path):
    """Whatever is beside it, in whatever shards, from files or from stored frames."""
    names = [LONG, SHORT, SILENT]
    samples = samples_artifact(work.store, work.root, names)
    together = work.run(samples, frames=frames_artifact(work.store, work.root, names), shard_rows=4096)
    alone = Work(work.root, tmp_path / "alone", work.settings)
    samples = samples_artifact(alone.store, work.root, [LONG])
    direct = alone.run(samples, frames=frames_artifact(alone.store, work.root, [LONG], "direct"))
    found = [outcome.artifact(w.store) for outcome, w in ((together, work), (direct, alone))]
    video = sha256_of(work.root / LONG)
    for modality, count in (("frames", 100), ("audio", 4)):
        rows = [VideoFeatures(artifact, modality).gather(video, np.arange(count)) for artifact in found]
        np.testing.assert_array_equal(*rows)


def test_patch_tokens_beside_frames_in_one_bank(work: Work):
    samples = samples_artifact(work.store, work.root, [SHORT])
    frames = frames_artifact(work.store, work.root, [SHORT])
    plain = work.run(samples, frames=frames).artifact(work.store)
    patches = work.run(samples, frames=frames, tokens="patch")
    assert patches.of("metric")[0]["value"] == 7, "sound or question embedded again"
    patches, video = patches.artifact(work.store), sha256_of(work.root / SHORT)
    about = patches.manifest["encoder"]
    assert about["bank"] == plain.manifest["encoder"]["bank"] and about["tokens"]["frames"] == 257
    assert about["widths"]["frames"] == 128
    rows = VideoFeatures(patches).gather(video, np.arange(7))
    assert rows.shape == (7, 257, 128)
    head = build_model(ARCHITECTURES["tiny"], random_weights(ARCHITECTURES["tiny"], 0), ("vision",))
    classes = head.modality_postprocessors["vision"](head.modality_heads["vision"](torch.from_numpy(rows)))
    np.testing.assert_allclose(classes.numpy(), VideoFeatures(plain).gather(video, np.arange(7))[:, 0], atol=1e-5)


# ---- the gate


def _frame(k: int, **changes: Any):
    """A tamperer that changes columns of frame k of the first video."""
    return lambda videos, stored: stored[k].update(changes)


def _without(k: int):
    return lambda videos, stored: stored.pop(k)


def _twice(videos: Rows, stored: Rows) -> None:
    stored.insert(3, stored[3])


def _swapped(videos: Rows, stored: Rows) -> None:
    stored[3], stored[4] = stored[4], stored[3]


def _relabelled(videos: Rows, stored: Rows) -> None:
    """A frame is gone, and those behind it were numbered again."""
    stored.pop(5)
    for k, row in enumerate(stored[:11]):
        row["k"] = k


def _cut(videos: Rows, stored: Rows) -> None:
    stored[5]["image"] = stored[5]["image"][:-60]


def _smaller_picture(videos: Rows, stored: Rows) -> None:
    stored[5]["image"] = picture(1, (64, 47))


def _shifted_plan(videos: Rows, stored: Rows) -> None:
    """Both tables agree on a time that the rule forbids: frame 5 cannot be shown before it begins."""
    videos[0]["pts"][5] = stored[5]["pts"] = 0.51


def _falling_plan(videos: Rows, stored: Rows) -> None:
    videos[0]["pts"][5] = stored[5]["pts"] = 0.3


def _short_plan(videos: Rows, stored: Rows) -> None:
    videos[0]["pts"].pop()


@pytest.mark.parametrize(
    "tamper, told",
    [
        (_without(11), "11 frames are stored, 12 were planned: at place 11 lies none"),
        (_without(4), "11 frames are stored, 12 were planned: at place 4 lies frame 5"),
        (_twice, "13 frames are stored, 12 were planned: at place 4 lies frame 3"),
        (_swapped, "at place 3 lies frame 4"),
        (_relabelled, "11 frames are stored, 12 were planned: at place 11 lies none"),
        (_frame(5, pts=0.501), "frame 5 is stored as of 0.501 s, planned was 0.5 s"),
        (_frame(5, width=65), "frame 5 is stored as of 65 x 48 pixels, planned were 64 x 48"),
        (_frame(5, height=47), "frame 5 is stored as of 64 x 47 pixels"),
        (_frame(5, video="0" * 64), "among its stored frames is one of video 000000000000"),
        (_cut, "frame 5 cannot be decoded"),
        (_smaller_picture, "frame 5 is 64 x 47, planned was 64 x 48"),
        (_shifted_plan, "frame 5 begin at 0.51 s, which breaks the rule"),
        (_falling_plan, "frame 5 begin at 0.3 s, which breaks the rule"),
        (_short_plan, "its plan is of 12 frames, but of 11 times"),
    ],
)
def test_frames_that_are_not_the_plan_are_refused(work: Work, tamper, told: str):
    names = [SILENT, SHORT]
    samples = samples_artifact(work.store, work.root, names)
    frames = frames_artifact(work.store, work.root, names, tamper=tamper)
    outcome = work.run(samples, frames=frames, max_failed_share=0.4)
    artifact, video = outcome.artifact(work.store), sha256_of(work.root / SILENT)
    (failed,) = outcome.of("item_failed")
    assert failed["id"] == f"frames/{video}" and failed["error"] == "BadVideo"
    assert failed["message"].startswith(f"{SILENT}: ") and told in failed["message"]
    assert artifact.manifest["counts"] == {"done": 3, "reused": 0, "failed": 1, "skipped": 0}
    features = VideoFeatures(artifact)
    assert list(features.timelines) == [sha256_of(work.root / SHORT)]
    assert features.bank.count("frames") == 1, "frames of a refused video were embedded"
    assert artifact.manifest["items"]["frames"] == 1
    with pytest.raises(MissingEmbedding, match=video):
        features.gather(video, np.arange(3))


def test_stored_frames_that_cannot_be_read_are_refused(work: Work):
    samples = samples_artifact(work.store, work.root, [SILENT])
    frames = frames_artifact(work.store, work.root, [SILENT])
    path = work.store / frames.folder / "frames-00000.parquet"
    path.write_bytes(path.read_bytes()[:-200])
    outcome = work.run(samples, frames=frames)
    assert outcome.code == 65 and "stored frames cannot be read" in outcome.message
    path.unlink()
    assert "stored frames cannot be read" in work.run(samples, frames=frames).message


def _other_time(videos: Rows, stored: Rows) -> None:
    videos[0]["pts"][5] = 0.48


def _other_size(videos: Rows, stored: Rows) -> None:
    videos[0]["width"] = 65


def _one_less(videos: Rows, stored: Rows) -> None:
    videos[0]["frames"] = len(videos[0]["pts"]) - 1
    videos[0]["pts"].pop()


@pytest.mark.parametrize(
    "tamper, told",
    [
        (_other_time, "frame 5 begins at 0.5 s in its file, planned was 0.48 s"),
        (_other_size, "its file gives frames of 64 x 48 pixels, planned were 65 x 48"),
        (_one_less, "its file gives 12 frames, planned were 11"),
    ],
)
def test_direct_frames_must_be_those_planned(work: Work, tamper, told: str):
    samples = samples_artifact(work.store, work.root, [SILENT])
    outcome = work.run(samples, frames=frames_artifact(work.store, work.root, [SILENT], "direct", tamper=tamper))
    assert outcome.code == 65 and told in outcome.message


def test_a_file_that_changed_since_ingest_is_not_embedded(work: Work):
    samples = samples_artifact(work.store, work.root, [SILENT, SHORT])
    direct = frames_artifact(work.store, work.root, [SILENT, SHORT], "direct")
    stored = frames_artifact(work.store, work.root, [SILENT, SHORT], key="f1" * 32)
    film(work.root / SILENT, 12, seed=4)
    (work.root / SHORT).unlink()
    said = {event["message"] for event in work.run(samples, frames=direct).of("item_failed")}
    assert said == {
        f"{SILENT}: has changed since ingest: run ingest again",
        f"{SHORT}: cannot be read (No such file or directory): put it back, or run ingest again",
    }
    outcome = work.run(samples, frames=stored, max_failed_share=0.25)  # the frames are there, the sound is not
    (failed,) = outcome.of("item_failed")
    assert failed["id"].startswith("audio/") and SHORT in failed["message"]
    assert outcome.artifact(work.store).manifest["items"]["frames"] == 2
    assert work.run(samples, frames=stored, audio=False, videos=None).code == 0


def test_a_damaged_file_is_refused_in_the_middle(work: Work):
    """Planned from its packets, damaged in one of them: what was embedded of it is in no list."""
    data = bytearray((work.root / LONG).read_bytes())
    place = [found.start() for found in re.finditer(b"\xff\xd8\xff", data)][90]  # a JPEG in the second segment
    data[place : place + 1000] = bytes(1000)
    (work.root / LONG).write_bytes(data)
    samples = samples_artifact(work.store, work.root, [LONG, SHORT])
    frames = frames_artifact(work.store, work.root, [LONG, SHORT], "direct")
    outcome = work.run(samples, frames=frames, max_failed_share=0.5, audio=False)
    artifact = outcome.artifact(work.store)
    (failed,) = outcome.of("item_failed")
    assert failed["id"] == f"frames/{sha256_of(work.root / LONG)}" and "media" not in failed["message"]
    features = VideoFeatures(artifact)
    assert list(features.timelines) == [sha256_of(work.root / SHORT)] and artifact.manifest["items"]["frames"] == 1
    assert features.bank.count("frames") == 2, "the first segment was sound"


# ---- what else becomes of videos


def test_what_was_not_extracted_is_skipped_with_its_reason(work: Work):
    samples = samples_artifact(work.store, work.root, [LONG, SHORT, SILENT], missing=("gone.mp4",))
    failed = {sha256_of(work.root / LONG): RuntimeError("time runs backwards")}
    artifact = work.run(samples, frames=frames_artifact(work.store, work.root, [SILENT], failed=failed)).artifact(
        work.store
    )
    skipped = {row["id"]: row["message"] for row in artifact.ledger().to_pylist() if row["status"] == "skipped"}
    assert skipped == {
        f"frames/{sha256_of(work.root / LONG)}": "extract_frames failed on it: RuntimeError: time runs backwards",
        f"frames/{sha256_of(work.root / SHORT)}": "frames f0f0f0f0f0f0 do not hold it: run extract_frames again",
        "frames/gone.mp4": "the video was missing at ingest",
    }


def test_images_and_videos_together_and_again(work: Work):
    (work.root / "a.png").write_bytes(picture(1))
    samples = samples_artifact(work.store, work.root, ["a.png", LONG])
    frames = frames_artifact(work.store, work.root, [LONG])
    artifact = work.run(samples, frames=frames).artifact(work.store)
    assert artifact.manifest["items"] == {"vision": 1, "text": 1, "frames": 2, "audio": 1}
    more = samples_artifact(work.store, work.root, ["a.png", LONG, SHORT], key="cd" * 32)
    again = frames_artifact(work.store, work.root, [LONG, SHORT], key="f1" * 32)
    artifact = work.run(more, frames=again).artifact(work.store)
    assert artifact.manifest["counts"] == {"done": 2, "reused": 4, "failed": 0, "skipped": 0}
    forced = work.run(more, frames=again, request={"force": True})
    assert forced.of("metric")[0]["value"] == 1 + 1 + 100 + 7 + 4 + 1


def test_images_alone_need_no_frames_and_keep_their_bank(work: Work):
    (work.root / "a.png").write_bytes(picture(1))
    samples = samples_artifact(work.store, work.root, ["a.png"])
    artifact = work.run(samples, tokens="patch", audio=False, videos=None).artifact(work.store)
    assert "recipes" not in artifact.manifest["encoder"] and not artifact.exists("timelines.parquet")
    bank = artifact.manifest["encoder"]["bank"]
    assert work.run(samples).artifact(work.store).manifest["encoder"]["bank"] == bank
    with pytest.raises(MissingEmbedding, match="extract_frames"):
        VideoFeatures(artifact)


def test_only_by_path_or_digest(work: Work):
    names = [LONG, SHORT]
    samples = samples_artifact(work.store, work.root, names)
    frames = frames_artifact(work.store, work.root, names)
    for only in (SHORT, f"frames/{sha256_of(work.root / SHORT)}"):
        artifact = work.run(samples, frames=frames, request={"only": [only]}).artifact(work.store)
        assert artifact.manifest["items"] == {"vision": 0, "text": 0, "frames": 1, "audio": 1}


@pytest.mark.parametrize(
    "names, format, settings, told",
    [
        (["a.png"], "png", {"images": None}, "embed_imagebind.images: the samples hold 1 images"),
        ([SHORT], None, {}, "give the config the section `extract_frames: {fps: 10}`"),
        ([SHORT], "png", {"videos": None}, "they have sound (or set audio: false)"),
        ([SILENT], "direct", {"videos": None}, "the frames are of format direct"),
    ],
)
def test_settings_that_lack_a_folder_or_frames_are_78(work: Work, names, format, settings, told: str):
    (work.root / "a.png").write_bytes(picture(1))
    samples = samples_artifact(work.store, work.root, names)
    frames = format and frames_artifact(work.store, work.root, [n for n in names if n.endswith("mkv")], format)
    outcome = work.run(samples, frames=frames, **settings)
    assert outcome.code == 78 and told in outcome.message


def test_sound_that_cannot_be_embedded_fails_or_is_skipped_alone(work: Work):
    film(work.root / "click.mkv", 5, sound=0.02)
    names = ["click.mkv", SILENT]

    def says_sound(videos: Rows, stored: Rows) -> None:
        videos[1]["audio"] = True

    samples = samples_artifact(work.store, work.root, names)
    outcome = work.run(
        samples, frames=frames_artifact(work.store, work.root, names, tamper=says_sound), max_failed_share=0.3
    )
    rows = {row["id"]: row for row in outcome.artifact(work.store).ledger().to_pylist() if row["status"] != "done"}
    assert rows[f"audio/{sha256_of(work.root / 'click.mkv')}"]["message"] == "its track has less than 25 ms of sound"
    silent = rows[f"audio/{sha256_of(work.root / SILENT)}"]
    assert silent["status"] == "failed" and silent["message"] == f"{SILENT}: has no sound that FFmpeg can decode"


def test_a_video_refused_once_is_planned_when_it_is_mended(work: Work):
    """The plan of a try that failed is kept; what was refused then comes after it, and is not taken for embedded."""
    samples = samples_artifact(work.store, work.root, [SILENT, SHORT])
    frames = frames_artifact(work.store, work.root, [SILENT, SHORT], "direct")
    data = (work.root / SHORT).read_bytes()
    (work.root / SHORT).write_bytes(data[:100])
    assert work.run(samples, frames=frames).code == 65
    (work.root / SHORT).write_bytes(data)
    artifact = work.run(samples, frames=frames).artifact(work.store)
    assert artifact.manifest["counts"] == {"done": 4, "reused": 0, "failed": 0, "skipped": 0}
    VideoFeatures(artifact).gather(sha256_of(work.root / SHORT), np.arange(7))


def test_a_real_clip_with_a_delayed_picture(work: Work, shared):
    name = "delayed_video.mp4"
    shutil.copy(shared(f"data/video_corpus/{name}"), work.root / name)
    samples = samples_artifact(work.store, work.root, [name])
    frames = frames_artifact(work.store, work.root, [name], "jpeg", short_side=256)
    artifact, video = work.run(samples, frames=frames).artifact(work.store), sha256_of(work.root / name)
    heard = VideoFeatures(artifact, "audio").timelines[video]
    assert heard.start.tolist() == [-1.0, 1.0, 3.0]  # the last 14 ms fill no window
    assert VideoFeatures(artifact).gather(video, [0, 49]).shape == (2, 1, 1024)


def test_the_audio_encoder_is_built_only_for_sound():
    tensors = random_weights(ARCHITECTURES["tiny"], 0)
    with Embedder("malmm", "tiny", tensors, ("vision",)) as embedder:
        assert set(embedder.model.modality_trunks) == {"vision"}
    with Embedder("malmm", "tiny", tensors, ("audio",)) as embedder, pytest.raises(BadVideo, match="25 ms"):
        embedder.audio([lambda: (np.zeros((1, 399), np.float32), 16000)])
