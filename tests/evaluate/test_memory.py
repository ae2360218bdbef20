"""`python -m stages.evaluate.memory`: what is drawn is what the model's memory kept, with the right pictures."""

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from demo.tiny_language_model import write_tiny_llm
from malmm.model import Batch, Sample
from stages.evaluate import memory
from stages.evaluate.inquiry import Inquiry, Request, look, main, thumbnails
from storage import Artifact, Store
from tests.evaluate.one_video import FRAMES_TAKEN, SCENES, VIDEO, OneVideo, colour, digest
from tests.stage_command import ROOT


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture
def one(tmp_path, tiny_llm) -> OneVideo:
    return OneVideo(tmp_path / "store", tiny_llm)


@pytest.fixture
def drawn(one, tmp_path, monkeypatch, capsys):
    """Draws with the command, its Moments caught on their way to the pictures."""

    def draw(**more):
        caught = []
        monkeypatch.setattr(memory.timeline_png, "draw", lambda moments: caught.append(moments) or b"png")
        request = tmp_path / "request.json"
        request.write_text(one.request(tmp_path / "out", **more))
        main("memory", "", memory.run, [str(request)])
        return caught[0], [Path(line) for line in capsys.readouterr().out.splitlines()]

    return draw


@pytest.fixture
def refused(one, tmp_path, capsys):
    def run(code: int, **more) -> str:
        request = tmp_path / "request.json"
        request.write_text(one.request(tmp_path / "out", **more))
        with pytest.raises(SystemExit) as end:
            main("memory", "", memory.run, [str(request)])
        out, err = capsys.readouterr()
        assert (end.value.code, out) == (code, ""), err
        return err

    return run


@pytest.mark.slow
def test_the_command_draws_png_and_html(one, tmp_path):
    command = [sys.executable, "-m", "stages.evaluate.memory", "-"]
    done = subprocess.run(
        command, input=one.request(tmp_path / "new" / "folder"), capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    png, html = map(Path, done.stdout.splitlines())
    assert [png.name, html.name] == ["a street.memory.png", "a street.memory.html"]
    assert Image.open(png).size[0] == 1540
    assert "a street.mp4" in html.read_text() and html.read_text().count("<img") == len(SCENES) + 1


def test_the_planted_scenes_are_what_is_kept(drawn):
    """A memory of as many entries as there are scenes keeps them; the last frame stands beside it."""
    moments, _ = drawn()
    assert [run.size for run in moments.kept] == [*SCENES[:-1], SCENES[-1] - 1, 1]
    assert list(moments.said())[:2] == ["0:00.0-0:00.3 (3 frames)", "0:00.3-0:01.2 (9 frames)"]
    assert moments.title == "What the memory kept of a street.mp4"
    said = " ".join(moments.notes)
    assert (
        "Question: what happens?" in said and "24 frames" in said and "4 moments" in said and "random weights" in said
    )
    assert "token positions" not in said and "thumbnails" not in said


def test_thumbnails_are_the_middle_frames(drawn):
    moments, (_, html) = drawn()
    uris = re.findall(r"data:image/jpeg;base64,([^\"]+)", html.read_text())
    inside = [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri)))) for uri in uris]
    for pictures in (moments.pictures, inside):
        for run, picture in zip(moments.kept, pictures, strict=True):
            assert np.abs(picture.mean((0, 1)) - colour(run.middle)).max() < 3, run


def test_the_light_connector_remembers_as_the_whole_model(one):
    """Also where nothing of it trained but the time embedding, and the rest is made from the seed."""
    rng = torch.Generator().manual_seed(0)
    vision, text = torch.randn((2, 17, 3, 8), generator=rng), torch.randn((2, 6), generator=rng)
    batch = Batch([Sample("a?", 2), Sample("b?", 2)], vision, text)
    for trainable in (("imagebind_fc", "ln_vision", "image_pe"), ("image_pe", "llm_proj"), ("turn_pe",)):
        one.checkpoint("again" + trainable[0], trainable=trainable, normalize_inputs=trainable[0] != "turn_pe")
        model = one.trained()
        light = memory.light_connector(one.model, one.weights)
        expected = model.memory(batch)
        found = light.memory(vision, text, torch.tensor([2, 2]))
        assert len(found) == len(expected) == 17
        assert all(torch.equal(a.long(), b) for a, b in zip(found, expected, strict=True))
        assert len({tuple(sizes.flatten().tolist()) for sizes in expected}) > 15
        assert sum(p.numel() for p in light.parameters()) < 1000 + sum(
            p.numel() for n, p in model.connector.named_parameters() if n.split(".")[0] in memory.PARTS
        )


def test_pretrained_weights_that_did_not_train_are_not_forgotten(one, tmp_path, drawn, monkeypatch):
    """A file may hold ln_vision and image_pe: where they are frozen, the bank is made of them."""
    rng = torch.Generator().manual_seed(1)
    pretrained = {n: p.detach() for n, p in one.trained().connector.named_parameters() if n.startswith(("Q", "query"))}
    pretrained["image_pe.weight"] = 3 * torch.randn((30, 12), generator=rng)
    file = tmp_path / "qformer.safetensors"
    safetensors.torch.save_file(pretrained, file)
    config = json.loads(one.request(tmp_path))["config"] | {"qformer_weights": str(file)}
    for trainable, loads in ((("imagebind_fc", "ln_vision"), True), (("image_pe", "ln_vision"), False)):
        one.checkpoint("frozen" + trainable[0], qformer_weights=file, trainable=trainable)
        asked = Inquiry(Request.model_validate_json(one.request(tmp_path, config=config)))
        scene = look(asked)
        expected = scene.moments(asked.model().memory(scene.batch)).steps
        with monkeypatch.context() as patch:
            if not loads:
                patch.setattr(Inquiry, "model", None)
            assert drawn(config=config)[0].steps == expected
        light = memory.light_connector(one.model, one.weights)
        found = scene.moments(light.memory(scene.batch.vision, scene.batch.text, torch.tensor([0]))).steps
        assert (found == expected) != loads


def test_of_several_token_positions_the_first_is_shown(tmp_path, tiny_llm):
    one = OneVideo(tmp_path / "store", tiny_llm, tokens=3)
    inquiry = Inquiry(Request.model_validate_json(one.request(tmp_path)))
    scene = look(inquiry)
    assert scene.batch.vision.shape == (1, FRAMES_TAKEN, 3, 8)
    sizes = one.trained().memory(scene.batch)
    apart = [torch.cat([first[:, :, :1], torch.full_like(first[:, :, 1:], 99)], -1) for first in sizes]
    assert scene.moments(apart).steps == scene.moments(sizes).steps
    assert "Each of the 3 token positions" in " ".join(memory._notes(inquiry, scene, True))


def test_start_and_end_choose_the_frames(one, drawn):
    one.samples("cut", start=0.5, end=1.4)
    moments, _ = drawn()
    assert moments.start[0] == 0.5 and moments.end[-1] == 1.5 and len(moments.steps) == FRAMES_TAKEN


def test_without_pictures_it_is_drawn_and_said(one, drawn):
    one.frames("direct", direct=True)
    moments, (_, html) = drawn()
    assert not moments.pictures and "No thumbnails" in html.read_text() and "<img" not in html.read_text()
    moments, _ = drawn(frames=None)
    assert not moments.pictures


def test_only_the_pictures_wanted_are_read(one):
    frames = Artifact(Store(one.store), "frames", one.keys["frames"])
    found = thumbnails(frames, VIDEO, [0, 9, 10, 23])
    assert sorted(found) == [0, 9, 10, 23]
    assert thumbnails(frames, digest("never seen"), [0]) == {}


def test_a_video_is_named_by_its_digest_too(drawn):
    moments, _ = drawn(video=VIDEO)
    assert moments.title == "What the memory kept of a street.mp4"


def test_refusals_say_what_to_do(one, refused, tmp_path):
    assert "`malmm run`" in refused(65, checkpoint=None)
    assert "no video other.mp4" in refused(65, video="other.mp4")
    assert 'do not ask "why?"' in refused(65, question="why?")
    assert "request.surprise: " in refused(78, surprise=1)
    assert "config.llm: " in refused(78, config={})
    assert digest("nowhere")[:12] in refused(65, features=digest("nowhere"))
    one.samples("no file", media=None)
    assert "put it below ingest.videos" in refused(65)
    one.samples("an image", media_kind="image")
    assert "is an image" in refused(65)
    one.samples("behind the end", start=7.0)
    assert "begins at 7 s" in refused(65)
    one.samples()
    one.features("without", frames=0)
    assert "run embed_imagebind again" in refused(65)
    one.features("other encoder", bank="other-0123456789abcdef")
    assert "same encoder" in refused(65)
    one.features()
    one.checkpoint("on images", frames=None)
    assert "trained on images" in refused(78)
    one.checkpoint("no bank", memory_bank_length=0)
    assert "has no memory banks" in refused(78)
    one.checkpoint("other llm", llm_sha256=digest("another"))
    assert "evaluate.llm" in refused(78)
    with pytest.raises(SystemExit) as end:
        main("memory", "", memory.run, [str(tmp_path / "nowhere.json")])
    assert end.value.code == 78


def test_the_request_is_what_the_flow_sends(one, tmp_path):
    """Every field but `sources` and `to`'s default is in what `malmm ask` writes."""
    sent = json.loads(one.request(tmp_path))
    assert set(Request.model_fields) - {"sources"} == set(sent)
