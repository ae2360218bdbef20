"""What several commands take and do: their options' types, a config read, an error told."""

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

Config = Annotated[Path, typer.Argument(help="a pipeline's YAML, as in configs/")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="FIELD=VALUE", help="lay a value over the config: --set finetune.epochs=2")
]
StoreUrl = Annotated[str, typer.Option("--store", help="folder or fsspec URL of the store")]


def load(config: Path, overrides: list[str]) -> Any:
    """The config, whole and checked. Raises ConfigError."""
    from flows.config import load

    return load(config, overrides)


def known(names: list[str], those: Any) -> None:
    """End with exit code 2 where a name is none of those there are."""
    if wrong := [name for name in names if name not in those]:
        fail(f"{', '.join(wrong)}: no such thing; there are {', '.join(those)}", 2)


def fail(message: str, code: int) -> NoReturn:
    """Say why, and end."""
    print(message, file=sys.stderr)
    raise SystemExit(code)
