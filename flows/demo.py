"""`malmm demo`: real photographs and a small real language model, put where a user would put VisDial and Llama."""

import json
from pathlib import Path
from subprocess import run

from demo import prepare as photographs
from flows import environments
from flows.runners import ROOT, stage_environment

CONFIG = ROOT / "configs" / "demo.yaml"


def prepare(store: Path, imagebind_weights: Path | None) -> tuple[Path, list[str]]:
    """Make the demo's inputs in a folder of its store. Returns the config and the overrides that point at them.

    Raises BadPackage when a photograph is not the one the dialogues were written about, EnvironmentFailed when
    the language model cannot be converted.
    """
    packages, inputs = environments.root() / "demo", store.absolute() / "inputs"
    data = photographs.prepare(packages, inputs)
    llm = inputs / "SmolLM2-135M-Instruct"
    in_finetune_environment("demo.language_model", llm, packages)
    overrides = {
        "store": store.absolute(),
        "images": data.images,
        "llm": llm,
        "ingest.annotations.train": data.train,
        "ingest.annotations.val": data.val,
        "ingest.dense.val": data.dense_val,
    }
    if imagebind_weights is not None:
        overrides |= {"embed_imagebind.architecture": "huge", "embed_imagebind.weights": imagebind_weights.absolute()}
    return CONFIG, [f"{field}={json.dumps(str(value))}" for field, value in overrides.items()]


def in_finetune_environment(module: str, target: Path, *packages: Path) -> None:
    """Run `python -m MODULE TARGET` where transformers is, to make a language model. Raises EnvironmentFailed."""
    path = ":".join(map(str, (ROOT, *packages)))
    done = run(
        [str(environments.python("finetune")), "-m", module, str(target)],
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
