"""A whole pipeline without its libraries: each stage's interpreter is a small program that keeps the contract."""

import json
import sys
from pathlib import Path
from string import Template

from flows.config import STAGES

ROOT = Path(__file__).resolve().parent.parent.parent

# Publishes an empty artifact under the right key, after doing what behaviour.py beside it says. It imports what it
# must: tests start it a hundred times.
STAGE = Template("""#!$python
import json, os, pathlib, sys, time
sys.path.insert(0, "$root")
from $module import $config
from stages.contract import Request
from stages.identity import code_digest, record_of
from storage import Draft, Ledger, Store, key_of
asked, here = sys.stdin.read(), pathlib.Path(__file__).parent
if sys.argv[2].count(".") > 1 or sys.argv[3] != "run":  # another program of the stage: leave what it was given
    (here / "asked.json").write_text(json.dumps({"argv": sys.argv[2:], "stdin": asked}))
    sys.exit(0)
request = Request.model_validate_json(asked)
config = $config.model_validate(request.config)
tries = here / "tries"
tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
attempt = len(tries.read_text())
def end(code, message):
    print(json.dumps({"event": "error", "error": "Example", "message": message}), flush=True)
    sys.exit(code)
if (here / "behaviour.py").exists():
    exec((here / "behaviour.py").read_text())
record = record_of(config, request.inputs, request.sources, request.only)
draft = Draft(Store(request.store), config.KIND, key_of(record))
if config.KIND == "report":
    draft.write_json("metrics.json", {"trained": {"bleu_1": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 2}}})
    draft.write_bytes("report.md", b"# Evaluation\\n\\n![scores.png](scores.png)\\n")
    draft.write_bytes("scores.png", b"a picture")
ledger = Ledger()
ledger.done("one", 0.1)
if globals().get("failing"):
    ledger.failed("two", ValueError("is broken"))
print(json.dumps({"event": "progress", "done": 1, "total": 1, "unit": "items"}))
draft.publish(ledger, {"stage": request.stage, "version": config.VERSION, "record": record, "label": request.label,
                       "code": code_digest(config)})
print(json.dumps({"event": "done", "kind": config.KIND, "key": draft.key, "counts": ledger.counts()}))
""")


class Pretend:
    """A config over small files, and the programs in the place of its stages."""

    def __init__(self, folder: Path):
        self.folder, self.config, self.store = folder, folder / "config.yaml", folder / "store"
        (folder / "images").mkdir()
        (folder / "llm").mkdir()
        (folder / "llm" / "config.json").write_text("{}")
        (folder / "images" / "VisualDialog_val2018_000000000001.jpg").write_bytes(b"picture")
        (folder / "val.json").write_text(
            json.dumps(
                {
                    "version": "1.0",
                    "split": "val2018",
                    "data": {
                        "questions": ["is it red"],
                        "answers": ["yes"],
                        "dialogs": [{"image_id": 1, "caption": "a picture", "dialog": [{"question": 0, "answer": 0}]}],
                    },
                }
            )
        )
        self.config.write_text(f"""\
name: pretend
store: {self.store}
images: {folder}/images
llm: {folder}/llm
ingest:
  annotations:
    val: {folder}/val.json
embed_imagebind:
  architecture: tiny
finetune:
  lr: 1.0e-3
evaluate:
  beams: 1
""")
        for stage in STAGES:
            program = folder / "envs" / stage / "bin" / "python"
            program.parent.mkdir(parents=True)
            config = STAGES[stage]
            values = {"python": sys.executable, "root": ROOT, "module": config.__module__, "config": config.__name__}
            program.write_text(STAGE.substitute(values))
            program.chmod(0o755)

    def over_video(self) -> Path:
        """The config of a pipeline over one video instead."""
        videos = self.folder / "videos"
        videos.mkdir()
        (videos / "clip.mp4").write_bytes(b"a video")
        annotations = self.folder / "questions.json"
        annotations.write_text(json.dumps([{"video": "clip.mp4", "question": "who is it", "answer": "a rabbit"}]))
        self.config.write_text(f"""\
name: pretend
store: {self.store}
videos: {videos}
llm: {self.folder}/llm
ingest:
  format: questions
  annotations: {{train: {annotations}}}
extract_frames: {{}}
embed_imagebind:
  architecture: tiny
finetune:
  frames: 4
evaluate:
  beams: 1
""")
        return videos / "clip.mp4"

    def asked(self, stage: str) -> dict:
        """The command line and standard input of the stage's other program that was run."""
        return json.loads((self.folder / "envs" / stage / "bin" / "asked.json").read_text())

    def behave(self, stage: str, code: str) -> None:
        """What a stage does before it would publish; `attempt`, `end(code, message)` and `here` are at hand."""
        (self.folder / "envs" / stage / "bin" / "behaviour.py").write_text(code)

    def tries(self, stage: str) -> int:
        tries = self.folder / "envs" / stage / "bin" / "tries"
        return len(tries.read_text()) if tries.exists() else 0
