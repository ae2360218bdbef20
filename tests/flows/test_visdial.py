"""Six real VisDial dialogues with their images, from annotations to a report, every stage by its real command."""

import json

import pytest

from flows.config import load
from flows.plan import plan
from flows.runners import ProcessRunner
from storage import Artifact, Store

CONFIG = """\
name: six
store: {here}/store
images: {images}
llm: {llm}
device: cpu
ingest:
  annotations: {{train: {annotations}, val: {annotations}}}
embed_imagebind:
  architecture: tiny
finetune:
  quantization: none
  qformer: {{hidden: 64, layers: 2, heads: 4, intermediate: 128, query_tokens: 4}}
  max_prompt_tokens: 256   # the tiny model reads 512 tokens
  max_steps: 4
  warmup_steps: 1
evaluate:
  max_new_tokens: 4
  meteor: false
  resamples: 100
"""


@pytest.mark.slow
def test_real_dialogues_from_annotations_to_a_report(shared, tmp_path, tiny_llm):
    config = tmp_path / "six.yaml"
    config.write_text(
        CONFIG.format(
            here=tmp_path,
            llm=tiny_llm,
            images=shared("data/visdial/images"),
            annotations=shared("data/visdial/visdial_with_images.json"),
        )
    )
    steps = plan(load(config))
    for step in steps.values():
        events: list = []
        assert ProcessRunner().run(step.request, events.append) == 0, json.dumps(events[-3:], indent=1)
    store = Store(tmp_path / "store")
    report = Artifact(store, "report", steps["evaluate"].key)
    predictions = report.read_table("predictions.parquet")
    assert len(predictions) == 60 and predictions["trained_answer"].null_count == 0
    text = report.read_bytes("report.md").decode()
    assert text.startswith("> **Warning:**") and "random" in text.split("\n\n")[0]
    assert "the samples have no candidates: nothing is ranked" in text
    metrics = report.read_json("metrics.json")
    assert set(metrics) == {"untrained", "trained", "permuted", "majority"} and "mrr" not in metrics["trained"]
    # Every number can be followed back to the bytes: report -> checkpoint -> features -> samples -> images.
    inputs = report.manifest["record"]["inputs"]
    assert inputs == {step.kind: step.key for step in steps.values() if step.kind != "report"}
    samples = Artifact(store, "samples", inputs["samples"])
    assert set(samples.manifest["record"]["sources"]) == {"annotations.train", "annotations.val", "images"}
    samples.verify()
