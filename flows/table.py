"""Scores as a table, for the terminal and as rows for Prefect; counts of items in words."""

from collections.abc import Mapping
from typing import Any


def rows(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """metrics.json as one row a metric, one column a system; "0.412 [0.361, 0.470]" where there is an interval."""
    names = list(dict.fromkeys(name for scores in metrics.values() for name in scores))
    return [
        {"metric": name} | {system: _cell(scores.get(name)) for system, scores in metrics.items()} for name in names
    ]


def scores(metrics: Mapping[str, Any]) -> str:
    """The same as aligned text."""
    table = rows(metrics)
    columns = list(table[0])
    width = {column: max(len(column), *(len(row[column]) for row in table)) for column in columns}
    lines = ["  ".join(column.ljust(width[column]) for column in columns)]
    lines += ["  ".join(row[column].ljust(width[column]) for column in columns) for row in table]
    return "\n".join(line.rstrip() for line in lines)


def counted(counts: Mapping[str, int]) -> str:
    """Items by status in words: "12 done, 3 reused"; empty where there are none."""
    return ", ".join(f"{number} {status}" for status, number in counts.items() if number)


def _cell(score: Mapping[str, float | None] | None) -> str:
    if score is None or score["value"] is None:
        return ""
    interval = "" if score.get("low") is None else f" [{score['low']:.3f}, {score['high']:.3f}]"
    return f"{score['value']:.3f}{interval}"
