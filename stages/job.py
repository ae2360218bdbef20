"""What passes to a stage, and what its `run` works with."""

import hashlib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stages.config import StageConfig
from stages.events import Events
from storage import Artifact, Draft, Ledger, Store
from storage.artifacts import LEDGER_FILE

FORCED = "forced"  # the file beside a draft that says: nothing made before it is to be used


class Part(BaseModel):
    """A share of a stage's work, number `number` (from 0) of `of`. What falls to it follows from names alone, so parts
    of one artifact need not know of each other, and may come in any number, more than once, or not at all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int = Field(ge=0)
    of: int = Field(ge=1)

    @model_validator(mode="after")
    def _one_of_them(self) -> "Part":
        if self.number >= self.of:
            raise ValueError(f"there is no part {self.number} of {self.of}: they are counted from 0")
        return self

    def __str__(self) -> str:
        return f"{self.number}-of-{self.of}"

    def has(self, name: str) -> bool:
        """Whether the item, or shard, or batch, of this name falls to it: by SHA-256, evenly."""
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % self.of == self.number


class Request(BaseModel):
    """One run of one stage. `inputs`: kind -> key. `only`: work on these items alone (and so under another key).

    `sources`: digests of outside bytes where the caller has them already; else the stage hashes them.
    `force`: make the artifact again from nothing; tries that come after, without it, take up what this one leaves.
    `retry_failed`: try the items again that failed before.
    `part`: do a share of the work and leave it beside the draft, publishing nothing: the run without a part, which
    comes last, takes up what parts have finished, does what is left, and publishes.
    `label`: the pipeline's name, kept in the manifest for people.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    config: dict[str, Any]
    inputs: dict[str, str] = {}
    store: str
    sources: dict[str, str] | None = None
    only: tuple[str, ...] = ()
    force: bool = False
    retry_failed: bool = False
    part: Part | None = None
    label: str = ""


class Job:
    """What a stage's `run` works with: its config, inputs, draft, ledger, and the way to say how it goes."""

    def __init__(
        self,
        request: Request,
        config: StageConfig,
        store: Store,
        key: str,
        sources: dict[str, str],
        events: Events,
        leads: bool = True,
    ):
        self.request, self.config, self.store, self.key = request, config, store, key
        self.leads = leads  # whether this process speaks and publishes
        self.sources = sources  # digests of the config's outside bytes
        kinds = [kind for kind in (*config.INPUTS, *config.OPTIONAL) if kind in request.inputs]
        self.inputs = {kind: Artifact(store, kind, request.inputs[kind]) for kind in kinds}
        self.draft = Draft(store, config.KIND, key)
        partial = self.draft.partial
        names = filter(self._is_ours, partial.list()) if leads else ()  # the leader may be discarding them
        self.ledger = Ledger(*map(partial.read_table, names))
        # Items not to be tried again, and what went wrong with them. For stages whose failures cost much (a video that
        # hangs costs its whole time limit); the others try everything again.
        self.failed_before = {} if request.retry_failed else self.ledger.failed_before
        self.only = frozenset(request.only)
        self.about: dict[str, Any] = {}  # what else the manifest shall say
        self.progress, self.metric, self.log = events.progress, events.metric, events.log
        self._events = events

    @property
    def device(self) -> str:
        """ "cpu" or "cuda": the config's `device`, with "auto" resolved."""
        wanted = getattr(self.config, "device", "cpu")
        if wanted != "auto":
            return wanted
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def forced(self) -> bool:
        """Whether what was made before this artifact was begun is not to be used."""
        return self.request.force or self.draft.partial.exists(FORCED)

    @property
    def whole(self) -> bool:
        """Whether this run publishes: it is not one of several parts."""
        return self.request.part is None

    def mine(self, name: str) -> bool:
        """Whether the item, or shard, or batch, of this name is this run's to do."""
        return self.whole or self.request.part.has(name)

    def own_file(self, stem: str) -> str:
        """The name of a table beside the draft of which each part has its own: plan.parquet, plan-0-of-4.parquet."""
        return f"{stem}.parquet" if self.whole else f"{stem}-{self.request.part}.parquet"

    def keep_ledger(self) -> None:
        """Keep the ledger beside the draft; a try that ends early takes nothing from the one before it."""
        self.draft.partial.write_table(self.own_file("ledger"), self.ledger.table(unreached=True))

    def finish_part(self) -> None:
        """Leave the ledger of a part, and that there is nothing left of it, beside the draft."""
        self.keep_ledger()
        self.draft.partial.write_bytes(finished(self.request.part), b"")
        self._events.part_done(self.request.part.number, self.request.part.of, self.ledger.counts())

    def hand_over(self) -> None:
        """Leave speaking and publishing to a process that is started next: it gets our standard output."""
        self._events.hand_over()
        self.leads = False

    def item_failed(self, id: str, error: BaseException, seconds: float | None = None) -> None:
        """Record a failed item in the ledger and say so; the others go on."""
        self.ledger.failed(id, error, seconds)
        self._events.item_failed(id, error)

    def _is_ours(self, name: str) -> bool:
        """Whether a file beside the draft is a ledger with items of ours: of an earlier try, or of a part.

        Where as many parts were made as now, the others' tell nothing of ours, and may be many."""
        others = "" if self.whole else f"-of-{self.request.part.of}.parquet"
        ledger = name == LEDGER_FILE or (name.startswith("ledger-") and name.endswith(".parquet"))
        return ledger and (self.whole or name == self.own_file("ledger") or not name.endswith(others))


def finished(part: Part) -> str:
    """The file beside a draft that says: of this part nothing is left to do."""
    return f"finished-{part}"
