"""What every stage is: a request in, JSON events out, one artifact. No Prefect, no torch.

    python -m stages.embed_imagebind run REQUEST.json

exits 0; 65 when the input is bad (do not retry), 75 when it may pass later (retry), 78 when the config is
wrong (the BSD sysexits), 70 when the stage itself broke. Nothing else passes between orchestrator and stage.
"""

import argparse
import contextlib
import ctypes
import hashlib
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stages.config import How, SourceDir, SourceFile, StageConfig
from stages.errors import BadInput, StageError, TryAgain, WrongConfig
from stages.events import Events
from stages.identity import check_libraries, code_digest, record_of
from storage import Artifact, Draft, Ledger, StorageError, Store, is_current, is_published, key_of
from storage.artifacts import LEDGER_FILE
from storage.digests import Digests

FAILURE = "failure.json"  # beside a draft: why the last try ended

__all__ = [
    "BadInput",
    "How",
    "Job",
    "Part",
    "Request",
    "SourceDir",
    "SourceFile",
    "StageConfig",
    "StageError",
    "TryAgain",
    "WrongConfig",
    "main",
]


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

    def has(self, name: str) -> bool:
        """Whether the item, or shard, or batch, of this name falls to it: by SHA-256, evenly."""
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % self.of == self.number


class Request(BaseModel):
    """One run of one stage. `inputs`: kind -> key. `only`: work on these items alone (and so under another key).

    `sources`: digests of outside bytes where the caller has them already; else the stage hashes them.
    `force`: make the artifact again from nothing. `retry_failed`: try the items again that failed before.
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
        names = filter(is_ledger, partial.list()) if leads else ()  # the leader may be discarding them
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
    def whole(self) -> bool:
        """Whether this run publishes: it is not one of several parts."""
        return self.request.part is None

    def mine(self, name: str) -> bool:
        """Whether the item, or shard, or batch, of this name is this run's to do."""
        return self.whole or self.request.part.has(name)

    def own_file(self, stem: str) -> str:
        """The name of a table beside the draft of which each part has its own: plan.parquet, plan-0-of-4.parquet."""
        part = self.request.part
        return f"{stem}.parquet" if part is None else f"{stem}-{part.number}-of-{part.of}.parquet"

    def keep_ledger(self) -> None:
        """Keep the ledger beside the draft."""
        self.draft.partial.write_table(self.own_file("ledger"), self.ledger.table())

    def hand_over(self) -> None:
        """Leave speaking and publishing to a process that is started next: it gets our standard output."""
        self._events.hand_over()
        self.leads = False

    def item_failed(self, id: str, error: BaseException, seconds: float | None = None) -> None:
        """Record a failed item in the ledger and say so; the others go on."""
        self.ledger.failed(id, error, seconds)
        self._events.item_failed(id, error)


def main(
    config_class: type[StageConfig], run: Callable[[Job], None], argv: list[str] | None = None, leads: bool = True
) -> None:
    """The command of a stage: `run REQUEST.json`, or `run -` to read the request from standard input.

    `leads`: where several processes work on one request together, whether it is this one that speaks and publishes.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{config_class.STAGE}",
        description=(config_class.__doc__ or "").split("\n")[0],
        epilog="Exit codes: 0 done, 65 bad input, 70 internal error, 75 try again later, 78 wrong config.",
    )
    command = parser.add_subparsers(dest="command", required=True).add_parser("run", help="run one request")
    command.add_argument("request", help="a JSON file with the request, or - for standard input")
    arguments = parser.parse_args(argv)
    _follow_parent()
    signal.signal(signal.SIGTERM, _interrupt)
    with _events(leads) as events:
        sys.exit(_guarded(config_class, run, arguments.request, events, leads))


def _guarded(
    config_class: type[StageConfig], run: Callable[[Job], None], source: str, events: Events, leads: bool
) -> int:
    """Run, and turn whatever happens into one event and one exit code."""
    job: Job | None = None
    try:
        request, config = _read(config_class, source)
        store = Store(request.store)
        check_libraries(config)
        sources = config.sources(Digests()) if request.sources is None else request.sources
        record = record_of(config, request.inputs, sources, request.only)
        key = key_of(record)
        if nothing_to_do(request, store, config.KIND, key):
            events.done(Artifact(store, config.KIND, key), reused=True)
            return 0
        if request.part is None and leads:
            open_draft(request, store, config.KIND, key)
        elif request.part is not None and is_published(store, config.KIND, key):
            raise BadInput(
                f"{config.KIND} {key[:12]} is there, but stale or to be made again, and a part takes nothing away: run "
                f"{config.STAGE} without a part"
            )
        job = Job(request, config, store, key, sources, events, leads)
        store.delete(f"{job.draft.partial.folder}/{FAILURE}")  # of an earlier try
        started = time.monotonic()
        run(job)
        if not job.leads:
            return 0
        if not job.whole:
            job.keep_ledger()
            events.part_done(request.part.number, request.part.of, job.ledger.counts())
            return 0
        about = job.about | {
            "stage": config.STAGE,
            "version": config.VERSION,
            "record": record,
            "made_from": {k: {"key": a.key, "content": a.content} for k, a in job.inputs.items()},
            "label": request.label,
            "code": code_digest(config),
            "seconds": round(time.monotonic() - started, 3),
            "python": platform.python_version(),
        }
        events.done(job.draft.publish(job.ledger, about), reused=False)
        return 0
    except KeyboardInterrupt:
        if job is not None:
            with contextlib.suppress(OSError):
                job.keep_ledger()
        events.error("Interrupted", "stopped by a signal; what was finished is kept and the next run takes it up")
        return 130
    except Exception as error:  # whatever it is, it must end as one event and one exit code
        code = exit_code_of(error)
        if code == 70:
            traceback.print_exc()
        if job is not None:
            _keep_failure(job, error)
        events.error(type(error).__name__, str(error) or repr(error))
        return code


def nothing_to_do(request: Request, store: Store, kind: str, key: str) -> bool:
    """Whether the artifact is there and nothing asks for making it again."""
    if request.force or not is_current(store, kind, key):
        return False
    return not (request.retry_failed and Artifact(store, kind, key).manifest["counts"]["failed"])


def open_draft(request: Request, store: Store, kind: str, key: str) -> None:
    """Take away, or open again, what is published and not wanted as it is. Before parts of a stage run, their
    orchestrator calls it, once; a run without parts does it itself."""
    draft = Draft(store, kind, key)
    if request.force:
        draft.discard()
    elif is_published(store, kind, key):  # then its inputs have changed, or failed items are wanted again
        draft.reopen() if is_current(store, kind, key) else draft.discard()


def is_ledger(name: str) -> bool:
    """Whether a file beside a draft is a ledger: of an earlier try, or of a part."""
    return name == LEDGER_FILE or (name.startswith("ledger-") and name.endswith(".parquet"))


def exit_code_of(error: BaseException) -> int:
    """The exit code of an exception: its own; 65 for what is missing or corrupt; 75 for the machine's troubles."""
    if isinstance(error, StageError):
        return error.exit_code
    if isinstance(error, (StorageError, FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return 65
    if isinstance(error, ValidationError):
        return 78
    # OSError: disk full, store out of reach, too many files; a GPU out of memory is a RuntimeError by name.
    if isinstance(error, (OSError, MemoryError)) or type(error).__name__ == "OutOfMemoryError":
        return 75
    return 70


def _read(config_class: type[StageConfig], source: str) -> tuple[Request, StageConfig]:
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text()
        request = Request.model_validate_json(text)
        if request.stage != config_class.STAGE:
            raise WrongConfig(f"{source}: the request is for stage {request.stage!r}, this is {config_class.STAGE!r}")
        if request.part is not None and not config_class.SPLITS:
            raise WrongConfig(f"{source}: {config_class.STAGE} does not split into parts: take part out")
        missing = [kind for kind in config_class.INPUTS if kind not in request.inputs]
        if missing:
            raise WrongConfig(
                f"{source}: inputs lacks {', '.join(missing)}; {config_class.STAGE} reads "
                f"{', '.join(config_class.INPUTS)}"
            )
        return request, config_class.model_validate(request.config)
    except FileNotFoundError:
        raise WrongConfig(f"no request file {source}") from None
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'request'}: {e['msg']}" for e in error.errors())
        raise WrongConfig(f"{source}: {said}") from None


def _keep_failure(job: Job, error: Exception) -> None:
    """Leave the ledger and the cause beside the draft, for `malmm status` and for counting attempts."""
    with contextlib.suppress(OSError):  # a store that takes no more bytes must not hide the first cause
        job.keep_ledger()
        job.draft.partial.write_json(
            FAILURE, {"error": type(error).__name__, "message": str(error), "counts": job.ledger.counts()}
        )


@contextlib.contextmanager
def _events(leads: bool) -> Iterator[Events]:
    """Events on the real standard output; what libraries print there goes to standard error instead."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1) if leads else os.open(os.devnull, os.O_WRONLY), "w", buffering=1) as out:
        os.dup2(2, 1)
        with contextlib.closing(Events(out)) as events:
            yield events


def _follow_parent() -> None:
    """Die with the parent that asked for it: an orphaned stage would write on with nobody watching."""
    parent = os.environ.get("MALMM_PARENT")
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != int(parent):
            sys.exit(TryAgain.exit_code)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
