"""What every stage is: a request in, JSON events out, one artifact. No Prefect, no torch.

    python -m stages.embed_imagebind run REQUEST.json

exits 0; 65 when the input is bad (do not retry), 75 when it may pass later (retry), 78 when the config is
wrong (the BSD sysexits), 70 when the stage itself broke. Nothing else passes between orchestrator and stage.
"""

import argparse
import contextlib
import ctypes
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from stages.config import How, SourceDir, SourceFile, StageConfig
from stages.errors import BadInput, StageError, TryAgain, WrongConfig
from stages.events import Events
from stages.identity import check_libraries, code_digest, record_of
from storage import Artifact, Draft, Ledger, StorageError, Store, is_current, is_published, key_of
from storage.digests import Digests

__all__ = [
    "BadInput",
    "How",
    "Job",
    "Request",
    "SourceDir",
    "SourceFile",
    "StageConfig",
    "StageError",
    "TryAgain",
    "WrongConfig",
    "main",
]


class Request(BaseModel):
    """One run of one stage. `inputs`: kind -> key. `only`: work on these items alone (and so under another key).

    `sources`: digests of outside bytes where the caller has them already; else the stage hashes them.
    `force`: make the artifact again from nothing. `retry_failed`: try the items again that failed before.
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
    ):
        self.request, self.config, self.store, self.key = request, config, store, key
        self.sources = sources  # digests of the config's outside bytes
        kinds = [kind for kind in (*config.INPUTS, *config.OPTIONAL) if kind in request.inputs]
        self.inputs = {kind: Artifact(store, kind, request.inputs[kind]) for kind in kinds}
        self.draft = Draft(store, config.KIND, key)
        before = self.draft.partial.exists("ledger.parquet")
        self.ledger = Ledger(self.draft.partial.read_table("ledger.parquet") if before else None)
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

    def item_failed(self, id: str, error: BaseException, seconds: float | None = None) -> None:
        """Record a failed item in the ledger and say so; the others go on."""
        self.ledger.failed(id, error, seconds)
        self._events.item_failed(id, error)


def main(config_class: type[StageConfig], run: Callable[[Job], None], argv: list[str] | None = None) -> None:
    """The command of a stage: `run REQUEST.json`, or `run -` to read the request from standard input."""
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
    with _events() as events:
        sys.exit(_guarded(config_class, run, arguments.request, events))


def _guarded(config_class: type[StageConfig], run: Callable[[Job], None], source: str, events: Events) -> int:
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
        draft = Draft(store, config.KIND, key)
        if request.force:
            draft.discard()
        elif is_published(store, config.KIND, key):  # then its inputs have changed, or failed items are wanted again
            draft.reopen() if is_current(store, config.KIND, key) else draft.discard()
        job = Job(request, config, store, key, sources, events)
        started = time.monotonic()
        run(job)
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
        job.draft.partial.write_table("ledger.parquet", job.ledger.table())
        job.draft.partial.write_json(
            "failure.json", {"error": type(error).__name__, "message": str(error), "counts": job.ledger.counts()}
        )


@contextlib.contextmanager
def _events() -> Iterator[Events]:
    """Events on the real standard output; what libraries print there goes to standard error instead."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", buffering=1) as out:
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
