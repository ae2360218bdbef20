"""Who an artifact is: the record its key is made of, from config, inputs, outside bytes and library versions."""

import hashlib
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from stages.config import StageConfig
from stages.errors import WrongConfig

ROOT = Path(__file__).resolve().parent.parent


def record_of(
    config: StageConfig, inputs: Mapping[str, str], sources: Mapping[str, str], only: Sequence[str] = ()
) -> dict[str, Any]:
    """The canonical record of one run: nothing that changes the output is missing, nothing else is in it."""
    locked = locked_versions(config.STAGE)
    if unlocked := [name for name in config.LIBRARIES if name not in locked]:
        raise WrongConfig(
            f"envs/{config.STAGE}/requirements.txt does not lock {', '.join(unlocked)}: "
            f"run `malmm env lock {config.STAGE}`"
        )
    record = {
        "stage": config.STAGE,
        "version": config.VERSION,
        "config": config.key_fields(),
        "sources": dict(sources),
        "inputs": {kind: inputs[kind] for kind in (*config.INPUTS, *config.OPTIONAL) if kind in inputs},
        "libraries": {name: locked[name] for name in config.LIBRARIES},
    }
    return record | ({"only": sorted(only)} if only else {})


@cache
def locked_versions(stage: str) -> dict[str, str]:
    """Package -> version, from envs/<stage>/requirements.txt."""
    lines = (ROOT / "envs" / stage / "requirements.txt").read_text().splitlines()
    pinned = (re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;+]+)", line) for line in lines)
    return {_normal(match[1]): match[2] for match in pinned if match}


def check_libraries(config: StageConfig) -> None:
    """Raises WrongConfig when an installed package that changes the output is not the locked one."""
    locked = locked_versions(config.STAGE)
    for name in config.LIBRARIES:
        try:
            found = importlib.metadata.version(name).split("+")[0]  # "+cpu" names a build, not a version
        except importlib.metadata.PackageNotFoundError:
            found = "not installed"
        if found != locked[name]:
            raise WrongConfig(
                f"{config.STAGE}: {name} is {found}, envs/{config.STAGE}/requirements.txt says "
                f"{locked[name]}: run `malmm env sync {config.STAGE}`"
            )


def code_digest(config: StageConfig) -> str:
    """SHA-256 over the sources that make the stage's output, to notice a change that VERSION does not tell."""
    digest = hashlib.sha256()
    for folder in (f"stages/{config.STAGE}", *config.CODE):
        for path in sorted((ROOT / folder).rglob("*.py")):
            data = path.read_bytes()
            digest.update(f"{path.relative_to(ROOT).as_posix()}:{len(data)}\n".encode() + data)
    return digest.hexdigest()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
