"""docs/config.md, written from the config classes themselves.

python -m flows.reference > docs/config.md
"""

import re

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from flows.config import SHARED, STAGES, Pipeline
from flows.runners.settings import Needs, RunnerSettings
from stages.config import StageConfig

PER_STAGE = {"stages": Needs}  # fields that hold a mapping of stage names to settings

HEAD = """# Every field of a config

Written by `python -m flows.reference > docs/config.md` from the classes that check a config; a test holds that it is
current. A pipeline is one YAML file (configs/ has some); `--set stage.field=value` lays a value over it. Relative paths
start where the command runs. What several stages take - `images`, `videos`, `llm` and others, below - may be given once
at the top: every stage that has such a field and does not set its own takes it from there.

*In the key*: **yes** - the value changes the output, and so the artifact's key; **bytes** - the file's bytes enter the
key, its name does not; **no** - it says how the work is done, not what comes out (beyond rounding), and may differ
between tries of one run.
"""


def reference() -> str:
    """The whole page, in Markdown."""
    lines = [HEAD, "## The pipeline", "", "| field | default | what it is |", "|---|---|---|"]
    for name, field in Pipeline.model_fields.items():
        if name not in STAGES:
            lines.append(f"| `{name}` | {'' if name == 'runner' else _default(field)} | {field.description} |")
    lines += [f"| `{name}` | | handed to the stages that have it |" for name in SHARED]
    lines += ["", "## runner", "", "Where the stages run; none of it enters a key.", ""]
    lines += ["| field | default | what it is |"]
    lines += ["|---|---|---|", *_settings(RunnerSettings, "runner.")]
    for stage, config in STAGES.items():
        lines += [
            "",
            f"## {stage}",
            "",
            (config.__doc__ or "").strip().split("\n")[0],
            "",
            f"Reads {', '.join(config.INPUTS) or 'outside files'}; makes {config.KIND}; version {config.VERSION}. "
            f"Library versions in the key: {', '.join(config.LIBRARIES) or 'none'}.",
            "",
            "| field | type | default | in the key | what it is |",
            "|---|---|---|---|---|",
        ]
        lines += [_row(config, name) for name in config.model_fields]
    return "\n".join(lines) + "\n"


def _settings(settings: type[BaseModel], at: str) -> list[str]:
    """Rows of nested settings, each field by its whole name."""
    rows = []
    for name, field in settings.model_fields.items():
        inner = PER_STAGE.get(name, field.annotation)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            rows += _settings(inner, f"{at}{name}." + ("STAGE." if name in PER_STAGE else ""))
        else:
            rows.append(f"| `{at}{name}` | {_default(field)} | {field.description} |")
    return rows


def _row(config: type[StageConfig], name: str) -> str:
    field = config.model_fields[name]
    kind = re.sub(r"typing\.|pathlib\.|<class '|'>|stages\.\w+\.config\.", "", str(field.annotation))
    kind = re.sub(r"Annotated\[([\w\[\], ]+?), <[^>]*>\]", r"\1", kind)
    kind = re.sub(r"Annotated\[(\w+), FieldInfo\(.*\)\]", r"\1", kind)
    kind = re.sub(r"Union\[(.*)\]$", lambda match: match[1].replace(", ", " | "), kind)
    kind = re.sub(r"Optional\[(.*)\]$", r"\1 | null", kind).replace("NoneType", "null").replace("None", "null")
    kind = re.sub(r"Literal\[(.*?)\]", lambda match: match[1].replace(", ", " | "), kind)
    row = [f"`{name}`", kind, _default(field), config.in_key(name), field.description or ""]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def _default(field: object) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "must be given" if field.default_factory is None else f"`{field.default_factory()!r}`"
    return "" if value is None else f"`{value!r}`"


if __name__ == "__main__":
    print(reference(), end="")
