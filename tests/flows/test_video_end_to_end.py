"""A real clip with its ten ActivityNet questions, from annotations to a report, every stage by its real command."""

import subprocess
import sys

import pytest

from flows.by_hand import make
from flows.config import load
from flows.plan import plan
from flows.runners import ProcessRunner
from storage import Artifact, Store
from storage.videos import VideoFeatures
from tests.flows.conftest import ROOT

CONFIG = """\
name: weights
store: {here}/store
videos: {videos}
llm: {llm}
device: cpu
ingest:
  format: activitynet_qa
  annotations: {{train: {questions}, test: {questions}}}
extract_frames: {{}}
embed_imagebind:
  architecture: tiny
finetune:
  recipe: malmm
  frames: 12
  memory_bank_length: 4
  template: "{{visual}}Question: {{question}} Short answer:"
  quantization: none
  qformer: {{hidden: 64, layers: 2, heads: 4, intermediate: 128, query_tokens: 4}}
  max_steps: 3
  warmup_steps: 1
  batch: 4
evaluate:
  split: test
  max_new_tokens: 4
  meteor: false
  resamples: 100
"""


@pytest.mark.slow
def test_a_video_with_its_questions_from_annotations_to_a_report_and_an_answer(shared, tmp_path, tiny_llm):
    config = tmp_path / "weights.yaml"
    clip = shared("data/video_qa/v_GGSY1Qvo990.mp4")
    questions = shared("data/video_qa/v_GGSY1Qvo990_activitynet_qa.json")
    config.write_text(CONFIG.format(here=tmp_path, llm=tiny_llm, videos=clip.parent, questions=questions))
    steps = plan(load(config))
    for step in steps.values():
        make(step, ProcessRunner())
    store = Store(tmp_path / "store")

    frames = Artifact(store, "frames", steps["extract_frames"].key)
    (video,) = frames.read_table("videos.parquet").to_pylist()
    (timeline,) = VideoFeatures(Artifact(store, "features", steps["embed_imagebind"].key)).timelines.values()
    assert len(timeline) == video["frames"] == len(video["pts"]) > 100 and video["audio"]
    report = Artifact(store, "report", steps["evaluate"].key)
    predictions = report.read_table("predictions.parquet")
    assert len(predictions) == 10 and predictions["trained_answer"].null_count == 0
    metrics = report.read_json("metrics.json")["trained"]
    assert metrics["accuracy"]["n"] == 10
    inputs = report.manifest["record"]["inputs"]
    assert inputs == {step.kind: step.key for step in steps.values() if step.kind not in ("report", "frames")}

    def malmm(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "flows", *arguments, "--config", str(config)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)

    asked = malmm("ask", str(clip), "what color is the barbell")
    assert asked.returncode == 0, asked.stderr[-3000:]
    assert "memory" in asked.stdout + asked.stderr
    drawn = malmm("memory", str(clip), "--to", str(tmp_path / "pictures"))
    assert drawn.returncode == 0, drawn.stderr[-3000:]
    assert {path.suffix for path in (tmp_path / "pictures").iterdir()} == {".png", ".html"}
