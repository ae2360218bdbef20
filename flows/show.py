"""What a run leaves in Prefect's UI besides its states: the scores, the report with its pictures, and the lineage."""

import base64
import re
from collections.abc import Iterable

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.plan import Step
from flows.table import counted, rows
from storage import Artifact, Store

LARGEST_PICTURE = 2**20  # bytes; artifacts lie in Prefect's database


def show_report(step: Step) -> None:
    """Show the scores as a table, and report.md."""
    report = Artifact(Store(step.request.store), step.kind, step.key)
    about = f"Report {step.key[:12]}"
    create_table_artifact(rows(report.read_json("metrics.json")), _name(step, "metrics"), about)
    create_markdown_artifact(with_pictures(report), _name(step, "report"), about)


def show_lineage(steps: Iterable[Step]) -> None:
    """Show what each stage made, of what, how many items, how long it took and where it lies."""
    steps = list(steps)
    create_markdown_artifact(lineage(steps), _name(steps[0], "lineage"), "What was made of what")


def with_pictures(report: Artifact) -> str:
    """report.md with its pictures inside: the UI shows data URIs, and cannot reach the store."""

    def inside(picture: re.Match) -> str:
        data = report.read_bytes(picture[2])
        if len(data) > LARGEST_PICTURE:
            return f"*{picture[1]}: {picture[2]} in the store, {len(data) / 2**20:.1f} MiB*"
        return f"![{picture[1]}](data:image/png;base64,{base64.b64encode(data).decode()})"

    return re.sub(r"!\[([^\]]*)\]\(([\w.-]+\.png)\)", inside, report.read_bytes("report.md").decode())


def lineage(steps: Iterable[Step]) -> str:
    """The steps' artifacts as a table in Markdown, and below it where they lie."""
    table = ["| stage | made | of | items | seconds |", "|---|---|---|---|---:|"]
    places = []
    for step in steps:
        store = Store(step.request.store)
        artifact = Artifact(store, step.kind, step.key)
        made_of = "<br>".join(f"{kind} `{key[:12]}`" for kind, key in step.request.inputs.items())
        items, seconds = counted(artifact.manifest["counts"]), artifact.manifest.get("seconds", 0)
        table.append(f"| {step.stage} | {step.kind} `{step.key[:12]}` | {made_of} | {items} | {seconds:.1f} |")
        places.append(f"- `{store.url.removeprefix('file://')}/{artifact.folder}`")
    return "\n".join([*table, "", *places])


def _name(step: Step, what: str) -> str:
    """Artifacts of one name are versions of each other in the UI: so each pipeline has its own."""
    return f"{step.request.label}-{what}".replace("_", "-")
