"""The same events in Prefect: a progress artifact that moves, and the run's log."""

import time
import uuid

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from flows.terminal import Terminal


class Progress(Terminal):
    """A Terminal that tells Prefect as well. `key` names the progress artifact."""

    UPDATE_SECONDS = 3.0  # an update is a request to the server

    def __init__(self, stage: str, key: str):
        super().__init__(stage)
        self._log = get_run_logger()
        self._key = key.replace("_", "-")
        self._artifact: uuid.UUID | None = None
        self._last_update = 0.0

    def progress(self, done: int, total: int, unit: str) -> None:
        super().progress(done, total, unit)
        now = time.monotonic()
        if now - self._last_update < self.UPDATE_SECONDS and done < total:
            return
        self._last_update = now
        share = 100.0 * done / max(1, total)
        if self._artifact is None:
            self._artifact = create_progress_artifact(share, key=self._key, description=f"{unit} of {self.stage}")
        else:
            update_progress_artifact(self._artifact, share)

    def say(self, message: str, level: str = "info") -> None:
        super().say(message, level)
        getattr(self._log, level)("%s", message)
