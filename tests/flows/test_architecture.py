"""Imports run one way, and each room holds only what belongs in it (shared design; docs/decisions.md)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
OURS = {"flows", "stages", "storage", "malmm", "video", "demo"}
STAGES = sorted(p.name for p in (ROOT / "stages").iterdir() if (p / "__main__.py").exists())
CONTRACT = {"stages.contract", "stages.config", "stages.errors", "stages.events", "stages.identity", "stages.paths"}
LIGHT = {"torch", "transformers", "prefect", "bitsandbytes", "PIL", "matplotlib", "peft", "accelerate"}


def imports(folder: str) -> list[tuple[Path, str]]:
    """(file, imported module) of every import below a folder."""
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")) if (ROOT / folder).is_dir() else [ROOT / folder]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else ([node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else [])
            )
            found += [(path.relative_to(ROOT), name) for name in names]
    return found


def offenders(folder: str, allowed: set[str], forbidden: set[str] = frozenset()) -> list[tuple[Path, str]]:
    """Imports of our own outside `allowed` (a package allows all below it), and of any forbidden library."""

    def fine(name: str) -> bool:
        top = name.split(".")[0]
        if top in OURS:
            return any(name == a or name.startswith(a + ".") for a in allowed)
        return top not in forbidden

    return [(path, name) for path, name in imports(folder) if not fine(name)]


def test_storage_knows_nobody():
    assert offenders("storage", {"storage"}, LIGHT) == []


def test_the_model_is_pure():
    assert offenders("malmm", {"malmm"}, {"prefect", "pyarrow", "zarr"}) == []


def test_videos_are_read_without_the_rest():
    assert offenders("video", {"video"}, LIGHT | {"pyarrow", "zarr", "pydantic"}) == []


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_imports_another_or_the_flow(stage):
    shared = {"finetune": {"malmm"}, "evaluate": {"malmm"}, "extract_frames": {"video"}, "embed_imagebind": {"video"}}
    allowed = {f"stages.{stage}", "storage", *CONTRACT, *shared.get(stage, ())}
    assert offenders(f"stages/{stage}", allowed, {"prefect"}) == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_config_is_light(stage):
    assert offenders(f"stages/{stage}/config.py", {f"stages.{stage}", "storage", *CONTRACT}, LIGHT) == []


def test_the_flow_sees_only_configs_and_the_contract():
    configs = {f"stages.{stage}.config" for stage in STAGES}
    assert (
        offenders(
            "flows",
            {"flows", "demo", "storage", *configs, *CONTRACT},
            {"torch", "transformers", "zarr", "bitsandbytes"},
        )
        == []
    )


def test_nothing_unpickles_or_starts_a_shell():
    """Ruff holds most of it (S301, S602, ...); what it cannot see is torch.load without weights_only."""
    for folder in sorted(OURS):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "yaml.load"):
                    said = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    safe = said.get("weights_only") == "True" or said.get("allow_pickle") == "False"
                    assert safe, f"{path}:{node.lineno} may unpickle"
