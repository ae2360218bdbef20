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
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import ValidationError

from stages.config import How, SourceDir, SourceFile, StageConfig
from stages.errors import BadInput, StageError, TryAgain, WrongConfig
from stages.events import Events
from stages.identity import check_libraries, code_digest, record_of
from stages.job import FORCED, Job, Part, Request, finished
from storage import Artifact, Draft, StorageError, Store, is_current, is_published, key_of
from storage.artifacts import folder_of
from storage.digests import Digests
from storage.locks import alone

FAILURE = "failure.json"  # beside a draft: why the last try ended
# By name, as not every stage has their libraries: a GPU out of memory, an answer of S3 that breaks off.
PASSING = {"OutOfMemoryError", "ClientPayloadError", "HTTPClientError"}
GRACE = 15  # seconds that a stage whose parent died has to put its ledger down

__all__ = [
    "FORCED",
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
    "finished",
    "main",
]


def main(
    config_class: type[StageConfig], run: Callable[[Job], None], argv: list[str] | None = None, rank: int | None = None
) -> None:
    """The command of a stage: `run REQUEST.json`, or `run -` to read the request from standard input.

    `rank`: where several processes work on one request together, the number of this one; 0 speaks and publishes.
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
    with _events(speaks=not rank) as events:
        sys.exit(_guarded(config_class, run, arguments.request, events, rank))


def _guarded(
    config_class: type[StageConfig], run: Callable[[Job], None], source: str, events: Events, rank: int | None
) -> int:
    """Run, and turn whatever happens into one event and one exit code."""
    try:
        _perform(config_class, run, source, events, rank)
        return 0
    except KeyboardInterrupt:
        events.error("Interrupted", "stopped by a signal; what was finished is kept and the next run takes it up")
        return 130
    except Exception as error:  # whatever it is, it must end as one event and one exit code
        code = exit_code_of(error)
        if code == 70:
            traceback.print_exc()
        events.error(type(error).__name__, str(error) or repr(error))
        return code


def _perform(
    config_class: type[StageConfig], run: Callable[[Job], None], source: str, events: Events, rank: int | None
) -> None:
    """Make what the request asks for, or find it made."""
    request, config = _read(config_class, source)
    store, kind = Store(request.store), config.KIND
    check_libraries(config)
    sources = config.sources(Digests()) if request.sources is None else request.sources
    record = record_of(config, request.inputs, sources, request.only)
    key = key_of(record)
    with contextlib.ExitStack() as until_published:
        if request.part is None and rank is None and not nothing_to_do(request, store, kind, key):
            until_published.enter_context(making(store, kind, key, events.log))
        if nothing_to_do(request, store, kind, key):
            events.done(Artifact(store, kind, key), reused=True)
            return
        if request.part is None and not rank:
            open_draft(request, store, kind, key)
        elif request.part is not None and is_published(store, kind, key):
            raise BadInput(
                f"{kind} {key[:12]} is there, but stale or to be made again, and a part takes nothing away: run "
                f"{config.STAGE} without a part"
            )
        job = Job(request, config, store, key, sources, events, leads=not rank)
        started = time.monotonic()
        with _keeping_what_is_done(job):
            run(job)
            if job.leads and job.whole:
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
            elif job.leads:
                job.finish_part()


def making(store: Store, kind: str, key: str, log: Callable[[str], None]) -> contextlib.AbstractContextManager[None]:
    """While the artifact is made: no other run makes it. Where one does, waits until it has ended, and says so."""
    said = f"another run is making {kind} {key[:12]}: this one waits for it"
    return alone(store, folder_of(kind, key), lambda: log(said))


def nothing_to_do(request: Request, store: Store, kind: str, key: str) -> bool:
    """Whether the artifact is there and nothing asks for making it again."""
    if request.force or not is_current(store, kind, key):
        return False
    return not (request.retry_failed and Artifact(store, kind, key).manifest["counts"]["failed"])


def open_draft(request: Request, store: Store, kind: str, key: str) -> None:
    """Take away, or open again, what is published and not wanted as it is. Before parts of a stage run, their
    orchestrator calls it, once, and before a run that is forced; any other does it itself."""
    draft = Draft(store, kind, key)
    if request.force:
        draft.discard()
        draft.partial.write_bytes(FORCED, b"")
    elif is_published(store, kind, key):  # then its inputs have changed, or failed items are wanted again
        draft.reopen() if is_current(store, kind, key) else draft.discard()


def exit_code_of(error: BaseException) -> int:
    """The exit code of an exception: its own; 65 for what is missing or corrupt; 75 for the machine's troubles."""
    if isinstance(error, (StageError, StorageError)):
        return error.exit_code
    if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return 65
    if isinstance(error, ValidationError):
        return 78
    # OSError: disk full, store out of reach, too many files.
    if isinstance(error, (OSError, MemoryError)) or PASSING & {base.__name__ for base in type(error).__mro__}:
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


@contextlib.contextmanager
def _keeping_what_is_done(job: Job) -> Iterator[None]:
    """Leave the ledger of a run that ends badly beside the draft, for counting attempts, and the cause, for `status`.

    A store that takes no more bytes must not hide the first cause."""
    job.draft.partial.delete(FAILURE)  # of an earlier try
    try:
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(OSError, StorageError):
            job.keep_ledger()
        raise
    except Exception as error:
        why = {"error": type(error).__name__, "message": str(error), "counts": job.ledger.counts()}
        with contextlib.suppress(OSError, StorageError):
            job.keep_ledger()
            job.draft.partial.write_json(FAILURE, why)
        raise


@contextlib.contextmanager
def _events(speaks: bool) -> Iterator[Events]:
    """Events on the real standard output; what libraries print there goes to standard error instead."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1) if speaks else os.open(os.devnull, os.O_WRONLY), "w", buffering=1) as out:
        os.dup2(2, 1)
        with contextlib.closing(Events(out)) as events:
            yield events


def _follow_parent() -> None:
    """Die with the parent that asked for it: an orphaned stage would write on with nobody watching."""
    parent = int(os.environ.get("MALMM_PARENT", 0))
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            sys.exit(TryAgain.exit_code)
        threading.Thread(target=_end_at_last, args=(parent,), daemon=True).start()


def _end_at_last(parent: int) -> None:
    """End an orphan that is deep in a library's C code, where it does not hear of a signal."""
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(GRACE)
    os.killpg(0, signal.SIGKILL)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
