"""The ledger: one row an item, so that a failed item is recorded and never replaced or dropped."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # see store.py
    import pyarrow as pa

STATUSES = ("done", "reused", "failed", "skipped")
_FINISHED = {"done": 2, "reused": 1}  # and what outweighs what


class Ledger:
    """Collects what became of each item; a later entry of an id replaces the earlier one.

    `before`: the ledgers of earlier, unfinished tries and of parts, whose attempts are counted on; of an item in
    several, what was done counts, then what was reused, else the row of most attempts. `failed_before`: the items that
    failed then, and what went wrong.
    """

    def __init__(self, *before: pa.Table):
        rows: dict[str, dict] = {}
        for row in (row for table in before for row in table.to_pylist()):
            if row["id"] not in rows or _weight(row) > _weight(rows[row["id"]]):
                rows[row["id"]] = row
        self._before = rows
        self._attempts = {id: row["attempts"] for id, row in rows.items()}
        failures = {id: row for id, row in rows.items() if row["status"] == "failed"}
        self.failed_before = {id: f"{row['error']}: {row['message']}" for id, row in failures.items()}
        # status, error, message, seconds, and whether this run tried it
        self._rows: dict[str, tuple[str, str | None, str | None, float | None, bool]] = {}

    def done(self, id: str, seconds: float | None = None) -> None:
        self._rows[id] = ("done", None, None, seconds, True)

    def reused(self, id: str) -> None:
        self._rows[id] = ("reused", None, None, None, False)

    def failed(self, id: str, error: BaseException, seconds: float | None = None) -> None:
        self._rows[id] = ("failed", type(error).__name__, str(error), seconds, True)

    def finished(self, id: str) -> bool:
        """Whether an earlier try, or a part, has done the item."""
        return self._before.get(id, {}).get("status") in _FINISHED

    def kept(self, id: str) -> None:
        """An item that was finished before this run: its row stays as it was; where a kill left none, it is done."""
        if self.finished(id):
            self.still(id)
        else:
            self.done(id)

    def still(self, id: str) -> None:
        """An item that an earlier try, or a part, has finished, or failed at: its row stays as it was."""
        before = self._before[id]
        self._rows[id] = (before["status"], before["error"], before["message"], before["seconds"], False)

    def skipped(self, id: str, message: str) -> None:
        self._rows[id] = ("skipped", None, message, None, False)

    def counts(self) -> dict[str, int]:
        """Items by status, every status named."""
        found = Counter(row[0] for row in self._rows.values())
        return {status: found[status] for status in STATUSES}

    def table(self, unreached: bool = False) -> pa.Table:
        """The LEDGER table, sorted by id. `unreached`: with what earlier tries have of items that this one lacks."""
        import pyarrow as pa

        from storage.tables import LEDGER

        rows = []
        for id in sorted(self._rows):
            status, error, message, seconds, tried = self._rows[id]
            attempts = self._attempts.get(id, 0) + tried
            rows.append(dict(id=id, status=status, error=error, message=message, attempts=attempts, seconds=seconds))
        if unreached:
            rows += (row for id, row in self._before.items() if id not in self._rows)
            rows.sort(key=lambda row: row["id"])
        return pa.Table.from_pylist(rows, schema=LEDGER)


def _weight(row: dict) -> tuple[int, int]:
    return _FINISHED.get(row["status"], 0), row["attempts"]
