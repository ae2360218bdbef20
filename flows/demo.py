"""`malmm demo`: real photographs, clips and a small real language model, put where a user would put their own."""

import json
from pathlib import Path
from subprocess import run

from demo import clips
from demo import prepare as photographs
from flows import environments
from flows.runners import ROOT, stage_environment

CONFIGS = ROOT / "configs"


def prepare(store: Path, imagebind_weights: Path | None) -> list[tuple[Path, list[str]]]:
    """Make the demo's inputs in a folder of its store. Returns the configs of its two parts, photographs and videos,
    with the overrides that point at the inputs.

    Raises BadPackage when a file is not the one the questions were written about, EnvironmentFailed when the
    language model cannot be converted.
    """
    packages, inputs = environments.root() / "demo", store.absolute() / "inputs"
    shown, filmed = photographs.prepare(packages, inputs), clips.prepare(packages, inputs)
    llm = inputs / "SmolLM2-135M-Instruct"
    in_finetune_environment("demo.language_model", llm, packages)
    common = {"store": store.absolute(), "llm": llm}
    if imagebind_weights is not None:
        common |= {"embed_imagebind.architecture": "huge", "embed_imagebind.weights": imagebind_weights.absolute()}
    parts = {
        "demo.yaml": {
            "images": shown.images,
            "ingest.annotations.train": shown.train,
            "ingest.annotations.val": shown.val,
            "ingest.dense.val": shown.dense_val,
        },
        "demo_video.yaml": {
            "videos": filmed.videos,
            "ingest.annotations.train": filmed.train,
            "ingest.annotations.val": filmed.val,
        },
    }
    return [
        (CONFIGS / name, [f"{field}={json.dumps(str(value))}" for field, value in (common | own).items()])
        for name, own in parts.items()
    ]


def in_finetune_environment(module: str, target: Path, *packages: Path) -> None:
    """Run `python -m MODULE TARGET` where transformers is, to make a language model. Raises EnvironmentFailed."""
    path, python = ":".join(map(str, (ROOT, *packages))), environments.python("finetune")
    if not python.exists():
        raise environments.EnvironmentFailed(
            f"{python} does not exist, and makes {target}: run `malmm env sync finetune`; for a flow that runs in an "
            "image, make its inputs outside first, by `malmm smoke`"
        )
    done = run(
        [str(python), "-m", module, str(target)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=stage_environment() | {"PYTHONPATH": path},
        check=False,
    )
    if done.returncode:
        raise environments.EnvironmentFailed(
            f"python -m {module} failed:\n{done.stderr[-2000:]}\n"
            "`malmm env sync finetune demo --force` installs what it needs again"
        )
