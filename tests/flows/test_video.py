"""Pipelines over videos: the extra stage, a given checkpoint, and the commands about one video."""

import json
import subprocess
import sys

import pytest

from flows import ask
from flows.by_hand import make
from flows.config import ConfigError, load
from flows.plan import plan
from flows.runners import ProcessRunner
from stages.contract import Request, StageError
from storage import MissingArtifact, Store, published
from tests.flows.conftest import ROOT


def malmm(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "flows", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_frames_come_between_samples_and_features(pretend):
    images = plan(load(pretend.config))
    assert list(images) == ["ingest", "embed_imagebind", "finetune", "evaluate"]
    assert set(images["embed_imagebind"].request.inputs) == {"samples"}
    pretend.over_video()
    steps = plan(load(pretend.config))
    assert list(steps) == ["ingest", "extract_frames", "embed_imagebind", "finetune", "evaluate"]
    assert steps["embed_imagebind"].request.inputs == {
        "samples": steps["ingest"].key,
        "frames": steps["extract_frames"].key,
    }
    other = plan(load(pretend.config, ["extract_frames.fps=5"]))
    assert {name for name in steps if other[name].key != steps[name].key} == set(steps) - {"ingest"}


def test_a_given_checkpoint_leaves_training_out(pretend):
    pretend.over_video()
    steps = plan(load(pretend.config))
    with pytest.raises(MissingArtifact, match="0 checkpoint artifacts"):
        plan(load(pretend.config, ["checkpoint=abcdef"]))
    for step in steps.values():
        make(step, ProcessRunner())
    given = plan(load(pretend.config, [f"checkpoint='{steps['finetune'].key[:12]}'", "finetune.lr=0.5"]))
    assert "finetune" not in given and given["evaluate"].key == steps["evaluate"].key


def test_questions_about_one_video_go_through_the_same_stages(pretend):
    video = pretend.over_video()
    config = ["--config", str(pretend.config)]
    asking, drawing = (
        ["ask", str(video), "who is it", *config],
        ["memory", str(video), "--question", "who is it", *config],
    )
    refused = malmm(*asking)
    assert refused.returncode == 65 and "has no checkpoint of pipeline pretend" in refused.stderr
    for step in plan(load(pretend.config)).values():
        make(step, ProcessRunner())
    for given in (asking, drawing):
        done = malmm(*given)
        assert done.returncode == 0, done.stderr
        asked = pretend.asked("evaluate")
        request = json.loads(asked["stdin"])
        assert asked["argv"] == [f"stages.evaluate.{given[0]}", "-"]
        assert (request["video"], request["question"]) == ("clip.mp4", "who is it")
        assert request["checkpoint"] == plan(load(pretend.config))["finetune"].key
        assert {"samples", "frames", "features", "store", "config", "to"} <= set(request)
        assert pretend.tries("ingest") == 2 and pretend.tries("finetune") == 1
        assert f"checkpoint {request['checkpoint'][:12]} of " in done.stderr
    other = malmm(*drawing, "--set", "checkpoint=deadbeef00")
    assert other.returncode == 65 and "0 checkpoint artifacts" in other.stderr


def test_a_set_of_videos_without_frames_is_refused(pretend):
    pretend.over_video()
    text = pretend.config.read_text()
    pretend.config.write_text(text.replace("format: questions", "format: activitynet_qa"))
    load(pretend.config)
    pretend.config.write_text(pretend.config.read_text().replace("extract_frames: {}\n", ""))
    with pytest.raises(ConfigError, match="add a section `extract_frames:`"):
        load(pretend.config)


def test_what_cannot_be_asked_is_said(pretend):
    with pytest.raises(ConfigError, match="a pipeline over images"):
        ask.about("ask", pretend.config, "who", pretend.config, [], "", pretend.folder)
    with pytest.raises(FileNotFoundError, match="no video file gone.mp4"):
        ask.about("ask", pretend.folder.__class__("gone.mp4"), "who", pretend.config, [], "", pretend.folder)


def test_probe_and_export_hand_over_to_the_stage(pretend):
    video = pretend.over_video()
    assert malmm("probe", "--json", str(video)).returncode == 0
    assert pretend.asked("extract_frames")["argv"] == ["stages.extract_frames", "probe", "--json", str(video)]
    steps = plan(load(pretend.config))
    for name in ("ingest", "extract_frames"):
        make(steps[name], ProcessRunner())
    done = malmm("export", "frames", steps["extract_frames"].key[:10], "--store", str(pretend.store), "--to", "out")
    assert done.returncode == 0, done.stderr
    argv = pretend.asked("extract_frames")["argv"]
    assert argv[:2] == ["stages.extract_frames", "export"] and steps["extract_frames"].key in argv
    assert malmm("export", "frames", "abc", "--to", "out", "--layout", "other").returncode == 2


def test_a_request_is_printed_and_nothing_runs(pretend):
    done = malmm("stage", "ingest", "--config", str(pretend.config), "--request")
    assert Request.model_validate_json(done.stdout) == plan(load(pretend.config))["ingest"].request
    assert not published(Store(pretend.store), "samples")


def test_a_stage_that_fails_by_hand_ends_with_its_code_and_cause(pretend):
    pretend.over_video()
    pretend.behave("ingest", "end(65, 'clip.mp4 is broken')")
    done = malmm("stage", "ingest", "--config", str(pretend.config))
    assert done.returncode == StageError.exit_code - 5 == 65 and "clip.mp4 is broken" in done.stderr
    assert "Traceback" not in done.stderr
    absent = malmm("stage", "extract_frames", "--config", str(ROOT / "configs" / "smoke.yaml"))
    assert absent.returncode == 78
